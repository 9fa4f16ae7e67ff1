"""What a run starts from: data and base models."""

import re
from typing import Annotated, Literal

from pydantic import AfterValidator, Field

from acontrol.config.settings import Settings, unit_interval

BUILT_IN = "tiny"  # base.path of the base that acontrol makes itself.
SCHEMES = (
    *("abfs", "abfss", "adl", "az", "file", "ftp", "gcs", "gs", "hdfs", "hf", "http", "https"),
    *("local", "memory", "oss", "s3", "s3a", "sftp", "smb", "ssh", "webhdfs"),
)


def check_scheme(place: str) -> str:
    """Refuse what is neither a path nor a URI of plain storage, as ``pipe:COMMAND``.

    Raises:
        ValueError: For another scheme, or a chain of them.
    """
    scheme = re.match(r"([A-Za-z][A-Za-z0-9+.-]+):", place)
    if "::" in place or (scheme and scheme[1].lower() not in SCHEMES):
        known = "file, s3, gs, abfs, https, hf and the like"
        raise ValueError(f"need a folder or a URI of storage ({known})")
    return place


class DataConfig(Settings):
    """What is trained on, and how a reference is paired with its target."""

    shards: Annotated[str, AfterValidator(check_scheme)] | None = Field(
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
    damaged: Literal["error", "skip"] = Field(
        "error",
        description="What a run does about damaged shards: stop and name the place, or read "
        "the whole set once, then go on without the damaged samples, the same on every rank.",
    )
    max_damaged: float = unit_interval(
        0.01, "Largest share of the samples that data.damaged skip may leave out."
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
