"""How a command ends, and which of Ray's lines it leaves out."""

import re
from collections.abc import Sequence

import pytest

from acontrol import __main__ as script
from launch import entry

# As Ray 2.60 prints it at every start of a training.
PREEMPTION = (
    "[2026-11-28 00:33:14,074 E 29155 29214] core_worker.cc:2465: Actor with class name: "
    "'PreemptionWatcher' and ID: 'ace2fca5d63139ad85c66e3001000000' has constructor arguments "
    "in the object store and max_restarts > 0."
)


def test_ctrl_c_is_one_line_and_status_130(capsys: pytest.CaptureFixture[str]) -> None:
    def interrupted(args: Sequence[str]) -> None:
        raise KeyboardInterrupt

    with pytest.raises(SystemExit) as stop:
        entry.main(interrupted)
    assert stop.value.code == 130
    assert capsys.readouterr().err == "interrupted\n"


def test_ctrl_c_while_the_commands_are_imported_is_one_line_too(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(name: str) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(script, "OWN", ())
    monkeypatch.setattr(script.importlib, "import_module", interrupted)
    with pytest.raises(SystemExit) as stop:
        script.main()
    assert stop.value.code == 130
    assert capsys.readouterr().err == "interrupted\n"


def test_ray_leaves_out_its_harmless_line_and_no_other(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_DEDUP_LOGS_SKIP_REGEX", raising=False)
    with pytest.raises(SystemExit):
        entry.main(lambda args: None)
    from ray._private.ray_logging import LogDeduplicator

    lines = [
        PREEMPTION,
        PREEMPTION.replace("PreemptionWatcher", "RayTrainWorker"),
        "core_worker.cc:2465: the node is out of memory",
    ]
    filtered = LogDeduplicator(5, None, entry.os.environ["RAY_DEDUP_LOGS_SKIP_REGEX"])
    (batch, *_) = filtered.deduplicate({"ip": "a", "pid": 1, "lines": lines})
    assert batch["lines"] == lines[1:]
    assert re.search(entry.HARMLESS, PREEMPTION)
