"""A training run, the data and base models it starts from, and the card of its adapter."""

import re
from collections.abc import Mapping
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, Field, model_validator

from acontrol.config.method import AseaConfig, CsmConfig, DropoutConfig, SgaConfig
from acontrol.config.settings import Settings, unit_interval
from acontrol.config.training import (
    CheckpointConfig,
    ClusterConfig,
    OptimConfig,
    RuntimeConfig,
    SamplesConfig,
    TrackingConfig,
    ValidationConfig,
    ZeroConfig,
)

REGION_SIDE = 4.0  # Of data.target_view region, in longest sides of the defect.
THIRD = "third"  # The record of the split without a split file.
BUILT_IN = "tiny"  # base.path of the base that ships with acontrol.
SCHEMES = (
    *("abfs", "abfss", "adl", "az", "file", "ftp", "gcs", "gs", "hdfs", "hf", "http", "https"),
    *("local", "memory", "oss", "s3", "s3a", "sftp", "smb", "ssh", "webhdfs"),
)


def check_scheme(path: str) -> str:
    """Refuse anything but a path or a URI of plain storage, such as ``pipe:COMMAND``.

    Raises:
        ValueError: For another scheme, or a chain of them.
    """
    scheme = re.match(r"([A-Za-z][A-Za-z0-9+.-]+):", path)
    if "::" in path or (scheme and scheme[1].lower() not in SCHEMES):
        raise ValueError(
            "need a folder or a storage URI (file, s3, gs, abfs, https, hf and the like)"
        )
    return path


class DataConfig(Settings):
    """The training data, and how a reference is paired with its target."""

    shards: Annotated[str, AfterValidator(check_scheme)] | None = Field(
        None, description="Folder or URI that acontrol shard wrote (it holds index.json)."
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
    target_view: Literal["image", "region"] = Field(
        "image",
        description="What training draws, and so acontrol generate: the whole image, or "
        "a square four times as large as the defect, cut from original pixels (shards of "
        "acontrol shard --resolution None).",
    )
    target_px: int | None = Field(
        None,
        ge=16,
        description="Largest side of that square, in original pixels: a defect longer than "
        "three quarters of it is drawn in several along it. By default any side.",
    )
    features: str | None = Field(
        None,
        description="Folder that acontrol precompute wrote. Features of these settings, "
        "data and weights are read from it; others are computed online.",
    )
    block_shards: int = Field(
        8, ge=1, description="Samples are shuffled within blocks of this many shards."
    )
    loader_workers: int = Field(0, ge=0, description="Loader processes per rank; 0: inline.")
    cache_dir: str | None = Field(
        None, description="Where remote shards are kept; by default a temporary folder."
    )
    damaged: Literal["error", "skip"] = Field(
        "error",
        description="What a run does about damaged shards: stop and name the sample, or read "
        "the whole set once and train without the damaged samples, the same on every rank.",
    )
    max_damaged: float = unit_interval(
        0.01, "Maximum share of samples that data.damaged skip may leave out."
    )

    @model_validator(mode="after")
    def _squares_have_a_side(self) -> Self:
        if self.target_px is not None and self.target_view != "region":
            raise ValueError("target_px is of the squares of target_view region: give both")
        return self

    @property
    def target_crop(self) -> float:
        """Side of what is drawn in longest sides of the defect; 0 is the whole image."""
        return REGION_SIDE if self.target_view == "region" else 0.0


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
        description="Variant of base.path's weight files, such as 'fp16' for "
        "unet/diffusion_pytorch_model.fp16.safetensors; by default none.",
    )
    vlm_path: str | None = Field(
        None,
        description="BLIP-2 (image-text matching): a folder or a hub id; by default the "
        "'vlm' folder inside base.path.",
    )
    vlm_revision: str | None = Field(None, description="Commit of the hub id in base.vlm_path.")


class OnBase(Settings):
    """Settings that commands share which learn something on a base, besides adapters."""

    base: str = Field(
        BUILT_IN, description="The frozen base: a folder or a hub id; 'tiny' is the built-in."
    )
    base_revision: str | None = Field(None, description="Commit of the hub id in --base.")
    vlm_path: str | None = Field(
        None, description="base.vlm_path, as in training: it is part of the base's checksum."
    )
    vlm_revision: str | None = Field(None, description="base.vlm_revision, as in training.")
    save_every: int = Field(100, ge=1, description="Steps between saved states.")
    tracking_uri: str | None = Field(
        None,
        description="MLflow server or database; by default MLFLOW_TRACKING_URI, else "
        "runs/mlflow.db.",
    )
    experiment: str = Field("acontrol", min_length=1, description="MLflow experiment.")

    @property
    def base_config(self) -> BaseConfig:
        """The base as every other command names it."""
        return BaseConfig(
            path=self.base,
            revision=self.base_revision,
            vlm_path=self.vlm_path,
            vlm_revision=self.vlm_revision,
        )


class RunConfig(Settings):
    """All settings of a training run."""

    output: str | None = Field(None, description="The run's folder; the same one resumes.")
    init: str | None = Field(
        None,
        description="Initial weights: an adapter's folder, or an IP-Adapter file for "
        "this U-Net's architecture (.safetensors or .bin).",
    )
    seed: int = Field(0, ge=0, lt=2**63, description="Random seed of everything.")
    profile: int = Field(
        0, ge=0, description="Steps of rank 0 to write a PyTorch trace of, after two others."
    )
    data: DataConfig = DataConfig()
    base: BaseConfig = BaseConfig()
    csm: CsmConfig = CsmConfig()
    asea: AseaConfig = AseaConfig()
    sga: SgaConfig = SgaConfig()
    dropout: DropoutConfig = DropoutConfig()
    optim: OptimConfig = OptimConfig()
    zero: ZeroConfig = ZeroConfig()
    runtime: RuntimeConfig = RuntimeConfig()
    cluster: ClusterConfig = ClusterConfig()
    checkpoint: CheckpointConfig = CheckpointConfig()
    samples: SamplesConfig = SamplesConfig()
    validation: ValidationConfig = ValidationConfig()
    tracking: TrackingConfig = TrackingConfig()

    @model_validator(mode="after")
    def _precision_has_master_weights(self) -> "RunConfig":
        if self.runtime.precision != "float32" and self.zero.stage == 0:
            raise ValueError(
                f"runtime.precision {self.runtime.precision} needs zero.stage 1, 2 or 3, which "
                "keep float32 master weights that can be saved and restored"
            )
        return self

    @model_validator(mode="after")
    def _batch_divides(self) -> "RunConfig":
        if self.optim.batch_size % (self.cluster.num_workers * self.optim.accumulation):
            raise ValueError(
                f"optim.batch_size {self.optim.batch_size} does not divide among "
                f"cluster.num_workers {self.cluster.num_workers} times "
                f"optim.accumulation {self.optim.accumulation}"
            )
        return self

    @model_validator(mode="after")
    def _skipped_samples_have_no_gradient(self) -> "RunConfig":
        if self.runtime.skip_dropped and self.csm.mode != "queries":
            raise ValueError(
                "runtime.skip_dropped needs csm.mode queries: in mode pooled a sample whose C' "
                "is dropped trains the pooling"
            )
        return self

    @property
    def run(self) -> "RunConfig":
        """The run's settings, without those that a command adds in a subclass."""
        return RunConfig.model_validate(self.model_dump(include=set(RunConfig.model_fields)))

    def with_values(self, values: Mapping[str, Any]) -> "RunConfig":
        """The run with some settings replaced, by dotted key.

        Raises:
            ValidationError: If a value is refused, or a key unknown.
        """
        settings = self.model_dump()
        for key, value in values.items():
            *groups, name = key.split(".")
            group = settings
            for part in groups:
                group = group[part]
            group[name] = value
        return RunConfig.model_validate(settings)

    @property
    def micro_batch_size(self) -> int:
        """Samples a worker sees in one pass."""
        return self.optim.batch_size // (self.cluster.num_workers * self.optim.accumulation)


class TrainedOn(Settings):
    """Images that weights come from, as their card records it."""

    categories: tuple[str, ...] | None = Field(None, description="None: unknown.")
    split: Literal["train", "test", "all"]
    split_digest: str = Field(
        THIRD, description="Which images are 'train': 'third', or a split file's checksum."
    )

    def shares(self, data: "TrainedOn") -> bool:
        """Whether the two may have a category in common."""
        return None in (self.categories, data.categories) or bool(
            {*(self.categories or ())} & {*(data.categories or ())}
        )


class AdapterCard(Settings):
    """The base that an adapter's weights fit, and how C' is computed.

    Stored in the adapter's config.json and validated on loading.
    """

    format: Literal["acontrol-adapter-1"] = "acontrol-adapter-1"  # None before 0.2.
    acontrol_version: str
    base: BaseConfig
    base_digest: str = Field(description="sha256 over the base models' files.")
    csm: CsmConfig
    asea: AseaConfig
    sga: SgaConfig
    inpainting: bool = Field(
        False, description="Whether the base's U-Net has nine input channels."
    )
    resolution: int = Field(ge=16, multiple_of=8)
    reference_view: Literal["image", "region"]
    target_crop: float | None = Field(
        None,
        ge=0,
        description="Side of the training images in longest sides of the defect; 0: whole "
        "images; null: not recorded, by versions that knew nothing else.",
    )
    target_px: int | None = Field(
        None, ge=16, description="Largest side of those squares in original pixels."
    )
    split: Literal["train", "test", "all"] = Field(
        description="Which part of each defect's images was trained on."
    )
    data_digest: str = Field(description="sha256 of the shards' index.")
    seed: int
    steps: int = Field(ge=0, description="Optimizer steps behind the weights.")
    trained_on: tuple[TrainedOn, ...] | None = Field(
        None, description="Images behind the base and these weights; None: not recorded."
    )

    @property
    def seen(self) -> tuple[TrainedOn, ...]:
        """What the weights come from; a card without a record is one of the first third."""
        return (TrainedOn(split=self.split),) if self.trained_on is None else self.trained_on
