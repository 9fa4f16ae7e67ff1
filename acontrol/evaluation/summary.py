"""Trainings brought together: means over categories and seeds, with intervals."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from acontrol.evaluation.bootstrap import interval, mean_over_trainings, nan_mean
from acontrol.evaluation.metrics import FloatArray
from acontrol.evaluation.protocol import METRICS, Protocol
from acontrol.evaluation.report import Table
from acontrol.evaluation.results import TrainingJob

BASELINE = "real"  # What synthetic data has to beat.
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
    """A source by one protocol.

    Attributes:
        values: Mean over categories and seeds of each metric.
        resamples: The same in each bootstrap resample, (metric, resample).
        by_seed: Mean over categories for each seed, (seed, metric).
        by_category: Mean over seeds for each category, by name.
    """

    values: FloatArray
    resamples: FloatArray
    by_seed: FloatArray
    by_category: Mapping[str, FloatArray]

    @property
    def interval(self) -> FloatArray:
        """Low and high, (2, metric)."""
        return interval(self.resamples)


def summarise(
    trainings: Sequence[TrainingJob], out: Path, part: str, metrics: Sequence[str] = METRICS
) -> dict[str, Row]:
    """One row a source, in the order of the trainings, all of which are done.

    Args:
        trainings: Which.
        out: The comparison's folder.
        part: Group of metrics of a result; for detectors the protocol.
        metrics: Which of them.
    """
    rows = {}
    for source in dict.fromkeys(one.source for one in trainings):
        own = [one for one in trainings if one.source == source]
        exact: dict[str, list[FloatArray]] = {}
        drawn: dict[str, list[FloatArray]] = {}
        for one in own:
            found = json.loads(one.file(out).read_text())[part]
            exact.setdefault(one.category, []).append(np.array([found[m] for m in metrics]))
            with np.load(one.file(out).with_suffix(".npz")) as arrays:
                drawn.setdefault(one.category, []).append(arrays[f"{part}_resamples"])
        table = np.array(list(exact.values()))  # (category, seed, metric)
        rows[source] = Row(
            nan_mean(table, axis=(0, 1)),
            mean_over_trainings(list(drawn.values())),
            nan_mean(table, axis=0),
            {name: nan_mean(np.array(values), axis=0) for name, values in exact.items()},
        )
    return rows


def tables(rows: Mapping[str, Row], protocol: Protocol, about: str) -> list[Table]:
    """Metrics of each source, in per cent, and their differences to the baseline.

    Args:
        rows: Of `summarise`.
        protocol: Which.
        about: Budget, data and counts, for the note.
    """
    said = {
        "strict": "last epoch, F1 over all thresholds, binary masks",
        "paper": "best epoch on the test set, pixel F1 over 21 thresholds, truncated masks",
    }[protocol]
    title = f"Detection and localization, protocol {protocol}"
    against = f"Against {BASELINE} alone, protocol {protocol}"
    return compared(rows, [NAMES[name] for name in METRICS], (title, against), said, about)


def compared(
    rows: Mapping[str, Row],
    heads: Sequence[str],
    titles: tuple[str, str],
    said: str,
    about: str,
) -> list[Table]:
    """Metrics of each source, in per cent, and their differences to the baseline, if any.

    Args:
        rows: Of `summarise`.
        heads: Names of the metrics, in their order.
        titles: Of both tables.
        said: How the metrics are meant.
        about: Budget, data and counts.
    """
    first = Table(
        titles[0],
        ("trained on", *heads),
        tuple((source, *_cells(row.values, row.interval)) for source, row in rows.items()),
        f"In per cent; {said}. {about} In brackets 95 %, percentile bootstrap over test images "
        "and seeds.",
    )
    if BASELINE not in rows or len(rows) == 1:
        return [first]
    base = rows[BASELINE]
    differences = tuple(
        (
            source,
            *_cells(
                row.values - base.values, interval(row.resamples - base.resamples), sign="+"
            ),
        )
        for source, row in rows.items()
        if source != BASELINE
    )
    second = Table(
        titles[1],
        ("trained on", *heads),
        differences,
        "Differences in percentage points, paired by test images and seeds. An interval that "
        "holds 0 shows no difference.",
    )
    return [first, second]


def long_rows(
    rows: Mapping[str, Row], protocol: str, metrics: Sequence[str] = METRICS
) -> list[dict[str, Any]]:
    """A row for each source and metric, and category, for the CSV."""
    found = []
    for source, row in rows.items():
        low, high = row.interval
        for place, metric in enumerate(metrics):
            found.append(
                {
                    "protocol": protocol,
                    "source": source,
                    "category": "mean",
                    "metric": metric,
                    "value": row.values[place],
                    "low": low[place],
                    "high": high[place],
                    "by_seed": " ".join(f"{one[place]:.6f}" for one in row.by_seed),
                }
            )
            found += [
                {
                    "protocol": protocol,
                    "source": source,
                    "category": category,
                    "metric": metric,
                    "value": values[place],
                    "low": "",
                    "high": "",
                    "by_seed": "",
                }
                for category, values in row.by_category.items()
            ]
    return found


def _cells(values: FloatArray, ends: FloatArray, sign: str = "") -> list[str]:
    return [
        "-"  # Not defined: for instance no pixel is left of any defect.
        if np.isnan(value)
        else f"{100 * value:{sign}.1f} [{100 * low:{sign}.1f}, {100 * high:{sign}.1f}]"
        for value, low, high in zip(values, *ends, strict=True)
    ]
