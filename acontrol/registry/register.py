"""Register a finished run's adapter as a new version of a model."""

import contextlib
import json
import re
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from urllib.parse import urlencode, urlparse

import mlflow
from mlflow.entities import Metric, Run
from mlflow.exceptions import MlflowException

from acontrol.config import RunConfig
from acontrol.errors import UserError
from acontrol.messages import counted
from acontrol.registry.card import GRID, WEIGHTS, AdapterFile, ModelCard, check_model_name
from acontrol.registry.model_files import read_json
from acontrol.registry.package import package
from acontrol.registry.readme import licence_notes, readme, words_of
from acontrol.runs.mlflow_client import (
    BASE_TAG,
    CANDIDATE,
    DATA_TAG,
    MANIFEST_TAG,
    WEIGHTS_TAG,
    caveats_of,
    client_of,
    describe,
    last_values,
    open_run,
    reaching,
)
from acontrol.runs.origin import COMMIT_TAG
from acontrol.runs.record import RunRecord, runs_in
from acontrol.runs.results import COMMAND_NAME, RUN_NAME
from acontrol.runs.server import TrackingStore
from acontrol.runs.storage import sha256

KEPT = ("mlflow.user", "mlflow.source.name", "command", DATA_TAG)  # Tags of a copied run.
CAUTION_TAG = "caution"  # Of a version: what its figures cannot show.
MAX_DESCRIPTION = 5000  # MLflow's limit.
ABOUT = "Adapters that draw defects (AnomalyControl); each version has its model card."


@dataclass(frozen=True)
class Registered:
    """A version of a model and its server."""

    name: str
    version: str
    uri: str
    is_new: bool


@dataclass(frozen=True)
class FinishedRun:
    """The folder of a run whose training is complete."""

    folder: Path
    config: RunConfig
    adapter: AdapterFile
    record: RunRecord

    @property
    def own_uri(self) -> str:
        """MLflow server or database of the run."""
        return self.record.uri(self.folder)


def register_run(
    run: Path,
    name: str,
    uri: str | None = None,
    licences: Sequence[str] = (),
    evaluations: Sequence[Path] = (),
) -> Registered:
    """Register a finished run's adapter, and give it the alias ``candidate``.

    Weights are registered once: a second time, their version becomes the candidate again.

    Args:
        run: The run's output folder.
        name: The model's name; created if it is new.
        uri: MLflow server or database; by default the run's. Any other gets a copy of the
            run with its settings and last metrics.
        licences: Notes for the card, besides those on known bases.
        evaluations: Folders of launch.evaluate, whose figures go into the card and to the
            model's MLflow run, where ``promote`` compares them.

    Raises:
        UserError: If the run is unfinished or incomplete, or the server refuses.
    """
    check_model_name(name)
    finished = _read_run(run)
    target = uri or finished.own_uri
    weights = sha256(run / WEIGHTS)
    figures: dict[str, float] = {}
    cautions: list[str] = []
    for folder in evaluations:
        measured, caveats = _measured(folder)
        figures |= measured
        cautions += [caveat for caveat in caveats if caveat not in cautions]
    with reaching(finished.own_uri):
        source = client_of(finished.own_uri)
        original = source.get_run(finished.record.mlflow_run)
    with reaching(target):
        client = client_of(target)
        for version in client.search_model_versions(f"name = '{name}'"):
            if version.tags.get(WEIGHTS_TAG) == weights:
                client.set_registered_model_alias(name, CANDIDATE, version.version)
                _log_figures(client, version.run_id, figures)
                if cautions:  # The card cannot change any more.
                    client.set_model_version_tag(
                        name, version.version, CAUTION_TAG, "; ".join(cautions)
                    )
                return Registered(name, str(version.version), target, is_new=False)
    with tempfile.TemporaryDirectory(prefix="acontrol-register-") as scratch:
        model = Path(scratch, "model")
        model.mkdir()
        with reaching(finished.own_uri):
            grid = _last_grid(source, original, Path(scratch))
        with reaching(target):
            same = target == finished.own_uri
            mlflow_run = original if same else _copy(finished, original, target)
            card = ModelCard(
                name=name,
                adapter=finished.adapter.card,
                weights_sha256=weights,
                run=mlflow_run.info.run_id,
                commit=original.data.tags.get(COMMIT_TAG),
                metrics=_metrics_of(original),
                licences=[*licences, *licence_notes(finished.adapter.card)],
                author=original.data.tags.get("mlflow.user"),
                date=_day_of(original),
                counts=_counts_of(original),
                evaluation=figures,
                cautions=cautions,
            )
            _log_figures(client, card.run, figures)
            manifest = package(model, run / "adapter", card, grid)
            number = _create(client, target, mlflow_run, model, manifest, card)
    return Registered(name, number, target, is_new=True)


def _read_run(run: Path) -> FinishedRun:
    """Read a run's folder.

    Raises:
        UserError: If it is not a run's folder, or its training is not complete.
    """
    record = RunRecord.read(run)
    if record is None:
        raise UserError(f"{run}: not a run's output folder (it has no run.json){runs_in(run)}")
    config = read_json(run, "config.json", RunConfig)
    if not (run / "adapter" / "config.json").is_file():
        raise UserError(f"{run}: this run has no checkpoint yet")
    adapter = read_json(run, "adapter/config.json", AdapterFile)
    if adapter.card.steps < config.optim.steps:
        raise UserError(
            f"{run}: not finished, it has {adapter.card.steps} of "
            f"{counted(config.optim.steps, 'step')}; "
            "repeat its acontrol train command to continue it"
        )
    return FinishedRun(run, config, adapter, record)


def _metrics_of(run: Run) -> dict[str, float]:
    """The last value of each metric, without the system's."""
    return {
        name: value
        for name, value in sorted(run.data.metrics.items())
        if not name.startswith("system/") and abs(value) < float("inf")
    }


def _fitting(page: str) -> str:
    """As many whole lines as MLflow takes."""
    return page if len(page) <= MAX_DESCRIPTION else page[:MAX_DESCRIPTION].rpartition("\n")[0]


def _measured(folder: Path) -> tuple[dict[str, float], list[str]]:
    """The figures of a folder of launch.evaluate, as COMMAND/FIGURE, and their cautions.

    Raises:
        UserError: If it is none, or not finished.
    """
    try:
        command = (folder / COMMAND_NAME).read_text().strip()
        uri, run_id = (folder / RUN_NAME).read_text().split("\n")
    except (OSError, ValueError):
        raise UserError(f"--evaluation {folder}: not a folder of acontrol evaluate") from None
    with reaching(uri):
        values = last_values(uri, run_id)
        cautions = caveats_of(uri, run_id)
    if not values:
        raise UserError(f"--evaluation {folder}: has no figures; finish its acontrol evaluate")
    figures = {f"{command}/{name}": value for name, value in values.items()}
    return figures, [f"{command}: {caution}" for caution in cautions]


def _log_figures(
    client: mlflow.MlflowClient, run_id: str, figures: Mapping[str, float]
) -> None:
    now = int(time.time() * 1000)
    if figures:
        metrics = [Metric(name, value, now, 0) for name, value in figures.items()]
        client.log_batch(run_id, metrics=metrics)


def _day_of(run: Run) -> str | None:
    """The day on which a run ended."""
    if not run.info.end_time:
        return None
    return datetime.fromtimestamp(run.info.end_time / 1000, UTC).date().isoformat()


def _counts_of(run: Run) -> dict[str, int]:
    """Training images by product and defect, as the run's data set says; empty if unknown."""
    for entry in run.inputs.dataset_inputs if run.inputs else []:
        with contextlib.suppress(ValueError, TypeError, KeyError):
            return dict(json.loads(entry.dataset.profile)["counts"])
    return {}


def _last_grid(client: mlflow.MlflowClient, run: Run, scratch: Path) -> Path | None:
    """Download the newest grid, which MLflow names samples%step%<n>%...png."""
    steps = {}
    for file in client.list_artifacts(run.info.run_id, "images"):
        match = re.match(
            r"images/samples[^0-9a-z]+step[^0-9a-z]+(\d+)[^0-9].*\.png$", file.path
        )
        if match:
            steps[int(match[1])] = file.path
    if not steps:
        return None
    return Path(
        client.download_artifacts(run.info.run_id, steps[max(steps)], dst_path=str(scratch))
    )


def _copy(finished: FinishedRun, original: Run, uri: str) -> Run:
    """Create a run with the settings and last metrics of one on another server."""
    tracking = finished.config.tracking
    run_id = open_run(TrackingStore(uri), tracking.experiment, original.info.run_name)
    client = mlflow.MlflowClient(tracking_uri=uri)
    client.set_tag(run_id, "copied_from", original.info.run_id)
    describe(client, run_id, json.loads(finished.config.model_dump_json()))
    for tag in (COMMIT_TAG, *KEPT):
        if value := original.data.tags.get(tag):
            client.set_tag(run_id, tag, value)
    if original.inputs and original.inputs.dataset_inputs:
        client.log_inputs(run_id, original.inputs.dataset_inputs)
    end, step = original.info.end_time or 0, finished.adapter.card.steps
    client.log_batch(
        run_id,
        metrics=[
            Metric(name, value, end, step) for name, value in _metrics_of(original).items()
        ],
    )
    client.set_terminated(run_id, "FINISHED")
    return client.get_run(run_id)


def _create(
    client: mlflow.MlflowClient,
    uri: str,
    run: Run,
    folder: Path,
    manifest: str,
    card: ModelCard,
) -> str:
    """Upload a packaged model and create the version that points to it."""
    # Named by its contents: never overwrites the files of another version.
    path = f"{card.name}-{manifest[:12]}"
    client.log_artifacts(run.info.run_id, str(folder), path)
    shown = None
    if (folder / GRID).exists():
        # Of MLflow's own server: it shows no embedded pictures, nor files by their names.
        query = urlencode({"path": f"{path}/{GRID}", "run_uuid": run.info.run_id})
        prefix = urlparse(uri).path.rstrip("/") if uri.startswith("http") else ""
        shown = f"{prefix}/get-artifact?{query}"
    try:
        client.create_registered_model(card.name, description=ABOUT)
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise
    version = client.create_model_version(
        card.name,
        f"{run.info.artifact_uri}/{path}",
        run_id=run.info.run_id,
        tags={
            **words_of(card),
            **({CAUTION_TAG: "; ".join(cautions)} if (cautions := card.cautions) else {}),
            MANIFEST_TAG: manifest,
            WEIGHTS_TAG: card.weights_sha256,
            DATA_TAG: card.adapter.data_digest,
            BASE_TAG: card.adapter.base_digest,
        },
        description=_fitting(readme(card, shown)),
    ).version
    client.set_registered_model_alias(card.name, CANDIDATE, version)
    return str(version)
