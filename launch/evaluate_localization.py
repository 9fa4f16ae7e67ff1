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
from typing import Any, Literal

from pydantic import Field

from acontrol.config import ClusterConfig, Settings, TrackingConfig, UserError
from acontrol.data.mvtec import open_folder
from launch.entry import parse

PROG = "python -m launch.evaluate localization"


class LocalizationCommand(Settings):
    """Options of launch.evaluate localization."""

    real: Path = Field(description="Folder of real images, in MVTec AD's layout.")
    out: Path | None = Field(None, description="Folder for results; the same one continues.")
    synthetic: tuple[str, ...] = Field(
        (), description="Folders of generated pairs in the same layout: DIR or NAME=DIR."
    )
    sources: str | None = Field(
        None,
        description="What to train on, divided by commas; by default none,real,perlin,cutpaste "
        "and for each synthetic folder NAME and real+NAME.",
    )
    category: tuple[str, ...] = Field((), description="Only these categories; by default all.")
    protocol: Literal["paper", "strict", "both"] = Field(
        "both",
        description="paper: as published, with the best epoch on the test set. strict: the "
        "last epoch, exact F1, binary masks.",
    )
    budget: Literal["paper", "small", "smallest"] = Field(
        "paper", description="How much to train, the same for every source."
    )
    pairs: int | None = Field(
        None,
        ge=1,
        description="Synthetic pairs of each defect, at most; by default the budget's.",
    )
    seeds: int = Field(3, ge=1, description="Trainings of each category and source.")
    num_workers: int | None = Field(
        None,
        ge=1,
        description="Trainings at a time; by default as many as the cluster has room for.",
    )
    tracking: TrackingConfig = TrackingConfig()
    dry_run: bool = Field(False, description="Only say what would be trained, and how long.")


def run(args: Sequence[str]) -> None:
    """Check, train what is missing, and write the tables."""
    command = parse(LocalizationCommand, args, prog=PROG, description=__doc__)
    from acontrol.evaluation import localization
    from acontrol.evaluation.budget import BUDGETS
    from acontrol.evaluation.protocol import PROTOCOLS

    synthetic = named_folders(command.synthetic)
    budget = BUDGETS[command.budget]
    if command.pairs is not None:
        budget = budget.model_copy(update={"pairs": command.pairs})
    setting = localization.Setting(
        command.real.resolve(),
        synthetic,
        budget,
        PROTOCOLS if command.protocol == "both" else (command.protocol,),
    )
    sources = source_names(command.sources, list(synthetic))
    folder = open_folder(setting.root)
    categories = command.category or folder.categories
    trainings = [
        localization.Training(category, source, seed)
        for category in categories
        for seed in range(command.seeds)
        for source in sources
    ]
    print(f"Budget {command.budget}: {budget.describe()}")
    print(
        f"{len(trainings)} trainings: {len(categories)} categories x {len(sources)} sources "
        f"({', '.join(sources)}) x {command.seeds} seeds",
        flush=True,
    )
    data = {one: localization.check(setting, one, sources) for one in categories}
    if command.dry_run:
        from acontrol.evaluation.estimate import seconds_a_training

        test = localization.Material(setting, categories[0]).part("test")
        looks = 1 if setting.protocols == ("strict",) else budget.epochs
        each = seconds_a_training(budget, len(test), looks)
        print(
            f"About {_hours(each)} a training on this machine, {_hours(each * len(trainings))} "
            "for all, one after the other; a Ray cluster trains as many at once as it has room"
        )
        return
    if command.out is None:
        raise UserError("--out DIR is needed: where results go")
    out = command.out.resolve()
    out.mkdir(parents=True, exist_ok=True)
    from acontrol.base import quieten
    from acontrol.train.cluster import joined_cluster

    quieten()
    with joined_cluster(
        ClusterConfig(num_workers=command.num_workers or 1), packages=[package()]
    ):
        train_missing(trainings, setting, data, out, command.num_workers)
    about = (
        f"Budget {command.budget}: {budget.describe()}. Data {setting.root.name}, categories: "
        f"{', '.join(categories)}; seeds: {command.seeds}."
    )
    report(trainings, setting, out, about, command.tracking)


def train_missing(
    trainings: Sequence[Any], setting: Any, data: Any, out: Path, at_once: int | None
) -> None:
    """Train what is not there, each as a task of the joined cluster, on a GPU if it has one.

    Args:
        trainings: All.
        setting: What they share.
        data: Digest of each category's and source's images.
        out: The comparison's folder.
        at_once: Trainings at a time; by default as many as there is room for.
    """
    import ray
    from tqdm import tqdm

    from acontrol.evaluation import localization
    from acontrol.masks.perlin import perlin_blobs

    left = [
        one
        for one in trainings
        if not localization.is_done(one, setting, data[one.category][one.source], out)
    ]
    done = len(trainings) - len(left)
    if done:
        print(f"Continuing: {done} of {len(trainings)} trainings are there", flush=True)
    gpus = 1 if ray.cluster_resources().get("GPU", 0) else 0
    task = ray.remote(localization.run).options(num_cpus=1, num_gpus=gpus, max_retries=2)
    running: list[Any] = []
    with tqdm(
        total=len(trainings), initial=done, desc="training", unit="detector", disable=None
    ) as bar:
        while left or running:
            while left and len(running) < (at_once or len(trainings)):
                one = left.pop(0)
                digest = data[one.category][one.source]
                running.append(task.remote(one, setting, digest, perlin_blobs, out))
            ended, running = ray.wait(running)
            for one in ray.get(ended):
                bar.set_postfix_str(f"{one.category} {one.source} {one.seed}")
                bar.update()


def package() -> Path:
    """The folder that workers on other nodes need besides acontrol."""
    return Path(__file__).parent


def report(
    trainings: Sequence[Any], setting: Any, out: Path, about: str, tracking: TrackingConfig
) -> None:
    """Write tables, curves and maps, and log them."""
    from acontrol.evaluation import figures, quoted, summary
    from acontrol.evaluation.localization import Material
    from acontrol.evaluation.protocol import METRICS
    from acontrol.evaluation.report import Report
    from launch.evaluate_tracking import log, open_run

    written = Report(out, "Does synthetic data help?")
    metrics = {}
    for protocol in setting.protocols:
        rows = summary.summarise(trainings, out, protocol)
        written.tables += summary.tables(rows, protocol, about)
        written.rows += summary.long_rows(rows, protocol)
        plot = out / f"precision-recall-{protocol}.png"
        figures.precision_recall_plot(trainings, out, protocol, plot)
        written.add_picture(f"Precision over recall, protocol {protocol}", plot)
        for source, row in rows.items():
            for name, value in zip(METRICS, row.values, strict=True):
                metrics[f"{protocol}/{source.replace('+', '_')}/{name}"] = float(value)
    written.tables.append(quoted.localization())
    protocol = setting.protocols[-1]
    for category in dict.fromkeys(one.category for one in trainings):
        first = {
            one.source: one
            for one in trainings
            if one.category == category and one.seed == trainings[0].seed
        }
        test = Material(setting, category).part("test")
        file = out / f"maps-{category}.png"
        figures.map_sheet(test, first, out, protocol).save(file)
        written.add_picture(f"{category}: anomaly maps of the first seed", file)
    files = written.write()
    tracker = open_run(out, tracking)
    log(tracker, {"budget": setting.budget.model_dump(), "about": about}, metrics, files)
    print(written.tables[-3 if len(written.tables) > 2 else 0].markdown())
    print(f"Look at {out / 'index.html'}")
    print(f"Results: {out / 'report.md'}")


def named_folders(given: Sequence[str]) -> dict[str, Path]:
    """Folders by their names: NAME=DIR, or DIR, which is named after itself.

    Raises:
        UserError: If one does not exist, or two share a name or have a name of ours.
    """
    from acontrol.evaluation.localization import CONTROLS

    found: dict[str, Path] = {}
    for text in given:
        name, divided, rest = text.partition("=")
        path = Path(rest if divided else text).resolve()
        name = name if divided else path.name
        if not name or any(sign in name for sign in "+,/\\") or name.startswith("."):
            raise UserError(f"--synthetic {text}: a name is one word without + , / or \\")
        if name in CONTROLS:
            raise UserError(
                f"--synthetic {text}: {name} is a source of its own; give another name"
            )
        if name in found:
            raise UserError(
                f"--synthetic {text}: two sources are named {name}; name them apart, NAME=DIR"
            )
        open_folder(path)
        found[name] = path
    return found


def source_names(given: str | None, synthetic: Sequence[str]) -> list[str]:
    """The sources to compare, each once.

    Raises:
        UserError: If one is unknown or named twice.
    """
    from acontrol.evaluation.localization import CONTROLS

    generated = [one for name in synthetic for one in (name, f"real+{name}")]
    if given is None:
        return [*CONTROLS, *generated]
    names = [one.strip() for one in given.split(",")]
    known = [*CONTROLS, *synthetic]
    for name in names:
        parts = name.split("+")
        for part in parts:
            if part not in known or (part == "none" and len(parts) > 1):
                raise UserError(
                    f"--sources: no source {name!r}; choose from {', '.join(known)} and "
                    "mixtures such as real+perlin"
                )
    if len(set(names)) < len(names):
        twice = next(one for one in names if names.count(one) > 1)
        raise UserError(f"--sources: {twice} is named twice")
    return [*names, *(one for one in generated if one not in names)]


def _hours(seconds: float) -> str:
    return f"{seconds / 3600:.1f} h" if seconds > 5400 else f"{seconds / 60:.1f} min"
