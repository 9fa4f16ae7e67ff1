"""A durable, ordered queue in a folder, and the thread that empties it.

    FOLDER/<name>.jsonl   what one process put in, a JSON object a line; never rewritten
    FOLDER/<name>.sent    bytes of it that the other side has acknowledged
    FOLDER/<name>.refused lines that it will never take

Every process writes a file of its own, so storage that all nodes see will do, without locks.
What is in a file was put in, sent or not; so the folder is also a record. An event may be sent
twice, after a kill between its sending and the note of it, so deliveries must bear repetition.
"""

import itertools
import json
import logging
import os
import secrets
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

log = logging.getLogger(__name__)
Event = dict[str, Any]
Deliver = Callable[[Sequence[Event]], None]

BATCH = 50  # Events read and delivered at once; all others lie on the disk alone.
EVERY_S = 2.0  # How long events wait for others to go with.
POLL_S = 0.1
PAUSES_S = (1.0, 30.0)  # Before another attempt: at first, and at most.


class RefusedError(Exception):
    """The other side answers, and will never take this."""


class EventQueue:
    """One file of the queue: appended to by its own process, read by whoever sends it."""

    def __init__(self, file: Path):
        """Take the file, which appears with the first event."""
        self.file = file
        self._sent_file = file.with_suffix(".sent")
        self._descriptor: int | None = None
        self._broken = False

    @classmethod
    def new(cls, folder: Path) -> "EventQueue":
        """A file of this process's own; names sort by time."""
        stamp = f"{time.strftime('%Y%m%d-%H%M%S', time.gmtime())}-{secrets.token_hex(3)}"
        return cls(folder / f"{stamp}.jsonl")

    @classmethod
    def all_in(cls, folder: Path) -> list["EventQueue"]:
        """Every process's, in the order of their beginnings."""
        return [cls(file) for file in sorted(folder.glob("*.jsonl"))]

    def append(self, event: Event) -> None:
        """Put an event in; it outlives this process, and after ``sync`` the machine.

        A full disk loses the event with a warning: what is recorded is never worth a stop.
        """
        try:
            if self._descriptor is None:
                self.file.parent.mkdir(parents=True, exist_ok=True)
                how = os.O_WRONLY | os.O_APPEND | os.O_CREAT
                self._descriptor = os.open(self.file, how, 0o644)
            # Half a line may stand there from a full disk: an end makes it one that is skipped.
            line = b"\n" * self._broken + json.dumps(event).encode() + b"\n"
            self._broken = os.write(self._descriptor, line) != len(line)
        except OSError as error:
            self._broken = True
            log.warning("%s takes no event, it is lost: %s", self.file, error)

    def sync(self) -> None:
        """Have the disk itself hold what was put in."""
        if self._descriptor is not None:
            os.fsync(self._descriptor)

    def close(self) -> None:
        """Have the disk hold it all, and take no more for now."""
        self.sync()
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None

    @property
    def sent(self) -> int:
        """Bytes that are acknowledged."""
        try:
            return int(self._sent_file.read_text())
        except (OSError, ValueError):
            return 0

    def acknowledge(self, offset: int) -> None:
        """Note that all before ``offset`` was taken; never goes back."""
        if offset > self.sent:
            partial = self._sent_file.with_suffix(f".{secrets.token_hex(3)}")
            partial.write_text(str(offset))
            os.replace(partial, self._sent_file)

    def events(self, start: int = 0) -> Iterator[tuple[Event, int]]:
        """Events from byte ``start`` on, each with the byte after it.

        Half a line at the end, as a kill leaves it, is none; damaged ones are skipped.
        """
        try:
            stream = self.file.open("rb")
        except FileNotFoundError:
            return
        with stream:
            stream.seek(start)
            for line in stream:
                start += len(line)
                if not line.endswith(b"\n"):
                    return
                try:
                    event = json.loads(line)
                except ValueError:
                    if line.strip():
                        log.warning("%s: damaged before byte %s, skipped", self.file, start)
                    continue
                yield event, start

    def waiting(self) -> int:
        """Events that are not acknowledged."""
        return sum(1 for _ in self.events(self.sent))

    def refuse(self, event: Event, reason: str) -> None:
        """Set an event aside."""
        with self.file.with_suffix(".refused").open("a") as stream:
            stream.write(json.dumps({"reason": reason, **event}) + "\n")


class Uploader:
    """A thread that sends the events of some queues in order, for as long as it takes.

    It ends with the process: what is not sent by then stays in its queue.
    """

    def __init__(self, queues: Sequence[EventQueue], deliver: Deliver):
        """Start it.

        Args:
            queues: What to send, first to last.
            deliver: Sends some events. An exception means that the other side is away, but for
                RefusedError.
        """
        self.queues, self.deliver = list(queues), deliver
        self._wake = threading.Event()
        self._pause_s = 0.0
        self._stopped = False
        self._thread = threading.Thread(target=self._run, name="sender", daemon=True)
        self._thread.start()

    def drain(self, limit_s: float) -> bool:
        """Wait until all that is in now is sent; whether it was within the limit."""
        deadline = time.monotonic() + limit_s
        while any(queue.waiting() for queue in self.queues):
            if time.monotonic() > deadline:
                return False
            self._wake.set()
            time.sleep(POLL_S)
        return True

    def stop(self, limit_s: float) -> bool:
        """Drain, and end the thread; whether all was sent."""
        drained = self.drain(limit_s)
        self._stopped = True
        self._wake.set()
        return drained

    def _run(self) -> None:
        while not self._stopped:
            self._wake.wait(max(EVERY_S, self._pause_s))
            self._wake.clear()
            try:
                for queue in list(self.queues):
                    self._send(queue)
                if self._pause_s:
                    log.warning("what waited in %s is sent", self.queues[0].file.parent)
                self._pause_s = 0.0
            except Exception as error:
                reason = " ".join(str(error).split())[:200]
                if not self._pause_s:
                    log.warning("events wait in %s: %s", self.queues[0].file.parent, reason)
                shortest, longest = PAUSES_S
                self._pause_s = min(longest, max(shortest, 2 * self._pause_s))

    def _send(self, queue: EventQueue) -> None:
        while True:
            found = list(itertools.islice(queue.events(queue.sent), BATCH))
            if not found:
                return
            events = [event for event, _ in found]
            try:
                self.deliver(events)
            except RefusedError:
                for event in events:  # Not all of them need be to blame.
                    try:
                        self.deliver([event])
                    except RefusedError as error:
                        log.warning("%s: refused for good: %s", queue.file, error)
                        queue.refuse(event, str(error))
            queue.acknowledge(found[-1][1])
