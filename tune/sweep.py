"""A sweep on a Ray cluster: a new or restored tuner, and the report at its end."""

import json
import math
from pathlib import Path
from typing import Any

import ray
import ray.tune
from ray.tune.schedulers import ASHAScheduler
from ray.tune.search import BasicVariantGenerator, create_searcher

import tune
from acontrol.config import ClusterConfig
from acontrol.data.lock import only_launch
from acontrol.data.reader import ShardReader
from acontrol.errors import UserError, one_line
from acontrol.messages import counted
from acontrol.networks import locate
from acontrol.networks.load import quieten
from acontrol.runs.cluster import joined_cluster, uses_gpus, worker_resources
from acontrol.runs.guard import refuse
from acontrol.runs.inputs import DataInput
from acontrol.runs.mlflow_client import describe
from acontrol.runs.paths import absolute
from acontrol.runs.server import tracking_store
from acontrol.runs.tracking import Tracker
from tune.objective import OBJECTIVES
from tune.plan import Plan
from tune.record import Sweep
from tune.report import write_report
from tune.space import Choice, Domain, in_words
from tune.trial import run_trial
from tune.watcher import SweepWatcher, close, release

STATE = "ray"  # Ray Tune's folder in SWEEP.
GENERATED = ("random", "grid")


def run_sweep(plan: Plan) -> tuple[Path, bool]:
    """Run, or continue, a sweep; returns its folder and whether all trials have ended.

    Raises:
        UserError: If the config, the data or the base is wrong, or no trial finished.
    """
    quieten()
    run = absolute(plan.run)
    if run.output is None or run.data.shards is None:
        raise UserError("--data.shards DIR and --output SWEEP are needed")
    reader = ShardReader(run.data.shards, run.data.cache_dir)
    locate.resolve(run.base)
    folder = Path(run.output)
    _check_searcher(plan)
    if (folder / "run.json").is_file():
        raise UserError(f"{folder} holds a training run: name another --output for the sweep")
    with only_launch(folder):
        plan.run = run
        data = DataInput.of_shards(reader.index, run.data.shards)
        sweep, tracker = _opened(plan, folder, data)
        if plan.config.retry_failed:
            sweep.forget_failed()
        if len(sweep.outcomes()) < sweep.trials:
            _search(sweep, plan)
        outcomes = sweep.outcomes()
        for trial, outcome in outcomes.items():
            close(sweep, trial, outcome)  # A dying process may have written there last.
        whole = len(outcomes) >= sweep.trials
        if not whole:
            tracker.finish("KILLED")
            return folder, False
        try:
            write_report(sweep, tracker)
        except UserError:
            tracker.finish("FAILED")
            raise
        tracker.finish("FINISHED")
    return folder, True


def _opened(plan: Plan, folder: Path, data: DataInput) -> tuple[Sweep, Tracker]:
    """The folder's sweep, checked against the plan, and its MLflow run."""
    before = Sweep.read(folder)
    tracking = plan.run.tracking
    store = tracking_store(tracking.uri, folder, before.mlflow_uri if before else None)
    uri = store.uri
    tracker = Tracker.open(
        store,
        tracking.experiment,
        tracking.run_name or f"sweep {folder.name}",
        before.parent_run if before and before.mlflow_uri == uri else None,
        folder,
        parent=tracking.parent_run,
        data=data,
    )
    sweep = Sweep(
        run=plan.run,
        space=plan.space,
        objective=plan.objective,
        search=plan.config.search,
        scheduler=plan.config.scheduler,
        reduction=plan.config.reduction,
        trials=plan.trials,
        mlflow_uri=uri,
        parent_run=tracker.run_id,
    )
    if before is None:
        words = {key: value for key, value in in_words(sweep.space).items()}
        searched = {"objective": sweep.objective, "trials": sweep.trials, "space": words}
        settings = {"sweep": searched, **json.loads(sweep.run.model_dump_json())}
        describe(tracker.client, tracker.run_id, settings)
        sweep.write()
    else:
        refuse(folder, before.changes(sweep))
    return sweep, tracker


def _search(sweep: Sweep, plan: Plan) -> None:
    """Let Ray Tune run the remaining trials."""
    cluster, at_once = sweep.run.cluster, plan.config.max_concurrent
    # A cluster started here gets room for all concurrent trials.
    room = cluster.model_copy(update={"num_workers": cluster.num_workers * (at_once or 1)})
    package = Path(tune.__file__).parent
    with joined_cluster(room, packages=[package], show_output=False):
        at_once = at_once or concurrency(cluster)
        print(f"{counted(sweep.trials, 'trial')}, {at_once} at a time", flush=True)
        # A trial's own process only waits for its workers, which reserve their own resources;
        # Ray refuses an empty reservation, so it reserves a byte.
        trial = ray.tune.with_resources(
            ray.tune.with_parameters(run_trial, sweep=sweep), {"memory": 1}
        )
        tuner = _tuner(sweep, plan, trial, at_once)
        tuner.fit()
        for name in sweep.outcomes():
            release(sweep, name)


def _tuner(sweep: Sweep, plan: Plan, trial: Any, at_once: int) -> ray.tune.Tuner:
    space = {
        key: _in_ray_words(domain, sweep.search == "grid")
        for key, domain in sweep.space.items()
    }
    state = sweep.folder / STATE
    if ray.tune.Tuner.can_restore(str(state)):
        return ray.tune.Tuner.restore(
            str(state),
            trial,
            resume_unfinished=True,
            resume_errored=plan.config.retry_failed,
            param_space=space,
        )
    objective = OBJECTIVES[sweep.objective]
    return ray.tune.Tuner(
        trial,
        param_space=space,
        tune_config=ray.tune.TuneConfig(
            metric=sweep.objective,
            mode=objective.mode,
            num_samples=1 if sweep.search == "grid" else sweep.trials,
            search_alg=searcher(
                sweep.search, sweep.objective, objective.mode, sweep.run.seed, at_once
            ),
            scheduler=_scheduler(sweep),
            # Ray's own generators take the limit themselves.
            max_concurrent_trials=None if sweep.search in GENERATED else at_once,
        ),
        run_config=ray.tune.RunConfig(
            name=STATE,
            storage_path=str(sweep.folder),
            callbacks=[SweepWatcher(sweep)],
            verbose=0,
        ),
    )


def searcher(name: str, metric: str, mode: str, seed: int, at_once: int = 0) -> Any:
    """Ray Tune's searcher of this name, for ``at_once`` concurrent trials; 0: no limit.

    Raises:
        UserError: If it does not exist, or its package is not installed.
    """
    if name in GENERATED:
        return BasicVariantGenerator(random_state=seed % 2**32, max_concurrent=at_once)
    try:
        return create_searcher(name, metric=metric, mode=mode, seed=seed % 2**32)
    except ValueError as error:
        raise UserError(f"--search {name}: {error}") from error
    except (ImportError, AssertionError) as error:
        reason = one_line(error) or "its package is missing"
        raise UserError(f"--search {name}: not installed ({reason})") from error


def _check_searcher(plan: Plan) -> None:
    mode = OBJECTIVES[plan.objective].mode
    searcher(plan.config.search, plan.objective, mode, plan.run.seed)


def _scheduler(sweep: Sweep) -> ASHAScheduler | None:
    if sweep.scheduler == "none":
        return None
    steps = [sweep.run.optim.steps]
    if "optim.steps" in sweep.space:
        steps = [int(str(mark)) for mark in sweep.space["optim.steps"].marks]
    return ASHAScheduler(
        time_attr="step",
        max_t=max(*steps, sweep.run.validation.every),
        grace_period=sweep.run.validation.every,
        reduction_factor=sweep.reduction,
    )


def _in_ray_words(domain: Domain, grid: bool) -> Any:
    if isinstance(domain, Choice):
        values = list(domain.values)
        return ray.tune.grid_search(values) if grid else ray.tune.choice(values)
    if domain.whole:
        draw = ray.tune.lograndint if domain.log else ray.tune.randint
        return draw(int(domain.low), int(domain.high) + 1)
    return (ray.tune.loguniform if domain.log else ray.tune.uniform)(domain.low, domain.high)


def concurrency(cluster: ClusterConfig) -> int:
    """The number of trials whose workers fit the joined cluster at once; at least one."""
    total = ray.cluster_resources()
    needs = worker_resources(cluster, uses_gpus(cluster))
    fits = [total.get(name, 0) / (cluster.num_workers * need) for name, need in needs.items()]
    return max(1, math.floor(min(fits)))
