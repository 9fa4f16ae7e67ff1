"""A generated set as COCO and YOLO: drawn again by other readers, the masks are the same."""

import importlib
import json
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image
from pycocotools.coco import COCO

from acontrol.data.mvtec import open_folder
from acontrol.data.outlines import polygon_mask
from acontrol.generation.exports import write_as_coco, write_as_yolo

importer = importlib.import_module("launch.import")
SIZE = (44, 37)
RNG = np.random.default_rng(5)


def masks() -> dict[tuple[str, str], np.ndarray]:
    """A bar in two parts, a ring, one at the edge, and noise."""
    bars, ring, edge = (np.zeros((SIZE[1], SIZE[0]), bool) for _ in range(3))
    bars[3:5, 4:20] = bars[20:30, 30:33] = True
    ring[10:30, 10:30] = True
    ring[14:20, 13:25] = False
    ring[22:27, 13:16] = False
    edge[0:6, 0:3] = True
    edge[6, 3] = True  # Touches by a corner.
    noise = np.random.default_rng(0).random((SIZE[1], SIZE[0])) < 0.4
    return {
        ("crack", "000"): bars,
        ("crack", "001"): ring,
        ("spot", "000"): edge,
        ("spot", "001"): noise,
    }


@pytest.fixture
def generated(tmp_path: Path) -> tuple[Path, list[dict[str, str]], dict[str, Path]]:
    """A set of one product, its manifest, and where its normal images are."""
    folder, normal = tmp_path / "set", tmp_path / "normal"
    lines = []
    for number, ((defect, name), mask) in enumerate(masks().items()):
        line = {
            **{"category": "nut", "defect": defect, "number": name},
            **{"image": f"nut/test/{defect}/{name}.png"},
            **{"mask": f"nut/ground_truth/{defect}/{name}_mask.png"},
            **{"normal": f"nut/train/good/{number % 2}.png"},
        }
        pixels = RNG.integers(0, 256, (SIZE[1], SIZE[0], 3), dtype=np.uint8)
        for path, array in (
            (folder / line["image"], pixels),
            (folder / line["mask"], mask.astype(np.uint8) * 255),
            (normal / line["normal"], 255 - pixels),
        ):
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(array).save(path)
        lines.append(line)
    return folder, lines, {"normal": normal}


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
def test_coco_holds_the_same_masks_for_its_own_reader(
    generated, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, lines, roots = generated
    write_as_coco(folder, lines, roots)
    root = folder / "coco" / "nut"
    coco = COCO(root / "annotations/instances_default.json")
    assert {"info", "licenses", "images", "annotations", "categories"} <= coco.dataset.keys()
    assert [row["name"] for row in coco.loadCats(coco.getCatIds())] == ["crack", "spot"]
    by_name = {row["file_name"]: row for row in coco.loadImgs(coco.getImgIds())}
    for (defect, name), mask in masks().items():
        image = by_name[f"{defect}/{name}.png"]
        assert (image["width"], image["height"]) == SIZE
        back = np.zeros_like(mask)
        for row in coco.loadAnns(coco.getAnnIds(imgIds=[image["id"]])):
            part = coco.annToMask(row).astype(bool)
            x, y, width, height = row["bbox"]
            assert row["area"] == part.sum() and row["iscrowd"] == 0
            assert part[y : y + height, x : x + width].sum() == part.sum()
            assert part[y].any() and part[:, x].any() and part[:, x + width - 1].any()
            assert not (back & part).any()
            back |= part
        assert (back == mask).all()
        original = folder / f"nut/test/{defect}/{name}.png"
        copy = root / "images/default" / image["file_name"]
        assert copy.read_bytes() == original.read_bytes()
    good = [row for name, row in by_name.items() if name.startswith("good/")]
    assert len(good) == 2 and coco.getAnnIds(imgIds=[row["id"] for row in good]) == []
    shapes = {type(row["segmentation"]) for row in coco.dataset["annotations"]}
    assert shapes == {list, dict}
    parts = coco.getAnnIds(imgIds=[by_name["crack/000.png"]["id"]])
    assert len(parts) == 2
    assert len(coco.getAnnIds(imgIds=[by_name["spot/000.png"]["id"]])) == 1


def test_coco_comes_back_as_the_same_data_set(generated, tmp_path: Path) -> None:
    folder, lines, roots = generated
    write_as_coco(folder, lines, roots)
    importer.run(["coco", str(folder / "coco/nut"), "--out", str(tmp_path / "back")])
    back = open_folder(tmp_path / "back")
    rows = {(row.defect, row.id.rpartition("_")[2]): row for row in back.labelled("all")}
    assert rows.keys() == masks().keys()
    for key, mask in masks().items():
        assert (rows[key].read_mask() == mask).all()
        original = folder / f"nut/test/{key[0]}/{key[1]}.png"
        assert rows[key].image.read_bytes() == original.read_bytes()
    assert len(back.normals("nut")) == 2


def test_yolo_holds_the_same_masks(generated) -> None:
    folder, lines, roots = generated
    write_as_yolo(folder, lines, roots)
    root = folder / "yolo" / "nut"
    about = yaml.safe_load((root / "data.yaml").read_text())
    assert about["names"] == {0: "crack", 1: "spot"}
    images = sorted((root / about["train"]).iterdir())
    labels = sorted((root / about["train"].replace("images", "labels")).iterdir())
    assert [path.stem for path in images] == [path.stem for path in labels]
    for (defect, name), mask in masks().items():
        back = np.zeros_like(mask)
        for line in (root / f"labels/train/{defect}_{name}.txt").read_text().splitlines():
            kind, *values = line.split()
            assert about["names"][int(kind)] == defect
            points = np.array(values, dtype=float).reshape(-1, 2)
            assert points.min() >= 0 and points.max() <= 1
            back |= polygon_mask([*map(tuple, points * SIZE)], SIZE)
        assert (back == mask).all()
    good = [path for path in labels if path.stem.startswith("good_")]
    assert len(good) == 2 and all(path.read_text() == "" for path in good)


def test_writing_again_after_a_stop_changes_nothing(generated) -> None:
    folder, lines, roots = generated
    for _ in range(2):
        write_as_coco(folder, lines, roots)
        write_as_yolo(folder, lines, roots)
    file = folder / "coco/nut/annotations/instances_default.json"
    assert len(json.loads(file.read_text())["images"]) == 6
