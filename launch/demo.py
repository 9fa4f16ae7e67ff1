"""Show the whole chain on built-in data, offline, on a CPU, in a few minutes.

    python -m launch.demo [--out DIR]

Draws a data set, shards it, trains the tiny preset on two Ray workers with DeepSpeed, logs to
MLflow, draws new defects, and puts reference, mask, normal image and result into one picture.
"""

import json
import shutil
from collections.abc import Sequence
from pathlib import Path

from PIL import Image
from pydantic import Field

from acontrol.config import Settings, UserError
from acontrol.data.mvtec import open_folder
from acontrol.data.procedural import CATEGORIES, DEFECT_TYPES, write_dataset
from launch import shard, train
from launch.entry import main, parse

PROG = "python -m launch.demo"
MARKER = ".acontrol-demo"


class DemoCommand(Settings):
    """Options of launch.demo."""

    out: Path = Field(Path("runs/demo"), description="Folder for everything the demo makes.")
    steps: int = Field(40, ge=1, description="Training steps.")
    num_workers: int = Field(2, ge=1, description="Training processes.")
    seed: int = Field(0, ge=0, description="Of the data, the training and the drawing.")


def run(args: Sequence[str]) -> None:
    """Run every part in turn, and say where each thing is."""
    command = parse(DemoCommand, args, prog=PROG, description=__doc__)
    out = command.out
    _clear(out)
    data, shards, run_folder, drawn = (
        out / name for name in ("data", "shards", "run", "generated")
    )

    print("1/4  drawing the built-in data set: 6 products, 6 kinds of defect", flush=True)
    write_dataset(data, seed=command.seed, num_good=4, num_good_test=1, num_defects=6)
    print("2/4  writing WebDataset shards of the training third", flush=True)
    shard.run([str(data), "--out", str(shards)])
    print(
        f"3/4  training the adapter: {command.num_workers} Ray workers, DeepSpeed", flush=True
    )
    train.run(
        [
            "tiny",
            *("--data.shards", str(shards)),
            *("--output", str(run_folder)),
            *("--seed", str(command.seed)),
            *("--optim.steps", str(command.steps)),
            *("--cluster.num-workers", str(command.num_workers)),
            *("--checkpoint.every", "10"),
        ]
    )
    print("4/4  drawing new defects", flush=True)
    _draw(data, run_folder, drawn, command.seed)
    picture = out / "demo.png"
    _sheet(data, drawn).save(picture)
    print(
        "\nThe base's weights are random for now, so what is drawn in the masks is noise: "
        "the demo shows the machinery.\n"
        f"\n  picture      {picture}"
        f"\n  generated    {drawn}"
        f"\n  adapter      {run_folder / 'adapter'}"
        f"\n  data set     {data}"
        f"\n  shards       {shards}"
        f"\n\nMLflow:  mlflow ui --backend-store-uri "
        f"sqlite:///{(run_folder / 'mlflow.db').resolve()}"
    )


def _clear(out: Path) -> None:
    """Replace an earlier demo, and nothing else."""
    if out.exists() and any(out.iterdir()):
        if not (out / MARKER).exists():
            raise UserError(f"{out} exists and is no earlier demo: name another --out")
        shutil.rmtree(out)
    out.mkdir(parents=True, exist_ok=True)
    (out / MARKER).touch()


def _draw(data: Path, run_folder: Path, drawn: Path, seed: int) -> None:
    """What launch.generate does, for one kind of defect a product."""
    from acontrol.generation import draw
    from acontrol.generation.plan import plan

    pipeline, digest = draw.load_pipeline(str(run_folder))
    pipeline.set_progress_bar_config(disable=True)
    folder = open_folder(data)
    planned = [
        plan(folder, split="train", category=category, defect=defect, count=1, seed=seed)[0]
        for category, defect in zip(CATEGORIES, DEFECT_TYPES, strict=True)
    ]
    roots = (folder.root, folder.root)
    settings = draw.DrawSettings()
    draw.write_dataset(drawn, pipeline, digest, planned, settings, roots=roots, batch_size=6)


def _sheet(data: Path, drawn: Path) -> Image.Image:
    """One row an image: what was shown, where, on what, and what came."""
    from acontrol.generation.draw import MANIFEST_NAME
    from acontrol.sheet import contact_sheet, outlined

    rows, captions = [], []
    for line in map(json.loads, (drawn / MANIFEST_NAME).read_text().splitlines()):
        normal = Image.open(data / line["normal"])
        mask = Image.open(drawn / line["mask"])
        reference = Image.open(data / line["reference"])
        result = Image.open(drawn / line["image"])
        rows.append([reference, outlined(normal, mask), normal, result])
        captions.append(line["prompt"])
    return contact_sheet(rows, ["reference", "where", "normal image", "result"], captions)


if __name__ == "__main__":
    main(run)
