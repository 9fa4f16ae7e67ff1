"""A durable, ordered queue in a folder, and the thread that sends its events.

    FOLDER/<name>.jsonl   events of one process, one JSON object per line; never rewritten
    FOLDER/<name>.sent    bytes of it that the receiver has acknowledged
    FOLDER/<name>.refused lines that the receiver refused

Each process writes its own file, so shared storage suffices, without locks. Sent events stay in
the file, so the folder is also a record. A kill between sending and acknowledging repeats an
event, so delivery must be idempotent.
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

from acontrol.errors import one_line

log = logging.getLogger(__name__)
Event = dict[str, Any]
Deliver = Callable[[Sequence[Event]], None]

BATCH = 50  # Events read and delivered at once; all others stay on disk.
EVERY_S = 2.0  # How long events wait to be sent together.
POLL_S = 0.1
PAUSES_S = (1.0, 30.0)  # Before a retry: the first pause, and the longest.


class RefusedError(Exception):
    """The receiver refuses an event for good."""


class EventQueue:
    """One file of the queue: appended to by its own process, read by the sender."""

    def __init__(self, file: Path):
        """Open a queue; the file is created with the first event."""
        self.file = file
        self._sent_file = file.with_suffix(".sent")
        self._descriptor: int | None = None
        self._broken = False

    @classmethod
    def new(cls, folder: Path) -> "EventQueue":
        """A new file for this process; names sort by time."""
        stamp = f"{time.strftime('%Y%m%d-%H%M%S', time.gmtime())}-{secrets.token_hex(3)}"
        return cls(folder / f"{stamp}.jsonl")

    @classmethod
    def all_in(cls, folder: Path) -> list["EventQueue"]:
        """The files of all processes, oldest first."""
        return [cls(file) for file in sorted(folder.glob("[!.]*.jsonl"))]

    def append(self, event: Event) -> None:
        """Add an event, which survives this process, and after ``sync`` the machine.

        On a full disk the event is lost with a warning: logging never stops a run.
        """
        try:
            if self._descriptor is None:
                self.file.parent.mkdir(parents=True, exist_ok=True)
                flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT
                self._descriptor = os.open(self.file, flags, 0o644)
            # A full disk may have left half a line: ended here, it is skipped.
            line = b"\n" * self._broken + json.dumps(event).encode() + b"\n"
            self._broken = os.write(self._descriptor, line) != len(line)
        except OSError as error:
            self._broken = True
            log.warning("%s: an event is lost: %s", self.file, error)

    def sync(self) -> None:
        """Flush all events to the disk."""
        if self._descriptor is not None:
            os.fsync(self._descriptor)

    def close(self) -> None:
        """Flush all events to the disk and close the file; ``append`` reopens it."""
        self.sync()
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None

    @property
    def sent(self) -> int:
        """Acknowledged bytes."""
        try:
            return int(self._sent_file.read_text())
        except (OSError, ValueError):
            return 0

    def acknowledge(self, offset: int) -> None:
        """Record that everything before ``offset`` was sent; never moves back."""
        if offset > self.sent:
            # A name of its own: several processes may send the same queue.
            partial = self._sent_file.with_suffix(f".{secrets.token_hex(3)}")
            partial.write_text(str(offset))
            os.replace(partial, self._sent_file)

    def events(self, start: int = 0) -> Iterator[tuple[Event, int]]:
        """Events from byte ``start`` on, each with the offset after it.

        Half a line at the end, as a kill leaves it, is ignored; damaged lines are skipped.
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
        """Number of unacknowledged events."""
        return sum(1 for _ in self.events(self.sent))

    def refuse(self, event: Event, reason: str) -> None:
        """Set an event aside."""
        with self.file.with_suffix(".refused").open("a") as stream:
            stream.write(json.dumps({"reason": reason, **event}) + "\n")


class Uploader:
    """A thread that sends queued events in order, retrying until they are sent.

    It ends with the process; unsent events stay in their queue.
    """

    def __init__(self, queues: Sequence[EventQueue], deliver: Deliver):
        """Start the thread.

        Args:
            queues: What to send, first to last.
            deliver: Sends events. Exceptions other than RefusedError mean that the receiver
                cannot be reached.
        """
        self.queues, self.deliver = list(queues), deliver
        self._wake = threading.Event()
        self._pause_s = 0.0
        self._stopped = False
        self._thread = threading.Thread(target=self._run, name="sender", daemon=True)
        self._thread.start()

    def drain(self, limit_s: float) -> bool:
        """Wait until all events are sent; False if that takes longer than the limit."""
        deadline = time.monotonic() + limit_s
        while any(queue.waiting() for queue in self.queues):
            if time.monotonic() > deadline:
                return False
            self._wake.set()
            time.sleep(POLL_S)
        return True

    def stop(self, limit_s: float) -> bool:
        """Drain and end the thread; whether all events were sent."""
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
                    log.warning("the events in %s are sent", self.queues[0].file.parent)
                self._pause_s = 0.0
            except Exception as error:
                reason = one_line(error, 200)
                if not self._pause_s:
                    log.warning("events wait in %s: %s", self.queues[0].file.parent, reason)
                shortest, longest = PAUSES_S
                self._pause_s = min(longest, max(shortest, 2 * self._pause_s))

    def _send(self, queue: EventQueue) -> None:
        while True:
            batch = list(itertools.islice(queue.events(queue.sent), BATCH))
            if not batch:
                return
            events = [event for event, _ in batch]
            try:
                self.deliver(events)
            except RefusedError:
                for event in events:  # Perhaps only some are refused.
                    try:
                        self.deliver([event])
                    except RefusedError as error:
                        log.warning("%s: refused for good: %s", queue.file, error)
                        queue.refuse(event, str(error))
            queue.acknowledge(batch[-1][1])
