"""The work of one training of a detector: which epoch and which masks its metrics are of."""

import json
from pathlib import Path

import numpy as np
import pytest

from acontrol.data.builtin import write_dataset
from acontrol.evaluation.budget import BUDGETS
from acontrol.evaluation.dataset import DETECTOR, Folders, check
from acontrol.evaluation.localization import Localization
from acontrol.evaluation.protocol import METRICS, PROTOCOLS
from acontrol.evaluation.results import TrainingJob, is_done
from acontrol.masks.perlin import perlin_blobs


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("localization") / "real"
    write_dataset(
        folder,
        num_good=4,
        num_good_test=3,
        num_defects=6,
        categories=("wood",),
        defects=("crack", "stain"),
    )
    return folder


def result(root: Path, out: Path, epochs: int, protocols=PROTOCOLS, source: str = "real"):
    budget = BUDGETS["smallest"].model_copy(update={"epochs": epochs})
    folders = Folders(root, {}, budget.size, budget.pairs)
    data = {"wood": check(folders, "wood", [source], DETECTOR).data}
    work = Localization(folders, budget, protocols, data, perlin_blobs)
    training = TrainingJob("wood", source, 0)
    work.run(training, out)
    assert is_done(training, work, out)
    with np.load(training.file(out).with_suffix(".npz")) as arrays:
        return json.loads(training.file(out).read_text()), dict(arrays)


def test_protocols_of_one_epoch_differ_in_their_masks(root: Path, tmp_path: Path) -> None:
    found, arrays = result(root, tmp_path, 1)
    paper, strict = found["paper"], found["strict"]
    assert paper["epoch"] == strict["epoch"] == 1
    for name in METRICS:
        # An image's score and truth have nothing to do with how masks are cut.
        assert (paper[name] == strict[name]) == name.startswith("image"), name
    np.testing.assert_array_equal(arrays["paper_maps"], arrays["strict_maps"])
    for protocol in PROTOCOLS:
        drawn = arrays[f"{protocol}_resamples"]
        assert drawn.shape == (len(METRICS), 1000)
        middle = np.nanmedian(drawn, axis=1)
        for name, value in zip(METRICS, middle, strict=True):
            assert value == pytest.approx(found[protocol][name], abs=0.2), name


def test_strict_alone_is_the_same_strict(root: Path, tmp_path: Path) -> None:
    both, _ = result(root, tmp_path / "both", 3)
    alone, arrays = result(root, tmp_path / "alone", 3, ("strict",))
    assert both["strict"] == alone["strict"]
    assert both["strict"]["epoch"] == 3
    assert both["losses"] == alone["losses"]
    assert "paper" not in alone and "paper_maps" not in arrays


@pytest.mark.parametrize("source", ["none", "perlin", "cutpaste", "real+perlin"])
def test_every_source_trains_the_same_again(root: Path, tmp_path: Path, source: str) -> None:
    first, arrays = result(root, tmp_path / "a", 1, ("strict",), source)
    again, other = result(root, tmp_path / "b", 1, ("strict",), source)
    assert first == again
    assert all(np.array_equal(arrays[name], other[name]) for name in arrays)
