"""The plan of a generated set."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from acontrol.data.mvtec import open_folder
from acontrol.data.prompts import target_text
from acontrol.generation.plan import Planner
from acontrol.generation.request import Request
from acontrol.generation.run import ignored_by_replay
from acontrol.generation.settings import GenerationConfig
from launch.options import parse

OWN = "a board, cracked along its grain"


@pytest.fixture
def planner(built_in_data, tmp_path) -> Planner:
    """Cracked wood has a caption; the rest has none."""
    data, captions = tmp_path / "data", tmp_path / "captions.json"
    shutil.copytree(built_in_data, data, ignore=shutil.ignore_patterns("prompt"))
    captions.write_text(json.dumps({"wood": {"crack": OWN}}))
    return Planner(open_folder(data, captions), split="all", masks="perlin")


@pytest.mark.parametrize(
    ("asked", "prompt"),
    [
        ({"category": "wood", "defect": "crack"}, OWN),
        ({"category": "wood", "defect": "crack", "reference": "wood/crack/001"}, OWN),
        ({"category": "wood", "defect": "stain"}, None),
        ({"category": "button", "defect": "crack", "reference_category": "wood"}, None),
        ({"category": "wood", "defect": "crack", "reference_phrase": "a hole"}, None),
        ({"category": "wood", "defect": "crack", "prompt": "old wood"}, "old wood"),
    ],
)
def test_a_drawing_has_the_references_caption_on_its_own_product(
    planner: Planner, asked: dict[str, Any], prompt: str | None
) -> None:
    (image,), _ = planner.plan_images([("here", Request(**asked))])
    template = target_text(asked["category"], image.reference.phrase)
    assert image.prompt == (prompt or template)
    assert asked["category"] in template


def test_a_reference_is_about_as_large_as_the_mask(built_in_data: Path, tmp_path: Path) -> None:
    data = tmp_path / "data"
    shutil.copytree(built_in_data, data)
    sides = {"000": 2, "001": 12, "002": 16}
    for name, side in sides.items():
        (file,) = (data / "wood/ground_truth/crack").glob(f"{name}*")
        mask = np.zeros((64, 64), np.uint8)
        mask[8 : 8 + side, 8 : 8 + side] = 255
        Image.fromarray(mask).save(file)
    folder = open_folder(data)
    normal = str(folder.normals("wood")[0])

    def chosen(side: int) -> set[str]:
        mask = np.zeros((64, 64), np.uint8)
        mask[:side, :side] = 255
        Image.fromarray(mask).save(tmp_path / "mask.png")
        own = Request(
            category="wood",
            defect="crack",
            normal=normal,
            mask=str(tmp_path / "mask.png"),
            count=20,
        )
        images, _ = Planner(folder, split="all").plan_images([("here", own)])
        return {image.reference.image.stem for image in images}

    assert chosen(3) == {"000"}
    assert chosen(14) == chosen(20) == {"001", "002"}
    assert chosen(60) == {"002"}, "none is as large: the nearest"


@pytest.mark.parametrize(("counts", "last"), [((1000,), "999"), ((600, 401), "1000")])
def test_sorted_names_keep_the_plans_order(
    built_in_data: Path, counts: tuple[int, ...], last: str
) -> None:
    planner = Planner(open_folder(built_in_data), split="all", masks="same")
    requests = [
        (f"x:{line}", Request(category="wood", defect="crack", count=count))
        for line, count in enumerate(counts)
    ]
    images, left_out = planner.plan_images(requests)
    names = [image.name[2] for image in images]
    assert left_out == [] and names == sorted(set(names)) and names[-1] == last


def test_settings_that_a_replay_does_not_use_are_known() -> None:
    args = ["--model", "m", "--data", "d", "--out", "o", "--replay", "r", "--batch", "1"]
    how = ["--num-workers", "2", "--precision", "bfloat16", "--compile", "blocks"]
    how += ["--attention", "math"]
    quiet = parse(GenerationConfig, [*args, *how, "--split-file", "s"], prog="generate")
    assert ignored_by_replay(quiet) == []
    loud = parse(GenerationConfig, [*args, "--batch-size", "4", "--seed", "0"], prog="generate")
    assert ignored_by_replay(loud) == ["batch_size", "seed"]
