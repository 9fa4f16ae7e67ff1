"""Output next to the images: contact sheets, a page with all images, and shards."""

import html
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean
from urllib.parse import quote

import numpy as np
from PIL import Image

from acontrol.data.images import read_image, read_mask, region, shrink_mask
from acontrol.data.mvtec import LabelledImage
from acontrol.data.shards import write_shards
from acontrol.generation.gallery import gallery, quality, rejected_table, write_thumbnails
from acontrol.generation.manifest import Line, Roots, drawn_file
from acontrol.generation.settings import Gate
from acontrol.messages import counted
from acontrol.reporting import contact_sheet, in_cell, page, table, tinted

ROWS = 12  # Of a contact sheet, evenly over the type's images.
TITLES = ("normal", "where", "reference", "result", "difference x3")


def write_report(
    folder: Path, lines: Sequence[Line], roots: Roots, gate: Gate, notes: Sequence[str] = ()
) -> None:
    """Write report/index.html with its thumbnails, and report/CATEGORY-DEFECT.png.

    Args:
        folder: The generated data set.
        lines: Of all its images, kept or not, at least one of them drawn.
        roots: Folders that the manifest's paths start at.
        gate: The job's.
        notes: Sentences at the top of the page.
    """
    drawn = [line for line in lines if drawn_file(line)]
    kept = [line for line in drawn if line["image"] is not None]
    rejected = [line for line in drawn if line["image"] is None]
    failed = len(lines) - len(drawn)
    shown = kept or rejected
    types: dict[tuple[str, str], list[Line]] = {}
    for line in shown:
        types.setdefault((line["category"], line["defect"]), []).append(line)
    report = folder / "report"
    report.mkdir(exist_ok=True)
    rows, sheets = [], []
    for (category, defect), group in sorted(types.items()):
        count = min(ROWS, len(group))
        sample = [group[row * len(group) // count] for row in range(count)]
        _sheet(folder, sample, roots).save(report / f"{category}-{defect}.png")
        rows.append(_row(f"{category}/{defect}", group))
        file = quote(f"{category}-{defect}.png")
        sheets.append(f"<a href='{file}'>{html.escape(f'{category}/{defect}')}</a>")
    write_thumbnails(folder, drawn)
    heads = (
        "defect",
        "images",
        "passed",
        "mask-fill",
        "distance",
        "limit",
        "background PSNR, dB",
        "autoencoder's PSNR, dB",
    )
    passed = sum(line["scores"]["passed"] for line in kept)
    counts = f"{counted(len(kept), 'image')} with masks, of which {passed} passed the gate"
    if rejected:
        counts += f"; {len(rejected)} did not pass (in rejected/)"
    if failed:
        counts += f"; {failed} could not be drawn (rejected.jsonl)"
    body = (
        f"{''.join(f'<p><b>note:</b> {html.escape(note)}</p>' for note in notes)}"
        f"<p>{counts}.</p>"
        f"<p>The table has means over the {'' if kept else 'rejected '}images. "
        "<b>Mask-fill</b>: share of the mask that changed by more than the autoencoder's own "
        "error. <b>Distance</b>: to the nearest training defect of its kind, in the vision "
        "tower's features; up to <b>limit</b>, it is as near as training defects are to each "
        "other. <b>PSNR</b>: of the background, after and before the normal image's own pixels "
        "were put back.</p>"
        f"{table(heads, rows)}"
        f"<p>Contact sheets, with the references: {', '.join(sheets)}</p>"
    )
    if rejected:
        best_first = sorted(rejected, key=quality, reverse=True)
        body += rejected_table(best_first, gate, shown=not kept)
    if kept:
        body += gallery(sorted(kept, key=quality, reverse=True))
    text = page("Generated defects", body)
    (report / "index.html").write_text(text, encoding="utf-8")


def _row(name: str, lines: Sequence[Line]) -> list[str]:
    scores = [line["scores"] for line in lines]
    return [
        name,
        str(len(lines)),
        str(sum(score["passed"] for score in scores)),
        f"{fmean(score['mask_fill'] for score in scores):.2f}",
        _mean(scores, "distance", ".3f"),
        _mean(scores, "limit", ".3f"),
        _mean(scores, "background_psnr", ".1f"),
        _mean(scores, "leak_psnr", ".1f"),
    ]


def _mean(scores: Sequence[Mapping[str, float | None]], name: str, form: str) -> str:
    values = [value for score in scores if (value := score[name]) is not None]
    if values:
        return f"{fmean(values):{form}}"
    return "exact" if name == "background_psnr" else "-"


def _sheet(folder: Path, lines: Sequence[Line], roots: Roots) -> Image.Image:
    rows, captions = [], []
    for line in lines:
        left, top, right, bottom = _view(line["boxes"])
        view = (slice(top, bottom), slice(left, right))
        normal = read_image(roots["normal"] / line["normal"])[view].copy()
        result = read_image(folder / str(drawn_file(line)))[view].copy()
        with Image.open(folder / line["mask"]) as opened:
            mask = opened.convert("1").crop((left, top, right, bottom))
        gap = np.maximum(normal, result) - np.minimum(normal, result)
        difference = np.where(gap > 85, 255, 3 * np.minimum(gap, 85)).astype(np.uint8)
        before, after, gap_shown = (
            in_cell(Image.fromarray(pixels)) for pixels in (normal, result, difference)
        )
        where = tinted(before, shrink_mask(mask, before.size))
        rows.append([before, where, in_cell(_reference(line, roots)), after, gap_shown])
        scores = line["scores"]
        distance = "" if scores["distance"] is None else f", distance {scores['distance']:.3f}"
        verdict = "" if scores["passed"] else ", did not pass"
        captions.append(
            f"{line['number']}  {line['prompt']} | "
            f"fill {scores['mask_fill']:.2f}{distance}, try {line['attempt'] + 1}{verdict}"
        )
    return contact_sheet(rows, TITLES, captions)


def _reference(line: Line, roots: Roots) -> Image.Image:
    """The reference's defect with some of its surroundings."""
    pixels = read_image(roots["data"] / line["reference"])
    height, width = pixels.shape[:2]
    mask = read_mask(roots["data"] / line["reference_mask"], (width, height))
    return region(Image.fromarray(pixels), Image.fromarray(mask), margin=1.0)[0]


def _view(boxes: Sequence[Sequence[int]]) -> tuple[int, int, int, int]:
    """The smallest box around all crops: a small defect shows there."""
    return (
        min(box[0] for box in boxes),
        min(box[1] for box in boxes),
        max(box[2] for box in boxes),
        max(box[3] for box in boxes),
    )


def write_as_shards(folder: Path, lines: Sequence[Line]) -> None:
    """Also write images and texts as WebDataset shards, in shards/."""
    images = [
        LabelledImage(
            line["category"],
            line["defect"],
            line["number"],
            folder / line["image"],
            folder / line["mask"],
            line["prompt"],
            line["reference_phrase"],
        )
        for line in lines
    ]
    write_shards(images, folder / "shards", split="all", resolution=None)
