"""A registered model behind ``mlflow.pyfunc.load_model`` and ``mlflow models serve``.

MLmodel names this module as its loader. It comes from the installed package, so the model's
folder is checked and read, never executed.
"""

import os
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import INVALID_PARAMETER_VALUE

from acontrol.errors import UserError
from acontrol.networks.load import quieten
from acontrol.pipelines.anomaly_control import AnomalyControlPipeline
from acontrol.pipelines.loading import load_pipeline
from acontrol.registry.model_files import check_model
from acontrol.registry.requests import (
    ServedRequest,
    ServedSampling,
    encode,
    read_params,
    read_rows,
)

BASE_PATH = "ACONTROL_BASE_PATH"  # Where the base is on this machine, if it moved.


class ServedModel:
    """Draws a request's rows one by one, so that a row's PNG depends on that row alone."""

    def __init__(self, pipeline: AnomalyControlPipeline):
        """Serve a pipeline."""
        self.pipeline = pipeline
        self.defaults = ServedSampling(semantic_scale=pipeline.card.sga.scale)
        # MLflow's server calls predict from several threads, and the scheduler has state.
        self._lock = threading.Lock()

    def predict(
        self, model_input: pd.DataFrame, params: Mapping[str, Any] | None = None
    ) -> pd.DataFrame:
        """Draw one image per row: a column ``image`` of base64 PNG.

        Raises:
            MlflowException: If the request is bad; the server answers 400 with the message.
        """
        try:
            requests = read_rows(model_input.to_dict(orient="records"))
            sampling = read_params(params, self.defaults)
            for request in requests:
                self.pipeline.semantics.read([request.reference_phrase])
        except ValueError as error:
            raise MlflowException(str(error), error_code=INVALID_PARAMETER_VALUE) from error
        with self._lock:
            images = [encode(self._draw(request, sampling)) for request in requests]
        return pd.DataFrame({"image": images})

    def _draw(self, request: ServedRequest, sampling: ServedSampling) -> Any:
        return self.pipeline(
            [request.prompt],
            [request.reference_image],
            [request.reference_mask],
            [request.reference_phrase],
            [request.image],
            [request.mask_image],
            **vars(sampling),
            generator=[torch.Generator().manual_seed(request.seed)],
        ).images[0]


def _load_pyfunc(path: str) -> ServedModel:
    """MLflow's entry point: check the folder, load the adapter on its base."""
    quieten()
    # MLflow adds a file of its own to a model from a registry.
    check_model(Path(path), ignored=("registered_model_meta",))
    device = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        pipeline = load_pipeline(
            os.path.join(path, "adapter"), os.environ.get(BASE_PATH), device
        )
    except UserError as error:
        raise UserError(str(error).replace("--base-path", BASE_PATH)) from error
    pipeline.set_progress_bar_config(disable=True)
    return ServedModel(pipeline)
