"""The one way into every command: errors of the user become one line and exit status 2."""

import contextlib
import io
import os
import re
import sys
import warnings
from collections.abc import Callable, Sequence
from typing import NoReturn, TypeVar

from pydantic import BaseModel

from acontrol.errors import UserError

Command = TypeVar("Command", bound=BaseModel)


def parse(
    command: type[Command],
    args: Sequence[str],
    *,
    prog: str,
    description: str | None = None,
    default: Command | None = None,
) -> Command:
    """Read a command's options, each a field with its dotted name.

    tyro draws errors as a box and pydantic as a report; here they become one line.
    """
    import tyro

    errors = io.StringIO()
    parsed: Command
    try:
        with contextlib.redirect_stderr(errors):
            parsed = tyro.cli(  # type: ignore[assignment]  # default is None or a Command
                command,
                args=list(args),
                prog=prog,
                description=named_for(prog, description),
                default=default,
            )
    except SystemExit as stop:
        if stop.code == 2:
            raise UserError(one_line(errors.getvalue(), prog)) from None
        raise
    return parsed


def named_for(prog: str, description: str | None) -> str:
    """A command's description, for the ``acontrol`` script where that runs it."""
    if not prog.startswith("acontrol "):
        return description or ""
    return re.sub(r"python -m (?:launch|tune)\.", "acontrol ", description or "")


def one_line(report: str, prog: str) -> str:
    """The gist of tyro's box: its first paragraph, pydantic's report flattened."""
    lines = [re.sub(r"[\u2500-\u257f]", " ", line).strip() for line in report.splitlines()]
    # The first line is the box's title; the text ends at a rule, which is now empty.
    text = " ".join(lines[1:]).strip()
    body = re.split(r"\s{2,}(?=Perhaps|Argument helptext|For full helptext)|-{10,}", text)[0]
    body = re.split(r"(?:Perhaps you meant|Argument helptext|For full helptext)", body)[0]
    body = " ".join(body.split())
    found = re.match(
        r"Error parsing (\S+): \d+ validation errors? for \S+ (?:([a-z][a-z_.]*) )?(.*?) "
        r"\[type=\w+, input_value=(.*?), input_type",
        body,
    )
    if found:
        group, field, message, value = found.groups()
        message = re.sub(r"^Value error, ", "", message)
        # tyro names the command's own class where the option is not in a group.
        parts = [part for part in (group, field) if part and part[0].islower()]
        option = f"--{'.'.join(parts).replace('_', '-')}: " if parts else ""
        body = f"{option}{message}" + (f", got {value}" if field else "")
    return f"{body} (see {prog} --help)"


def main(run: Callable[[Sequence[str]], None]) -> NoReturn:
    """Run a command on this process's arguments and exit.

    Status 0 is done, 2 something the user can put right, 1 a failure, 130 an interrupt.
    """
    os.environ.setdefault("RAY_TRAIN_V2_ENABLED", "1")
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("DS_ACCELERATOR", "cpu") if not _has_gpu() else None
    # Pillow's warning of a decompression bomb; ours is an error that says what to do.
    warnings.filterwarnings("ignore", message="Image size .* exceeds limit")
    try:
        run(sys.argv[1:])
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except BrokenPipeError:  # As in `--help | head`.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except OSError as error:
        place = f"{error.filename}: " if error.filename else ""
        print(f"error: {place}{error.strerror or error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(130)
    sys.exit(0)


def _has_gpu() -> bool:
    return os.path.exists("/dev/nvidiactl")
