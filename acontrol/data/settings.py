"""Every setting of launch.inspect, launch.split and launch.shard."""

from pathlib import Path
from typing import Literal

from pydantic import Field

from acontrol.config import Settings

SPLIT_FILE = (
    "Which images train, from acontrol split; by default the first third of each defect."
)


class InspectConfig(Settings):
    """What is looked at."""

    root: Path = Field(
        description="Folder of categories in MVTec AD's layout, or one category."
    )
    out: Path | None = Field(None, description="File to write a page with pictures to.")
    split_file: Path | None = Field(None, description=SPLIT_FILE)
    captions: Path | None = Field(
        None, description="JSON file of captions: {category: {defect: {id: sentence}}}."
    )


class SplitConfig(Settings):
    """How a data set is split."""

    root: Path = Field(
        description="Folder of categories in MVTec AD's layout, or one category."
    )
    by: Literal["third", "pieces"] = Field(
        description="The paper's first third, or with photographs of a piece on one side."
    )
    out: Path = Field(description="File to write; an earlier split is replaced.")
    seed: int = Field(0, ge=0, lt=2**63, description="Random seed of the split.")


class ShardConfig(Settings):
    """Which images are written, and how."""

    root: Path = Field(
        description="Folder of categories in MVTec AD's layout, or one category."
    )
    out: Path | None = Field(None, description="Folder to write the shards to.")
    split: Literal["train", "test", "all"] = Field(
        "train", description="First third of each defect's images, the rest, or all."
    )
    split_file: Path | None = Field(None, description=SPLIT_FILE)
    resolution: int | None = Field(
        512,
        ge=16,
        description="Images whose shorter side is longer are scaled down to it; "
        "None keeps every pixel.",
    )
    shard_size: int = Field(128, ge=1, description="Samples per shard.")
    captions: Path | None = Field(
        None, description="JSON file of captions: {category: {defect: {id: sentence}}}."
    )
    train_list: Path | None = Field(
        None,
        description="JSON list of the authors' repository with training images and captions: "
        "[{image_file, mask_file, text, subject_text}]. Replaces --split, which is then "
        "recorded as 'all'; or as 'train' with --split-file, which must train all of them.",
    )
    skip_bad: bool = Field(
        False, description="Leave out, list and count bad images instead of stopping."
    )
    dry_run: bool = Field(False, description="Check everything, count, and write nothing.")
