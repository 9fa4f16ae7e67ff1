"""The ``acontrol`` script: one name for every command."""

import configparser
import importlib
import inspect
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from acontrol import __main__, __version__
from launch import cli
from tests.launch.commands import ROOT

SCRIPT = Path(sys.executable).with_name("acontrol")
# An install from before the script was declared lacks it.
START = [str(SCRIPT)] if SCRIPT.exists() else [sys.executable, "-m", "launch.cli"]


def acontrol(*args: object) -> "subprocess.CompletedProcess[str]":
    command = [*START, *(str(arg) for arg in args)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)


def test_the_script_is_declared() -> None:
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg")
    name, target = setup["options.entry_points"]["console_scripts"].strip().split(" = ")
    module, _, function = target.partition(":")
    assert name == "acontrol"
    assert getattr(importlib.import_module(module), function) is __main__.main


def test_it_works_beside_another_package_called_launch(tmp_path: Path) -> None:
    """As ROS 2's, which its set-up puts ahead of everything in PYTHONPATH."""
    (tmp_path / "launch").mkdir()
    (tmp_path / "launch" / "__init__.py").write_text("raise ImportError('another launch')\n")
    path = os.pathsep.join([str(tmp_path), str(ROOT)])
    for args, words in (
        (["--version"], f"acontrol {__version__}\n"),
        (["promote", "--help"], "usage: acontrol promote"),
        (["search", "--help"], "usage: acontrol search"),
    ):
        result = subprocess.run(
            [sys.executable, "-m", "acontrol", *args],
            env={**os.environ, "PYTHONPATH": path},
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=120,
        )
        assert (result.returncode, result.stderr) == (0, "")
        assert result.stdout.startswith(words)


@pytest.mark.parametrize("args", [[], ["--help"], ["-h"]])
def test_help_lists_every_command_on_a_line(args: list[str]) -> None:
    result = acontrol(*args)
    assert (result.returncode, result.stderr) == (0, "")
    lines = [line.split() for line in result.stdout.splitlines()]
    listed = [words[0] for words in lines if words and words[0] in cli.COMMANDS]
    assert listed == list(cli.COMMANDS)


def test_the_package_of_commands_lists_them_too() -> None:
    command = [sys.executable, "-m", "launch"]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert result.stdout == acontrol().stdout


def test_it_tells_its_version() -> None:
    assert acontrol("--version").stdout == f"acontrol {__version__}\n"


def test_an_unknown_command_is_one_line_with_the_closest_names() -> None:
    result = acontrol("trainn", "tiny")
    assert (result.returncode, result.stdout) == (2, "")
    known = ", ".join(cli.COMMANDS)
    expected = f"error: no command 'trainn'; did you mean train? (choose from {known})\n"
    assert result.stderr == expected
    assert acontrol("zzz").stderr == f"error: no command 'zzz'; choose from {known}\n"


def test_a_command_runs(built_in_data: Path, tmp_path: Path) -> None:
    result = acontrol("shard", built_in_data, "--out", tmp_path / "shards", "--split", "all")
    assert (result.returncode, result.stderr) == (0, "")
    assert result.stdout.startswith("18 samples in 1 shard: ")
    assert (tmp_path / "shards" / "index.json").is_file()


def test_a_user_error_is_one_line(tmp_path: Path) -> None:
    result = acontrol("shard", tmp_path / "missing", "--out", tmp_path / "shards")
    assert (result.returncode, result.stdout) == (2, "")
    (line,) = result.stderr.splitlines()
    assert line.startswith(f"error: {tmp_path / 'missing'}: ")


@pytest.mark.parametrize("name", cli.COMMANDS)
def test_help_names_the_script(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    module = importlib.import_module(cli.COMMANDS[name][0])
    assert list(inspect.signature(module.run).parameters) == ["args", "prog"]
    with pytest.raises(SystemExit) as stop:
        cli.run([name, "--help"])
    assert stop.value.code == 0
    text = capsys.readouterr().out
    assert f"acontrol {name}" in text
    assert "python -m" not in text


@pytest.mark.parametrize("name", ["train", "search", "precompute"])
def test_help_of_a_run_shows_the_common_options_and_help_all_shows_every_one(
    name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    def shown(*args: str) -> tuple[str, list[str]]:
        with pytest.raises(SystemExit) as stop:
            cli.run([name, *args])
        assert stop.value.code == 0
        text = capsys.readouterr().out
        return text, re.findall(r"^[│ ] {1,2}(--[\w.-]+)", text, re.M)

    text, few = shown("--help")
    assert f"usage: acontrol {name} PRESET" in text
    assert "--help-all shows every setting" in text
    assert re.search(r"--data\.shards [^-]*\(required\)", text)
    assert "--asea.solver" not in few
    preset, named = shown("tiny", "--help")
    assert named == few
    assert re.search(r"--optim\.steps [^-]*\(default: 60\)", preset)
    everything, options = shown("tiny", "--help-all")
    assert {*few, "--asea.solver", "--data.cache-dir"} <= {*options}
    assert len(options) > 4 * len(few) or name == "search"
    assert "--help-all shows every setting" not in everything


def test_help_starts_fast() -> None:
    """Its own loads no library; that of a command neither networks nor a cluster."""
    code = """
import contextlib, os, sys
from launch import cli

def show(*args):
    with contextlib.suppress(SystemExit), contextlib.redirect_stdout(open(os.devnull, "w")):
        cli.run([*args, "--help"])

show()
print(*{"torch", "ray", "mlflow", "numpy", "tyro"} & sys.modules.keys())
for command in cli.COMMANDS:
    show(command)
for part in ("quality", "localization", "classification", "ablation"):
    show("evaluate", part)
print(*{"torch", "ray", "mlflow", "numpy"} & sys.modules.keys())
"""
    command = [sys.executable, "-c", code]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert result.stdout == "\n\n"
