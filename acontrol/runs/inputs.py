"""The data set of a run, as MLflow shows it."""

import hashlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from acontrol.config import THIRD
from acontrol.data.index import ShardIndex
from acontrol.data.mvtec import MvtecFolder

NAMED = 3  # Categories in a name; more are counted.


@dataclass(frozen=True)
class DataInput:
    """A data set.

    Attributes:
        name: Its categories and the part of them.
        digest: Hex digits that tell it from others.
        source: Folder or URI.
        counts: Images by "category/defect".
        context: What it was used for.
    """

    name: str
    digest: str
    source: str
    counts: dict[str, int]
    context: Literal["training", "evaluation"]

    @classmethod
    def of_shards(cls, index: ShardIndex, source: str) -> "DataInput":
        """What a run trains on."""
        samples = [sample for shard in index.shards for sample in shard.samples]
        counts = Counter(f"{sample.category}/{sample.defect}" for sample in samples)
        part = index.split if index.split_digest == THIRD else f"{index.split}, own split"
        name = _name(sorted({sample.category for sample in samples}), part)
        return cls(name, index.digest, source, dict(sorted(counts.items())), "training")

    @classmethod
    def of_folder(
        cls,
        folder: MvtecFolder,
        split: Literal["train", "test", "all"],
        context: Literal["training", "evaluation"],
        categories: Sequence[str] | None = None,
    ) -> "DataInput":
        """A folder's defects; the digest is over the files' names and sizes."""
        chosen = folder.categories if categories is None else tuple(categories)
        counts: Counter[str] = Counter()
        digest = hashlib.sha256(f"{split} {folder.trained_on(split).split_digest}\n".encode())
        for category in chosen:
            for image in folder.labelled(split, category=category):
                counts[f"{category}/{image.defect}"] += 1
                for file in (image.image, image.mask):
                    size = file.stat().st_size if file.exists() else 0
                    digest.update(f"{folder.name_of(category, file)} {size}\n".encode())
        name = _name(chosen, split)
        source = str(folder.root.resolve())
        return cls(name, digest.hexdigest(), source, dict(sorted(counts.items())), context)


def _name(categories: Sequence[str], part: str) -> str:
    listed = (
        ", ".join(categories) if len(categories) <= NAMED else f"{len(categories)} categories"
    )
    return f"{listed} ({part})"
