"""Train a classifier of defects on each source, and compare them on real ones.

    python -m launch.evaluate classification --real ROOT --out DIR [--synthetic [NAME=]DIR ...]

ROOT is in MVTec AD's layout, one category or several. A ResNet-34 is trained for each category,
source and seed to tell the category's defects apart, and tested on the defects outside the
training third. Sources: real (the training third), each --synthetic NAME, and mixtures such as
real+NAME. Categories with a single defect are left out. Each training is a task on Ray; what is
there is not done again.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from pydantic import Field

from acontrol.data.mvtec import open_folder
from acontrol.errors import UserError
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
    from acontrol.evaluation.classification import Classification
    from acontrol.evaluation.results import TrainingJob
    from acontrol.runs.tracking import Tracker

PROG = "python -m launch.evaluate classification"
CONTROLS = ("real",)  # The others know no defect by its name.


class ClassificationCommand(ComparisonCommand):
    """Options of launch.evaluate classification."""

    network: Path | None = Field(
        None,
        description="Folder of a ResNet as transformers saves it, to begin with (the published "
        "scripts take ImageNet's ResNet-34); random weights without.",
    )
    budget: Literal["paper", "small", "smallest"] = Field(
        "paper",
        description="How much to train, the same for every source. paper: 256 px, 7,500 steps. "
        "small: 128 px, 400 steps. smallest: to try the command out.",
    )


def run(args: Sequence[str], prog: str = PROG) -> None:
    """Check, train what is missing, and write the tables."""
    command = parse(ClassificationCommand, args, prog=prog, description=__doc__)
    from acontrol.evaluation.budget import CLASSIFIER_BUDGETS
    from acontrol.evaluation.classification import TESTED, Classification, names_of
    from acontrol.evaluation.classifier import Classifier, weights_digest
    from acontrol.evaluation.dataset import CategoryDataset

    budget = CLASSIFIER_BUDGETS[command.budget]
    schedule, folders, sources = compared(command, budget, CONTROLS)
    categories = _several_defects(folders.root, command.category)
    classifier = Classifier(2, command.network)
    weights = weights_digest(command.network) if command.network else "random"
    check_out(command)
    trainings = planned(command, schedule, categories, sources)
    folders, data, alike = checked_data(command, folders, categories, sources, [TESTED])
    for one in categories:
        names_of(CategoryDataset(folders, one), sources)
    if command.out is None or command.dry_run:
        from acontrol.evaluation.estimate import seconds_a_classifier

        test = CategoryDataset(folders, categories[0]).part(TESTED)
        say_how_long(seconds_a_classifier(schedule, classifier, len(test)), len(trainings))
        return
    from acontrol.runs.results import results_in

    out = command.out.resolve()
    network = command.network.resolve() if command.network else None
    work = Classification(folders, schedule, network, weights, data)
    about = (
        f"Budget {command.budget}: {schedule.describe()}; {classifier.architecture} from "
        f"{f'weights {weights[:8]}' if network else 'random weights'}. Data "
        f"{folders.root.name}, categories: {', '.join(categories)}; seeds: {command.seeds}."
        f"{alike}"
    )
    with results_in(out, "classification", command.tracking) as tracker:
        train_all(trainings, work, out, command.num_workers)
        report(trainings, work, out, about, tracker)


def report(
    trainings: "Sequence[TrainingJob]",
    work: "Classification",
    out: Path,
    about: str,
    tracker: "Tracker",
) -> None:
    """Write tables and pictures, and log them."""
    from acontrol.evaluation import figures, summary
    from acontrol.evaluation.classification import METRICS, PART
    from acontrol.evaluation.report import Report
    from acontrol.runs.results import log

    written = Report(out, "Does synthetic data help to tell defects apart?")
    rows = summary.summarise(trainings, out, PART, list(METRICS))
    titles = ("Classification of defects", f"Against {summary.BASELINE} alone")
    said = (
        "of real defects outside the training third, last epoch; balanced: mean over a "
        "category's defects"
    )
    written.tables = summary.compared(rows, list(METRICS.values()), titles, said, about)
    written.rows += summary.long_rows(rows, PART, list(METRICS))
    for category in dict.fromkeys(one.category for one in trainings):
        own = [one for one in trainings if one.category == category]
        by_source = {
            source: [one for one in own if one.source == source]
            for source in dict.fromkeys(one.source for one in own)
        }
        names = json.loads(own[0].file(out).read_text())["names"]
        file = out / f"confusion-{category}.png"
        figures.confusion_plot(by_source, names, out, file)
        written.add_picture(f"{category}: what each defect was taken for, all seeds", file)
    files = written.write()
    metrics = {
        f"{source.replace('+', '_')}/{name}": float(value)
        for source, row in rows.items()
        for name, value in zip(METRICS, row.values, strict=True)
    }
    settings = {
        "budget": work.schedule.model_dump(),
        "network": work.weights,
        "about": about,
    }
    log(tracker, settings, metrics, files)
    print(written.tables[0].markdown())
    print(f"Look at {out / 'index.html'}")
    print(f"Results: {out / 'report.md'}")


def _several_defects(root: Path, chosen: Sequence[str]) -> list[str]:
    """The categories with defects to tell apart; those without are named."""
    folder = open_folder(root)
    kept = []
    for category in chosen_categories(folder, chosen):
        defects = folder.defect_types(category)
        if len(defects) > 1:
            kept.append(category)
        else:
            print(f"Left out: {category}, with {len(defects)} defects nothing to tell apart")
    if not kept:
        raise UserError(f"{root}: no category has two defects in test/<defect> to tell apart")
    return kept
