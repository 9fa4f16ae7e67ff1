"""Going on without damaged samples: which, how many at the most, and alike on every rank.

The order of an epoch is a function of seed and index, from which the skipped samples are then
struck out: what is left keeps its order, and is a pure function of (seed, usable samples).
Positions shift, though, so a run can go on from a checkpoint only with the same samples.
"""

import logging
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import groupby

from torch import distributed

from acontrol.config import DataConfig
from acontrol.data.integrity import Damaged
from acontrol.data.reader import ShardReader
from acontrol.errors import UserError

THREADS = 8  # Hashing lets go of the interpreter.
log = logging.getLogger(__name__)


def find_damage(reader: ShardReader) -> tuple[Damaged, ...]:
    """Compare every shard with the index: one read of the whole set.

    Returns:
        All that is damaged, in the index's order; a shard that is missing loses every sample.

    Raises:
        UserError: If a shard cannot be read for another reason than damage.
    """
    try:
        with ThreadPoolExecutor(min(THREADS, os.cpu_count() or 1)) as pool:
            found = pool.map(lambda shard: reader.inspect(shard)[1], reader.index.shards)
            return tuple(place for places in found for place in places)
    except OSError as error:
        raise UserError(
            f"{error.filename or reader.root}: cannot be read ({error.strerror or error})"
        ) from error


def skip_damaged(reader: ShardReader, found: Sequence[Damaged], most: float) -> None:
    """Have a reader go on without what is damaged.

    Args:
        reader: Of the set.
        found: All that is damaged in it.
        most: Largest share of the samples that may be lost.

    Raises:
        UserError: If more are lost; gives the counts, and the first place.
    """
    lost = [place for place in found if place.lost]
    if len(lost) > most * len(reader):
        raise UserError(
            f"{reader.root}: {len(lost)} of {len(reader)} samples are damaged "
            f"({len(lost) / len(reader):.2%}), over data.max_damaged {most:g}; the first is in "
            f"{lost[0].shard}: {lost[0].place}; restore the shards, or allow more"
        )
    reader.skip(found)


def agree_on_damage(reader: ShardReader, data: DataConfig) -> None:
    """With ``data.damaged`` "skip", leave out on every rank what rank 0 finds damaged.

    A collective: storage may show other ranks something else, and ranks that skipped each for
    itself would take different samples at one position. What is damaged only for another rank
    is an error there.

    Raises:
        UserError: On every rank together, if more is lost than ``data.max_damaged`` allows.
    """
    if data.damaged != "skip":
        return
    is_first = distributed.get_rank() == 0
    told: list[tuple[Damaged, ...]] = [find_damage(reader) if is_first else ()]
    distributed.broadcast_object_list(told)
    skip_damaged(reader, told[0], data.max_damaged)
    if is_first and told[0]:
        log.warning("%s", report(reader, told[0]))


def report(reader: ShardReader, found: Sequence[Damaged]) -> str:
    """What is left out: a count, then a line a damaged shard with every key."""
    count = len(reader.skipped)
    lines = [f"Skipping {count} of {len(reader)} samples, damaged ({count / len(reader):.2%}):"]
    for shard, places in groupby(found, key=lambda place: place.shard):
        several = list(places)
        keys = [place.key for place in several if place.lost and place.key]
        lines.append(
            f"  {shard}: {', '.join(keys) or 'no sample'}; first damage: {several[0].place}"
        )
    return "\n".join(lines)


def refuse_other_skips(remembered: str, reader: ShardReader) -> None:
    """Keep a run from going on with other samples than its checkpoint's.

    Args:
        remembered: The checkpoint's ``skipped_digest``.
        reader: Of the set, after ``agree_on_damage``.

    Raises:
        UserError: If the skipped samples differ.
    """
    if remembered != reader.skipped_digest:
        before = "some" if remembered else "no"
        raise UserError(
            f"{reader.root}: the run went so far with {before} samples skipped, and now "
            f"{len(reader.skipped)} others are damaged, so the order would differ; restore the "
            "shards to continue it, or name another --output (--init keeps the adapter)"
        )
