"""A requests file: everything that can be wrong in it is told with its line, first."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from acontrol.data.mvtec import open_folder
from acontrol.errors import UserError
from acontrol.generation.request import read_requests
from tests.launch.test_generate import generate_into, lines_of

GOOD = {"category": "wood", "defect": "crack"}
LONG = "very " * 600 + "long crack"


def bad_files(folder: Path, normal: Path) -> None:
    height, width = np.asarray(Image.open(normal)).shape[:2]
    blank = np.zeros((height, width), np.uint8)
    Image.fromarray(blank).save(folder / "empty.png")
    Image.fromarray(blank[:9, :9] + 255).save(folder / "small.png")
    (folder / "broken.png").write_bytes(b"no image")


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("{", "not JSON"),
        ("[1]", "need a JSON object"),
        ('{"category": "wood"}', "defect: Field required"),
        (GOOD | {"gama": 1}, "gama: Extra inputs"),
        (GOOD | {"scale": 11}, "scale: Input should be less than or equal to 10, got 11"),
        (GOOD | {"asea_steps": -1}, "asea_steps: Input should be greater"),
        (GOOD | {"count": 0}, "count: Input should be greater"),
        (GOOD | {"count": "3"}, "count: Input should be a valid integer, got '3'"),
        (GOOD | {"seed": -1}, "seed: Input should be greater"),
        (GOOD | {"guidance_scale": 0.5}, "guidance_scale: Input should be greater"),
        (GOOD | {"steps": 2.5}, "steps: Input should be a valid integer"),
        (GOOD | {"masks": "drawn"}, "masks: Input should be 'real'"),
        (GOOD | {"category": "../up"}, "category: String should match"),
        (GOOD | {"defect": "a/b"}, "defect: String should match"),
        (GOOD | {"category": "glass"}, "no category 'glass'"),
        (GOOD | {"defect": "rust"}, "no reference wood/rust"),
        (GOOD | {"reference": "wood/crack/999"}, "no reference wood/crack/999"),
        (GOOD | {"reference": "crack"}, "reference: String should match"),
        (GOOD | {"normal": "missing.png"}, "missing.png: does not exist"),
        (GOOD | {"normal": "broken.png"}, "broken.png: is not a PNG"),
        (GOOD | {"mask": "small.png"}, "a mask is for one normal image"),
        (GOOD | {"normal": "@", "mask": "small.png"}, "small.png: the mask is 9 x 9 pixels"),
        (GOOD | {"normal": "@", "mask": "empty.png"}, "empty.png: the mask is empty"),
        (GOOD | {"normal": "@", "mask": "empty.png", "masks": "real"}, "mask or masks"),
        (GOOD | {"reference_image": "@"}, "need each other"),
        (GOOD | {"reference_image": "@", "reference_mask": "small.png"}, "small.png"),
        (GOOD | {"reference": "wood/crack/000", "reference_category": "tile"}, "one of"),
        (GOOD | {"reference_phrase": LONG}, "too long"),
        (GOOD | {"masks": "file"}, "--masks-path DIR"),
    ],
)
def test_a_bad_line_is_told_and_nothing_is_written(
    line, words, built_in_data, tmp_path
) -> None:
    normal = open_folder(built_in_data).normals("wood")[0]
    bad_files(tmp_path, normal)
    text = line if isinstance(line, str) else json.dumps(line)
    text = text.replace('"@"', json.dumps(str(normal)))
    file = tmp_path / "requests.jsonl"
    file.write_text(f"{json.dumps(GOOD)}\n\n{text}\n")
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(UserError) as caught:
        generate_into(tmp_path / "out", built_in_data, "--requests", file)
    message = str(caught.value)
    assert message.startswith(f"{file}:3: ")
    assert words in message
    assert "\n" not in message
    assert sorted(tmp_path.rglob("*")) == before


def test_what_a_line_asks_for_is_what_is_drawn(built_in_data, tmp_path) -> None:
    folder = open_folder(built_in_data)
    other = folder.labelled("all", "button")[0]
    normal = folder.normals("wood")[0]
    asked = [
        GOOD | {"count": 2, "seed": 5, "scale": 0.5, "steps": 3, "prompt": "a cracked board"},
        GOOD
        | {
            "defect": "blotch",
            "normal": str(normal),
            "masks": "perlin",
            "reference_image": str(other.image),
            "reference_mask": str(other.mask),
            "reference_phrase": "a dark stain",
            "asea_steps": 0,
            "crop": 2,
        },
    ]
    file = tmp_path / "requests.jsonl"
    file.write_text("\n".join(map(json.dumps, asked)))
    generate_into(tmp_path / "out", built_in_data, "--requests", file)
    first, second, third = lines_of(tmp_path / "out")
    assert (first["image"], second["image"]) == (
        "wood/test/crack/000.png",
        "wood/test/crack/001.png",
    )
    assert first["prompt"] == second["prompt"] == "a cracked board"
    assert first["sampling"]["scale"] == 0.5
    assert first["sampling"]["steps"] == 3
    assert first["seed"] != second["seed"]
    assert third["image"] == "wood/test/blotch/000.png"
    assert third["normal"] == "wood/train/good/000.png"
    assert third["reference_phrase"] == "a dark stain"
    assert third["mask_source"] == "perlin"
    assert third["sampling"]["asea_steps"] == 0
    assert third["scores"]["distance"] is None
    assert third["batch"] != first["batch"], "other settings cannot share a batch"


def test_a_seed_draws_the_same_wherever_its_line_is(built_in_data, tmp_path) -> None:
    line = json.dumps(GOOD | {"seed": 9})
    for name, text in (("a", line), ("b", f"{json.dumps(GOOD)}\n{line}")):
        (tmp_path / f"{name}.jsonl").write_text(text)
        more = ("--requests", tmp_path / f"{name}.jsonl", "--batch-size", 1)
        generate_into(tmp_path / name, built_in_data, *more)
    one, other = lines_of(tmp_path / "a")[0], lines_of(tmp_path / "b")[1]
    same = [
        (tmp_path / run / line["image"]).read_bytes()
        for run, line in (("a", one), ("b", other))
    ]
    assert same[0] == same[1]


def test_a_file_of_a_windows_editor_is_read(tmp_path: Path) -> None:
    """With a byte-order mark and carriage returns."""
    file = tmp_path / "requests.jsonl"
    file.write_bytes(f"\ufeff{json.dumps(GOOD)}\r\n{json.dumps(GOOD)}\r\n".encode())
    assert [where for where, _ in read_requests(file)] == [f"{file}:1", f"{file}:2"]
