"""Draws tickets one after the other, in one thread, by the code of ``acontrol generate``."""

import dataclasses
import json
import threading
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from acontrol.config import AseaConfig
from acontrol.data.images import read_image, read_mask
from acontrol.data.mvtec import open_folder
from acontrol.data.split import refuse_mix
from acontrol.errors import UserError, is_out_of_memory, one_line
from acontrol.generation.adapter import AdapterMethod
from acontrol.generation.gate import DefectScorer
from acontrol.generation.job import check_inputs, generate_batch
from acontrol.generation.manifest import Line, planned_of
from acontrol.generation.methods import load_method
from acontrol.generation.plan import PlannedImage, Planner
from acontrol.generation.replay import machine_metadata
from acontrol.generation.request import Request
from acontrol.generation.sampler import Generator
from acontrol.generation.settings import Gate, OutputSettings
from acontrol.masks.sampler import MaskSampler
from acontrol.networks.load import quieten
from acontrol.pipelines.anomaly_control import vlm_inputs
from acontrol.runs import storage
from acontrol.studio.settings import StudioConfig
from acontrol.studio.tickets import Ticket, Tickets

GATE = Gate(gate="keep", tries=1)  # A person decides; the scores are shown.


class Cancelled(Exception):
    """The person who asked no longer wants the drawing."""


@dataclass(frozen=True)
class Progress:
    """How far the drawing at work is.

    Attributes:
        number: Of its ticket.
        done: Steps done.
        steps: Of all.
    """

    number: int
    done: int
    steps: int


@dataclass(frozen=True)
class Focus:
    """What a reference's words attend to, after each number of ASEA's steps.

    Attributes:
        energies: E of Eq. (3).
        maps: Attention on the reference, each (grid, grid), largest 1.
    """

    energies: tuple[float, ...]
    maps: tuple[Any, ...]


class Drawer:
    """The model, and the thread that draws with it."""

    def __init__(self, config: StudioConfig, tickets: Tickets):
        """Load the model.

        Raises:
            UserError: If it cannot draw for this data.
        """
        quieten()
        self.config, self.tickets = config, tickets
        device = "cuda" if torch.cuda.is_available() else "cpu"
        loaded = load_method("acontrol", config.model, None, device, config.precision)
        assert isinstance(loaded.method, AdapterMethod)
        self.pipeline = loaded.method.pipeline
        folder = open_folder(config.data.resolve(), split_file=config.split_file)
        seen = folder.trained_on(loaded.split)
        refuse_mix(
            f"the model {config.model}",
            dict.fromkeys(loaded.seen),
            f"the data {config.data}",
            seen,
        )
        self._loaded = loaded
        self._planner = Planner(
            folder,
            split=loaded.split,
            cells=loaded.latent_side,
            masks="file",
            read_phrase=loaded.read_phrase,
            base_digest=loaded.base_digest,
        )
        self.roots = {"data": folder.root, "normal": folder.root}
        output = OutputSettings()
        self._generator = Generator(
            loaded.method, DefectScorer(loaded.vlm, self._planner.training), GATE, output
        )
        parts = [*(part for part in dict.fromkeys(loaded.seen) if part != seen), seen]
        self.metadata: dict[str, Any] = {
            "method": "acontrol",
            "model": loaded.digest,
            "split": self._planner.split,
            "trained_on": [part.model_dump(mode="json") for part in parts],
            "gate": GATE.model_dump(include=set(Gate.model_fields)),
            "finish": output.model_dump(),
            **machine_metadata(loaded, device, torch.get_num_threads()),
        }
        self.progress: Progress | None = None
        self._current = -1
        self._numbers: Counter[tuple[str, str]] = Counter()
        self._wake = threading.Event()
        self._stopped = False
        self._busy = threading.Lock()  # The networks have one user at a time.
        self.pipeline.progress_bar = self._watched
        self._thread = threading.Thread(target=self._work, name="drawing", daemon=True)

    @property
    def masks(self) -> MaskSampler:
        """Where suggested masks come from."""
        return self._planner.mask_sampler

    def start(self, taken: Iterable[Line]) -> None:
        """Begin to draw; ``taken`` are lines whose file names are in use."""
        for line in taken:
            key = line["category"], line["defect"]
            self._numbers[key] = max(self._numbers[key], int(line["number"]) + 1)
        self._thread.start()

    def wake(self) -> None:
        """Say that something waits."""
        self._wake.set()

    def stop(self) -> None:
        """Draw no further one."""
        self._stopped = True
        self._wake.set()
        if self._thread.is_alive():
            self._thread.join(timeout=60)

    def check(self, request: Mapping[str, Any], mask: Path) -> None:
        """Refuse a request that cannot be drawn.

        Raises:
            UserError: In one line.
        """
        self._planned(request, mask, 0)

    def inputs_of(self, ticket: Ticket) -> dict[str, dict[str, str]]:
        """Digests of the files that a drawing was made from."""
        planned = planned_of(ticket.result, ticket.folder / "replay", self.roots)
        return check_inputs(self._loaded, [planned], self.roots)

    @torch.no_grad()
    def focus(self, image: Path, mask: Path, phrase: str, most: int = 5) -> Focus:
        """What ASEA does to a reference: attention and E after 0 to ``most`` steps."""
        picture = Image.fromarray(read_image(image))
        truth = Image.fromarray(read_mask(mask, picture.size))
        encoder = self.pipeline.semantics
        images, masks = vlm_inputs([picture], [truth], encoder.image_px, self.pipeline.card)
        energies, maps = [], []
        trained: AseaConfig = self.pipeline.card.asea
        with self._busy:
            for steps in range(most + 1):
                settings = trained.model_copy(update={"steps": steps})
                found = encoder(images, [phrase], masks, settings)
                grid = found.attention[0].float().reshape(encoder.grid, encoder.grid)
                energies.append(float(found.energy_after[0]))
                maps.append((grid / grid.max().clamp_min(1e-12)).cpu().numpy())
        return Focus(tuple(energies), tuple(maps))

    def _work(self) -> None:
        while not self._stopped:
            ticket = self.tickets.next()
            if ticket is None:
                self._wake.wait(timeout=1.0)
                self._wake.clear()
                continue
            try:
                with self._busy:
                    self._draw(ticket)
            except Cancelled:
                pass
            except (UserError, OSError, MemoryError, RuntimeError) as error:
                if isinstance(error, RuntimeError) and not is_out_of_memory(error):
                    reason = f"failed: {one_line(error)}"
                else:
                    reason = one_line(error) or type(error).__name__
                if ticket.folder.exists():
                    text = json.dumps(reason)
                    storage.write(ticket.folder / "error.json", text.encode())
            finally:
                self.progress = None

    def _draw(self, ticket: Ticket) -> None:
        planned = self._planned(ticket.request, ticket.mask, ticket.seed)
        key = planned.name[:2]
        number = f"{self._numbers[key]:03d}"
        planned = dataclasses.replace(planned, name=(*key, number))
        self._current = ticket.number
        self.progress = Progress(ticket.number, 0, planned.sampling.steps)
        result = generate_batch(self._generator, [planned], 0, self.roots)
        (line,) = result.lines
        if "error" in line:
            raise UserError(str(line["error"]))
        if self.tickets.is_cancelled(ticket.number):
            raise Cancelled
        self._numbers[key] += 1
        for name in ("image", "mask"):
            content = result.files[line[name]]
            storage.write(ticket.folder / f"{name}_out.png", content, durable=False)
            # Where a replay looks for the mask.
            if name == "mask":
                storage.write(ticket.folder / "replay" / line[name], content, durable=False)
        storage.write(ticket.folder / "result.json", json.dumps(line).encode())

    def _planned(
        self, request: Mapping[str, Any], mask: Path | None, seed: int
    ) -> PlannedImage:
        fields = {**request, "seed": seed, "mask": str(mask)}
        try:
            wanted = Request.model_validate(fields)
        except ValueError as error:
            raise UserError(one_line(error)) from error
        images, left_out = self._planner.plan_images([("drawing", wanted)])
        if left_out:
            raise UserError(left_out[0])
        return images[0]

    def _watched(self, timesteps: Iterable[Tensor]) -> Iterator[Tensor]:
        steps = list(timesteps)
        for done, step in enumerate(steps):
            if self.tickets.is_cancelled(self._current):
                raise Cancelled
            self.progress = Progress(self._current, done, len(steps))
            yield step
