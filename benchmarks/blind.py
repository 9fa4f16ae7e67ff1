"""Can a person tell drawn defects from real ones? Shuffled crops, and the table of the answers.

    python -m benchmarks.blind make REAL DRAWN OUT [--split-file S] [--number 20] [--seed 0]
    python -m benchmarks.blind score OUT ANSWERS.json

`make` cuts a square of twice the defect's size, at least 64 px, out of random training defects
of REAL and as many drawn ones of DRAWN (`acontrol generate`), about as many of each defect, and
writes OUT/sheet.png: numbered, in random order, without masks. OUT/key.json
says which are drawn; nobody who answers may read it. ANSWERS.json holds the numbers that
somebody took for drawn, as a list. `score` prints the confusion table and the probability of as
many right answers or more by guessing.
"""

import argparse
import json
from pathlib import Path

import numpy as np
from PIL import Image
from scipy.stats import binom

from acontrol.data.crops import around
from acontrol.data.images import read_image
from acontrol.data.mvtec import LabelledImage, open_folder
from acontrol.reporting import contact_sheet

CELL_PX = 128
COLUMNS = 8
_LEAST_PX = 64  # Of a crop's side; a smaller one shows nothing of the surface.


def crop_of(image: LabelledImage) -> Image.Image:
    """The defect in its surroundings."""
    mask = image.read_mask()
    rows, columns = np.nonzero(mask)
    longest = max(int(np.ptp(rows)), int(np.ptp(columns))) + 1
    box = around(mask, max(2.0, _LEAST_PX / longest)).box
    return Image.fromarray(read_image(image.image)).crop(box)


def chosen(
    images: tuple[LabelledImage, ...], number: int, rng: np.random.Generator
) -> list[LabelledImage]:
    """Random images, about as many of each defect."""
    shuffled = [images[index] for index in rng.permutation(len(images))]
    turns: dict[str, int] = {}
    ranked = []
    for image in shuffled:
        turns[image.defect] = turns.get(image.defect, 0) + 1
        ranked.append((turns[image.defect], image))
    return [image for _, image in sorted(ranked, key=lambda pair: pair[0])[:number]]


def make(arguments: argparse.Namespace) -> None:
    """Write the sheet and its key."""
    rng = np.random.default_rng(arguments.seed)
    real = open_folder(arguments.real, split_file=arguments.split_file).labelled("train")
    drawn = open_folder(arguments.drawn).labelled("all")
    rows = [
        (is_drawn, image)
        for is_drawn, images in ((False, real), (True, drawn))
        for image in chosen(images, arguments.number, rng)
    ]
    rows = [rows[index] for index in rng.permutation(len(rows))]
    pictures = [crop_of(image) for _, image in rows]
    lines = [pictures[first : first + COLUMNS] for first in range(0, len(pictures), COLUMNS)]
    captions = [
        " | ".join(str(first + place + 1) for place in range(COLUMNS))
        for first in range(0, len(pictures), COLUMNS)
    ]
    arguments.out.mkdir(parents=True)
    contact_sheet(lines, [""] * COLUMNS, captions, CELL_PX).save(arguments.out / "sheet.png")
    key = {
        str(number): {"drawn": is_drawn, "image": image.key}
        for number, (is_drawn, image) in enumerate(rows, start=1)
    }
    (arguments.out / "key.json").write_text(json.dumps(key, indent=1))
    print(f"{arguments.out / 'sheet.png'}: {len(rows)} crops, {arguments.number} of them real")


def score(arguments: argparse.Namespace) -> None:
    """Print the confusion table."""
    key = json.loads((arguments.out / "key.json").read_text())
    answers = {str(number) for number in json.loads(arguments.answers.read_text())}
    unknown = answers - key.keys()
    if unknown:
        raise SystemExit(
            f"{arguments.answers}: no crop is numbered {', '.join(sorted(unknown))}"
        )
    counts = {(is_drawn, said): 0 for is_drawn in (False, True) for said in (False, True)}
    for number, one in key.items():
        counts[one["drawn"], number in answers] += 1
    print("| | said real | said drawn |\n| --- | --- | --- |")
    for is_drawn, name in ((False, "real"), (True, "drawn")):
        print(f"| {name} | {counts[is_drawn, False]} | {counts[is_drawn, True]} |")
    right = counts[False, False] + counts[True, True]
    chance = float(binom.sf(right - 1, len(key), 0.5))
    print(f"{right} of {len(key)} right; by guessing as many or more: {chance:.2g}")


def main() -> None:
    """Make a sheet, or score the answers to one."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(required=True)
    making = commands.add_parser("make")
    for name in ("real", "drawn", "out"):
        making.add_argument(name, type=Path)
    making.add_argument("--split-file", type=Path)
    making.add_argument("--number", type=int, default=20, help="crops of each kind")
    making.add_argument("--seed", type=int, default=0)
    making.set_defaults(run=make)
    scoring = commands.add_parser("score")
    for name in ("out", "answers"):
        scoring.add_argument(name, type=Path)
    scoring.set_defaults(run=score)
    arguments = parser.parse_args()
    arguments.run(arguments)


if __name__ == "__main__":
    main()
