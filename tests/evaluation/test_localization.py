"""A detector's training: the epoch and masks of its metrics, and its reproducibility."""

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


def train(root: Path, out: Path, epochs: int, protocols=PROTOCOLS, source: str = "real"):
    budget = BUDGETS["smallest"].model_copy(update={"epochs": epochs})
    folders = Folders(root, {}, budget.size, budget.pairs)
    data = {"wood": check(folders, "wood", [source], DETECTOR).digests}
    experiment = Localization(folders, budget, protocols, data, perlin_blobs)
    job = TrainingJob("wood", source, 0)
    experiment.run(job, out)
    assert is_done(job, experiment, out)
    with np.load(job.file(out).with_suffix(".npz")) as arrays:
        return job.metrics(out), dict(arrays)


def test_protocols_of_one_epoch_differ_in_their_masks(root: Path, tmp_path: Path) -> None:
    metrics, arrays = train(root, tmp_path, 1)
    paper, strict = metrics["paper"], metrics["strict"]
    assert paper["epoch"] == strict["epoch"] == 1
    for name in METRICS:
        # Truncating masks does not change an image's score and label.
        assert (paper[name] == strict[name]) == name.startswith("image"), name
    np.testing.assert_array_equal(arrays["paper_maps"], arrays["strict_maps"])
    for protocol in PROTOCOLS:
        resamples = arrays[f"{protocol}_resamples"]
        assert resamples.shape == (len(METRICS), 1000)
        medians = np.nanmedian(resamples, axis=1)
        for name, value in zip(METRICS, medians, strict=True):
            assert value == pytest.approx(metrics[protocol][name], abs=0.2), name


def test_strict_alone_is_the_same_strict(root: Path, tmp_path: Path) -> None:
    both, _ = train(root, tmp_path / "both", 3)
    alone, arrays = train(root, tmp_path / "alone", 3, ("strict",))
    assert both["strict"] == alone["strict"]
    assert both["strict"]["epoch"] == 3
    assert both["losses"] == alone["losses"]
    assert "paper" not in alone and "paper_maps" not in arrays


@pytest.mark.parametrize("source", ["none", "perlin", "cutpaste", "real+perlin"])
def test_training_is_reproducible(root: Path, tmp_path: Path, source: str) -> None:
    first, arrays = train(root, tmp_path / "a", 1, ("strict",), source)
    again, other = train(root, tmp_path / "b", 1, ("strict",), source)
    assert first == again
    assert all(np.array_equal(arrays[name], other[name]) for name in arrays)
