"""Whole images by tiles: crops, assembled maps and metrics that are counted by score."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.metrics import average_precision_score, roc_auc_score
from torch import nn

from acontrol.data.mvtec import open_folder
from acontrol.errors import UserError
from acontrol.evaluation import tiles
from acontrol.evaluation.budget import BUDGETS
from acontrol.evaluation.dataset import DETECTOR, Folders, check
from acontrol.evaluation.images import ImageSet
from acontrol.evaluation.localization import Localization
from acontrol.evaluation.localization_run import _protocols
from acontrol.evaluation.metrics import region_weights
from acontrol.evaluation.protocol import METRICS, Truth, score
from acontrol.evaluation.results import TrainingJob
from acontrol.evaluation.settings import LocalizationConfig
from acontrol.evaluation.tally import Tally
from acontrol.evaluation.tiles import WholeImages, logit_map, starts
from acontrol.masks.perlin import perlin_blobs

WIDTH, HEIGHT, SIDE = 150, 70, 32


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Grey noise of 150 x 70 px; a defect is 3 x 3 bright pixels, .09 % of the image."""
    folder = tmp_path_factory.mktemp("tiles") / "plate"
    rng = np.random.default_rng(0)

    def write(name: str, spots: int) -> None:
        pixels = rng.integers(90, 110, (HEIGHT, WIDTH, 3)).astype(np.uint8)
        mask = np.zeros((HEIGHT, WIDTH), bool)
        for _ in range(spots):
            top, left = int(rng.integers(HEIGHT - 3)), int(rng.integers(WIDTH - 3))
            mask[top : top + 3, left : left + 3] = True
        pixels[mask] = 200
        file = folder / name
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(file)
        if spots:
            truth = folder / "ground_truth" / file.parent.name / f"{file.stem}_mask.png"
            truth.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(mask).save(truth)

    for number in range(6):
        write(f"train/good/{number}.png", 0)
        write(f"test/one/{number}.png", 1)
        write(f"test/two/{number}.png", 2)
        write(f"test/good/{number}.png", 0)
    return folder


class Brightness(nn.Module):
    """A detector whose logit is a pixel's own brightness."""

    def __init__(self) -> None:
        super().__init__()
        self.factor = nn.Parameter(torch.tensor(4.0))

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        own = self.factor * (image.mean(dim=1) - 0.5)
        return torch.stack([torch.zeros_like(own), own], dim=1)


@pytest.mark.parametrize("scale", [1.0, 0.5])
def test_a_crop_of_a_defective_image_shows_the_defect(root: Path, scale: float) -> None:
    folder = open_folder(root)
    images = WholeImages((), folder.labelled("train"), SIDE, scale)
    starting = set()
    for seed in range(40):
        image, mask = images.at(0, np.random.default_rng(seed))
        assert image.shape == (3, SIDE, SIDE) and mask.shape == (SIDE, SIDE)
        assert mask.any()
        starting.add(tuple(mask.nonzero()[0].tolist()))
        if scale == 1:
            assert torch.equal(image[0] == 200, mask)
    assert len(starting) > 20, "at a random place of the crop"
    normals = WholeImages(folder.normals("plate"), (), SIDE, scale)
    assert normals.sample(np.random.default_rng(0))[1].sum() == 0
    assert images.read(0)[0].shape == (3, round(HEIGHT * scale), round(WIDTH * scale))


def test_images_are_read_again_when_the_cache_is_small(root: Path, monkeypatch) -> None:
    monkeypatch.setattr(tiles, "_CACHED_BYTES", 5 * WIDTH * HEIGHT)
    tiles._cache.clear()
    images = WholeImages(open_folder(root).normals("plate"), (), SIDE)
    first = images.read(0)[0]
    for index in range(len(images)):
        images.read(index)
        assert len(tiles._cache) == 1
    assert torch.equal(images.read(0)[0], first)


@pytest.mark.parametrize("size", [(70, 150), (32, 33), (20, 45), (9, 11), (32, 32)])
def test_a_map_of_tiles_is_the_whole_images(size: tuple[int, int]) -> None:
    image = torch.randint(0, 256, (3, *size), dtype=torch.uint8)
    expected = 4 * (image.float().mean(dim=0) / 255 - 0.5)
    torch.testing.assert_close(logit_map(Brightness(), image, SIDE), expected)


@pytest.mark.parametrize("length", [10, 32, 33, 56, 57, 100, 1130])
def test_tiles_cover_an_axis_and_overlap(length: int) -> None:
    found = starts(length, SIDE)
    assert found[0] == 0 and found[-1] == max(0, length - SIDE)
    assert all(0 < step <= 0.75 * SIDE + 1 for step in np.diff(found))


def test_counted_metrics_are_scikit_learns_and_the_exact_ones() -> None:
    rng = np.random.default_rng(4)
    masks = np.zeros((9, 64, 64), bool)
    for index in range(6):
        masks[index, 5 : 9 + 3 * index, 6:20] = True
    masks[2, 40:44, 40:60] = True
    logits = (2 * rng.normal(size=masks.shape) + 1.5 * masks).astype(np.float32)
    defects = ["a", "b", "a", "b", "a", "b", "good", "good", "good"]
    tally = Tally(64)
    for one, mask, defect in zip(logits, masks, defects, strict=True):
        tally.add(torch.from_numpy(one), torch.from_numpy(mask), defect)
    anomalous = np.array([defect != "good" for defect in defects])
    for own in (list(range(9)), [1, 3, 5, 6, 7, 8]):
        truth = Truth(
            "strict", masks[own], np.stack(region_weights(masks[own])), anomalous[own]
        )
        maps = torch.from_numpy(logits[own]).sigmoid()
        exact, counted = score(maps, truth), tally.score(own)
        for name in METRICS:
            assert counted[name] == pytest.approx(exact[name], abs=2e-4), name
        labels, scores = masks[own].ravel(), logits[own].ravel()
        assert counted["pixel_auroc"] == pytest.approx(roc_auc_score(labels, scores), abs=2e-4)
        precision = average_precision_score(labels, scores)
        assert counted["pixel_ap"] == pytest.approx(precision, abs=2e-4)
        once = tally.resampled(own, np.ones((1, len(own))))[:, 0]
        np.testing.assert_allclose(once, [exact[name] for name in METRICS], atol=2e-3)


def test_a_detector_of_crops_finds_small_defects_on_whole_images(
    root: Path, tmp_path: Path
) -> None:
    budget = BUDGETS["smallest"].model_copy(update={"tile": SIDE, "augment": True})
    folders = Folders(root, {}, budget.size, budget.pairs)
    data = {"plate": check(folders, "plate", ["real", "perlin"], DETECTOR).digests}
    experiment = Localization(folders, budget, ("strict",), data, perlin_blobs)
    job = TrainingJob("plate", "real", 0)
    for name in ("a", "b"):
        experiment.run(job, tmp_path / name)
    saved = job.metrics(tmp_path / "a")
    assert saved == job.metrics(tmp_path / "b")
    assert saved["budget"]["tile"] == SIDE and "tile_scale" not in saved["budget"]
    assert saved["strict"]["pixel_ap"] > 0.5, "9 of 10,500 pixels"
    assert saved["strict"]["by_defect"].keys() == {"one", "two"}
    resamples = job.array(tmp_path / "a", "strict_resamples")
    assert resamples.shape == (len(METRICS), 1000)
    assert np.median(resamples[1]) == pytest.approx(saved["strict"]["pixel_ap"], abs=0.1)
    maps = job.array(tmp_path / "a", "strict_maps")
    assert maps.shape == (4, budget.size, budget.size)
    perlin = TrainingJob("plate", "perlin", 0)
    experiment.run(perlin, tmp_path / "a")
    assert perlin.metrics(tmp_path / "a")["strict"]["pixel_auroc"] > 0.5


def test_squares_lose_such_defects(root: Path) -> None:
    """Why there are tiles: at 32 px a square the defect is a pixel or two of its surround."""
    folders = Folders(root, {}, 32, 1)
    assert isinstance(part := _test_of(folders), ImageSet)
    assert part.images[part.masks[:, None].expand(-1, 3, -1, -1)].max() < 200


def _test_of(folders: Folders) -> ImageSet:
    from acontrol.evaluation.dataset import CategoryDataset

    return CategoryDataset(folders, "plate").part("test")


def test_the_published_protocol_has_no_tiles(root: Path) -> None:
    with pytest.raises(UserError, match="--tile: the protocol paper resizes"):
        _protocols(LocalizationConfig(real=root, tile=SIDE, protocol="paper"))
    assert _protocols(LocalizationConfig(real=root, tile=SIDE)) == ("strict",)
    assert _protocols(LocalizationConfig(real=root)) == ("paper", "strict")
