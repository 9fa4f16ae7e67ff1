"""The command line of a small real run, and what MLflow holds of it."""

import sqlite3
from pathlib import Path

STEPS, EVERY, TRACED = 9, 3, 2


def options(shards: Path, output: Path, steps: int = STEPS, every: int = EVERY) -> list[object]:
    return [
        *("tiny", "--data.shards", shards, "--output", output),
        *("--optim.steps", steps, "--checkpoint.every", every, "--cluster.num-workers", 2),
        *("--optim.batch-size", 4, "--samples.every", 0, "--samples.steps", 2),
    ]


def values_of(run: Path, name: str) -> list[tuple[int, float]]:
    """Every value of a metric that MLflow holds, in order."""
    database = sqlite3.connect(run / "mlflow.db")
    try:
        query = "select step, value from metrics where key = ? order by step, timestamp"
        return database.execute(query, [name]).fetchall()
    finally:
        database.close()


def losses_of(run: Path) -> list[tuple[int, float]]:
    """Every loss."""
    return values_of(run, "loss")
