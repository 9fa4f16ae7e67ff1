"""The drawings on disk, and the data set of those that were accepted.

    KEPT/<category>/test/<defect>/0000.png ...   accepted images and masks, MVTec AD's layout
    KEPT/job.json, KEPT/manifest.jsonl           as acontrol generate writes them, for --replay
    KEPT/.studio/drawings/000012.json            each drawing: its request, state and result
    KEPT/.studio/drawings/000012.png, _mask.png  its picture and mask, whatever was decided

A drawing's own file is the truth and is replaced in one piece; the data set follows from these
files and is brought up to date at every start. A kill at any moment loses nothing accepted.
"""

import hashlib
import json
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, ValidationError

from acontrol.config import Settings
from acontrol.errors import UserError, one_line
from acontrol.generation.inputs import INPUTS
from acontrol.generation.job import FORMAT, JOB_NAME, MANIFEST_NAME, BatchResult
from acontrol.generation.manifest import Line, output_paths
from acontrol.generation.request import Request
from acontrol.runs import guard, storage

HIDDEN = ".studio"
State = Literal["waiting", "drawn", "failed", "cancelled", "kept", "rejected", "deleted"]
DECIDED = ("kept", "rejected", "deleted")


class Drawing(Settings):
    """One drawing.

    Attributes:
        id: Its number.
        owner: The browser that asked for it.
        state: Where it stands.
        request: What was asked for, of one image.
        number: Its number in the data set, once it was accepted.
        line: Its line in a manifest.
        inputs: Sha256 of the files that it was drawn from.
        error: Why it failed.
    """

    id: str
    owner: str
    state: State = "waiting"
    request: Request
    number: str | None = None
    line: dict[str, Any] | None = None
    inputs: dict[str, dict[str, str]] = Field(default_factory=dict)
    error: str | None = None


class Kept:
    """The drawings of a folder."""

    def __init__(self, out: Path, metadata: Mapping[str, Any]):
        """Open or begin a folder; finishes what a kill interrupted.

        Args:
            out: The data set's folder.
            metadata: All that drawings depend on besides their requests.

        Raises:
            UserError: If it holds something else, or drawings of another model.
        """
        self.out = out
        self.hidden = out / HIDDEN
        self._files = self.hidden / "drawings"
        self._lock = threading.RLock()
        refuse_other(out)
        settings = {"format": self._begun_as(), **metadata}
        guard.claim(self.hidden / JOB_NAME, settings, "--out")
        self._metadata = json.loads(json.dumps(settings))
        self.drawings: dict[str, Drawing] = {}
        for file in sorted(self._files.glob("*.json")):
            try:
                drawing = Drawing.model_validate_json(file.read_bytes())
            except (ValidationError, ValueError) as error:
                raise UserError(f"{file}: is damaged ({one_line(error, 120)})") from error
            self.drawings[drawing.id] = drawing
        self._last = max((int(name) for name in self.drawings), default=0)
        for drawing in self.drawings.values():
            self._settle(drawing)
        if self.drawings:
            self._write_manifest()

    def _begun_as(self) -> str:
        """The form of the folder; later drawings may join it, as each is decided by itself."""
        try:
            return str(json.loads((self.hidden / JOB_NAME).read_text())["format"])
        except (OSError, KeyError, TypeError, ValueError):
            return FORMAT

    def add(self, owner: str, request: Request) -> Drawing:
        """Record what was asked for; it survives a kill from here on."""
        with self._lock:
            self._last += 1
            drawing = Drawing(id=f"{self._last:06d}", owner=owner, request=request)
            self._write(drawing)
            return drawing

    def finish(self, name: str, result: BatchResult, inputs: dict[str, dict[str, str]]) -> None:
        """Record a drawing's result: its files first, then that it is drawn."""
        (line,) = result.lines
        with self._lock:
            drawing = self.drawings[name]
            if "error" in line:
                self.fail(name, line["error"])
                return
            storage.write(self.file(name), result.files[line["image"]])
            storage.write(self.mask_file(name), result.files[line["mask"]])
            changed = {"state": "drawn", "line": dict(line), "inputs": inputs}
            self._write(drawing.model_copy(update=changed))

    def fail(self, name: str, reason: str, state: State = "failed") -> None:
        """Record that there will be no result."""
        with self._lock:
            changed = {"state": state, "error": reason}
            self._write(self.get(name).model_copy(update=changed))

    def get(self, name: str) -> Drawing:
        """A drawing by its id.

        Raises:
            UserError: If there is none.
        """
        if name not in self.drawings:
            raise UserError(f"no drawing {name[:20]!r}")
        return self.drawings[name]

    def decide(self, name: str, state: State) -> Drawing:
        """Accept, reject or delete a drawing, or take that back ("drawn").

        Raises:
            UserError: If it has no result, or the images that it was drawn from have changed
                since an earlier accepted one was.
        """
        with self._lock:
            drawing = self.get(name)
            if drawing.line is None:
                raise UserError(f"drawing {name} has no result yet")
            changed: dict[str, Any] = {"state": state}
            if state == "kept":
                self._refuse_changed(drawing)
                if drawing.number is None:
                    changed["number"] = self._next(drawing.line)
            drawing = drawing.model_copy(update=changed)
            self._write(drawing)
            self._settle(drawing)
            self._write_manifest()
            return drawing

    def file(self, name: str) -> Path:
        """Where a drawing's picture is."""
        return self._files / f"{name}.png"

    def mask_file(self, name: str) -> Path:
        """Where its mask is."""
        return self._files / f"{name}_mask.png"

    def rows(self) -> list[Drawing]:
        """All drawings, the earliest first."""
        with self._lock:
            return list(self.drawings.values())

    @property
    def lines(self) -> list[Line]:
        """The manifest of what is accepted; each image is a batch of its own."""
        kept = [drawing for drawing in self.rows() if drawing.state == "kept"]
        kept.sort(key=lambda row: _paths(row)["image"])
        return [
            {**(row.line or {}), **_paths(row)}
            | {"number": row.number, "batch": batch, "part": [0, 1], "place": 0}
            | {"drawing": row.id}
            for batch, row in enumerate(kept)
        ]

    def _next(self, line: Line) -> str:
        label = (line["category"], line["defect"])
        taken = [
            int(row.number)
            for row in self.drawings.values()
            if row.number and row.line and (row.line["category"], row.line["defect"]) == label
        ]
        return f"{max(taken, default=-1) + 1:04d}"

    def _refuse_changed(self, drawing: Drawing) -> None:
        before = self._inputs()
        for root, digests in drawing.inputs.items():
            for file, digest in digests.items():
                if before[root].get(file, digest) != digest:
                    raise UserError(
                        f"{file} has changed since an accepted drawing was made from it: put "
                        "the earlier file back, or keep into another --out"
                    )

    def _inputs(self) -> dict[str, dict[str, str]]:
        inputs: dict[str, dict[str, str]] = {"normal": {}, "data": {}}
        for row in self.drawings.values():
            if row.state == "kept":
                for root, digests in row.inputs.items():
                    inputs[root] |= digests
        return inputs

    def _settle(self, drawing: Drawing) -> None:
        """Make the data set hold a drawing's files, or not."""
        if drawing.number is None or drawing.line is None:
            return
        paths = _paths(drawing)
        sources = {"image": self.file(drawing.id), "mask": self.mask_file(drawing.id)}
        for kind, source in sources.items():
            file = self.out / paths[kind]
            if drawing.state != "kept":
                file.unlink(missing_ok=True)
            elif not file.exists():
                storage.write(file, source.read_bytes())

    def _write_manifest(self) -> None:
        text = "".join(f"{json.dumps(line, ensure_ascii=False)}\n" for line in self.lines)
        plan = hashlib.sha256(text.encode()).hexdigest()
        settings = {**self._metadata, "plan": plan, INPUTS: self._inputs()}
        # Digests first: more of them than lines do no harm.
        storage.write(self.out / JOB_NAME, json.dumps(settings, indent=1).encode())
        storage.write(self.out / MANIFEST_NAME, text.encode())

    def _write(self, drawing: Drawing) -> None:
        text = drawing.model_dump_json(exclude_unset=True)
        storage.write(self._files / f"{drawing.id}.json", text.encode())
        self.drawings[drawing.id] = drawing


def _paths(drawing: Drawing) -> dict[str, str]:
    """A drawing's files in the data set."""
    assert drawing.line is not None and drawing.number is not None
    label = (drawing.line["category"], drawing.line["defect"], drawing.number)
    paths = output_paths(label)
    return {kind: paths[kind] for kind in ("image", "mask")}


def refuse_other(out: Path) -> None:
    """Refuse a folder that holds something else.

    Raises:
        UserError: If it does, or is a file.
    """
    if out.exists() and not out.is_dir():
        raise UserError(f"--out {out}: is a file; name a folder")
    if out.is_dir() and any(out.iterdir()) and not (out / HIDDEN).is_dir():
        raise UserError(f"--out {out}: is not empty and no studio's folder; name another --out")
