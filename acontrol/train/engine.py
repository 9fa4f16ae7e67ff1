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
from torch import Tensor

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
    """

    weights: dict[str, Tensor]
    moments: dict[str, Tensor]
    steps: int


def deepspeed_config(config: RunConfig) -> dict[str, Any]:
    """Say our settings in DeepSpeed's words."""
    return {
        "train_batch_size": config.optim.batch_size,
        "train_micro_batch_size_per_gpu": config.micro_batch_size,
        "gradient_accumulation_steps": 1,
        # The optimizer is torch's own AdamW, which needs no compiled operator.
        "zero_allow_untested_optimizer": True,
        "zero_optimization": {
            "stage": config.zero.stage,
            # 19 million parameters fit one bucket; the default is sized for billions.
            "reduce_bucket_size": 50_000_000,
        },
        "steps_per_print": 2**31 - 1,
        "wall_clock_breakdown": False,
    }


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
        self.adapter = adapter
        self.stage = config.zero.stage
        optimizer = torch.optim.AdamW(
            adapter.parameters(),
            lr=config.optim.learning_rate,
            weight_decay=config.optim.weight_decay,
            fused=torch.cuda.is_available(),
        )
        self.engine, *_ = deepspeed.initialize(
            model=adapter,
            optimizer=optimizer,
            config=deepspeed_config(config),
            dist_init_required=False,
        )
        self._steps = 0
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
        """The adapter's forward."""
        return self.engine(tokens)

    def backward(self, loss: Tensor) -> None:
        """Accumulate this rank's gradient of its mean loss; DeepSpeed averages over ranks."""
        self.engine.backward(loss)

    def mean(self, values: Sequence[Tensor]) -> list[float]:
        """Average scalars over all ranks: one collective and the step's one host read."""
        total = torch.stack([value.detach().float() for value in values])
        dist.all_reduce(total)
        return (total / self.world_size).tolist()

    def step(self) -> None:
        """Update the weights."""
        self.engine.step()
        self._steps += 1

    def weights(self) -> dict[str, Tensor]:
        """Whole fp32 weights on the CPU; collective."""
        from deepspeed.utils import safe_get_full_fp32_param

        gathered = {}
        for name, parameter in self.adapter.named_parameters():
            full = parameter if self.stage == 0 else safe_get_full_fp32_param(parameter)
            gathered[name] = full.detach().cpu().clone()
        return gathered

    def state(self) -> AdapterState:
        """Whole weights and moments on the CPU; collective."""
        from deepspeed.utils import safe_get_full_optimizer_state

        moments = {}
        for name, parameter in self.adapter.named_parameters():
            for key in MOMENTS:
                if self.stage == 0:
                    full = self.engine.optimizer.state[parameter][key]
                else:
                    full = safe_get_full_optimizer_state(parameter, key)
                moments[f"{key}.{name}"] = full.detach().cpu().clone()
        return AdapterState(self.weights(), moments, self._steps)

    def _restore(self, state: AdapterState) -> None:
        """Put the moments back.

        The optimizer makes its state in its first step, so one is taken with a zero gradient
        at rate zero, which changes no weight; then the moments replace what it left.
        """
        from deepspeed.utils import safe_set_full_optimizer_state

        groups = self.engine.optimizer.param_groups
        rates = [group["lr"] for group in groups]
        for group in groups:
            group["lr"] = 0.0
        device = self.engine.device
        nothing = torch.zeros(1, 1, self.adapter.config.semantic_dim, device=device)
        self.engine.backward(0 * self.project(nothing).sum())
        self.engine.step()
        for group, rate in zip(groups, rates, strict=True):
            group["lr"] = rate
        for name, parameter in self.adapter.named_parameters():
            for key in MOMENTS:
                value = state.moments[f"{key}.{name}"].to(device)
                if self.stage == 0:
                    self.engine.optimizer.state[parameter][key].copy_(value)
                else:
                    safe_set_full_optimizer_state(parameter, value, key)
        # DeepSpeed's ZeRO optimizers wrap torch's.
        inner = self.engine.optimizer if self.stage == 0 else self.engine.optimizer.optimizer
        for slot in inner.state.values():
            slot["step"].fill_(state.steps)
        self._steps = state.steps
