"""Whether a command continues the run that lies in its output."""

import json

from pydantic import ValidationError

from acontrol.config import RunConfig
from acontrol.errors import UserError
from acontrol.runs.mlflow_client import named_uri
from acontrol.runs.record import RunRecord
from acontrol.runs.storage import StoragePath
from acontrol.train.checkpoint import Checkpoint, newest_checkpoint


def check_continues(
    checkpoint: Checkpoint, config: RunConfig, data_digest: str, base_digest: str
) -> None:
    """See that a checkpoint was made with the same settings, data and base.

    Raises:
        UserError: If not; names what differs.
    """
    before = checkpoint.state
    changes = changed_settings(before.config, config)
    if before.data_digest != data_digest:
        changes.append("the shards' contents")
    if before.base_digest != base_digest:
        changes.append("the base models' files")
    if changes:
        raise UserError(
            f"{config.output} holds a run with other settings ({'; '.join(changes)}): "
            "name another --output, or give the same settings to continue it"
        )


def known_mlflow_run(
    run: StoragePath, config: RunConfig, checkpoint: Checkpoint | None
) -> str | None:
    """The MLflow run to continue: the last launch's, unless this is another run by now."""
    record = RunRecord.read(run)
    if record is None or record.mlflow_uri != named_uri(config):
        return None
    if checkpoint is None:  # Nothing held the settings together so far.
        try:
            before = RunConfig.model_validate_json((run / "config.json").read_bytes())
        except (OSError, ValidationError):
            return None
        if changed_settings(before, config):
            return None
    return record.mlflow_run


def how_to_resume(run: StoragePath) -> str:
    """What the same command would do now."""
    try:
        checkpoint = newest_checkpoint(run)
    except UserError as error:
        return str(error)
    if checkpoint is None:
        return "No checkpoint yet: the same command starts again"
    return f"The same command continues from step {checkpoint.state.step} ({checkpoint.path})"


def changed_settings(before: RunConfig, now: RunConfig) -> list[str]:
    """Settings that differ and on which the numbers depend, as "name: before -> now"."""
    # On how many workers, and what is shown, may change from launch to launch.
    free = {"output", "init", "profile", "cluster", "checkpoint", "samples", "tracking"}
    left = _flat(json.loads(before.model_dump_json(exclude=free)))
    right = _flat(json.loads(now.model_dump_json(exclude=free)))
    # Contents are compared by digest, wherever they lie now.
    ignored = {"data.shards", "data.cache_dir", "data.features", "data.loader_workers"}
    # These say when to give up, and nothing of the numbers: skipped samples have a digest.
    ignored |= {"optim.max_skipped", "data.damaged", "data.max_damaged"}
    ignored |= {"base.path", "base.revision", "base.vlm_path", "base.vlm_revision"}
    if before.optim.schedule == now.optim.schedule == "constant":
        ignored.add("optim.steps")  # A cosine ends where the run does.
    return [
        f"{name}: {left[name]} -> {right[name]}"
        for name in left
        if left[name] != right[name] and name not in ignored
    ]


def _flat(tree: dict[str, object], prefix: str = "") -> dict[str, object]:
    flat: dict[str, object] = {}
    for name, value in tree.items():
        if isinstance(value, dict):
            flat |= _flat(value, f"{prefix}{name}.")
        else:
            flat[f"{prefix}{name}"] = value
    return flat
