"""Files that are replaced whole or not at all."""

import os
from pathlib import Path

import pytest

from acontrol.runs import storage


@pytest.mark.parametrize("durable", [True, False])
def test_a_failed_write_leaves_the_earlier_file_alone(tmp_path: Path, durable: bool) -> None:
    file = tmp_path / "new" / "file.txt"
    storage.write(file, b"first", durable=durable)
    with (
        pytest.raises(ValueError, match="halfway"),
        storage.replacing(file, durable=durable) as partial,
    ):
        partial.write_bytes(b"sec")
        assert file.read_bytes() == b"first"
        raise ValueError("halfway")
    assert file.read_bytes() == b"first"
    assert [path.name for path in file.parent.iterdir()] == ["file.txt"]
    storage.write(file, b"second", durable=durable)
    assert file.read_bytes() == b"second"


def test_only_durable_writes_wait_for_the_disk(tmp_path: Path, monkeypatch) -> None:
    synced = []
    monkeypatch.setattr(os, "fsync", synced.append)
    storage.write(tmp_path / "file", b"", durable=False)
    assert synced == []
    storage.write(tmp_path / "file", b"")
    assert len(synced) == 2  # The file, and its folder for the rename.
