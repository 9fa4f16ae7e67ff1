from pathlib import Path

import pytest

from acontrol.data.procedural import write_dataset


@pytest.fixture(scope="session")
def built_in_data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two products, three defects, three images of each."""
    root = tmp_path_factory.mktemp("built-in") / "data"
    write_dataset(
        root,
        num_good=2,
        num_good_test=1,
        num_defects=3,
        categories=("wood", "button"),
        defects=("crack", "stain", "spots"),
    )
    return root
