"""What a person kept: a data set that ``acontrol generate --replay`` draws again, to the byte.

    OUT/CATEGORY/test/DEFECT/000.png, OUT/CATEGORY/ground_truth/DEFECT/000_mask.png
    OUT/manifest.jsonl and OUT/job.json, as acontrol generate writes them

Files come first and the manifest last, so that a kill leaves a whole set.
"""

import hashlib
import json
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from acontrol.errors import UserError
from acontrol.generation.job import FORMAT, IMAGES, INPUTS, JOB_NAME, MANIFEST_NAME
from acontrol.generation.manifest import Line
from acontrol.runs import storage
from acontrol.runs.guard import changes
from acontrol.studio.tickets import Ticket


class Kept:
    """The data set of an output folder."""

    def __init__(self, out: Path, metadata: Mapping[str, Any]):
        """Open it.

        Args:
            out: The folder.
            metadata: What drawings depend on besides the plan: of model, gate and machine.

        Raises:
            UserError: If it holds a set of another model, or one that acontrol generate drew.
        """
        self.out, self.metadata = out, dict(metadata)
        self._lock = threading.Lock()
        job = out / JOB_NAME
        if job.exists():
            before = dict(json.loads(job.read_text()))
            own = {name: before.get(name) for name in self.metadata}
            if not before.get("studio"):
                raise UserError(f"--out {out}: holds a generated set; name another folder")
            if lines := changes(own, self.metadata):
                raise UserError(
                    f"--out {out}: was kept with another model or setting ({lines[0]}); name "
                    "another folder"
                )
            if before.get(IMAGES) != len(self.lines()):  # Stopped between the two files.
                self._write(self.lines(), self.inputs())

    def drop_half_kept(self, tickets: Sequence[Ticket]) -> None:
        """Remove files of drawings whose keeping was stopped before the manifest had them."""
        kept = {line["image"] for line in self.lines()}
        for ticket in tickets:
            if ticket.state == "drawn" and ticket.result["image"] not in kept:
                for name in ("image", "mask"):
                    (self.out / ticket.result[name]).unlink(missing_ok=True)

    def lines(self) -> list[Line]:
        """The manifest."""
        file = self.out / MANIFEST_NAME
        if not file.exists():
            return []
        return [json.loads(line) for line in file.read_text().splitlines()]

    def inputs(self) -> dict[str, dict[str, str]]:
        """Digests of the files that were read."""
        file = self.out / JOB_NAME
        found: dict[str, dict[str, str]] = {"normal": {}, "data": {}}
        if file.exists():
            found = dict(json.loads(file.read_text())[INPUTS])
        return found

    def add(self, ticket: Ticket, inputs: Mapping[str, Mapping[str, str]]) -> None:
        """Keep a drawing; one that is kept already stays as it is."""
        line = ticket.result
        with self._lock:
            lines = self.lines()
            if any(one["image"] == line["image"] for one in lines):
                ticket.decide("kept")
                return
            for name in ("image", "mask"):
                content = (ticket.folder / f"{name}_out.png").read_bytes()
                storage.write(self.out / line[name], content)
            self._write([*lines, line], _merged(self.inputs(), inputs))
            ticket.decide("kept")

    def remove(self, ticket: Ticket) -> None:
        """Take a drawing out again; `add` is the way back."""
        line = ticket.result
        with self._lock:
            lines = [one for one in self.lines() if one["image"] != line["image"]]
            self._write(lines, self.inputs())
            for name in ("image", "mask"):
                (self.out / line[name]).unlink(missing_ok=True)
            ticket.decide(None)

    def _write(self, lines: Sequence[Line], inputs: Mapping[str, Any]) -> None:
        # Each is a batch of its own, as it was drawn.
        numbered = [
            {**line, "batch": number, "part": [0, 1], "place": 0}
            for number, line in enumerate(lines)
        ]
        text = "".join(f"{json.dumps(line, ensure_ascii=False)}\n" for line in numbered)
        job = {
            "format": FORMAT,
            "studio": True,
            "plan": hashlib.sha256(text.encode()).hexdigest(),
            IMAGES: len(lines),
            **self.metadata,
            INPUTS: inputs,
        }
        storage.write(self.out / JOB_NAME, json.dumps(job, indent=1).encode())
        storage.write(self.out / MANIFEST_NAME, text.encode())


def _merged(
    before: Mapping[str, Mapping[str, str]], now: Mapping[str, Mapping[str, str]]
) -> dict[str, dict[str, str]]:
    return {root: {**before.get(root, {}), **now.get(root, {})} for root in ("normal", "data")}
