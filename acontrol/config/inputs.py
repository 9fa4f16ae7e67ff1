"""What a run starts from: data and base models."""

from typing import Literal

from pydantic import Field

from acontrol.config.settings import Settings

BUILT_IN = "tiny"  # base.path of the base that acontrol makes itself.


class DataConfig(Settings):
    """What is trained on, and how a reference is paired with its target."""

    shards: str | None = Field(
        None, description="Folder or URI that launch.shard wrote (it holds index.json)."
    )
    resolution: int = Field(
        512, ge=16, multiple_of=8, description="Side of the square training image, in pixels."
    )
    reference: Literal["self", "same_defect", "cross_category"] = Field(
        "self",
        description="Whose defect guides a training image: its own (the paper), another image "
        "of the same category and defect, or the same defect on another category.",
    )
    reference_view: Literal["image", "region"] = Field(
        "image",
        description="What the reference shows: the whole image, or the magnified region "
        "around its mask.",
    )
    features: str | None = Field(
        None,
        description="Folder of launch.precompute. Training reads from it what it holds for "
        "these settings, data and weights, and computes online otherwise.",
    )
    block_shards: int = Field(
        8, ge=1, description="Samples are shuffled within blocks of this many shards."
    )
    loader_workers: int = Field(0, ge=0, description="Loader processes a rank; 0 loads inline.")
    cache_dir: str | None = Field(
        None, description="Where remote shards are kept; by default a temporary folder."
    )


class BaseConfig(Settings):
    """The frozen base models, each a folder or a hub id with a pinned revision."""

    path: str = Field(
        BUILT_IN,
        description="Stable Diffusion 1.5 in diffusers' layout: a folder or a hub id; "
        "'tiny' is the small built-in base.",
    )
    revision: str | None = Field(None, description="Commit of the hub id in base.path.")
    variant: str | None = Field(
        None,
        min_length=1,
        description="Which of base.path's weight files to read, as 'fp16' for "
        "unet/diffusion_pytorch_model.fp16.safetensors; by default those without one.",
    )
    vlm_path: str | None = Field(
        None,
        description="BLIP-2 (image-text matching): a folder or a hub id; by default the "
        "'vlm' folder inside base.path.",
    )
    vlm_revision: str | None = Field(None, description="Commit of the hub id in base.vlm_path.")
