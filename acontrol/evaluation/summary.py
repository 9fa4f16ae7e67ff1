"""Summary of trainings: means over categories and seeds, with intervals."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from acontrol.evaluation.bootstrap import interval, mean_over_adapters, nan_mean
from acontrol.evaluation.budget import DetectorName
from acontrol.evaluation.metrics import FloatArray
from acontrol.evaluation.protocol import METRICS, Protocol
from acontrol.evaluation.report import Table
from acontrol.evaluation.results import TrainingJob, method_of

# What synthetic data has to beat: the photographs alone, and their pixels pasted.
BASELINES = {"real": "real alone", "real+copy-paste": "real+copy-paste"}
BY_DEFECT = "by_defect"  # In a result, the metrics of each defect's images and the good ones.
NAMES = {
    "pixel_auroc": "pixel AUROC",
    "pixel_ap": "pixel AP",
    "pixel_f1_max": "pixel F1-max",
    "image_auroc": "image AUROC",
    "image_ap": "image AP",
    "image_f1_max": "image F1-max",
    "pixel_aupro": "AUPRO",
}


@dataclass(frozen=True)
class Row:
    """The metrics of a source by one protocol.

    Attributes:
        values: Means over categories and seeds, (metric,).
        resamples: Bootstrap resamples of these, (metric, resample).
        by_seed: Means over categories, (seed, metric).
        by_category: Means over seeds by category, (metric,).
    """

    values: FloatArray
    resamples: FloatArray
    by_seed: FloatArray
    by_category: Mapping[str, FloatArray]

    @property
    def interval(self) -> FloatArray:
        """95 % interval, low and high: (2, metric)."""
        return interval(self.resamples)


def summarise(
    jobs: Sequence[TrainingJob],
    out: Path,
    part: str,
    metrics: Sequence[str] = METRICS,
    defect: str | None = None,
) -> dict[str, Row]:
    """A row for each source, from the results of finished trainings.

    ``part`` is the group of metrics in a result: for detectors the protocol. With ``defect``
    they are those of its images and the good ones alone.
    """
    of_defect = "" if defect is None else f"_{defect}"
    rows = {}
    for source in dict.fromkeys(method_of(job.source) for job in jobs):
        exact: dict[str, list[FloatArray]] = {}
        resamples: dict[str, dict[str, list[FloatArray]]] = {}
        for job in jobs:
            if method_of(job.source) == source:
                saved = job.metrics(out)[part]
                saved = saved if defect is None else saved[BY_DEFECT][defect]
                values = np.array([saved[name] for name in metrics])
                exact.setdefault(job.unit, []).append(values)
                array = job.array(out, f"{part}_resamples{of_defect}")
                adapters = resamples.setdefault(job.unit, {})
                adapters.setdefault(job.source, []).append(array)
        table = np.array(list(exact.values()))  # (category, seed, metric)
        rows[source] = Row(
            nan_mean(table, axis=(0, 1)),
            mean_over_adapters([[*adapters.values()] for adapters in resamples.values()]),
            nan_mean(table, axis=0),
            {name: nan_mean(np.array(seeds), axis=0) for name, seeds in exact.items()},
        )
    return rows


def flat_metrics(rows: Mapping[str, Row], metrics: Sequence[str] = METRICS) -> dict[str, float]:
    """Values as SOURCE/METRIC, for MLflow, which allows no "+" in names."""
    return {
        f"{source.replace('+', '_')}/{name}": float(value)
        for source, row in rows.items()
        for name, value in zip(metrics, row.values, strict=True)
    }


def defects_of(jobs: Sequence[TrainingJob], out: Path, part: str) -> dict[str, list[str]]:
    """The defects of each category that all its results have metrics of."""
    found: dict[str, list[str]] = {}
    for job in jobs:
        own = [*job.metrics(out)[part].get(BY_DEFECT, {})]
        known = found.setdefault(job.category, own)
        found[job.category] = [name for name in known if name in own]
    return found


def defect_rows(jobs: Sequence[TrainingJob], out: Path, part: str) -> dict[str, dict[str, Row]]:
    """Rows by source for each CATEGORY/DEFECT of categories with several defects."""
    return {
        f"{category}/{defect}": summarise(
            [job for job in jobs if job.category == category], out, part, METRICS, defect
        )
        for category, defects in defects_of(jobs, out, part).items()
        for defect in defects
    }


def defects_table(
    rows: Mapping[str, Mapping[str, Row]], protocol: Protocol, detector: DetectorName
) -> Table:
    """Metrics of each defect: a large defect has most pixels and hides the others."""
    shown = ("pixel_auroc", "pixel_ap", "pixel_aupro", "image_auroc", "image_ap")
    indices = [METRICS.index(name) for name in shown]
    return Table(
        f"Each defect{_by(detector)}, protocol {protocol}",
        ("defect", "trained on", *(NAMES[name] for name in shown)),
        tuple(
            (defect, source, *cells(row.values[indices], row.interval[:, indices]))
            for defect, own in rows.items()
            for source, row in own.items()
        ),
        "In per cent, of a defect's test images and all good ones; pooled over defects, as "
        "above, large defects outweigh small ones.",
    )


def _by(detector: DetectorName) -> str:
    return "" if detector == "unet" else f" by {detector}"


def tables(
    rows: Mapping[str, Row], protocol: Protocol, about: str, detector: DetectorName = "unet"
) -> list[Table]:
    """Tables of detectors' metrics in per cent, and of differences to each baseline."""
    definition = {
        "strict": "last epoch, F1 over all thresholds, binary masks",
        "paper": "best epoch on the test set, pixel F1 over 21 thresholds, truncated masks",
    }[protocol]
    title = f"Detection and localization{_by(detector)}, protocol {protocol}"
    against = f"{_by(detector)}, protocol {protocol}"
    return comparison_tables(
        rows, [NAMES[name] for name in METRICS], (title, against), definition, about
    )


def comparison_tables(
    rows: Mapping[str, Row],
    heads: Sequence[str],
    titles: tuple[str, str],
    definition: str,
    about: str,
) -> list[Table]:
    """Tables of metrics in per cent, and of differences to each baseline that is a row.

    Args:
        rows: By source.
        heads: Of the metrics' columns.
        titles: Of the first table, and what follows "Against BASELINE" in the others'.
        definition: Of the metrics.
        about: Budget and data.
    """
    several = any(len(row.by_seed) > 1 for row in rows.values())
    drawn = f"test images{' and seeds' if several else ''}"
    first = Table(
        titles[0],
        ("trained on", *heads),
        tuple((source, *cells(row.values, row.interval)) for source, row in rows.items()),
        f"In per cent; {definition}. {about} In brackets 95 %, percentile bootstrap over "
        f"{drawn}.",
    )
    if len(rows) == 1:
        return [first]
    note = (
        f"Differences in percentage points, paired by {drawn}. An interval that holds 0 shows "
        "no difference."
    )
    against = [
        Table(
            f"Against {shown}{titles[1]}",
            ("trained on", *heads),
            tuple(
                (source, *_difference(row, rows[baseline]))
                for source, row in rows.items()
                if source != baseline
            ),
            note,
        )
        for baseline, shown in BASELINES.items()
        if baseline in rows
    ]
    return [first, *against]


def _difference(row: Row, base: Row) -> list[str]:
    """Cells of the paired difference."""
    return cells(row.values - base.values, interval(row.resamples - base.resamples), sign="+")


def long_rows(
    rows: Mapping[str, Row],
    protocol: str,
    metrics: Sequence[str] = METRICS,
    detector: DetectorName = "unet",
    name: str = "mean",
) -> list[dict[str, Any]]:
    """Rows of the CSV: for each source and metric the mean, and each category.

    ``name`` is what the means stand for; only "mean" itself is over categories.
    """
    table = []
    for source, row in rows.items():
        low, high = row.interval
        for index, metric in enumerate(metrics):
            by_seed = " ".join(f"{value:.6f}" for value in row.by_seed[:, index])
            entries = [(name, row.values[index], low[index], high[index], by_seed)]
            entries += [
                (category, values[index], "", "", "")
                for category, values in row.by_category.items()
                if name == "mean"
            ]
            table += [
                {
                    "protocol": protocol,
                    "source": source,
                    "category": category,
                    "metric": metric,
                    "value": value,
                    "low": low_end,
                    "high": high_end,
                    "by_seed": seeds,
                    "detector": detector,
                }
                for category, value, low_end, high_end, seeds in entries
            ]
    return table


def cells(values: FloatArray, ends: FloatArray, sign: str = "") -> list[str]:
    """Texts of values in per cent with their intervals."""
    return [
        "-"  # Undefined, for instance without a pixel of any defect.
        if np.isnan(value)
        else f"{100 * value:{sign}.1f} [{100 * low:{sign}.1f}, {100 * high:{sign}.1f}]"
        for value, low, high in zip(values, *ends, strict=True)
    ]
