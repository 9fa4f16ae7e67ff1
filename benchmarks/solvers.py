"""How few steps draw what thirty of DDIM's draw? The same requests by each solver.

    python -m benchmarks.solvers MODEL DATA WORK [--count 60] [--split-file S] [--label TEXT]

Each solver and number of steps draws the same plan (masks, normal images, references, noise)
into WORK, with the gate keeping all and saying which pass. "From 200 steps" is the root mean
square, over channels and requests in grey levels, between the squares inside the masks and
those of DDIM's 200 steps, next to the exact solution; "drawn at all" is the same between those
and the normal images. Seconds are this process's
own for the whole command, without the one drawing that warms up. Writes
benchmarks/results/DATE_solvers_HARDWARE.{json,md}.
"""

import argparse
import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from acontrol.data.images import image_size, read_image, read_mask
from benchmarks.report import write_report
from launch import generate

EXACT = ("ddim", 200)
SETTINGS = (
    EXACT,
    ("ddim", 30),
    *(("ddim", steps) for steps in (20, 15, 10)),
    *((solver, steps) for solver in ("dpm++", "unipc") for steps in (20, 15, 10, 7, 5)),
)


def _name(solver: str, steps: int) -> str:
    return f"{solver}-{steps}"


def lines_of(folder: Path) -> list[dict[str, Any]]:
    """The manifest."""
    return [json.loads(line) for line in (folder / "manifest.jsonl").read_text().splitlines()]


def apart(drawn: Path, second: Path, other: str = "image") -> float:
    """Root mean square inside the masks between pictures of one plan, in grey levels."""
    squares, pixels = 0.0, 0
    for one, exact in zip(lines_of(drawn), lines_of(drawn.parent / _name(*EXACT)), strict=True):
        assert (one["normal"], one["seed"]) == (exact["normal"], exact["seed"])
        file = drawn / one["image"]
        mask = np.asarray(read_mask(drawn / one["mask"], image_size(file)))
        gap = read_image(file)[mask].astype(float) - read_image(second / exact[other])[mask]
        squares, pixels = squares + float((gap**2).sum()), pixels + gap.size
    return float(np.sqrt(squares / pixels))


def main() -> None:
    """Draw, compare and report."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model")
    parser.add_argument("data")
    parser.add_argument("work", type=Path)
    parser.add_argument("--count", default="60")
    parser.add_argument("--split-file")
    parser.add_argument("--label", default="", help="what model and data are, for the report")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    args = ["--model", arguments.model, "--data", arguments.data, "--gate", "keep"]
    args += ["--batch-size", "12", "--tries", "1", "--labels", "requested"]
    if arguments.split_file:
        args += ["--split-file", arguments.split_file]

    def draw(solver: str, steps: int, count: str = arguments.count, warm: str = "") -> float:
        out = arguments.work / f"{warm}{_name(solver, steps)}"
        begun = time.process_time()
        own = ["--solver", solver, "--steps", str(steps), "--count", count, "--out", str(out)]
        generate.run([*args, *own])
        return time.process_time() - begun

    draw("ddim", 2, "1", "warm-")
    seconds = {setting: draw(*setting) for setting in SETTINGS}
    exact = arguments.work / _name(*EXACT)
    rows = []
    for solver, steps in SETTINGS:
        own = arguments.work / _name(solver, steps)
        scores = [line["scores"] for line in lines_of(own)]
        rows.append(
            {
                "solver": solver,
                "steps": steps,
                "pass": f"{sum(score['passed'] for score in scores)} of {len(scores)}",
                "mask_fill": f"{np.mean([score['mask_fill'] for score in scores]):.3f}",
                "distance": f"{np.mean([score['distance'] for score in scores]):.4f}",
                "from_200_steps": f"{apart(own, exact):.2f}",
                "seconds": f"{seconds[solver, steps]:.0f}",
            }
        )
    settings = {
        "drawn": arguments.label,
        "drawn at all": f"{apart(exact, Path(arguments.data), 'normal'):.2f}",
        "machine": "2 shared CPU cores, one thread",
    }
    write_report("solvers", rows, settings, __doc__.splitlines()[0])


if __name__ == "__main__":
    main()
