"""Training without damaged samples: which, at most how many, and the same on every rank.

An epoch's order is a function of seed and index, with the skipped samples removed: the others
keep their order, a pure function of (seed, usable samples). Positions shift, though, so a
checkpoint can only be continued with the same samples.
"""

import logging
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import groupby

from torch import distributed

from acontrol.config import DataConfig
from acontrol.data.integrity import Damage
from acontrol.data.reader import ShardReader
from acontrol.errors import UserError
from acontrol.messages import counted

THREADS = 8  # Hashing releases the GIL.
log = logging.getLogger(__name__)


def find_damage(reader: ShardReader) -> tuple[Damage, ...]:
    """Compare every shard with the index: reads the whole set once.

    Returns:
        All damage, in the index's order; a missing shard loses all its samples.

    Raises:
        UserError: If a shard cannot be read for any reason but damage.
    """
    try:
        with ThreadPoolExecutor(min(THREADS, os.cpu_count() or 1)) as pool:
            results = pool.map(reader.inspect, reader.index.shards)
            return tuple(place for _, damage in results for place in damage)
    except OSError as error:
        raise UserError(
            f"{error.filename or reader.root}: cannot be read ({error.strerror or error})"
        ) from error


def skip_damaged(reader: ShardReader, damage: Sequence[Damage], max_share: float) -> None:
    """Make a reader skip lost samples.

    Args:
        reader: The reader.
        damage: All damage of its set.
        max_share: Largest share of the samples that may be lost.

    Raises:
        UserError: If more are lost.
    """
    lost = [place for place in damage if place.lost]
    if len(lost) > max_share * len(reader):
        raise UserError(
            f"{reader.root}: {len(lost)} of {counted(len(reader), 'sample')} "
            f"{'is' if len(lost) == 1 else 'are'} damaged ({len(lost) / len(reader):.2%}), "
            f"over data.max_damaged {max_share:g}; the first is in {lost[0].shard}: "
            f"{lost[0].place}; restore the shards, or allow more"
        )
    reader.skip(damage)


def agree_on_damage(reader: ShardReader, data: DataConfig) -> None:
    """With ``data.damaged`` "skip", skip on every rank the samples that rank 0 finds lost.

    A collective: storage may look different to other ranks, and ranks that decided on their own
    would take different samples at one position. Damage that only another rank sees is an error
    there.

    Raises:
        UserError: On all ranks, if more is lost than ``data.max_damaged`` allows.
    """
    if data.damaged != "skip":
        return
    is_first = distributed.get_rank() == 0
    message: list[tuple[Damage, ...]] = [find_damage(reader) if is_first else ()]
    distributed.broadcast_object_list(message)
    (damage,) = message
    skip_damaged(reader, damage, data.max_damaged)
    if is_first and damage:
        log.warning("%s", report(reader, damage))


def report(reader: ShardReader, damage: Sequence[Damage]) -> str:
    """The number of skipped samples, then a line per damaged shard with their keys."""
    count = len(reader.skipped)
    samples, share = counted(len(reader), "sample"), count / len(reader)
    lines = [f"Skipping {count} of {samples}, damaged ({share:.2%}):"]
    for shard, group in groupby(damage, key=lambda place: place.shard):
        places = list(group)
        keys = ", ".join(place.key for place in places if place.lost and place.key)
        lines.append(f"  {shard}: {keys or 'no sample'}; first damage: {places[0].place}")
    return "\n".join(lines)


def refuse_other_skips(skipped_digest: str, reader: ShardReader) -> None:
    """Refuse to continue a checkpoint with other skipped samples.

    Args:
        skipped_digest: The checkpoint's.
        reader: The reader, after ``agree_on_damage``.

    Raises:
        UserError: If the skipped samples differ.
    """
    if skipped_digest != reader.skipped_digest:
        before = "some" if skipped_digest else "no"
        raise UserError(
            f"{reader.root}: the run was trained with {before} samples skipped; now "
            f"{counted(len(reader.skipped), 'other is', 'others are')} damaged, so the order "
            "would differ; restore the shards to continue it, or name another --output (--init "
            "keeps the adapter)"
        )
