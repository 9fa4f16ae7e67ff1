"""Does synthetic data make a detector better? Train one on each source, and compare them."""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import get_args

import numpy as np

from acontrol.data.mvtec import open_folder
from acontrol.errors import UserError, nearest
from acontrol.evaluation import caveats, drawing, figures, lite0, published, summary
from acontrol.evaluation.budget import (
    ON_FEATURES,
    Budget,
    DetectorBudget,
    DetectorName,
    detector_budgets,
)
from acontrol.evaluation.comparison import (
    Plan,
    chosen_categories,
    named_folders,
    plan_comparison,
)
from acontrol.evaluation.dataset import CONTROLS, DETECTOR, CategoryDataset
from acontrol.evaluation.estimate import seconds_a_detector, seconds_on_features
from acontrol.evaluation.localization import Localization
from acontrol.evaluation.protocol import PROTOCOLS, Protocol
from acontrol.evaluation.report import Report
from acontrol.evaluation.results import TrainingJob, method_of
from acontrol.evaluation.settings import LocalizationConfig
from acontrol.evaluation.trainings import announce, train_all
from acontrol.masks.perlin import perlin_blobs
from acontrol.runs.results import results_in
from acontrol.runs.tracking import Tracker


def detector_names(option: str) -> list[DetectorName]:
    """Comma-separated detectors.

    Raises:
        UserError: If a name is unknown or given twice, or a detector's package is missing.
    """
    known: dict[str, DetectorName] = {name: name for name in get_args(DetectorName)}
    names = [name.strip() for name in option.split(",")]
    for name in names:
        if name not in known:
            raise UserError(f"--detector: no detector {name!r}; {nearest(name, known)}")
        if names.count(name) > 1:
            raise UserError(f"--detector: {name} is named twice")
        if name in ON_FEATURES:
            lite0.require(f"--detector {name}")
    return [known[name] for name in names]


def run_localization(config: LocalizationConfig, within: Path | None = None) -> None:
    """Train the missing detectors and write the report; the same call continues.

    ``within`` is another command's results that these are part of: openings of the test images
    are counted beside it.

    Raises:
        UserError: If a setting or the data must be fixed.
    """
    categories = chosen_categories(open_folder(config.real.resolve()), config.category)
    detectors = detector_names(config.detector)
    budgets = detector_budgets(config.budget, detectors, _changes(config))
    sets = drawing.planned_sets(config, budgets[detectors[0]].pairs)
    cautions = [
        *caveats.of_budget(config.budget),
        *caveats.of_folds(config.cross_validate, [*config.synthetic, *sets]),
        *caveats.of_files(named_folders(config.synthetic)),
    ]
    caveats.print_caveats(cautions)
    if sets:
        drawing.print_estimate(sets, ask=not (config.dry_run or config.yes))
    if sets and not config.dry_run:
        drawing.draw_sets(sets)
    drawn = {name: own.out for name, own in sets.items()}
    plan = plan_comparison(
        config, budgets[detectors[0]], CONTROLS, categories, DETECTOR, detectors, drawn
    )
    plan = dataclasses.replace(plan, within=within)
    for name in detectors[1:]:
        print(f"Budget of {name}: {budgets[name].describe()}")
    protocols = _protocols(config)
    test = CategoryDataset(plan.folds.get(1, plan.folders), categories[0]).part("test")
    announce(
        plan.jobs,
        plan.out,
        lambda: seconds_each(plan.jobs, budgets, protocols, len(test)),
        yes=config.yes,
    )
    if plan.out is None:
        return
    plan.open_test("localization")
    experiment = Localization(
        plan.folders, plan.budget, protocols, plan.data, perlin_blobs, budgets, plan.folds
    )
    with results_in(plan.out, "localization", config.tracking, plan.data_input()) as tracker:
        train_all(plan.jobs, experiment, plan.out, config.num_workers)
        report = Report(plan.out, "Does synthetic data help?", cautions)
        for category in categories if sets else ():
            file = plan.out / f"methods-{category}.png"
            drawing.grid(sets, category).save(file)
            report.add_picture(f"{category}: what each method drew", file)
        _report(plan, experiment, report, config.budget, tracker)


def _protocols(config: LocalizationConfig) -> tuple[Protocol, ...]:
    """The protocols to report.

    Raises:
        UserError: For the published one on whole images.
    """
    if config.tile is None:
        return PROTOCOLS if config.protocol == "both" else (config.protocol,)
    if config.protocol == "paper":
        raise UserError(
            "--tile: the protocol paper resizes images to squares; give --protocol strict, or "
            "leave --tile out"
        )
    return ("strict",)


def _changes(config: LocalizationConfig) -> dict[str, object]:
    """What the command's options change of every detector's budget."""
    changes: dict[str, object] = {"augment": config.augment, "ratio": config.ratio}
    changes |= {"tile": config.tile}
    if config.tile is not None:
        changes["tile_scale"] = config.tile_scale
    changes |= {"size": config.size} if config.size is not None else {}
    return changes | ({"pairs": config.pairs} if config.pairs is not None else {})


def seconds_each(
    jobs: Sequence[TrainingJob],
    budgets: Mapping[DetectorName, DetectorBudget],
    protocols: Sequence[Protocol],
    test_images: int,
) -> float:
    """Estimated seconds of a training, the mean over detectors."""
    each: dict[DetectorName, float] = {}
    for name, budget in budgets.items():
        if name in ON_FEATURES:
            each[name] = seconds_on_features(budget, test_images)
        else:
            assert isinstance(budget, Budget)
            rounds = 1 if tuple(protocols) == ("strict",) else budget.epochs
            each[name] = seconds_a_detector(name, budget, test_images, rounds)
    return float(np.mean([each[job.detector] for job in jobs]))


def _report(
    plan: Plan[DetectorBudget],
    experiment: Localization,
    report: Report,
    budget_name: str,
    tracker: Tracker,
) -> None:
    """Write tables, curves and maps, and log them."""
    out, jobs = report.out, plan.jobs
    metrics: dict[str, float] = {}
    detectors = [*dict.fromkeys(job.detector for job in jobs)]
    abouts = {
        name: plan.about(
            budget_name,
            f"; frozen features: {lite0.label()}" if name in ON_FEATURES else "",
            experiment.budgets[name],
        )
        for name in detectors
    }
    for protocol in experiment.protocols:
        for detector in detectors:
            own = [job for job in jobs if job.detector == detector]
            rows = summary.summarise(own, out, protocol)
            report.tables += summary.tables(rows, protocol, abouts[detector], detector)
            report.rows += summary.long_rows(rows, protocol, detector=detector)
            defects = summary.defect_rows(own, out, protocol)
            if defects:
                report.tables.append(summary.defects_table(defects, protocol, detector))
            for defect, of_defect in defects.items():
                report.rows += summary.long_rows(
                    of_defect, protocol, detector=detector, name=defect
                )
            suffix = "" if detector == "unet" else f"-{detector}"
            plot = out / f"precision-recall-{protocol}{suffix}.png"
            figures.precision_recall_plot(own, out, protocol, plot)
            report.add_picture(f"Precision over recall{suffix}, protocol {protocol}", plot)
            prefix = protocol if detector == "unet" else f"{protocol}/{detector}"
            values = summary.flat_metrics(rows)
            metrics |= {f"{prefix}/{name}": value for name, value in values.items()}
    first_table = report.tables[0]
    report.tables.append(published.localization())
    for category in dict.fromkeys(job.category for job in jobs):
        first = {
            job.source if job.detector == "unet" else f"{job.detector} {job.source}": job
            for job in jobs
            if job.source == method_of(job.source)  # Of several adapters the first.
            and (job.category, job.seed, job.fold) == (category, jobs[0].seed, jobs[0].fold)
        }
        folders = experiment.folds.get(jobs[0].fold, experiment.folders)
        test = CategoryDataset(folders, category).part("test")
        file = out / f"maps-{category}.png"
        figures.map_sheet(test, first, out, experiment.protocols[-1]).save(file)
        report.add_picture(f"{category}: anomaly maps of the first seed", file)
    about = " ".join(dict.fromkeys(abouts.values()))
    settings = {"budget": experiment.budget.model_dump(exclude_defaults=True), "about": about}
    report.publish(tracker, first_table, settings, metrics)
