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
from typing import TYPE_CHECKING, Literal

from pydantic import Field

from acontrol.config import RunConfig, UserError
from acontrol.data.mvtec import open_folder
from launch.train import read_config_of

if TYPE_CHECKING:
    from acontrol.evaluation.localization import Localization
    from acontrol.evaluation.trainings import Training
    from acontrol.train.tracking import Tracker

PROG = "python -m launch.evaluate ablation"
ROWS = ("nothing", "sga", "csm", "t1", "t2", "t3", "t4", "t5")
TITLES = {"nothing": "nothing", "sga": "SGA", "csm": "SGA + CSM"}


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

    @property
    def run(self) -> RunConfig:
        """What the rows' trainings have in common."""
        own = set(AblationCommand.model_fields) - set(RunConfig.model_fields)
        return RunConfig.model_validate(self.model_dump(exclude=own))


def run(args: Sequence[str]) -> None:
    """Train, draw, measure, and write the table."""
    command = read_config_of(AblationCommand, args, PROG, __doc__)
    rows, out = _check(command)
    from acontrol.base import quieten
    from acontrol.evaluation.budget import BUDGETS
    from acontrol.evaluation.localization import Localization
    from acontrol.evaluation.material import Folders, check
    from acontrol.evaluation.protocol import PROTOCOLS
    from acontrol.evaluation.trainings import Training
    from acontrol.masks.perlin import perlin_blobs
    from acontrol.train.cluster import joined_cluster
    from acontrol.train.driver import only_launch, run_training
    from acontrol.train.mlflow_run import tracking_uri
    from acontrol.train.paths import absolute
    from launch import generate
    from launch.evaluate_tracking import open_run
    from launch.evaluate_trainings import package, train_missing

    quieten()
    assert command.real is not None
    base = absolute(command.run.model_copy(update={"output": str(out)}))
    _check_shards(base)
    budget = BUDGETS[command.budget]
    count = command.count or budget.pairs
    folder = open_folder(command.real)
    real = command.real.resolve()
    sets = {row: out / "rows" / row / "images" for row in rows}
    folders = Folders(real, sets, budget.size, budget.pairs)
    for category in folder.categories:
        check(folders, category, ["real"])
    with only_launch(out), joined_cluster(base.cluster, packages=[package()]):
        tracker = open_run(out, base.tracking)
        uri = tracking_uri(base, out)
        for row in rows:
            # Without an adapter nothing is trained: gamma 0 draws with the next one's base.
            trained = "sga" if row == "nothing" else row
            config = row_config(base, trained, out, uri, tracker.run_id)
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
        trainings = [
            Training(category, source, seed)
            for category in folder.categories
            for seed in range(command.seeds)
            for source in ("real", *rows)
        ]
        data = {one: check(folders, one, ["real", *rows]) for one in folder.categories}
        work = Localization(folders, budget, PROTOCOLS, data, perlin_blobs)
        train_missing(trainings, work, out, None)
    _report(command, work, trainings, count, tracker)


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


def _check_shards(base: RunConfig) -> None:
    from acontrol.data.reader import ShardReader

    reader = ShardReader(base.data.shards or "", base.data.cache_dir)
    if reader.index.split != "train":
        raise UserError(
            f"{base.data.shards}: holds split {reader.index.split!r}, with the images that "
            "detectors are tested on; write it with launch.shard --split train"
        )


def _report(
    command: AblationCommand,
    work: "Localization",
    trainings: "Sequence[Training]",
    count: int,
    tracker: "Tracker",
) -> None:
    from acontrol.evaluation import figures, quality, quoted, summary
    from acontrol.evaluation.protocol import METRICS
    from acontrol.evaluation.report import Report
    from acontrol.evaluation.tables import Table
    from launch.evaluate_features import load_backend
    from launch.evaluate_tracking import log

    out = command.out.resolve() if command.out else Path()
    folder = open_folder(work.folders.root)
    rows = list(work.folders.synthetic)
    model = str(out / "rows" / ("sga" if rows[0] == "nothing" else rows[0]) / "run")
    backends = [load_backend(name, command.weights, model) for name in command.features]
    kinds = quality.kinds_of(folder, folder.categories)
    columns = quality.column_names(backends)
    scores = {
        row: quality.mean_of(
            {
                (kind.category, kind.defect): quality.measure(kind, pictures, backends)
                for kind in kinds
                if len(pictures := quality.synthetic_of(open_folder(path), kind, count))
            }
        )
        for row, path in work.folders.synthetic.items()
    }
    about = (
        f"Budget {command.budget}: {work.budget.describe()}; {count} images drawn of each "
        f"defect, {command.optim.steps} training steps, {command.seeds} seeds of detectors, "
        f"one of adapters. Data {work.folders.root.name}."
    )
    written = Report(out, "What does each part add?")
    found = {
        protocol: summary.summarise(trainings, out, protocol) for protocol in work.protocols
    }
    strict = found["strict"]
    metrics = ("pixel_auroc", "image_auroc", "pixel_ap")
    shown = metrics[:2]  # Those of the paper's table.
    places = [METRICS.index(one) for one in shown]
    table = Table(
        "Ablation, protocol strict",
        ("row", *columns, *(f"{summary.NAMES[one]}, %" for one in shown)),
        tuple(
            (
                title(row),
                *(f"{value:.2f}" if value == value else "-" for value in scores[row].values()),
                *(
                    f"{100 * strict[row].values[place]:.1f} "
                    f"[{100 * strict[row].interval[0][place]:.1f}, "
                    f"{100 * strict[row].interval[1][place]:.1f}]"
                    for place in places
                ),
            )
            for row in rows
        ),
        f"{about} The networks' columns are scores of the generated images, the last ones of "
        "detectors trained on them, with 95 % intervals.",
    )
    written.tables.append(table)
    for protocol, summed in found.items():
        written.tables += summary.tables(summed, protocol, about)
        written.rows += summary.long_rows(summed, protocol)
    written.tables.append(quoted.ablation())
    plot = out / "ablation.png"
    figures.rows_plot({title(row): strict[row] for row in rows}, metrics, strict["real"], plot)
    written.add_picture("Detectors by row", plot)
    sheet = out / "images.png"
    figures.kinds_sheet(
        kinds, {row: open_folder(path) for row, path in work.folders.synthetic.items()}
    ).save(sheet)
    written.add_picture("The first images of each kind", sheet)
    files = written.write()
    found_values = {
        f"{row}/{name}": float(value)
        for row in rows
        for name, value in zip(METRICS, strict[row].values, strict=True)
    }
    log(tracker, {"ablation": {"rows": rows, "about": about}}, found_values, files)
    print(table.markdown())
    print(f"Look at {out / 'index.html'}")
    print(f"Results: {out / 'report.md'}")


def title(row: str) -> str:
    """A row's name in the table."""
    return TITLES.get(row) or f"+ ASEA T_g {row[1:]}"
