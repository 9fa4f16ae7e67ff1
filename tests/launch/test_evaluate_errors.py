"""launch.evaluate: what a user can get wrong is one line, and leaves nothing."""

import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from launch import evaluate, shard
from tests.launch.test_errors import error_of

SMALLEST = ("--budget", "smallest", "--seeds", "1")


def changed(wood: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(wood, tmp_path / "changed"))


def localization_error(root: Path, tmp_path: Path, *args: object) -> str:
    out = tmp_path / "out"
    message = error_of(
        evaluate.run, "localization", "--real", root, *SMALLEST, "--out", out, *args
    )
    assert not out.exists()
    return message


def test_a_test_image_in_training_is_refused(
    wood: Path, other_wood: Path, tmp_path: Path
) -> None:
    root = changed(wood, tmp_path)
    # The same pixels in another file format, with another name.
    with Image.open(root / "wood" / "test" / "good" / "001.png") as image:
        image.save(root / "wood" / "train" / "good" / "x.bmp")
    message = localization_error(root, tmp_path, "--sources", "real")
    assert "x.bmp: is the test image" in message
    assert "test/good/001.png, pixel by pixel" in message
    leaky = Path(shutil.copytree(other_wood, tmp_path / "leaky"))
    for part in ("test/crack/004.png", "ground_truth/crack/004_mask.png"):
        shutil.copy(wood / "wood" / part, leaky / "wood" / part)
    message = localization_error(wood, tmp_path, "--synthetic", leaky)
    assert "leaky/wood/test/crack/004.png: is the test image" in message


def test_the_training_third_is_no_leak(wood: Path, tmp_path: Path) -> None:
    """A generated folder may hold training images; only tested ones are refused."""
    evaluate.run(
        [
            *("localization", "--real", str(wood), "--dry-run", *SMALLEST),
            *("--sources", "none,real,real+perlin"),
        ]
    )


@pytest.mark.parametrize(
    ("args", "words"),
    [
        ([], "name what to measure first, one of: quality, localization, classification"),
        (["speed"], "no measurement 'speed'; choose from quality"),
        (["quality", "--real", "x"], "--synthetic"),
        (["localization", "--real", "/nowhere"], "/nowhere: does not exist"),
        (["localization", "--real", "ROOT", "--sources", "real,gan"], "no source 'gan'"),
        (["localization", "--real", "ROOT", "--sources", "none+real"], "no source 'none+real'"),
        (["localization", "--real", "ROOT", "--sources", "real,real"], "real is named twice"),
        (["localization", "--real", "ROOT", "--budget", "huge"], "'huge'"),
        (["localization", "--real", "ROOT", "--methods", "perlin"], "--out DIR is needed"),
        (
            ["localization", "--real", "ROOT", "--dry-run", "--methods", "perln"],
            "--methods: no method 'perln'; did you mean perlin?",
        ),
        (
            ["localization", "--real", "ROOT", "--dry-run", "--methods", "ours"],
            "--methods ours: draws with a trained adapter; give --model MODEL, or ours=MODEL",
        ),
        (
            ["localization", "--real", "ROOT", "--dry-run", "--methods", "perlin,perlin"],
            "--methods: two sources are named drawn-perlin",
        ),
        (
            ["localization", "--real", "ROOT", "--dry-run", "--methods", "ours=/nowhere"],
            "--methods ours: no folder /nowhere of a run or an adapter",
        ),
        (["localization", "--real", "ROOT", "--dry-run", "--model", "x"], "--model: is whose"),
        (["localization", "--real", "ROOT", "--category", "tin"], "has no category 'tin'"),
        (["localization", "--real", "ROOT"], "--out DIR is needed"),
        (
            ["localization", "--real", "ROOT", "--synthetic", "a=ROOT", "a=ROOT"],
            "named a; name",
        ),
        (["localization", "--real", "ROOT", "--synthetic", "real=ROOT"], "source of its own"),
        (["localization", "--synthetic", "a", "--synthetic", "b"], "give --synthetic once"),
        (["localization", "--real", "ROOT", "--synthetic", "a=/nowhere"], "/nowhere"),
        (["localization", "--real", "ROOT", "--synthetic", "a="], "names no folder; write a="),
        (
            ["localization", "--real", "ROOT", "--synthetic", "a(1)=ROOT"],
            "'a(1)' is not a name",
        ),
        (
            ["localization", "--real", "ROOT", "--category", "wood", "wood"],
            "wood is named twice",
        ),
        (["quality", "--category", "a", "--category", "b"], "give --category once"),
        (["classification", "--real", "ROOT", "--sources", "perlin"], "no source 'perlin'"),
        (["classification", "--real", "ROOT"], "--out DIR is needed"),
        (
            ["classification", "--real", "ROOT", "--network", "/nowhere"],
            "--network /nowhere: has no config",
        ),
        (["ablation", "tiny", "--out", "x"], "--real ROOT is needed"),
        (["ablation", "tiny", "--real", "x"], "--out DIR is needed"),
        (["ablation", "tiny", "--real", "x", "--out", "x"], "--data.shards DIR is needed"),
        (
            [
                *("ablation", "tiny", "--real", "x", "--out", "x"),
                *("--data.shards", "x", "--rows", "csm,t9"),
            ],
            "--rows: 't9'",
        ),
        (
            [
                *("quality", "--real", "ROOT", "--synthetic", "a=ROOT", "--out", "x"),
                *("--features", "lpips-vgg", "--weights", "/nowhere"),
            ],
            "/nowhere/lpips-vgg.safetensors: does not exist",
        ),
        (
            [
                *("quality", "--real", "ROOT", "--synthetic", "a=ROOT", "--out", "x"),
                *("--features", "inception", "--weights", "/nowhere"),
            ],
            "/nowhere/inception.safetensors: does not exist",
        ),
    ],
)
def test_mistakes_are_one_line(wood: Path, args: list[str], words: str) -> None:
    given = [one.replace("ROOT", str(wood)) for one in args]
    assert words in error_of(evaluate.run, *given)


def test_bad_data_is_one_line(wood: Path, tmp_path: Path) -> None:
    root = changed(wood, tmp_path)
    mask = root / "wood" / "ground_truth" / "crack" / "003_mask.png"
    whole = mask.read_bytes()
    mask.unlink()
    assert "crack/003.png: has no mask" in localization_error(root, tmp_path)
    Image.fromarray(np.full((9, 9), 255, np.uint8)).save(mask)
    assert "the mask is 9 x 9 pixels and its image" in localization_error(root, tmp_path)
    mask.write_bytes(whole)
    for defect in ("crack", "stain"):
        shutil.rmtree(root / "wood" / "test" / defect)
    assert "has no images of defects" in localization_error(root, tmp_path)
    shutil.rmtree(root / "wood" / "test" / "good")
    shutil.copytree(wood / "wood" / "test" / "crack", root / "wood" / "test" / "crack")
    assert "has no images in test/good" in localization_error(root, tmp_path)
    shutil.rmtree(root / "wood" / "train")
    shutil.copytree(wood / "wood" / "test" / "good", root / "wood" / "test" / "good")
    assert "has no images in train/good" in localization_error(root, tmp_path)


def test_a_folder_of_another_category_is_refused(
    wood: Path, other_wood: Path, tmp_path: Path
) -> None:
    made = tmp_path / "made"
    shutil.copytree(other_wood / "wood", made / "metal")
    message = localization_error(wood, tmp_path, "--synthetic", made)
    assert "made: has no category 'wood'; choose from metal" in message
    quality = ("quality", "--real", wood, "--synthetic", made, "--out", tmp_path / "out")
    assert "made: has none of the real data's defects" in error_of(evaluate.run, *quality)
    # A folder that is itself a category stands for the only one there is.
    dry = ["localization", "--real", str(wood), *SMALLEST, "--dry-run"]
    evaluate.run([*dry, "--synthetic", str(made / "metal")])
    two = changed(wood, tmp_path)
    shutil.copytree(two / "wood", two / "tin")
    message = localization_error(two, tmp_path, "--synthetic", made / "metal")
    assert "has no category 'tin'" in message


def test_other_photographs_are_said_and_left_out(wood: Path, tmp_path: Path, capsys) -> None:
    """One tested defect again as a brighter photograph in the training third."""
    root = changed(wood, tmp_path)
    rng = np.random.default_rng(0)
    for part in ("train/good", "test/good", "test/crack", "test/stain"):
        for file in (root / "wood" / part).glob("*.png"):  # Surfaces that are each their own.
            grain = rng.integers(40, 160, (96, 96, 3), dtype=np.uint8)
            Image.fromarray(grain).save(file)
    for file in (root / "wood" / "ground_truth").rglob("*.png"):
        Image.open(file).resize((96, 96), Image.Resampling.NEAREST).save(file)
    with Image.open(root / "wood" / "test" / "crack" / "003.png") as image:
        brighter = np.asarray(image) + np.uint8(60)
    Image.fromarray(brighter).save(root / "wood" / "test" / "crack" / "000.png")
    args = ["localization", "--real", str(root), "--budget", "small", "--sources", "real"]
    evaluate.run([*args, "--dry-run"])
    said = capsys.readouterr().err
    assert "Of wood's 11 test images 1 looks like other photographs of pieces" in said
    assert "crack/003.png and" in said and "crack/000.png" in said
    evaluate.run([*args, "--dry-run", "--new-pieces"])
    assert "Left out: these, 1 in all" in capsys.readouterr().out


def test_results_are_not_mixed(wood: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.write_text("")
    args = ("classification", "--real", wood, *SMALLEST, "--out", out)
    assert f"--out {out}: not a folder" in error_of(evaluate.run, *args)
    out.unlink()
    out.mkdir()
    (out / "command.txt").write_text("quality\n")
    message = error_of(evaluate.run, *args)
    assert "holds the results of acontrol evaluate quality; name another folder" in message
    assert [one.name for one in out.iterdir()] == ["command.txt"]


@pytest.mark.parametrize("damage", ["list", "cut", "array"])
def test_damaged_results_are_one_line(
    wood: Path, database: Path, tmp_path: Path, damage: str
) -> None:
    shutil.copy(database, tmp_path)
    file = tmp_path / "trainings" / "wood" / "real" / "seed-0.json"
    file.parent.mkdir(parents=True)
    np.savez(file.with_suffix(".npz"), a=np.zeros(3))
    file.write_text({"list": "[1]", "cut": '{"a":', "array": "{}"}[damage])
    if damage == "array":
        whole = file.with_suffix(".npz").read_bytes()
        file.with_suffix(".npz").write_bytes(whole[: len(whole) // 2])
    message = error_of(
        evaluate.run,
        *("localization", "--real", wood, *SMALLEST, "--sources", "real", "--out", tmp_path),
    )
    assert "seed-0.json: it or its .npz is damaged" in message


def test_a_single_defect_is_nothing_to_tell_apart(wood: Path, tmp_path: Path, capsys) -> None:
    root = changed(wood, tmp_path)
    shutil.rmtree(root / "wood" / "test" / "stain")
    message = error_of(evaluate.run, "classification", "--real", root, *SMALLEST)
    assert "no category has two defects in test/<defect> to tell apart" in message
    assert "Left out: wood, with 1 defect" in capsys.readouterr().out


def test_shards_of_all_images_are_refused(wood: Path, tmp_path: Path) -> None:
    shard.run([str(wood), "--out", str(tmp_path / "shards"), "--split", "all"])
    message = error_of(
        evaluate.run,
        *("ablation", "tiny", "--real", wood, "--out", tmp_path / "out"),
        *("--data.shards", tmp_path / "shards"),
    )
    assert "holds split 'all', with the images that detectors are tested on" in message
    assert not (tmp_path / "out").exists()
