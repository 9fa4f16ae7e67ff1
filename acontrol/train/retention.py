"""Which bundle a run continues from, and which ones it keeps."""

import logging

from acontrol.errors import UserError
from acontrol.train.checkpoint import MANIFEST, Bundle, discard, read_bundle
from acontrol.train.storage import Place

log = logging.getLogger(__name__)


def newest_bundle(run: Place) -> Bundle | None:
    """The furthest bundle of a run that verifies, over all launches; None before the first.

    Raises:
        UserError: If there are finished bundles but none verifies: starting again from step 0
            must be somebody's decision.
    """
    refused = []
    for path in _furthest_first(run):
        try:
            return read_bundle(path)
        except ValueError as error:
            if (path / MANIFEST).exists():
                refused.append(f"{path.name}: {error}")
                log.warning("bundle %s is not used: %s", path, error)
    if refused:
        raise UserError(
            f"{run}: no bundle verifies ({'; '.join(refused)}); restore one, or start anew "
            "with another --output"
        )
    return None


def prune(run: Place, keep: int, newest: Place) -> None:
    """Delete all but ``newest`` and the ``keep - 1`` good bundles before it.

    What does not verify does not count as kept. A bundle of another launch that claims to be
    further was refused when this launch started, and goes.
    """
    kept = 1
    for path in _furthest_first(run):
        if path == newest:
            continue
        if path.name <= newest.name and kept < keep and _is_good(path):
            kept += 1
        else:
            discard(path)


def _is_good(path: Place) -> bool:
    try:
        read_bundle(path)
    except ValueError:
        return False
    except OSError:  # It cannot be read now: no reason to delete it.
        pass
    return True


def _furthest_first(run: Place) -> list[Place]:
    found = run.glob("launches/*/bundle-*")
    return sorted(found, key=lambda path: (path.name, path.parent.name), reverse=True)
