"""The command line of a small real run, and what MLflow holds of it."""

import sqlite3
from pathlib import Path

from acontrol.config import RunConfig
from acontrol.data.features import feature_folder
from acontrol.data.reader import ShardReader
from acontrol.data.stream import TrainingStream
from acontrol.method.model import AnomalyControl
from acontrol.method.sga import SemanticAdapter
from acontrol.networks.load import load_base
from acontrol.networks.locate import digest
from acontrol.runs.record import RunRecord
from acontrol.runs.server import database_file
from acontrol.train.engine import AdapterEngine
from acontrol.train.loop import StepReport, train

STEPS, EVERY, TRACED = 9, 3, 2


def options(shards: Path, output: Path, steps: int = STEPS, every: int = EVERY) -> list[object]:
    return [
        *("tiny", "--data.shards", shards, "--output", output),
        *("--optim.steps", steps, "--checkpoint.every", every, "--cluster.num-workers", 2),
        *("--optim.batch-size", 4, "--samples.every", 0, "--samples.steps", 2),
        *("--asea.steps", 3),  # The preset's is 0.
    ]


def precompute_options(shards: Path, features: Path) -> list[object]:
    """The same run's, for launch.precompute."""
    args = options(shards, shards)
    output = args.index("--output")
    return [*args[:output], *args[output + 2 :], "--data.features", features]


def values_of(run: Path, name: str) -> list[tuple[int, float]]:
    """Every value of a metric that MLflow holds, in order."""
    record = RunRecord.read(run)
    if record is None:
        return []
    database = sqlite3.connect(database_file(record.uri(run)))
    try:
        query = (
            "select step, value from metrics where key = ? and run_uuid = ? "
            "order by step, timestamp"
        )
        return database.execute(query, [name, record.mlflow_run]).fetchall()
    finally:
        database.close()


def losses_in_process(config_json: str, features: str | None = None) -> list[float]:
    """The losses of a run in this process group, without Ray; from features, if named."""
    config = RunConfig.model_validate_json(config_json)
    base = load_base(config.base)
    adapter = SemanticAdapter.from_unet(base.unet, base.vlm.config.qformer_config.hidden_size)
    model = AnomalyControl(base, adapter, config)
    reader = ShardReader(config.data.shards or "")
    folder = None
    if features is not None:
        data = config.data.model_copy(update={"features": features})
        folder = feature_folder(
            config.model_copy(update={"data": data}), reader, digest(config.base)
        )
        assert folder.why_not() is None
    stream = TrainingStream(
        reader,
        config.data,
        seed=config.seed,
        reference_px=model.encoder.semantics.image_px,
        features=folder,
    )
    engine = AdapterEngine(adapter, config, None)
    losses: list[float] = []

    class Notes:
        def on_step(self, report: StepReport) -> None:
            losses.append(report.loss)

        def on_checkpoint(self, report: StepReport) -> None: ...

        def on_samples(self, step: int) -> None: ...

        def on_validation(self, step: int, loss: float) -> None: ...

        def should_stop(self) -> bool:
            return False

        def wants_checkpoint(self, step: int) -> bool:
            return False

    batches = stream.batches(0, config.optim.batch_size, 0, 1, config.optim.steps)
    train(model, batches, engine, config, Notes())
    return losses


def losses_both_ways(config_json: str, features: str) -> dict[str, list[float]]:
    """Online and from features: one process's imports for two tests."""
    return {
        "online": losses_in_process(config_json),
        "features": losses_in_process(config_json, features),
    }


def losses_of(run: Path) -> list[tuple[int, float]]:
    """Every loss."""
    return values_of(run, "loss")
