"""Training: optimizer, ZeRO, precision, workers, checkpoints, grids, tracking."""

import math
from typing import Annotated, Literal

from pydantic import Field, model_validator

from acontrol.config.sampling import MOST_STEPS
from acontrol.config.settings import Settings

LossWeighting = Literal["none", "late"]
Precision = Literal["float32", "bfloat16", "float16"]


class OptimConfig(Settings):
    """AdamW on the adapter."""

    steps: int = Field(30_000, ge=1, description="Number of optimizer steps.")
    batch_size: int = Field(
        16, ge=1, description="Samples per optimizer step, over all workers."
    )
    accumulation: int = Field(
        1,
        ge=1,
        description="Passes per optimizer step, to save memory.",
    )
    learning_rate: float = Field(1e-4, gt=0, description="AdamW's learning rate after warm-up.")
    schedule: Literal["constant", "cosine"] = Field(
        "constant",
        description="The learning rate after warm-up; cosine falls as PyTorch's "
        "CosineAnnealingLR: small at the last step, zero only after it.",
    )
    warmup_steps: int = Field(0, ge=0, description="Steps in which the rate rises from zero.")
    loss_weighting: LossWeighting = Field(
        "none",
        description="Of timesteps: none (Eq. 6), or 'late', more weight on large noise, which "
        "small base models need.",
    )
    mask_weight: float = Field(
        0.0,
        ge=0,
        description="Extra weight of the loss inside the defect's mask, added to 1 everywhere; "
        "0: Eq. 6. Small base models need it to learn a reference's colour.",
    )
    weight_decay: float = Field(0.01, ge=0, description="AdamW's decoupled weight decay.")
    max_grad_norm: float | None = Field(
        None, gt=0, description="Gradients are clipped to this norm; None: no clipping."
    )
    max_skipped: int = Field(
        5,
        ge=0,
        description="Consecutive steps that may be skipped for a non-finite loss or gradient; "
        "one more ends the run.",
    )
    ema_decay: float | None = Field(
        None,
        gt=0,
        lt=1,
        description="Export, and validate, a moving average of the weights with this decay per "
        "step, at first a smaller one: (1 + n) / (10 + n) after n steps; None: the weights "
        "themselves. Costs a gather per step under ZeRO.",
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
        description="What is partitioned over the workers: nothing, AdamW's state, gradients "
        "too, weights too.",
    )
    offload_optimizer: bool = Field(
        False, description="Keep AdamW's state in the CPU's memory (stages 1 to 3)."
    )

    @model_validator(mode="after")
    def _offload_needs_a_stage(self) -> "ZeroConfig":
        if self.offload_optimizer and self.stage == 0:
            raise ValueError("offload_optimizer needs stage 1, 2 or 3")
        return self


# Of the U-Net, what is compiled.
Extent = Literal["blocks", "whole"]
# Kernels of scaled dot-product attention, by torch's names.
Attention = Literal["auto", "flash", "efficient", "cudnn", "math"]


class RuntimeConfig(Settings):
    """Precision, compilation and skipped work."""

    precision: Precision = Field(
        "float32",
        description="Precision of the frozen networks and the adapter's passes; its master "
        "weights and the Q-Former stay in float32. float16 is for GPUs without bfloat16.",
    )
    compile: Literal["auto", "off", "blocks", "whole"] = Field(
        "auto",
        description="torch.compile of the U-Net for training: its blocks, within about half a "
        "minute, or the whole of it; and of ASEA's steps, unless features are precomputed. "
        "auto: blocks on a GPU in runs of 1,000 steps or more. "
        "What does not compile runs as it is, with a line that says so.",
    )
    channels_last: bool | None = Field(
        None,
        description="Convolutions' weights with the channels last, which suits GPUs; by "
        "default where the U-Net is compiled on one.",
    )
    attention: Attention = Field(
        "auto",
        description="Kernel of the U-Net's attention that is tried first; what it cannot do is "
        "left to the others. auto: torch's order; math: its plain operations, slower.",
    )
    deterministic: bool = Field(
        False,
        description="Kernels that repeat their bits on a GPU, as a resume then does; slower. "
        "On a CPU it always does.",
    )
    skip_dropped: bool = Field(
        False,
        description="Leave out samples whose C' is dropped, whose gradient is zero (not in "
        "csm.mode pooled), and fill their places with the next ones. The logged loss is then "
        "conditioned_loss.",
    )


class ClusterConfig(Settings):
    """Ray Train's workers."""

    num_workers: int = Field(1, ge=1, description="Training processes.")
    use_gpu: bool | None = Field(
        None, description="One GPU per worker; by default if the cluster has any."
    )
    cpus_per_worker: float = Field(1, gt=0, description="CPUs that Ray reserves per worker.")
    resources: dict[str, Annotated[float, Field(gt=0)]] = Field(
        {},
        description="Further resources that Ray reserves per worker: bytes of memory and the "
        "cluster's custom resources, such as 'memory 8e9 fast_disk 1'.",
    )
    accelerator_type: str | None = Field(
        None, description="Ray's accelerator_type for the workers, such as 'H100'."
    )
    placement: Literal["PACK", "SPREAD", "STRICT_PACK", "STRICT_SPREAD"] = Field(
        "PACK", description="Ray's placement strategy for the workers."
    )
    max_failures: int = Field(
        0, ge=-1, description="Restarts after a failed worker before giving up; -1: no limit."
    )
    max_preemptions: int = Field(
        -1,
        ge=-1,
        description="Restarts after nodes that were preempted with notice, counted apart from "
        "max_failures; -1: no limit.",
    )
    start_s: float = Field(
        1800,
        gt=0,
        description="Seconds within which the workers must have started and loaded networks "
        "and data, waiting for nodes included; else the run ends and says what they lack.",
    )
    hang_s: float = Field(
        1800,
        gt=0,
        description="Seconds without a finished step, checkpoint or grid after which a hung "
        "worker is ended with a traceback and counts as failed.",
    )

    @model_validator(mode="after")
    def _resources_have_one_place(self) -> "ClusterConfig":
        if wrong := {"CPU", "GPU"} & self.resources.keys():
            raise ValueError(
                f"resources: {' and '.join(sorted(wrong))} have settings of their own, "
                "cpus_per_worker and use_gpu"
            )
        return self


class CheckpointConfig(Settings):
    """Checkpoints from which the same command resumes."""

    every: int = Field(500, ge=1, description="Steps between checkpoints; one more at the end.")
    keep: int = Field(2, ge=1, description="Number of intact checkpoints to keep.")


class SamplesConfig(Settings):
    """The grid of sample images logged to MLflow."""

    every: int = Field(500, ge=0, description="Steps between grids; 0: only at the end.")
    count: int = Field(4, ge=1, le=64, description="Rows of the grid.")
    steps: int = Field(30, ge=1, le=MOST_STEPS, description="DDIM steps per sample.")
    guidance_scale: float = Field(7.5, ge=1, description="Classifier-free guidance.")


class ValidationConfig(Settings):
    """The loss on samples that are held out of training, with fixed noise and timesteps."""

    every: int = Field(
        0, ge=0, description="Steps between validations; 0: no held-out samples, no validation."
    )
    share: float = Field(0.1, gt=0, lt=1, description="Share of samples held out.")
    drawings: int = Field(
        0,
        ge=0,
        description="Held-out defects that each validation generates in place, with the "
        "samples' steps and guidance, to log their similarity (guided_agreement); 0: none.",
    )


class TrackingConfig(Settings):
    """MLflow."""

    uri: str | None = Field(
        None,
        description="Tracking server or database; by default MLFLOW_TRACKING_URI, else "
        "runs/mlflow.db, or mlflow.db next to an output elsewhere.",
    )
    experiment: str = Field("acontrol", min_length=1, description="Experiment's name.")
    run_name: str | None = Field(
        None, description="Run's name; by default the command's and the output's."
    )
    parent_run: str | None = Field(
        None, description="Id of the parent MLflow run, as in a sweep."
    )
    wait_s: float = Field(
        60.0,
        ge=0,
        description="Seconds that the end of a run waits for an unreachable MLflow.",
    )
    system_metrics: bool = Field(
        False, description="Log CPU, memory, disk and GPU use of every node."
    )
