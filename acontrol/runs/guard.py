"""The same command continues what its folder holds; other settings are refused by name."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from acontrol.errors import UserError
from acontrol.runs import storage
from acontrol.runs.storage import StoragePath

SHOWN = 40  # Characters; longer values, as digests are, appear by their beginning.


def changes(before: Mapping[str, Any], now: Mapping[str, Any], prefix: str = "") -> list[str]:
    """Settings that differ, as "name: before -> now", nested ones by dotted name."""
    lines = []
    for name in {**before, **now}:
        old, new = before.get(name), now.get(name)
        if isinstance(old, Mapping) and isinstance(new, Mapping):
            lines += changes(old, new, f"{prefix}{name}.")
        elif old != new:
            lines.append(f"{prefix}{name}: {_shown(old)} -> {_shown(new)}")
    return lines


def refuse(where: StoragePath | str, changed: Sequence[str], option: str = "--output") -> None:
    """Refuse to continue with other settings.

    Args:
        where: The folder or file.
        changed: From ``changes``; if empty, nothing happens.
        option: The option that names the folder.

    Raises:
        UserError: If anything changed.
    """
    if changed:
        raise UserError(
            f"{where} was begun with other settings ({'; '.join(changed)}): name another "
            f"{option}, or give the same settings to continue it"
        )


def claim(file: Path, settings: Mapping[str, Any], option: str = "--output") -> None:
    """Record the settings of a folder in its ``file``, or check them against that record.

    Raises:
        UserError: If it holds other settings, or is damaged.
    """
    text = json.dumps(settings, indent=1)
    try:
        before = dict(json.loads(file.read_text()))
    except FileNotFoundError:
        storage.write(file, text.encode())
    except (TypeError, ValueError) as error:
        raise UserError(f"{file} is damaged ({error}): name another {option}") from error
    else:
        refuse(file.parent, changes(before, json.loads(text)), option)


def _shown(value: object) -> str:
    text = str(value)
    return text if len(text) <= SHOWN else f"{text[:16]}..."
