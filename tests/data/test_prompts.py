import json
from pathlib import Path
from typing import Any

import pytest

from acontrol.data.prompts import (
    Captions,
    load_phrases,
    phrase,
    read_caption,
    target_text,
    wording_note,
)
from acontrol.errors import UserError

IDS = ("000", "001", "002")


def test_words_that_are_only_a_folder_name_are_noted() -> None:
    def row(defect: str, own: str) -> tuple[str, str, str]:
        return defect, own, target_text("tile", own)

    rows = [row("uneven", "uneven"), row("uneven", "uneven"), row("gray_stroke", "gray stroke")]
    note = wording_note([row("crack", "a crack"), *rows]) or ""
    assert note.startswith("2 defects have only the folder's name as words, as in 'a photo of")
    assert "tile with uneven" in note
    assert 'CATEGORY/prompt/phrases.json, as {"uneven": "..."}' in note
    assert wording_note([row("crack", "a crack"), row("bad", "a defect")]) is None
    assert wording_note([("uneven", "uneven", "my own sentence")]) is None


def write(path: Path, value: Any) -> Path:
    path.write_text(value if isinstance(value, str) else json.dumps(value), encoding="utf-8")
    return path


@pytest.mark.parametrize(
    ("folder", "words"),
    [
        ("broken_large", "broken large"),
        ("bentLead", "bent lead"),
        ("cut-outer.insulation", "cut outer insulation"),
        ("PCBCrack", "pcb crack"),
        ("__hole__", "hole"),
        ("faulty_imprint", "faulty imprint"),
        ("pill_type", "pill type"),
        ("scratch_02", "scratch 02"),
        ("type2crack", "type2crack"),
    ],
)
def test_phrase_is_the_folder_name_in_words(folder: str, words: str) -> None:
    assert phrase(folder) == words


@pytest.mark.parametrize(
    "folder",
    [
        *("defect", "defective", "Defects", "bad", "BAD", "ng", "NG", "nok", "anomaly"),
        *("anomalous", "abnormal", "fault", "not_ok", "defect_01", "defect1", "type.2"),
        *("error", "failed", "faulty", "flaw", "ko", "other", "rejected", "unknown"),
        *("3", "0-1", "_"),
    ],
)
def test_a_name_that_says_nothing_is_a_defect(folder: str) -> None:
    assert phrase(folder) == "a defect"


@pytest.mark.parametrize("folder", ["combined", "Combined", "combined_defects"])
def test_combined_is_several_defects(folder: str) -> None:
    assert phrase(folder) == "several defects"


@pytest.mark.parametrize(
    ("category", "words"), [("metal_nut", "metal nut"), ("metalNut", "metal nut"), ("_", "_")]
)
def test_target_text_names_the_category_in_words(category: str, words: str) -> None:
    assert target_text(category, "a crack") == f"a photo of {words} with a crack"


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (" One for all ", dict.fromkeys(IDS, "One for all")),
        (["zero", "one", "two"], {"000": "zero", "001": "one", "002": "two"}),
        (["zero", " ", "two"], {"000": "zero", "002": "two"}),
        ({"001": "one", "777": "of another image"}, {"001": "one"}),
        ("", {}),
    ],
)
def test_captions_come_as_one_a_list_or_by_id(
    tmp_path: Path, value: Any, expected: dict[str, str]
) -> None:
    captions = Captions.load(write(tmp_path / "c.json", {"nut": {"bent": value}}))
    assert captions.sentences("nut", "bent", IDS) == expected
    assert captions.sentences("nut", "flip", IDS) == {}
    assert captions.sentences("pill", "bent", IDS) == {}


def test_a_list_follows_the_sorted_ids(tmp_path: Path) -> None:
    captions = Captions.load(write(tmp_path / "c.json", {"nut": {"bent": ["a", "b", "c"]}}))
    sentences = captions.sentences("nut", "bent", ("002", "000", "001"))
    assert sentences == {"000": "a", "001": "b", "002": "c"}


def test_a_byte_order_mark_is_no_part_of_the_text(tmp_path: Path) -> None:
    (tmp_path / "c.json").write_bytes(b'\xef\xbb\xbf{"nut": {"bent": "\xc3\xa9"}}')
    captions = Captions.load(tmp_path / "c.json")
    assert captions.sentences("nut", "bent", ["000"]) == {"000": "\u00e9"}


@pytest.mark.parametrize("count", [2, 4])
def test_a_list_of_another_length_is_refused(tmp_path: Path, count: int) -> None:
    file = write(tmp_path / "c.json", {"nut": {"bent": ["x"] * count}})
    with pytest.raises(UserError) as caught:
        Captions.load(file).sentences("nut", "bent", IDS)
    assert f"{file}: nut: bent: {count} captions for 3 images" in str(caught.value)


@pytest.mark.parametrize(
    ("content", "place"),
    [
        ('{\n "nut": {"bent": "x",}}', "line 2, column "),
        ("", "line 1, column 1: not valid JSON"),
        ("[" * 100_000, "not valid JSON"),
        ([], "need an object, got []"),
        ({"nut": "bent"}, 'nut: need an object, got "bent"'),
        ({"nut": {"bent": 7}}, "nut: bent: got 7"),
        ({"nut": {"bent": None}}, "nut: bent: got null"),
        ({"nut": {"bent": ["x", 7]}}, "nut: bent[1]: got 7"),
        ({"nut": {"bent": {"004": ["x"]}}}, 'nut: bent: 004: got ["x"]'),
    ],
)
def test_malformed_captions_are_refused_at_their_place(
    tmp_path: Path, content: Any, place: str
) -> None:
    file = write(tmp_path / "c.json", content)
    with pytest.raises(UserError) as caught:
        Captions.load(file)
    assert str(caught.value).startswith(f"{file}: ")
    assert place in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_missing_captions_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"c\.json: cannot be read \(No such file"):
        Captions.load(tmp_path / "c.json")


def test_phrases_are_read_when_present(tmp_path: Path) -> None:
    file = tmp_path / "phrases.json"
    assert load_phrases(file) == {}
    write(file, {"spots/000": " red spots", "spots": "spots", "crack": " "})
    assert load_phrases(file) == {"spots/000": "red spots", "spots": "spots"}


@pytest.mark.parametrize(
    ("content", "place"),
    [
        ("{", "line 1, column 2"),
        (["spots"], 'need an object, got ["spots"]'),
        ({"spots/000": ["red"]}, 'spots/000: got ["red"]'),
        ({"spots": "x" * 9, "crack": {"000": "y" * 99}}, 'crack: got {"000": "yyy'),
    ],
)
def test_malformed_phrases_are_refused_at_their_place(
    tmp_path: Path, content: Any, place: str
) -> None:
    file = write(tmp_path / "phrases.json", content)
    with pytest.raises(UserError) as caught:
        load_phrases(file)
    assert f"{file}: {place}" in str(caught.value)
    assert len(str(caught.value)) < len(str(file)) + 120


def test_a_caption_file_is_stripped_and_may_be_missing(tmp_path: Path) -> None:
    assert read_caption(tmp_path / "000.txt") == ""
    assert read_caption(write(tmp_path / "000.txt", "\n A nut. \n")) == "A nut."
    assert read_caption(write(tmp_path / "000.txt", " \n")) == ""


def test_a_caption_file_that_is_not_utf8_is_refused(tmp_path: Path) -> None:
    (tmp_path / "000.txt").write_bytes(b"\xe9")
    with pytest.raises(UserError, match=r"000\.txt: is not UTF-8"):
        read_caption(tmp_path / "000.txt")
