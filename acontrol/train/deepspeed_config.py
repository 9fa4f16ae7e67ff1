"""Our settings in DeepSpeed's words."""

from typing import Any

from acontrol.config import RunConfig


def deepspeed_config(config: RunConfig) -> dict[str, Any]:
    """Say our settings in DeepSpeed's words."""
    zero: dict[str, Any] = {
        "stage": config.zero.stage,
        # 19 million parameters fit one bucket; the default is sized for billions.
        "reduce_bucket_size": 50_000_000,
        # One weight whose gradient comes last: there is no backward left to overlap with.
        "overlap_comm": False,
        # Stage 3 would replace torch's linear in the whole process, the frozen networks'
        # too, by one that rounds otherwise: the stages would drift apart.
        "memory_efficient_linear": False,
    }
    if config.zero.offload_optimizer:
        zero["offload_optimizer"] = {"device": "cpu"}
    said: dict[str, Any] = {
        "train_batch_size": config.optim.batch_size,
        "train_micro_batch_size_per_gpu": config.micro_batch_size,
        "gradient_accumulation_steps": config.optim.accumulation,
        # 0 is DeepSpeed's word for none.
        "gradient_clipping": config.optim.max_grad_norm or 0.0,
        # The optimizer is torch's own AdamW, which needs no compiled operator.
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
        "zero_optimization": zero,
        "steps_per_print": 2**31 - 1,
        "wall_clock_breakdown": False,
    }
    if config.runtime.precision == "bfloat16":
        said["bf16"] = {"enabled": True}
        # Gradients of several passes are summed in full precision.
        said["data_types"] = {"grad_accum_dtype": "fp32"}
    elif config.runtime.precision == "float16":
        said["fp16"] = {"enabled": True}
    return said
