"""What a person sees: draw, understand, kept, data, runs."""

import base64
import hashlib
import html
import io
from typing import Any

import numpy as np
from nicegui import context, events, run, ui
from PIL import Image

from acontrol import inspection
from acontrol.data.images import image_size, read_image, read_mask
from acontrol.data.mvtec import open_folder
from acontrol.errors import UserError
from acontrol.generation.exports import write_as_coco
from acontrol.masks.placement import NotPlaced
from acontrol.runs.mlflow_client import registered
from acontrol.studio import library
from acontrol.studio.canvas import MaskCanvas
from acontrol.studio.tickets import Ticket
from acontrol.studio.workbench import Studio

SHOWN = 24  # Drawings that wait for a decision.
STYLE = """
:root { --ink: #1d2430; --soft: #667085; --line: #d9dee7; --accent: #1f5fbf; }
body { font-family: system-ui, 'Segoe UI', Roboto, sans-serif; color: var(--ink);
       background: #f6f7f9; }
.nicegui-content { padding: 0; }
.s-head { font-weight: 600; font-size: 1.05rem; }
.s-note { color: var(--soft); font-size: .85rem; }
.s-card { background: white; border: 1px solid var(--line); border-radius: 10px;
          padding: 12px; min-width: 0; max-width: 100%; }
@media (max-width: 700px) { .s-card { flex: 1 1 100% !important; max-width: 100% !important; } }
.s-strip { display: flex; flex-wrap: wrap; gap: 6px; max-height: 250px; overflow-y: auto; }
.s-strip button { padding: 0; border: 2px solid transparent; border-radius: 6px;
                  background: none; line-height: 0; cursor: pointer; }
.s-strip button img { width: 72px; height: 72px; object-fit: cover; border-radius: 4px; }
.s-strip button[aria-pressed=true] { border-color: var(--accent); }
.s-strip button:focus-visible, .mc button:focus-visible, .mc-view:focus-visible
  { outline: 3px solid #84b0f5; outline-offset: 1px; }
.mc-tools { display: flex; gap: 6px; align-items: center; flex-wrap: wrap;
            margin-bottom: 8px; }
.mc-tools button { border: 1px solid var(--line); border-radius: 6px; padding: 3px 10px;
                   background: white; cursor: pointer; }
.mc-tools button.on { background: var(--accent); color: white;
                      border-color: var(--accent); }
.mc-tools button:disabled { opacity: .4; cursor: default; }
.mc-tools label { display: flex; gap: 6px; align-items: center; }
.mc-tools output { min-width: 3.6em; color: var(--soft); font-size: .85rem; }
.mc-gap { flex: 1; }
.mc-view { height: 52vh; overflow: auto; background: #e6e9ef; border-radius: 8px; }
.mc-stage { position: relative; margin: 0 auto; }
.mc-stage img, .mc-stage canvas { position: absolute; inset: 0; width: 100%; height: 100%;
                                  image-rendering: pixelated; }
.mc-stage canvas { opacity: .55; cursor: crosshair; touch-action: none; }
.s-results { display: flex; flex-wrap: wrap; gap: 12px; }
.s-result img { width: 150px; height: 150px; object-fit: contain; background: #eceff4;
                border-radius: 4px; }
.s-three { display: flex; gap: 4px; }
.s-three figure { margin: 0; }
.s-three figcaption { font-size: .75rem; color: var(--soft); }
"""


def add_page(studio: Studio) -> None:
    """Make the page; each browser that opens it is a user of its own."""

    @ui.page("/", title="acontrol studio")
    def page() -> None:
        Page(studio).build()


class Page:
    """One browser's page."""

    def __init__(self, studio: Studio):
        """Choose the first category and nothing else."""
        self.studio = studio
        self.user = context.client.id
        self.category = studio.library.categories[0]
        self.normal = 0
        self.upload: str | None = None
        self.reference: int | None = 0
        self.seen: Any = None

    def build(self) -> None:
        """All tabs."""
        ui.add_css(STYLE)
        ui.colors(primary="#1f5fbf")
        with (
            ui.header()
            .classes("items-center bg-white text-black")
            .style("border-bottom: 1px solid #d9dee7")
        ):
            ui.label("acontrol studio").classes("s-head")
            with ui.tabs().props("dense no-caps") as tabs:
                names = ("Draw", "Understand", "Kept", "Data", "Runs")
                made = {name: ui.tab(name) for name in names}
            ui.space()
            self.status = ui.label().classes("s-note").props("role=status")
        with ui.tab_panels(tabs, value=made["Draw"]).classes("w-full bg-transparent") as panels:
            panels.props("keep-alive")
            with ui.tab_panel(made["Draw"]):
                self._draw_tab()
            with ui.tab_panel(made["Understand"]):
                self._understand_tab()
            with ui.tab_panel(made["Kept"]):
                self._kept_tab()
            with ui.tab_panel(made["Data"]):
                self._data_tab()
            with ui.tab_panel(made["Runs"]):
                self._runs_tab()
        ui.timer(0.5, self._tick)

    # Draw

    def _draw_tab(self) -> None:
        with ui.row().classes("w-full no-wrap items-start gap-3").style("flex-wrap: wrap"):
            with ui.column().classes("s-card").style("flex: 1 1 240px; max-width: 330px"):
                ui.label("1  A good image").classes("s-head")
                ui.select(
                    list(self.studio.library.categories),
                    value=self.category,
                    label="product",
                    on_change=lambda event: self._choose_category(event.value),
                ).classes("w-full")
                self._normals()
                ui.upload(
                    label="or your own",
                    auto_upload=True,
                    max_files=1,
                    on_upload=self._uploaded,
                    max_file_size=100_000_000,
                    on_rejected=lambda: self._say("over 100 MB, or not one file"),
                ).props("flat bordered accept=image/*").classes("w-full")
            with ui.column().classes("s-card").style("flex: 4 1 480px"):
                ui.label("2  Paint where the defect goes").classes("s-head")
                self.canvas = MaskCanvas(*self._source(), lambda: None)
                self.canvas.classes("w-full")
                with ui.row().classes("items-center"):
                    ui.label("or take").classes("s-note")
                    for source, text in (("real", "a training mask"), ("perlin", "a blob")):
                        ui.button(text, on_click=lambda s=source: self._suggest(s)).props(
                            "flat dense no-caps"
                        )
            with ui.column().classes("s-card").style("flex: 1 1 270px; max-width: 380px"):
                ui.label("3  Like which defect?").classes("s-head")
                self._references()
                self._settings()
        with ui.row().classes("items-center"):
            ui.label("Drawings").classes("s-head")
            self.waiting = ui.label().classes("s-note")
        self._results()

    def _settings(self) -> None:
        card = self.studio.drawer.pipeline.card
        with ui.grid(columns=2).classes("w-full gap-2"):
            self.gamma = ui.number("reference's strength", value=1.0, min=0, max=3, step=0.1)
            self.asea = ui.number(
                "ASEA steps (T_g)", value=card.asea.steps, min=0, max=10, precision=0
            )
            self.steps = ui.number("steps", value=30, min=1, max=100, precision=0)
            self.count = ui.number(
                "how many", value=1, min=1, max=self.studio.config.most, precision=0
            )
            self.start = ui.select(
                {
                    "noise": "from noise",
                    "reference": "on the reference",
                    "clean": "on the image",
                },
                value="noise",
                label="start",
            )
            self.strength = ui.number("share redrawn", value=1.0, min=0.05, max=1, step=0.05)
        self.prompt = ui.input("words, if others than the reference's").classes("w-full")
        with ui.row().classes("w-full items-center"):
            ui.button("Draw", on_click=self._ask).props("no-caps unelevated id=draw")
            ui.button("cancel", on_click=self._cancel).props("flat no-caps")
            self.bar = ui.linear_progress(value=0, show_value=False).style("flex: 1")

    @ui.refreshable_method
    def _normals(self) -> None:
        with ui.element("div").classes("s-strip").props("role=group aria-label='Good images'"):
            for number, file in enumerate(self.studio.library.normals(self.category)):
                chosen = number == self.normal and self.upload is None
                _picture_button(
                    f"/thumbnail/normal/{self.category}/{number}",
                    f"good image {file.name}",
                    chosen,
                    lambda n=number: self._choose_normal(n),
                )

    @ui.refreshable_method
    def _references(self) -> None:
        rows = self.studio.library.references[self.category][: library.LISTED]
        with ui.element("div").classes("s-strip").props("role=group aria-label='References'"):
            for number, row in enumerate(rows):
                _picture_button(
                    f"/thumbnail/reference/{self.category}/{number}",
                    f"{row.phrase}, {row.defect} {row.id}",
                    number == self.reference,
                    lambda n=number: self._choose_reference(n),
                )
        if rows and self.reference is not None:
            row = rows[self.reference]
            ui.label(f"{row.phrase}  ({row.defect} {row.id})").classes("s-note")

    def _choose_category(self, name: str) -> None:
        self.category, self.normal, self.upload, self.reference = name, 0, None, 0
        self._normals.refresh()
        self._references.refresh()
        self.canvas.show_picture(*self._source())

    def _choose_normal(self, number: int) -> None:
        self.normal, self.upload = number, None
        self._normals.refresh()
        self.canvas.show_picture(*self._source())

    def _choose_reference(self, number: int) -> None:
        self.reference = number
        self._references.refresh()

    async def _uploaded(self, event: events.UploadEventArguments) -> None:
        content = await event.file.read()
        name = hashlib.sha256(content).hexdigest()[:16]
        try:
            self.upload = await run.io_bound(self.studio.upload, content, name)
        except UserError as error:
            self._say(str(error))
            return
        self._normals.refresh()
        self.canvas.show_picture(*self._source())

    def _file(self) -> Any:
        if self.upload is not None:
            return self.studio.uploaded(self.upload)
        return self.studio.library.normal(self.category, self.normal)

    def _source(self) -> tuple[str, str]:
        """Address and name of the picture that is painted on."""
        if self.upload is not None:
            return f"/picture/upload/{self.upload}", "your image"
        return f"/picture/normal/{self.category}/{self.normal}", f"{self.category}, good image"

    async def _suggest(self, source: Any) -> None:
        sampler = self.studio.drawer.masks
        row = self.studio.library.reference(self.category, self.reference or 0)
        mask = await run.io_bound(
            sampler.find,
            source,
            (self.category, row.defect),
            (self.studio.library.folder, self.category),
            self._file(),
            row,
            int(np.random.default_rng().integers(2**31)),
        )
        assert mask is not None
        if isinstance(mask, NotPlaced):
            self._say(f"found no place for it: {mask.reason}")
            return
        self.canvas.suggest(np.asarray(mask.image()))

    async def _ask(self) -> None:
        try:
            file = self._file()
            mask = library.mask_of_png(await self.canvas.png(), image_size(file))
            row = self.studio.library.reference(self.category, self.reference or 0)
            count = _whole(self.count, "how many", self.studio.config.most)
            request = {
                "category": self.category,
                "defect": row.defect,
                "normal": str(file),
                "reference": f"{row.category}/{row.defect}/{row.id}",
                "steps": _whole(self.steps, "steps", 100),
                "scale": self.gamma.value,
                "asea_steps": _whole(self.asea, "ASEA steps", 10),
                "start": self.start.value,
                "strength": self.strength.value if self.start.value != "noise" else 1.0,
            }
            if self.prompt.value:
                request["prompt"] = self.prompt.value
            await run.io_bound(self.studio.ask, self.user, request, mask, count)
        except (UserError, TimeoutError) as error:
            self._say(str(error) or "the browser did not send the mask")
            return
        self._say(f"{count} asked for", good=True)

    def _cancel(self) -> None:
        dropped = self.studio.tickets.cancel(self.user)
        self._say(f"{dropped} cancelled", good=True)

    @ui.refreshable_method
    def _results(self) -> None:
        tickets = [
            ticket
            for ticket in self.studio.tickets.all()
            if ticket.state in ("drawn", "failed")
        ]
        with ui.element("div").classes("s-results"):
            if not tickets:
                ui.label(
                    "Nothing yet. What is drawn waits here until you decide, also when this "
                    "page is closed."
                ).classes("s-note")
            for ticket in reversed(tickets[-SHOWN:]):
                with ui.column().classes("s-card s-result gap-1"):
                    if ticket.state == "failed":
                        ui.label(f"Drawing {ticket.number} failed: {ticket.error}")
                        _button("remove", lambda t=ticket: self._decide(t, "rejected"))
                        continue
                    _three(ticket)
                    ui.label(in_words(ticket.result)).classes("s-note")
                    with ui.row():
                        _button("Keep", lambda t=ticket: self._decide(t, "kept"), strong=True)
                        _button("Reject", lambda t=ticket: self._decide(t, "rejected"))

    async def _decide(self, ticket: Ticket, verdict: Any) -> None:
        try:
            if verdict == "kept":
                await run.io_bound(self.studio.keep, ticket)
            else:
                ticket.decide(verdict)
        except (UserError, OSError) as error:
            self._say(str(error))
        self._results.refresh()
        self._kept.refresh()

    def _tick(self) -> None:
        tickets = self.studio.tickets.all()
        states = [ticket.state for ticket in tickets]
        progress = self.studio.drawer.progress
        waiting = states.count("waiting")
        own = sum(t.state == "waiting" and t.user == self.user for t in tickets)
        self.waiting.text = f"{waiting} waiting, {own} of them yours" if waiting else ""
        self.bar.value = progress.done / progress.steps if progress else 0
        kept = states.count("kept")
        self.status.text = f"{kept} kept in {self.studio.config.out.name}"
        now = (states.count("drawn"), states.count("failed"), kept, states.count("rejected"))
        if self.seen is not None and now != self.seen:
            self._results.refresh()
            if now[2] != self.seen[2]:
                self._kept.refresh()
        self.seen = now

    # Understand

    def _understand_tab(self) -> None:
        with ui.column().classes("s-card w-full"):
            ui.label("What the words attend to").classes("s-head")
            ui.label(
                "The chosen reference as the vision-language model sees it: where its words "
                "look after each step of ASEA. E is low where attention falls on the mask."
            ).classes("s-note")
            ui.button("Look at the chosen reference", on_click=self._look).props(
                "no-caps unelevated"
            )
            self.focus_place = ui.column().classes("w-full")

    async def _look(self) -> None:
        row = self.studio.library.reference(self.category, self.reference or 0)
        focus = await run.io_bound(self.studio.drawer.focus, row.image, row.mask, row.phrase)
        assert focus is not None
        picture = Image.fromarray(read_image(row.image))
        truth = read_mask(row.mask, picture.size)
        shown = [_heated(picture, truth, one) for one in focus.maps]
        captions = [f"T_g {steps}: E {e:.3f}" for steps, e in enumerate(focus.energies)]
        self.focus_place.clear()
        with self.focus_place:
            ui.label(f"{row.phrase}, {row.defect} {row.id}").classes("s-head")
            with ui.row().classes("items-start gap-6"):
                with ui.column():
                    image = ui.image(shown[0]).style("width: 380px")
                    image.props(f"alt='attention of {html.escape(row.phrase)}'")
                    told = ui.label(captions[0])
                    slider = ui.slider(min=0, max=len(shown) - 1, value=0, step=1).props(
                        "label snap markers aria-label='Steps of ASEA'"
                    )

                    def show(event: events.ValueChangeEventArguments[Any]) -> None:
                        image.set_source(shown[int(event.value)])
                        told.text = captions[int(event.value)]

                    slider.on_value_change(show)
                ui.html(_curve(focus.energies), sanitize=False)

    # Kept

    def _kept_tab(self) -> None:
        with ui.row().classes("items-center"):
            ui.label("Kept").classes("s-head")
            self.filter = ui.select(["all"], value="all", label="defect").props("dense")
            self.filter.on_value_change(self._kept.refresh)
            _button("Write as COCO", self._export)
        ui.label(
            f"acontrol generate --replay {self.studio.config.out} --model ... --data ... "
            "--out DIR  draws all of it again."
        ).classes("s-note")
        self._kept()

    @ui.refreshable_method
    def _kept(self) -> None:
        kept = [ticket for ticket in self.studio.tickets.all() if ticket.state == "kept"]
        kinds = sorted({ticket.result["defect"] for ticket in kept})
        self.filter.set_options(["all", *kinds], value=self.filter.value)
        with ui.element("div").classes("s-results"):
            for ticket in reversed(kept):
                if self.filter.value not in ("all", ticket.result["defect"]):
                    continue
                with ui.column().classes("s-card s-result gap-1"):
                    _three(ticket)
                    ui.label(ticket.result["image"]).classes("s-note")
                    _button("Take out", lambda t=ticket: self._take_out(t))

    async def _take_out(self, ticket: Ticket) -> None:
        await run.io_bound(self.studio.kept.remove, ticket)
        self._kept.refresh()
        self._results.refresh()
        self._say("taken out: it waits among the drawings again", good=True)

    async def _export(self) -> None:
        lines = self.studio.kept.lines()
        if not lines:
            self._say("nothing is kept yet")
            return
        out, roots = self.studio.config.out, self.studio.drawer.roots
        await run.io_bound(write_as_coco, out, lines, roots)
        self._say(f"written: {out / 'coco'}", good=True)

    # Data and runs

    def _data_tab(self) -> None:
        with ui.column().classes("s-card w-full"):
            ui.label("What the data set holds").classes("s-head")
            place = ui.column().classes("w-full")

            async def look() -> None:
                folder = open_folder(
                    self.studio.config.data, split_file=self.studio.config.split_file
                )
                place.clear()
                with place:
                    ui.label("Reading every image ...").classes("s-note").props("role=status")
                found = await run.io_bound(inspection.inspect, folder, lambda items, *_: items)
                assert found is not None
                place.clear()
                with place:
                    ui.html(
                        f"<pre>{html.escape(inspection.as_text(*found))}</pre>", sanitize=False
                    )

            _button("Look at every image", look)

    def _runs_tab(self) -> None:
        with ui.column().classes("s-card w-full"):
            ui.label("Registered adapters").classes("s-head")
            place = ui.column()

            async def look() -> None:
                place.clear()
                try:
                    rows = await run.io_bound(registered)
                except UserError as error:
                    self._say(str(error))
                    return
                assert rows is not None
                with place:
                    if not rows:
                        ui.label("None on this MLflow server.").classes("s-note")
                    for name, version, alias in rows:
                        ui.label(f"{name} version {version} {alias}")
                        ui.label(
                            f"acontrol studio --model models:/{name}/{version} ..."
                        ).classes("s-note")

            _button("List them", look)

    def _say(self, text: str, *, good: bool = False) -> None:
        ui.notify(text, type="positive" if good else "negative", position="top")


def in_words(line: dict[str, Any]) -> str:
    """The gate's scores in words."""
    scores = line["scores"]
    told = f"{scores['mask_fill']:.0%} of the mask changed"
    if scores["distance"] is None or scores["limit"] is None:
        return told
    if scores["distance"] <= scores["limit"]:
        return f"{told}; as near to real ones as these are to each other"
    return f"{told}; farther from real ones than these are from each other"


def _three(ticket: Ticket) -> None:
    with ui.element("div").classes("s-three"):
        for kind, text in (("normal", "before"), ("image", "drawn"), ("change", "change")):
            with ui.element("figure"):
                source = f"/picture/drawing/{ticket.number}/{kind}"
                alt = f"drawing {ticket.number}, {text}"
                ui.html(f"<img src='{source}' alt='{alt}' loading='lazy'>", sanitize=False)
                ui.html(f"<figcaption>{text}</figcaption>", sanitize=False)


def _button(text: str, act: Any, *, strong: bool = False) -> None:
    ui.button(text, on_click=act).props("no-caps dense " + ("unelevated" if strong else "flat"))


def _picture_button(source: str, label: str, chosen: bool, act: Any) -> None:
    button = ui.element("button").on("click", act)
    button.props(f"type=button aria-pressed={'true' if chosen else 'false'}")
    with button:
        alt = html.escape(label, quote=True)
        ui.html(
            f"<img src='{source}' alt='{alt}' title='{alt}' loading='lazy'>", sanitize=False
        )


def _whole(field: Any, name: str, most: int) -> int:
    value = field.value
    if value is None or value != int(value) or not 0 <= value <= most:
        raise UserError(f"{name}: give a whole number up to {most}")
    return int(value)


def _heated(picture: Image.Image, truth: np.ndarray, heat: np.ndarray) -> Image.Image:
    """Attention over a dimmed picture, with the mask's outline."""
    from acontrol.reporting import outlined

    shown = picture.copy()
    shown.thumbnail((380, 380))
    levels = Image.fromarray((heat * 255).astype(np.uint8)).resize(
        shown.size, Image.Resampling.BICUBIC
    )
    share = np.asarray(levels, np.float32)[..., None] / 255
    grey = np.asarray(shown.convert("L"), np.float32)[..., None].repeat(3, axis=-1) * 0.6
    pixels = grey * (1 - share) + np.array([255, 190, 30], np.float32) * share
    mask = Image.fromarray(truth).resize(shown.size)
    return outlined(Image.fromarray(pixels.astype(np.uint8)), mask, 2)


def _curve(energies: tuple[float, ...]) -> str:
    """E over the steps as a small plot."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib.figure import Figure

    figure = Figure(figsize=(4, 3))
    axes = figure.subplots()
    axes.plot(range(len(energies)), energies, marker="o", color="#1f5fbf")
    axes.set_xlabel("steps of ASEA")
    axes.set_ylabel("E")
    axes.set_xticks(range(len(energies)))
    axes.spines[["top", "right"]].set_visible(False)
    figure.tight_layout()
    file = io.BytesIO()
    figure.savefig(file, format="png")
    content = base64.b64encode(file.getvalue()).decode()
    return f"<img alt='E after each step' src='data:image/png;base64,{content}'>"
