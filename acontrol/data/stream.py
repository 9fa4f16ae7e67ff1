"""Read shards as one endless, seekable stream of training samples.

The sample at a position is a pure function of (seed, position), so a resume needs one integer
and the global batch is the same for any number of ranks or loader processes: they take
positions, not shards. webdataset decodes the members; the order, the check against the index
and the resume position are ours.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from functools import partial
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from acontrol.config import DataConfig
from acontrol.data.crops import target_view
from acontrol.data.features import OF_REFERENCE, FeatureBatch, FeatureFolder
from acontrol.data.images import fit, reference_view
from acontrol.data.index import ShardIndex
from acontrol.data.reader import ShardReader
from acontrol.errors import UserError
from acontrol.seeding import derive_seed


@dataclass(frozen=True)
class Batch:
    """One rank's samples of one step.

    Attributes:
        image: (batch, 3, R, R) in [-1, 1], R the training resolution.
        mask: (batch, 1, R, R), 1 on the defect.
        caption: Target text T_t of each sample.
        reference_image: (batch, 3, V, V) in [-1, 1], V the vision tower's size.
        reference_mask: (batch, 1, V, V), the share of each pixel that its defect covers.
        reference_phrase: The anomaly's words of T_a.
        positions: Global positions in the stream.
        keys: Keys of the samples, for messages.
    """

    image: Tensor
    mask: Tensor
    caption: list[str]
    reference_image: Tensor
    reference_mask: Tensor
    reference_phrase: list[str]
    positions: list[int]
    keys: list[str]


Collated = TypeVar("Collated", Batch, FeatureBatch)


def epoch_order(index: ShardIndex, seed: int, epoch: int, block_shards: int) -> np.ndarray:
    """The order of all samples in one epoch: a blocked shuffle.

    Shards are permuted, then samples within each block of shards, so that a large set is still
    read shard by shard.

    Returns:
        (num_samples,) sample numbers.
    """
    rng = np.random.default_rng(derive_seed(seed, "order", epoch))
    sizes = [len(shard.samples) for shard in index.shards]
    starts = np.concatenate([[0], np.cumsum(sizes)])
    shards = rng.permutation(len(sizes))
    blocks = []
    for first in range(0, len(shards), block_shards):
        block = np.concatenate(
            [
                np.arange(starts[shard], starts[shard + 1])
                for shard in shards[first : first + block_shards]
            ]
        )
        blocks.append(rng.permutation(block))
    return np.concatenate(blocks)


def held_out(index: ShardIndex, share: float) -> np.ndarray:
    """The samples for validation: a fixed choice by key, about ``share`` of them.

    Returns:
        (num_samples,) bool; at least one True and, of two or more samples, one False.
    """
    keys = [sample.key for shard in index.shards for sample in shard.samples]
    ranks = np.argsort([derive_seed("held out", key) for key in keys], kind="stable")
    count = min(max(1, round(share * len(keys))), len(keys) - 1)
    chosen = np.zeros(len(keys), dtype=bool)
    chosen[ranks[:count]] = True
    return chosen


def check_view(config: DataConfig, index: ShardIndex, shards: str) -> None:
    """Refuse crops from copies that were scaled first: drawing crops original pixels.

    Raises:
        UserError: If ``data.target_view`` is region and the shards were scaled.
    """
    if config.target_view == "region" and index.resolution is not None:
        raise UserError(
            f"data.target_view region cuts from original pixels, and {shards} was scaled down "
            f"to {index.resolution} px: write it again with acontrol shard --resolution None"
        )


class TrainingStream(Dataset[dict[str, object]]):
    """Samples by global position, each with its reference."""

    def __init__(
        self,
        reader: ShardReader,
        config: DataConfig,
        *,
        seed: int,
        reference_px: int,
        used: np.ndarray | None = None,
        features: FeatureFolder | None = None,
    ):
        """Pair each sample with its possible references.

        Args:
            reader: The samples.
            config: How they are ordered and paired.
            seed: Seed of the order and the pairing.
            reference_px: The vision tower's image size.
            used: (num_samples,) bool, the samples to use; by default all. Samples that the
                reader skips are never used.
            features: If given, batches hold these, and no image is read.

        Raises:
            UserError: If no sample is left, or a sample has no possible reference.
        """
        self.reader = reader
        self.config = config
        self.seed = seed
        self.reference_px = reference_px
        self.features = features
        self._used = reader.usable if used is None else used & reader.usable
        if not self._used.any():
            raise UserError(
                f"{reader.root}: every sample for this is damaged; restore the shards"
            )
        self._orders: dict[int, np.ndarray] = {}
        self._partners = self._find_partners()

    def _order(self, epoch: int) -> np.ndarray:
        if epoch not in self._orders:
            while len(self._orders) > 1:  # A batch usually spans at most two epochs.
                self._orders.pop(min(self._orders))
            order = epoch_order(self.reader.index, self.seed, epoch, self.config.block_shards)
            self._orders[epoch] = order[self._used[order]]
        return self._orders[epoch]

    def __len__(self) -> int:
        """Samples per epoch."""
        return int(self._used.sum())

    def _find_partners(self) -> list[list[int]]:
        """For each used sample, the used samples that may be its reference."""
        samples = [sample for _, sample in self.reader.places]
        partners: list[list[int]] = [[] for _ in samples]
        groups: dict[str, dict[str, list[int]]] = {}  # By defect, then category.
        used = [int(number) for number in np.flatnonzero(self._used)]
        for number in used:
            sample = samples[number]
            categories = groups.setdefault(sample.defect, {})
            categories.setdefault(sample.category, []).append(number)
        for number in used:
            sample = samples[number]
            if self.config.reference == "self":
                partners[number] = [number]
            elif self.config.reference == "same_defect":
                same = groups[sample.defect][sample.category]
                # A defect with one image has no other reference.
                partners[number] = [other for other in same if other != number] or [number]
            else:
                partners[number] = [
                    other
                    for category, others in groups[sample.defect].items()
                    if category != sample.category
                    for other in others
                ]
            if not partners[number]:
                raise UserError(
                    f"data.reference cross_category: no other category has the defect "
                    f"{sample.defect!r} of {sample.key}; use 'same_defect' or 'self'"
                )
        return partners

    def pair(self, position: int) -> tuple[int, int]:
        """Numbers of the sample at a global position and of its reference."""
        epoch, index = divmod(position, len(self))
        number = int(self._order(epoch)[index])
        partners = self._partners[number]
        return number, partners[derive_seed(self.seed, "reference", position) % len(partners)]

    def __getitem__(self, position: int) -> dict[str, object]:
        """The row at a global position, as pixels or as features."""
        if self.features is None:
            return self.pixels(position)
        number, other = self.pair(position)
        target, reference = self.features.read(number), self.features.read(other)
        return {
            **{name: (reference if name in OF_REFERENCE else target)[name] for name in target},
            "positions": position,
            "keys": self.reader.places[number][1].key,
        }

    def pixels(self, position: int) -> dict[str, object]:
        """The row at a global position, as pixels."""
        return self.paired(*self.pair(position), position)

    def paired(self, number: int, other: int, position: int) -> dict[str, object]:
        """The row of any sample with any reference, as pixels."""
        sample = self.reader.read(number)
        reference = sample if other == number else self.reader.read(other)
        size = self.config.resolution
        image, mask = fit(
            *target_view(
                sample.image,
                sample.mask,
                self.config.target_crop,
                size,
                self.config.target_px,
            ),
            size,
        )
        reference_image, reference_mask = reference_view(
            reference.image, reference.mask, self.config.reference_view, self.reference_px
        )
        return {
            "image": image,
            "mask": mask,
            "caption": sample.caption,
            "reference_image": reference_image,
            "reference_mask": reference_mask,
            "reference_phrase": reference.phrase,
            "positions": position,
            "keys": self.reader.places[number][1].key,
        }

    def batches(
        self,
        start: int,
        per_rank: int,
        rank: int,
        world_size: int,
        steps: int,
        positions: npt.NDArray[np.int64] | None = None,
    ) -> Iterator[Batch | FeatureBatch]:
        """Yield this rank's next ``steps`` batches from global position ``start`` on.

        Global batch g covers positions [g * B, (g + 1) * B) with B = per_rank * world_size,
        and rank r takes its r-th part. With ``positions``, these are indices into it: the
        positions that are used, in order.
        """
        workers = self.config.loader_workers
        batch_type: Any = FeatureBatch if self.features else Batch
        return iter(
            DataLoader(
                self,
                batch_sampler=[
                    [
                        index if positions is None else int(positions[index])
                        for index in range(first, first + per_rank)
                    ]
                    for step in range(steps)
                    for first in [start + (step * world_size + rank) * per_rank]
                ],
                num_workers=workers,
                collate_fn=partial(collate, batch_type=batch_type),
                multiprocessing_context="spawn" if workers else None,
            )
        )


def collate(rows: Sequence[dict[str, object]], batch_type: type[Collated]) -> Collated:
    """Stack tensors, list the rest."""
    columns: dict[str, Any] = {}
    for field in fields(batch_type):
        values: list[Any] = [row[field.name] for row in rows]
        columns[field.name] = torch.stack(values) if isinstance(values[0], Tensor) else values
    return batch_type(**columns)
