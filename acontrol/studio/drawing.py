"""One thread draws; users take turns."""

import threading
from collections import OrderedDict, deque
from collections.abc import Callable

from acontrol.errors import UserError


class Cancelled(Exception):
    """The user does not want this drawing any more."""


class FairQueue:
    """Drawings that wait, a row for each user; the rows take turns."""

    def __init__(self, most: int):
        """Hold at most so many."""
        self._most = most
        self._rows: OrderedDict[str, deque[str]] = OrderedDict()
        self._changed = threading.Condition()
        self._closed = False

    def put(self, owner: str, names: list[str]) -> None:
        """Add a user's drawings."""
        with self._changed:
            self._rows.setdefault(owner, deque()).extend(names)
            self._changed.notify()

    def refuse_more(self, count: int) -> None:
        """Refuse what would not fit.

        Raises:
            UserError: If it would not.
        """
        waiting = len(self)
        if waiting + count > self._most:
            raise UserError(
                f"{waiting} drawings wait already, of at most {self._most}: try again later"
            )

    def take(self) -> str | None:
        """Wait for the next drawing, of the user whose turn it is; None once it is closed."""
        with self._changed:
            while not self._rows and not self._closed:
                self._changed.wait()
            if self._closed:
                return None
            owner, row = next(iter(self._rows.items()))
            name = row.popleft()
            self._rows.move_to_end(owner)
            if not row:
                del self._rows[owner]
            return name

    def remove(self, name: str) -> bool:
        """Take a drawing out; whether it was there."""
        with self._changed:
            for owner, row in self._rows.items():
                if name in row:
                    row.remove(name)
                    if not row:
                        del self._rows[owner]
                    return True
            return False

    def place(self, name: str) -> int | None:
        """How many are drawn before it; None if it does not wait."""
        with self._changed:
            rows = [list(row) for row in self._rows.values()]
        order = [
            row[turn]
            for turn in range(max(map(len, rows), default=0))
            for row in rows
            if turn < len(row)
        ]
        return order.index(name) if name in order else None

    def close(self) -> None:
        """Let the drawing thread end."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    def __len__(self) -> int:
        with self._changed:
            return sum(map(len, self._rows.values()))


def start(queue: FairQueue, draw: Callable[[str], None]) -> threading.Thread:
    """Start the thread that draws what the queue hands out, one at a time."""

    def work() -> None:
        while (name := queue.take()) is not None:
            draw(name)

    thread = threading.Thread(target=work, name="studio-drawing", daemon=True)
    thread.start()
    return thread
