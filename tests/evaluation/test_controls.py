"""Several adapters of a method, and images inpainted without a defect as controls."""

import itertools
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from acontrol.data import builtin
from acontrol.data.builtin import write_dataset
from acontrol.errors import UserError
from acontrol.evaluation.bootstrap import RESAMPLES, mean_over_adapters, mean_over_trainings
from acontrol.evaluation.budget import BUDGETS, Drawing
from acontrol.evaluation.comparison import named_folders, plan_comparison, source_names
from acontrol.evaluation.dataset import CLEAN, CONTROLS, DETECTOR, CategoryDataset, Folders
from acontrol.evaluation.localization import Localization
from acontrol.evaluation.protocol import Truth, score
from acontrol.evaluation.results import method_of
from acontrol.evaluation.settings import LocalizationConfig
from acontrol.evaluation.summary import summarise
from acontrol.evaluation.trainer import anomaly_maps, drawn_from, train_detector
from acontrol.masks.perlin import perlin_blobs

SMALLEST = BUDGETS["smallest"].model_copy(update={"samples": 80, "epochs": 1})


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Real wood, and three other sets of it."""
    root = tmp_path_factory.mktemp("controls")
    for seed, name in enumerate(("real", "first", "second", "inpainted")):
        write_dataset(
            root / name,
            num_good=4,
            num_good_test=2,
            num_defects=4,
            categories=("wood",),
            defects=("stain",),
            seed=seed,
        )
    return {path.name: path for path in root.iterdir()}


def test_folders_of_several_adapters_are_numbered(folders: dict[str, Path]) -> None:
    first, second = folders["first"], folders["second"]
    named = named_folders([f"ours={first},{second}", f"other={first}"])
    assert named == {"ours": first, "ours@2": second, "other": first}
    found = source_names("real,real+ours,ours+other", CONTROLS, [*named])
    assert found == ["real", "real+ours", "real+ours@2", "ours+other", "ours@2+other"]
    assert {method_of(name) for name in found} == {"real", "real+ours", "ours+other"}
    with pytest.raises(UserError, match="no source 'ours@2'"):
        source_names("ours@2", CONTROLS, [*named])
    with pytest.raises(UserError, match=r"missing: does not exist"):
        named_folders([f"ours={first},{first.parent / 'missing'}"])


def test_adapters_are_drawn_again_and_seeds_pair() -> None:
    # Two adapters whose values are the constants 0 and 1, of three seeds each.
    fixed = [[np.full((1, RESAMPLES), float(adapter))] * 3 for adapter in range(2)]
    means = mean_over_adapters([fixed])[0]
    assert {*np.unique(means)} == {0.0, 0.5, 1.0}
    assert np.mean(means == 0.5) == pytest.approx(0.5, abs=0.05)
    rng = np.random.default_rng(0)
    seeds = [rng.normal(size=(7, RESAMPLES)) for _ in range(3)]
    shifted = [[values + shift for values in seeds] for shift in (0.25, 0.25)]
    difference = mean_over_adapters([shifted]) - mean_over_trainings([seeds])
    np.testing.assert_allclose(difference, 0.25)


def test_a_method_is_one_row_over_its_adapters(
    folders: dict[str, Path], tmp_path: Path, capsys
) -> None:
    config = LocalizationConfig(
        real=folders["real"],
        synthetic=(f"ours={folders['first']},{folders['second']}",),
        clean=folders["inpainted"],
        out=tmp_path / "out",
        seeds=1,
    )
    plan = plan_comparison(config, SMALLEST, CONTROLS, ["wood"], DETECTOR)
    named = [job.source for job in plan.jobs]
    assert named[len(CONTROLS) :] == [
        *("ours", "ours@2", "real+ours", "real+ours@2", "clean-as-defect"),
        *("ours+clean-as-normal", "ours@2+clean-as-normal"),
    ]
    assert "Adapters, resampled like seeds: ours 2." in plan.about("smallest")
    assert plan.data["wood"]["ours"] != plan.data["wood"]["ours@2"]
    experiment = Localization(plan.folders, SMALLEST, ("strict",), plan.data, perlin_blobs)
    own = [job for job in plan.jobs if job.source in ("ours", "ours@2")]
    for job in own:
        experiment.run(job, tmp_path / "out")
    (row,) = summarise(own, tmp_path / "out", "strict").values()
    each = [job.metrics(tmp_path / "out")["strict"]["pixel_ap"] for job in own]
    assert each[0] != each[1]
    assert row.values[1] == pytest.approx(np.mean(each))
    assert row.by_seed[:, 1].tolist() == each


def test_half_of_the_normal_images_are_the_clean_ones(folders: dict[str, Path]) -> None:
    config = LocalizationConfig(
        real=folders["real"], clean=folders["inpainted"], dry_run=True, seeds=1
    )
    plan = plan_comparison(config, SMALLEST, CONTROLS, ["wood"], DETECTOR)
    dataset = CategoryDataset(plan.folders, "wood")
    assert dataset.clean("real", Drawing()) is None
    assert dataset.source("clean-as-normal", perlin_blobs) is None
    mixed = "clean-as-defect+clean-as-normal"
    clean, source = dataset.clean(mixed, Drawing()), dataset.source(mixed, perlin_blobs)
    assert clean is not None
    draw = drawn_from(dataset.part("normals"), source, clean, augment=False)
    inpainted = dataset.part("clean-as-defect").images

    def is_inpainted(image: torch.Tensor) -> bool:
        return bool((inpainted == image).flatten(1).all(dim=1).any())

    drawn = [draw(index, np.random.default_rng(index)) for index in range(200)]
    defective, normal = drawn[1::2], drawn[::2]
    assert all(mask.any() and is_inpainted(image) for image, mask in defective)
    assert not any(mask.any() for _, mask in normal)
    share = np.mean([is_inpainted(image) for image, _ in normal])
    assert share == pytest.approx(0.5, abs=0.15)


@pytest.mark.parametrize("name", ["clean-as-normal", "clean-as-defect"])
def test_the_controls_names_are_reserved(folders: dict[str, Path], name: str) -> None:
    with pytest.raises(UserError, match="is a source of its own"):
        named_folders([f"{name}={folders['first']}"])


def test_a_detector_of_clean_images_is_at_chance(tmp_path: Path, tiny_base) -> None:
    """The trace of the base's autoencoder, labelled as a defect, teaches no real defect."""
    defects = ("crack", "stain")
    write_dataset(
        tmp_path / "real",
        num_good=24,
        num_good_test=12,
        num_defects=18,
        categories=("wood",),
        defects=defects,
    )
    for defect, seed in itertools.product(defects, range(12)):
        drawn = builtin.draw("wood", defect, seed=1000 + seed)
        pixels = torch.from_numpy(drawn.normal.copy()).permute(2, 0, 1)[None] / 127.5 - 1
        with torch.no_grad():
            latents = tiny_base.vae.encode(pixels).latent_dist.mode()
            decoded = tiny_base.vae.decode(latents).sample[0]
        levels = ((decoded.clamp(-1, 1) + 1) * 127.5).round().permute(1, 2, 0).byte().numpy()
        inpainted = np.where(drawn.mask[..., None], levels, drawn.normal)
        for part, image, end in (
            ("test", inpainted, ""),
            ("ground_truth", drawn.mask, "_mask"),
        ):
            file = tmp_path / "clean" / "wood" / part / defect / f"{seed:03d}{end}.png"
            file.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(image).save(file)
    clean = dict.fromkeys(CLEAN, tmp_path / "clean")
    dataset = CategoryDataset(Folders(tmp_path / "real", clean, 32, 100), "wood")
    budget = SMALLEST.model_copy(
        update={"width": 8, "samples": 560, "batch_size": 8, "learning_rate": 3e-3}
    )
    test = dataset.part("test")
    truth = Truth.of(test, "strict")
    found = {}
    for source in ("real", "clean-as-defect"):
        own = dataset.source(source, perlin_blobs, budget)
        ((detector, _),) = train_detector(budget, dataset.part("normals"), own, 0, "cpu")
        found[source] = score(anomaly_maps(detector, test), truth)
    real, control = found["real"], found["clean-as-defect"]
    assert real["pixel_auroc"] > 0.9 and real["image_auroc"] > 0.8
    assert control["pixel_auroc"] < 0.7 and control["image_auroc"] < 0.7
    chance = float(truth.pixels.mean())
    assert real["pixel_ap"] > 8 * chance and control["pixel_ap"] < 4 * chance
