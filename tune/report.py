"""What is left of a sweep: the best config, a table, plots; all of it in MLflow too."""

import csv
import io
from pathlib import Path
from typing import Any

from acontrol.config import RunConfig
from acontrol.errors import UserError
from acontrol.runs.tracking import Tracker
from tune.objective import OBJECTIVES
from tune.plots import parallel_coordinates, parameter_importance
from tune.record import METRICS, Outcome, Sweep, replace, run_name


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
    replace(files[-1], config.model_dump_json(indent=1))
    step, scores = common_scores(sweep, tracker, outcomes)
    values = {trial: outcomes[trial].values for trial in scores}
    objective = sweep.objective
    files.append(sweep.folder / "parallel-coordinates.png")
    last = {
        trial: one.metrics[objective]
        for trial, one in outcomes.items()
        if objective in one.metrics
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
    found = {f"best_{name}": one for name, one in outcomes[best].metrics.items()}
    tracker.log_next(found)
    counts = [one.status for one in outcomes.values()]
    for status in ("finished", "stopped", "failed"):
        tracker.set_tag(f"sweep.{status}", str(counts.count(status)))
    tracker.set_tag("sweep.best", run_name(best))
    print(
        f"{counts.count('finished')} trials finished, {counts.count('stopped')} stopped early, "
        f"{counts.count('failed')} failed; best is {run_name(best)} with {objective} "
        f"{outcomes[best].metrics[objective]:.4g}",
        flush=True,
    )


def best_trial(sweep: Sweep, outcomes: dict[str, Outcome]) -> str:
    """The best of the trials that ran to their last step.

    Raises:
        UserError: If there is none.
    """
    name = sweep.objective
    scores = {
        trial: one.metrics[name]
        for trial, one in outcomes.items()
        if one.status == "finished" and name in one.metrics
    }
    if not scores:
        causes = sorted({one.failure for one in outcomes.values() if one.failure})
        raise UserError(f"{sweep.folder}: no trial finished: {'; '.join(causes)[:500]}")
    pick = max if OBJECTIVES[name].mode == "max" else min
    return pick(scores, key=lambda trial: scores[trial])


def best_config(sweep: Sweep, trial: str, outcome: Outcome) -> RunConfig:
    """A trial's config, free of its place in the sweep."""
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
    """The objective where trials compare: at the last step that all of them reached.

    Returns:
        The step, and the value of each trial that did not fail, by its id.
    """
    histories: dict[str, dict[int, float]] = {}
    for run in _nested_runs(sweep, tracker):
        trial = run.info.run_name.removeprefix("trial-")
        if trial in outcomes and outcomes[trial].status != "failed":
            history = tracker.client.get_metric_history(run.info.run_id, sweep.objective)
            histories[trial] = {one.step: one.value for one in history}
    common = set.intersection(*(set(one) for one in histories.values())) if histories else set()
    if not common:
        return 0, {}
    step = max(common)
    return step, {trial: history[step] for trial, history in sorted(histories.items())}


def _nested_runs(sweep: Sweep, tracker: Tracker) -> list[Any]:
    experiment = tracker.client.get_run(sweep.parent_run).info.experiment_id
    query = f"tags.`mlflow.parentRunId` = '{sweep.parent_run}'"
    return list(tracker.client.search_runs([experiment], query, max_results=50_000))


def _table(sweep: Sweep, outcomes: dict[str, Outcome]) -> Path:
    """Every trial in a row."""
    text = io.StringIO()
    names = ["trial", "status", *sweep.space, *METRICS, "failure"]
    writer = csv.DictWriter(text, names, restval="", lineterminator="\n")
    writer.writeheader()
    for trial, one in outcomes.items():
        writer.writerow(
            {
                "trial": trial,
                "status": one.status,
                **one.values,
                **one.metrics,
                "failure": one.failure or "",
            }
        )
    file = sweep.folder / "trials.csv"
    replace(file, text.getvalue())
    return file
