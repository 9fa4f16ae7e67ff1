"""Every method draws the same 60 requests on the built-in data and base: pictures and speed.

    python -m benchmarks.rivals WORK [--steps 400] [--picture FILE.png]

WORK gets the data (five products, six defects, five training images of each), its shards, the
adapters `run` and `image-alone` and the fitted `lora` and `anodiff`, each after the same number
of steps of 8; then the sets drawn/METHOD, their quality and the picture:
a row for each method, the same normal image, mask and reference in a column. What WORK holds
is kept. Speed is images by seconds of this process in a method's own drawing, without gate and
files, over the five batches of 12: the median. Writes
benchmarks/results/DATE_rivals_HARDWARE.{json,md}.
"""

import argparse
import csv
import dataclasses
import json
import statistics
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from PIL import Image

from acontrol.data.builtin import write_dataset
from acontrol.generation import run as generation
from acontrol.generation.methods import LoadedMethod, load_method
from acontrol.reporting import contact_sheet, tinted
from acontrol.rivals.task import Drawing, Task
from benchmarks.report import write_report
from launch import evaluate, fit, generate, shard, train

CATEGORIES = ("button", "leather", "metal", "tile", "wood")
PLAN = ("--count", "2", "--seed", "1", "--batch-size", "12", "--guidance-scale", "4")
PLAN += ("--gate", "off")
# What each method is given besides.
METHODS: dict[str, dict[str, str]] = {
    "acontrol": {"model": "run"},
    "ip-adapter": {"model": "image-alone"},
    "lora": {"model": "run", "fitted": "lora"},
    "anodiff": {"model": "run", "fitted": "anodiff"},
    **{
        name: {"model": "run"}
        for name in ("reference-only", "copy-paste", "procedural", "cutpaste", "perlin")
    },
}
_BY = "by-"
SHOWN = 7  # Every so many requests, a column of the picture.


def learn(work: Path, steps: int) -> None:
    """The data, and what methods draw with."""
    data = work / "data"
    if not data.exists():
        write_dataset(
            data,
            seed=0,
            num_good=4,
            num_good_test=2,
            num_defects=15,
            categories=CATEGORIES,
            name_attributes=False,
        )
    if not (work / "shards").exists():
        shard.run([str(data), "--out", str(work / "shards")])
    tracking = f"sqlite:///{work.resolve()}/mlflow.db"
    options = f"--data.shards {work}/shards --optim.steps {steps} --optim.schedule cosine "
    options += f"--cluster.num-workers 1 --checkpoint.every 100 --samples.every {steps} "
    options += f"--tracking.uri {tracking}"
    for name, more in (("run", ""), ("image-alone", "--csm.no-text --asea.steps 0")):
        if not (work / name / "adapter").exists():
            args = f"tiny --output {work}/{name} {options} {more}"
            train.run(args.split())
    for name in ("lora", "anodiff"):
        args = f"{data} --output {work}/{name} --method {name} --crop 0 --steps {steps}"
        fit.run(f"{args} --tracking-uri {tracking}".split())


class Timed:
    """A method that keeps the seconds of its drawing."""

    def __init__(self, loaded: LoadedMethod):
        self.loaded, self.method = loaded, loaded.method
        self.images_per_s: list[float] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self.method, name)

    def draw(self, tasks: Sequence[Task]) -> list[Drawing]:
        """Draw, and look at the clock of this process."""
        begun = time.process_time()
        drawn = self.method.draw(tasks)
        self.images_per_s.append(len(tasks) / (time.process_time() - begun))
        return drawn


def draw(work: Path, name: str) -> None:
    """The 60 requests by one method, and its speed beside them."""
    out, speed = work / "drawn" / name, work / "drawn" / f"{name}.json"
    if speed.exists():
        return
    made: list[Timed] = []

    def timed(*args: Any) -> LoadedMethod:
        loaded = load_method(*args)
        made.append(Timed(loaded))
        return dataclasses.replace(loaded, method=made[0])

    args = ["--method", name, "--data", str(work / "data"), "--out", str(out), *PLAN]
    for option, folder in METHODS[name].items():
        args += [f"--{option}", str(work / folder)]
    with mock.patch.object(generation, "load_method", timed):
        generate.run(args)
    speed.write_text(json.dumps(made[0].images_per_s))


def lines_of(folder: Path) -> list[dict[str, Any]]:
    """The manifest."""
    return [json.loads(line) for line in (folder / "manifest.jsonl").read_text().splitlines()]


def picture(work: Path, methods: Sequence[str]) -> Image.Image:
    """A row of normal images with masks, one of references, and one of each method."""
    data = work / "data"
    plan = lines_of(work / "drawn" / methods[0])[::SHOWN]
    rows = [
        [
            tinted(
                Image.open(data / line["normal"]),
                Image.open(work / "drawn" / methods[0] / line["mask"]),
            )
            for line in plan
        ],
        [Image.open(data / line["reference"]).convert("RGB") for line in plan],
    ]
    for name in methods:
        folder = work / "drawn" / name
        own = lines_of(folder)[::SHOWN]
        assert [line["normal"] for line in own] == [line["normal"] for line in plan]
        assert [line["reference"] for line in own] == [line["reference"] for line in plan]
        rows.append([Image.open(folder / line["image"]) for line in own])
    titles = [Path(line["reference"]).parent.name for line in plan]
    captions = ["normal image and mask", "reference", *methods]
    return contact_sheet(rows, titles, captions, cell_px=64)


def quality(work: Path, methods: Sequence[str]) -> dict[str, dict[str, str]]:
    """The figures of `acontrol evaluate quality`, means over categories, by method.

    The real defects are there as "real".
    """
    file = work / "quality" / "results.csv"
    if not file.exists():
        # Some names are an evaluation's own sources.
        sets = [f"{_BY}{name}={work / 'drawn' / name}" for name in methods]
        args = ["--real", str(work / "data"), "--synthetic", *sets, "--out", str(file.parent)]
        tracking = f"sqlite:///{work}/mlflow.db"
        evaluate.run(["quality", *args, "--tracking.uri", tracking])
    means = {}
    for row in csv.DictReader(file.read_text().splitlines()):
        if row["category"] == "mean":
            figures = {
                name: "-" if value == "nan" else f"{float(value):.4g}"
                for name, value in row.items()
                if name not in ("source", "category", "defect")
            }
            means[row["source"].removeprefix(_BY)] = figures
    return means


def main() -> None:
    """Learn, draw, measure and show."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("work", type=Path)
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--picture", type=Path)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    work = arguments.work.resolve()
    learn(work, arguments.steps)
    for name in METHODS:
        draw(work, name)
    sheet = picture(work, list(METHODS))
    sheet.save(arguments.picture or work / "rivals.png", optimize=True)
    figures = quality(work, list(METHODS))
    rows: list[dict[str, Any]] = []
    for name in METHODS:
        speeds = json.loads((work / "drawn" / f"{name}.json").read_text())
        speed = f"{statistics.median(speeds):.3g}"
        rows.append({"method": name, "images_per_s": speed, **figures[name]})
    rows.append({"method": "real", "images_per_s": "-", **figures["real"]})
    settings = {
        "machine": "2 shared CPU cores, one thread",
        "command": f"python -m benchmarks.rivals WORK --steps {arguments.steps}",
        "plan": " ".join(PLAN),
    }
    write_report("rivals", rows, settings, __doc__.splitlines()[0])


if __name__ == "__main__":
    main()
