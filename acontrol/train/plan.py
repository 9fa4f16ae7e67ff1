"""What a run is, resolved once: inputs, checkpoint to continue from, MLflow run."""

import contextlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from acontrol.config import AdapterCard, RunConfig, TrainedOn
from acontrol.data.features import FeatureFolder, feature_folder
from acontrol.data.lock import only_launch
from acontrol.data.reader import ShardReader
from acontrol.data.split import refuse_mix
from acontrol.data.stream import check_view
from acontrol.errors import UserError, one_line
from acontrol.networks import hub, locate
from acontrol.runs.paths import absolute
from acontrol.runs.storage import StoragePath, storage_path
from acontrol.train.checkpoint import Checkpoint, has_checkpoint, newest_checkpoint
from acontrol.train.resume import check_continues, known_mlflow_run


@dataclass(frozen=True)
class RunInputs:
    """What a run reads.

    Attributes:
        config: The run, with absolute paths.
        reader: Its shards.
        base_digest: Names the base models by their contents.
    """

    config: RunConfig
    reader: ShardReader
    base_digest: str

    @classmethod
    def resolve(cls, config: RunConfig) -> "RunInputs":
        """Find shards and base.

        Raises:
            UserError: If either is missing or invalid, or they come from different splits.
        """
        config = absolute(config)
        reader = ShardReader(config.data.shards or "", config.data.cache_dir)
        check_view(config.data, reader.index, reader.root)
        digest = locate.digest(config.base)
        shards = f"the shards {config.data.shards}"
        for owner, records in seen_before(config).items():
            refuse_mix(owner, records, shards, reader.index.trained_on)
        return cls(config, reader, digest)

    def features(self) -> FeatureFolder:
        """The precomputed features that fit this run, which may not exist yet."""
        return feature_folder(self.config, self.reader, self.base_digest)


@dataclass(frozen=True)
class RunPlan(RunInputs):
    """A run, resolved under its lock; valid as long as the lock is held.

    Attributes:
        run: The run's folder.
        checkpoint: Where it continues; None at the start.
        mlflow_run: The MLflow run of the launch it continues, if any.
        online_reason: Why features are computed online although the config names a folder of
            precomputed ones; None if those fit, or if it names none.
    """

    run: StoragePath
    checkpoint: Checkpoint | None
    mlflow_run: str | None
    online_reason: str | None

    @classmethod
    @contextlib.contextmanager
    def locked(cls, config: RunConfig) -> Iterator["RunPlan"]:
        """Resolve a run, and keep other launches out of its folder meanwhile.

        Nothing is created before all inputs are found.

        Raises:
            UserError: If the user must mend something: an option, the data, the base, or
                settings that differ from those of the run in the output folder.
        """
        config = absolute(config)
        if unnamed(config):
            raise UserError("; ".join(unmet(config)))
        run = storage_path(config.output or "")
        if config.sga.scale == 0:
            raise UserError("sga.scale is 0: the adapter would not be used, so it cannot learn")
        if has_checkpoint(run):  # Its weights count, whatever init is now.
            config = config.model_copy(update={"init": None})
        if config.init is not None:
            from acontrol.interop.begin import check_init  # Imports diffusers.

            check_init(config.init)
        inputs = RunInputs.resolve(config)
        hub.fetch(config.base)
        with only_launch(run):
            checkpoint = newest_checkpoint(run)
            if checkpoint is not None:
                check_continues(
                    checkpoint, config, inputs.reader.index.digest, inputs.base_digest
                )
                began_from = checkpoint.state.config.init  # For the next checkpoints' record.
                config = config.model_copy(update={"init": began_from})
            yield cls(
                config,
                inputs.reader,
                inputs.base_digest,
                run,
                checkpoint,
                known_mlflow_run(run, config, checkpoint),
                inputs.features().why_not() if config.data.features else None,
            )

    @property
    def has_features(self) -> bool:
        """Whether training reads precomputed features."""
        return self.config.data.features is not None and self.online_reason is None


def seen_before(config: RunConfig) -> dict[str, tuple[TrainedOn, ...]]:
    """What a run's base and initial weights come from.

    Raises:
        UserError: If a card is damaged.
    """
    seen = {f"the base {config.base.path}": locate.trained_on(config.base)}
    file = Path(config.init or "", "config.json")
    if config.init is not None and file.is_file():  # Not an IP-Adapter file.
        try:
            card = AdapterCard.model_validate(json.loads(file.read_bytes())["card"])
        except (ValueError, KeyError, TypeError) as error:
            raise UserError(f"init {file}: not an adapter's: {one_line(error)}") from error
        seen[f"init {config.init}"] = card.seen
    return seen


def unnamed(config: RunConfig) -> list[str]:
    """Required options without a value, one line each."""
    required = (
        (config.output, "--output RUN is needed: where the run goes"),
        (config.data.shards, "--data.shards DIR is needed: what acontrol shard wrote"),
    )
    return [line for value, line in required if value is None]


def unmet(config: RunConfig) -> list[str]:
    """Everything missing before the run can start: options, and weights on this machine."""
    return unnamed(config) + hub.missing(config.base)
