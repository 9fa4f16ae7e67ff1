"""The denoising loop that every method on a diffusion base shares."""

from collections.abc import Callable, Iterable
from typing import Any

from diffusers import (
    DDIMScheduler,
    DPMSolverMultistepScheduler,
    SchedulerMixin,
    UniPCMultistepScheduler,
)
from torch import Tensor

from acontrol.config.sampling import Solver
from acontrol.pipelines.blending import Canvas

# Latents, as many as asked for, and a timestep; gives the noise in them.
NoisePredictor = Callable[[Tensor, Tensor], Tensor]
# Called after each step with its number from 1, the number of steps, and the clean latents as
# they are estimated then. What it raises ends the drawing.
Watch = Callable[[int, int, Tensor], object]

# From the full noise on. A base's own "leading" timesteps begin below it when there are few,
# and then these solvers end as far from the limit as DDIM (docs/generation.md).
_SPACING = "linspace"


def denoise(
    predict: NoisePredictor,
    scheduler: SchedulerMixin,
    canvas: Canvas,
    noise: Tensor,
    steps: int,
    *,
    start: Tensor | None = None,
    strength: float = 1.0,
    progress: Callable[[Iterable[Tensor]], Any] = iter,
    watch: Watch | None = None,
) -> Tensor:
    """Denoise latents on a canvas.

    Args:
        predict: Predicts noise in float32, guided.
        scheduler: The sampler.
        canvas: What stays outside the masks.
        noise: (batch, channel, side, side).
        steps: Steps of the whole schedule.
        start: Latents that lie under the noise, of the noise's shape; None for noise alone.
        strength: Share of the steps that are done on ``start``.
        progress: Shows the steps.
        watch: Sees each step; changes nothing.

    Returns:
        Clean latents, of the noise's shape.
    """
    scheduler.set_timesteps(steps, device=noise.device)
    timesteps = scheduler.timesteps
    if start is None:
        latents = noise * scheduler.init_noise_sigma
    else:  # As in diffusers' inpainting pipeline.
        timesteps = timesteps[steps - min(int(steps * strength), steps) :]
        latents = start
        if len(timesteps):
            latents = scheduler.add_noise(start, noise, timesteps[:1])
    for number, timestep in enumerate(progress(timesteps), start=1):
        latents = canvas.blend(latents, noise, scheduler, timestep)
        noise_pred = predict(latents, timestep)
        step = scheduler.step(noise_pred, timestep, latents)
        latents = step.prev_sample
        if watch is not None:
            watch(number, len(timesteps), getattr(step, "pred_original_sample", latents))
    return canvas.blend(latents, noise, scheduler)


def guided(noise_pred: Tensor, scale: float) -> Tensor:
    """Classifier-free guidance, of predictions without conditions and then with them."""
    without, with_conditions = noise_pred.chunk(2)
    return without + scale * (with_conditions - without)


def ddim(config: Any) -> DDIMScheduler:
    """A DDIM sampler on a base's noise schedule."""
    return DDIMScheduler.from_config(config, clip_sample=False, set_alpha_to_one=False)


def scheduler_of(solver: Solver, scheduler: SchedulerMixin) -> SchedulerMixin:
    """A solver on the noise schedule of a scheduler; for "ddim" the scheduler itself.

    The others have a state of their own, so each drawing gets a new one.
    """
    if solver == "ddim":
        return scheduler
    kind = DPMSolverMultistepScheduler if solver == "dpm++" else UniPCMultistepScheduler
    return kind.from_config(scheduler.config, timestep_spacing=_SPACING)
