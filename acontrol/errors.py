"""What a user can put right, in one line: the errors that commands print."""

import re
from collections.abc import Iterable

from pydantic import BaseModel, ValidationError


class UserError(Exception):
    """Something that the user can put right: one line with what, where and what to do.

    Command lines print the message alone and exit with status 2.
    """


def explain(error: ValidationError, prefix: Iterable[str] = ()) -> str:
    """Turn pydantic's report into one line: which setting, what is wrong, what came."""
    parts = []
    for item in error.errors():
        where = ".".join([*prefix, *(str(part) for part in item["loc"])])
        message = re.sub(r"^(Value error|Assertion failed), ", "", item["msg"])
        came = "" if isinstance(item["input"], dict | BaseModel) else f", got {item['input']!r}"
        parts.append(f"{where}: {message}{came}" if where else f"{message}{came}")
    return "; ".join(parts)
