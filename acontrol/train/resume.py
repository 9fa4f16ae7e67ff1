"""Whether a command continues the run in its output folder."""

from typing import Any

from pydantic import ValidationError

from acontrol.config import RunConfig
from acontrol.errors import UserError
from acontrol.messages import counted
from acontrol.runs.guard import changes, refuse
from acontrol.runs.record import RunRecord
from acontrol.runs.server import tracking_store
from acontrol.runs.storage import StoragePath
from acontrol.train.checkpoint import Checkpoint, newest_checkpoint


def check_continues(
    checkpoint: Checkpoint, config: RunConfig, data_digest: str, base_digest: str
) -> None:
    """Check that a checkpoint has the same settings, data and base.

    Raises:
        UserError: If not; names what differs.
    """
    before = checkpoint.state
    if config.optim.steps < before.step:
        raise UserError(
            f"{config.output} has {counted(before.step, 'step')}, more than --optim.steps "
            f"{config.optim.steps}: name another --output for a shorter run, or give at least "
            f"{counted(before.step, 'step')}"
        )
    changed = changed_settings(before.config, config)
    if before.data_digest != data_digest:
        changed.append("the shards' contents")
    if before.base_digest != base_digest:
        changed.append("the base models' files")
    refuse(config.output or "", changed)


def known_mlflow_run(
    run: StoragePath, config: RunConfig, checkpoint: Checkpoint | None
) -> str | None:
    """The last launch's MLflow run, unless the settings or the server have changed."""
    record = RunRecord.read(run)
    if record is None:
        return None
    if tracking_store(config.tracking.uri, run, record.mlflow_uri).uri != record.uri(run):
        return None
    if checkpoint is None:  # Then nobody has compared the settings yet.
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
    """Settings that differ and change the numbers, as "name: before -> now"."""
    # The number of workers and what is shown may change from launch to launch.
    free = ("output", "init", "profile", "cluster", "checkpoint", "samples", "tracking")
    excluded: dict[str, Any] = {
        **dict.fromkeys(free, True),
        # Contents are compared by digest, wherever they are now; so are skipped samples.
        "base": {"path", "revision", "vlm_path", "vlm_revision"},
        "data": {"shards", "cache_dir", "features", "loader_workers", "damaged", "max_damaged"},
        # When to give up does not change the numbers.
        "optim": {"max_skipped"},
    }
    if before.optim.schedule == now.optim.schedule == "constant":
        excluded["optim"].add("steps")  # A cosine ends where the run does.
    return changes(
        before.model_dump(mode="json", exclude=excluded),
        now.model_dump(mode="json", exclude=excluded),
    )
