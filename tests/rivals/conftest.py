"""One data set and one plan for every method."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from acontrol.generation.settings import MethodName
from acontrol.networks.locate import built_in_adapter
from launch import generate

Line = dict


def options(method: str, data: Path, out: Path, *more: object) -> list[str]:
    args = ["--method", method, "--model", built_in_adapter(), "--data", data, "--out", out]
    args += ["--category", "wood", "--split", "all", "--count", 2, "--steps", 2]
    return [str(arg) for arg in [*args, "--gate", "off", "--seed", 3, *more]]


def lines_of(out: Path) -> list[Line]:
    return [json.loads(line) for line in (out / "manifest.jsonl").read_text().splitlines()]


def pixels(file: Path) -> np.ndarray:
    return np.asarray(Image.open(file))


@pytest.fixture(scope="session")
def database(tmp_path_factory: pytest.TempPathFactory) -> str:
    """MLflow's, for all: to make one takes seconds."""
    return f"sqlite:///{tmp_path_factory.mktemp('mlflow') / 'mlflow.db'}"


@pytest.fixture(scope="session")
def drawn(
    built_in_data: Path, tmp_path_factory: pytest.TempPathFactory
) -> dict[MethodName, Path]:
    """The same six images by every method that needs no other adapter."""
    folder = tmp_path_factory.mktemp("rivals")
    methods: tuple[MethodName, ...] = (
        *("acontrol", "copy-paste", "perlin", "cutpaste", "procedural", "reference-only"),
    )
    for method in methods:
        generate.run(options(method, built_in_data, folder / method))
    return {method: folder / method for method in methods}
