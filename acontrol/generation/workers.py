"""Draw a job on Ray: a pipeline a worker, batches handed out one by one.

Workers read what the plan names, so data and model must lie where every node sees them. What
they draw comes back to the driver, which alone writes.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import ray
import torch
from ray.util import ActorPool

from acontrol.config import ClusterConfig
from acontrol.data.mvtec import open_folder
from acontrol.generation.job import BatchResult, Job, generate_batch
from acontrol.generation.manifest import Roots
from acontrol.generation.plan import PlannedImage, Planner
from acontrol.generation.sampler import Generator
from acontrol.generation.scoring import DefectScorer
from acontrol.generation.settings import Gate, OutputSettings
from acontrol.networks.load import quieten
from acontrol.pipelines.loading import load_pipeline
from acontrol.runs.cluster import joined_cluster, uses_gpus

_RESTARTS = 3  # Of a worker that died, as for want of memory; then the job ends.


@dataclass(frozen=True)
class GeneratorSpec:
    """All that a worker needs to make its drawer.

    Attributes:
        model: Adapter folder.
        base_path: Where the base is now, if it moved.
        split: Part of the data that training defects come from.
        gate: What passes.
        finish: How drawings become files.
        roots: Folders of the data and of the normal images.
        threads: Of torch, in each worker.
    """

    model: str
    base_path: str | None
    split: Literal["train", "test", "all"]
    gate: Gate
    finish: OutputSettings
    roots: Roots
    threads: int

    def make(self, device: str) -> Generator:
        """Load the pipeline and what judges."""
        pipeline = load_pipeline(self.model, self.base_path, device)
        pipeline.set_progress_bar_config(disable=True)
        planner = Planner(open_folder(self.roots["data"]), split=self.split)
        return Generator(
            pipeline, DefectScorer(pipeline, planner.training), self.gate, self.finish
        )


class _Worker:
    """Draws batches of one job."""

    def __init__(self, spec: GeneratorSpec, batches: Sequence[Sequence[PlannedImage]]):
        quieten()
        torch.set_num_threads(spec.threads)
        self.generator = spec.make("cuda" if torch.cuda.is_available() else "cpu")
        self.roots = spec.roots
        self.batches = batches

    def draw(self, number: int) -> tuple[int, BatchResult]:
        return number, generate_batch(self.generator, self.batches[number], number, self.roots)


def run_on_ray(
    job: Job,
    spec: GeneratorSpec,
    num_workers: int,
    progress: Callable[[Iterable[int]], Iterable[int]],
) -> None:
    """Draw what is missing on so many workers, each with a GPU where the cluster has them.

    Args:
        job: What to draw, and what is there.
        spec: Makes a worker's drawer.
        num_workers: At most as many as batches are missing are started.
        progress: Wraps the numbers of the batches as they come in.

    Raises:
        UserError: If RAY_ADDRESS names a cluster that does not answer, or it has too few GPUs.
    """
    missing = job.missing()
    cluster = ClusterConfig(num_workers=max(1, min(num_workers, len(missing))))
    with joined_cluster(cluster):
        on_gpus = uses_gpus(cluster)
        options: dict[str, Any] = {"num_cpus": 1, "num_gpus": 1 if on_gpus else 0}
        made = ray.remote(_Worker).options(
            max_restarts=_RESTARTS, max_task_retries=_RESTARTS, **options
        )
        batches = ray.put(job.batches)
        pool = ActorPool([made.remote(spec, batches) for _ in range(cluster.num_workers)])

        def results() -> Iterable[int]:
            for number, result in pool.map_unordered(
                lambda worker, number: worker.draw.remote(number), missing
            ):
                job.keep(number, result)
                yield number

        for _ in progress(results()):
            pass
