"""Every setting of a run, as frozen pydantic models.

One definition gives the command line (dotted names), the JSON that checkpoints and adapters
carry, and the checks on the way back in. Validation never changes a value; what follows from
other settings is a property or a function.
"""

import hashlib
import json
import math
import re
from collections.abc import Iterable
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator


class Settings(BaseModel):
    """A frozen group of settings that refuses unknown names."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class UserError(Exception):
    """Something that the user can put right: one line with what, where and what to do.

    Command lines print the message alone and exit with status 2.
    """


def unit_interval(default: float, description: str) -> float:
    """A field for a probability or a share, in [0, 1]."""
    return Field(default, ge=0, le=1, description=description)


LossWeighting = Literal["none", "late"]
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
        "'tiny' is the small built-in base, with random weights for now.",
    )
    revision: str | None = Field(None, description="Commit of the hub id in base.path.")
    vlm_path: str | None = Field(
        None,
        description="BLIP-2 (image-text matching): a folder or a hub id; by default the "
        "'vlm' folder inside base.path.",
    )
    vlm_revision: str | None = Field(None, description="Commit of the hub id in base.vlm_path.")


class CsmConfig(Settings):
    """Cross-modal semantic modeling (Sec. 3.2.1)."""

    text: bool = Field(True, description="Read the reference text too; off: image-only C'.")
    mode: Literal["queries", "pooled"] = Field(
        "queries",
        description="C' as the sequence of query outputs (the paper), or pooled into four "
        "projected tokens (the authors' code).",
    )
    template: str = Field(
        "This is an image with", description="Prefix of the reference text T_a (Sec. 3.2.2)."
    )


class AseaConfig(Settings):
    """Anomaly-semantic enhanced attention (Sec. 3.2.2, Eq. 2-4)."""

    steps: int = Field(3, ge=0, le=50, description="T_g, gradient steps on e_g; 0 is off.")
    step_size: float = Field(
        0.05,
        gt=0,
        description="Alpha. With rule 'normalized' the length of a step as a share of |e_v|; "
        "with 'gd' the factor of Eq. 4, which must be large (1e3 on a small VLM); with 'adam' "
        "its rate (0.1 in the authors' code).",
    )
    rule: Literal["normalized", "gd", "adam"] = Field(
        "normalized",
        description="Step rule: Eq. 4 as printed is 'gd', the authors' code 'adam'.",
    )
    map: Literal["rollout", "query_mean"] = Field(
        "rollout",
        description="How BLIP-2 yields the text-to-image map A of Eq. 2: text to queries to "
        "patches, or the mean over queries (the authors' code).",
    )
    solver: Literal["all", "first"] = Field(
        "all",
        description="Whose attention the energy takes: every cross-attention layer's (the "
        "paper), or the first one's alone, which costs next to nothing.",
    )
    bound: float | None = Field(
        None,
        gt=0,
        description="Most that |e_g| may reach, as a share of |e_v|; None: no bound.",
    )
    stop_energy: float | None = Field(
        None, gt=0, le=1, description="A sample whose E is below this stops; None: none does."
    )

    @model_validator(mode="after")
    def _first_has_a_closed_form(self) -> "AseaConfig":
        if self.solver == "first" and self.rule == "adam":
            raise ValueError("solver 'first' steps in closed form, which rule 'adam' has not")
        return self


class SgaConfig(Settings):
    """The semantic guided adapter (Sec. 3.2.3, Eq. 5)."""

    scale: float = Field(1.0, ge=0, le=10, description="Gamma; 0 is the base model.")


class DropoutConfig(Settings):
    """Condition dropout from one uniform draw a sample, for classifier-free guidance."""

    text: float = unit_interval(0.05, "Share of samples that lose the target text alone.")
    semantic: float = unit_interval(0.05, "Share of samples that lose C' alone.")
    both: float = unit_interval(0.05, "Share of samples that lose both.")

    @model_validator(mode="after")
    def _leaves_conditioned_samples(self) -> "DropoutConfig":
        if self.text + self.semantic + self.both >= 1:
            raise ValueError("text + semantic + both must stay under 1")
        return self


class OptimConfig(Settings):
    """AdamW on the adapter."""

    steps: int = Field(30_000, ge=1, description="Optimizer steps in all.")
    batch_size: int = Field(
        16, ge=1, description="Samples an optimizer step, over all workers together."
    )
    accumulation: int = Field(
        1,
        ge=1,
        description="Passes that a step's batch is split into, to save memory.",
    )
    learning_rate: float = Field(1e-4, gt=0, description="AdamW's rate, after warm-up.")
    schedule: Literal["constant", "cosine"] = Field(
        "constant",
        description="The rate after warm-up; cosine falls as PyTorch's CosineAnnealingLR: "
        "small at the last step, zero only after it, so that no step is taken for nothing.",
    )
    warmup_steps: int = Field(0, ge=0, description="Steps in which the rate rises from zero.")
    loss_weighting: LossWeighting = Field(
        "none",
        description="Of timesteps: none (Eq. 6), or 'late', more weight on large noise, which "
        "small base models need.",
    )
    weight_decay: float = Field(0.01, ge=0, description="AdamW's decoupled weight decay.")
    max_grad_norm: float | None = Field(
        None, gt=0, description="Gradients are scaled down to this norm; None: left alone."
    )
    ema_decay: float | None = Field(
        None,
        gt=0,
        lt=1,
        description="Export a moving average of the weights with this decay a step; None: the "
        "weights themselves. Costs a gather a step under ZeRO.",
    )

    @model_validator(mode="after")
    def _warmup_ends(self) -> "OptimConfig":
        if self.warmup_steps >= self.steps:
            raise ValueError(
                f"warmup_steps {self.warmup_steps} must stay under steps {self.steps}"
            )
        return self

    def rate(self, step: int) -> float:
        """The learning rate of optimizer step ``step``, from 1."""
        if step <= self.warmup_steps:
            return self.learning_rate * step / self.warmup_steps
        if self.schedule == "constant":
            return self.learning_rate
        done = (step - 1 - self.warmup_steps) / (self.steps - self.warmup_steps)
        return self.learning_rate * (1 + math.cos(math.pi * done)) / 2


class ZeroConfig(Settings):
    """DeepSpeed ZeRO around the adapter."""

    stage: Literal[0, 1, 2, 3] = Field(
        1,
        description="What is split among the workers: nothing, AdamW's state, gradients too, "
        "weights too.",
    )
    offload_optimizer: bool = Field(
        False, description="Keep AdamW's state in the CPU's memory (stages 1 to 3)."
    )

    @model_validator(mode="after")
    def _offload_needs_a_stage(self) -> "ZeroConfig":
        if self.offload_optimizer and self.stage == 0:
            raise ValueError("offload_optimizer needs stage 1, 2 or 3")
        return self


class RuntimeConfig(Settings):
    """How the numbers are computed."""

    precision: Literal["float32", "bfloat16", "float16"] = Field(
        "float32",
        description="Of the frozen networks and the adapter's passes; its master weights and "
        "the Q-Former stay in float32. float16 is for cards without bfloat16.",
    )
    skip_dropped: bool = Field(
        False,
        description="Leave out samples whose C' is dropped, whose gradient is zero (not in "
        "csm.mode pooled). The loss is then logged over the others, as conditioned_loss.",
    )


class ClusterConfig(Settings):
    """Ray Train's workers."""

    num_workers: int = Field(1, ge=1, description="Training processes.")
    use_gpu: bool | None = Field(
        None, description="One GPU a worker; by default where the cluster has any."
    )
    cpus_per_worker: float = Field(1, gt=0, description="CPUs that Ray reserves for a worker.")
    resources: dict[str, Annotated[float, Field(gt=0)]] = Field(
        {},
        description="What else Ray reserves for a worker: bytes of memory and your cluster's "
        "custom resources, as 'memory 8e9 fast_disk 1'.",
    )
    accelerator_type: str | None = Field(
        None, description="Kind of GPU that workers want, in Ray's words, as 'H100'."
    )
    placement: Literal["PACK", "SPREAD", "STRICT_PACK", "STRICT_SPREAD"] = Field(
        "PACK", description="Whether Ray puts workers on few nodes or on many."
    )
    max_failures: int = Field(
        0, ge=-1, description="Restarts after a failed worker before giving up; -1: no limit."
    )

    @model_validator(mode="after")
    def _resources_have_one_place(self) -> "ClusterConfig":
        if taken := {"CPU", "GPU"} & self.resources.keys():
            raise ValueError(
                f"resources: {' and '.join(sorted(taken))} have settings of their own, "
                "cpus_per_worker and use_gpu"
            )
        return self


class CheckpointConfig(Settings):
    """Bundles from which the same command continues."""

    every: int = Field(500, ge=1, description="Steps between bundles; one more at the end.")
    keep: int = Field(2, ge=1, description="Good bundles that are kept.")


class SamplesConfig(Settings):
    """The grid of sample images that goes to MLflow."""

    every: int = Field(500, ge=0, description="Steps between grids; 0: only at the end.")
    count: int = Field(4, ge=1, le=64, description="Rows of the grid.")
    steps: int = Field(30, ge=1, description="DDIM steps a sample.")
    guidance_scale: float = Field(7.5, ge=1, description="Classifier-free guidance.")


class ValidationConfig(Settings):
    """The loss on samples that are held out of training, with fixed noise and timesteps."""

    every: int = Field(
        0, ge=0, description="Steps between validations; 0: hold nothing out, validate never."
    )
    share: float = Field(0.1, gt=0, lt=1, description="Share of the samples that is held out.")


class TrackingConfig(Settings):
    """MLflow."""

    uri: str | None = Field(
        None,
        description="Tracking server or database; by default MLFLOW_TRACKING_URI, else an "
        "SQLite file in the run's folder.",
    )
    experiment: str = Field("acontrol", min_length=1, description="Experiment's name.")
    run_name: str | None = Field(None, description="Run's name; by default the output's.")
    system_metrics: bool = Field(
        False, description="Log processor, memory, disk and GPU use of every node."
    )


class RunConfig(Settings):
    """A training run, whole."""

    output: str | None = Field(None, description="The run's folder; the same one resumes.")
    init: str | None = Field(
        None, description="Adapter folder whose weights training starts from."
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
    resolution: int = Field(ge=16, multiple_of=8)
    reference_view: Literal["image", "region"]
    split: Literal["train", "test", "all"] = Field(
        description="Which part of each defect's images was trained on."
    )
    data_digest: str = Field(description="sha256 of the shards' index.")
    seed: int
    steps: int = Field(ge=0, description="Optimizer steps behind the weights.")


def explain(error: ValidationError, prefix: Iterable[str] = ()) -> str:
    """Turn pydantic's report into one line: which setting, what is wrong, what came."""
    parts = []
    for item in error.errors():
        where = ".".join([*prefix, *(str(part) for part in item["loc"])])
        message = re.sub(r"^(Value error|Assertion failed), ", "", item["msg"])
        came = "" if isinstance(item["input"], dict | BaseModel) else f", got {item['input']!r}"
        parts.append(f"{where}: {message}{came}" if where else f"{message}{came}")
    return "; ".join(parts)


def derive_seed(*parts: str | int) -> int:
    """A seed in [0, 2**63) that depends on every part and on nothing else.

    Draws are keyed by what they are for ("noise", position) instead of by how many came
    before, so neither the number of workers nor a restart changes them.
    """
    text = json.dumps(parts)  # Unambiguous: 1 and "1" differ, and so do ("ab",) and ("a", "b").
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest()) >> 1
