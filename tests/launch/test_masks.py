"""Masks learned by the command: stored, continued, drawn with, or refused."""

import hashlib
import json
import shutil
from pathlib import Path

import mlflow
import numpy as np
import pytest
from PIL import Image
from safetensors.torch import load_file

from acontrol.config import BaseConfig
from acontrol.data.builtin import write_dataset
from acontrol.data.mvtec import open_folder
from acontrol.errors import UserError
from acontrol.masks import inversion_run
from acontrol.masks.perlin import PerlinMasks
from acontrol.masks.placement import Placed, Rules, place
from acontrol.masks.shape import Mask
from acontrol.masks.statistics import distance
from acontrol.masks.store import read_learned
from acontrol.networks.locate import built_in_adapter, digest
from launch import generate, masks

KIND = ("--category", "wood", "--defect", "crack")
FEW = ("--steps", 3, "--batch-size", 2, "--pool", 4, "--save-every", 1)
DRAWN = ("--count", 2, "--tries", 8, "--drawing-steps", 6, "--drawing-batch", 8)


def learn(data: Path, out: Path, database: str, *more: object) -> None:
    args = [data, "--output", out, "--split", "all", "--tracking-uri", database]
    masks.run([str(one) for one in [*args, *FEW, *DRAWN, *more]])


def tree_of(folder: Path) -> dict[str, str]:
    return {
        file.relative_to(folder).as_posix(): hashlib.sha256(file.read_bytes()).hexdigest()
        for file in sorted(folder.rglob("*"))
        if file.is_file()
    }


@pytest.fixture(scope="module")
def database(tmp_path_factory) -> str:
    return f"sqlite:///{tmp_path_factory.mktemp('mlflow') / 'mlflow.db'}"


@pytest.fixture(scope="module")
def learned(built_in_data, database, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("learned") / "masks"
    learn(built_in_data, out, database, *KIND)
    return out


def test_what_was_learned_is_there_and_says_what_it_is(learned, database) -> None:
    folder = learned / "wood" / "crack"
    card = json.loads((folder / "learned.json").read_text())
    assert card["base_digest"] == digest(BaseConfig())
    assert card["split"] == "all"
    assert card["training"] == ["000", "001", "002"]
    assert card["template"] == "a photo of wood with a crack"
    assert card["inversion"]["steps"] == 3
    assert card["kept"] == 2
    assert card["drawn"] == 2 + sum(card["rejected"].values())
    assert load_file(folder / "vectors.safetensors")["vectors"].shape == (16, 64)
    drawn = [np.asarray(Image.open(file)) for file in sorted(folder.glob("masks/*.png"))]
    assert [one.shape for one in drawn] == [(64, 64)] * 2
    assert all(one.dtype == bool and one.any() for one in drawn)
    assert not (learned / "training").exists()
    client = mlflow.MlflowClient(tracking_uri=database)
    run = client.get_run(json.loads((learned / "run.json").read_text())["mlflow_run"])
    assert run.info.status == "FINISHED"
    assert run.data.metrics["wood/crack/loss"] > 0
    assert run.data.metrics["wood/crack/kept"] == 2


def test_a_killed_run_goes_on_to_the_same_masks(
    learned, built_in_data, database, tmp_path, monkeypatch
) -> None:
    out = tmp_path / "masks"
    steps = []

    class Stopped(inversion_run.MaskObjective):
        def __call__(self, words, seed, positions):
            steps.append(positions.start // len(positions))
            if steps == [0, 1, 2]:
                raise KeyboardInterrupt
            return super().__call__(words, seed, positions)

    monkeypatch.setattr(inversion_run, "MaskObjective", Stopped)
    with pytest.raises(KeyboardInterrupt):
        learn(built_in_data, out, database, *KIND)
    assert not (out / "wood").exists()
    learn(built_in_data, out, database, *KIND)
    assert steps == [0, 1, 2, 2]
    assert tree_of(out / "wood") == tree_of(learned / "wood")
    learn(built_in_data, out, database, *KIND)  # All is there: no step is taken.
    assert steps == [0, 1, 2, 2]


def test_images_are_drawn_where_masks_were_learned(learned, built_in_data, tmp_path) -> None:
    args = ["--model", built_in_adapter(), "--data", built_in_data, "--split", "all"]
    args += ["--masks", "learned", "--masks-path", learned, "--steps", 2, "--count", 2]
    args += ["--gate", "keep"]
    out = tmp_path / "g"
    generate.run([str(one) for one in [*args, "--out", out, *KIND]])
    lines = [json.loads(line) for line in (out / "manifest.jsonl").read_text().splitlines()]
    assert [line["mask_source"] for line in lines] == ["learned"] * 2
    assert {line["mask_origin"] for line in lines} <= {"000.png", "001.png"}
    with pytest.raises(UserError, match=r"no masks learned for wood/spots; it has wood/crack"):
        generate.run([str(one) for one in [*args, "--out", tmp_path / "h", *KIND[:2]]])
    assert not (tmp_path / "h").exists()
    with pytest.raises(UserError, match="--masks learned and --masks-path DIR need each"):
        generate.run([str(one) for one in [*args[:6], "--masks", "learned", "--out", "h"]])


def test_masks_of_another_base_or_of_test_images_are_refused(learned, tmp_path) -> None:
    given = (learned, "wood", "crack")
    here = digest(BaseConfig())
    assert sorted(read_learned(*given, base_digest=here, split="all")) == ["000.png", "001.png"]
    with pytest.raises(UserError, match="learned on another base"):
        read_learned(*given, base_digest="0" * 64, split="all")
    with pytest.raises(UserError, match=r"--split all, and references are of split train"):
        read_learned(*given, base_digest=here, split="train")
    copied = tmp_path / "masks"
    shutil.copytree(learned, copied)
    card = copied / "wood" / "crack" / "learned.json"
    card.write_text(card.read_text().replace('"seed": 0', '"seed": "x"'))
    with pytest.raises(UserError, match=r"learned\.json: seed: Input should be a valid int"):
        read_learned(copied, "wood", "crack", base_digest=here, split="all")


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (("--category", "brick"), "has no category 'brick'"),
        (("--defect", "dent"), "has no defect 'dent'"),
        (("--steps", 0), "--steps: Input should be greater"),
        (("--vectors", 76, *KIND), "the base reads 75 at most"),
        (("--base", "./nowhere"), "no such folder"),
        (("--base", "someone/model"), "pinned commit"),
    ],
)
def test_mistakes_are_told(built_in_data, database, tmp_path, args, words) -> None:
    with pytest.raises(UserError, match=words) as caught:
        learn(built_in_data, tmp_path / "masks", database, *args)
    assert "\n" not in str(caught.value)
    assert not list(tmp_path.glob("masks/*/*/learned.json"))


def test_other_settings_and_other_folders_are_not_mixed_in(
    learned, built_in_data, database, tmp_path
) -> None:
    before = tree_of(learned)
    with pytest.raises(UserError, match=r"other settings \(steps: 3 -> 4\)"):
        learn(built_in_data, learned, database, "--steps", 4)
    assert tree_of(learned) == before
    (tmp_path / "mine.txt").touch()
    with pytest.raises(UserError, match="not empty, and holds no learned masks"):
        learn(built_in_data, tmp_path, database)
    few = tmp_path / "few"
    write_dataset(few, num_defects=2, num_good=1, categories=("wood",), defects=("crack",))
    with pytest.raises(UserError, match=r"fewer than three: wood/crack \(2\)"):
        learn(few, tmp_path / "masks", database, "--split", "train")


def test_drawings_that_are_no_masks_end_in_a_line(
    built_in_data, database, tmp_path, monkeypatch
) -> None:
    white = np.ones((64, 64), bool)
    monkeypatch.setattr(inversion_run, "draw_masks", lambda *a, **b: [white] * 8)
    with pytest.raises(UserError, match=r"none of 16 drawings is like a mask \(along"):
        learn(built_in_data, tmp_path / "masks", database, *KIND)


@pytest.mark.slow
def test_learned_masks_are_closer_to_real_ones_than_noise_is(tmp_path) -> None:
    """In area, elongation and solidity together, at most half of perlin's distance."""
    data, out = tmp_path / "data", tmp_path / "masks"
    kinds = [("wood", "crack"), ("metal", "spots")]  # The base has seen no spots.
    write_dataset(data, num_good=1, num_good_test=1, num_defects=12, name_attributes=False)
    everywhere = np.ones((64, 64), bool)
    for category, defect in kinds:
        args = [str(data), "--output", str(out), "--category", category, "--defect", defect]
        masks.run([*args, "--steps", "250", "--count", "24"])
        found = read_learned(
            out, category, defect, base_digest=digest(BaseConfig()), split="train"
        )
        drawn = [mask for _, mask in found.values()]
        assert len(drawn) == 24
        # Against masks that were not learned from.
        images = open_folder(data).labelled("test", category=category, defect=defect)
        real = [image.read_mask() for image in images]
        noise: list[Mask] = []
        for seed in range(40):
            blob = place(PerlinMasks(), everywhere, Rules(), cells=16, seed=seed)
            assert isinstance(blob, Placed)
            noise.append(blob.mask)
        print(category, defect, distance(drawn, real), distance(noise, real))
        assert distance(drawn, real) < 0.5 * distance(noise, real)
