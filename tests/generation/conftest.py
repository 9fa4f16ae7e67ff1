"""The built-in pipeline, and files of a crack to draw with it."""

from pathlib import Path

import pytest

import acontrol
from acontrol.networks.locate import built_in_adapter
from acontrol.pipelines.anomaly_control import AnomalyControlPipeline


@pytest.fixture(scope="module")
def pipe() -> AnomalyControlPipeline:
    pipe = acontrol.load_pipeline(str(built_in_adapter()))
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.fixture(scope="session")
def crack(built_in_data: Path) -> dict[str, Path]:
    """Arguments of `acontrol.draw_defect`."""
    wood = built_in_data / "wood"
    return {
        "image": wood / "train/good/000.png",
        "mask": wood / "ground_truth/crack/001_mask.png",
        "reference_image": wood / "test/crack/000.png",
        "reference_mask": wood / "ground_truth/crack/000_mask.png",
    }
