"""Draw a job on Ray: each worker has the method and takes one batch at a time.

Workers read the plan's files, so every node must see data and model. Results go back to the
driver, which alone writes.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Literal

import ray
import torch
from ray.util import ActorPool

from acontrol.config import ClusterConfig, Precision
from acontrol.config.training import Attention, Extent
from acontrol.data.mvtec import open_folder
from acontrol.generation.adapter import AdapterMethod
from acontrol.generation.gate import DefectScorer
from acontrol.generation.job import BatchResult, Job, generate_batch
from acontrol.generation.manifest import Roots
from acontrol.generation.methods import load_method
from acontrol.generation.plan import PlannedImage, Planner
from acontrol.generation.sampler import Generator
from acontrol.generation.settings import Gate, MethodName, OutputSettings
from acontrol.networks.load import quieten
from acontrol.runs.cluster import joined_cluster, uses_gpus, without_rays_traceback

_RESTARTS = 3  # Of a worker that died, for instance out of memory; then the job fails.


@dataclass(frozen=True)
class GeneratorSpec:
    """What a worker needs to build its generator.

    Attributes:
        method: What draws.
        model: Adapter folder.
        base_path: Where the base is now, if it moved.
        precision: Of the networks.
        split: Part of the data that training defects come from.
        gate: Which images pass.
        output: How images become files.
        split_file: Which images are that part.
        roots: Folders of the data and of the normal images.
        threads: Torch threads of each worker.
        fitted: What a fitted method draws with.
        compile: The U-Net's parts to compile, and the batches' size; None is nothing.
        attention: The kernel of attention that is tried first.
    """

    method: MethodName
    model: str | None
    base_path: str | None
    precision: Precision
    split: Literal["train", "test", "all"]
    gate: Gate
    output: OutputSettings
    split_file: Path | None
    roots: Roots
    threads: int
    fitted: Path | None = None
    compile: tuple[Extent, int] | None = None
    attention: Attention = "auto"

    def build(self, device: str) -> Generator:
        """Load the method and the scorer."""
        loaded = load_method(
            self.method, self.model, self.base_path, device, self.precision, self.fitted
        )
        if self.compile is not None and isinstance(loaded.method, AdapterMethod):
            loaded.method.compile(*self.compile)
        folder = open_folder(self.roots["data"], split_file=self.split_file)
        planner = Planner(folder, split=self.split)
        scorer = DefectScorer(loaded.vlm, planner.training)
        return Generator(loaded.method, scorer, self.gate, self.output)


class _Worker:
    """Draws batches of one job."""

    def __init__(self, spec: GeneratorSpec, batches: Sequence[Sequence[PlannedImage]]):
        quieten()
        torch.set_num_threads(spec.threads)
        self.spec, self.batches = spec, batches

    # Not in __init__, whose errors Ray reports as the actor's death.
    @cached_property
    def generator(self) -> Generator:
        return self.spec.build("cuda" if torch.cuda.is_available() else "cpu")

    def draw(self, number: int) -> tuple[int, BatchResult]:
        batch = self.batches[number]
        from acontrol.networks.compilation import attention_by

        with attention_by(self.spec.attention):
            return number, generate_batch(self.generator, batch, number, self.spec.roots)


def draw_on_ray(job: Job, spec: GeneratorSpec, num_workers: int) -> Iterator[int]:
    """Draw the missing batches on Ray actors, each with a GPU where the cluster has them.

    Args:
        job: What to draw.
        spec: Builds each worker's generator.
        num_workers: Upper bound; no more are started than batches are missing.

    Yields:
        The number of each batch once it is written, in the order they finish.

    Raises:
        UserError: If RAY_ADDRESS names a cluster that does not answer, it has too few GPUs, or
            a worker cannot build its generator.
    """
    missing = job.missing()
    cluster = ClusterConfig(num_workers=max(1, min(num_workers, len(missing))))
    with joined_cluster(cluster), without_rays_traceback():
        worker = ray.remote(_Worker).options(
            num_cpus=1,
            num_gpus=1 if uses_gpus(cluster, "--num-workers") else 0,
            max_restarts=_RESTARTS,
            max_task_retries=_RESTARTS,
        )
        batches = ray.put(job.batches)
        pool = ActorPool([worker.remote(spec, batches) for _ in range(cluster.num_workers)])
        for number, result in pool.map_unordered(
            lambda actor, number: actor.draw.remote(number), missing
        ):
            job.keep(number, result)
            yield number
