"""What is asked for is planned: whose words a drawing gets."""

import json
import shutil
from typing import Any

import pytest

from acontrol.data.mvtec import open_folder
from acontrol.data.prompts import target_text
from acontrol.generation.plan import Planner
from acontrol.generation.request import Request

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
