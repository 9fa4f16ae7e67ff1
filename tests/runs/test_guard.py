"""What the same command may continue."""

import json
from pathlib import Path

import pytest

from acontrol.errors import UserError
from acontrol.runs.guard import changes, claim, refuse


def test_changes_are_named_by_dotted_name_on_both_sides() -> None:
    before = {"seed": 0, "optim": {"steps": 3, "old": 1}, "gone": "x", "same": [1, 2]}
    now = {"seed": 4, "optim": {"steps": 5, "new": 2}, "same": [1, 2]}
    assert changes(before, now) == [
        "seed: 0 -> 4",
        "optim.steps: 3 -> 5",
        "optim.old: 1 -> None",
        "optim.new: None -> 2",
        "gone: x -> None",
    ]
    assert changes(before, before) == []


def test_digests_are_shown_by_their_beginning() -> None:
    assert changes({"data": "a" * 64}, {"data": "b" * 64}) == [
        f"data: {'a' * 16}... -> {'b' * 16}..."
    ]


def test_only_changes_are_refused() -> None:
    refuse("RUN", [])
    with pytest.raises(UserError, match=r"RUN .* \(a: 1 -> 2; b\): name another --out,"):
        refuse("RUN", ["a: 1 -> 2", "b"], "--out")


def test_a_folder_is_claimed_once(tmp_path: Path) -> None:
    file = tmp_path / "new" / "job.json"
    claim(file, {"seed": 0, "range": (1, 2)})
    content = file.read_bytes()
    claim(file, {"seed": 0, "range": (1, 2)})
    with pytest.raises(UserError, match=r"seed: 0 -> 1"):
        claim(file, {"seed": 1, "range": (1, 2)})
    assert file.read_bytes() == content
    assert json.loads(content) == {"seed": 0, "range": [1, 2]}


@pytest.mark.parametrize("text", ["{", "3", "[1]"])
def test_a_damaged_record_is_refused_and_kept(tmp_path: Path, text: str) -> None:
    file = tmp_path / "job.json"
    file.write_text(text)
    with pytest.raises(UserError, match="damaged"):
        claim(file, {"seed": 0})
    assert file.read_text() == text
