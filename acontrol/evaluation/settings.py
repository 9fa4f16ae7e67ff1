"""Every setting of launch.evaluate."""

from pathlib import Path
from typing import Literal

from pydantic import Field

from acontrol.config import RunConfig, Settings, TrackingConfig

# Of an ablation: the base alone (gamma 0), C' of the image alone, image and text, and ASEA.
ROWS = ("nothing", "sga", "csm", "t1", "t2", "t3", "t4", "t5")


class QualityConfig(Settings):
    """Settings of launch.evaluate quality."""

    real: Path = Field(description="Folder of real images, in MVTec AD's layout.")
    synthetic: tuple[str, ...] = Field(
        description="Folders of generated pairs in the same layout: DIR or NAME=DIR."
    )
    out: Path = Field(description="Folder for results.")
    category: tuple[str, ...] = Field((), description="Only these categories; by default all.")
    features: tuple[Literal["inception", "lpips-vgg", "vlm"], ...] = Field(
        ("vlm",), min_length=1, description="Networks that look; columns each, never mixed."
    )
    model: str | None = Field(
        None, description="Run or adapter whose vision tower vlm is; by default the built-in's."
    )
    weights: Path = Field(
        Path("weights"),
        description="Folder of inception.safetensors and lpips-vgg.safetensors.",
    )
    count: int = Field(1000, ge=1, description="Images of each defect, at most.")
    tracking: TrackingConfig = TrackingConfig()


class ComparisonConfig(Settings):
    """Settings that localization and classification share."""

    real: Path = Field(description="Folder of real images, in MVTec AD's layout.")
    out: Path | None = Field(
        None,
        description="Folder for results, needed without --dry-run; the same one continues.",
    )
    synthetic: tuple[str, ...] = Field(
        (), description="Folders of generated pairs in the same layout: DIR or NAME=DIR."
    )
    sources: str | None = Field(
        None,
        description="What to train on, divided by commas, and nothing else; by default "
        "everything, with NAME and real+NAME for each synthetic folder.",
    )
    category: tuple[str, ...] = Field((), description="Only these categories; by default all.")
    pairs: int | None = Field(
        None,
        ge=1,
        description="Synthetic pairs of each defect, at most; by default the budget's.",
    )
    seeds: int = Field(3, ge=1, description="Trainings of each category and source.")
    num_workers: int | None = Field(
        None,
        ge=1,
        description="Trainings at a time; by default as many as the cluster has room for.",
    )
    new_pieces: bool = Field(
        False,
        description="Test on pieces alone that are not trained on: test images that look like "
        "another photograph of one are left out.",
    )
    tracking: TrackingConfig = TrackingConfig()
    dry_run: bool = Field(False, description="Only say what would be trained, and how long.")


class LocalizationConfig(ComparisonConfig):
    """Settings of launch.evaluate localization."""

    protocol: Literal["paper", "strict", "both"] = Field(
        "both",
        description="paper: as published, with the best epoch on the test set. strict: the "
        "last epoch, exact F1, binary masks.",
    )
    budget: Literal["paper", "small", "smallest"] = Field(
        "paper",
        description="How much to train, the same for every source. paper: as published, hours "
        "on a GPU. small: 128 px, minutes. smallest: to try the command out.",
    )


class ClassificationConfig(ComparisonConfig):
    """Settings of launch.evaluate classification."""

    network: Path | None = Field(
        None,
        description="Folder of a ResNet as transformers saves it, to begin with (the published "
        "scripts take ImageNet's ResNet-34); random weights without.",
    )
    budget: Literal["paper", "small", "smallest"] = Field(
        "paper",
        description="How much to train, the same for every source. paper: 256 px, 7,500 steps. "
        "small: 128 px, 400 steps. smallest: to try the command out.",
    )


class AblationConfig(RunConfig):
    """An ablation: what its rows' trainings have in common, and how they are measured."""

    real: Path | None = Field(None, description="Folder of real images, in MVTec AD's layout.")
    out: Path | None = Field(None, description="Folder for results; the same one continues.")
    rows: str = Field(",".join(ROWS), description="Rows to compare, divided by commas.")
    budget: Literal["paper", "small", "smallest"] = Field(
        "paper", description="How much to train detectors."
    )
    count: int | None = Field(
        None, ge=1, description="Images to draw of each defect; by default the budget's pairs."
    )
    seeds: int = Field(3, ge=1, description="Detectors of each category and row.")
    features: tuple[Literal["inception", "lpips-vgg", "vlm"], ...] = Field(
        ("vlm",), min_length=1, description="Networks that look, as launch.evaluate quality."
    )
    weights: Path = Field(Path("weights"), description="Folder of their weights.")
    dry_run: bool = Field(False, description="Only say what would be trained and drawn.")
