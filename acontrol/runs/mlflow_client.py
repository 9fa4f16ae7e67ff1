"""MLflow: opening a run, its settings, data and versions, its errors in one line."""

import ast
import contextlib
import json
import logging
import os
import platform
import shlex
import sys
from collections.abc import Iterator, Mapping, Sequence
from importlib.metadata import version
from typing import Any

import mlflow
from mlflow.entities import Dataset, DatasetInput, InputTag, Param, RunTag
from mlflow.entities.model_registry import ModelVersion
from mlflow.exceptions import MlflowException, RestException
from mlflow.protos.databricks_pb2 import (
    INVALID_PARAMETER_VALUE,
    RESOURCE_DOES_NOT_EXIST,
    ErrorCode,
)
from mlflow.utils.mlflow_tags import MLFLOW_DATASET_CONTEXT, MLFLOW_PARENT_RUN_ID
from sqlalchemy.exc import SQLAlchemyError

from acontrol._version import __version__
from acontrol.data.lock import waiting
from acontrol.errors import UserError, nearest
from acontrol.runs.inputs import DataInput
from acontrol.runs.origin import origin_tags
from acontrol.runs.server import TrackingStore, database_file, without_password

log = logging.getLogger(__name__)
# By default a server that hangs becomes an error only after a quarter of an hour.
os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")
os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "15")
# Hides the messages about creating SQLite tables.
logging.getLogger("mlflow").setLevel(logging.WARNING)
logging.getLogger("alembic").setLevel(logging.WARNING)

VERSIONS = ("torch", "deepspeed", "ray", "diffusers", "transformers", "mlflow")
CANDIDATE, CHAMPION = "candidate", "champion"
CAVEATS = "caveats"  # A setting of an evaluation's run.
SHOWN_DIGEST = 12  # Characters beside a data set's name; a tag has it whole.
# Tags of a model version; of a run too, what it read.
MANIFEST_TAG, WEIGHTS_TAG = "manifest_sha256", "weights_sha256"
DATA_TAG, BASE_TAG = "data_digest", "base_digest"


def where_to_look(uri: str, experiment_id: str | None) -> str:
    """How a user opens an experiment's runs in a browser.

    Args:
        uri: Tracking server or database.
        experiment_id: None leaves MLflow's first page.
    """
    page = f"#/experiments/{experiment_id}?workflowType=machine_learning"
    page = f"/{page}" if experiment_id else ""
    if uri.startswith(("http:", "https:")):
        return without_password(uri).rstrip("/") + page
    command = f"mlflow server --backend-store-uri {shlex.quote(without_password(uri))}"
    return f"{command}  and open http://127.0.0.1:5000{page}"


def open_run(
    store: TrackingStore, experiment: str, run_name: str, *, parent: str | None = None
) -> str:
    """Create an MLflow run; returns its id.

    Args:
        store: Tracking server or database.
        experiment: Name of the experiment; created if new.
        run_name: Name of the run.
        parent: Id of the parent run. Names are unique under it, so a launch that was killed
            before it recorded its run's id finds the run again.

    Raises:
        UserError: If the tracking server cannot be reached or refuses.
    """
    uri, file = store.uri, database_file(store.uri)
    # Two launches may not create one database at once.
    with waiting(file) if file else contextlib.nullcontext(), reaching(uri):
        client = mlflow.MlflowClient(tracking_uri=uri)
        existing = client.get_experiment_by_name(experiment)
        if existing is not None and existing.lifecycle_stage == "deleted":
            raise UserError(
                f"MLflow at {without_password(uri)}: the experiment {experiment!r} was "
                "deleted: mlflow experiments restore --experiment-id "
                f"{existing.experiment_id}, or name another one"
            )
        if existing is not None:
            experiment_id = existing.experiment_id
        else:
            place = store.artifacts.as_uri() if store.artifacts else None
            experiment_id = client.create_experiment(experiment, artifact_location=place)
        tags = origin_tags() | ({MLFLOW_PARENT_RUN_ID: parent} if parent else {})
        if parent and (before := _nested(client, experiment_id, parent, run_name)):
            client.update_run(before, status="RUNNING")
            return before
        created = client.create_run(experiment_id, run_name=run_name, tags=tags)
        return str(created.info.run_id)


def close_nested(
    uri: str, experiment: str, parent: str, run_name: str, status: str, tags: Mapping[str, str]
) -> None:
    """Close a nested run, whoever opened it, creating it if nobody did.

    If MLflow cannot be reached, a warning is logged and the status is lost.
    """
    try:
        run_id = open_run(TrackingStore(uri), experiment, run_name, parent=parent)
        client = mlflow.MlflowClient(tracking_uri=uri)
        for name, value in tags.items():
            client.set_tag(run_id, name, value)
        client.set_terminated(run_id, status)
    except (MlflowException, UserError) as error:
        log.warning("MLflow did not close %s: %s", run_name, str(error)[:200])


def describe(client: mlflow.MlflowClient, run_id: str, resolved: Mapping[str, Any]) -> None:
    """Log settings and versions."""
    params = [
        Param(f"{group}.{name}" if name else group, str(value))
        for group, settings in resolved.items()
        for name, value in (
            settings.items() if isinstance(settings, dict) else [("", settings)]
        )
    ]
    tags = [RunTag(f"version.{name}", version(name)) for name in VERSIONS]
    tags.append(RunTag("version.acontrol", __version__))
    tags.append(RunTag("version.python", platform.python_version()))
    client.log_batch(run_id, params=params, tags=tags)
    try:
        client.log_dict(run_id, dict(resolved), "config.json")
    except OSError as error:
        run = client.get_run(run_id)
        raise UserError(
            f"MLflow stores this experiment's files in {run.info.artifact_uri}, which cannot "
            f"be written from here ({error.strerror or error}): start the server with "
            "--serve-artifacts, or name an experiment whose place all machines reach"
        ) from error


def log_data(client: mlflow.MlflowClient, run_id: str, data: DataInput) -> None:
    """Log the data set as the run's input; the whole digest is a tag."""
    profile = {"num_rows": sum(data.counts.values()), "counts": data.counts}
    dataset = Dataset(
        name=data.name,
        digest=data.digest[:SHOWN_DIGEST],
        source_type="local" if "://" not in data.source else data.source.partition(":")[0],
        source=json.dumps({"uri": data.source}),
        profile=json.dumps(profile),
    )
    tags = [InputTag(MLFLOW_DATASET_CONTEXT, data.context)]
    client.log_inputs(run_id, [DatasetInput(dataset, tags)])
    client.set_tag(run_id, DATA_TAG, data.digest)


def last_values(uri: str, run_id: str) -> dict[str, float]:
    """The last value of each metric of a run."""
    return dict(mlflow.MlflowClient(tracking_uri=uri).get_run(run_id).data.metrics)


def caveats_of(uri: str, run_id: str) -> list[str]:
    """What a run of launch.evaluate says that its figures cannot show."""
    params = mlflow.MlflowClient(tracking_uri=uri).get_run(run_id).data.params
    text = params.get(CAVEATS, "[]")
    try:
        return [str(caveat) for caveat in ast.literal_eval(text)]
    except (ValueError, SyntaxError):  # Cut by the server.
        return [text]


def last_steps(uri: str, run_id: str, names: Sequence[str]) -> dict[str, int]:
    """The last step that MLflow has of each metric, as far as it can be reached."""
    client = mlflow.MlflowClient(tracking_uri=uri)
    steps = {}
    try:
        with reaching(uri):
            for name in names:
                if history := client.get_metric_history(run_id, name):
                    steps[name] = max(metric.step for metric in history)
    except UserError as error:
        log.warning("repeated steps may be logged twice: %s", error)
    return steps


def is_refusal(uri: str, error: MlflowException) -> bool:
    """Whether MLflow itself refuses for good; a proxy's errors are not MLflow's."""
    if error.error_code == ErrorCode.Name(INVALID_PARAMETER_VALUE):
        return True
    from_mlflow = isinstance(error, RestException) or not uri.startswith("http")
    return from_mlflow and error.error_code == ErrorCode.Name(RESOURCE_DOES_NOT_EXIST)


@contextlib.contextmanager
def reaching(uri: str) -> Iterator[None]:
    """Turn MLflow's errors into one line that names the server, without its password."""
    try:
        yield
    except (MlflowException, SQLAlchemyError) as error:
        # SQLAlchemy appends its statement and a link.
        reason = getattr(error, "orig", None) or error
        message = f"MLflow at {uri}: {' '.join(str(reason).split())}"
        raise UserError(without_password(message)[:400]) from error


def _nested(
    client: mlflow.MlflowClient, experiment_id: str, parent: str, run_name: str
) -> str | None:
    """Id of the nested run of this name."""
    query = f"tags.`{MLFLOW_PARENT_RUN_ID}` = '{parent}'"
    for run in client.search_runs([experiment_id], query, max_results=50_000):
        if run.info.run_name == run_name:
            return str(run.info.run_id)
    return None


def client_of(uri: str) -> mlflow.MlflowClient:
    """A client with runs and models on the same server."""
    # The default, seven attempts with growing pauses, means minutes of silence.
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "3")
    if not sys.stderr.isatty():
        os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    return mlflow.MlflowClient(tracking_uri=uri, registry_uri=uri)


def version_of(
    client: mlflow.MlflowClient, name: str, alias: str | None = None, version: str | None = None
) -> ModelVersion | None:
    """A model's version by its alias or number; None if it does not exist."""
    try:
        if version is not None:
            return client.get_model_version(name, version)
        return client.get_model_version_by_alias(name, alias)
    except MlflowException as error:
        # MLflow calls a missing alias an invalid parameter.
        absent = error.error_code == ErrorCode.Name(RESOURCE_DOES_NOT_EXIST)
        invalid = error.error_code == ErrorCode.Name(INVALID_PARAMETER_VALUE)
        if absent or (invalid and "not found" in str(error)):
            return None
        raise


def nearest_model(client: mlflow.MlflowClient, name: str, alias: str | None) -> str:
    """What there is instead of a model, or of its version, that does not exist."""
    models = {model.name: model for model in client.search_registered_models()}
    if name not in models:
        return nearest(name, models)
    if alias is not None:
        return f"alias {alias}: {nearest(alias, models[name].aliases)}"
    versions = client.search_model_versions(f"name = '{name}'")
    return f"versions: {', '.join(sorted(str(version.version) for version in versions))}"
