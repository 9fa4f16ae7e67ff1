"""The runs and registered models that MLflow knows, for the page to list."""

from pathlib import Path
from typing import Any

from acontrol.errors import UserError
from acontrol.runs.mlflow_client import client_of, reaching
from acontrol.runs.server import server_uri, without_password
from acontrol.runs.storage import storage_path

MOST = 200  # Runs and models that are listed, the latest.


def runs_of(option: str | None) -> dict[str, Any]:
    """What there is to draw with.

    Args:
        option: The server or database; by default as `acontrol register` finds it.

    Returns:
        ``models`` with name, version, aliases and URI; ``runs`` with name, experiment, status,
        last loss, and the output folder if an adapter is there.

    Raises:
        UserError: If there is none, or it cannot be reached.
    """
    uri = server_uri(option)
    with reaching(uri):
        client = client_of(uri)
        names = {row.experiment_id: row.name for row in client.search_experiments()}
        runs = client.search_runs(
            list(names), max_results=MOST, order_by=["attributes.start_time DESC"]
        )
        versions = client.search_model_versions(max_results=MOST)
        models = {
            name: client.get_registered_model(name) for name in {v.name for v in versions}
        }
    aliases = {name: _by_version(model.aliases) for name, model in models.items()}
    return {
        "uri": without_password(uri),
        "models": [
            {
                "name": row.name,
                "version": str(row.version),
                "aliases": aliases[row.name].get(str(row.version), []),
                "uri": f"models:/{row.name}/{row.version}",
            }
            for row in versions
        ],
        "runs": [
            {
                "name": run.info.run_name,
                "experiment": names[run.info.experiment_id],
                "status": run.info.status.lower(),
                "loss": _loss(run.data.metrics),
                "output": _drawable(run.data.params.get("output")),
            }
            for run in runs
        ],
    }


def _by_version(aliases: dict[str, Any]) -> dict[str, list[str]]:
    versions: dict[str, list[str]] = {}
    for alias, version in sorted(aliases.items()):
        versions.setdefault(str(version), []).append(alias)
    return versions


def _loss(metrics: dict[str, float]) -> str:
    return next((f"{value:.4g}" for name, value in metrics.items() if "loss" in name), "")


def _drawable(output: str | None) -> str | None:
    """A run's folder, if it has an adapter and is within reach."""
    if output is None:
        return None
    try:
        folder = storage_path(output)
        found = isinstance(folder, Path) and (folder / "adapter" / "config.json").is_file()
    except (OSError, UserError):
        return None
    return output if found else None
