"""The tables, the plot and the page of launch.evaluate ablation."""

from collections.abc import Sequence
from pathlib import Path

from acontrol.data.mvtec import open_folder
from acontrol.evaluation import figures, published, quality, summary
from acontrol.evaluation.backends import load_backend
from acontrol.evaluation.localization import Localization
from acontrol.evaluation.protocol import METRICS
from acontrol.evaluation.report import Report, Table
from acontrol.evaluation.results import Training
from acontrol.runs.results import log
from acontrol.runs.tracking import Tracker
from launch.evaluate_ablation import AblationCommand

TITLES = {"nothing": "nothing", "sga": "SGA", "csm": "SGA + CSM"}


def report(
    command: AblationCommand,
    work: Localization,
    trainings: Sequence[Training],
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
    written.tables.append(published.ablation())
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
