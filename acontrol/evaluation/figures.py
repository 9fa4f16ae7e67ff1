"""Plots and contact sheets of the reports."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from PIL import Image

from acontrol.data.mvtec import MvtecFolder
from acontrol.evaluation.images import ImageSet
from acontrol.evaluation.protocol import METRICS, Protocol
from acontrol.evaluation.quality import DefectType, generated_images
from acontrol.evaluation.results import TrainingJob, method_of
from acontrol.evaluation.summary import NAMES, Row
from acontrol.reporting import contact_sheet, tinted


def precision_recall_plot(
    jobs: Sequence[TrainingJob], out: Path, protocol: Protocol, file: Path
) -> None:
    """Pixel precision over recall by source, mean over categories and seeds."""
    figure = Figure(figsize=(6.4, 4.6), layout="constrained")
    axes = figure.add_subplot()
    for source in dict.fromkeys(method_of(job.source) for job in jobs):
        own = [job for job in jobs if method_of(job.source) == source]
        curves = [job.array(out, f"{protocol}_curve") for job in own]
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
    test: ImageSet, jobs: Mapping[str, TrainingJob], out: Path, protocol: Protocol
) -> Image.Image:
    """Test images with their masks and the anomaly maps of a training of each source."""
    columns = {source: job.array(out, f"{protocol}_maps") for source, job in jobs.items()}
    shown = next(iter(jobs.values())).array(out, "shown").tolist()
    rows = [
        [*_pair(test, index), *(Image.fromarray(maps[row]) for maps in columns.values())]
        for row, index in enumerate(shown)
    ]
    captions = [f"{test.defects[index]} {test.files[index].name}" for index in shown]
    return contact_sheet(rows, ["test image", "its mask", *columns], captions)


def confusion_plot(
    jobs: Mapping[str, Sequence[TrainingJob]], names: Sequence[str], out: Path, file: Path
) -> None:
    """Row-normalized confusion matrices of a category by source, summed over trainings."""
    side = 1.6 + 0.55 * len(names)
    figure = Figure(figsize=(side * len(jobs), side), layout="constrained")
    for number, (source, own) in enumerate(jobs.items(), start=1):
        counts = np.sum([job.array(out, "confusion") for job in own], axis=0)
        shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
        axes = figure.add_subplot(1, len(jobs), number)
        axes.imshow(shares, vmin=0, vmax=1, cmap="Blues")
        for (row, column), share in np.ndenumerate(shares):
            color = "white" if share > 0.5 else "black"
            axes.text(column, row, f"{share:.2f}", ha="center", va="center", color=color)
        axes.set_xticks(range(len(names)), names, rotation=40, ha="right")
        axes.set_yticks(range(len(names)), names if number == 1 else [""] * len(names))
        axes.set(title=source, xlabel="taken for", ylabel="defect" if number == 1 else "")
    figure.savefig(file, dpi=110)


def defects_sheet(
    defect_types: Sequence[DefectType], folders: Mapping[str, MvtecFolder]
) -> Image.Image:
    """A real image of each defect type, and the first image of each generated folder."""
    blank = [Image.new("RGB", (8, 8), "white")] * 2
    rows = []
    for defect_type in defect_types:
        generated = [generated_images(folder, defect_type, 1) for folder in folders.values()]
        cells = [
            _pair(images, 0) if len(images) else blank
            for images in (defect_type.training, *generated)
        ]
        rows.append([image for pair in cells for image in pair])
    titles = [text for name in ("real", *folders) for text in (name, "its mask")]
    return contact_sheet(rows, titles, [defect_type.name for defect_type in defect_types])


def _pair(images: ImageSet, index: int) -> list[Image.Image]:
    """An image, and the same with its mask."""
    image = Image.fromarray(images.images[index].permute(1, 2, 0).numpy())
    return [image, tinted(image, Image.fromarray(images.masks[index].numpy()))]


def rows_plot(
    rows: Mapping[str, Row], metrics: Sequence[str], baseline: Row, file: Path
) -> None:
    """Metrics of rows with intervals, and the baseline as a dashed line."""
    figure = Figure(figsize=(3.6 * len(metrics), 3.8), layout="constrained")
    for number, metric in enumerate(metrics, start=1):
        index = METRICS.index(metric)
        axes = figure.add_subplot(1, len(metrics), number)
        values = np.array([row.values[index] for row in rows.values()])
        low, high = np.array([row.interval[:, index] for row in rows.values()]).T
        # A bootstrap interval need not contain the value itself.
        around = np.abs([np.minimum(low - values, 0), np.maximum(high - values, 0)])
        axes.errorbar(range(len(rows)), values, around, fmt="o", capsize=3)
        axes.axhline(
            baseline.values[index], linestyle="--", color="#9a9a9a", label="real alone"
        )
        axes.set_xticks(range(len(rows)), list(rows), rotation=40, ha="right")
        axes.set_title(NAMES[metric])
        axes.grid(axis="y", alpha=0.3)
        axes.legend()
    figure.savefig(file, dpi=110)
