"""A training run, whole, and what an adapter remembers of it."""

from typing import Literal

from pydantic import Field, model_validator

from acontrol.config.inputs import BaseConfig, DataConfig
from acontrol.config.method import AseaConfig, CsmConfig, DropoutConfig, SgaConfig
from acontrol.config.settings import Settings
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


class RunConfig(Settings):
    """A training run, whole."""

    output: str | None = Field(None, description="The run's folder; the same one resumes.")
    init: str | None = Field(
        None,
        description="What training starts from: an adapter's folder, or an IP-Adapter file for "
        "this U-Net's architecture (.safetensors or .bin).",
    )
    seed: int = Field(0, ge=0, lt=2**63, description="Everything random follows from it.")
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
    def micro_batch_size(self) -> int:
        """Samples a worker sees in one pass."""
        return self.optim.batch_size // (self.cluster.num_workers * self.optim.accumulation)


class AdapterCard(Settings):
    """What an adapter's weights mean: the base they fit and how C' is made.

    It travels inside the adapter's config.json, and is checked on the way back in.
    """

    acontrol_version: str
    base: BaseConfig
    base_digest: str = Field(description="sha256 over the base models' files.")
    csm: CsmConfig
    asea: AseaConfig
    sga: SgaConfig
    inpainting: bool = Field(
        False, description="Whether the base's U-Net sees what is around the mask."
    )
    resolution: int = Field(ge=16, multiple_of=8)
    reference_view: Literal["image", "region"]
    split: Literal["train", "test", "all"] = Field(
        description="Which part of each defect's images was trained on."
    )
    data_digest: str = Field(description="sha256 of the shards' index.")
    seed: int
    steps: int = Field(ge=0, description="Optimizer steps behind the weights.")
