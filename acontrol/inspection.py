"""What a data set holds, and what may not be as it was meant: for `acontrol inspect`."""

import html
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageOps
from scipy import ndimage

from acontrol.data import left_out, pieces
from acontrol.data.crops import bounds
from acontrol.data.images import FORMATS, opened, read_image, region, shrink_mask
from acontrol.data.mvtec import LabelledImage, MvtecFolder
from acontrol.data.validation import check, empty_defects
from acontrol.errors import UserError
from acontrol.messages import counted
from acontrol.reporting import outlined, page, picture, table

SHOWN = 8  # Thumbnails and lines of a finding.
SIDE = 144  # Of a thumbnail, in pixels.
GREY = 8  # Levels: channels that differ by less are one.
UNEVEN = 10  # Times as many images of one defect as of another.

Progress = Callable[[Iterable[Any], str], Iterable[Any]]


@dataclass(frozen=True)
class Finding:
    """Something that a person should look at.

    Attributes:
        text: A sentence: what, how many, and what to do.
        names: What it is about, or a message on each.
        pictures: Thumbnails of the first ones, defects outlined.
    """

    text: str
    names: tuple[str, ...] = ()
    pictures: tuple[Image.Image, ...] = ()


@dataclass(frozen=True)
class DefectSizes:
    """How large a defect's masks are.

    Attributes:
        areas: Share of the image that each covers, in (0, 1].
        widths: Thickest place of each, in pixels.
    """

    areas: tuple[float, ...]
    widths: tuple[float, ...]


@dataclass(frozen=True)
class CategoryInspection:
    """What a category holds.

    Attributes:
        name: The category.
        counts: Training and test images of each defect, and of good ones.
        files: Number of images by format, mode and size.
        grey: Whether its good images have no colour; None without good images.
        sizes: Sizes of each defect's masks.
        samples: Some of each defect.
        findings: What to look at.
    """

    name: str
    counts: dict[str, tuple[int, int]]
    files: dict[str, int]
    grey: bool | None
    sizes: dict[str, DefectSizes]
    samples: list[Finding] = field(default_factory=list)
    findings: list[Finding] = field(default_factory=list)


def inspect(
    folder: MvtecFolder, progress: Progress = lambda items, _: items
) -> tuple[list[CategoryInspection], list[Finding]]:
    """Look at every image of a data set; nothing stops it.

    Args:
        folder: The data set.
        progress: Wraps what takes time, with a label.

    Returns:
        Each category, and what was found beside them.
    """
    beside = [Finding(f"{note}.") for note in left_out.notes(folder)]
    for text in (*empty_defects(folder), _captions_of_nobody(folder)):
        if text:
            beside.append(Finding(f"{text}."))
    return [_category(folder, name, progress) for name in folder.categories], beside


def _category(folder: MvtecFolder, name: str, progress: Progress) -> CategoryInspection:
    bad: list[str] = []
    try:
        images = list(folder.labelled("all", name, left_out=bad))
        training = {row.key for row in pieces.training_images(folder, name)}
    except UserError as error:
        return CategoryInspection(name, {}, {}, None, {}, [], [Finding(f"{error}.")])
    good: dict[Path, bool] = {}  # Whether each trains.
    for part in ("train", "test"):
        try:
            good |= dict.fromkeys(folder.normals(name, part), part == "train")
        except UserError as error:
            bad.append(str(error))
    checked = check(images, True, progress=lambda rows: progress(rows, f"{name}: defects"))
    readable, grey = _readable(progress([*good], f"{name}: good"), bad)
    counts = {
        "good": (sum(good[file] for file in readable), sum(not good[f] for f in readable))
    }
    for row in checked.good:
        train, test = counts.get(row.defect, (0, 0))
        trains = row.key in training
        counts[row.defect] = (train + trains, test + (not trains))
    of_defect = {
        defect: [row for row in checked.good if row.defect == defect]
        for defect in counts
        if defect != "good"
    }
    result = CategoryInspection(
        name,
        counts,
        _formats([*readable, *(row.image for row in checked.good)]),
        all(grey) if grey else None,
        {defect: _sizes(rows) for defect, rows in of_defect.items()},
    )
    for defect, rows in of_defect.items():
        some = rows[:: max(1, len(rows) // SHOWN)][:SHOWN]
        names = tuple(row.key for row in some)
        pictures = _thumbnails(some, near=True)
        result.samples.append(Finding(f"{defect}, close up and outlined:", names, pictures))
    by_key = {row.key: row for row in checked.good}
    add = result.findings.append
    if bad or checked.bad:
        lines = (*bad, *checked.bad)
        total = len(lines) + len(readable) + len(checked.good)
        add(Finding(f"{len(lines)} of {counted(total, 'image')} cannot be used.", lines))
    remarks: tuple[tuple[str, str, Collection[str], bool], ...] = (
        (
            "Small defects",
            "; shard --resolution None, train --data.target-view region",
            checked.small,
            True,
        ),
        ("Masks over half of the image", "; is white the good part?", checked.large, False),
    )
    for what, advice, keys, near in remarks:
        if keys:
            chosen = [by_key[key] for key in keys]
            text = f"{what}: {len(chosen)} of {len(by_key)}{advice}."
            add(Finding(text, tuple(keys), _thumbnails(chosen, near=near)))
    _add_pieces(result, readable, checked.good, good, training, progress)
    _add_balance(result)
    return result


def _readable(files: Iterable[Path], bad: list[str]) -> tuple[list[Path], list[bool]]:
    """Files that decode, and whether each has no colour; messages on the others."""
    readable, grey = [], []
    for file in files:
        try:
            pixels = read_image(file)
        except UserError as error:
            bad.append(str(error))
            continue
        readable.append(file)
        grey.append(int(np.ptp(pixels[::4, ::4], axis=2).max(initial=0)) < GREY)
    return readable, grey


def _formats(files: Sequence[Path]) -> dict[str, int]:
    """Number of files by format and mode, with their sizes, the most frequent first."""
    kinds: dict[str, list[tuple[int, int]]] = {}
    for file in files:
        with opened(file, FORMATS) as image:
            kinds.setdefault(f"{image.format} {image.mode}", []).append(image.size)
    counts = {}
    for kind, sizes in sorted(kinds.items(), key=lambda item: -len(item[1])):
        (width, height), (widest, highest) = np.min(sizes, axis=0), np.max(sizes, axis=0)
        one = f"{kind}, {width} x {height}"
        few = sorted({*sizes})
        if len(few) > 2:
            counts[f"{one} to {widest} x {highest}, {len(few)} sizes"] = len(sizes)
        else:
            for size in few:
                counts[f"{kind}, {size[0]} x {size[1]}"] = sizes.count(size)
    return counts


def _sizes(rows: Sequence[LabelledImage]) -> DefectSizes:
    areas, widths = [], []
    for row in rows:
        mask = row.read_mask()
        areas.append(float(mask.mean()))
        left, top, right, bottom = bounds(mask)
        part = np.pad(mask[top:bottom, left:right], 1)
        widths.append(2 * float(ndimage.distance_transform_edt(part).max()) - 1)
    return DefectSizes(tuple(areas), tuple(widths))


def _add_pieces(
    result: CategoryInspection,
    good: Sequence[Path],
    defective: Sequence[LabelledImage],
    good_trains: dict[Path, bool],
    training: set[str],
    progress: Progress,
) -> None:
    """Add what shows the same piece twice."""
    files = [*good, *(row.image for row in defective)]
    trains = [good_trains[file] for file in good] + [row.key in training for row in defective]
    found = pieces.find_pieces(files, len(good), progress, result.name)
    sizes = np.bincount(found.labels)
    shared = np.flatnonzero(sizes > 1)
    if not len(shared):
        return
    across = 0
    for label in shared:
        sides = {trains[row] for row in np.flatnonzero(found.labels == label)}
        across += len(sides) == 2
    advice = "none of them in training and in test"
    if across:
        advice = (
            f"{across} of them in training and in test: acontrol split --by pieces keeps each "
            "on one side"
        )
    # Two of a piece beside each other.
    first = [row for label in shared for row in np.flatnonzero(found.labels == label)[:2]]
    result.findings.append(
        Finding(
            f"{int(sizes[shared].sum())} of {counted(len(files), 'image')} show "
            f"{counted(len(shared), 'piece')} several times, {advice}.",
            tuple(str(files[row]) for row in first),
            tuple(_small(Image.fromarray(read_image(files[row]))) for row in first[:SHOWN]),
        )
    )


def _add_balance(result: CategoryInspection) -> None:
    """Add what is rare, or missing on a side."""
    defects = {name: sum(pair) for name, pair in result.counts.items() if name != "good"}
    add = result.findings.append
    if not any(result.counts.get("good", ())):
        add(Finding("It has no good images: name a folder that has some with --normal."))
    if not defects:
        add(Finding("It has no usable defect."))
        return
    untrained = [name for name in defects if not result.counts[name][0]]
    if untrained:
        add(
            Finding(
                f"No image trains of {', '.join(untrained)}: a third of under three is none; "
                "add images, or shard with --split all."
            )
        )
    most, least = max(defects, key=lambda n: defects[n]), min(defects, key=lambda n: defects[n])
    if defects[most] > UNEVEN * defects[least]:
        add(
            Finding(
                f"{most} has {counted(defects[most], 'image')} and {least} {defects[least]}: "
                "compare results defect by defect."
            )
        )


def _thumbnails(
    rows: Sequence[LabelledImage], *, near: bool = False
) -> tuple[Image.Image, ...]:
    """The first images with their defects outlined, whole or near."""
    pictures = []
    for row in rows[:SHOWN]:
        image, mask = Image.fromarray(read_image(row.image)), Image.fromarray(row.read_mask())
        if near:
            image, mask = region(image, mask, margin=1)
        small = _small(image)
        resized = shrink_mask if small.width < mask.width else Image.Image.resize
        pictures.append(outlined(small, resized(mask, small.size)))
    return tuple(pictures)


def _small(image: Image.Image) -> Image.Image:
    """An image as large as a thumbnail: a close-up of a small defect is enlarged."""
    return ImageOps.contain(image, (SIDE, SIDE), Image.Resampling.BICUBIC)


def _captions_of_nobody(folder: MvtecFolder) -> str | None:
    try:
        return left_out.unused_captions(folder)
    except UserError as error:
        return str(error)


def as_text(categories: Sequence[CategoryInspection], beside: Sequence[Finding]) -> str:
    """The report for a terminal."""
    lines: list[str] = []
    for category in categories:
        colour = {None: "", True: ", grey", False: ", in colour"}[category.grey]
        lines.append(f"{category.name}{colour}")
        lines += [f"  {count} {kind}" for kind, count in category.files.items()][:SHOWN]
        if len(category.files) > SHOWN:
            lines.append(f"  ... and {len(category.files) - SHOWN} other kinds of file")
        lines.append(f"  {'':<16}{'train':>6}{'test':>6}  {'area':<22}thickest place")
        for name, (train, test) in category.counts.items():
            lines.append(
                f"  {name:<16}{train:>6}{test:>6}  {'  '.join(_in_words(category, name))}"
            )
        lines += _lines(category.findings)
    return "\n".join([*lines, *_lines(beside)])


def _lines(findings: Sequence[Finding]) -> list[str]:
    lines = []
    for finding in findings:
        lines.append(f"  - {finding.text}")
        lines += [f"      {name}" for name in finding.names[:SHOWN]]
        if len(finding.names) > SHOWN:
            lines.append(f"      ... and {len(finding.names) - SHOWN} more")
    return lines


def _in_words(category: CategoryInspection, defect: str) -> tuple[str, str]:
    """Area and width of a defect's masks: median, smallest and largest."""
    sizes = category.sizes.get(defect)
    if sizes is None or not sizes.areas:
        return "", ""
    low, middle, high = np.quantile(sizes.areas, (0, 0.5, 1))
    thin, usual, thick = np.quantile(sizes.widths, (0, 0.5, 1))
    area = f"{middle:.2%} ({low:.2%}-{high:.2%})"
    return area, f"{usual:.0f} px ({thin:.0f}-{thick:.0f})"


def as_page(
    root: Path, categories: Sequence[CategoryInspection], beside: Sequence[Finding]
) -> str:
    """The report as a page that needs no other file."""
    parts = []
    for category in categories:
        colour = {None: "", True: ", grey", False: ", in colour"}[category.grey]
        kinds = ", ".join(f"{count} {kind}" for kind, count in category.files.items())
        rows = [
            [name, str(train), str(test), *_in_words(category, name)]
            for name, (train, test) in category.counts.items()
        ]
        heads = ("images", "train", "test", "area: median (range)", "thickest place")
        parts.append(
            f"<h2>{html.escape(category.name + colour)}</h2><p>{html.escape(kinds)}</p>"
            f"{table(heads, rows)}{_sections(category.samples)}{_sections(category.findings)}"
        )
    if beside:
        parts.append(f"<h2>Also in this folder</h2>{_sections(beside)}")
    return page(f"What {root} holds", "".join(parts))


def _sections(findings: Sequence[Finding]) -> str:
    parts = []
    for finding in findings:
        shown = "".join(
            picture(image, name)
            for image, name in zip(finding.pictures, finding.names, strict=False)
        )
        names = "".join(f"<li>{html.escape(name)}</li>" for name in finding.names)
        listed = f"<details><summary>which</summary><ul>{names}</ul></details>" if names else ""
        parts.append(f"<p>{html.escape(finding.text)}</p>{shown}{listed}")
    return "".join(parts)
