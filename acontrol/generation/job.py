"""A job: batches drawn one after the other into a folder that can be killed and continued.

    .NAME.partial/job.json            what the job is; another one does not continue it
    .NAME.partial/batches/00012.json  a batch whose images are all written

The folder is renamed to NAME when everything is there. No file depends on when, or in how many
runs, it was drawn.
"""

import hashlib
import io
import json
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from acontrol.data.images import read_image, read_mask
from acontrol.errors import UserError
from acontrol.generation.manifest import (
    Roots,
    mask_picture,
    paths_of,
    request_metadata,
    result_metadata,
)
from acontrol.generation.plan import PlannedImage
from acontrol.generation.sampler import Generator
from acontrol.pipelines.anomaly_control import AnomalyControlPipeline

MANIFEST_NAME = "manifest.jsonl"
JOB_NAME = "job.json"
NOT_KEPT_NAME = "not_kept.jsonl"  # Dropped by the gate, or their files could not be read.


@dataclass(frozen=True)
class BatchResult:
    """A drawn batch as it is written: files by their paths, and a line an image."""

    files: Mapping[str, bytes]
    lines: Sequence[Mapping[str, Any]]


def batches_of(planned: Sequence[PlannedImage], size: int) -> list[list[PlannedImage]]:
    """Divide a plan: neighbours with the same sampling settings are drawn together."""
    batches: list[list[PlannedImage]] = []
    for one in planned:
        last = batches[-1] if batches else []
        if last and len(last) < size and last[0].sampling == one.sampling:
            last.append(one)
        else:
            batches.append([one])
    return batches


def generate_batch(
    generator: Generator, batch: Sequence[PlannedImage], number: int, roots: Roots
) -> BatchResult:
    """Draw and encode a batch, whatever happens to it.

    A batch that does not fit into memory is halved, and its lines say so. So is one with a
    file that has become unreadable: it ends as a line with the error, the others are drawn.
    """
    files: dict[str, bytes] = {}
    lines: list[dict[str, Any]] = []
    parts = [(0, len(batch))]
    while parts:
        first, end = parts.pop(0)
        try:
            drawings = generator.batch(batch[first:end])
        except (UserError, MemoryError, torch.OutOfMemoryError, OSError) as error:
            if torch.cuda.is_available():
                torch.cuda.empty_cache()
            if end - first > 1:
                middle = (first + end + 1) // 2
                parts = [(first, middle), (middle, end), *parts]
                continue
            one = batch[first]
            files[_aside(one)] = _png(one.mask.image().convert("L"))
            reason = " ".join(str(error).split()) or type(error).__name__
            lines.append(
                request_metadata(one, roots)
                | {"image": None, "mask": _aside(one), "batch": number}
                | {"part": [first, end], "place": first, "error": reason}
            )
            continue
        for place, drawing in enumerate(drawings, start=first):
            one = drawing.planned
            kept = drawing.scores.passed or generator.gate.gate != "drop"
            refine = generator.finish.refine_mask
            line = request_metadata(one, roots) | result_metadata(drawing, kept, refine)
            if kept:
                paths = {name: path.as_posix() for name, path in paths_of(one.name).items()}
                files[paths["image"]] = _png(Image.fromarray(drawing.image))
                files[paths["mask"]] = _png(one.mask.image().convert("L"))
                if refine:
                    files[paths["refined_mask"]] = _png(mask_picture(drawing.refined))
            else:
                line["mask"] = _aside(one)
                files[_aside(one)] = _png(one.mask.image().convert("L"))
            lines.append(line | {"batch": number, "part": [first, end], "place": place})
    return BatchResult(files, lines)


class Job:
    """What is drawn so far."""

    def __init__(
        self,
        out: Path,
        metadata: Mapping[str, Any],
        batches: Sequence[Sequence[PlannedImage]],
        roots: Roots,
    ):
        """Begin a job, or continue it.

        Args:
            out: Folder to create; must not exist or be empty.
            metadata: All that the images depend on, besides the plan.
            batches: The plan.
            roots: Folders that the manifest's paths start at.

        Raises:
            UserError: If ``out`` holds something, or another job was begun there.
        """
        plan = hashlib.sha256()
        for batch in batches:
            for one in batch:
                plan.update(json.dumps(request_metadata(one, roots)).encode())
                plan.update(one.mask.packed)
            plan.update(b"\n")
        self.text = json.dumps(
            {"format": "acontrol-generation-1", "plan": plan.hexdigest(), **metadata}, indent=1
        )
        self.out = out
        self.batches = batches
        self.folder = out.parent / f".{out.name}.partial"
        self.done = _is(out / JOB_NAME, self.text)
        if self.done:
            return
        check_empty(out)
        if (self.folder / JOB_NAME).exists() and not _is(self.folder / JOB_NAME, self.text):
            raise UserError(
                f"{self.folder} holds an unfinished job with other settings, data or model: "
                "give the same command to continue it, or remove the folder"
            )
        (self.folder / "batches").mkdir(parents=True, exist_ok=True)
        _write(self.folder / JOB_NAME, self.text.encode())

    def missing(self) -> list[int]:
        """The batches that are still to be drawn."""
        return [number for number in range(len(self.batches)) if self._lines(number) is None]

    def keep(self, number: int, result: BatchResult) -> None:
        """Write a batch; its record last, so that half a batch never counts."""
        for path, content in result.files.items():
            _write(self.folder / path, content)
        record = "".join(f"{json.dumps(one, ensure_ascii=False)}\n" for one in result.lines)
        _write(self._record(number), record.encode())

    def finish(
        self, report: Callable[[Path, list[dict[str, Any]]], None]
    ) -> list[dict[str, Any]]:
        """Write manifest and report, and give the folder its name.

        Returns:
            The lines of all images, kept or not.
        """
        lines = [line for number in range(len(self.batches)) for line in self._read(number)]
        kept = [line for line in lines if line["image"] is not None]
        for name, some in (
            (MANIFEST_NAME, kept),
            (NOT_KEPT_NAME, [line for line in lines if line["image"] is None]),
        ):
            if some or name == MANIFEST_NAME:
                text = "".join(f"{json.dumps(one, ensure_ascii=False)}\n" for one in some)
                _write(self.folder / name, text.encode())
        if kept:
            report(self.folder, kept)
        for number in range(len(self.batches)):
            self._record(number).unlink()
        (self.folder / "batches").rmdir()
        if self.out.exists():
            self.out.rmdir()
        os.rename(self.folder, self.out)
        return lines

    def _record(self, number: int) -> Path:
        return self.folder / "batches" / f"{number:06d}.jsonl"

    def _lines(self, number: int) -> list[dict[str, Any]] | None:
        try:
            return self._read(number)
        except FileNotFoundError:
            return None

    def _read(self, number: int) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self._record(number).read_text().splitlines()]


def run_local(
    job: Job,
    generator: Generator,
    roots: Roots,
    progress: Callable[[Iterable[int]], Iterable[int]],
) -> None:
    """Draw what is missing in this process."""
    for number in progress(job.missing()):
        job.keep(number, generate_batch(generator, job.batches[number], number, roots))


def read_job(folder: Path) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """What a finished job was, and its lines, kept or not, in the plan's order.

    Raises:
        UserError: If the folder is no finished job's.
    """
    try:
        metadata = json.loads((folder / JOB_NAME).read_text())
        lines: list[dict[str, Any]] = []
        for name in (MANIFEST_NAME, NOT_KEPT_NAME):
            if (folder / name).exists():
                lines += map(json.loads, (folder / name).read_text().splitlines())
    except (OSError, ValueError) as error:
        raise UserError(f"{folder}: not a folder that launch.generate wrote") from error
    return metadata, sorted(lines, key=lambda line: (line["batch"], line["place"]))


def check_empty(out: Path) -> None:
    """Refuse to write into a folder that holds something.

    Raises:
        UserError: If it does.
    """
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"{out} exists and is not empty: name another --out")


def check_inputs(pipeline: AnomalyControlPipeline, planned: Sequence[PlannedImage]) -> None:
    """Read every file of a plan and every phrase once, before the first image is drawn.

    Raises:
        UserError: At the first that is bad.
    """
    for normal in sorted({one.normal for one in planned}):
        read_image(normal)
    for source in {one.reference: None for one in planned}:
        height, width = read_image(source.image).shape[:2]
        read_mask(source.mask, (width, height))
    for phrase in sorted({one.reference.phrase for one in planned}):
        try:
            pipeline.semantics.read([phrase])
        except ValueError as error:
            raise UserError(str(error)) from error


def _aside(one: PlannedImage) -> str:
    category, defect, number = one.name
    return f"not_kept/{category}-{defect}-{number}_mask.png"


def _png(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format="PNG")
    return buffer.getvalue()


def _is(file: Path, text: str) -> bool:
    try:
        return file.read_text() == text
    except OSError:
        return False


def _write(file: Path, content: bytes) -> None:
    """Write a file whole or not at all."""
    file.parent.mkdir(parents=True, exist_ok=True)
    beside = file.with_name(f".{file.name}.part")
    beside.write_bytes(content)
    os.replace(beside, file)
