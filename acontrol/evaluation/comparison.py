"""A comparison of sources: what is compared, and its trainings as tasks on Ray."""

import dataclasses
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import ray
from ray.exceptions import RayTaskError
from tqdm import tqdm

from acontrol.config import ClusterConfig
from acontrol.data.mvtec import MvtecFolder, open_folder
from acontrol.errors import UserError
from acontrol.evaluation.budget import Schedule
from acontrol.evaluation.dataset import CONTROLS, Checked, Folders, check
from acontrol.evaluation.results import Experiment, TrainingJob, is_done
from acontrol.evaluation.settings import ComparisonConfig
from acontrol.networks.load import quieten
from acontrol.runs.cluster import joined_cluster

Length = TypeVar("Length", bound=Schedule)


def named_folders(given: Sequence[str]) -> dict[str, Path]:
    """Folders by their names: NAME=DIR, or DIR, which is named after itself.

    Raises:
        UserError: If one does not exist, or two share a name or have a name of ours.
    """
    found: dict[str, Path] = {}
    for text in given:
        name, divided, rest = text.partition("=")
        if divided and not rest:
            raise UserError(f"--synthetic {text}: names no folder; write {name}=DIR")
        path = Path(rest if divided else text).resolve()
        name = name if divided else path.name
        if not re.fullmatch(r"[A-Za-z0-9_-][A-Za-z0-9_.-]*", name):
            raise UserError(
                f"--synthetic {text}: {name!r} is no name of letters, digits, _ . and -; give "
                "one, NAME=DIR"
            )
        if name in CONTROLS:
            raise UserError(
                f"--synthetic {text}: {name} is a source of its own; give another name"
            )
        if name in found:
            raise UserError(
                f"--synthetic {text}: two sources are named {name}; name them apart, NAME=DIR"
            )
        open_folder(path)
        found[name] = path
    return found


def source_names(
    given: str | None, controls: Sequence[str], synthetic: Sequence[str]
) -> list[str]:
    """The sources to compare, each once.

    Args:
        given: Names divided by commas; by default all.
        controls: Those that need no generator.
        synthetic: Names of generated folders; by default each alone and with "real".

    Raises:
        UserError: If one is unknown or named twice.
    """
    if given is None:
        generated = [one for name in synthetic for one in (name, f"real+{name}")]
        return [*controls, *generated]
    names = [one.strip() for one in given.split(",")]
    known = [*controls, *synthetic]
    for name in names:
        parts = name.split("+")
        for part in parts:
            if part not in known or (part == "none" and len(parts) > 1):
                raise UserError(
                    f"--sources: no source {name!r}; choose from {', '.join(known)} and "
                    "mixtures such as real+NAME"
                )
    if len(set(names)) < len(names):
        twice = next(one for one in names if names.count(one) > 1)
        raise UserError(f"--sources: {twice} is named twice")
    return names


def chosen_categories(folder: MvtecFolder, given: Sequence[str]) -> tuple[str, ...]:
    """The categories to compare on, each once; by default all.

    Raises:
        UserError: If one is unknown or named twice.
    """
    for name in given:
        folder.defect_types(name)
        if given.count(name) > 1:
            raise UserError(f"--category: {name} is named twice")
    return tuple(given) or folder.categories


def planned(
    command: ComparisonConfig,
    schedule: Schedule,
    categories: Sequence[str],
    sources: Sequence[str],
) -> list[TrainingJob]:
    """All trainings, which are announced."""
    trainings = [
        TrainingJob(category, source, seed)
        for category in categories
        for seed in range(command.seeds)
        for source in sources
    ]
    print(f"Budget: {schedule.describe()}")
    print(
        f"{len(trainings)} trainings: {len(categories)} categories x {len(sources)} sources "
        f"({', '.join(sources)}) x {command.seeds} seeds",
        flush=True,
    )
    return trainings


def compared(
    command: ComparisonConfig, budget: Length, controls: Sequence[str]
) -> tuple[Length, Folders, list[str]]:
    """What a command compares.

    Args:
        command: As it was given.
        budget: How much to train, before --pairs.
        controls: Sources that need no generator.

    Returns:
        The budget with --pairs, where images are, and the sources' names.

    Raises:
        UserError: If a folder does not exist, or a name is unknown or given twice.
    """
    synthetic = named_folders(command.synthetic)
    if command.pairs is not None:
        budget = budget.model_copy(update={"pairs": command.pairs})
    sources = source_names(command.sources, controls, list(synthetic))
    root = command.real.resolve()
    return budget, Folders(root, synthetic, budget.size, budget.pairs), sources


def check_out(command: ComparisonConfig) -> None:
    """Refuse a command that does not say where results go, before it reads anything.

    Raises:
        UserError: If it does not, and trains.
    """
    if command.out is None and not command.dry_run:
        raise UserError("--out DIR is needed: where results go")


def checked_data(
    command: ComparisonConfig,
    folders: Folders,
    categories: Sequence[str],
    sources: Sequence[str],
    base: Sequence[str],
) -> tuple[Folders, dict[str, dict[str, str]], str]:
    """Read all images, refuse what leaks, and say what shows a trained piece again.

    Args:
        command: Says whether that is left out.
        folders: Where images are.
        categories: Which.
        sources: What is trained on.
        base: Parts that all trainings see.

    Returns:
        The folders, without what is left out; for each category and source a digest of its
        images; sentences on what shows a trained piece again.
    """
    found = {one: check(folders, one, sources, base) for one in categories}
    said = said_of_likeness(found)
    if said and command.new_pieces:
        alike = frozenset(file for one in found.values() for file in one.alike)
        folders = dataclasses.replace(folders, left_out=alike)
        found = {one: check(folders, one, sources, base) for one in categories}
        said = f" {len(alike)} test images that show a trained piece again are left out."
        print(f"Left out: these, {len(alike)} in all", flush=True)
    elif command.new_pieces:
        print(
            "Left out: nothing; no test image looks like another photograph of a trained "
            "piece, or none can be compared (under 64 px, or where all pieces look alike)",
            flush=True,
        )
    return folders, {name: one.data for name, one in found.items()}, said


def said_of_likeness(found: Mapping[str, Checked]) -> str:
    """Say which test images are no new pieces to a network: a sentence, if there are any."""
    said = ""
    for category, one in found.items():
        if one.alike:
            own = (
                f" Of {category}'s {one.tested} test images {len(one.alike)} look like other "
                "photographs of pieces that are trained on: too good a result for new pieces "
                "(--new-pieces leaves them out)."
            )
            test, known = next(iter(one.alike.items()))
            print(f"Note:{own} For instance {test} and {known}", flush=True)
            said += own
    return said


def say_how_long(each: float, count: int) -> None:
    """Print an estimate, in seconds a training."""
    print(
        f"About {_hours(each)} a training on this machine, {_hours(each * count)} for all, one "
        "after the other; a Ray cluster trains as many at once as it has room"
    )


def train_all(
    trainings: Sequence[TrainingJob], work: Experiment, out: Path, at_once: int | None
) -> None:
    """Join a cluster, or start one, and train what is not there.

    Args:
        trainings: All.
        work: What they do.
        out: The comparison's folder.
        at_once: Trainings at a time; by default as many as there is room for.
    """
    for one in trainings:  # What is wrong there had better be said before a cluster starts.
        is_done(one, work, out)
    quieten()
    with joined_cluster(ClusterConfig(num_workers=at_once or 1)):
        train_missing(trainings, work, out, at_once)


def train_missing(
    trainings: Sequence[TrainingJob], work: Experiment, out: Path, at_once: int | None
) -> None:
    """Train what is not there, each as a task of the joined cluster, on a GPU if it has one.

    Args:
        trainings: All.
        work: What they do.
        out: The comparison's folder.
        at_once: Trainings at a time; by default as many as there is room for.
    """
    left = [one for one in trainings if not is_done(one, work, out)]
    done = len(trainings) - len(left)
    if done:
        print(f"Continuing: {done} of {len(trainings)} trainings are there", flush=True)
    gpus = 1 if ray.cluster_resources().get("GPU", 0) else 0
    task = ray.remote(_train).options(num_cpus=1, num_gpus=gpus, max_retries=2)
    running: list[Any] = []
    with tqdm(
        total=len(trainings), initial=done, desc="training", unit="network", disable=None
    ) as bar:
        while left or running:
            while left and len(running) < (at_once or len(trainings)):
                running.append(task.remote(work, left.pop(0), out))
            ended, running = ray.wait(running)
            for one in _results(ended):
                bar.set_postfix_str(f"{one.category} {one.source} {one.seed}")
                bar.update()


def _results(ended: Sequence[Any]) -> list[TrainingJob]:
    """What ended tasks return; what the user can put right is raised as it was there."""
    try:
        return list(ray.get(ended))
    except RayTaskError as error:
        if isinstance(error.cause, (UserError, OSError)):
            raise error.cause from None
        raise


def _train(work: Experiment, training: TrainingJob, out: Path) -> TrainingJob:
    return work.run(training, out)


def _hours(seconds: float) -> str:
    return f"{seconds / 3600:.1f} h" if seconds > 5400 else f"{seconds / 60:.1f} min"
