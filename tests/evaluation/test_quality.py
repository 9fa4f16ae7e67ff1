"""Metrics of sets of images against libraries and written-out definitions."""

import dataclasses
import math
from pathlib import Path

import numpy as np
import pytest
import torch
import torchmetrics.functional.image.lpips as lpips
from PIL import Image
from torch import nn
from torchmetrics.image.kid import KernelInceptionDistance

from acontrol.errors import UserError
from acontrol.evaluation.features import Backend, distances, in_batches
from acontrol.evaluation.generation_metrics import (
    COPY_SHARE,
    MAX_MEMBERS,
    cluster_diversity,
    cluster_members,
    inception_score,
    is_copy,
    kernel_distance,
)
from acontrol.evaluation.images import ImageSet
from acontrol.evaluation.perceptual import _SLICES, LpipsVgg
from acontrol.evaluation.quality import (
    DefectType,
    column_names,
    compare_surroundings,
    cut_out,
    halves,
    mean_of,
    measure,
)
from acontrol.seeding import derive_seed


def images(count: int, side: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (count, 3, side, side), generator=generator, dtype=torch.uint8)


def test_inception_score_is_its_definition() -> None:
    # One image a class, confident and balanced, four of ten classes in a split.
    confident = 50 * torch.eye(4, dtype=torch.float64).repeat(10, 1)
    assert inception_score(torch.zeros(20, 5)) == pytest.approx(1, abs=1e-9)
    assert 1 < inception_score(confident) <= 4 + 1e-6
    for count in (20, 37, 100):
        generator = torch.Generator().manual_seed(count)
        logits = 3 * torch.randn(count, 7, dtype=torch.float64, generator=generator)
        order = np.random.default_rng(derive_seed("inception", 5)).permutation(count)
        p = logits.softmax(1).numpy()[order]
        # torch-fidelity's splits.
        parts = [p[i * count // 10 : (i + 1) * count // 10] for i in range(10)]
        each = [np.exp((part * np.log(part / part.mean(0))).sum(1).mean()) for part in parts]
        assert inception_score(logits, seed=5) == pytest.approx(np.mean(each), abs=1e-9)
    assert math.isnan(inception_score(torch.zeros(19, 5)))


def test_kid_is_its_definition() -> None:
    generator = torch.Generator().manual_seed(2)
    real = torch.randn(9, 6, generator=generator).double()
    other = torch.randn(9, 6, generator=generator).double() + 0.3

    def kernel(a: torch.Tensor, b: torch.Tensor) -> np.ndarray:
        return ((a @ b.T / 6 + 1) ** 3).numpy()

    def without_diagonal(k: np.ndarray) -> float:
        return (k.sum() - np.trace(k)) / (9 * 8)

    expected = (
        without_diagonal(kernel(real, real))
        + without_diagonal(kernel(other, other))
        - 2 * kernel(real, other).mean()
    )
    assert kernel_distance(real, other) == pytest.approx(expected, abs=1e-6)
    assert math.isnan(kernel_distance(real[:1], other))
    with pytest.warns(UserWarning, match="save all"):
        metric = KernelInceptionDistance(nn.Identity(), subsets=1, subset_size=9)
    metric.update(real, real=True)
    metric.update(other, real=False)
    assert kernel_distance(real, other) == pytest.approx(float(metric.compute()[0]), abs=1e-6)


def test_kid_of_sets_of_two_sizes_takes_subsets_of_the_smaller() -> None:
    generator = torch.Generator().manual_seed(2)
    pool = torch.randn(60, 5, generator=generator).double()
    near = kernel_distance(pool[:8], pool[8:])
    far = kernel_distance(pool[:8], pool[8:] + 2)
    assert abs(near) < 1 < far
    assert far == kernel_distance(pool[:8], pool[8:] + 2)


def test_clusters_follow_the_nearest_reference() -> None:
    to_references = torch.ones(140, 3)
    to_references[:, 1] = 0.5
    to_references[:4, 2] = 0.1
    empty, large, small = cluster_members(to_references)
    assert empty == []
    assert len(large) == MAX_MEMBERS == len(set(large))
    assert small == [0, 1, 2, 3]
    assert cluster_members(to_references) == [empty, large, small]
    assert cluster_members(to_references, seed=1)[1] != large


def test_diversity_leaves_out_clusters_of_one() -> None:
    pair = torch.tensor([[0.0, 0.4], [0.4, 0.0]])
    triple = torch.tensor([[0.0, 1.0, 2.0], [1.0, 0.0, 3.0], [2.0, 3.0, 0.0]])
    assert cluster_diversity([pair, torch.zeros(1, 1), triple]) == pytest.approx((0.4 + 2) / 2)
    assert math.isnan(cluster_diversity([torch.zeros(1, 1)]))


def test_copies_are_far_nearer_than_training_defects_are_to_each_other() -> None:
    among = torch.tensor([[0.0, 1.0, 5.0], [1.0, 0.0, 4.0], [5.0, 4.0, 0.0]])
    # Nearest others: 1, 1, 4; their median is 1.
    to_training = torch.tensor(
        [[0.0, 1.0, 1.0], [9.0, COPY_SHARE - 0.01, 9.0], [0.3, 2.0, 2.0]]
    )
    assert is_copy(to_training, among) == [True, True, False]
    assert is_copy(torch.tensor([[0.1], [0.0]]), torch.zeros(1, 1)) == [False, True]


@pytest.fixture(scope="module")
def vgg() -> LpipsVgg:
    """VGG-16 with random weights."""
    torch.manual_seed(0)
    network = LpipsVgg()
    for name, weight in network.named_parameters():
        if name.startswith("lin"):
            weight.uniform_(0, 1)
        elif weight.ndim == 4:
            nn.init.kaiming_normal_(weight)
    return network


def test_lpips_is_torchmetrics_own(vgg: LpipsVgg, monkeypatch, tmp_path: Path) -> None:
    monkeypatch.setattr(lpips, "_get_tv_model_features", lambda *_: vgg.features)
    heads = tmp_path / "vgg.pth"
    torch.save({k: v for k, v in vgg.state_dict().items() if k.startswith("lin")}, heads)
    genuine = lpips._NoTrainLpips(net="vgg", pnet_rand=True, model_path=str(heads))
    first, others = images(1, 256), images(2, 256, seed=1)
    lpips_distances = distances(vgg, first, others)
    for index in range(2):
        pair = [image[None].float() / 127.5 - 1 for image in (first[0], others[index])]
        assert float(lpips_distances[0, index]) == pytest.approx(
            float(genuine(*pair)), abs=1e-6
        )
    assert distances(vgg, first, first).diagonal().abs().max() == 0
    assert len(_SLICES) == len(vgg.taps) == 5


def test_missing_weights_are_one_line(tmp_path: Path) -> None:
    with pytest.raises(
        UserError, match=r"lpips-vgg\.safetensors: does not exist.*convert_lpips"
    ):
        LpipsVgg.load(tmp_path / "lpips-vgg.safetensors")
    (tmp_path / "lpips-vgg.safetensors").write_bytes(b"x" * 100)
    with pytest.raises(UserError, match="not the weights"):
        LpipsVgg.load(tmp_path / "lpips-vgg.safetensors")


def image_set(pixels: torch.Tensor, masks: torch.Tensor, name: str) -> ImageSet:
    count = len(pixels)
    files = tuple(Path(f"{name}{index}") for index in range(count))
    return ImageSet(pixels, masks, masks, ("crack",) * count, files, tuple(map(str, files)))


def box(count: int, side: int) -> torch.Tensor:
    masks = torch.zeros(count, side, side, dtype=torch.bool)
    masks[:, 16:40, 20:44] = True
    return masks


def test_surroundings_are_compared_with_the_nearest_normal_image() -> None:
    normals = images(5, 64)
    masks = box(3, 64)
    drawn = normals[[4, 0, 2]].clone()
    drawn[0] = torch.where(masks[0], 255 - drawn[0], drawn[0])
    # Half of the mask is unchanged.
    half = masks[1].clone()
    half[:, 32:] = False
    drawn[1] = torch.where(half, drawn[1] // 2 + 100, drawn[1])
    # Everything outside is off by one level.
    drawn[2] = torch.where(drawn[2] < 255, drawn[2] + 1, drawn[2] - 1)
    results = compare_surroundings(drawn, masks, normals)
    assert results[0].psnr == results[1].psnr == math.inf
    assert results[0].fill > 0.9
    assert 0.4 < results[1].fill <= 0.5
    assert results[2].psnr == pytest.approx(10 * math.log10(255**2))
    assert results[2].fill == 0


def test_the_cut_out_shows_the_defect_alone() -> None:
    pixels = images(1, 64)
    masks = box(1, 64)
    elsewhere = torch.where(masks[:, None], pixels, images(1, 64, seed=9))
    name = "a"
    one, other = (cut_out(image_set(part, masks, name)) for part in (pixels, elsewhere))
    assert torch.equal(one, other)
    assert Image.fromarray(one[0, 0].numpy()).size == (256, 256)


def test_a_copied_training_set_shows() -> None:
    """A copied training set scores as copies, with raw pixels as features."""
    plain = Backend(
        "plain",
        "0" * 64,
        layers=lambda part: [part.float()[:, :, ::8, ::8] / 255],
        embed=lambda part: part.float()[:, :, ::32, ::32].flatten(1) / 255,
    )
    masks = box(6, 64)
    training = image_set(images(6, 64, seed=1), masks, "training")
    held_out = image_set(images(6, 64, seed=2), masks, "held out")
    defect_type = DefectType("tile", "crack", training, held_out, images(4, 64, seed=3))
    copied = measure(defect_type, training, [plain])
    fresh = measure(defect_type, image_set(images(6, 64, seed=4), masks, "fresh"), [plain])
    real = measure(defect_type, None, [plain])
    assert list(copied) == column_names([plain])
    copies = "copies, % (plain 00000000)"
    assert (copied[copies], fresh[copies], real[copies]) == (100, 0, 0)
    assert math.isnan(real["mask-fill"])
    assert math.isnan(copied["IC (plain 00000000)"])  # Each is its own cluster.


def test_halves_are_all_real_images_at_random() -> None:
    training = image_set(images(3, 16, seed=1), torch.zeros(3, 16, 16).bool(), "training")
    held_out = image_set(images(6, 16, seed=2), torch.ones(6, 16, 16).bool(), "held out")
    defect_type = DefectType("tile", "crack", training, held_out, images(1, 16))
    split = halves(defect_type)
    first, second = split.training, split.held_out
    assert (len(first), len(second)) == (4, 5)
    files = training.files + held_out.files
    assert sorted(first.files + second.files) == sorted(files)
    assert first.files != files[:4], "in another order"
    assert halves(defect_type).training.files == first.files
    other = dataclasses.replace(defect_type, defect="stain")
    assert halves(other).training.files != first.files
    assert halves(defect_type, seed=1).training.files != first.files
    pixels = dict(zip(files, [*training.images, *held_out.images], strict=True))
    for part in (first, second):
        for row, file in enumerate(part.files):
            assert torch.equal(part.images[row], pixels[file])
            assert part.masks[row].all() == (file in held_out.files)
            assert part.digests[row] == str(file)


def test_means_go_over_defects_then_categories() -> None:
    scores = {
        ("a", "x"): {"m": 1.0, "n": math.nan},
        ("a", "y"): {"m": 3.0, "n": math.nan},
        ("b", "x"): {"m": 10.0, "n": 4.0},
    }
    assert mean_of(scores) == {"m": 6.0, "n": 4.0}
    # An exact background has no finite PSNR: it is left out unless all are exact.
    exact = {("a", "x"): {"m": math.inf, "n": math.inf}, ("a", "y"): {"m": 20.0, "n": math.nan}}
    assert mean_of(exact) == {"m": 20.0, "n": math.inf}


def test_batches_do_not_change_features() -> None:
    look = Backend("plain", "0" * 64, embed=lambda part: part.float().mean((2, 3)))
    pixels = images(37, 8)
    torch.testing.assert_close(
        in_batches(look.embed, pixels), pixels.double().mean((2, 3)), atol=1e-4, rtol=0
    )
