"""The command: rounds until nothing is gained, the page, and MLflow's runs."""

import hashlib
import shutil
from collections.abc import Sequence
from typing import Any

from acontrol.config import ClusterConfig, TrackingConfig
from acontrol.data.mvtec import MvtecFolder, open_folder
from acontrol.data.overlap import refuse_overlap
from acontrol.data.pieces import training_images
from acontrol.errors import UserError
from acontrol.evaluation import caveats
from acontrol.evaluation.budget import Budget, detector_budgets
from acontrol.evaluation.comparison import chosen_categories, folds_in
from acontrol.evaluation.dataset import Folders
from acontrol.evaluation.leaks import refuse_seen_tests
from acontrol.evaluation.localization_run import (
    detector_names,
    run_localization,
    seconds_each,
)
from acontrol.evaluation.settings import LocalizationConfig
from acontrol.evaluation.trainings import announce
from acontrol.improve.held import Folds
from acontrol.improve.page import FINAL, write_page
from acontrol.improve.rounds import Rounds
from acontrol.improve.settings import ImproveConfig
from acontrol.messages import counted
from acontrol.networks import locate
from acontrol.networks.load import quieten
from acontrol.pipelines.loading import load_adapter
from acontrol.runs.cluster import joined_cluster
from acontrol.runs.guard import claim
from acontrol.runs.inputs import DataInput
from acontrol.runs.results import log, open_run, results_in
from acontrol.runs.storage import sha256

SETTINGS = "settings.json"
# What may change when a command goes on.
_FREE = {"out", "rounds", "final", "num_workers", "tracking", "yes"}


def improve(config: ImproveConfig) -> None:
    """Run rounds; the same call continues.

    Raises:
        UserError: If a setting or the data must be fixed.
    """
    quieten()
    config = config.model_copy(update={"out": config.out.resolve()})
    refuse_overlap(
        config.out, "--out", {"ROOT": config.root, "--predictions": config.predictions}
    )
    real = open_folder(config.root.resolve(), split_file=config.split_file)
    categories = chosen_categories(real, config.category)
    card = load_adapter(config.model)[1]
    seen = (*locate.trained_on(card.base), *card.seen)
    refuse_seen_tests(f"--model {config.model}", seen, real, categories)
    if config.final and config.predictions is not None:
        raise UserError("--final: trains our detectors; leave it or --predictions out")
    folds = None if config.predictions is not None else _folds(config, real, categories)
    rounds = Rounds(config, real, categories, folds)
    data = DataInput.of_folder(real, "train", "evaluation", categories)
    if folds is not None:
        trainings = folds.jobs("real")
        per_round = len(trainings) * len(rounds.names)
        print(
            f"{counted(config.rounds, 'round')} at most: {counted(len(trainings), 'detector')} "
            f"of the real images, then {per_round} in each round",
            flush=True,
        )
        images = len(folds.folders[1].fold.test) if folds.folders[1].fold else 0
        budgets = {folds.detector: folds.budget}
        announce(
            [*trainings, *(j for n in rounds.names for j in folds.jobs(rounds.source(n, 1)))],
            config.out,
            lambda: seconds_each(trainings, budgets, ("strict",), images),
            yes=config.yes,
            besides=" (detectors of the first round alone: drawings come besides)",
        )
    settings = config.model_dump(mode="json", exclude=_FREE)
    settings["training_data_sha256"] = _digest(real, categories)
    with results_in(config.out, "improve", config.tracking, data) as tracker:
        claim(config.out / SETTINGS, settings, "--out")
        if folds is None:
            if _drawn(rounds, 1):
                _keep(rounds, 1)
            page = write_page(rounds, [])
            log(tracker, settings, {}, [page])
            print(f"Look at {page}")
            return
        results = []
        nested = {"uri": tracker.uri, "parent_run": tracker.run_id}
        with joined_cluster(ClusterConfig(num_workers=config.num_workers or 1)):
            for number in range(1, config.rounds + 1):
                result = _round(rounds, number)
                if result is None:
                    break
                results.append(result)
                page = write_page(rounds, results)
                own = nested | {"run_name": f"round {number}"}
                tracking = config.tracking.model_copy(update=own)
                nested_run = open_run(rounds.folder(number), tracking, "improve", data)
                log(nested_run, settings, _metrics(result), [])
                print(_sentence(rounds, number, result), flush=True)
                if result["gains"][rounds.before(number)]["low"] <= 0:
                    print("The gain's interval is not above 0: no further round", flush=True)
                    break
        if not results:
            page = write_page(rounds, results)
        _keep(rounds, len(results))
        if config.final and results:
            tracking = config.tracking.model_copy(update=nested | {"run_name": FINAL})
            _final(rounds, len(results), tracking)
            page = write_page(rounds, results)
        log(tracker, settings, _metrics(results[-1]) if results else {}, [page])
        print(f"Look at {page}")


def _folds(config: ImproveConfig, real: Any, categories: Any) -> Folds:
    (detector,) = detector_names(config.detector)
    changes = {"tile": config.tile, "tile_scale": config.tile_scale, "augment": True}
    budget = detector_budgets(config.budget, [detector], changes)[detector]
    assert isinstance(budget, Budget)
    print(f"Budget: {budget.describe()}")
    caveats.print_caveats(caveats.of_budget(config.budget))
    root, split_file = config.root.resolve(), config.split_file
    folders = Folders(
        root, {}, budget.size, budget.pairs, split_file=split_file and split_file.resolve()
    )
    return Folds(
        real,
        categories,
        folds_in(folders, real, categories, config.folds, config.groups),
        budget,
        detector,
        config.seeds,
        config.out,
    )


def _digest(real: MvtecFolder, categories: Sequence[str]) -> str:
    """Sha256 of the training part: names and files of images and masks.

    Phases keep what they found by an image's name or place, and cannot tell it from others.
    """
    total = hashlib.sha256()
    for category in categories:
        files = [*real.normals(category)]
        for row in training_images(real, category):
            row.read_mask()  # Says what is wrong if it is missing.
            files += [row.image, row.mask]
        for file in files:
            total.update(f"{real.name_of(category, file)} {sha256(file)}\n".encode())
    return total.hexdigest()


def _round(rounds: Rounds, number: int) -> dict[str, Any] | None:
    """All phases of a round; None if there is nothing to train on."""
    before = rounds.before(number)
    rounds.train(number - 1, ["real"] if number == 1 else ["real", before])
    if not _drawn(rounds, number):
        return None
    rounds.train(number, [rounds.source(name, number) for name in rounds.made(number)])
    return rounds.result(number)


def _drawn(rounds: Rounds, number: int) -> bool:
    """Plan, draw and admit; whether there is something to train on."""
    if not rounds.plan(number, rounds.names[0]):
        print(f"Round {number}: nothing was missed", flush=True)
        return False
    rounds.draw(number)
    rounds.admit(number)
    lacking = rounds.make_sets(number)
    if lacking is not None:
        file = rounds.folder(number) / "admitted.json"
        print(f"Round {number}: no drawing was kept for {lacking}; see {file}", flush=True)
    return lacking is None


def _keep(rounds: Rounds, number: int) -> None:
    """Put the last round's set at OUT/kept."""
    if number:
        kept = rounds.config.out / "kept"
        shutil.rmtree(kept, ignore_errors=True)
        shutil.copytree(rounds.folder(number) / "sets" / rounds.names[0] / "all", kept)
        print(f"Kept drawings: {kept}")


def _final(rounds: Rounds, number: int, tracking: TrackingConfig) -> None:
    config = rounds.config
    sets = rounds.folder(number) / "sets"
    run_localization(
        LocalizationConfig(
            real=config.root,
            split_file=config.split_file,
            category=config.category,
            out=config.out / FINAL,
            synthetic=tuple(f"{name}={sets / name / 'all'}" for name in rounds.made(number)),
            sources=",".join(["real", *(f"real+{name}" for name in rounds.made(number))]),
            protocol="strict",
            budget=config.budget,
            detector=config.detector,
            tile=config.tile,
            tile_scale=config.tile_scale,
            augment=True,
            seeds=config.seeds,
            num_workers=config.num_workers,
            tracking=tracking,
            yes=True,
        ),
        within=config.out,
    )


def _metrics(result: dict[str, Any]) -> dict[str, float]:
    return {
        f"{source.replace('+', '_')}/{name}".replace(" ", "_"): float(value)
        for source, own in result["figures"].items()
        for name, value in own.items()
    }


def _sentence(rounds: Rounds, number: int, result: dict[str, Any]) -> str:
    own = result["figures"][rounds.source(rounds.names[0], number)]
    before = result["figures"][rounds.before(number)]
    gain = result["gains"][rounds.before(number)]
    return (
        f"Round {number}: {before['missed']} missed before, {own['missed']} after; pixel AP "
        f"{100 * own['pixel_ap']:.1f} % ({100 * gain['pixel_ap']:+.1f} "
        f"[{100 * gain['low']:+.1f}, {100 * gain['high']:+.1f}])"
    )
