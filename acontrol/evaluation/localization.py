"""Does synthetic data make a detector better? Train one on each source, and compare them."""

import dataclasses
import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, get_args

import numpy as np
import torch

from acontrol.data.mvtec import open_folder
from acontrol.errors import UserError, nearest
from acontrol.evaluation import caveats, drawing, figures, lite0, published, summary
from acontrol.evaluation.bootstrap import resample_weights, resampled
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
from acontrol.evaluation.dataset import (
    CONTROLS,
    DETECTOR,
    CategoryDataset,
    Folders,
    cached_dataset,
)
from acontrol.evaluation.estimate import seconds_a_detector, seconds_on_features
from acontrol.evaluation.metrics import Counts, FloatArray, count, precision_recall
from acontrol.evaluation.protocol import (
    PROTOCOLS,
    Protocol,
    Truth,
    chosen_epoch,
    score,
)
from acontrol.evaluation.report import Report
from acontrol.evaluation.results import TrainingJob, method_of, save
from acontrol.evaluation.settings import LocalizationConfig
from acontrol.evaluation.sources import Images, MaskMaker
from acontrol.evaluation.tally import Tally
from acontrol.evaluation.tiles import WholeImages, logit_map, resized
from acontrol.evaluation.trainer import anomaly_maps, train_detector
from acontrol.evaluation.trainings import announce, train_all
from acontrol.masks.perlin import perlin_blobs
from acontrol.runs.results import results_in
from acontrol.runs.tracking import Tracker

SHOWN = 4  # Test images whose maps are saved for the report.
KEPT_MAP, KEPT_WEIGHT = "logits/", "weight/"  # Prefixes of saved arrays: by image, by name.
_CURVE = 200  # Points of a saved curve.


@dataclass(frozen=True)
class Localization:
    """Trains a detector on normal images and a source, and tests it.

    Attributes:
        folders: Where images are.
        budget: How long to train.
        protocols: Protocols to report.
        data: Digests of the images by category and source, from `dataset.check`.
        masks: Makes Perlin's blobs, boolean (height, width).
        budgets: Budgets of detectors that have one of their own.
        folds: Where images of each fold of a cross-validation are.
        keep: Save each detector and its map of every test image too, of tiles alone.
    """

    folders: Folders
    budget: DetectorBudget
    protocols: Sequence[Protocol]
    data: Mapping[str, Mapping[str, str]]
    masks: MaskMaker
    budgets: Mapping[DetectorName, DetectorBudget] = field(default_factory=dict)
    folds: Mapping[int, Folders] = field(default_factory=dict)
    keep: bool = False

    @property
    def parts(self) -> tuple[str, ...]:
        """Metrics are grouped by protocol."""
        return tuple(self.protocols)

    def metadata(self, job: TrainingJob) -> dict[str, Any]:
        """What a training's result depends on."""
        features = {"features": lite0.record()} if job.detector in ON_FEATURES else {}
        return job.metadata(self.budget_of(job), self.data, **features)

    def budget_of(self, job: TrainingJob) -> DetectorBudget:
        """The budget of a training."""
        return self.budgets.get(job.detector, self.budget)

    def run(self, job: TrainingJob, out: Path) -> TrainingJob:
        """Train a detector, test it, and save the result."""
        folders = self.folds.get(job.fold, self.folders)
        dataset = cached_dataset(folders, job.category, self.data[job.unit])
        budget = self.budget_of(job)
        if budget.tile is not None:
            return self._run_tiles(job, out, dataset, budget)
        test = dataset.part("test")
        source = dataset.source(job.source, self.masks, budget)
        device = "cuda" if torch.cuda.is_available() else "cpu"
        truths = {protocol: Truth.of(test, protocol) for protocol in self.protocols}
        history: dict[Protocol, dict[int, dict[str, float]]] = {name: {} for name in truths}
        maps: dict[int, torch.Tensor] = {}
        losses = []
        normals = dataset.part("normals")
        clean = dataset.clean(job.source, budget)
        epochs = train_detector(budget, normals, source, job.seed, device, job.detector, clean)
        for epoch, (detector, loss) in enumerate(epochs, start=1):
            losses.append(loss)
            due = [name for name in truths if name == "paper" or epoch == budget.epochs]
            if not due:
                continue
            maps[epoch] = anomaly_maps(detector, test)
            for protocol in due:
                history[protocol][epoch] = score(maps[epoch], truths[protocol])
            best = {chosen_epoch(scores, name) for name, scores in history.items() if scores}
            maps = {epoch: maps[epoch] for epoch in best}
        metrics: dict[str, Any] = self.metadata(job) | {"losses": losses}
        arrays: dict[str, Any] = {"shown": np.array(shown(test))}
        weights = resample_weights(test.anomalous, job.unit)
        for protocol, scores in history.items():
            epoch = chosen_epoch(scores, protocol)
            own = maps[epoch]
            metrics[protocol] = {"epoch": epoch, **scores[epoch]}
            arrays[f"{protocol}_resamples"] = resampled(own, truths[protocol], weights)
            for defect, images in by_defect(test.defects).items():
                truth = truths[protocol].subset(images)
                values = metrics[protocol].setdefault(summary.BY_DEFECT, {})
                values[defect] = score(own[images], truth)
                drawn = resample_weights(truth.images, f"{job.unit}/{defect}")
                drawn = resampled(own[images], truth, drawn)
                arrays[f"{protocol}_resamples_{defect}"] = drawn
            (counts,) = count(own.numpy(), truths[protocol].pixels)
            arrays[f"{protocol}_curve"] = _curve(counts)
            arrays[f"{protocol}_maps"] = (own[arrays["shown"]] * 255).to(torch.uint8).numpy()
        save(job.file(out), metrics, arrays)
        return job

    def _run_tiles(
        self, job: TrainingJob, out: Path, dataset: CategoryDataset, budget: DetectorBudget
    ) -> TrainingJob:
        """The same on crops, tested on whole images by protocol strict."""
        assert budget.tile is not None
        test = dataset.images("test", budget)
        assert isinstance(test, WholeImages)
        device = "cuda" if torch.cuda.is_available() else "cpu"
        epochs = [
            *train_detector(
                budget,
                dataset.images("normals", budget),
                dataset.source(job.source, self.masks, budget),
                job.seed,
                device,
                job.detector,
                dataset.clean(job.source, budget),
            )
        ]
        detector, _ = epochs[-1]
        pictures = shown(test)
        maps, kept = {}, {}
        tally = Tally(budget.tile)
        for index, defect in enumerate(test.defects):
            image, mask = test.read(index)
            logits = logit_map(detector, image, budget.tile)
            tally.add(logits, mask, defect)
            if self.keep:
                kept[f"{KEPT_MAP}{index}"] = logits.half().numpy()
            if index in pictures:
                maps[index] = resized(logits.sigmoid(), budget.size)
        images = range(len(test))
        scores: dict[str, Any] = {"epoch": budget.epochs, **tally.score(images)}
        weights = resample_weights(test.anomalous, job.unit)
        arrays: dict[str, Any] = {
            "shown": np.array(pictures),
            "strict_resamples": tally.resampled(images, weights),
            "strict_curve": _curve(tally.pixels([*dict.fromkeys(test.defects)])[0]),
            "strict_maps": np.stack([maps[index].numpy() for index in pictures]),
            **kept,
        }
        if self.keep:
            weights_of = detector.state_dict().items()
            arrays |= {
                f"{KEPT_WEIGHT}{name}": value.cpu().numpy() for name, value in weights_of
            }
        for defect, own in by_defect(test.defects).items():
            scores.setdefault(summary.BY_DEFECT, {})[defect] = tally.score(own)
            weights = resample_weights(test.anomalous[own], f"{job.unit}/{defect}")
            arrays[f"strict_resamples_{defect}"] = tally.resampled(own, weights)
        losses = [loss for _, loss in epochs]
        save(job.file(out), self.metadata(job) | {"losses": losses, "strict": scores}, arrays)
        return job


def shown(test: Images) -> list[int]:
    """Indices of the test images in the report: the first ones of each defect, in turn."""
    groups = [
        [index for index, other in enumerate(test.defects) if other == defect]
        for defect in sorted(set(test.defects) - {"good"})
    ]
    turns = itertools.chain.from_iterable(itertools.zip_longest(*groups))
    return [index for index in turns if index is not None][:SHOWN]


def by_defect(defects: Sequence[str]) -> dict[str, list[int]]:
    """Indices of each defect's images and of the good ones; empty for a single defect."""
    names = sorted({*defects} - {"good"})
    if len(names) < 2:
        return {}
    return {
        name: [n for n, defect in enumerate(defects) if defect in (name, "good")]
        for name in names
    }


def _curve(counts: Counts) -> FloatArray:
    """Pixel precision at evenly spaced recalls, the best at that recall or more."""
    precision, recall = precision_recall(counts)
    best = np.maximum.accumulate(precision[::-1])[::-1]
    grid = np.linspace(0, 1, _CURVE)
    index = np.minimum(np.searchsorted(recall, grid), len(recall) - 1)
    return np.stack([grid, best[index]])


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
        lambda: _seconds_each(plan.jobs, budgets, protocols, len(test)),
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


def _seconds_each(
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
