"""Train, draw and measure with each part of the method added in turn (the paper's Table 4)."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from acontrol.config import RunConfig
from acontrol.data.images import read_image
from acontrol.data.mvtec import MvtecFolder, open_folder
from acontrol.data.reader import ShardReader
from acontrol.errors import UserError
from acontrol.evaluation import figures, published, quality, summary
from acontrol.evaluation.backends import load_backend
from acontrol.evaluation.budget import BUDGETS
from acontrol.evaluation.comparison import (
    said_of_likeness,
    say_how_long,
    train_missing,
)
from acontrol.evaluation.dataset import CategoryDataset, Folders, check
from acontrol.evaluation.estimate import seconds_a_detector
from acontrol.evaluation.images import digest
from acontrol.evaluation.localization import Localization
from acontrol.evaluation.protocol import METRICS, PROTOCOLS
from acontrol.evaluation.report import Report, Table
from acontrol.evaluation.results import TrainingJob
from acontrol.evaluation.settings import ROWS, AblationConfig
from acontrol.generation.run import generate
from acontrol.generation.settings import GenerationConfig
from acontrol.masks.perlin import perlin_blobs
from acontrol.networks.load import quieten
from acontrol.runs.cluster import joined_cluster
from acontrol.runs.mlflow_client import tracking_uri
from acontrol.runs.paths import absolute
from acontrol.runs.results import log, results_in
from acontrol.runs.tracking import Tracker
from acontrol.train.driver import run_training

TITLES = {"nothing": "nothing", "sga": "SGA", "csm": "SGA + CSM"}


def run_ablation(command: AblationConfig) -> None:
    """Train, draw, measure, and write the table; the same call continues.

    Raises:
        UserError: If a setting or the data must be put right.
    """
    rows, real, out = _checked_rows(command)
    quieten()
    base = absolute(command.run.model_copy(update={"output": str(out)}))
    folder = open_folder(real)
    _check_shards(base, folder)
    budget = BUDGETS[command.budget]
    count = command.count or budget.pairs
    sets = {row: out / "rows" / row / "images" for row in rows}
    folders = Folders(real, sets, budget.size, budget.pairs)
    alike = said_of_likeness({one: check(folders, one, ["real"]) for one in folder.categories})
    for name in command.features:
        if name != "vlm":  # What is missing at the end of it all had better be known now.
            load_backend(name, command.weights, None)
    trainings = [
        TrainingJob(category, source, seed)
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
        test = CategoryDataset(folders, folder.categories[0]).part("test")
        say_how_long(seconds_a_detector(budget, len(test), budget.epochs), len(trainings))
        return
    with (
        results_in(out, "ablation", base.tracking) as tracker,
        joined_cluster(base.cluster),
    ):
        uri = tracking_uri(base, out)
        for row in rows:
            config = row_config(base, _trained(row), out, uri, tracker.run_id)
            print(f"Row {row}: training", flush=True)
            run_training(config)
            print(f"Row {row}: drawing", flush=True)
            generate(
                GenerationConfig(
                    model=str(config.output),
                    data=real,
                    out=sets[row],
                    count=count,
                    gate="off",
                    seed=base.seed,
                    steps=base.samples.steps,
                    scale=0 if row == "nothing" else None,
                    guidance_scale=base.samples.guidance_scale,
                )
            )
        data = {one: check(folders, one, ["real", *rows]).data for one in folder.categories}
        work = Localization(folders, budget, PROTOCOLS, data, perlin_blobs)
        train_missing(trainings, work, out, None)
        _report(command, work, trainings, count, alike, tracker)


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


def _checked_rows(command: AblationConfig) -> tuple[list[str], Path, Path]:
    """Rows, real images and the folder for results, once they are known to be good."""
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
    assert command.real is not None and command.out is not None
    return rows, command.real.resolve(), command.out.resolve()


def _check_shards(base: RunConfig, folder: MvtecFolder) -> None:
    """Refuse shards with an image that detectors are tested on."""
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


def _report(
    command: AblationConfig,
    work: Localization,
    trainings: Sequence[TrainingJob],
    count: int,
    alike: str,
    tracker: Tracker,
) -> None:
    """Score the generated sets, gather the detectors, and write tables, plot and page."""
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
        f"one of adapters. Data {work.folders.root.name}.{alike}"
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
                _title(row),
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
    written.tables.append(published.ablation())
    plot = out / "ablation.png"
    figures.rows_plot({_title(row): strict[row] for row in rows}, metrics, strict["real"], plot)
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


def _title(row: str) -> str:
    """A row's name in the table."""
    return TITLES.get(row) or f"+ ASEA T_g {row[1:]}"
