"""One stage of pretraining: AdamW on some modules, resumable at the same bytes."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from acontrol.progress import progress
from acontrol.runs import storage
from acontrol.runs.tracking import Tracker
from acontrol.seeding import derive_seed

WARMUP_STEPS = 100
GRADIENT_NORM = 1.0


@dataclass(frozen=True)
class StageContext:
    """Settings shared by all stages.

    Attributes:
        folder: Where states and sample grids go.
        tracker: MLflow.
        seed: The run's seed.
        device: Where to train.
        save_every: Steps between saved states.
        samples_every: Steps between sample grids.
    """

    folder: Path
    tracker: Tracker
    seed: int
    device: torch.device
    save_every: int
    samples_every: int

    def chosen(self, stage: str, step: int, count: int, size: int) -> Tensor:
        """Indices of a step's images among ``size``, by seed, stage and step."""
        return torch.randint(size, (count,), generator=self.generator(stage, step))

    def generator(self, stage: str, step: int) -> torch.Generator:
        """A generator for this step."""
        return torch.Generator().manual_seed(derive_seed(self.seed, stage, step))


def run_stage(
    name: str,
    module: nn.Module,
    loss: Callable[[int], dict[str, Tensor]],
    context: StageContext,
    *,
    steps: int,
    learning_rate: float,
    ema_decay: float = 0.0,
    sample: Callable[[], Image.Image] | None = None,
) -> None:
    """Train ``module`` in place, from the newest saved state on.

    The rate warms up linearly and decays to zero as a cosine. With ``ema_decay`` the module
    holds the moving average of its weights at the end.

    Args:
        name: Name of the stage in files and metrics.
        module: Its parameters that require gradients are trained.
        loss: The terms of step ``i``, from 0; "loss" is minimized, all are logged.
        context: Shared settings.
        steps: Number of steps.
        learning_rate: Peak rate of AdamW.
        ema_decay: Decay of the moving average; 0 for none.
        sample: Draws a sample grid.
    """
    trained = {key: value for key, value in module.named_parameters() if value.requires_grad}
    optimizer = torch.optim.AdamW(trained.values(), lr=learning_rate, weight_decay=0.01)
    average: dict[str, Tensor] = {}
    if ema_decay:
        average = {key: value.detach().clone() for key, value in trained.items()}
    file = context.folder / f"{name}.safetensors"
    first = _load(file, trained, average, optimizer) if file.exists() else 0
    with progress(name, steps, "step", initial=first) as bar:
        for step in range(first, steps):
            rate = learning_rate * min(1.0, (step + 1) / WARMUP_STEPS)
            for group in optimizer.param_groups:
                group["lr"] = rate * (1 + math.cos(math.pi * step / steps)) / 2
            # Dropout draws from torch's own generator: keyed too, a resume repeats it.
            torch.manual_seed(derive_seed(context.seed, name, "dropout", step))
            terms = loss(step)
            terms["loss"].backward()
            nn.utils.clip_grad_norm_(trained.values(), GRADIENT_NORM)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            # Faster at first, or the average would never forget the initial weights.
            decay = min(ema_decay, (1 + step) / (10 + step))
            for key, value in average.items():
                value.lerp_(trained[key].detach(), 1 - decay)
            last = step + 1 == steps
            if step % 20 == 19 or last:
                values = {
                    f"{name}/{key}": float(value.detach()) for key, value in terms.items()
                }
                context.tracker.log_metrics(values, step + 1)
                bar.set_postfix(loss=f"{values[f'{name}/loss']:.4f}")
            if last or (step + 1) % context.save_every == 0:
                context.tracker.flush()
                _save(file, step + 1, trained, average, optimizer)
            if sample is not None and (last or (step + 1) % context.samples_every == 0):
                with _holding(trained, average):
                    picture = sample()
                picture.save(context.folder / f"{name}-{step + 1:06d}.png")
                context.tracker.log_image(picture, name, step + 1)
            bar.update()
    with torch.no_grad():
        for key, value in average.items():
            trained[key].copy_(value)


class _holding:
    """Swaps the average into the parameters for a block."""

    def __init__(self, trained: dict[str, nn.Parameter], average: dict[str, Tensor]):
        self.trained, self.average = trained, average

    def _swap(self) -> None:
        for key, value in self.average.items():
            own = self.trained[key].data
            self.trained[key].data, self.average[key] = value, own

    def __enter__(self) -> None:
        self._swap()

    def __exit__(self, *exception: object) -> None:
        self._swap()


def _save(
    file: Path,
    step: int,
    trained: dict[str, nn.Parameter],
    average: dict[str, Tensor],
    optimizer: torch.optim.AdamW,
) -> None:
    tensors = {f"weight/{key}": value.detach() for key, value in trained.items()}
    tensors |= {f"average/{key}": value for key, value in average.items()}
    for key, value in trained.items():
        for moment in ("exp_avg", "exp_avg_sq"):
            # A parameter without gradients so far has no moments.
            if moment in optimizer.state[value]:
                tensors[f"{moment}/{key}"] = optimizer.state[value][moment]
    whole = {key: value.cpu().contiguous() for key, value in tensors.items()}
    with storage.replacing(file) as partial:
        save_file(whole, partial, metadata={"step": str(step)})


def _load(
    file: Path,
    trained: dict[str, nn.Parameter],
    average: dict[str, Tensor],
    optimizer: torch.optim.AdamW,
) -> int:
    with safe_open(file, framework="pt") as state, torch.no_grad():
        step = int(state.metadata()["step"])
        names = set(state.keys())
        for key, value in trained.items():
            value.copy_(state.get_tensor(f"weight/{key}"))
            if key in average:
                average[key].copy_(state.get_tensor(f"average/{key}"))
            if f"exp_avg/{key}" in names:
                optimizer.state[value] = {
                    "step": torch.tensor(float(step)),
                    "exp_avg": state.get_tensor(f"exp_avg/{key}").to(value.device),
                    "exp_avg_sq": state.get_tensor(f"exp_avg_sq/{key}").to(value.device),
                }
    return step
