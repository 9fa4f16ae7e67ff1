"""DeepSpeed around the adapter, and nothing else: the frozen networks stay outside.

The state handed out is whole, not split among ranks: full fp32 weights and AdamW moments.
AdamW works on each element alone, so splitting them anew gives the same bits back, for every
ZeRO stage and any number of ranks, and a checkpoint needs no pickle.
"""

import logging
import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from acontrol.config import RunConfig
from acontrol.sga import SemanticAdapter

MOMENTS = ("exp_avg", "exp_avg_sq")


@dataclass(frozen=True)
class AdapterState:
    """What a resume needs of the adapter and its optimizer, as whole fp32 tensors on the CPU.

    Attributes:
        weights: By parameter name.
        moments: By "exp_avg.<parameter>" and "exp_avg_sq.<parameter>".
        steps: Optimizer steps behind them.
        averages: Moving averages of the weights, where the run keeps them.
    """

    weights: dict[str, Tensor]
    moments: dict[str, Tensor]
    steps: int
    averages: dict[str, Tensor] | None = None


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


class AdapterEngine:
    """The adapter under DeepSpeed: project, backward, step, and its whole state.

    Needs an initialized process group; ``state`` is collective, so every rank calls it.
    """

    def __init__(self, adapter: SemanticAdapter, config: RunConfig, state: AdapterState | None):
        """Wrap the adapter, continuing from ``state`` where there is one."""
        if not torch.cuda.is_available():
            os.environ.setdefault("DS_ACCELERATOR", "cpu")
        logging.getLogger("DeepSpeed").setLevel(logging.WARNING)
        # Only here: a process without a training rank never imports it.
        import deepspeed
        import deepspeed.ops

        logging.getLogger("DeepSpeed").setLevel(logging.WARNING)
        # An operator for sharing memory between CPU ranks that gloo does not need. Building
        # it takes a compiler and most of a minute, and a build that is killed leaves a lock
        # on which every later start hangs (pytorch#189245).
        deepspeed.ops.__compatible_ops__["shm_comm"] = False
        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
        if state is not None:
            adapter.load_state_dict(state.weights)
        self.adapter, self.config = adapter, config
        optimizer = torch.optim.AdamW(
            adapter.parameters(),
            lr=config.optim.learning_rate,
            weight_decay=config.optim.weight_decay,
            fused=torch.cuda.is_available() and not config.zero.offload_optimizer,
        )
        self.engine, *_ = deepspeed.initialize(
            model=adapter,
            optimizer=optimizer,
            config=deepspeed_config(config),
            dist_init_required=False,
        )
        self._steps = 0
        self._averages: dict[str, Tensor] | None = None
        if config.optim.ema_decay is not None:
            # A fresh engine's module still holds exactly these.
            self._averages = (state and state.averages) or self.weights()
        if state is not None and state.steps:
            self._restore(state)

    @property
    def rank(self) -> int:
        """This process's place among the ranks."""
        return dist.get_rank()

    @property
    def world_size(self) -> int:
        """Number of ranks."""
        return dist.get_world_size()

    def project(self, tokens: Tensor) -> Tensor:
        """The adapter's forward, in the run's precision."""
        return self.engine(tokens.to(getattr(torch, self.config.runtime.precision)))

    def backward(self, loss: Tensor, *, last: bool = True) -> None:
        """Add this rank's gradient of a pass's mean loss; DeepSpeed averages ranks and passes.

        Args:
            loss: Mean over the pass's samples.
            last: Whether the next ``step`` follows, and not another pass.
        """
        self.engine.backward(loss)
        if not last:
            self.engine.step()  # Only counts the pass.

    def mean(self, values: Sequence[Tensor]) -> list[float]:
        """Average scalars over all ranks: one collective and the step's one host read."""
        total = torch.stack([value.detach().float() for value in values])
        dist.all_reduce(total)
        return (total / self.world_size).tolist()

    def step(self) -> float:
        """Update the weights; returns the rate it was done with."""
        rate = self.config.optim.rate(self._steps + 1)
        self._set_rate(rate)
        self.engine.step()
        self._steps += 1
        decay = self.config.optim.ema_decay
        if self._averages is not None and decay is not None:
            for name, weight in self.weights().items():
                self._averages[name].lerp_(weight, 1 - decay)
        return rate

    @property
    def skipped_steps(self) -> int:
        """Steps that DeepSpeed left out because float16 overflowed."""
        return int(self.engine.skipped_steps)

    def weights(self) -> dict[str, Tensor]:
        """Whole fp32 weights on the CPU; collective."""
        return {name: self._whole(one) for name, one in self.adapter.named_parameters()}

    def state(self) -> AdapterState:
        """Whole weights and moments on the CPU; collective."""
        moments = {
            f"{key}.{name}": self._whole(parameter, key)
            for name, parameter in self.adapter.named_parameters()
            for key in MOMENTS
        }
        averages = self._averages and {
            name: average.clone() for name, average in self._averages.items()
        }
        return AdapterState(self.weights(), moments, self._steps, averages)

    def _whole(self, parameter: nn.Parameter, key: str | None = None) -> Tensor:
        """A parameter's fp32 weight or moment; gathered from all ranks if it is split."""
        from deepspeed import utils

        if not _is_split(parameter):
            whole = parameter if key is None else self._torch_optimizer.state[parameter][key]
        elif key is None:
            whole = utils.safe_get_full_fp32_param(parameter)
        else:
            whole = utils.safe_get_full_optimizer_state(parameter, key)
        return whole.detach().float().cpu().clone()

    @property
    def _torch_optimizer(self) -> torch.optim.Optimizer:
        """Torch's AdamW, which the ZeRO optimizers wrap."""
        return getattr(self.engine.optimizer, "optimizer", self.engine.optimizer)

    def _set_rate(self, rate: float) -> None:
        for group in self.engine.optimizer.param_groups:
            group["lr"] = rate

    def _restore(self, state: AdapterState) -> None:
        """Put master weights and moments back.

        The optimizer makes its state in its first step, so one is taken with a zero gradient
        at rate zero, which changes no weight; then the saved state replaces what it left.
        """
        from deepspeed import utils

        self._set_rate(0.0)
        device = self.engine.device
        nothing = torch.zeros(1, 1, self.adapter.config.semantic_dim, device=device)
        for number in range(1, self.config.optim.accumulation + 1):
            self.backward(
                0 * self.project(nothing).sum(), last=number == self.config.optim.accumulation
            )
        self.engine.step()
        for name, parameter in self.adapter.named_parameters():
            moments = {key: state.moments[f"{key}.{name}"].to(device) for key in MOMENTS}
            if _is_split(parameter):
                # In low precision the engine began with rounded master weights.
                utils.safe_set_full_fp32_param(parameter, state.weights[name].to(device))
                for key, value in moments.items():
                    utils.safe_set_full_optimizer_state(parameter, value, key)
            else:
                for key, value in moments.items():
                    self._torch_optimizer.state[parameter][key].copy_(value)
        for slot in self._torch_optimizer.state.values():
            slot["step"].fill_(state.steps)
        self._steps = state.steps


def _is_split(parameter: nn.Parameter) -> bool:
    """Whether DeepSpeed keeps this parameter's master weights itself, split among ranks."""
    return hasattr(parameter, "ds_id") or hasattr(parameter, "_hp_mapping")
