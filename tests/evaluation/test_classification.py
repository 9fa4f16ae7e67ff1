"""The defect classifier: network, sampling, metrics and training."""

import json
import shutil
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from sklearn.metrics import accuracy_score, balanced_accuracy_score
from transformers import ResNetConfig, ResNetForImageClassification

from acontrol.errors import UserError
from acontrol.evaluation.budget import Schedule
from acontrol.evaluation.classification import (
    PART,
    TESTED,
    Classification,
    Labelled,
    confusion,
    metrics_of,
    names_of,
)
from acontrol.evaluation.classifier import Classifier, weights_digest
from acontrol.evaluation.dataset import CategoryDataset, Folders, cached_dataset, check
from acontrol.evaluation.images import ImageSet
from acontrol.evaluation.results import TrainingJob, is_done

COLORS = {"blue": (20, 30, 220), "green": (20, 220, 30), "red": (220, 30, 20)}


def image_set(defects: list[str]) -> ImageSet:
    count = len(defects)
    blank = torch.zeros(count, 8, 8, dtype=torch.bool)
    values = torch.arange(count, dtype=torch.uint8).view(-1, 1, 1, 1)
    return ImageSet(
        values.expand(-1, 3, 8, 8),
        blank,
        blank,
        tuple(defects),
        tuple(Path(f"{index}.png") for index in range(count)),
        tuple(str(index) for index in range(count)),
    )


@pytest.fixture(scope="module")
def network(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small ResNet of five classes, as a user would provide it."""
    folder = tmp_path_factory.mktemp("resnet")
    torch.manual_seed(0)
    config = ResNetConfig(
        embedding_size=8,
        hidden_sizes=[8, 16],
        depths=[1, 1],
        layer_type="basic",
        num_labels=5,
    )
    ResNetForImageClassification(config).save_pretrained(folder)
    return folder


def write(root: Path, category: str, count: int, colors: dict[str, tuple[int, ...]]) -> None:
    """Write images of one colour with some noise, in MVTec AD's layout."""
    rng = np.random.default_rng(len(category) + count)
    for part, number, color in [
        ("train/good", 2, (90, 90, 90)),
        ("test/good", 2, (90, 90, 90)),
        *((f"test/{name}", count, color) for name, color in colors.items()),
    ]:
        folder = root / category / part
        folder.mkdir(parents=True)
        for index in range(number):
            noise = rng.integers(-15, 16, (32, 32, 3))
            Image.fromarray((np.array(color) + noise).astype(np.uint8)).save(
                folder / f"{index:03}.png"
            )
            if not part.endswith("good"):
                masks = root / category / "ground_truth" / Path(part).name
                masks.mkdir(parents=True, exist_ok=True)
                mask = np.zeros((32, 32), np.uint8)
                mask[8:20, 8:20] = 255
                Image.fromarray(mask).save(masks / f"{index:03}_mask.png")


def test_metrics_equal_scikit_learns() -> None:
    rng = np.random.default_rng(0)
    for count in (1, 7, 60):
        truth, labels = rng.integers(0, 4, (2, count))
        truth[truth == 2] = 0  # A defect without a test image.
        table = np.zeros((4, 4))
        np.add.at(table, (truth, labels), 1)
        accuracy = metrics_of(table)["accuracy"]
        assert accuracy == pytest.approx(accuracy_score(truth, labels), abs=1e-12)
        seen = np.isin(labels, truth)
        # scikit-learn warns of predicted classes without a true image.
        other = np.where(seen, labels, (truth + 1) % 4)
        if np.isin(other, truth).all():
            table = np.zeros((4, 4))
            np.add.at(table, (truth, other), 1)
            assert metrics_of(table)["balanced_accuracy"] == pytest.approx(
                balanced_accuracy_score(truth, other), abs=1e-12
            )
    unbalanced = np.array([[9, 0], [1, 0]])
    assert metrics_of(unbalanced) == {"accuracy": 0.9, "balanced_accuracy": 0.5}


def test_confusions_are_by_image() -> None:
    test = image_set(["b", "a", "b"])
    table = confusion(torch.tensor([1, 1, 0]), test, ["a", "b"])
    assert table.sum(axis=0).tolist() == [[0, 1], [1, 1]]
    assert table.sum(axis=(1, 2)).tolist() == [1, 1, 1]


def test_defects_are_drawn_equally_often() -> None:
    real = image_set(["a"] * 9 + ["b"])
    generated = image_set(["b", "c", "c", "c"])
    source = Labelled([real, generated], ["a", "b", "c"])
    seen = Counter()
    for seed in range(800):
        image, label = source.draw(0, np.random.default_rng(seed))
        seen[int(label), int(image[0, 0, 0])] += 1
    by_label = [
        sum(n for (other, _), n in seen.items() if other == label) for label in range(3)
    ]
    np.testing.assert_allclose(np.array(by_label) / 800, [0.25, 0.5, 0.25], atol=0.06)
    # Images of b: 9 in the first folder, 0 in the second.
    assert {index for label, index in seen if label == 1} == {9, 0}
    assert {index for label, index in seen if label == 2} == {1, 2, 3}


def test_the_default_is_resnet_34() -> None:
    classifier = Classifier(1000, None)
    # torchvision's resnet34 has 21,797,672 parameters.
    assert sum(weight.numel() for weight in classifier.parameters()) == 21_797_672
    assert classifier.eval()(torch.rand(1, 3, 32, 32)).shape == (1, 1000)


def test_a_folder_gives_all_but_the_last_layer(network: Path, tmp_path: Path) -> None:
    classifier = Classifier(3, network)
    own, saved = classifier.resnet.state_dict(), load_file(network / "model.safetensors")
    assert own["classifier.1.weight"].shape == (3, 16)
    assert all(torch.equal(own[name], saved[name]) for name in saved if "resnet" in name)
    mean = classifier.get_buffer("mean").clone()
    config = {"image_mean": [0.5, 0.4, 0.3], "image_std": [0.2, 0.2, 0.2]}
    before = weights_digest(network)
    (network / "preprocessor_config.json").write_text(json.dumps(config))
    other = Classifier(3, network).get_buffer("mean").flatten().tolist()
    assert other == pytest.approx([0.5, 0.4, 0.3]) != mean.flatten().tolist()
    assert before != weights_digest(network)
    (network / "preprocessor_config.json").unlink()
    assert before == weights_digest(network)


def test_a_folder_of_another_model_is_refused(network: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    shutil.copytree(network, other)
    weights = load_file(network / "model.safetensors")

    def refused(words: str) -> None:
        with pytest.raises(UserError, match=words):
            Classifier(3, other)

    # transformers would initialize weights of other names or shapes, and missing ones.
    save_file(
        {f"x.{name}": weight for name, weight in weights.items()}, other / "model.safetensors"
    )
    refused("its weights are not those of its config.json .* is missing")
    name = "resnet.encoder.stages.0.layers.0.layer.0.convolution.weight"
    save_file(weights | {name: torch.zeros(8, 8, 5, 5)}, other / "model.safetensors")
    refused(f"{name} has another shape, 1 in all")
    rest = {key: weight for key, weight in weights.items() if key != name}
    save_file(rest, other / "model.safetensors")
    refused(f"{name} is missing, 1 in all")
    (other / "model.safetensors").unlink()
    refused("not a ResNet saved by transformers")
    (other / "config.json").write_text('{"model_type": "bert"}')
    refused("model_type 'bert'")
    (other / "config.json").unlink()
    refused("has no config.json; give a folder")


def test_architectures_are_named(network: Path) -> None:
    assert Classifier(2, None).architecture == "ResNet-34"
    assert Classifier(2, network).architecture == "ResNet of 1-1 basic blocks"


def test_it_learns_and_continues(network: Path, tmp_path: Path) -> None:
    write(tmp_path / "real", "tin", 6, COLORS)
    for part in ("train", "test"):  # Good images are not needed.
        shutil.rmtree(tmp_path / "real" / "tin" / part / "good")
    # The generated folder swaps two defects, so that a classifier learns them wrong.
    swapped = {"blue": COLORS["green"], "green": COLORS["blue"], "red": COLORS["red"]}
    write(tmp_path / "made", "tin", 5, swapped)
    schedule = Schedule(
        size=32, epochs=2, samples=160, batch_size=8, learning_rate=5e-3, pairs=5
    )
    folders = Folders(tmp_path / "real", {"made": tmp_path / "made"}, 32, 5)
    sources = ["real", "made"]
    dataset = CategoryDataset(folders, "tin")
    assert names_of(dataset, sources) == ["blue", "green", "red"]
    data = {"tin": check(folders, "tin", sources, [TESTED]).digests}
    experiment = Classification(folders, schedule, network, weights_digest(network), data)
    out, metrics = tmp_path / "out", {}
    for source in sources:
        job = TrainingJob("tin", source, 0)
        assert not is_done(job, experiment, out)
        experiment.run(job, out)
        assert is_done(job, experiment, out)
        metrics[source] = job.metrics(out)
        assert job.array(out, "confusion").sum() == 12  # Four test images of each.
        assert job.array(out, f"{PART}_resamples").shape == (2, 1000)
    assert metrics["real"][PART]["accuracy"] == 1
    assert metrics["made"][PART]["accuracy"] == pytest.approx(1 / 3)
    job = TrainingJob("tin", "real", 0)
    before = job.file(out).read_bytes()
    experiment.run(job, out)
    assert job.file(out).read_bytes() == before
    other = Classification(folders, schedule, None, "random", data)
    with pytest.raises(UserError, match=r"other settings \(network: "):
        is_done(job, other, out)


def test_a_defect_without_test_images_is_refused(tmp_path: Path) -> None:
    write(tmp_path / "real", "tin", 4, {"blue": COLORS["blue"], "red": COLORS["red"]})
    write(tmp_path / "made", "tin", 4, COLORS)
    folders = Folders(tmp_path / "real", {"made": tmp_path / "made"}, 32, 5)
    with pytest.raises(UserError, match="made: has the defect 'green' of tin, which no test"):
        names_of(CategoryDataset(folders, "tin"), ["real", "made"])


def test_a_process_decodes_a_category_once(tmp_path: Path) -> None:
    write(tmp_path / "real", "tin", 3, {"blue": COLORS["blue"], "red": COLORS["red"]})
    folders = Folders(tmp_path / "real", {}, 32, 5)
    data = check(folders, "tin", ["real"], [TESTED]).digests
    first = cached_dataset(folders, "tin", data).part("real")
    assert cached_dataset(folders, "tin", data).part("real") is first
    # A changed image has another digest, and is read again.
    shutil.copy(
        tmp_path / "real" / "tin" / "test" / "red" / "000.png",
        tmp_path / "real" / "tin" / "test" / "blue" / "000.png",
    )
    changed = check(folders, "tin", ["real"], [TESTED]).digests
    assert changed != data
    again = cached_dataset(folders, "tin", changed).part("real")
    assert not torch.equal(again.images, first.images)
