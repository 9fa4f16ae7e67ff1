"""Reach an MLflow server, and say in one line where it fails."""

import contextlib
import os
import re
import sys
from collections.abc import Iterator

import mlflow
from mlflow.entities.model_registry import ModelVersion
from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import (
    INVALID_PARAMETER_VALUE,
    RESOURCE_DOES_NOT_EXIST,
    ErrorCode,
)

from acontrol.errors import UserError

CANDIDATE, CHAMPION = "candidate", "champion"
# Tags of a model version.
MANIFEST_TAG, WEIGHTS_TAG = "manifest_sha256", "weights_sha256"
DATA_TAG, BASE_TAG = "data_digest", "base_digest"


def server_uri(said: str | None) -> str:
    """The server or database named by an option, else by the environment.

    Raises:
        UserError: If neither is.
    """
    uri = said or os.environ.get("MLFLOW_TRACKING_URI")
    if not uri:
        raise UserError(
            "name the MLflow server or database with --tracking.uri or MLFLOW_TRACKING_URI "
            "(a run without one keeps its own: sqlite:///RUN/mlflow.db)"
        )
    return uri


def client_of(uri: str) -> mlflow.MlflowClient:
    """A client whose models are where its runs are."""
    # Seven attempts with growing pauses, the default, are minutes of silence.
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "3")
    if not sys.stderr.isatty():
        os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    return mlflow.MlflowClient(tracking_uri=uri, registry_uri=uri)


@contextlib.contextmanager
def reaching(uri: str) -> Iterator[None]:
    """Turn MLflow's errors into one line that names the server, without its password."""
    try:
        yield
    except MlflowException as error:
        message = f"MLflow at {uri}: {' '.join(str(error).split())}"
        raise UserError(re.sub(r"//[^/@\s]*@", "//", message)[:400]) from error


def version_of(
    client: mlflow.MlflowClient, name: str, alias: str | None = None, version: str | None = None
) -> ModelVersion | None:
    """A model's version by its alias or number; None if there is none."""
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
