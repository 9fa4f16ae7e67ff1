"""DRAEM whole: its networks, its loss, and the originals that it learns to restore."""

import itertools
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter
from torch import Tensor, nn

from acontrol.data.builtin import write_dataset
from acontrol.evaluation.budget import BUDGETS
from acontrol.evaluation.dataset import CategoryDataset, Folders
from acontrol.evaluation.detector import focal_loss
from acontrol.evaluation.draem import DraemDetector, Restorer, draem_loss
from acontrol.evaluation.sources import Mixed
from acontrol.evaluation.trainer import drawn_from, train_detector
from acontrol.masks.perlin import perlin_blobs

SIDE = 64


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> CategoryDataset:
    root: Path = tmp_path_factory.mktemp("draem") / "real"
    write_dataset(
        root,
        num_good=4,
        num_good_test=1,
        num_defects=3,
        categories=("wood",),
        defects=("crack",),
    )
    return CategoryDataset(Folders(root, {}, SIDE, 10), "wood")


def test_the_networks_have_draems_size() -> None:
    """Parameters of the restoring network by its layer list, and of both as published."""

    def layers(*widths: int) -> int:
        return sum(9 * a * b + 3 * b for a, b in itertools.pairwise(widths))

    w = 8
    down = layers(3, w, w, 2 * w, 2 * w, 4 * w, 4 * w, 8 * w, 8 * w, 8 * w, 8 * w)
    up = sum(layers(a, a, a, b) for a, b in ((64, 32), (32, 16), (16, 8), (8, 8)))
    restorer = Restorer(w)
    assert sum(part.numel() for part in restorer.parameters()) == down + up + 9 * w * 3 + 3
    assert restorer(torch.rand(1, 3, 64, 32)).shape == (1, 3, 64, 32)
    with torch.device("meta"):
        whole = DraemDetector(BUDGETS["paper"].width)
    millions = sum(part.numel() for part in whole.parameters()) / 1e6
    assert millions == pytest.approx(97.42, abs=0.01), "128 and 64 channels"


class Given(nn.Module):
    """Returns what it was given, however it is asked."""

    def __init__(self, output: Tensor):
        super().__init__()
        self.output = nn.Parameter(output)

    def forward(self, _: Tensor) -> Tensor:
        return self.output


def one_minus_ssim(first: Tensor, second: Tensor) -> float:
    """Of one channel in [0, 1], a Gaussian window of 11 x 11 with deviation 1.5."""
    first, second = first.double().numpy(), second.double().numpy()

    def mean(values: np.ndarray) -> np.ndarray:
        return gaussian_filter(values, 1.5, mode="mirror", radius=5)

    a, b = mean(first), mean(second)
    aa, bb = mean(first**2) - a**2, mean(second**2) - b**2
    ab = mean(first * second) - a * b
    c1, c2 = 0.01**2, 0.03**2
    own = (2 * a * b + c1) * (2 * ab + c2) / ((a**2 + b**2 + c1) * (aa + bb + c2))
    return float(1 - own.mean())


def test_the_loss_is_written_out() -> None:
    torch.manual_seed(0)
    image, original, restored = torch.rand(3, 2, 3, SIDE, SIDE)
    mask = torch.zeros(2, SIDE, SIDE, dtype=torch.bool)
    mask[1, 10:30, 5:20] = True
    logits = torch.randn(2, 2, SIDE, SIDE)
    detector = DraemDetector(4)
    detector.restorer, detector.comparer = Given(restored), Given(logits)
    loss = draem_loss(detector, torch.cat([image, original], dim=1), mask)
    pairs = zip(restored.flatten(0, 1), original.flatten(0, 1), strict=True)
    dissimilar = np.mean([one_minus_ssim(*pair) for pair in pairs])
    expected = ((restored - original) ** 2).mean() + dissimilar + focal_loss(logits, mask)
    torch.testing.assert_close(loss.double(), expected.double(), rtol=1e-4, atol=1e-5)


def test_nothing_is_asked_of_what_nobody_knows() -> None:
    """Where image and original agree in the mask: no gradient there, one everywhere else."""
    torch.manual_seed(0)
    image, restored = torch.rand(2, 1, 3, SIDE, SIDE)
    mask = torch.zeros(1, SIDE, SIDE, dtype=torch.bool)
    mask[0, 10:30, 5:20] = True
    detector = DraemDetector(4)
    detector.restorer, detector.comparer = Given(restored), Given(torch.randn(1, 2, SIDE, SIDE))
    draem_loss(detector, torch.cat([image, image], dim=1), mask).backward()
    asked = (detector.restorer.output.grad != 0).any(dim=1)
    assert torch.equal(asked, ~mask)


@pytest.mark.parametrize("name", ["perlin", "cutpaste", "real"])
def test_a_source_says_what_was_there_before(dataset: CategoryDataset, name: str) -> None:
    """The same samples as for other detectors; turned and brightened with their originals."""
    normals, source = dataset.part("normals"), dataset.source(name, perlin_blobs)
    plain = drawn_from(normals, source, None, augment=True)
    both = drawn_from(normals, source, None, augment=True, originals=True)
    known = 0
    for index in range(12):
        image, mask = both(index, np.random.default_rng(index))
        alone, same = plain(index, np.random.default_rng(index))
        assert torch.equal(image[:3], alone) and torch.equal(mask, same)
        differs = (image[:3] != image[3:]).any(dim=0)
        assert not (differs & ~mask).any(), "outside of the mask it is the image"
        known += int(differs.sum())
    assert (known == 0) == (name == "real"), "nobody knows a real defect's original"


def test_a_mixture_asks_its_sources(dataset: CategoryDataset) -> None:
    perlin, real = (dataset.source(name, perlin_blobs) for name in ("perlin", "real"))
    assert perlin is not None and real is not None
    mixed = Mixed([real, perlin], 0.5)
    differs = []
    for index in range(20):
        image, mask, original = mixed.pair(np.random.default_rng(index))
        again, _ = mixed.sample(np.random.default_rng(index))
        assert torch.equal(image, again)
        differs.append(bool((image != original)[:, mask].any()))
    assert 5 < sum(differs) < 15


def test_it_learns_to_restore(dataset: CategoryDataset) -> None:
    """Of an image with Perlin's blobs it gives back more of the original than it was shown."""
    budget = BUDGETS["smallest"].model_copy(
        update={"size": SIDE, "epochs": 1, "samples": 400, "width": 4, "learning_rate": 3e-3}
    )
    source = dataset.source("perlin", perlin_blobs)
    normals = dataset.part("normals")
    ((detector, _),) = train_detector(budget, normals, source, 0, "cpu", "draem")
    assert isinstance(detector, DraemDetector)
    draw = drawn_from(normals, source, None, augment=False, originals=True)
    shown, after = [], []
    for index in range(1, 21, 2):
        pair, mask = draw(index, np.random.default_rng([1, index]))
        image, original = pair.float().div(255).split(3)
        with torch.no_grad():
            restored = detector.restorer(image[None])[0]
        shown.append(float((image - original)[:, mask].abs().mean()))
        after.append(float((restored - original)[:, mask].abs().mean()))
    assert np.mean(after) < 0.6 * np.mean(shown), (np.mean(after), np.mean(shown))


def test_its_answer_rests_on_both_images() -> None:
    torch.manual_seed(0)
    image, restored = torch.rand(2, 1, 3, SIDE, SIDE)
    detector = DraemDetector(4).eval()
    detector.restorer = Given(restored)
    seen = detector(image)
    assert not torch.equal(seen, detector(1 - image))
    detector.restorer = Given(1 - restored)
    assert not torch.equal(seen, detector(image))
