"""Run a command as a user does: in a process of its own."""

import contextlib
import os
import subprocess
import sys
from pathlib import Path

import psutil

ROOT = Path(__file__).parents[2]


def start(module: str, *args: object, cluster: str | None = None) -> "subprocess.Popen[str]":
    """Start ``python -m module args`` and return at once.

    Args:
        module: The command's.
        args: Its arguments.
        cluster: Address of the Ray cluster to join; by default it starts one of its own.
    """
    environment = {
        name: value for name, value in os.environ.items() if name != "MLFLOW_TRACKING_URI"
    }
    return subprocess.Popen(
        [sys.executable, "-m", module, *(str(arg) for arg in args)],
        cwd=ROOT,
        env=environment | ({"RAY_ADDRESS": cluster} if cluster else {}),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def run(
    module: str, *args: object, cluster: str | None = None, limit_s: float = 400
) -> "subprocess.CompletedProcess[str]":
    """Run it to its end."""
    process = start(module, *args, cluster=cluster)
    try:
        out, err = process.communicate(timeout=limit_s)
    except subprocess.TimeoutExpired:
        kill_with_children(process)
        raise
    return subprocess.CompletedProcess(process.args, process.returncode, out, err)


def kill_with_children(process: "subprocess.Popen[str]") -> None:
    """Kill a command and all that it started."""
    for one in [*psutil.Process(process.pid).children(recursive=True), process]:
        with contextlib.suppress(psutil.NoSuchProcess):
            one.kill()
    process.communicate()
