"""The settings of launch.fit, and the card of what it wrote."""

from pathlib import Path
from typing import Literal

from pydantic import Field

from acontrol.config import (
    BaseConfig,
    LossWeighting,
    OnBase,
    Settings,
    TrainedOn,
    unit_interval,
)
from acontrol.data.settings import SPLIT_FILE

FitMethod = Literal["lora", "anodiff"]


class Fit(Settings):
    """How a method is fitted to the training defects; all of it decides the weights."""

    method: FitMethod = Field(
        description="lora: low-rank matrices beside the U-Net's attention, with captions; "
        "anodiff: vectors in place of words for each defect, and tokens of the mask."
    )
    steps: int = Field(400, ge=1, description="Optimizer steps.")
    batch_size: int = Field(8, ge=1, description="Images per step.")
    learning_rate: float = Field(
        2e-3, gt=0, description="Of AdamW; warms up and falls as a cosine. SD1.5: 1e-4."
    )
    rank: int = Field(
        8, ge=1, description="Of lora: rank of each pair of matrices; alpha is the same."
    )
    vectors: int = Field(8, ge=1, description="Of anodiff: vectors of each defect.")
    dropped_text: float = unit_interval(
        0.1, "Share of samples that lose their text, for classifier-free guidance."
    )
    loss_weighting: LossWeighting = Field(
        "late", description="As optim.loss_weighting of acontrol train; 'none' is usual."
    )
    mask_weight: float = Field(
        8.0,
        ge=0,
        description="As optim.mask_weight of acontrol train; 0 is usual. anodiff learns the "
        "mask's inside alone.",
    )
    crop: float = Field(
        4.0,
        ge=0,
        le=1000,
        description="Side of the square that is learnt, and drawn, in longest sides of the "
        "defect; 0: the whole image.",
    )
    target_px: int | None = Field(
        None, ge=16, description="Largest side of it in pixels, as data.target_px."
    )
    split: Literal["train", "test", "all"] = Field(
        "train", description="Which defects to learn from, as in the adapter's training."
    )
    seed: int = Field(0, ge=0, lt=2**63, description="Random seed.")


class FitConfig(Fit, OnBase):
    """What to fit, on which base, and where to write it."""

    output: Path = Field(description="Folder of the weights; a rerun continues it.")
    captions: Path | None = Field(
        None, description="JSON file of captions, as acontrol shard was given."
    )
    split_file: Path | None = Field(None, description=SPLIT_FILE)


class FittedCard(Settings):
    """Where fitted weights come from; validated when read."""

    acontrol_version: str
    base: BaseConfig
    base_digest: str = Field(description="sha256 over the base models' files.")
    seen: TrainedOn = Field(description="The images behind them.")
    training: tuple[str, ...] = Field(description="Keys of the training images.")
    resolution: int = Field(ge=8, description="Side of what was learnt, in pixels.")
    fit: Fit
    types: tuple[str, ...] = Field((), description="Of anodiff: its category/defect in order.")
    weights_sha256: str
