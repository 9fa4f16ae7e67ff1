"""Run a command as a user does: in a process of its own."""

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def start(module: str, *args: object) -> "subprocess.Popen[str]":
    """Start ``python -m module args`` and return at once."""
    return subprocess.Popen(
        [sys.executable, "-m", module, *(str(arg) for arg in args)],
        cwd=ROOT,
        env={
            name: value for name, value in os.environ.items() if name != "MLFLOW_TRACKING_URI"
        },
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def run(module: str, *args: object) -> "subprocess.CompletedProcess[str]":
    """Run it to its end."""
    process = start(module, *args)
    out, err = process.communicate(timeout=400)
    return subprocess.CompletedProcess(process.args, process.returncode, out, err)
