"""What every group of settings is, and how a mistake in one is told."""

import re
from collections.abc import Iterable

from pydantic import BaseModel, ConfigDict, Field, ValidationError


class Settings(BaseModel):
    """A frozen group of settings that refuses unknown names."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class UserError(Exception):
    """Something that the user can put right: one line with what, where and what to do.

    Command lines print the message alone and exit with status 2.
    """


def unit_interval(default: float, description: str) -> float:
    """A field for a probability or a share, in [0, 1]."""
    return Field(default, ge=0, le=1, description=description)


def explain(error: ValidationError, prefix: Iterable[str] = ()) -> str:
    """Turn pydantic's report into one line: which setting, what is wrong, what came."""
    parts = []
    for item in error.errors():
        where = ".".join([*prefix, *(str(part) for part in item["loc"])])
        message = re.sub(r"^(Value error|Assertion failed), ", "", item["msg"])
        came = "" if isinstance(item["input"], dict | BaseModel) else f", got {item['input']!r}"
        parts.append(f"{where}: {message}{came}" if where else f"{message}{came}")
    return "; ".join(parts)
