"""A worker that hangs ends itself, and says where it hung."""

import faulthandler


class Watchdog:
    """Ends this process when nothing was done for too long.

    A hung worker holds all others up at their next collective, and Ray, which asks its actors
    from another thread, does not see it. The watch is the interpreter's own and needs no
    Python code to run, so it also ends a process that hangs inside a library; the traceback
    of every thread goes to standard error. A process that was halted altogether cannot end
    itself: the others do, and with them Ray takes it down.
    """

    def __init__(self, seconds: float):
        """Begin to watch; ``seconds`` without progress are too long."""
        self.seconds = seconds
        self.progress()

    def progress(self) -> None:
        """Something was done."""
        faulthandler.dump_traceback_later(self.seconds, exit=True)

    def close(self) -> None:
        """Stop watching."""
        faulthandler.cancel_dump_traceback_later()
