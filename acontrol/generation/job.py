"""A job: batches drawn one after the other into a folder, safe to kill and continue.

    .NAME.partial/job.json             what the job is; a different job does not continue it
    .NAME.partial/batches/000012.jsonl a batch with all its images written

The folder is put in place as NAME once it is complete (`acontrol.data.publish`). No file
depends on when, or in how many runs, it was drawn.
"""

import hashlib
import json
import math
import shutil
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from acontrol.data.images import encode_png
from acontrol.data.publish import check_new, put_in_place, work_folder
from acontrol.errors import UserError, is_out_of_memory, one_line, says_out_of_memory
from acontrol.generation.inputs import INPUTS, refuse_changed
from acontrol.generation.manifest import (
    DIGESTED,
    Line,
    Roots,
    drawn_file,
    rejected_paths,
    request_metadata,
    result_metadata,
)
from acontrol.generation.plan import PlannedImage
from acontrol.generation.sampler import GeneratedImage, Generator
from acontrol.messages import counted, print_note
from acontrol.runs import guard, storage

MANIFEST_NAME = "manifest.jsonl"
JOB_NAME = "job.json"
IMAGES = "images"  # In it: how many the plan has.
PLACED = ".lines.jsonl"  # Every line, while the finished folder is put in its place.
# 1: other edges, colours, squares. 2: thin defects fainter.
FORMAT, EARLIER = "acontrol-generation-3", ("acontrol-generation-1", "acontrol-generation-2")
BATCH_PIXELS = 48 * 2**20
# By the gate, or as their files were unreadable; then by its name before 0.2.
REJECTED_NAME, NOT_KEPT_NAME = "rejected.jsonl", "not_kept.jsonl"


@dataclass(frozen=True)
class BatchResult:
    """A drawn batch as it is written: file contents by path, and one line per image."""

    files: Mapping[str, bytes]
    lines: Sequence[Line]


def batches_of(images: Sequence[PlannedImage], size: int) -> list[list[PlannedImage]]:
    """Divide a plan: neighbours with the same sampling settings are drawn together.

    Large photographs in smaller batches, as each of a batch is held in memory whole.
    """
    batches: list[list[PlannedImage]] = []
    pixels = 0
    for image in images:
        last = batches[-1] if batches else []
        own = math.prod(image.mask.size)
        fits = len(last) < size and pixels + own <= BATCH_PIXELS
        if last and fits and last[0].sampling == image.sampling:
            last.append(image)
        else:
            batches.append([image])
            pixels = 0
        pixels += own
    return batches


def generate_batch(
    generator: Generator, batch: Sequence[PlannedImage], number: int, roots: Roots
) -> BatchResult:
    """Draw and encode a batch, without failing for one bad image.

    A batch that does not fit into memory is halved, and its lines record the halves. So is
    one with a file that has become unreadable: that image ends as a line with the error.
    """
    files: dict[str, bytes] = {}
    lines: list[Line] = []
    ranges = [(0, len(batch))]
    while ranges:
        first, end = ranges.pop(0)
        where = {"method": generator.method.name, "batch": number, "part": [first, end]}
        try:
            images = generator.generate_batch(batch[first:end])
        except (UserError, MemoryError, RuntimeError, OSError) as error:
            if isinstance(error, RuntimeError) and not is_out_of_memory(error):
                raise
            if torch.cuda.is_available():
                torch.cuda.empty_cache()
            if end - first > 1:
                middle = (first + end + 1) // 2
                ranges = [(first, middle), (middle, end), *ranges]
                continue
            reason = one_line(error) or type(error).__name__
            if isinstance(error, MemoryError):  # Python's own says nothing, or how much.
                reason = f"out of memory: {reason}"
            mask = rejected_paths(batch[first].name)["mask"]
            files[mask] = _mask_png(batch[first])
            lines.append(
                request_metadata(batch[first], roots)
                | {"image": None, "mask": mask, **where, "place": first, "error": reason}
            )
            continue
        for place, image in enumerate(images, start=first):
            kept = image.scores.passed or generator.gate.gate != "reject"
            line = request_metadata(image.planned, roots)
            line |= result_metadata(image, kept, generator.output)
            files |= _encode(image, line)
            digests = {
                name: hashlib.sha256(files[line[name]]).hexdigest()
                for name in DIGESTED
                if line.get(name) is not None
            }
            lines.append(line | where | {"place": place, "sha256": digests})
    return BatchResult(files, lines)


def _encode(image: GeneratedImage, line: Line) -> dict[str, bytes]:
    """The files of an image that its line names."""
    changed = encode_png(Image.fromarray(image.refined).convert("L"))
    files = {line["image"] or line["rejected"]: encode_png(Image.fromarray(image.image))}
    files[line.get("requested_mask", line["mask"])] = _mask_png(image.planned)
    if "requested_mask" in line:
        files[line["mask"]] = changed
    if line["refined_mask"] is not None:
        files[line["refined_mask"]] = changed
    return files


class Job:
    """An output folder and the batches drawn into it so far."""

    def __init__(
        self,
        out: Path,
        metadata: Mapping[str, Any],
        batches: Sequence[Sequence[PlannedImage]],
        roots: Roots,
    ):
        """Begin a job, or continue it.

        Args:
            out: Folder to create; must be missing or empty.
            metadata: All that the images depend on, besides the plan.
            batches: The plan.
            roots: Folders that the manifest's paths start at.

        Raises:
            UserError: If ``out`` is not empty, or holds another job.
        """
        plan = hashlib.sha256()
        for batch in batches:
            for image in batch:
                plan.update(json.dumps(request_metadata(image, roots)).encode())
                plan.update(image.mask.packed.bits())
            plan.update(b"\n")
        settings = {
            "format": FORMAT,
            "plan": plan.hexdigest(),
            IMAGES: sum(map(len, batches)),
            **metadata,
        }
        self.out = out
        self.batches = batches
        self.roots = roots
        self.folder = work_folder(out)
        begun = _settings_in(self.folder)
        if (finished := _settings_in(out)) is not None:
            begun = finished
        if begun is not None:
            refuse_changed(begun.setdefault(INPUTS, settings.get(INPUTS)), settings, out)
            begun.setdefault(IMAGES, settings[IMAGES])
        self.done = finished is not None
        if finished is not None:
            if finished.get("format") != FORMAT:
                print_note(f"{out} was drawn by an earlier version: now pixels would differ")
            guard.refuse(out, guard.changes(finished | {"format": FORMAT}, settings), "--out")
            return
        if (self.folder / PLACED).exists():  # Stopped while it was put in place.
            return
        check_new(out)
        guard.claim(self.folder / JOB_NAME, settings, "--out")
        (self.folder / "batches").mkdir(exist_ok=True)

    def missing(self) -> list[int]:
        """Numbers of the batches still to be drawn."""
        if (self.folder / PLACED).exists():
            return []
        return [
            number for number in range(len(self.batches)) if not self._record(number).exists()
        ]

    def keep(self, number: int, result: BatchResult) -> None:
        """Write a batch; its record last, so that half a batch never counts."""
        for path, content in result.files.items():
            storage.write(self.folder / path, content, durable=False)
        storage.write(self._record(number), _jsonl(result.lines), durable=False)

    def finish(self, report: Callable[[Path, list[Line]], None]) -> list[Line]:
        """Write manifest and report, and put the folder in its place.

        Returns:
            The lines of all images, kept or not.

        Raises:
            UserError: If no image fitted in memory; the job is then as if never begun.
        """
        placed = self.folder / PLACED
        if placed.exists():
            lines = _read_jsonl(placed)
            self._place()
            return lines
        records = [self._record(number) for number in range(len(self.batches))]
        lines = [line for record in records for line in _read_jsonl(record)]
        if lines and all(says_out_of_memory(line.get("error", "")) for line in lines):
            shutil.rmtree(self.folder)
            raise UserError(
                f"no image fits in memory ({lines[0]['error']}): give --precision bfloat16, or "
                "free the GPU, and repeat the command"
            )
        kept = [line for line in lines if line["image"] is not None]
        not_kept = [line for line in lines if line["image"] is None]
        storage.write(self.folder / MANIFEST_NAME, _jsonl(kept))
        if not_kept:
            storage.write(self.folder / REJECTED_NAME, _jsonl(not_kept))
        if any(drawn_file(line) for line in lines):
            report(self.folder, lines)
        # From here on no batch is drawn again, whatever happens to the move.
        storage.write(placed, _jsonl(lines))
        self._place()
        return lines

    def _place(self) -> None:
        shutil.rmtree(self.folder / "batches", ignore_errors=True)
        put_in_place(self.folder, self.out, last=JOB_NAME)

    def _record(self, number: int) -> Path:
        return self.folder / "batches" / f"{number:06d}.jsonl"


def draw_locally(job: Job, generator: Generator) -> Iterator[int]:
    """Draw the missing batches in this process; yields each one's number once written."""
    for number in job.missing():
        job.keep(number, generate_batch(generator, job.batches[number], number, job.roots))
        yield number


def read_job(folder: Path) -> tuple[dict[str, Any], list[Line]]:
    """Metadata of a finished job, and its lines, kept or not, in the plan's order.

    Raises:
        UserError: If the folder is not that of a finished job, of a newer version, or its
            manifest is damaged.
    """
    try:
        metadata = dict(json.loads((folder / JOB_NAME).read_text()))
    except (OSError, TypeError, ValueError) as error:
        raise UserError(f"{folder}: not a folder that acontrol generate wrote") from error
    if (form := metadata.get("format", FORMAT)) not in (FORMAT, *EARLIER):
        raise UserError(f"{folder}: its form is {form}, not one of this version, {FORMAT}")
    files = [folder / name for name in (MANIFEST_NAME, REJECTED_NAME, NOT_KEPT_NAME)]
    lines = [line for file in files if file.exists() for line in _checked_lines(file)]
    lines.sort(key=lambda line: (line["batch"], line["place"]))
    _require_all(folder, lines, metadata.get(IMAGES))
    return metadata, lines


def _checked_lines(file: Path) -> Iterator[Line]:
    """The lines of a manifest.

    Raises:
        UserError: If one is damaged, as the last of a file that was cut.
    """
    for number, text in enumerate(file.read_bytes().splitlines(), start=1):
        try:
            line = json.loads(text)
            numbers = [line["batch"], line["place"], *line["part"]]
            if not all(isinstance(number, int) for number in numbers) or len(numbers) != 4:
                raise ValueError("batch, place and part are no numbers")
        except (ValueError, KeyError, TypeError) as error:
            raise UserError(
                f"{file}: line {number} is damaged ({one_line(error)}); restore the file"
            ) from error
        yield line


def _require_all(folder: Path, lines: Sequence[Line], planned: int | None) -> None:
    """Refuse a manifest that lacks lines.

    Args:
        folder: Of the job.
        lines: Of all its batches, sorted.
        planned: How many there were; None in a job from before, where lost batches at the end
            leave no gap and are not missed.

    Raises:
        UserError: Naming the first batch that is not whole.
    """
    counts = Counter(line["batch"] for line in lines)
    sizes = {line["batch"]: line["part"][1] for line in lines}  # Sorted: of each the last.
    for place, (number, size) in enumerate(sizes.items()):
        if number != place or counts[number] < size:
            raise UserError(
                f"{folder}: {MANIFEST_NAME} or {REJECTED_NAME} lacks lines of batch {place}; "
                "restore the file"
            )
    if planned is not None and len(lines) != planned:
        raise UserError(
            f"{folder}: {MANIFEST_NAME} and {REJECTED_NAME} hold {len(lines)} of "
            f"{counted(planned, 'image')}; restore the files"
        )


def _mask_png(image: PlannedImage) -> bytes:
    return encode_png(image.mask.image().convert("L"))


def _jsonl(lines: Sequence[Line]) -> bytes:
    return "".join(f"{json.dumps(line, ensure_ascii=False)}\n" for line in lines).encode()


def _read_jsonl(file: Path) -> list[Line]:
    return [json.loads(line) for line in file.read_text().splitlines()]


def _settings_in(folder: Path) -> dict[str, Any] | None:
    """What a job's folder was begun with; None if there is none, or it is damaged."""
    try:
        return dict(json.loads((folder / JOB_NAME).read_text()))
    except (OSError, TypeError, ValueError):
        return None
