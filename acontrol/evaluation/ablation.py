"""Train, generate and measure with each part of the method added in turn (Table 4)."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from acontrol.config import RunConfig
from acontrol.data.mvtec import open_folder
from acontrol.data.overlap import refuse_overlap
from acontrol.errors import UserError
from acontrol.evaluation import caveats, figures, openings, published, quality, summary
from acontrol.evaluation.backends import load_backend
from acontrol.evaluation.budget import BUDGETS
from acontrol.evaluation.comparison import note_near_duplicates
from acontrol.evaluation.dataset import CategoryDataset, Folders, check
from acontrol.evaluation.estimate import seconds_a_detector
from acontrol.evaluation.leaks import refuse_leaking_shards, refuse_seen_tests
from acontrol.evaluation.localization import Localization
from acontrol.evaluation.protocol import METRICS, PROTOCOLS
from acontrol.evaluation.report import Report, Table
from acontrol.evaluation.results import TrainingJob
from acontrol.evaluation.settings import ROWS, AblationConfig
from acontrol.evaluation.trainings import announce, train_missing
from acontrol.generation.run import generate
from acontrol.generation.settings import GenerationConfig
from acontrol.masks.perlin import perlin_blobs
from acontrol.messages import counted
from acontrol.networks import locate
from acontrol.networks.load import quieten
from acontrol.runs.cluster import joined_cluster
from acontrol.runs.inputs import DataInput
from acontrol.runs.paths import absolute
from acontrol.runs.results import results_in
from acontrol.runs.tracking import Tracker
from acontrol.train.driver import run_training

TITLES = {"nothing": "nothing", "sga": "SGA", "csm": "SGA + CSM"}


def run_ablation(config: AblationConfig) -> None:
    """Train, generate, measure and write the report; the same call continues.

    Raises:
        UserError: If a setting or the data must be fixed.
    """
    rows, real, out = _checked_rows(config)
    split_file = config.split_file and config.split_file.resolve()
    quieten()
    base = absolute(config.run.model_copy(update={"output": str(out)}))
    folder = open_folder(real, split_file=split_file)
    seen = locate.trained_on(base.base)
    refuse_seen_tests(f"the base {base.base.path}", seen, folder, folder.categories)
    refuse_leaking_shards(base.data, folder)
    budget = BUDGETS[config.budget]
    count = config.count or budget.pairs
    sets = {row: out / "rows" / row / "images" for row in rows}
    folders = Folders(real, sets, budget.size, budget.pairs, split_file=split_file)
    checked = {category: check(folders, category, ["real"]) for category in folder.categories}
    note = note_near_duplicates(checked)
    for name in config.features:
        if name != "vlm":  # Missing weights are reported now, not at the end.
            load_backend(name, config.weights, None)
    jobs = [
        TrainingJob(category, source, seed)
        for category in folder.categories
        for seed in range(config.seeds)
        for source in ("real", *rows)
    ]
    cautions = caveats.of_budget(config.budget)
    if "vlm" in config.features:
        cautions += caveats.of_vision_tower(base.base)
    if "lite0" in config.features:
        cautions += caveats.of_lite0()
    caveats.print_caveats(cautions)
    num_defects = sum(len(folder.defect_types(category)) for category in folder.categories)
    print(
        f"{counted(len(rows), 'row')} ({', '.join(rows)}): "
        f"{counted(len({*map(_adapter_of, rows)}), 'adapter')} of "
        f"{counted(base.optim.steps, 'step')}, "
        f"{counted(len(rows) * num_defects * count, 'image')}, "
        f"{counted(len(jobs), 'detector')} ({budget.describe()})",
        flush=True,
    )
    test = CategoryDataset(folders, folder.categories[0]).part("test")
    announce(
        jobs,
        None if config.dry_run else out,
        lambda: seconds_a_detector("unet", budget, len(test), budget.epochs),
        yes=config.yes,
        besides=" (detectors alone: adapters and images come first)",
    )
    if config.dry_run:
        return
    record = openings.file_of(split_file, out)
    opened = openings.times_opened(folder, record, out, jobs, budget, "ablation")
    print(f"The test images have been opened {opened}", flush=True)
    inputs = DataInput.of_folder(folder, "test", "evaluation")
    with (
        results_in(out, "ablation", base.tracking, inputs) as tracker,
        joined_cluster(base.cluster),
    ):
        uri = tracker.uri
        for row in rows:
            run = row_config(base, _adapter_of(row), out, uri, tracker.run_id)
            print(f"Row {row}: training", flush=True)
            run_training(run)
            print(f"Row {row}: generating", flush=True)
            generate(
                GenerationConfig(
                    model=str(run.output),
                    data=real,
                    split_file=split_file,
                    out=sets[row],
                    count=count,
                    gate="off",
                    seed=base.seed,
                    steps=base.samples.steps,
                    precision=base.runtime.precision,
                    scale=0 if row == "nothing" else None,
                    guidance_scale=base.samples.guidance_scale,
                )
            )
        data = {
            category: check(folders, category, ["real", *rows]).digests
            for category in folder.categories
        }
        experiment = Localization(folders, budget, PROTOCOLS, data, perlin_blobs)
        train_missing(jobs, experiment, out, None)
        about = (
            f"Budget {config.budget}: {budget.describe()}; "
            f"{counted(count, 'image')} drawn of each defect, "
            f"{counted(config.optim.steps, 'training step')}, "
            f"{counted(config.seeds, 'seed')} of detectors, one of adapters. "
            f"Data {real.name}. The test images have been opened {opened}.{note}"
        )
        report = Report(out, "What does each part add?", cautions)
        _report(config, experiment, jobs, count, about, report, tracker)


def _adapter_of(row: str) -> str:
    """The row whose adapter a row generates with: at gamma 0 any will do."""
    return "sga" if row == "nothing" else row


def row_config(base: RunConfig, row: str, out: Path, uri: str, parent: str) -> RunConfig:
    """The training of a row: the common settings with this row's parts enabled."""
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


def _checked_rows(config: AblationConfig) -> tuple[list[str], Path, Path]:
    """Rows, folder of real images and folder for results, checked."""
    for value, option in ((config.real, "--real ROOT"), (config.out, "--out DIR")):
        if value is None:
            raise UserError(f"{option} is needed")
    if config.output is not None:
        raise UserError("--output is a single run's: name the ablation's folder with --out")
    if config.data.shards is None:
        raise UserError("--data.shards DIR is needed: what acontrol shard wrote")
    rows = [row.strip() for row in config.rows.split(",")]
    for row in rows:
        if row not in ROWS or rows.count(row) > 1:
            raise UserError(f"--rows: {row!r}; name each once, of: {', '.join(ROWS)}")
    assert config.real is not None and config.out is not None
    refuse_overlap(config.out, "--out", {"--real": config.real})
    return rows, config.real.resolve(), config.out.resolve()


def _report(
    config: AblationConfig,
    experiment: Localization,
    jobs: Sequence[TrainingJob],
    count: int,
    about: str,
    report: Report,
    tracker: Tracker,
) -> None:
    """Measure the generated sets, summarise the detectors, and write tables, plot and page."""
    folders, out = experiment.folders, report.out
    real = open_folder(folders.root, split_file=folders.split_file)
    sets = {row: open_folder(path) for row, path in folders.synthetic.items()}
    rows = list(sets)
    model = str(out / "rows" / _adapter_of(rows[0]) / "run")
    backends = [load_backend(name, config.weights, model) for name in config.features]
    defect_types = quality.read_defect_types(real, real.categories)
    scores = {
        row: quality.mean_of(
            {
                (entry.category, entry.defect): quality.measure(entry, images, backends)
                for entry in defect_types
                if len(images := quality.generated_images(folder, entry, count))
            }
        )
        for row, folder in sets.items()
    }
    by_protocol = {
        protocol: summary.summarise(jobs, out, protocol) for protocol in experiment.protocols
    }
    strict = by_protocol["strict"]
    metrics = ("pixel_auroc", "image_auroc", "pixel_ap")
    columns = metrics[:2]  # Those of the paper's table.
    indices = [METRICS.index(name) for name in columns]
    report.tables.append(
        Table(
            "Ablation, protocol strict",
            (
                "row",
                *quality.column_names(backends),
                *(f"{summary.NAMES[name]}, %" for name in columns),
            ),
            tuple(
                (
                    _title(row),
                    *("-" if np.isnan(value) else f"{value:.2f}" for value in values.values()),
                    *summary.cells(
                        strict[row].values[indices], strict[row].interval[:, indices]
                    ),
                )
                for row, values in scores.items()
            ),
            f"{about} The networks' columns are scores of the generated images, the last ones "
            "of detectors trained on them, with 95 % intervals.",
        )
    )
    for protocol, summed in by_protocol.items():
        report.tables += summary.tables(summed, protocol, about)
        report.rows += summary.long_rows(summed, protocol)
    report.tables.append(published.ablation())
    plot = out / "ablation.png"
    figures.rows_plot({_title(row): strict[row] for row in rows}, metrics, strict["real"], plot)
    report.add_picture("Detectors by row", plot)
    sheet = out / "images.png"
    figures.defects_sheet(defect_types, sets).save(sheet)
    report.add_picture("The first images of each kind", sheet)
    values = summary.flat_metrics({row: strict[row] for row in rows})
    settings = {"ablation": {"rows": rows, "about": about}}
    report.publish(tracker, report.tables[0], settings, values)


def _title(row: str) -> str:
    """A row's name in the table."""
    return TITLES.get(row) or f"+ ASEA T_g {row[1:]}"
