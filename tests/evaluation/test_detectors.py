"""The detectors on frozen features, and how every detector's images are drawn."""

from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from sklearn.metrics import average_precision_score, roc_auc_score
from sklearn.neighbors import NearestNeighbors
from torchmetrics.image.kid import KernelInceptionDistance

from acontrol.data.builtin import write_dataset
from acontrol.errors import UserError
from acontrol.evaluation import lite0
from acontrol.evaluation.backends import load_backend
from acontrol.evaluation.bank import NEIGHBOURS, MemoryBank, memory_bank, patch_features
from acontrol.evaluation.budget import BUDGETS, ON_FEATURES, detector_budgets
from acontrol.evaluation.dataset import DETECTOR, CategoryDataset, Folders, check
from acontrol.evaluation.features import distances, in_batches
from acontrol.evaluation.generation_metrics import kernel_distance
from acontrol.evaluation.head import balanced_loss
from acontrol.evaluation.localization import Localization, by_defect
from acontrol.evaluation.localization_run import detector_names
from acontrol.evaluation.protocol import METRICS
from acontrol.evaluation.quality import column_names
from acontrol.evaluation.results import TrainingJob
from acontrol.evaluation.sources import Mixed, Paired, augmented
from acontrol.evaluation.trainer import anomaly_maps, train_detector
from acontrol.masks.perlin import perlin_blobs
from tests.evaluation.test_metrics import aupro_written_out

try:
    lite0.require("--detector")
    MISSING = ""
except UserError as error:
    MISSING = str(error)
needs_weights = pytest.mark.skipif(bool(MISSING), reason=MISSING)
SIDE = 64


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("detectors") / "real"
    write_dataset(
        folder,
        num_good=6,
        num_good_test=4,
        num_defects=6,
        categories=("wood",),
        defects=("crack", "stain"),
    )
    return folder


def dataset_of(root: Path) -> CategoryDataset:
    return CategoryDataset(Folders(root, {}, SIDE, 10), "wood")


@needs_weights
def test_the_features_are_those_of_the_published_network() -> None:
    """Its own forward pass continues from our last stage to the same class logits."""
    from efficientnet_lite_pytorch import EfficientNet

    features = lite0.Lite0("cpu")
    image = torch.randint(0, 256, (1, 3, 224, 224), dtype=torch.uint8)
    network = EfficientNet.from_name("efficientnet-lite0").eval()
    network.load_state_dict(torch.load(lite0._file(), weights_only=True))
    x = (image.float() - 127) / 128
    with torch.no_grad():
        expected = network(x)
        last = features.forward(image[0])[-1][None]
        for block in network._blocks[11:]:
            last = block(last)
        last = network._swish(network._bn1(network._conv_head(last)))
        logits = network._fc(last.mean(dim=(2, 3)))
    torch.testing.assert_close(logits, expected, atol=1e-3, rtol=1e-3)
    assert expected.std() > 0.5, "pretrained weights tell classes apart"
    for stage, stride, channels in zip(
        features.stages(image), lite0.STRIDES, lite0.CHANNELS, strict=True
    ):
        assert stage.shape == (1, channels, 224 // stride, 224 // stride)


@needs_weights
def test_kid_and_diversity_are_of_what_its_own_forward_pass_computes(tmp_path: Path) -> None:
    """Vectors are what the classifier reads, distances 2 - 2 cos between stages."""
    backend = load_backend("lite0", tmp_path, None)
    assert backend.embed and backend.layers and backend.logits is None and backend.caveats
    assert column_names([backend])[:3] == [
        f"{name} (lite0 57934424)" for name in ("KID x 1000", "IC", "IC in mask")
    ]
    network = lite0.Lite0("cpu")._network
    seen: dict[str, torch.Tensor] = {}
    network._fc.register_forward_pre_hook(lambda _, read: seen.update(pooled=read[0]))
    for number in (2, 4, 10):
        network._blocks[number].register_forward_hook(
            lambda _, __, out, number=number: seen.update({f"stage {number}": out})
        )
    generator = torch.Generator().manual_seed(1)
    images = torch.randint(0, 256, (8, 3, 224, 224), generator=generator, dtype=torch.uint8)
    images[:4] //= 2
    with torch.no_grad():
        network((images.float() - 127) / 128)
    vectors = in_batches(backend.embed, images)
    torch.testing.assert_close(vectors.float(), seen["pooled"], rtol=1e-3, atol=1e-4)
    with pytest.warns(UserWarning, match="save all"):
        metric = KernelInceptionDistance(torch.nn.Identity(), subsets=1, subset_size=4)
    metric.update(seen["pooled"][:4].double(), real=True)
    metric.update(seen["pooled"][4:].double(), real=False)
    kid = kernel_distance(vectors[:4], vectors[4:])
    assert kid == pytest.approx(float(metric.compute()[0]), rel=1e-3)
    assert kid > 0.01
    expected = sum(
        (2 - 2 * F.cosine_similarity(stage[:3, None], stage[None, 3:], dim=2)).mean((2, 3))
        for name, stage in seen.items()
        if name != "pooled"
    )
    assert isinstance(expected, torch.Tensor)
    own = distances(backend.layers, images[:3], images[3:])
    torch.testing.assert_close(own.float(), expected, rtol=1e-3, atol=1e-4)


@needs_weights
def test_features_do_not_depend_on_the_cache_or_the_batch() -> None:
    images = torch.randint(0, 256, (3, 3, SIDE, SIDE), dtype=torch.uint8)
    features = lite0.Lite0("cpu")
    once = features.stages(images)
    again = features.stages(images.flip(0))
    fresh = lite0.Lite0("cpu").stages(images[1:2])
    for first, second, alone in zip(once, again, fresh, strict=True):
        assert torch.equal(first, second.flip(0))
        assert torch.equal(first[1:2], alone)
    held = features._cached_bytes
    assert held == sum(stage.numel() * 2 for stage in once)
    third = features.stages(images)
    assert features._cached_bytes == held
    assert all(torch.equal(*pair) for pair in zip(once, third, strict=True))


@needs_weights
def test_only_features_that_are_needed_again_are_kept() -> None:
    """Random crops, seen once, do not push out test images, seen at each training."""
    crops = torch.randint(0, 256, (2, 3, SIDE, SIDE), dtype=torch.uint8)
    features = lite0.Lite0("cpu")
    features.stages(crops)
    assert features._cached_bytes == 0
    features.stages(crops[:1])
    assert len(features._cache) == 1


@needs_weights
def test_the_banks_scores_are_scikit_learns_distances(root: Path) -> None:
    """Its maps are d / (d + u), and its metrics those that sklearn computes from these."""
    dataset = dataset_of(root)
    normals, test = dataset.part("normals"), dataset.part("test")
    bank = memory_bank(normals.images, len(normals), 200, 0, "cpu")
    features = lite0.shared("cpu")
    rows = patch_features(features, test.images) / bank.spread
    nearest = NearestNeighbors(n_neighbors=NEIGHBOURS, algorithm="brute")
    nearest.fit(bank.bank.numpy())
    distances, _ = nearest.kneighbors(rows.flatten(0, 2).numpy())
    grid = torch.from_numpy(distances.mean(axis=1)).float().reshape(rows.shape[:3])
    np.testing.assert_allclose(
        bank._distances(rows.flatten(0, 2)).numpy(), grid.flatten().numpy(), rtol=1e-3
    )
    line = np.exp([-2.0, 0.0, -2.0])
    kernel = torch.from_numpy(np.outer(line, line) / line.sum() ** 2).float()
    padded = F.pad(grid[:, None], (1, 1, 1, 1), mode="replicate")
    smooth = F.conv2d(padded, kernel[None, None])
    size = (SIDE, SIDE)
    d = F.interpolate(smooth, size, mode="bilinear", align_corners=False)[:, 0]
    expected = d / (d + bank.unit)
    maps = anomaly_maps(bank, test)
    torch.testing.assert_close(maps, expected, atol=1e-3, rtol=0)
    assert maps.min() > 0 and maps.max() < 1


@pytest.mark.parametrize(
    ("detector", "source"),
    [
        pytest.param("bank", "none", marks=needs_weights),
        pytest.param("head", "real", marks=needs_weights),
        ("unet", "real"),
        ("draem", "perlin"),
    ],
)
def test_a_result_has_the_metrics_of_scikit_learn(
    root: Path, tmp_path: Path, detector, source: str
) -> None:
    changes = {"size": SIDE, "augment": True}
    budget = detector_budgets("smallest", [detector], changes)[detector]
    folders = Folders(root, {}, SIDE, budget.pairs)
    data = {"wood": check(folders, "wood", [source], DETECTOR).digests}
    experiment = Localization(
        folders, budget, ("strict",), data, perlin_blobs, {detector: budget}
    )
    job = TrainingJob("wood", source, 0, detector)
    for name in ("a", "b"):
        experiment.run(job, tmp_path / name)
    saved = job.metrics(tmp_path / "a")
    assert saved == job.metrics(tmp_path / "b")
    assert saved.get("detector", "unet") == detector and saved["budget"]["augment"]
    if detector in ON_FEATURES:
        assert saved["features"]["sha256"].startswith("57934424"), "as the file's name says"
    else:
        assert "features" not in saved
    test = dataset_of(root).part("test")
    (trained, _) = list(
        train_detector(
            budget,
            CategoryDataset(folders, "wood").part("normals"),
            CategoryDataset(folders, "wood").source(source, perlin_blobs),
            0,
            "cpu",
            detector,
        )
    )[-1]
    maps = anomaly_maps(trained, test).numpy()
    truth = test.masks.numpy()
    strict = saved["strict"]
    auroc = roc_auc_score(truth.ravel(), maps.ravel())
    assert strict["pixel_auroc"] == pytest.approx(auroc, abs=1e-6)
    assert auroc > 0.7, "drawn defects stand out"
    assert strict["pixel_ap"] == pytest.approx(
        average_precision_score(truth.ravel(), maps.ravel()), abs=1e-6
    )
    aupro = aupro_written_out(maps, truth, 0.3)
    assert strict["pixel_aupro"] == pytest.approx(aupro, abs=1e-6)
    own = np.array([defect in ("stain", "good") for defect in test.defects])
    assert strict["by_defect"]["stain"]["pixel_ap"] == pytest.approx(
        average_precision_score(truth[own].ravel(), maps[own].ravel()), abs=1e-6
    )
    resamples = job.array(tmp_path / "a", "strict_resamples_stain")
    assert resamples.shape == (len(METRICS), 1000)


def test_the_balanced_loss_is_written_out() -> None:
    logits = torch.randn(3, 2, 8, 8)
    masks = torch.zeros(3, 8, 8, dtype=torch.bool)
    masks[0, :2, :3] = True
    masks[1, 5, 5] = True
    p = logits.softmax(dim=1)
    defects = [-p[0, 1][masks[0]].log().mean(), -p[1, 1][masks[1]].log().mean()]
    normal = -p[:, 0][~masks].log().mean()
    torch.testing.assert_close(
        balanced_loss(logits, masks), (normal + (defects[0] + defects[1]) / 2) / 2
    )
    none = torch.zeros_like(masks)
    torch.testing.assert_close(balanced_loss(logits, none), -p[:, 0].log().mean())


@needs_weights
def test_a_small_bank_is_held_apart_from_its_unit() -> None:
    patches = torch.randn(40, 3, generator=torch.Generator().manual_seed(0))
    bank = MemoryBank(patches, lite0.shared("cpu"))
    spread = patches.std(dim=0)
    torch.testing.assert_close(bank.bank.data, (patches / spread)[5:])
    distances = torch.cdist(patches[:5] / spread, patches[5:] / spread)
    unit = distances.topk(NEIGHBOURS, largest=False).values.mean()
    torch.testing.assert_close(bank.unit.data, unit, rtol=1e-4, atol=1e-4)


def test_augmentation_moves_image_and_mask_together() -> None:
    image = torch.zeros(3, 8, 8, dtype=torch.uint8)
    image[:, 1, 2:5] = 100
    mask = image[0] > 0
    seen = set()
    for seed in range(40):
        turned, own = augmented((image, mask), np.random.default_rng(seed))
        assert torch.equal(turned[0] > 0, own)
        level = int(turned.max())
        assert 80 <= level <= 120 and set(turned.unique().tolist()) == {0, level}
        seen.add((tuple(map(tuple, own.nonzero().tolist())), level))
    assert len({places for places, _ in seen}) == 8
    assert len({level for _, level in seen}) > 10


def test_a_mixtures_ratio_is_that_of_its_first_source(root: Path) -> None:
    dataset = dataset_of(root)
    real, normals = Paired(dataset.part("real")), dataset.part("normals")
    mixed = Mixed([real, normals, normals], 0.25)
    drawn = [bool(mixed.sample(np.random.default_rng(seed))[1].any()) for seed in range(400)]
    assert np.mean(drawn) == pytest.approx(0.25, abs=0.06)


def test_the_default_budget_is_recorded_as_before() -> None:
    """A result from before there was a choice is continued."""
    job = TrainingJob("wood", "real", 0)
    data = {"wood": {"real": "0"}}
    assert job.metadata(BUDGETS["small"], data) == {
        "category": "wood",
        "source": "real",
        "seed": 0,
        "budget": {
            "size": 128,
            "epochs": 6,
            "samples": 2000,
            "batch_size": 8,
            "learning_rate": 1e-4,
            "pairs": 100,
            "width": 16,
        },
        "data": "0",
    }
    assert job.file(Path("o")) == Path("o/trainings/wood/real/seed-0.json")
    changed = detector_budgets("small", ["unet"], {"augment": True})["unet"]
    assert job.metadata(changed, data)["budget"]["augment"] is True
    assert "rotations" in changed.describe()


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ("unet,unet", "--detector: unet is named twice"),
        ("unnet", "--detector: no detector 'unnet'; did you mean unet?"),
    ],
)
def test_a_wrong_detector_is_refused(option: str, message: str) -> None:
    with pytest.raises(UserError) as raised:
        detector_names(option)
    assert str(raised.value).startswith(message)


def test_a_single_defect_has_no_metrics_of_its_own() -> None:
    assert by_defect(["good", "a", "a"]) == {}
    assert by_defect(["good", "a", "b"]) == {"a": [0, 1], "b": [0, 2]}
