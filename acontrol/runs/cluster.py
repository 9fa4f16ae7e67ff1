"""The Ray cluster that a launch runs on: the one it finds, else a local one."""

import contextlib
import logging
import math
import os
import socket
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import ray

import acontrol
from acontrol.config import ClusterConfig
from acontrol.errors import UserError
from acontrol.runs.paths import in_ray_job

# `ray start` notes its cluster here, and Ray's own commands look here for it.
CURRENT_CLUSTER = Path("/tmp/ray/ray_current_cluster")
# What workers need to reach the same services as the driver.
FORWARDED = (
    "ACONTROL_CACHE",
    "AWS_ACCESS_KEY_ID",
    "AWS_ENDPOINT_URL",
    "AWS_SECRET_ACCESS_KEY",
    "AWS_SESSION_TOKEN",
    "HF_HOME",
    "HF_HUB_OFFLINE",
    "HF_TOKEN",
    "MLFLOW_SYSTEM_METRICS_SAMPLES_BEFORE_LOGGING",
    "MLFLOW_SYSTEM_METRICS_SAMPLING_INTERVAL",
    "MLFLOW_TRACKING_PASSWORD",
    "MLFLOW_TRACKING_TOKEN",
    "MLFLOW_TRACKING_USERNAME",
)


@contextlib.contextmanager
def joined_cluster(
    cluster: ClusterConfig, *, packages: Sequence[Path] = (), show_output: bool = True
) -> Iterator[None]:
    """Join the cluster of RAY_ADDRESS or of `ray start`, or start one; leave it at the end.

    A cluster that another launch started for itself is left alone.

    Args:
        cluster: What workers want, for a cluster that is started.
        packages: Folders that tasks import from besides acontrol.
        show_output: Whether what workers print appears here.

    Raises:
        UserError: If RAY_ADDRESS names a cluster that does not answer.
    """
    if ray.is_initialized():
        yield
        return
    quiet: dict[str, Any] = {"log_to_driver": show_output, "logging_level": logging.ERROR}
    named = os.environ.get("RAY_ADDRESS")
    found = named or (CURRENT_CLUSTER.read_text().strip() if CURRENT_CLUSTER.exists() else "")
    if found and _answers(found):
        # Other nodes may hold no acontrol or another one. A Ray job brings its folder itself.
        modules = [Path(acontrol.__file__).parent, *packages]
        brought = {
            "py_modules": [str(one) for one in modules],
            "env_vars": worker_environment(on_gpus=True),
        }
        brought = {} if in_ray_job() else brought
        ray.init(address=found, runtime_env=brought, **quiet)
    elif named:
        raise UserError(f"RAY_ADDRESS {named}: no cluster answers there")
    else:
        # Workers wait for each other most of the time, so more of them than cores may run.
        ray.init(
            address="local",
            num_cpus=max(
                os.cpu_count() or 1, math.ceil(cluster.num_workers * cluster.cpus_per_worker)
            ),
            # Custom resources tell nodes apart: where there is one, it has them.
            resources={
                name: amount * cluster.num_workers
                for name, amount in cluster.resources.items()
                if name != "memory"
            },
            object_store_memory=256 * 2**20,
            **quiet,
        )
    try:
        yield
    finally:
        ray.shutdown()


def _answers(address: str) -> bool:
    """Whether something listens there: Ray itself would try for minutes."""
    host, _, port = address.rpartition(":")
    if "//" in address or not port.isdigit():  # "auto", or Ray's client: Ray's to judge.
        return True
    try:
        with socket.create_connection((host, int(port)), timeout=5):
            return True
    except OSError:
        return False


def uses_gpus(cluster: ClusterConfig) -> bool:
    """Whether workers get a GPU each; says so when the cluster has too little for them.

    It only says so, since a cluster that grows on demand starts with less.

    Raises:
        UserError: If it is left open, and the cluster has some GPUs but too few.
    """
    there = ray.cluster_resources()
    workers, gpus = cluster.num_workers, int(there.get("GPU", 0))
    if cluster.use_gpu is None and 0 < gpus < workers:
        raise UserError(
            f"the cluster has {gpus} GPUs for {workers} workers: give --cluster.num-workers "
            f"{gpus}, or --cluster.use-gpu True to wait for more, or False to train on CPUs"
        )
    on_gpus = gpus >= workers if cluster.use_gpu is None else cluster.use_gpu
    for kind, share in worker_resources(cluster, on_gpus).items():
        amount, has = workers * share, there.get(kind, 0)
        if has < amount:
            print(f"Waiting for {amount:g} {kind}: the cluster has {has:g} so far", flush=True)
    return on_gpus


def worker_resources(cluster: ClusterConfig, on_gpus: bool) -> dict[str, float]:
    """What Ray reserves for each worker."""
    gpu = {"GPU": 1.0} if on_gpus else {}
    return {"CPU": cluster.cpus_per_worker, **gpu, **cluster.resources}


def worker_environment(on_gpus: bool) -> dict[str, str]:
    """Environment variables of the workers."""
    environment = {name: os.environ[name] for name in FORWARDED if name in os.environ}
    if not on_gpus:
        environment["DS_ACCELERATOR"] = "cpu"
    return environment
