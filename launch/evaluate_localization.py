"""Train a detector on each source of defects, and compare them on real ones.

    python -m launch.evaluate localization --real ROOT --out DIR [--synthetic [NAME=]DIR ...]

ROOT is in MVTec AD's layout, one category or several. A detector is trained for each category,
source and seed, on train/good and the source's defects, and tested on test/good and the defects
outside the training third. Sources: none (normal images alone), real (the training third),
perlin (DRAEM's blobs), cutpaste, each --synthetic NAME, and mixtures such as real+NAME. Each
training is a task on Ray; what is there is not done again.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from pydantic import Field

from acontrol.data.mvtec import open_folder
from acontrol.evaluation.comparison import (
    ComparisonCommand,
    check_out,
    checked_data,
    chosen_categories,
    compared,
    planned,
    say_how_long,
    train_all,
)
from launch.entry import parse

if TYPE_CHECKING:
    from acontrol.evaluation.localization import Localization
    from acontrol.evaluation.results import TrainingJob
    from acontrol.runs.tracking import Tracker

PROG = "python -m launch.evaluate localization"


class LocalizationCommand(ComparisonCommand):
    """Options of launch.evaluate localization."""

    protocol: Literal["paper", "strict", "both"] = Field(
        "both",
        description="paper: as published, with the best epoch on the test set. strict: the "
        "last epoch, exact F1, binary masks.",
    )
    budget: Literal["paper", "small", "smallest"] = Field(
        "paper",
        description="How much to train, the same for every source. paper: as published, hours "
        "on a GPU. small: 128 px, minutes. smallest: to try the command out.",
    )


def run(args: Sequence[str], prog: str = PROG) -> None:
    """Check, train what is missing, and write the tables."""
    command = parse(LocalizationCommand, args, prog=prog, description=__doc__)
    from acontrol.evaluation.budget import BUDGETS
    from acontrol.evaluation.dataset import CONTROLS, DETECTOR, CategoryDataset
    from acontrol.evaluation.localization import Localization
    from acontrol.evaluation.protocol import PROTOCOLS
    from acontrol.masks.perlin import perlin_blobs

    budget, folders, sources = compared(command, BUDGETS[command.budget], CONTROLS)
    categories = chosen_categories(open_folder(folders.root), command.category)
    check_out(command)
    trainings = planned(command, budget, categories, sources)
    folders, data, alike = checked_data(command, folders, categories, sources, DETECTOR)
    protocols = PROTOCOLS if command.protocol == "both" else (command.protocol,)
    if command.out is None or command.dry_run:
        from acontrol.evaluation.estimate import seconds_a_detector

        test = CategoryDataset(folders, categories[0]).part("test")
        looks = 1 if protocols == ("strict",) else budget.epochs
        say_how_long(seconds_a_detector(budget, len(test), looks), len(trainings))
        return
    from acontrol.runs.results import results_in

    out = command.out.resolve()
    work = Localization(folders, budget, protocols, data, perlin_blobs)
    about = (
        f"Budget {command.budget}: {budget.describe()}. Data {folders.root.name}, categories: "
        f"{', '.join(categories)}; seeds: {command.seeds}.{alike}"
    )
    with results_in(out, "localization", command.tracking) as tracker:
        train_all(trainings, work, out, command.num_workers)
        report(trainings, work, out, about, tracker)


def report(
    trainings: "Sequence[TrainingJob]",
    work: "Localization",
    out: Path,
    about: str,
    tracker: "Tracker",
) -> None:
    """Write tables, curves and maps, and log them."""
    from acontrol.evaluation import figures, published, summary
    from acontrol.evaluation.dataset import CategoryDataset
    from acontrol.evaluation.protocol import METRICS
    from acontrol.evaluation.report import Report
    from acontrol.runs.results import log

    written = Report(out, "Does synthetic data help?")
    metrics = {}
    for protocol in work.protocols:
        rows = summary.summarise(trainings, out, protocol)
        tables = summary.tables(rows, protocol, about)
        written.tables += tables
        written.rows += summary.long_rows(rows, protocol)
        plot = out / f"precision-recall-{protocol}.png"
        figures.precision_recall_plot(trainings, out, protocol, plot)
        written.add_picture(f"Precision over recall, protocol {protocol}", plot)
        for source, row in rows.items():
            for name, value in zip(METRICS, row.values, strict=True):
                metrics[f"{protocol}/{source.replace('+', '_')}/{name}"] = float(value)
    written.tables.append(published.localization())
    protocol = work.protocols[-1]
    for category in dict.fromkeys(one.category for one in trainings):
        first = {
            one.source: one
            for one in trainings
            if one.category == category and one.seed == trainings[0].seed
        }
        test = CategoryDataset(work.folders, category).part("test")
        file = out / f"maps-{category}.png"
        figures.map_sheet(test, first, out, protocol).save(file)
        written.add_picture(f"{category}: anomaly maps of the first seed", file)
    files = written.write()
    log(tracker, {"budget": work.budget.model_dump(), "about": about}, metrics, files)
    print(tables[0].markdown())
    print(f"Look at {out / 'index.html'}")
    print(f"Results: {out / 'report.md'}")
