"""The settings of launch.masks, and the card of learned masks."""

from pathlib import Path
from typing import Literal

from pydantic import Field

from acontrol.config import THIRD, BaseConfig, OnBase, Precision, Settings
from acontrol.data.settings import SPLIT_FILE

SourceName = Literal["real", "same", "learned", "perlin", "file"]  # Of masks.


class Inversion(Settings):
    """How a mask embedding is learned, and masks drawn with it."""

    vectors: int = Field(16, ge=1, description="Vectors of an embedding (AnomalyDiffusion).")
    steps: int = Field(400, ge=1, description="Optimizer steps for each category and defect.")
    batch_size: int = Field(8, ge=1, description="Images per step.")
    learning_rate: float = Field(0.4, gt=0, description="Of AdamW; falls as a cosine.")
    pool: int = Field(
        256, ge=1, description="Variations of a defect's training masks to train on."
    )
    count: int = Field(100, ge=1, description="Masks to keep of each category and defect.")
    tries: int = Field(10, ge=1, description="Maximum number of drawings per mask to keep.")
    drawing_steps: int = Field(30, ge=1, le=1000, description="DDIM steps of a drawing.")
    guidance_scale: float = Field(2.0, ge=1, le=100, description="Classifier-free guidance.")
    drawing_batch: int = Field(
        32, ge=1, description="Images drawn together; more takes more memory."
    )


class MasksConfig(Inversion, OnBase):
    """What to learn, on which base, and where to write it."""

    output: Path = Field(description="Folder of the learned masks; a rerun continues it.")
    category: str | None = Field(None, description="Only this category; by default all.")
    defect: str | None = Field(None, description="Only this defect type; by default all.")
    split: Literal["train", "test", "all"] = Field(
        "train",
        description="Which masks to learn from: each defect's first third, the rest, "
        "or all; as in the adapter's training.",
    )
    precision: Precision = Field("float32", description="Of the base's networks.")
    split_file: Path | None = Field(None, description=SPLIT_FILE)
    seed: int = Field(0, ge=0, lt=2**63, description="Random seed.")


class MaskCard(Settings):
    """Where learned masks come from; validated when read."""

    acontrol_version: str
    category: str
    defect: str
    base: BaseConfig
    base_digest: str = Field(description="sha256 over the base models' files.")
    split: Literal["train", "test", "all"]
    split_digest: str = Field(THIRD, description="'third', or that of the split file.")
    training: tuple[str, ...] = Field(description="Ids of the training masks.")
    template: str = Field(description="The caption that the vectors started from.")
    resolution: int = Field(ge=8, description="Side of the masks, in pixels.")
    seed: int
    inversion: Inversion
    drawn: int = Field(ge=0, description="Images drawn in all.")
    kept: int = Field(ge=1)
    rejected: dict[str, int] = Field(description="Why the others were rejected.")
