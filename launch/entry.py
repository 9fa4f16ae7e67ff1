"""The way into every command: errors of the user become one line and exit status 2."""

import contextlib
import os
import sys
import warnings
from collections.abc import Callable, Sequence
from typing import NoReturn

from pydantic import ValidationError

from acontrol.errors import UserError, explain
from acontrol.progress import waiting

# Lines of Ray's that look like a failure and are none. Ray reads this setting of its own as it
# is imported, and leaves matching lines out of what its processes print.
HARMLESS = r"core_worker\.cc:\d+: Actor with class name: 'PreemptionWatcher'"


def loading() -> contextlib.AbstractContextManager[None]:
    """Around a command's heavy imports, which take seconds from a cold disk."""
    return waiting("Loading PyTorch and the networks' libraries")


def main(run: Callable[[Sequence[str]], None]) -> NoReturn:
    """Run a command on this process's arguments and exit.

    Status 0 is done, 2 something the user can put right, 1 a failure, 130 an interrupt.
    """
    os.environ.setdefault("RAY_TRAIN_V2_ENABLED", "1")
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_DEDUP_LOGS_SKIP_REGEX", HARMLESS)
    if os.name != "nt" and not os.path.exists("/dev/nvidiactl"):
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
    # Pillow's warning of a decompression bomb; ours is an error that says what to do.
    warnings.filterwarnings("ignore", message="Image size .* exceeds limit")
    try:
        run(sys.argv[1:])
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except BrokenPipeError:  # As in `--help | head`.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except ValidationError as error:
        print(f"error: {explain(error)}", file=sys.stderr)
        sys.exit(2)
    except OSError as error:
        place = f"{error.filename}: " if error.filename else ""
        print(f"error: {place}{error.strerror or error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(130)
    sys.exit(0)
