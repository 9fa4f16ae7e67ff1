"""Errors that the user can fix, printed by commands in one line."""

import contextlib
import difflib
import re
from collections.abc import Callable, Iterable, Iterator, Sequence

from pydantic import BaseModel, ValidationError

SHOWN = 80  # Characters of a bad value, of which a path may have more.


class UserError(Exception):
    """An error that the user can fix: one line with what, where and what to do.

    Commands print only the message and exit with status 2. Line breaks in it, as in the name
    of a file, are shown escaped.
    """

    def __str__(self) -> str:
        """The message."""
        return "\\n".join(super().__str__().splitlines())


@contextlib.contextmanager
def naming(path: object) -> Iterator[None]:
    """Let an OSError that names no file, as of a full disk, name the one being written."""
    try:
        yield
    except OSError as error:
        if error.filename is None and error.errno is not None:
            error.filename = str(path)
        raise


def one_line(error: BaseException, limit: int = 300) -> str:
    """An error's message as one line, cut to ``limit`` characters."""
    return " ".join(str(error).split())[:limit]


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an allocation failed: torch's on a CPU is a plain RuntimeError."""
    return isinstance(error, MemoryError) or (
        isinstance(error, RuntimeError) and says_out_of_memory(str(error))
    )


def says_out_of_memory(message: str) -> bool:
    """Whether an error's message is of a failed allocation."""
    signs = ("out of memory", "can't allocate", "not enough memory")
    return any(sign in message.lower() for sign in signs)


def nearest(name: str, known: Iterable[str]) -> str:
    """A hint for a name that does not exist: the closest one there is, and all of them."""
    names = list(known)
    choices = f"choose from {', '.join(names)}" if names else "there are none"
    close = difflib.get_close_matches(name, names, n=1)
    return f"did you mean {close[0]}? ({choices})" if close else choices


def _cut(value: object) -> str:
    """A value as its author wrote it, without the rest of a whole file."""
    text = repr(value)
    most = 5 * SHOWN if isinstance(value, str) else SHOWN
    return text if len(text) <= most else f"{text[: most - 3]}..."


def explain(error: ValidationError, name_of: Callable[[Sequence[str]], str] = ".".join) -> str:
    """Pydantic's report as one line: each setting, what is wrong, and the value.

    Args:
        error: The report.
        name_of: Names a setting by its path; by default with dots.
    """
    parts = []
    for item in error.errors():
        name = name_of([str(part) for part in item["loc"]])
        message = re.sub(r"^(Value error|Assertion failed), ", "", item["msg"])
        value = item["input"]
        got = "" if isinstance(value, bytes | dict | BaseModel) else f", got {_cut(value)}"
        parts.append(f"{name}: {message}{got}" if name else f"{message}{got}")
    return "; ".join(parts)
