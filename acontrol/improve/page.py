"""The page: figures of each round, and real defects beside what was drawn like them."""

import html
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from acontrol import reporting
from acontrol.data.images import read_image
from acontrol.evaluation.report import Table
from acontrol.improve.misses import Region
from acontrol.improve.rounds import Rounds
from acontrol.runs import storage

FINAL = "final"  # Folder of the figures of the test images.
_SHOWN = 12  # Defects of a round.
_DRAWN = 3  # Drawings of a defect.
_AROUND = 2.0  # Sides of a square around a defect, in longer sides of the defect.


def write_page(rounds: Rounds, results: Sequence[Mapping[str, Any]]) -> Path:
    """Write OUT/index.html."""
    tested = "Detectors are tested on training images that their fold holds out."
    if rounds.folds is None:
        tested = "The maps are another detector's; nothing was trained."
    body = f"<p>{tested} Round by round the test images stay closed.</p>"
    final = Path(FINAL, "index.html")
    if (rounds.config.out / final).exists():
        body += f"<p><a href='{final}'>What the test images say</a>, opened at the end.</p>"
    for number, result in enumerate(results, start=1):
        body += _figures(rounds, number, result).html() + _gains(number, result).html()
    for number in range(1, max(1, len(results)) + 1):
        if (rounds.folder(number) / "admitted.json").exists():
            body += _drawings(rounds, number, results)
    file = rounds.config.out / "index.html"
    storage.write(file, reporting.page("What was missed, and what was drawn", body).encode())
    return file


def _figures(rounds: Rounds, number: int, result: Mapping[str, Any]) -> Table:
    drawn = {
        rounds.source(name, round_): len(rounds.kept(name, round_))
        for round_ in range(1, number + 1)
        for name in rounds.names
    }
    names = ("found", "missed", "false alarm", "suspect")
    rows = [
        (
            source,
            str(drawn.get(source, 0)),
            *(str(own[name]) for name in names),
            *(f"{100 * own[name]:.1f}" for name in ("pixel_ap", "pixel_aupro", "image_auroc")),
        )
        for source, own in result["figures"].items()
    ]
    return Table(
        f"Round {number}",
        (
            "trained on",
            "drawings",
            "found",
            "missed",
            "false alarms",
            "suspects",
            "pixel AP",
            "AUPRO",
            "image AUROC",
        ),
        tuple(rows),
        "Drawings of all rounds so far, of which a fold's detectors see those whose reference "
        "it does not hold out. Defects found and missed at each source's own best threshold; "
        "metrics in per cent. A suspect is a strong response outside the label of a defective "
        "image: perhaps a defect that is not labelled.",
    )


def _gains(number: int, result: Mapping[str, Any]) -> Table:
    rows = [
        (
            source,
            f"{100 * own['pixel_ap']:+.1f} [{100 * own['low']:+.1f}, {100 * own['high']:+.1f}]",
        )
        for source, own in result["gains"].items()
    ]
    return Table(
        f"Round {number}: pixel AP against each",
        ("against", "difference"),
        tuple(rows),
        "Percentage points with 95 %, paired by images and seeds. An interval that holds 0 "
        "shows no difference.",
    )


def _drawings(rounds: Rounds, number: int, results: Sequence[Mapping[str, Any]]) -> str:
    """What became of the drawings, and a sheet: a defect, then what was drawn like it."""
    name = rounds.names[0]
    admitted = rounds.admit(number)[name]
    verdicts = [one["verdict"] for one in admitted]
    counts = ", ".join(f"{verdicts.count(own)} {own}" for own in dict.fromkeys(verdicts))
    by_seed = {one["seed"]: one for one in admitted}
    found = _found_after(rounds, number) if len(results) >= number else set()
    groups: dict[Region, list[Mapping[str, Any]]] = {}
    for wanted in rounds.plan(number, name):
        groups.setdefault(wanted.region, [])
        if wanted.seed in by_seed:
            groups[wanted.region].append(by_seed[wanted.seed])
    rows, captions = [], []
    shown = [*groups.items()][:_SHOWN]
    count = min(_DRAWN, max((len(own) for _, own in shown), default=0))
    drawn = rounds.folder(number) / "drawn" / name
    for region, own in shown:
        cells = [_crop(rounds.image_file(region.name), region.box)]
        for one in own[:count]:
            mask = np.asarray(Image.fromarray(read_image(drawn / one["mask"])).convert("L")) > 0
            ys, xs = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
            box = (int(xs[0]), int(ys[0]), int(xs[-1]) + 1, int(ys[-1]) + 1)
            cells.append(_crop(drawn / one["image"], box))
        became: str = region.kind
        if len(results) >= number:
            now = "found" if _key(region) in found else "missed"
            became = f"still {now}" if now == became else f"{became}, now {now}"
        told = [one["verdict"] for one in own[:count]]
        told += [""] * (count - len(told))  # A part of the caption under each picture.
        rows.append(cells)
        captions.append(" | ".join([f"{region.defect} {region.area} px: {became}", *told]))
    if not rows:
        return ""
    titles = ["real", *(f"drawn {n + 1}" for n in range(count))]
    sheet = reporting.contact_sheet(rows, titles, captions)
    heading = f"<h2>Round {number}: {html.escape(counts)}</h2>"
    return heading + reporting.picture(sheet, f"Round {number}: defects and their drawings")


def _found_after(rounds: Rounds, number: int) -> set[tuple[str, int]]:
    regions = rounds.regions(rounds.source(rounds.names[0], number))
    return {
        _key(region) for _, own in regions.values() for region in own if region.kind == "found"
    }


def _key(region: Region) -> tuple[str, int]:
    return region.name, region.number


def _crop(file: Path, box: tuple[int, int, int, int]) -> Image.Image:
    image = Image.fromarray(read_image(file))
    side = max(32, round(_AROUND * max(box[2] - box[0], box[3] - box[1])))
    left, top = ((box[n] + box[n + 2] - side) // 2 for n in (0, 1))
    left = min(max(0, left), max(0, image.width - side))
    top = min(max(0, top), max(0, image.height - side))
    return image.crop((left, top, min(image.width, left + side), min(image.height, top + side)))
