"""Measure generated folders against real images, and write the report."""

import itertools
import math
from collections.abc import Mapping, Sequence

from acontrol.data.left_out import print_notes
from acontrol.data.mvtec import MvtecFolder, open_folder
from acontrol.data.overlap import refuse_overlap
from acontrol.data.split import in_words
from acontrol.errors import UserError
from acontrol.evaluation import figures, published, quality
from acontrol.evaluation.backends import load_backend
from acontrol.evaluation.caveats import of_files, print_caveats
from acontrol.evaluation.comparison import chosen_categories, named_folders
from acontrol.evaluation.dataset import category_in
from acontrol.evaluation.leaks import job_of, refuse_seen_tests
from acontrol.evaluation.quality import DefectType
from acontrol.evaluation.report import Report, Table
from acontrol.evaluation.settings import QualityConfig
from acontrol.messages import counted
from acontrol.networks import locate
from acontrol.networks.load import quieten
from acontrol.pipelines.loading import load_adapter
from acontrol.progress import tracked
from acontrol.runs.inputs import DataInput
from acontrol.runs.results import results_in

Scores = Mapping[tuple[str, str], Mapping[str, float]]


def run_quality(config: QualityConfig) -> None:
    """Measure all sources and write the report.

    Raises:
        UserError: If a setting or the data must be fixed.
    """
    quieten()
    synthetic = named_folders(config.synthetic)
    folders = {name: open_folder(path) for name, path in synthetic.items()}
    refuse_overlap(config.out, "--out", {"--real": config.real, **synthetic})
    real = open_folder(config.real, split_file=config.split_file)
    backends = [
        load_backend(name, config.weights, config.model, config.precision)
        for name in dict.fromkeys(config.features)
    ]
    cautions = [caveat for backend in backends for caveat in backend.caveats]
    cautions += of_files(synthetic)
    print_caveats(cautions)
    categories = chosen_categories(real, config.category)
    for name, folder in folders.items():
        refuse_seen_tests(f"--synthetic {name}", job_of(folder), real, categories)
    if config.model is not None and "vlm" in config.features:
        card = load_adapter(config.model)[1]
        base = f"the base of --model {config.model}"
        refuse_seen_tests(base, locate.trained_on(card.base), real, categories)
    print_notes(real, categories)
    for folder in folders.values():
        print_notes(folder)
    defect_types = quality.read_defect_types(real, categories)
    defect_types, left_out = _in_every_source(defect_types, folders)
    if left_out:
        print(left_out, flush=True)
    out = config.out.resolve()
    data = DataInput.of_folder(real, "test", "evaluation", categories)
    with results_in(out, "quality", config.tracking, data) as tracker:
        scores: dict[str, dict[tuple[str, str], dict[str, float]]] = {}
        counts: dict[str, int] = {}
        sources = [quality.HALVES, quality.REAL, *folders]
        pairs = list(itertools.product(sources, defect_types))
        for source, defect_type in tracked(pairs, "measuring", "set"):
            measured, generated = defect_type, None
            if source == quality.HALVES:
                measured = quality.halves(defect_type)
            elif source in folders:
                folder = folders[source]
                generated = quality.generated_images(folder, defect_type, config.count)
            images = measured.held_out if generated is None else generated
            key = defect_type.category, defect_type.defect
            own = scores.setdefault(source, {})
            own[key] = quality.measure(measured, generated, backends)
            counts[source] = counts.get(source, 0) + len(images)
        report = Report(out, "How good are the generated defects?", cautions)
        columns = quality.column_names(backends)
        kinds = counted(len(defect_types), "kind")
        about = f"Data {config.real.resolve().name}: {kinds} of defect. "
        if real.split is not None:
            about += f"Trained and tested by {in_words(real.split.digest)}. "
        if left_out:
            about += f"{left_out}. "
        report.tables = _tables(scores, counts, columns, about)
        for source, own in scores.items():
            rows = {("mean", "mean"): quality.mean_of(own), **own}
            report.rows += [
                {"source": source, "category": category, "defect": defect, **values}
                for (category, defect), values in rows.items()
            ]
        if any(backend.name in ("inception", "lpips-vgg") for backend in backends):
            report.tables.append(published.quality())
        sheet = out / "images.png"
        figures.defects_sheet(defect_types, folders).save(sheet)
        report.add_picture("The first images of each kind", sheet)
        metrics = {
            f"{source}/{name}".translate(str.maketrans("(),%", "  - ")): value
            for source, own in scores.items()
            for name, value in quality.mean_of(own).items()
            if math.isfinite(value)
        }
        networks = {backend.name: backend.digest for backend in backends}
        settings = {"networks": networks, "about": about}
        report.publish(tracker, report.tables[0], settings, metrics)


def _in_every_source(
    defect_types: Sequence[DefectType], folders: Mapping[str, MvtecFolder]
) -> tuple[list[DefectType], str]:
    """The defect types that all sources have, and a line on the others, "" if there are none.

    Raises:
        UserError: If a generated folder has none of them, or no defect type is in all sources.
    """
    lacking: dict[str, list[str]] = {entry.name: [] for entry in defect_types}
    for name, folder in folders.items():
        without = [
            entry.name
            for entry in defect_types
            if not len(quality.generated_images(folder, entry, 1))
        ]
        if len(without) == len(defect_types):
            names = ", ".join(lacking)
            raise UserError(
                f"--synthetic {name}: has none of the real data's defects ({names})"
            )
        for defect in without:
            lacking[defect].append(name)
        for defect in _more_defects(folder, defect_types):
            lacking[defect] = ["the real data"]
    for entry in defect_types:
        if not len(entry.held_out):
            lacking[entry.name].append("the held-out images")
    common = [entry for entry in defect_types if not lacking[entry.name]]
    gaps = ", ".join(
        f"{defect} (not in {' and '.join(names)})" for defect, names in lacking.items() if names
    )
    if not common:
        raise UserError(
            f"--synthetic: no defect is in every source, so nothing can be compared: {gaps}; "
            "measure the folders one at a time"
        )
    return common, f"Left out of every row: {gaps}" if gaps else ""


def _more_defects(folder: MvtecFolder, defect_types: Sequence[DefectType]) -> list[str]:
    """CATEGORY/DEFECT of a generated folder's defects that the real categories lack."""
    known = {entry.name for entry in defect_types}
    names = []
    for entry in {entry.category: entry for entry in defect_types}.values():
        own = category_in(folder, entry.category, entry.single_category)
        if own is not None:
            names += [f"{entry.category}/{name}" for name in folder.defect_types(own)]
    return [name for name in names if name not in known]


def _tables(
    scores: Mapping[str, Scores], counts: Mapping[str, int], columns: Sequence[str], about: str
) -> list[Table]:
    first = Table(
        "Quality",
        ("images of", "count", *columns),
        tuple(
            (source, str(counts[source]), *_cells(quality.mean_of(own)))
            for source, own in scores.items()
        ),
        f"{about}Means over the defects of a category, then over categories. Each network is "
        "named with its weights' digest. IS, IC: higher is more diverse, not better. KID: from "
        "held-out real defects, lower is nearer; with few images it is mostly noise. Copies: "
        "far nearer to a training defect than these are to each other. Background: against "
        "the nearest normal image. Every row has the same defects. The row real, half against "
        "half: the yardstick, a random half of all real defects measured as if the other half "
        "were the training defects. The row real: held-out defects; its KID is the training "
        "third's.",
    )
    second = Table(
        "Quality by kind",
        ("images of", "kind", *columns),
        tuple(
            (source, f"{category}/{defect}", *_cells(values))
            for source, own in scores.items()
            for (category, defect), values in own.items()
        ),
    )
    return [first, second]


def _cells(values: Mapping[str, float]) -> list[str]:
    return [
        "-" if math.isnan(value) else "exact" if math.isinf(value) else f"{value:.2f}"
        for value in values.values()
    ]
