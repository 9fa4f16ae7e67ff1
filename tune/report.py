"""The results of a sweep: the best config, a table and plots, also logged to MLflow."""

import csv
import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from scipy.stats import spearmanr
from sklearn.ensemble import RandomForestRegressor
from sklearn.inspection import permutation_importance

from acontrol.config import RunConfig
from acontrol.errors import UserError
from acontrol.messages import counted
from acontrol.runs import storage
from acontrol.runs.tracking import Tracker
from tune.objective import OBJECTIVES
from tune.record import METRICS, Outcome, Sweep, run_name
from tune.space import Choice, Domain, Range, Space, Value

Values = Mapping[str, Mapping[str, Value]]  # By trial, then by key.
GREY = "#9a9a9a"


def parallel_coordinates(
    space: Space,
    values: Values,
    scores: Mapping[str, float],
    finished: set[str],
    best: str,
    objective: str,
    file: Path,
) -> None:
    """One line per trial, one axis per key; the objective is the last axis.

    Trials that were stopped early are dashed: their objective is of an earlier step.

    Args:
        space: The axes.
        values: Of the trials in ``scores``.
        scores: The objective's last value by trial.
        finished: Trials that ran to the end.
        best: The one to draw thick.
        objective: The last axis's name.
        file: The PNG to write.
    """
    ends = min(scores.values()), max(scores.values())
    if ends[0] == ends[1]:
        ends = ends[0] - 0.5, ends[0] + 0.5
    figure = Figure(figsize=(2.2 + 1.7 * (len(space) + 1), 4.8), layout="constrained")
    axes = figure.add_subplot()
    colors = matplotlib.colormaps["viridis"]
    norm = Normalize(*ends)
    order = sorted(scores, key=lambda trial: (trial == best, trial in finished))
    for trial in order:
        points = [_place(domain, values[trial][key]) for key, domain in space.items()]
        points.append((scores[trial] - ends[0]) / (ends[1] - ends[0]))
        axes.plot(
            points,
            color=colors(norm(scores[trial])),
            linewidth=3.5 if trial == best else 1.4,
            linestyle="-" if trial in finished else (0, (4, 3)),
            alpha=1.0 if trial in finished else 0.6,
            marker="o",
            markersize=4,
        )
    names = [*space, objective]
    for place, name in enumerate(names):
        axes.axvline(place, color=GREY, linewidth=0.8, zorder=0)
        marks = _marks(space[name]) if name in space else [(0, ends[0]), (1, ends[1])]
        for height, value in marks:
            text = f"{value:.3g}" if isinstance(value, float) else str(value)
            axes.annotate(
                text,
                (place, height),
                xytext=(5, 0),
                textcoords="offset points",
                va="center",
                fontsize=8,
                bbox={"facecolor": "white", "edgecolor": "none", "alpha": 0.7, "pad": 0.5},
            )
    axes.set_xticks(range(len(names)), names, fontsize=9)
    axes.set_yticks([])
    axes.set_ylim(-0.06, 1.06)
    axes.set_xlim(-0.15, len(names) - 0.55)
    for side in axes.spines.values():
        side.set_visible(False)
    axes.set_title(
        f"{counted(len(scores), 'trial')}; dashed: stopped early; thick: the best", fontsize=10
    )
    figure.colorbar(ScalarMappable(norm, colors), ax=axes, label=objective, pad=0.01)
    figure.savefig(file, dpi=120)


def parameter_importance(
    space: Space, values: Values, scores: Mapping[str, float], title: str, file: Path
) -> None:
    """One bar per key: how much worse a random forest predicts the objective without it.

    Each with the rank correlation, if the key has an order. With few trials this is only a
    hint.

    Args:
        space: The keys.
        values: Of the trials in ``scores``.
        scores: The objective by trial, all at one step.
        title: The plot's title.
        file: The PNG to write.
    """
    shares, signs = importance(space, values, scores)
    order = sorted(shares, key=lambda key: shares[key])
    figure = Figure(figsize=(7, 1.4 + 0.42 * len(order)), layout="constrained")
    axes = figure.add_subplot()
    axes.barh(order, [shares[key] for key in order], color="#3b6fb6", height=0.65)
    for row, key in enumerate(order):
        axes.annotate(
            f"{shares[key]:.2f}  {signs[key]}",
            (shares[key], row),
            xytext=(4, 0),
            textcoords="offset points",
            va="center",
            fontsize=9,
        )
    axes.set_xlim(0, max([*shares.values(), 0.1]) * 1.3)
    axes.set_xlabel("importance (share), and rank correlation")
    axes.set_title(title, fontsize=10)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    figure.savefig(file, dpi=120)


def importance(
    space: Space, values: Values, scores: Mapping[str, float]
) -> tuple[dict[str, float], dict[str, str]]:
    """Shares by key, which sum to 1 unless nothing matters, and labels of the correlation."""
    trials = sorted(scores)
    places = np.array(
        [
            [_place(domain, values[trial][key]) for key, domain in space.items()]
            for trial in trials
        ]
    )
    target = np.array([scores[trial] for trial in trials])
    forest = RandomForestRegressor(n_estimators=200, random_state=0).fit(places, target)
    permuted = permutation_importance(forest, places, target, n_repeats=20, random_state=0)
    mean = np.maximum(permuted.importances_mean, 0)
    shares = mean / mean.sum() if mean.sum() > 0 else mean
    signs = {}
    for column, (key, domain) in enumerate(space.items()):
        ordered = isinstance(domain, Range) or all(
            isinstance(value, int | float) for value in domain.values
        )
        varies = np.ptp(places[:, column]) > 0 and np.ptp(target) > 0
        rank = spearmanr(places[:, column], target).statistic if ordered and varies else None
        signs[key] = "" if rank is None else f"(r {rank:+.2f})"
    return dict(zip(space, shares.tolist(), strict=True)), signs


def _place(domain: Domain, value: Value) -> float:
    """A value's height on its axis, in [0, 1]."""
    if isinstance(domain, Choice):
        values = _sorted(domain)
        return values.index(value) / max(1, len(values) - 1)
    ends = np.array([domain.low, float(str(value)), domain.high])
    low, at, high = np.log(ends) if domain.log else ends
    return float((at - low) / (high - low))


def _marks(domain: Domain) -> list[tuple[float, Value]]:
    if isinstance(domain, Choice):
        return [(_place(domain, value), value) for value in domain.values]
    return [(0.0, domain.low), (1.0, domain.high)]


def _sorted(domain: Choice) -> list[Value]:
    """Numbers by size, anything else in its own order."""
    values = list(domain.values)
    numbers = [value for value in values if isinstance(value, int | float)]
    return sorted(numbers) if len(numbers) == len(values) else values  # type: ignore[return-value]


def write_report(sweep: Sweep, tracker: Tracker) -> None:
    """Write best.json, trials.csv and the plots, and log them to the parent run.

    Raises:
        UserError: If no trial finished.
    """
    outcomes = sweep.outcomes()
    files = [_table(sweep, outcomes)]
    best = best_trial(sweep, outcomes)
    config = best_config(sweep, best, outcomes[best])
    files.append(sweep.folder / "best.json")
    storage.write(files[-1], config.model_dump_json(indent=1).encode())
    step, scores = common_scores(sweep, tracker, outcomes)
    values = {trial: outcomes[trial].values for trial in scores}
    objective = sweep.objective
    files.append(sweep.folder / "parallel-coordinates.png")
    last = {
        trial: outcome.metrics[objective]
        for trial, outcome in outcomes.items()
        if objective in outcome.metrics
    }
    parallel_coordinates(
        sweep.space,
        {trial: outcomes[trial].values for trial in last},
        last,
        {trial for trial in last if outcomes[trial].status == "finished"},
        best,
        objective,
        files[-1],
    )
    if len(scores) > 1:
        files.append(sweep.folder / "parameter-importance.png")
        title = f"{objective} at step {step}, {len(scores)} trials"
        parameter_importance(sweep.space, values, scores, title, files[-1])
    for file in files:
        tracker.log_file(file)
    metrics = outcomes[best].metrics
    tracker.log_next({f"best_{name}": value for name, value in metrics.items()})
    counts = [outcome.status for outcome in outcomes.values()]
    for status in ("finished", "stopped", "failed"):
        tracker.set_tag(f"sweep.{status}", str(counts.count(status)))
    tracker.set_tag("sweep.best", run_name(best))
    print(
        f"{counted(counts.count('finished'), 'trial')} finished, {counts.count('stopped')} "
        f"stopped early, {counts.count('failed')} failed; best is {run_name(best)} with "
        f"{objective} {outcomes[best].metrics[objective]:.4g}",
        flush=True,
    )


def best_trial(sweep: Sweep, outcomes: dict[str, Outcome]) -> str:
    """The best of the trials that ran to their last step.

    Raises:
        UserError: If no trial finished.
    """
    name = sweep.objective
    scores = {
        trial: outcome.metrics[name]
        for trial, outcome in outcomes.items()
        if outcome.status == "finished" and name in outcome.metrics
    }
    if not scores:
        causes = sorted({outcome.failure for outcome in outcomes.values() if outcome.failure})
        raise UserError(f"{sweep.folder}: no trial finished: {'; '.join(causes)[:500]}")
    pick = max if OBJECTIVES[name].mode == "max" else min
    return pick(scores, key=lambda trial: scores[trial])


def best_config(sweep: Sweep, trial: str, outcome: Outcome) -> RunConfig:
    """A trial's config without its output folder and run name."""
    config = sweep.trial_config(trial, outcome.values)
    return config.model_copy(
        update={
            "output": None,
            "tracking": sweep.run.tracking.model_copy(update={"run_name": None}),
        }
    )


def common_scores(
    sweep: Sweep, tracker: Tracker, outcomes: dict[str, Outcome]
) -> tuple[int, dict[str, float]]:
    """The objective at the last step that all trials reached.

    Returns:
        The step, and the value of each trial that did not fail, by its id.
    """
    histories: dict[str, dict[int, float]] = {}
    for run in _nested_runs(sweep, tracker):
        trial = run.info.run_name.removeprefix("trial-")
        if trial in outcomes and outcomes[trial].status != "failed":
            history = tracker.client.get_metric_history(run.info.run_id, sweep.objective)
            histories[trial] = {metric.step: metric.value for metric in history}
    common = set.intersection(*map(set, histories.values())) if histories else set()
    if not common:
        return 0, {}
    step = max(common)
    return step, {trial: history[step] for trial, history in sorted(histories.items())}


def _nested_runs(sweep: Sweep, tracker: Tracker) -> list[Any]:
    experiment = tracker.client.get_run(sweep.parent_run).info.experiment_id
    query = f"tags.`mlflow.parentRunId` = '{sweep.parent_run}'"
    return list(tracker.client.search_runs([experiment], query, max_results=50_000))


def _table(sweep: Sweep, outcomes: dict[str, Outcome]) -> Path:
    """One row per trial."""
    text = io.StringIO()
    names = ["trial", "status", *sweep.space, *METRICS, "failure"]
    writer = csv.DictWriter(text, names, restval="", lineterminator="\n")
    writer.writeheader()
    for trial, outcome in outcomes.items():
        writer.writerow(
            {
                "trial": trial,
                "status": outcome.status,
                **outcome.values,
                **outcome.metrics,
                "failure": outcome.failure or "",
            }
        )
    file = sweep.folder / "trials.csv"
    storage.write(file, text.getvalue().encode())
    return file
