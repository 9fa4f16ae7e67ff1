"""Data of other formats: the error names the command that imports it, and the command works."""

import json
import re
import shlex
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from acontrol.data.mvtec import open_folder
from acontrol.errors import UserError
from launch import cli, shard
from tests.data import annotated as formats


def labelme_in_the_layout(root: Path) -> None:
    """Outlines beside the images of MVTec AD's folders, and no masks."""
    (root / "nut/test/bent").mkdir(parents=True)
    formats.labelme(root / "nut/test/bent")
    (root / "nut/train/good").mkdir(parents=True)
    for suffix in ("json", "jpg"):
        good = root / f"nut/test/bent/004.{suffix}"
        good.rename(root / f"nut/train/good/004.{suffix}")


def labelme(root: Path) -> None:
    (root / "nut").mkdir(parents=True)
    formats.labelme(root / "nut")


def coco(root: Path) -> None:
    formats.coco(root / "nut")


def voc(root: Path) -> None:
    formats.voc(root / "nut")


def visa(root: Path) -> None:
    formats.visa(root / "nut")


def loco(root: Path) -> None:
    formats.loco(root / "nut")


def levels(root: Path) -> None:
    """MVTec AD's layout with a class for each level."""
    formats.photograph(root / "nut/train/good/000.png")
    for name, classes in formats.DRAWN.items():
        if classes:
            formats.photograph(root / f"nut/test/bent/{name}.png")
            formats.class_mask(root / f"nut/ground_truth/bent/{name}_mask.png", classes)


@pytest.mark.parametrize("build", [labelme, labelme_in_the_layout, coco, voc, visa, loco])
def test_the_named_command_imports_it(
    build: Callable[[Path], None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    build(Path("data").resolve())
    with pytest.raises(UserError) as caught:
        shard.run(["data", "--split", "all", "--dry-run"])
    command = re.search(r"acontrol (import [\w-]+ \S+ --out) ROOT", str(caught.value))
    assert command is not None, caught.value
    cli.run([*shlex.split(command[1]), "ROOT"])
    (category,) = open_folder("ROOT").categories
    assert category == "nut"
    shard.run(["ROOT", "--split", "all", "--dry-run"])


def test_a_mask_of_classes_leads_to_class_masks(tmp_path: Path) -> None:
    levels(tmp_path / "data")
    with pytest.raises(UserError, match="if each is a class, acontrol import class-masks"):
        shard.run([str(tmp_path / "data"), "--split", "all", "--dry-run"])
    out = tmp_path / "ROOT"
    cli.run(["import", "class-masks", str(tmp_path / "data"), "--out", str(out)])
    images = open_folder(out).labelled("all")
    assert {image.defect for image in images} == {"bent", "combined"}


def test_other_json_is_not_taken_for_annotations(tmp_path: Path) -> None:
    path = tmp_path / "data/nut/x.png"
    path.parent.mkdir(parents=True)
    Image.fromarray(np.zeros((4, 4), np.uint8)).save(path)
    (path.parent / "x.json").write_text(json.dumps({"camera": {"images": 3}}))
    with pytest.raises(UserError, match="it has images straight in") as caught:
        open_folder(tmp_path / "data")
    assert "acontrol import" not in str(caught.value)
