import json
from pathlib import Path
from typing import Any

import pytest

from acontrol.data.reader import ShardReader
from acontrol.data.train_list import read_train_list
from acontrol.errors import UserError
from launch import shard

ENTRY = {
    "image_file": "wood/test/crack/001.png",
    "mask_file": "wood/ground_truth/crack/001_mask.png",
    "text": "a wood with a long crack",
    "subject_text": "crack",
}
OTHER = {
    "image_file": "button/test/stain/000.png",
    "mask_file": "button/ground_truth/stain/000_mask.png",
    "text": " ",
}


def write(path: Path, entries: Any) -> Path:
    path.write_text(json.dumps(entries))
    return path


def test_a_list_says_what_and_with_which_words(built_in_data: Path, tmp_path: Path) -> None:
    first, second = read_train_list(
        built_in_data, write(tmp_path / "list.json", [ENTRY, OTHER])
    )
    assert (first.key, first.caption, first.phrase) == (
        "wood/crack/001",
        ENTRY["text"],
        "crack",
    )
    assert first.image == built_in_data / ENTRY["image_file"]
    assert first.mask == built_in_data / ENTRY["mask_file"]
    # Empty words fall back to the defaults.
    assert (second.caption, second.phrase) == ("a photo of button with stain", "stain")


def test_shards_hold_just_the_list(built_in_data: Path, tmp_path: Path) -> None:
    listed = write(tmp_path / "list.json", [ENTRY, OTHER])
    shard.run([str(built_in_data), "--out", str(tmp_path / "s"), "--train-list", str(listed)])
    reader = ShardReader(str(tmp_path / "s"), None)
    assert reader.index.split == "all"
    keys = {sample.key for _, sample in reader.places}
    assert keys == {"wood/crack/001", "button/stain/000"}
    captions = {reader.read(number).caption for number in range(2)}
    assert captions == {ENTRY["text"], "a photo of button with stain"}


@pytest.mark.parametrize(
    ("entries", "words"),
    [
        ({}, "need a list of objects"),
        ([], "need a list of objects"),
        ([ENTRY, 3], "entry 1: need an object, got 3"),
        ([{**ENTRY, "text": None}], "entry 0: text is null, need a text"),
        ([{**ENTRY, "subject_text": 5}], "entry 0: subject_text is 5"),
        ([{**ENTRY, "image_file": "crack/001.png"}], "need <category>/.../<defect>/<id>.png"),
        ([{**ENTRY, "image_file": "wood/test/crack/9.png"}], "9.png is missing"),
        ([{**ENTRY, "mask_file": "../m.png"}], "../m.png is not under"),
        ([{**ENTRY, "image_file": "/etc/passwd"}], "/etc/passwd is not under"),
        ([ENTRY, ENTRY], "names wood/crack/001 twice"),
    ],
)
def test_a_bad_list_is_one_line(
    built_in_data: Path, tmp_path: Path, entries: Any, words: str
) -> None:
    with pytest.raises(UserError) as caught:
        read_train_list(built_in_data, write(tmp_path / "list.json", entries))
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


def test_no_list_is_one_line(built_in_data: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="cannot be read"):
        read_train_list(built_in_data, tmp_path / "no.json")
    (tmp_path / "list.json").write_text("{")
    with pytest.raises(UserError, match="not valid JSON"):
        read_train_list(built_in_data, tmp_path / "list.json")
