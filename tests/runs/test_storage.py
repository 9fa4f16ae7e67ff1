"""Files that are replaced whole or not at all."""

import os
import resource
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


def test_a_full_disk_is_named(tmp_path: Path) -> None:
    """The system names no file then. A limit on a file's size fails as a full disk does."""
    file = tmp_path / "file"
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))
    try:
        with pytest.raises(OSError, match="File too large") as caught:
            storage.write(file, bytes(5000))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert caught.value.filename == str(file)
    assert list(tmp_path.iterdir()) == []


def test_only_durable_writes_wait_for_the_disk(tmp_path: Path, monkeypatch) -> None:
    synced = []
    monkeypatch.setattr(os, "fsync", synced.append)
    storage.write(tmp_path / "file", b"", durable=False)
    assert synced == []
    storage.write(tmp_path / "file", b"")
    assert len(synced) == 2  # The file, and its folder for the rename.
