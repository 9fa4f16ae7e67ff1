from collections.abc import Iterator
from pathlib import Path

import pytest

from acontrol.runs import storage
from acontrol.runs.storage import StoragePath
from tests.train import object_store


@pytest.fixture(scope="session")
def bucket() -> Iterator[str]:
    yield from object_store.serve()


@pytest.fixture(params=["local", "s3"])
def run_path(request, tmp_path: Path) -> StoragePath:
    """A run's folder: on this disk, and in an object store."""
    if request.param == "local":
        return tmp_path / "run"
    bucket = request.getfixturevalue("bucket")
    return storage.storage_path(f"{bucket}/{tmp_path.name}/run")
