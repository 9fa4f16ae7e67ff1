"""Drawings that were asked for, on disk: whatever is killed, none is lost.

    OUT/.studio/000012/ticket.json   who asked, and the request
    OUT/.studio/000012/mask.png      where to draw
    OUT/.studio/000012/result.json   the manifest's line, once drawn; error.json if it failed
    OUT/.studio/000012/verdict       "kept" or "rejected"

Users take turns, each with the oldest drawing that waits.
"""

import json
import shutil
import threading
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from PIL import Image

from acontrol.data.images import encode_png
from acontrol.errors import UserError
from acontrol.runs import storage

PLACE = ".studio"

State = Literal["waiting", "drawn", "failed", "kept", "rejected"]


@dataclass(frozen=True)
class Ticket:
    """A drawing that was asked for.

    Attributes:
        number: Of the ticket; no two are equal.
        folder: Its files.
        user: Who asked.
        request: As `acontrol.generation.request.Request` takes it, without mask and seed.
        seed: Of the drawing.
    """

    number: int
    folder: Path
    user: str
    request: Mapping[str, Any]
    seed: int

    @property
    def mask(self) -> Path:
        """The painted mask's file."""
        return self.folder / "mask.png"

    @property
    def state(self) -> State:
        """What became of it."""
        verdict = self.folder / "verdict"
        if verdict.exists():
            return "kept" if verdict.read_text() == "kept" else "rejected"
        if (self.folder / "error.json").exists():
            return "failed"
        return "drawn" if (self.folder / "result.json").exists() else "waiting"

    @property
    def result(self) -> dict[str, Any]:
        """The manifest's line of a drawn one."""
        return dict(json.loads((self.folder / "result.json").read_text()))

    @property
    def error(self) -> str:
        """Why it failed."""
        return str(json.loads((self.folder / "error.json").read_text()))

    def decide(self, verdict: Literal["kept", "rejected"] | None) -> None:
        """Remember what a person decided; None takes it back."""
        if verdict is None:
            (self.folder / "verdict").unlink(missing_ok=True)
        else:
            storage.write(self.folder / "verdict", verdict.encode())


class Tickets:
    """All tickets of an output folder."""

    def __init__(self, out: Path, limit: int):
        """Open the folder's tickets; at most ``limit`` wait."""
        self.place, self.limit = out / PLACE, limit
        self._lock = threading.Lock()
        self._turn: list[str] = []  # Users, the one whose turn comes last at the end.
        self._cancelled: set[int] = set()

    def all(self) -> list[Ticket]:
        """Every ticket, the oldest first; an unfinished one, as after a kill, is left out."""
        found = []
        for file in sorted(self.place.glob("[0-9]*/ticket.json")):
            record = json.loads(file.read_text())
            found.append(Ticket(int(file.parent.name), file.parent, **record))
        return found

    def get(self, number: int) -> Ticket:
        """One by its number.

        Raises:
            UserError: If there is none.
        """
        for ticket in self.all():
            if ticket.number == number:
                return ticket
        raise UserError(f"no drawing of number {number}")

    def add(
        self, user: str, request: Mapping[str, Any], mask: np.ndarray, seed: int, count: int
    ) -> list[Ticket]:
        """Ask for drawings with seeds from ``seed`` on.

        Raises:
            UserError: If too many would wait.
        """
        with self._lock:
            waiting = Counter(ticket.state for ticket in self.all())["waiting"]
            if waiting + count > self.limit:
                raise UserError(
                    f"{waiting} drawings wait already; come back when some are done"
                )
            numbers = [int(place.name) for place in self.place.glob("[0-9]*")]
            first = max(numbers, default=-1) + 1
            content = encode_png(Image.fromarray(mask).convert("L"))
            added = []
            for n in range(count):
                folder = self.place / f"{first + n:06d}"
                storage.write(folder / "mask.png", content, durable=False)
                record = {"user": user, "request": dict(request), "seed": seed + n}
                storage.write(folder / "ticket.json", json.dumps(record).encode())
                added.append(Ticket(first + n, folder, user, request, seed + n))
            return added

    def next(self) -> Ticket | None:
        """The waiting drawing whose turn it is."""
        with self._lock:
            waiting = [ticket for ticket in self.all() if ticket.state == "waiting"]
            if not waiting:
                return None
            users = dict.fromkeys(ticket.user for ticket in waiting)
            self._turn = [user for user in self._turn if user in users]
            fresh = [user for user in users if user not in self._turn]
            user = (fresh or self._turn)[0]
            self._turn = [*(one for one in self._turn if one != user), user]
            return next(ticket for ticket in waiting if ticket.user == user)

    def cancel(self, user: str) -> int:
        """Drop the waiting drawings of a user; returns how many."""
        with self._lock:
            dropped = [
                ticket
                for ticket in self.all()
                if ticket.user == user and ticket.state == "waiting"
            ]
            for ticket in dropped:
                self._cancelled.add(ticket.number)
                shutil.rmtree(ticket.folder, ignore_errors=True)
            return len(dropped)

    def is_cancelled(self, number: int) -> bool:
        """Whether a drawing in progress was dropped."""
        return number in self._cancelled
