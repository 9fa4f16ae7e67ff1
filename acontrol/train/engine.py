"""DeepSpeed around the adapter; the frozen networks stay outside.

Saved state is whole, not split among ranks: full fp32 weights and AdamW moments. AdamW is
elementwise, so splitting them again gives the same bits for every ZeRO stage and any number of
ranks, and a checkpoint needs no pickle.
"""

import logging
import os
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from acontrol.config import RunConfig
from acontrol.method.sga import SemanticAdapter
from acontrol.train.checkpoint import AdapterState


def deepspeed_config(config: RunConfig) -> dict[str, Any]:
    """DeepSpeed's config for a run."""
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
    settings: dict[str, Any] = {
        "train_batch_size": config.optim.batch_size,
        "train_micro_batch_size_per_gpu": config.micro_batch_size,
        "gradient_accumulation_steps": config.optim.accumulation,
        # 0 turns it off.
        "gradient_clipping": config.optim.max_grad_norm or 0.0,
        # The optimizer is torch's own AdamW, which needs no compiled operator.
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
        "zero_optimization": zero,
        "steps_per_print": 2**31 - 1,
        "wall_clock_breakdown": False,
    }
    if config.runtime.precision == "bfloat16":
        settings["bf16"] = {"enabled": True}
        # Gradients of several passes are summed in full precision.
        settings["data_types"] = {"grad_accum_dtype": "fp32"}
    elif config.runtime.precision == "float16":
        settings["fp16"] = {"enabled": True}
    return settings


MOMENTS = ("exp_avg", "exp_avg_sq")


class AdapterEngine:
    """The adapter under DeepSpeed. Needs an initialized process group."""

    def __init__(self, adapter: SemanticAdapter, config: RunConfig, state: AdapterState | None):
        """Wrap the adapter, continuing from ``state`` if given."""
        if not torch.cuda.is_available():
            os.environ.setdefault("DS_ACCELERATOR", "cpu")
        logging.getLogger("DeepSpeed").setLevel(logging.WARNING)
        # Imported by training ranks only.
        import deepspeed
        import deepspeed.ops

        logging.getLogger("DeepSpeed").setLevel(logging.WARNING)
        # A shared-memory operator for CPU ranks, which gloo does not need. Building it takes a
        # compiler and most of a minute, and a killed build leaves a lock on which every later
        # start hangs (pytorch#189245).
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
        self._steps = self._updates = 0
        self._nonfinite = torch.zeros(2, dtype=torch.bool, device=self.engine.device)
        self._averages: dict[str, Tensor] | None = None
        if config.optim.ema_decay is not None:
            # A fresh engine's module still holds exactly these.
            self._averages = (state and state.averages) or self.weights()
        if state is not None and state.steps:
            self._restore(state)

    @property
    def rank(self) -> int:
        """This process's rank."""
        return dist.get_rank()

    @property
    def world_size(self) -> int:
        """Number of ranks."""
        return dist.get_world_size()

    def project(self, tokens: Tensor) -> Tensor:
        """The adapter's forward, in the run's precision."""
        projected = self.engine(tokens.to(getattr(torch, self.config.runtime.precision)))
        # float16 overflows regularly, and DeepSpeed then lowers its loss scale.
        if projected.requires_grad and self.config.runtime.precision != "float16":
            projected.register_hook(self._watch)
        return projected

    def _watch(self, gradient: Tensor) -> None:
        """Record, without waiting for the device, whether a pass's gradient is finite.

        Here it is still this rank's own; ZeRO keeps it averaged over ranks.
        """
        largest = torch.linalg.vector_norm(gradient, torch.inf)
        self._nonfinite[1] |= ~largest.isfinite()

    def backward(self, loss: Tensor, *, last: bool = True) -> None:
        """Accumulate this rank's gradient; DeepSpeed averages ranks and passes.

        Args:
            loss: Mean over the pass's samples.
            last: Whether this is the step's last pass.
        """
        finite = loss.detach().isfinite()
        self._nonfinite[0] |= ~finite
        # A non-finite loss may have a finite gradient. Made NaN, it shows in the averaged
        # gradient, by which DeepSpeed skips the step on every rank.
        self.engine.backward(loss * torch.where(finite, 1.0, torch.nan))
        if not last:
            self.engine.step()  # Only counts the pass.

    def mean(self, values: Sequence[Tensor]) -> list[float]:
        """Scalars averaged over all ranks: one collective and one host read."""
        total = torch.stack([value.detach().float() for value in values])
        dist.all_reduce(total)
        return (total / self.world_size).tolist()

    @property
    def nonfinite(self) -> tuple[Tensor, Tensor]:
        """Whether this rank had a non-finite loss or gradient since the last step.

        0 or 1 on the device, for ``mean``. The gradient is that by K' and V'.
        """
        loss, gradient = self._nonfinite.float()
        return loss, gradient

    def step(self, *, skip: bool = False) -> tuple[float, bool]:
        """Update the weights and advance to the next step.

        A skipped step counts in the schedule, but changes neither weights, moments, AdamW's own
        count nor averages, and drops its gradients.

        Args:
            skip: Whether any rank is ``nonfinite``; the same on every rank.

        Returns:
            The step's rate, and whether the weights were updated: DeepSpeed also skips a step
            if the averaged gradient's norm is non-finite, as when float16 overflows.
        """
        rate = self.config.optim.rate(self._steps + 1)
        self._set_rate(rate)
        if skip and not self.config.zero.stage:  # ZeRO detects it itself.
            self.engine.zero_grad()
            self.engine.set_gradient_accumulation_boundary(False)
            self.engine.step()
            # DeepSpeed counts passes itself again.
            self.engine.set_gradient_accumulation_boundary(None)
        else:
            self.engine.step()
        self._steps += 1
        self._nonfinite.zero_()
        if not self.engine.was_step_applied():
            return rate, False
        if skip:
            raise RuntimeError("DeepSpeed took a step with a non-finite gradient")
        decay = self.config.optim.ema_decay
        if self._averages is not None and decay is not None:
            # Faster at first, or a short run's average would be mostly its initial weights.
            decay = min(decay, (1 + self._updates) / (10 + self._updates))
            for name, weight in self.weights().items():
                self._averages[name].lerp_(weight, 1 - decay)
        self._updates += 1
        return rate, True

    @property
    def skipped_steps(self) -> int:
        """Steps of the run that were skipped."""
        return self._steps - self._updates

    def weights(self) -> dict[str, Tensor]:
        """Whole fp32 weights on the CPU; collective."""
        return {name: self._whole(weight) for name, weight in self.adapter.named_parameters()}

    def exported(self) -> dict[str, Tensor]:
        """What a checkpoint exports: the averages if the run keeps them; collective."""
        return self._averages or self.weights()

    def exported_projection(self) -> Callable[[Tensor], Tensor]:
        """``project`` with the exported weights; for inference."""
        if self._averages is None:
            return self.project
        precision = getattr(torch, self.config.runtime.precision)
        config = self.adapter.config
        copy = SemanticAdapter(config.layers, config.semantic_dim, config.mode)
        copy.load_state_dict(self._averages)
        copy.to(self.engine.device, precision)
        return lambda tokens: copy(tokens.to(precision))

    def state(self) -> AdapterState:
        """Whole weights and moments on the CPU; collective."""
        moments = {
            f"{key}.{name}": self._whole(parameter, key)
            for name, parameter in self.adapter.named_parameters()
            for key in MOMENTS
        }
        moments["step"] = torch.tensor(float(self._updates))
        averages = self._averages and {
            name: average.clone() for name, average in self._averages.items()
        }
        return AdapterState(self.weights(), moments, self._steps, averages)

    def _whole(self, parameter: nn.Parameter, key: str | None = None) -> Tensor:
        """A parameter's fp32 weight or moment, gathered from all ranks if split."""
        from deepspeed import utils

        if key is not None and not self._updates:  # AdamW has no moments yet.
            return torch.zeros_like(self._whole(parameter))
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
        """Restore master weights and moments.

        The optimizer creates its state in its first step. So one is taken with a zero gradient
        at rate zero, which changes no weight; then the saved state replaces it.
        """
        from deepspeed import utils

        self._set_rate(0.0)
        device = self.engine.device
        zeros = torch.zeros(1, 1, self.adapter.config.semantic_dim, device=device)
        passes = self.config.optim.accumulation
        for number in range(1, passes + 1):
            self.backward(0 * self.project(zeros).sum(), last=number == passes)
        self.engine.step()
        for name, parameter in self.adapter.named_parameters():
            moments = {key: state.moments[f"{key}.{name}"].to(device) for key in MOMENTS}
            if _is_split(parameter):
                # In low precision the engine started from rounded master weights.
                utils.safe_set_full_fp32_param(parameter, state.weights[name].to(device))
                for key, value in moments.items():
                    utils.safe_set_full_optimizer_state(parameter, value, key)
            else:
                for key, value in moments.items():
                    self._torch_optimizer.state[parameter][key].copy_(value)
        self._steps = state.steps
        self._updates = int(state.moments.get("step", torch.tensor(state.steps)))
        for slot in self._torch_optimizer.state.values():
            slot["step"].fill_(self._updates)


def _is_split(parameter: nn.Parameter) -> bool:
    """Whether DeepSpeed keeps this parameter's master weights split among ranks."""
    return hasattr(parameter, "ds_id") or hasattr(parameter, "_hp_mapping")
