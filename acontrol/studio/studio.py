"""What the page does, without the page: ask for drawings, watch them, decide on them."""

import contextlib
import io
import shutil
import threading
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from pydantic import ValidationError
from torch import Tensor

from acontrol.config import Settings
from acontrol.data.images import encode_png, image_size, read_image, read_mask, region
from acontrol.data.overlap import refuse_overlap
from acontrol.errors import UserError, explain, one_line
from acontrol.generation.adapter import AdapterMethod
from acontrol.generation.exports import write_as_coco, write_as_yolo
from acontrol.generation.gate import DefectScorer, missed_limits
from acontrol.generation.inputs import check_inputs
from acontrol.generation.job import generate_batch
from acontrol.generation.manifest import Line
from acontrol.generation.methods import load_method
from acontrol.generation.report import write_as_shards
from acontrol.generation.request import Request
from acontrol.generation.run import job_metadata, make_planner
from acontrol.generation.sampler import Generator
from acontrol.generation.settings import Gate, GenerationConfig, OutputSettings
from acontrol.masks.placement import NotPlaced
from acontrol.networks.load import quieten
from acontrol.seeding import derive_seed
from acontrol.studio.drawing import Cancelled, FairQueue, start
from acontrol.studio.keeping import DECIDED, HIDDEN, Drawing, Kept, State
from acontrol.studio.library import Library
from acontrol.studio.settings import (
    MOST_AT_ONCE,
    MOST_SHOWN,
    MOST_STEPS,
    MOST_WAITING,
    StudioConfig,
)

PREVIEWS = 8  # Pictures of a drawing as it forms.
ACTIONS: dict[str, State] = {
    "keep": "kept",
    "reject": "rejected",
    "delete": "deleted",
    "undo": "drawn",
}
EXPORTS = ("coco", "yolo", "shards")


class Progress(Settings):
    """How far the current drawing is: steps done of all, and a picture of it as PNG."""

    name: str
    step: int = 0
    steps: int = 1
    picture: bytes | None = None


class Studio:
    """A loaded model, a data set, and the drawings of one folder."""

    def __init__(self, config: StudioConfig, model: str | None = None):
        """Load the model and open the folders; ``start`` begins to draw.

        Args:
            config: The settings.
            model: Where the adapter is, if not at ``config.model``.

        Raises:
            UserError: If the model or the data is bad, or ``config.out`` holds something else.
        """
        quieten()
        out = config.out.expanduser().resolve()
        refuse_overlap(out, "--out", {"--data": config.data})
        self.generation = GenerationConfig(
            model=config.model,
            data=config.data.expanduser().resolve(),
            out=out,
            captions=config.captions,
            split_file=config.split_file,
            base_path=config.base_path,
            precision=config.precision,
            gate="off",  # A person decides.
        )
        device = "cuda" if torch.cuda.is_available() else "cpu"
        name = model or config.model
        loaded = load_method("acontrol", name, config.base_path, device, config.precision)
        assert isinstance(loaded.method, AdapterMethod)
        self.loaded, self.method = loaded, loaded.method
        self.planner = make_planner(self.generation, loaded)
        threads = max(1, torch.get_num_threads())
        metadata = job_metadata(self.generation, self.planner, loaded, device, threads)
        self.kept = Kept(out, metadata)
        root = self.planner.folder.root
        self.roots = {"data": root, "normal": root}
        self.library = Library(
            self.planner.folder, self.planner.training, self.kept.hidden / "uploads"
        )
        self.gate = Gate()
        self.tracking = config.tracking_uri
        self.queue = FairQueue(MOST_WAITING)
        self.progress: Progress | None = None
        self._cancelled: set[str] = set()
        self._planning = threading.Lock()
        self._generator = Generator(
            self.method,
            DefectScorer(loaded.vlm, self.planner.training),
            Gate(gate="off"),
            OutputSettings(),
        )
        self.method.watch = self._watch
        for drawing in self.kept.drawings.values():
            if drawing.state == "waiting":  # From before a kill.
                self.queue.put(drawing.owner, [drawing.id])

    def start(self) -> threading.Thread:
        """Start the thread that draws."""
        return start(self.queue, self._draw)

    def ask(self, owner: str, values: dict[str, Any]) -> list[str]:
        """Ask for drawings.

        Args:
            owner: Whose turn they take.
            values: ``category``, ``normal`` and ``mask`` by their names in the library;
                ``reference``, a key, or ``reference_image`` and ``reference_mask``, uploads,
                with ``defect``; and whatever else a request may hold, ``count`` too.

        Returns:
            The drawings' ids.

        Raises:
            UserError: If anything of it is bad; then nothing is drawn.
        """
        request = self._request(values)
        if not 1 <= request.count <= MOST_AT_ONCE:
            raise UserError(f"count: ask for 1 to {MOST_AT_ONCE} at once, got {request.count}")
        if request.sampling(self.planner.sampling).steps > MOST_STEPS:
            raise UserError(f"steps: at most {MOST_STEPS} here")
        self.queue.refuse_more(request.count)
        with self._planning:
            planned, _ = self.planner.plan_images([("this drawing", request)])
        seeds = [image.seed for image in planned]
        names = [
            self.kept.add(owner, request.model_copy(update={"count": 1, "seed": seed})).id
            for seed in seeds
        ]
        self.queue.put(owner, names)
        return names

    def suggest(self, category: str, normal: str, key: str, source: str, seed: int) -> bytes:
        """A mask for a good image, as `acontrol generate` would place one, as PNG.

        Raises:
            UserError: If the source is unknown, or no place is found.
        """
        if source not in ("real", "perlin"):
            raise UserError(f"no source of masks {source[:40]!r}; choose real or perlin")
        reference = self.library.reference(key)
        defect_type = (reference.category, reference.defect)
        with self._planning:
            placed = self.planner.mask_sampler.find(
                "perlin" if source == "perlin" else "real",
                defect_type,
                (self.planner.normal_folder, category),
                self.library.normal(category, normal),
                reference,
                derive_seed(seed, "place", 0),
                cells=self.planner.cells(self.planner.sampling),
            )
        if isinstance(placed, NotPlaced):
            raise UserError(f"no place found: {placed.reason}; paint one, or try again")
        return encode_png(placed.image().convert("L"))

    def act(self, name: str, action: str) -> Drawing:
        """Keep, reject, delete, take back or cancel a drawing.

        Raises:
            UserError: If there is no such drawing or action.
        """
        if action == "cancel":
            drawing = self.kept.get(name)
            if drawing.state == "waiting":
                self._cancelled.add(name)
                if self.queue.remove(name):
                    self.kept.fail(name, "cancelled", "cancelled")
            return self.kept.get(name)
        if action == "dismiss":
            if self.kept.get(name).state == "failed":
                self.kept.fail(name, "dismissed", "cancelled")
            return self.kept.get(name)
        if action not in ACTIONS:
            raise UserError(f"no action {action[:20]!r}; choose from {', '.join(ACTIONS)}")
        return self.kept.decide(name, ACTIONS[action])

    def describe(self, drawing: Drawing) -> dict[str, Any]:
        """A drawing for the page."""
        request, line = drawing.request, drawing.line
        shown: dict[str, Any] = {
            "id": drawing.id,
            "state": drawing.state,
            "category": request.category,
            "defect": request.defect,
            "seed": str(request.seed),  # JavaScript would round it.
            "error": drawing.error,
            "prompt": line["prompt"] if line else None,
        }
        if drawing.state == "waiting":
            progress = self.progress
            shown["before"] = self.queue.place(drawing.id)
            if progress is not None and progress.name == drawing.id:
                shown |= {"step": progress.step, "steps": progress.steps}
                shown["preview"] = progress.picture is not None
        if line is not None:
            scores = line["scores"]
            missed = list(missed_limits(scores, self.gate).values())
            text = f"{scores['mask_fill']:.0%} of the mask changed"
            near = scores["distance"] is not None and scores["limit"] is not None
            if near and scores["distance"] <= scores["limit"]:
                text += (
                    f"; distance {scores['distance']:.3f} to the nearest real defect "
                    f"(real ones: up to {scores['limit']:.3f})"
                )
            shown["scores"] = text
            shown["missed"] = missed
        return shown

    def picture(self, name: str, kind: str, *, whole: bool = True) -> bytes:
        """A drawing's picture as PNG.

        Args:
            name: Its id.
            kind: image, mask, normal, difference or preview.
            whole: All of it; else the square around the mask, where a defect on a large image
                can be seen.

        Raises:
            UserError: If there is none.
        """
        drawing = self.kept.get(name)
        if kind == "preview":
            progress = self.progress
            if progress is None or progress.name != name or progress.picture is None:
                raise UserError(f"drawing {name} is not being drawn")
            return progress.picture
        if drawing.line is None:
            raise UserError(f"drawing {name} has no result yet")
        if kind not in ("image", "mask", "normal", "difference"):
            raise UserError(f"no picture {kind[:20]!r} of a drawing")
        shown = Image.fromarray(self._pixels(name, drawing.line, kind))
        if not whole:
            mask = read_mask(self.kept.mask_file(name), shown.size)
            shown, _ = region(shown, Image.fromarray(mask), margin=1)
        return encode_png(shown)

    def _pixels(self, name: str, line: Line, kind: str) -> np.ndarray:
        if kind == "image":
            return read_image(self.kept.file(name))
        normal = read_image(self.roots["normal"] / line["normal"])
        if kind == "normal":
            return normal
        if kind == "mask":
            size = (normal.shape[1], normal.shape[0])
            return read_mask(self.kept.mask_file(name), size).astype(np.uint8) * 255
        result = read_image(self.kept.file(name))
        gap = np.maximum(normal, result) - np.minimum(normal, result)
        return np.where(gap > 85, 255, 3 * np.minimum(gap, 85)).astype(np.uint8)

    def of_owner(self, owner: str) -> list[dict[str, Any]]:
        """A browser's drawings that are not decided yet, the latest first."""
        own = [
            drawing
            for drawing in self.kept.rows()
            if drawing.owner == owner
            and drawing.state not in DECIDED
            and drawing.state != "cancelled"
        ]
        return [self.describe(drawing) for drawing in reversed(own)]

    def decided(self) -> list[dict[str, Any]]:
        """Everybody's drawings that were decided on, the latest of each kind first."""
        rows = self.kept.rows()[::-1]
        return [
            self.describe(row)
            for state in DECIDED
            for row in [row for row in rows if row.state == state][:MOST_SHOWN]
        ]

    def num_kept(self) -> int:
        """How many are accepted."""
        return sum(row.state == "kept" for row in self.kept.rows())

    def export(self, form: str) -> Path:
        """Write what is accepted in another format, inside the folder.

        Raises:
            UserError: If nothing is accepted, or there is no such format.
        """
        if form not in EXPORTS:
            raise UserError(f"no format {form[:20]!r}; choose from {', '.join(EXPORTS)}")
        lines = self.kept.lines
        if not lines:
            raise UserError("nothing is accepted yet: accept a drawing first")
        folder = self.kept.out / form
        _remove(folder)
        if form == "coco":
            write_as_coco(self.kept.out, lines, self.roots)
        elif form == "yolo":
            write_as_yolo(self.kept.out, lines, self.roots)
        else:
            write_as_shards(self.kept.out, lines)
        return folder

    def _request(self, values: dict[str, Any]) -> Request:
        """A request with files instead of names.

        Raises:
            UserError: If a name is unknown, or a value out of range.
        """
        texts = ("category", "normal", "mask", "reference", "reference_image", "defect")
        values = dict(values)
        for name in (*texts, "reference_mask"):
            if not isinstance(values.get(name, ""), str):
                raise UserError(f"{name}: need a name")
        category = values.get("category", "")
        if category not in self.planner.folder.categories:
            raise UserError(f"no category {category[:80]!r}")
        if not values.get("normal") or not values.get("mask"):
            raise UserError("choose an image and paint where the defect goes")
        normal = self.library.normal(category, values["normal"])
        mask = self.library.mask(values["mask"], image_size(normal))
        values |= {"normal": str(normal), "mask": str(mask)}
        if values.get("reference"):
            values.setdefault("defect", self.library.reference(values["reference"]).defect)
        elif values.get("reference_image") and values.get("reference_mask"):
            image = self.library.normal(category, values["reference_image"])
            own = self.library.mask(values["reference_mask"], image_size(image))
            values |= {"reference_image": str(image), "reference_mask": str(own)}
        else:
            raise UserError("choose a reference, or upload one and paint its mask")
        try:
            return Request.model_validate(values, strict=True)
        except ValidationError as error:
            raise UserError(explain(error)) from error

    def _draw(self, name: str) -> None:
        """Draw one; whatever goes wrong is recorded with it."""
        drawing = self.kept.get(name)
        try:
            with self._planning:
                planned, _ = self.planner.plan_images([(f"drawing {name}", drawing.request)])
            crops = self.method.crops(
                np.asarray(planned[0].mask.image()), planned[0].sampling.crop
            )
            self._total, self._done = max(1, len(crops)), 0
            self.progress = Progress(name=name)
            inputs = check_inputs(self.loaded, planned, self.roots)
            result = generate_batch(self._generator, planned, 0, self.roots)
            self.kept.finish(name, result, inputs)
        except Cancelled:
            self.kept.fail(name, "cancelled", "cancelled")
        except Exception as error:  # The thread goes on with the next user's.
            with contextlib.suppress(OSError):  # A full disk: it waits for the next start.
                self.kept.fail(name, one_line(error) or type(error).__name__)
        finally:
            self.progress = None

    def _watch(self, step: int, steps: int, latents: Tensor) -> None:
        progress = self.progress
        if progress is None:
            return
        if progress.name in self._cancelled:
            raise Cancelled
        picture = progress.picture
        if step % max(1, steps // PREVIEWS) == 0:
            buffer = io.BytesIO()
            self.method.pipeline.decode(latents[:1])[0].save(buffer, format="PNG")
            picture = buffer.getvalue()
        self.progress = Progress(
            name=progress.name,
            step=self._done * steps + step,
            steps=self._total * steps,
            picture=picture,
        )
        if step == steps:
            self._done += 1


def _remove(folder: Path) -> None:
    """Remove an earlier export."""
    assert HIDDEN not in folder.parts
    if folder.is_dir():
        shutil.rmtree(folder)
