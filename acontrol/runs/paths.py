"""Absolute paths for a run's files, valid for workers and later launches too."""

import json
import os
import re
from pathlib import Path

from acontrol.config import BUILT_IN, RunConfig
from acontrol.data.overlap import refuse_overlap
from acontrol.errors import UserError


def in_ray_job() -> bool:
    """Whether this process was started by ``ray job submit``."""
    try:
        job = json.loads(os.environ.get("RAY_JOB_CONFIG_JSON_ENV_VAR", "{}"))
    except ValueError:
        return False
    return "job_submission_id" in job.get("metadata", {})


def absolute(config: RunConfig) -> RunConfig:
    """Make every local path absolute: workers have another working directory.

    Raises:
        UserError: If the output or the features lie inside the shards, or the output inside
            the features; or, under ``ray job submit``, if a path is relative: the job's
            working folder is a temporary copy.
    """
    base, data = config.base, config.data
    shards = {"--data.shards": data.shards}
    refuse_overlap(data.features, "--data.features", shards)
    refuse_overlap(config.output, "--output", {**shards, "--data.features": data.features})
    uri = config.tracking.uri or os.environ.get("MLFLOW_TRACKING_URI")
    if uri is not None and in_ray_job() and re.match(r"sqlite:///(?!/)|(?![a-z+-]+:)", uri):
        raise UserError(f"MLflow's {_relative_in_job(uri)}")
    return config.model_copy(
        update={
            "output": full_path(config.output, "--output"),
            "init": _local(config.init, "--init"),
            "data": config.data.model_copy(
                update={
                    "shards": full_path(config.data.shards, "--data.shards"),
                    "features": _local(config.data.features, "--data.features"),
                    "cache_dir": full_path(config.data.cache_dir, "--data.cache-dir"),
                }
            ),
            "base": base.model_copy(
                update={
                    "path": _folder(base.path, "--base.path"),
                    "vlm_path": _folder(base.vlm_path, "--base.vlm-path"),
                }
            ),
        }
    )


def full_path(path: str | None, option: str) -> str | None:
    """A local path made absolute; a URI unchanged.

    Raises:
        UserError: Under ``ray job submit``, if it is relative.
    """
    if path is None or "://" in path:
        return path
    path = os.path.expanduser(path)
    if in_ray_job() and not os.path.isabs(path):
        raise UserError(f"{option} {_relative_in_job(path)}")
    return str(Path(path).resolve())


def _local(path: str | None, option: str) -> str | None:
    if path is not None and "://" in path:
        raise UserError(f"{option} {path}: must be a folder on storage that every node sees")
    return full_path(path, option)


def _folder(path: str | None, option: str) -> str | None:
    """A folder's absolute path; a hub id or the built-in name unchanged."""
    if path == BUILT_IN:
        return path
    if path is not None and os.path.isdir(os.path.expanduser(path)):
        return full_path(path, option)
    return path


def _relative_in_job(path: str) -> str:
    return (
        f"{path}: a Ray job runs in a temporary copy of the folder; "
        "give an absolute path or a URI"
    )
