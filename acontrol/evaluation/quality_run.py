"""Score generated folders against real ones, and write the report."""

import itertools
import math
from collections.abc import Mapping, Sequence

from tqdm import tqdm

from acontrol.data.mvtec import MvtecFolder, open_folder
from acontrol.errors import UserError
from acontrol.evaluation import figures, published, quality
from acontrol.evaluation.backends import load_backend
from acontrol.evaluation.comparison import chosen_categories, named_folders
from acontrol.evaluation.quality import DefectType
from acontrol.evaluation.report import Report, Table
from acontrol.evaluation.settings import QualityConfig
from acontrol.networks.load import quieten
from acontrol.runs.results import log, results_in

Scores = Mapping[tuple[str, str], Mapping[str, float]]


def run_quality(command: QualityConfig) -> None:
    """Score every source and write the report.

    Raises:
        UserError: If a setting or the data must be put right.
    """
    quieten()
    folders = {
        name: open_folder(path) for name, path in named_folders(command.synthetic).items()
    }
    real = open_folder(command.real)
    backends = [
        load_backend(name, command.weights, command.model)
        for name in dict.fromkeys(command.features)
    ]
    kinds = quality.kinds_of(real, chosen_categories(real, command.category))
    _check_kinds(folders, kinds)
    out = command.out.resolve()
    with results_in(out, "quality", command.tracking) as tracker:
        scores: dict[str, dict[tuple[str, str], dict[str, float]]] = {}
        counts: dict[str, int] = {}
        sources = [quality.REAL, *folders]
        with tqdm(total=len(kinds) * len(sources), desc="looking", disable=None) as bar:
            for source, kind in itertools.product(sources, kinds):
                generated = None
                if source != quality.REAL:
                    generated = quality.synthetic_of(folders[source], kind, command.count)
                shown = kind.held_out if generated is None else generated
                if len(shown):
                    own = scores.setdefault(source, {})
                    own[kind.category, kind.defect] = quality.measure(kind, generated, backends)
                    counts[source] = counts.get(source, 0) + len(shown)
                bar.update()
        written = Report(out, "How good are the generated defects?")
        columns = quality.column_names(backends)
        about = f"Data {command.real.resolve().name}: {len(kinds)} kinds of defect. " + "".join(
            f"{source} has {len(own)} of them. "
            for source, own in scores.items()
            if len(own) < len(kinds)
        )
        written.tables = _tables(scores, counts, columns, about)
        for source, own in scores.items():
            rows = {("mean", "mean"): quality.mean_of(own), **own}
            written.rows += [
                {"source": source, "category": category, "defect": defect, **values}
                for (category, defect), values in rows.items()
            ]
        if any(one.name != "vlm" for one in backends):
            written.tables.append(published.quality())
        sheet = out / "images.png"
        figures.kinds_sheet(kinds, folders).save(sheet)
        written.add_picture("The first images of each kind", sheet)
        files = written.write()
        metrics = {
            f"{source}/{name}".translate(str.maketrans("(),%", "  - ")): value
            for source, own in scores.items()
            for name, value in quality.mean_of(own).items()
            if math.isfinite(value)
        }
        networks = {one.name: one.digest for one in backends}
        log(tracker, {"networks": networks, "about": about}, metrics, files)
    print(written.tables[0].markdown())
    print(f"Look at {out / 'index.html'}")
    print(f"Results: {out / 'report.md'}")


def _check_kinds(folders: Mapping[str, MvtecFolder], kinds: Sequence[DefectType]) -> None:
    """Refuse a generated folder that has nothing to look at."""
    for name, folder in folders.items():
        if not any(len(quality.synthetic_of(folder, one, 1)) for one in kinds):
            names = ", ".join(f"{one.category}/{one.defect}" for one in kinds)
            raise UserError(
                f"--synthetic {name}: has none of the real data's defects ({names})"
            )


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
        "named with its weights' digest. IS, IC: more is more diverse, not better. KID: from "
        "held-out real defects, less is nearer; with few images it is mostly noise. Copies: "
        "far nearer to a training defect than these are to each other. Background: against "
        "the nearest normal image. The row real: held-out defects; its KID is the training "
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
        "-" if math.isnan(one) else "exact" if math.isinf(one) else f"{one:.2f}"
        for one in values.values()
    ]
