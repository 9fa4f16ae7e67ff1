"""Train, draw and measure with each part of the method added in turn (the paper's Table 4).

    python -m launch.evaluate ablation PRESET --real ROOT --data.shards DIR --out DIR

Rows: nothing (the base alone, gamma 0), sga (C' from the image alone), csm (image and text),
and t1 to t5 (with so many steps of ASEA). All settings of launch.train are the rows' common
ones. Every row is a training on Ray with a nested MLflow run, then a generated set, then the
scores of launch.evaluate quality and the detectors of launch.evaluate localization. Killed, the
same command continues.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from pydantic import Field

from acontrol.config import RunConfig
from acontrol.data.mvtec import MvtecFolder, open_folder
from acontrol.errors import UserError
from launch.train import read_config_of

PROG = "python -m launch.evaluate ablation"
ROWS = ("nothing", "sga", "csm", "t1", "t2", "t3", "t4", "t5")


class AblationCommand(RunConfig):
    """Options of launch.evaluate ablation, besides those of a training run."""

    real: Path | None = Field(None, description="Folder of real images, in MVTec AD's layout.")
    out: Path | None = Field(None, description="Folder for results; the same one continues.")
    rows: str = Field(",".join(ROWS), description="Rows to compare, divided by commas.")
    budget: Literal["paper", "small", "smallest"] = Field(
        "paper", description="How much to train detectors."
    )
    count: int | None = Field(
        None, ge=1, description="Images to draw of each defect; by default the budget's pairs."
    )
    seeds: int = Field(3, ge=1, description="Detectors of each category and row.")
    features: tuple[Literal["inception", "lpips-vgg", "vlm"], ...] = Field(
        ("vlm",), min_length=1, description="Networks that look, as launch.evaluate quality."
    )
    weights: Path = Field(Path("weights"), description="Folder of their weights.")
    dry_run: bool = Field(False, description="Only say what would be trained and drawn.")

    @property
    def run(self) -> RunConfig:
        """What the rows' trainings have in common."""
        own = set(AblationCommand.model_fields) - set(RunConfig.model_fields)
        return RunConfig.model_validate(self.model_dump(exclude=own))


def run(args: Sequence[str]) -> None:
    """Train, draw, measure, and write the table."""
    command = read_config_of(AblationCommand, args, PROG, __doc__)
    rows, out = _check(command)
    from acontrol.evaluation.backends import load_backend
    from acontrol.evaluation.budget import BUDGETS
    from acontrol.evaluation.comparison import (
        said_of_likeness,
        say_how_long,
        train_missing,
    )
    from acontrol.evaluation.dataset import Folders, Material, check
    from acontrol.evaluation.localization import Localization
    from acontrol.evaluation.protocol import PROTOCOLS
    from acontrol.evaluation.results import Training
    from acontrol.masks.perlin import perlin_blobs
    from acontrol.networks.load import quieten
    from acontrol.runs.cluster import joined_cluster
    from acontrol.runs.mlflow_client import tracking_uri
    from acontrol.runs.paths import absolute
    from acontrol.runs.results import results_in
    from acontrol.train.driver import run_training
    from launch import generate
    from launch.evaluate_ablation_report import report

    quieten()
    assert command.real is not None
    base = absolute(command.run.model_copy(update={"output": str(out)}))
    folder = open_folder(command.real)
    _check_shards(base, folder)
    budget = BUDGETS[command.budget]
    count = command.count or budget.pairs
    real = command.real.resolve()
    sets = {row: out / "rows" / row / "images" for row in rows}
    folders = Folders(real, sets, budget.size, budget.pairs)
    alike = said_of_likeness({one: check(folders, one, ["real"]) for one in folder.categories})
    for name in command.features:
        if name != "vlm":  # What is missing at the end of it all had better be known now.
            load_backend(name, command.weights, None)
    trainings = [
        Training(category, source, seed)
        for category in folder.categories
        for seed in range(command.seeds)
        for source in ("real", *rows)
    ]
    kinds = sum(len(folder.defect_types(one)) for one in folder.categories)
    print(
        f"{len(rows)} rows ({', '.join(rows)}): {len({*map(_trained, rows)})} adapters "
        f"of {base.optim.steps} steps, {len(rows) * kinds * count} images, {len(trainings)} "
        f"detectors ({budget.describe()})",
        flush=True,
    )
    if command.dry_run:
        from acontrol.evaluation.estimate import seconds_a_detector

        test = Material(folders, folder.categories[0]).part("test")
        say_how_long(seconds_a_detector(budget, len(test), budget.epochs), len(trainings))
        return
    with (
        results_in(out, "ablation", base.tracking) as tracker,
        joined_cluster(
            base.cluster,
        ),
    ):
        uri = tracking_uri(base, out)
        for row in rows:
            config = row_config(base, _trained(row), out, uri, tracker.run_id)
            print(f"Row {row}: training", flush=True)
            run_training(config)
            print(f"Row {row}: drawing", flush=True)
            gamma = ["--scale", "0"] if row == "nothing" else []
            generate.run(
                [
                    *("--model", str(config.output), "--data", str(real)),
                    *("--out", str(sets[row]), "--count", str(count), "--gate", "off"),
                    *("--seed", str(base.seed), "--steps", str(base.samples.steps), *gamma),
                    *("--guidance-scale", str(base.samples.guidance_scale)),
                ]
            )
        data = {one: check(folders, one, ["real", *rows]).data for one in folder.categories}
        work = Localization(folders, budget, PROTOCOLS, data, perlin_blobs)
        train_missing(trainings, work, out, None)
        report(command, work, trainings, count, alike, tracker)


def _trained(row: str) -> str:
    """The row whose adapter a row draws with: at gamma 0 any does."""
    return "sga" if row == "nothing" else row


def row_config(base: RunConfig, row: str, out: Path, uri: str, parent: str) -> RunConfig:
    """The training of a row: the common settings with this row's parts on."""
    steps = int(row[1:]) if row[0] == "t" else 0
    return base.model_copy(
        update={
            "output": str(out / "rows" / row / "run"),
            "csm": base.csm.model_copy(update={"text": row != "sga"}),
            "asea": base.asea.model_copy(update={"steps": steps}),
            "tracking": base.tracking.model_copy(
                update={"uri": uri, "run_name": row, "parent_run": parent}
            ),
        }
    )


def _check(command: AblationCommand) -> tuple[list[str], Path]:
    """Rows and folder, once the arguments are known to be good."""
    for value, option in ((command.real, "--real ROOT"), (command.out, "--out DIR")):
        if value is None:
            raise UserError(f"{option} is needed")
    if command.output is not None:
        raise UserError("--output is a single run's: name the ablation's folder with --out")
    if command.data.shards is None:
        raise UserError("--data.shards DIR is needed: what launch.shard wrote")
    rows = [one.strip() for one in command.rows.split(",")]
    unknown = [one for one in rows if one not in ROWS]
    if unknown or len(set(rows)) < len(rows):
        wrong = unknown[0] if unknown else "a row twice"
        raise UserError(f"--rows: {wrong!r}; name each once, of: {', '.join(ROWS)}")
    assert command.out is not None
    return rows, command.out.resolve()


def _check_shards(base: RunConfig, folder: MvtecFolder) -> None:
    """Refuse shards with an image that detectors are tested on."""
    import numpy as np

    from acontrol.data.images import read_image
    from acontrol.data.reader import ShardReader
    from acontrol.evaluation.images import digest

    reader = ShardReader(base.data.shards or "", base.data.cache_dir)
    if reader.index.split != "train":
        raise UserError(
            f"{base.data.shards}: holds split {reader.index.split!r}, with the images that "
            "detectors are tested on; write it with launch.shard --split train"
        )
    tested = {digest(read_image(one.image)): one.image for one in folder.labelled("test")}
    for number, (_, sample) in enumerate(reader.places):
        pixels = np.asarray(reader.read(number).image.convert("RGB"))
        known = tested.get(digest(pixels))
        if known:
            raise UserError(
                f"{base.data.shards}: its sample {sample.key} is the test image {known}, pixel "
                "by pixel; write it from this data with launch.shard --split train"
            )
