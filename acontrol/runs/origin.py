"""Where a run comes from: who started it, with which command and which code."""

import getpass
import os
import shlex
import subprocess
import sys
from collections.abc import Sequence
from functools import cache
from pathlib import Path

from acontrol.runs.paths import in_ray_job
from acontrol.runs.server import without_password

COMMIT, USER = "ACONTROL_COMMIT", "ACONTROL_USER"  # Environment variables.
COMMIT_TAG = "mlflow.source.git.commit"


def origin_tags() -> dict[str, str]:
    """MLflow's tags of user, source and commit, and the whole command."""
    command = command_of(sys.argv)
    tags = {
        "mlflow.user": user(),
        "mlflow.source.name": " ".join(command[:2]) or "acontrol",
        "mlflow.source.type": "JOB" if in_ray_job() else "LOCAL",
    }
    if command:
        tags["command"] = without_password(shlex.join(command))
    if commit := git_commit():
        tags[COMMIT_TAG] = commit
    return tags


def command_of(argv: Sequence[str]) -> list[str]:
    """The command line as ``acontrol COMMAND ...``; empty for another program's."""
    program = Path(argv[0])
    if program.stem == "acontrol":
        return ["acontrol", *argv[1:]]
    if program.parent.name in ("launch", "tune") and program.suffix == ".py":
        return ["acontrol", program.stem, *argv[1:]]
    return []


def user() -> str:
    """Who runs this: ACONTROL_USER, else the account."""
    if name := os.environ.get(USER):
        return name
    try:
        return getpass.getuser()
    except (OSError, KeyError):  # A container's user may have no name.
        return "unknown"


@cache
def _checkout_commit() -> str | None:
    """The commit of the checkout that this file belongs to."""
    folder = Path(__file__).parent
    try:
        # An environment inside another project's checkout is not part of it.
        for command in (
            ("ls-files", "--error-unmatch", Path(__file__).name),
            ("rev-parse", "HEAD"),
        ):
            result = subprocess.run(
                ["git", *command], cwd=folder, capture_output=True, text=True, check=True
            )
    except (OSError, subprocess.CalledProcessError):
        return None
    return result.stdout.strip()


def git_commit() -> str | None:
    """The code's commit: ACONTROL_COMMIT, else that of this file's checkout."""
    return os.environ.get(COMMIT) or _checkout_commit()


def origin_environment() -> dict[str, str]:
    """User and commit for the processes of a cluster, which know neither."""
    commit = git_commit()
    return {USER: user()} | ({COMMIT: commit} if commit else {})
