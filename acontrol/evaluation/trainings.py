"""The trainings of a comparison: how long they take, and as tasks on Ray."""

import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import ray
import torch
from ray.exceptions import RayTaskError

from acontrol.config import ClusterConfig
from acontrol.errors import UserError
from acontrol.evaluation.results import Experiment, TrainingJob, is_done
from acontrol.messages import counted
from acontrol.networks.load import quieten
from acontrol.progress import progress, waiting
from acontrol.runs.cluster import joined_cluster

ASKS_FROM_S = 3600  # A command that takes longer asks first.


def announce(
    jobs: Sequence[TrainingJob],
    out: Path | None,
    seconds_each: Callable[[], float],
    *,
    yes: bool = False,
    besides: str = "",
) -> None:
    """Print how long the missing trainings take; on a terminal, ask before more than an hour.

    Without a terminal, as in a job or CI, nobody could answer: it goes on.

    Args:
        jobs: All trainings.
        out: Folder of results; None for a dry run, which counts all and asks nothing.
        seconds_each: Measures the seconds of a training.
        yes: Ask nothing.
        besides: What the estimate leaves out.

    Raises:
        UserError: If the answer is not yes.
    """
    count = sum(out is None or not job.file(out).is_file() for job in jobs)
    if not count:
        return
    with waiting("Timing a step of a training"):
        each = seconds_each()
    if torch.cuda.is_initialized():
        torch.cuda.empty_cache()  # The trainings are other processes.
    print(
        f"About {in_hours(each)} per training on this machine, {in_hours(each * count)} for "
        f"all {count}, one after the other{besides}; a Ray cluster trains as many at once as "
        "it has room",
        flush=True,
    )
    confirm(each * count, "nothing was trained", ask=out is not None and not yes)


def confirm(seconds: float, refused: str, *, ask: bool) -> None:
    """On a terminal, ask before what takes more than an hour, unless ``ask`` is False.

    Raises:
        UserError: If the answer is not yes; ``refused`` says what has not happened.
    """
    if not ask or seconds <= ASKS_FROM_S or not sys.stdin.isatty():
        return
    try:
        answer = input("Start? [y/N] ")
    except EOFError:
        answer = ""
    if answer.strip().lower() not in ("y", "yes"):
        raise UserError(
            f"{refused}: answer y or give --yes, or train less (--budget small, fewer --seeds)"
        )


def train_all(
    jobs: Sequence[TrainingJob], experiment: Experiment, out: Path, num_workers: int | None
) -> None:
    """Join or start a cluster and run the missing trainings, by default as many as fit."""
    for job in jobs:  # Refuses damaged or other results before a cluster starts.
        is_done(job, experiment, out)
    quieten()
    with joined_cluster(ClusterConfig(num_workers=num_workers or 1)):
        train_missing(jobs, experiment, out, num_workers)


def train_missing(
    jobs: Sequence[TrainingJob], experiment: Experiment, out: Path, num_workers: int | None
) -> None:
    """Run the missing trainings as tasks of the joined cluster, on GPUs if it has any."""
    missing = [job for job in jobs if not is_done(job, experiment, out)]
    done = len(jobs) - len(missing)
    if done:
        trainings = counted(len(jobs), "training is", "trainings are")
        print(f"Continuing: {done} of {trainings} done", flush=True)
    gpus = 1 if ray.cluster_resources().get("GPU", 0) else 0
    task = ray.remote(_train).options(num_cpus=1, num_gpus=gpus, max_retries=2)
    running: list[Any] = []
    with progress("training", len(jobs), "network", initial=done) as bar:
        while missing or running:
            while missing and len(running) < (num_workers or len(jobs)):
                running.append(task.remote(experiment, missing.pop(0), out))
            ended, running = ray.wait(running)
            for job in _results(ended):
                bar.set_postfix_str(f"{job.category} {job.source} {job.seed}")
                bar.update()


def _results(ended: Sequence[Any]) -> list[TrainingJob]:
    """Results of tasks; an error that the user can fix is raised as in the task."""
    try:
        return list(ray.get(ended))
    except RayTaskError as error:
        if isinstance(error.cause, (UserError, OSError)):
            raise error.cause from None
        raise


def _train(experiment: Experiment, job: TrainingJob, out: Path) -> TrainingJob:
    return experiment.run(job, out)


def in_hours(seconds: float) -> str:
    """A duration in words."""
    return f"{seconds / 3600:.1f} h" if seconds > 5400 else f"{seconds / 60:.1f} min"
