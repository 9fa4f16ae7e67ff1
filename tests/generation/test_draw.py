"""One call draws what launch.generate draws."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import acontrol
from acontrol.errors import UserError
from acontrol.networks.locate import built_in_adapter
from acontrol.pipelines.anomaly_control import AnomalyControlPipeline
from launch import generate


@pytest.fixture(scope="module")
def files(built_in_data: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A normal image larger than the model's, so that a crop and an edge matter."""
    folder = tmp_path_factory.mktemp("draw")
    wood = built_in_data / "wood"
    Image.open(wood / "train/good/000.png").resize((160, 144)).save(folder / "normal.png")
    mask = np.zeros((144, 160), np.uint8)
    mask[40:70, 90:120] = 255
    Image.fromarray(mask).save(folder / "mask.png")
    return {
        "image": folder / "normal.png",
        "mask": folder / "mask.png",
        "reference_image": wood / "test/crack/000.png",
        "reference_mask": wood / "ground_truth/crack/000_mask.png",
    }


@pytest.mark.parametrize("blend", ["feather", "poisson"])
def test_the_bytes_are_those_of_launch_generate(
    pipe: AnomalyControlPipeline,
    files: dict[str, Path],
    built_in_data: Path,
    tmp_path: Path,
    blend: str,
) -> None:
    request = {
        "category": "wood",
        "defect": "crack",
        "normal": str(files["image"]),
        **{name: str(file) for name, file in files.items() if name != "image"},
        "reference_phrase": "a crack",
        "seed": 7,
        "crop": 3,
        "scale": 1.5,
    }
    (tmp_path / "requests.jsonl").write_text(json.dumps(request) + "\n")
    out = tmp_path / "out"
    args = ["--model", built_in_adapter(), "--data", built_in_data, "--out", out]
    args += ["--requests", tmp_path / "requests.jsonl", "--steps", 2, "--gate", "off"]
    generate.run([str(arg) for arg in [*args, "--blend", blend]])
    expected = np.asarray(Image.open(out / "wood/test/crack/000.png"))
    settings = {"seed": 7, "crop": 3, "scale": 1.5, "steps": 2, "blend": blend}
    words = {"reference_phrase": "a crack", "product": "wood"}
    drawn = acontrol.draw_defect(pipe, **files, **words, **settings)
    assert np.array_equal(np.asarray(drawn), expected)
    opened = {name: Image.open(file) for name, file in files.items()}
    again = acontrol.draw_defect(pipe, **opened, **words, **settings)
    assert np.array_equal(np.asarray(again), expected)
    outside = ~np.asarray(opened["mask"]).astype(bool)
    normal = np.asarray(opened["image"])
    assert np.array_equal(expected[outside], normal[outside])
    assert not np.array_equal(expected[~outside], normal[~outside])
    other = acontrol.draw_defect(pipe, **files, **words, **settings | {"seed": 8})
    assert not np.array_equal(np.asarray(other), expected)


def test_a_slip_is_named(pipe: AnomalyControlPipeline, files: dict[str, Path]) -> None:
    words = {"reference_phrase": "a crack", "product": "wood"}
    with pytest.raises(ValueError, match="either product or prompt"):
        acontrol.draw_defect(pipe, **files, **words, prompt="a photo")
    with pytest.raises(ValueError, match="steps"):
        acontrol.draw_defect(pipe, **files, **words, steps=0)
    with pytest.raises(UserError, match="the mask is 64 x 64 pixels"):
        acontrol.draw_defect(pipe, **files | {"mask": files["reference_mask"]}, **words)
