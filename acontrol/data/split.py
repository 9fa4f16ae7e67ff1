"""Which images train and which test: the first third of each defect, or what a file says.

    {"format": "acontrol-split-1", "train": ["tile/train/good/000.png", ...], "test": [...]}

A split file names every image of a data set, good ones too, as CATEGORY/PATH. Its digest, or
"third" without a file, travels with shards, masks, bases, adapters and generated sets
(`TrainedOn`), so that two different splits are never mixed.
"""

import hashlib
import json
import os
from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import Literal, Self

from pydantic import ValidationError, model_validator

from acontrol.config import THIRD, Settings, TrainedOn
from acontrol.errors import UserError, explain


def training_third(ids: Sequence[str]) -> list[str]:
    """The training ids of one defect: the first floor(n / 3) when sorted."""
    return sorted(ids)[: len(ids) // 3]


class Split(Settings):
    """A split file."""

    format: Literal["acontrol-split-1"] = "acontrol-split-1"
    train: tuple[str, ...]
    test: tuple[str, ...]

    @model_validator(mode="after")
    def _names_each_image_once(self) -> Self:
        for name, count in Counter([*self.train, *self.test]).items():
            path = PurePosixPath(name)
            if path.is_absolute() or ".." in path.parts or len(path.parts) < 3:
                raise ValueError(f"{name!r} is no CATEGORY/.../IMAGE")
            if count > 1:
                raise ValueError(f"names {name!r} {count} times")
        return self

    @cached_property
    def digest(self) -> str:
        """Sha256 of which images train and which test, in whatever order they stand."""
        content = {"train": sorted(self.train), "test": sorted(self.test)}
        return hashlib.sha256(json.dumps(content).encode()).hexdigest()

    @cached_property
    def training(self) -> frozenset[str]:
        """The images that train."""
        return frozenset(self.train)

    def check(self, names: Iterable[str], file: Path, root: Path) -> None:
        """Check that a data set holds these images and no others.

        Raises:
            UserError: If an image is in the file or in the folder alone.
        """
        own, listed = {*names}, {*self.train, *self.test}
        again = "make the split again with acontrol split"
        if extra := own - listed:
            raise UserError(
                f"{file}: does not name {_first_of(extra)}, which {root} holds: remove it, or "
                f"{again}"
            )
        if missing := listed - own:
            raise UserError(
                f"{file}: names {_first_of(missing)}, which {root} does not hold: put it back, "
                f"or {again}"
            )


def read_split(path: str | os.PathLike[str]) -> Split:
    """Read a split file.

    Raises:
        UserError: If it is missing or malformed.
    """
    try:
        return Split.model_validate_json(Path(path).read_bytes())
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from error
    except ValidationError as error:
        problem = explain(error).partition("; ")[0]
        raise UserError(f"{path}: not a split of acontrol split: {problem}") from error


def refuse_mix(
    owner: str, trained_on: Iterable[TrainedOn], other: str, data: TrainedOn
) -> None:
    """Refuse weights from one split of some data with another split of it.

    Args:
        owner: What has the weights, for the message.
        trained_on: What they come from.
        other: What ``data`` is, for the message.
        data: The data that is used with them.

    Raises:
        UserError: If the splits differ.
    """
    for part in trained_on:
        # All images are in no split; whether that matters is the evaluation's question.
        if part.split != "all" and part.split_digest != data.split_digest and part.shares(data):
            raise UserError(
                f"{owner} comes from {in_words(part.split_digest)}, and {other} from "
                f"{in_words(data.split_digest)}: give --split-file the same file everywhere, "
                "or nowhere"
            )


def in_words(split_digest: str) -> str:
    """A split by its record."""
    if split_digest == THIRD:
        return "the first third of each defect (no --split-file)"
    return f"the split file of digest {split_digest[:12]}"


def _first_of(names: Collection[str]) -> str:
    more = f" (and {len(names) - 1} more)" if len(names) > 1 else ""
    return f"{min(names)}{more}"
