"""Pictures of a comparison: precision over recall, and what detectors see."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from PIL import Image

from acontrol.data.mvtec import MvtecFolder
from acontrol.evaluation.images import ImageSet
from acontrol.evaluation.protocol import METRICS, Protocol
from acontrol.evaluation.quality import DefectType, synthetic_of
from acontrol.evaluation.results import TrainingJob
from acontrol.evaluation.summary import NAMES, Row
from acontrol.reporting import contact_sheet, outlined


def precision_recall_plot(
    trainings: Sequence[TrainingJob], out: Path, protocol: Protocol, file: Path
) -> None:
    """A line a source: pixel precision at each recall, mean over categories and seeds."""
    figure = Figure(figsize=(6.4, 4.6), layout="constrained")
    axes = figure.add_subplot()
    for source in dict.fromkeys(one.source for one in trainings):
        curves = []
        for one in trainings:
            if one.source == source:
                with np.load(one.file(out).with_suffix(".npz")) as arrays:
                    curves.append(arrays[f"{protocol}_curve"])
        recall, precision = np.mean(curves, axis=0)
        axes.plot(recall, precision, label=source)
    axes.set(
        xlabel="recall of defective pixels",
        ylabel="precision, at that recall or more",
        xlim=(0, 1),
        ylim=(0, 1.02),
        title=f"Pixels, protocol {protocol}",
    )
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(file, dpi=110)


def map_sheet(
    test: ImageSet, trainings: Mapping[str, TrainingJob], out: Path, protocol: Protocol
) -> Image.Image:
    """Test images with their masks, and each source's anomaly map.

    Args:
        test: The category's test images.
        trainings: One of that category for each source.
        out: The comparison's folder.
        protocol: Which epoch's maps.
    """
    columns, places = {}, np.zeros(0, dtype=int)
    for source, one in trainings.items():
        with np.load(one.file(out).with_suffix(".npz")) as arrays:
            places, columns[source] = arrays["shown"], arrays[f"{protocol}_maps"]
    rows = []
    for number, place in enumerate(places):
        image = Image.fromarray(test.images[place].permute(1, 2, 0).numpy())
        mask = Image.fromarray(test.masks[place].numpy())
        maps = [Image.fromarray(one[number]) for one in columns.values()]
        rows.append([image, outlined(image, mask), *maps])
    captions = [f"{test.defects[place]} {test.files[place].name}" for place in places]
    return contact_sheet(rows, ["test image", "its mask", *columns], captions)


def confusion_plot(
    trainings: Mapping[str, Sequence[TrainingJob]], names: Sequence[str], out: Path, file: Path
) -> None:
    """A panel a source: the share of each defect's test images that was taken for each defect.

    Args:
        trainings: Of one category, by source; their tables are added up.
        names: Defects, in the order of their labels.
        out: The comparison's folder.
        file: Where the picture goes.
    """
    side = 1.6 + 0.55 * len(names)
    figure = Figure(figsize=(side * len(trainings), side), layout="constrained")
    for number, (source, own) in enumerate(trainings.items(), start=1):
        tables = []
        for one in own:
            with np.load(one.file(out).with_suffix(".npz")) as arrays:
                tables.append(arrays["confusion"])
        counts = np.sum(tables, axis=0)
        shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
        axes = figure.add_subplot(1, len(trainings), number)
        axes.imshow(shares, vmin=0, vmax=1, cmap="Blues")
        for (row, column), share in np.ndenumerate(shares):
            color = "white" if share > 0.5 else "black"
            axes.text(column, row, f"{share:.2f}", ha="center", va="center", color=color)
        axes.set_xticks(range(len(names)), names, rotation=40, ha="right")
        axes.set_yticks(range(len(names)), names if number == 1 else [""] * len(names))
        axes.set(title=source, xlabel="taken for", ylabel="defect" if number == 1 else "")
    figure.savefig(file, dpi=110)


def kinds_sheet(kinds: Sequence[DefectType], folders: Mapping[str, MvtecFolder]) -> Image.Image:
    """A row a kind: a real defect, and the first of each generated folder."""
    rows = []
    for kind in kinds:
        row = []
        for pictures in (
            kind.training,
            *(synthetic_of(one, kind, 1) for one in folders.values()),
        ):
            if len(pictures):
                image = Image.fromarray(pictures.images[0].permute(1, 2, 0).numpy())
                row += [image, outlined(image, Image.fromarray(pictures.masks[0].numpy()))]
            else:
                row += [Image.new("RGB", (8, 8), "white")] * 2
        rows.append(row)
    titles = [text for name in ("real", *folders) for text in (name, "its mask")]
    return contact_sheet(rows, titles, [f"{one.category}/{one.defect}" for one in kinds])


def rows_plot(
    rows: Mapping[str, Row], metrics: Sequence[str], baseline: Row, file: Path
) -> None:
    """Each metric of each row with its interval, and the baseline as a dashed line."""
    figure = Figure(figsize=(3.6 * len(metrics), 3.8), layout="constrained")
    for number, metric in enumerate(metrics, start=1):
        place = METRICS.index(metric)
        axes = figure.add_subplot(1, len(metrics), number)
        values = np.array([row.values[place] for row in rows.values()])
        low, high = np.array([row.interval[:, place] for row in rows.values()]).T
        # A bootstrap interval need not hold the value itself.
        around = np.abs([np.minimum(low - values, 0), np.maximum(high - values, 0)])
        axes.errorbar(range(len(rows)), values, around, fmt="o", capsize=3)
        axes.axhline(
            baseline.values[place], linestyle="--", color="#9a9a9a", label="real alone"
        )
        axes.set_xticks(range(len(rows)), list(rows), rotation=40, ha="right")
        axes.set_title(NAMES[metric])
        axes.grid(axis="y", alpha=0.3)
        axes.legend()
    figure.savefig(file, dpi=110)
