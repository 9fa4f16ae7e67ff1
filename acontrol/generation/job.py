"""A job: batches drawn one after the other into a folder, safe to kill and continue.

    .NAME.partial/job.json             what the job is; a different job does not continue it
    .NAME.partial/batches/000012.jsonl a batch with all its images written

The folder is renamed to NAME once it is complete. No file depends on when, or in how many
runs, it was drawn.
"""

import hashlib
import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from acontrol.data.images import encode_png, read_image, read_mask
from acontrol.errors import UserError, one_line
from acontrol.generation.manifest import (
    Line,
    Roots,
    request_metadata,
    result_metadata,
)
from acontrol.generation.plan import PlannedImage
from acontrol.generation.sampler import GeneratedImage, Generator
from acontrol.pipelines.anomaly_control import AnomalyControlPipeline
from acontrol.runs import guard, storage
from acontrol.runs.lock import LOCK

MANIFEST_NAME = "manifest.jsonl"
JOB_NAME = "job.json"
NOT_KEPT_NAME = "not_kept.jsonl"  # Dropped by the gate, or their files were unreadable.


@dataclass(frozen=True)
class BatchResult:
    """A drawn batch as it is written: file contents by path, and one line per image."""

    files: Mapping[str, bytes]
    lines: Sequence[Line]


def batches_of(images: Sequence[PlannedImage], size: int) -> list[list[PlannedImage]]:
    """Divide a plan: neighbours with the same sampling settings are drawn together."""
    batches: list[list[PlannedImage]] = []
    for image in images:
        last = batches[-1] if batches else []
        if last and len(last) < size and last[0].sampling == image.sampling:
            last.append(image)
        else:
            batches.append([image])
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
        where = {"batch": number, "part": [first, end]}
        try:
            images = generator.generate_batch(batch[first:end])
        except (UserError, MemoryError, torch.OutOfMemoryError, OSError) as error:
            if torch.cuda.is_available():
                torch.cuda.empty_cache()
            if end - first > 1:
                middle = (first + end + 1) // 2
                ranges = [(first, middle), (middle, end), *ranges]
                continue
            reason = one_line(error) or type(error).__name__
            mask = _not_kept_path(batch[first])
            files[mask] = _mask_png(batch[first])
            lines.append(
                request_metadata(batch[first], roots)
                | {"image": None, "mask": mask, **where, "place": first, "error": reason}
            )
            continue
        for place, image in enumerate(images, start=first):
            kept = image.scores.passed or generator.gate.gate != "drop"
            refine = generator.output.refine_mask
            line = request_metadata(image.planned, roots) | result_metadata(image, kept, refine)
            if not kept:
                line["mask"] = _not_kept_path(image.planned)
            files |= _encode(image, line)
            lines.append(line | where | {"place": place})
    return BatchResult(files, lines)


def _encode(image: GeneratedImage, line: Line) -> dict[str, bytes]:
    """The files of an image that its line names."""
    files = {line["mask"]: _mask_png(image.planned)}
    if line["image"] is not None:
        files[line["image"]] = encode_png(Image.fromarray(image.image))
    if line["refined_mask"] is not None:
        files[line["refined_mask"]] = encode_png(Image.fromarray(image.refined).convert("L"))
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
                plan.update(image.mask.packed)
            plan.update(b"\n")
        settings = {"format": "acontrol-generation-1", "plan": plan.hexdigest(), **metadata}
        self.out = out
        self.batches = batches
        self.roots = roots
        self.folder = partial_folder(out)
        self.done = _has_text(out / JOB_NAME, json.dumps(settings, indent=1))
        if self.done:
            return
        check_empty(out)
        guard.claim(self.folder / JOB_NAME, settings, "--out")
        (self.folder / "batches").mkdir(exist_ok=True)

    def missing(self) -> list[int]:
        """Numbers of the batches still to be drawn."""
        return [
            number for number in range(len(self.batches)) if not self._record(number).exists()
        ]

    def keep(self, number: int, result: BatchResult) -> None:
        """Write a batch; its record last, so that half a batch never counts."""
        for path, content in result.files.items():
            storage.write(self.folder / path, content, durable=False)
        storage.write(self._record(number), _jsonl(result.lines), durable=False)

    def finish(self, report: Callable[[Path, list[Line]], None]) -> list[Line]:
        """Write manifest and report, and rename the folder to its final name.

        Returns:
            The lines of all images, kept or not.
        """
        records = [self._record(number) for number in range(len(self.batches))]
        lines = [line for record in records for line in _read_jsonl(record)]
        kept = [line for line in lines if line["image"] is not None]
        not_kept = [line for line in lines if line["image"] is None]
        storage.write(self.folder / MANIFEST_NAME, _jsonl(kept))
        if not_kept:
            storage.write(self.folder / NOT_KEPT_NAME, _jsonl(not_kept))
        if kept:
            report(self.folder, kept)
        for record in records:
            record.unlink()
        (self.folder / "batches").rmdir()
        (self.folder / LOCK).unlink(missing_ok=True)
        if self.out.exists():
            self.out.rmdir()
        os.rename(self.folder, self.out)
        return lines

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
        UserError: If the folder is not that of a finished job.
    """
    try:
        metadata = json.loads((folder / JOB_NAME).read_text())
        lines = [
            line
            for name in (MANIFEST_NAME, NOT_KEPT_NAME)
            if (folder / name).exists()
            for line in _read_jsonl(folder / name)
        ]
    except (OSError, ValueError) as error:
        raise UserError(f"{folder}: not a folder that launch.generate wrote") from error
    return metadata, sorted(lines, key=lambda line: (line["batch"], line["place"]))


def partial_folder(out: Path) -> Path:
    """Where a job is until it is complete."""
    return out.parent / f".{out.name}.partial"


def check_empty(out: Path) -> None:
    """Refuse to write into a folder that is not empty.

    Raises:
        UserError: If it is not.
    """
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"{out} exists and is not empty: name another --out")


def check_inputs(pipeline: AnomalyControlPipeline, images: Sequence[PlannedImage]) -> None:
    """Read every file and phrase of a plan once, before the first image is drawn.

    Raises:
        UserError: At the first bad one.
    """
    for normal in sorted({image.normal for image in images}):
        read_image(normal)
    for reference in {image.reference: None for image in images}:
        height, width = read_image(reference.image).shape[:2]
        read_mask(reference.mask, (width, height))
    for phrase in sorted({image.reference.phrase for image in images}):
        try:
            pipeline.semantics.read([phrase])
        except ValueError as error:
            raise UserError(str(error)) from error


def _not_kept_path(image: PlannedImage) -> str:
    category, defect, number = image.name
    return f"not_kept/{category}-{defect}-{number}_mask.png"


def _mask_png(image: PlannedImage) -> bytes:
    return encode_png(image.mask.image().convert("L"))


def _jsonl(lines: Sequence[Line]) -> bytes:
    return "".join(f"{json.dumps(line, ensure_ascii=False)}\n" for line in lines).encode()


def _read_jsonl(file: Path) -> list[Line]:
    return [json.loads(line) for line in file.read_text().splitlines()]


def _has_text(file: Path, text: str) -> bool:
    try:
        return file.read_text() == text
    except OSError:
        return False
