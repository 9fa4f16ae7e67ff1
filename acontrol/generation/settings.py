"""Settings of generation; all are recorded with the images."""

from pathlib import Path
from typing import Any, Literal

from pydantic import Field, field_validator

from acontrol.config import Precision, Settings
from acontrol.config.sampling import Sampling as Sampling
from acontrol.config.training import Attention
from acontrol.data.settings import SPLIT_FILE
from acontrol.masks.settings import SourceName

MethodName = Literal[
    "acontrol",
    "copy-paste",
    "perlin",
    "cutpaste",
    "procedural",
    "reference-only",
    "ip-adapter",
    "lora",
    "anodiff",
]
WITH_ADAPTER = ("acontrol", "ip-adapter")  # Methods that --model draws.
FITTED = ("lora", "anodiff")  # Methods that --fitted draws.
MOST = 1_000_000  # Images of one request.


class Gate(Settings):
    """What happens to images that do not show their defect."""

    gate: Literal["reject", "keep", "off"] = Field(
        "reject",
        description="What does not pass is drawn again with the next seed; after --tries, the "
        "best of them goes to rejected/, or is kept with its scores. off: score only.",
    )
    tries: int = Field(3, ge=1, le=100, description="Maximum number of attempts per image.")
    min_fill: float = Field(
        0.2, ge=0, le=1, description="Minimum share of the mask that must have changed."
    )
    min_background: float = Field(
        20.0,
        ge=0,
        description="Minimum PSNR of the background in dB, where it is not the normal image's "
        "own (--no-composite).",
    )
    max_distance: float | None = Field(
        None,
        ge=0,
        le=2,
        description="Maximum distance, in the vision tower's features, of a drawn defect to "
        "the nearest training defect of its kind; by default the largest between those.",
    )

    @field_validator("gate", mode="before")
    @classmethod
    def _earlier_name(cls, value: object) -> object:
        return "reject" if value == "drop" else value  # Its name before 0.2.


class OutputSettings(Settings):
    """How generated images are composited and written."""

    composite: bool = Field(
        True,
        description="Keep the normal image's own pixels outside the mask; without, they went "
        "through the autoencoder, which leaks.",
    )
    blend: Literal["feather", "poisson", "hard"] = Field(
        "feather",
        description="The mask's edge. feather: the drawing fades in over two of the model's "
        "pixels inside it, a thin part faster; poisson: it takes on its surroundings' colour; "
        "hard: a clean cut.",
    )
    match_colour: Literal["auto", "off"] = Field(
        "auto",
        description="auto: a drawing is no more colourful than the normal image or the "
        "training defects of its kind, and grey where the normal image is.",
    )
    refine_mask: bool = Field(
        False,
        description="Also write the mask of what really changed, in ground_truth_refined.",
    )
    labels: Literal["requested", "changed"] = Field(
        "requested",
        description="What ground_truth holds: the mask that was to be filled, or what really "
        "changed; the other one is then in ground_truth_requested.",
    )


class Selection(Settings):
    """Model, data and output."""

    model: str | None = Field(
        None,
        description="A run's or adapter's folder or its URI, tiny for the one that ships with "
        "acontrol, or models:/NAME@ALIAS of the server in MLFLOW_TRACKING_URI. Other methods "
        "draw without it; with it, they plan and score as it does.",
    )
    method: MethodName = Field(
        "acontrol",
        description="What draws (docs/rivals.md). acontrol: the adapter; copy-paste: the "
        "reference's defect, cut out and blended; perlin and cutpaste: controls that know no "
        "defect; procedural: painted ones; reference-only: the base, attending to the "
        "reference; ip-adapter: an adapter of the image alone; lora: the base with a LoRA; "
        "anodiff: AnomalyDiffusion's embeddings on the base.",
    )
    fitted: Path | None = Field(
        None, description="Of --method lora and anodiff: the folder that acontrol fit wrote."
    )
    data: Path = Field(description="Folder of the defects, in MVTec AD's layout.")
    out: Path = Field(description="Folder to create.")
    captions: Path | None = Field(
        None, description="JSON file of captions, as acontrol shard was given."
    )
    normal: Path | None = Field(
        None, description="Folder of the good images, if they are not in --data."
    )
    category: str | None = Field(None, description="Only this category; by default all.")
    defect: str = Field("all", description="Only this defect type, or 'all'.")
    count: int = Field(4, ge=1, le=MOST, description="Images of each category and defect.")
    requests: Path | None = Field(
        None, description="What to draw, one JSON object a line (docs/generation.md), instead."
    )
    replay: Path | None = Field(
        None, description="Draw again what an earlier job drew: its folder."
    )
    batch: int | None = Field(None, ge=0, description="Of --replay, only this batch.")
    split: Literal["train", "test", "all"] | None = Field(
        None, description="Part of --data for references and masks; by default as trained."
    )
    split_file: Path | None = Field(None, description=SPLIT_FILE)
    reference_category: str | None = Field(
        None, description="Take references from this category; by default each its own."
    )
    masks: SourceName = Field(
        "real",
        description="Where defects go. real: training masks of that defect, moved, turned, "
        "scaled and bent; same: these as they are; learned: what acontrol masks drew; perlin: "
        "blobs, as a control; file: yours.",
    )
    masks_path: Path | None = Field(
        None,
        description="Masks for --masks file: the images in DIR/DEFECT, or in DIR for all; for "
        "--masks learned what acontrol masks wrote.",
    )
    seed: int = Field(0, ge=0, lt=2**63, description="Random seed of the images.")
    batch_size: int = Field(4, ge=1, description="Images drawn together.")
    num_workers: int = Field(
        1, ge=1, description="Processes that draw, each with a GPU where there are; over Ray."
    )
    precision: Precision = Field(
        "float32", description="Of the networks; bfloat16 halves memory, and is faster on GPUs."
    )
    compile: Literal["off", "blocks", "whole"] = Field(
        "off",
        description="torch.compile of the adapter's U-Net, for thousands of images on a GPU: "
        "its blocks, or the whole of it, which takes longer to compile. Full batches that "
        "follow their text run compiled; last bits differ.",
    )
    attention: Attention = Field(
        "auto",
        description="Kernel of attention that is tried first; what it cannot do is left to the "
        "others. auto: torch's order; math: its plain operations, slower.",
    )
    format: Literal["mvtec", "shards", "coco", "yolo"] = Field(
        "mvtec",
        description="Also write the set as WebDataset shards, in DIR/shards, as COCO instance "
        "segmentation, in DIR/coco, or for YOLO segmentation, in DIR/yolo.",
    )
    base_path: str | None = Field(
        None,
        description="Where the base is now, if it moved; without --model the base itself, by "
        "default the built-in one.",
    )


# Sec. 4.1, as far as it says; what it does not mention is off.
PAPER: dict[str, Any] = {
    **{"count": 1000, "steps": 30, "guidance_scale": 7.5, "crop": 0.0},
    **{"gate": "off", "blend": "hard", "match_colour": "off"},
}


# --help lists the last base's options first.
class GenerationConfig(OutputSettings, Gate, Sampling, Selection):
    """Every setting of launch.generate."""

    paper: bool = Field(
        False,
        description="As in Sec. 4.1: --count 1000 --steps 30 --guidance-scale 7.5 --crop 0 "
        "--gate off --blend hard --match-colour off, but for what is given besides.",
    )

    @property
    def resolved(self) -> "GenerationConfig":
        """With the paper's values, if asked for, where the user gave none."""
        paper = PAPER.items() if self.paper else ()
        own = self.model_fields_set
        return self.model_copy(update={name: v for name, v in paper if name not in own})
