"""The Ray cluster of a launch: an existing one, else a local one."""

import contextlib
import logging
import math
import os
import socket
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import ray

import acontrol
from acontrol.config import ClusterConfig
from acontrol.errors import UserError, one_line
from acontrol.messages import counted
from acontrol.progress import waiting
from acontrol.runs.origin import origin_environment
from acontrol.runs.paths import in_ray_job

if TYPE_CHECKING:
    from ray.train import ScalingConfig

# Where `ray start` records its cluster, and Ray's own commands look for it.
CURRENT_CLUSTER = Path("/tmp/ray/ray_current_cluster")
_PORT = "RAY_GCS_SERVER_PORT"  # Ray's own, of a local cluster; known before it starts.
CROWD = 4  # Cores of workers on each core.
# Workers need these to reach the same services as the driver.
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
    """Join the cluster of RAY_ADDRESS or of `ray start`, or start a local one.

    Local clusters of other launches are not joined.

    Args:
        cluster: Workers and their resources, for a local cluster.
        packages: Packages that tasks import besides acontrol, as folders.
        show_output: Whether to print the workers' output here.

    Raises:
        UserError: If the cluster of RAY_ADDRESS does not answer, or refuses to be joined.
    """
    if ray.is_initialized():
        yield
        return
    quiet: dict[str, Any] = {"log_to_driver": show_output, "logging_level": logging.ERROR}
    address = os.environ.get("RAY_ADDRESS")
    if not address and CURRENT_CLUSTER.exists():
        address = CURRENT_CLUSTER.read_text().strip()
    if address and _answers(address):
        environment: dict[str, Any] = {}
        if not in_ray_job():  # A Ray job ships its folder itself.
            # Other nodes may have no acontrol, or another version.
            folders = [Path(acontrol.__file__).parent, *packages]
            environment = {
                "py_modules": [str(folder) for folder in folders],
                "env_vars": worker_environment(),
            }
        with waiting(f"Joining the Ray cluster at {address}"):
            try:
                ray.init(address=address, runtime_env=environment, **quiet)
            except ConnectionError as error:
                raise UserError(
                    f"the Ray cluster at {address} does not let this in: {one_line(error)}; "
                    "started with a token, it needs RAY_AUTH_MODE=token and the same token "
                    "here too (docs/training.md)"
                ) from error
    elif os.environ.get("RAY_ADDRESS"):
        raise UserError(f"RAY_ADDRESS {address}: no cluster answers there")
    else:
        _refuse_crowd(cluster)
        # Workers mostly wait for each other, so more of them than cores may run.
        cpus = math.ceil(cluster.num_workers * cluster.cpus_per_worker)
        with waiting("Starting Ray (about 40 s the first time)"), _port_of_local() as port:
            ray.init(
                address="local",
                # Ray Train's watch over a run's resources asks the dashboard of the one cluster
                # of its machine, and fails in the middle of the run if there are two. Joined
                # clusters are left alone: one may have no dashboard, and then the watch would
                # ask another cluster's, which knows no such run, and end it.
                runtime_env={"env_vars": {"RAY_ADDRESS": f"127.0.0.1:{port}"}},
                num_cpus=max(os.cpu_count() or 1, cpus),
                # Custom resources tell nodes apart; a single node has them all.
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


@contextlib.contextmanager
def _port_of_local() -> Iterator[int]:
    """Choose the port of a local cluster that starts meanwhile."""
    chosen = os.environ.get(_PORT)
    if chosen:
        yield int(chosen)
        return
    with socket.create_server(("", 0)) as server:
        port = int(server.getsockname()[1])
    os.environ[_PORT] = str(port)
    try:
        yield port
    finally:
        del os.environ[_PORT]


def _refuse_crowd(cluster: ClusterConfig) -> None:
    """Refuse far more workers than a machine has cores: each takes about 1 GB of memory.

    Raises:
        UserError: If so.
    """
    cores, each = os.cpu_count() or 1, cluster.cpus_per_worker
    most = math.floor(CROWD * cores / each) if each else cluster.num_workers
    if cluster.num_workers > most:
        raise UserError(
            f"{counted(cluster.num_workers, 'worker')} of {each:g} cores on this machine's "
            f"{cores}: name at most {max(1, most)} (num-workers), or join a cluster "
            "(RAY_ADDRESS)"
        )


def _answers(address: str) -> bool:
    """Whether something listens at the address; Ray itself would try for minutes."""
    host, _, port = address.rpartition(":")
    if "//" in address or not port.isdigit():  # "auto", or Ray's client: left to Ray.
        return True
    try:
        with socket.create_connection((host, int(port)), timeout=5):
            return True
    except OSError:
        return False


def uses_gpus(cluster: ClusterConfig, option: str | None = None) -> bool:
    """Whether workers get a GPU each. Prints what the cluster lacks.

    That is no error, since an autoscaling cluster starts with less.

    Args:
        cluster: Workers and their resources.
        option: What names the number of workers, of a command without ``--cluster`` options.

    Raises:
        UserError: If ``use_gpu`` is unset and the cluster has some GPUs, but too few.
    """
    resources = ray.cluster_resources()
    workers, gpus = cluster.num_workers, int(resources.get("GPU", 0))
    if cluster.use_gpu is None and 0 < gpus < workers:
        others = ", or --cluster.use-gpu True to wait for more, or False to train on CPUs"
        give = f"--cluster.num-workers {gpus}{others}" if option is None else f"{option} {gpus}"
        raise UserError(
            f"the cluster has {counted(gpus, 'GPU')} for {workers} workers: give {give}"
        )
    on_gpus = gpus >= workers if cluster.use_gpu is None else cluster.use_gpu
    for name, share in worker_resources(cluster, on_gpus).items():
        needed, available = workers * share, resources.get(name, 0)
        if available < needed:
            print(
                f"Waiting for {needed:g} {name}: the cluster has {available:g} so far",
                flush=True,
            )
    return on_gpus


@contextlib.contextmanager
def without_rays_traceback() -> Iterator[None]:
    """Let a UserError of a task or an actor through as itself, since it is one line."""
    try:
        yield
    except ray.exceptions.RayTaskError as error:
        if isinstance(error.cause, UserError):
            raise error.cause from error
        raise


def not_started(cluster: ClusterConfig, on_gpus: bool) -> str:
    """What workers that did not start within ``start_s`` wait for, and where to look."""
    wanted = worker_resources(cluster, on_gpus)
    if cluster.accelerator_type is not None:
        wanted[f"accelerator_type:{cluster.accelerator_type}"] = 0.001  # As Ray asks for it.
    free, has = ray.available_resources(), ray.cluster_resources()
    lines = [
        f"{share:g} {name} ({free.get(name, 0):g} of {has.get(name, 0):g} free)"
        for name, share in wanted.items()
    ]
    return (
        f"no training within {cluster.start_s:g} s (cluster.start_s): "
        f"{counted(cluster.num_workers, 'worker')}, each with {', '.join(lines)}; Ray's logs "
        "are on the head node, in /tmp/ray/session_latest/logs unless it was told otherwise"
    )


def worker_resources(cluster: ClusterConfig, on_gpus: bool) -> dict[str, float]:
    """Ray resources of each worker."""
    gpu = {"GPU": 1.0} if on_gpus else {}
    return {"CPU": cluster.cpus_per_worker, **gpu, **cluster.resources}


def worker_environment(on_gpus: bool | None = None) -> dict[str, str]:
    """Environment variables of the workers, or of all processes of a job."""
    environment = {name: os.environ[name] for name in FORWARDED if name in os.environ}
    environment |= origin_environment()
    if on_gpus is not None:
        # Also on GPUs: else a worker inherits what its driver has set, which may have none.
        environment["DS_ACCELERATOR"] = "cuda" if on_gpus else "cpu"
    return environment


def scaling(cluster: ClusterConfig, on_gpus: bool) -> "ScalingConfig":
    """How many workers, on what, and where Ray Train places them."""
    from ray.train import ScalingConfig  # Slow to import.

    return ScalingConfig(
        num_workers=cluster.num_workers,
        use_gpu=on_gpus,
        accelerator_type=cluster.accelerator_type,
        placement_strategy=cluster.placement,
        resources_per_worker=worker_resources(cluster, on_gpus),
    )
