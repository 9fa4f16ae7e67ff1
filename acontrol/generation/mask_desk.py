"""The folder of learned masks as a run: whose it is, and its MLflow run.

    MASKS/run.json   the settings; other ones are not mixed in
    MASKS/training/  the state of what is being learned
    MASKS/events/    what goes to MLflow, sent or not yet
    MASKS/mlflow.db  MLflow, unless a server was named

What lies in MASKS otherwise: `acontrol.masks.collection`.
"""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from acontrol.errors import UserError
from acontrol.masks.collection import CARD
from acontrol.masks.settings import MasksConfig
from acontrol.pretrain.stage import Desk
from acontrol.train import storage
from acontrol.train.tracking import Tracker

RUN, TRAINING = "run.json", "training"


def claim(config: MasksConfig, root: Path, digest: str) -> dict[str, Any]:
    """Make the output ours, or see that it is.

    Returns:
        What it notes: settings, and the MLflow run if there is one.

    Raises:
        UserError: If it holds anything else, or masks of other settings.
    """
    free = {"output", "category", "defect", "save_every", "tracking_uri", "experiment"}
    settings = config.model_dump(mode="json", exclude=free | {"base", "vlm_path"})
    settings |= {"data": str(root.resolve()), "base_digest": digest}
    file = config.output / RUN
    begun = (config.output / TRAINING).exists() or any(config.output.glob(f"*/*/{CARD}"))
    if not (file.exists() and begun):  # A run that came to nothing binds nobody.
        if not file.exists() and config.output.exists() and any(config.output.iterdir()):
            raise UserError(f"{config.output} is not empty, and holds no learned masks")
        config.output.mkdir(parents=True, exist_ok=True)
        noted: dict[str, Any] = {"settings": settings, "mlflow_run": None}
        _write(file, noted)
        return noted
    noted = json.loads(file.read_text())
    other = sorted(name for name in settings if noted["settings"].get(name) != settings[name])
    if other:
        name = other[0]
        raise UserError(
            f"{config.output} holds masks learned with another {name} "
            f"({noted['settings'].get(name)}, now {settings[name]}): name a new --output"
        )
    return noted


def open_desk(config: MasksConfig, noted: dict[str, Any], device: torch.device) -> Desk:
    """Open the MLflow run, or make it and note it.

    Raises:
        UserError: If the tracking server cannot be reached or refuses.
    """
    output = config.output.resolve()
    uri = config.tracking_uri or os.environ.get("MLFLOW_TRACKING_URI")
    tracker = Tracker.open(
        uri or f"sqlite:///{output / 'mlflow.db'}",
        config.experiment,
        config.output.name,
        noted["mlflow_run"],
        output,
        artifacts=None if uri else output / "artifacts",
        resolved=noted["settings"],
    )
    if noted["mlflow_run"] is None:
        _write(config.output / RUN, noted | {"mlflow_run": tracker.run_id})
    return Desk(
        config.output / TRAINING, tracker, config.seed, device, config.save_every, config.steps
    )


def _write(file: Path, noted: Mapping[str, Any]) -> None:
    storage.write(file, f"{json.dumps(noted, indent=1)}\n".encode())
