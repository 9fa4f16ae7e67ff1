"""What a call of `generate` would draw, and for how long, without writing anything."""

import time
from dataclasses import dataclass

import torch

from acontrol.generation.gate import DefectScorer
from acontrol.generation.job import JOB_NAME
from acontrol.generation.methods import load_method
from acontrol.generation.run import make_planner, plan_images
from acontrol.generation.sampler import Generator
from acontrol.generation.settings import Gate, GenerationConfig, OutputSettings


@dataclass(frozen=True)
class Estimate:
    """A set of images to draw.

    Attributes:
        images: How many; 0 if the set is complete.
        seconds: Of all of them, from one batch drawn here; a set begun counts as a whole one.
    """

    images: int
    seconds: float


def estimate(config: GenerationConfig) -> Estimate:
    """Plan a set and draw its first images in memory.

    Raises:
        UserError: If the model or the data is bad.
    """
    if (config.out / JOB_NAME).exists():
        return Estimate(0, 0.0)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    loaded = load_method(
        config.method, config.model, config.base_path, device, config.precision
    )
    planner = make_planner(config, loaded)
    images, _ = plan_images(config, planner)
    generator = Generator(
        loaded.method,
        DefectScorer(loaded.vlm, planner.training),
        Gate.model_validate(config.model_dump(include=set(Gate.model_fields))),
        OutputSettings.model_validate(
            config.model_dump(include=set(OutputSettings.model_fields))
        ),
    )
    batch = images[: config.batch_size]
    generator.generate_batch(batch[:1])  # The first one reads what the rest finds in memory.
    started = time.perf_counter()
    generator.generate_batch(batch)
    return Estimate(
        len(images), (time.perf_counter() - started) / max(1, len(batch)) * len(images)
    )
