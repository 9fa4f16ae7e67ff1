"""Annotations of other formats, imported and read again as a data set."""

import importlib
import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from acontrol.data.listing import by_id
from acontrol.data.mvtec import open_folder
from acontrol.errors import UserError
from launch import shard
from tests.data.annotated import (
    DRAWN,
    SCRATCH,
    SOURCES,
    box,
    class_masks,
    coco,
    defect_of,
    labelme,
    photograph,
    voc,
)

importer = importlib.import_module("launch.import")


def run(*args: object) -> None:
    importer.run([str(arg) for arg in args])


def refusal(*args: object) -> str:
    with pytest.raises(UserError) as caught:
        run(*args)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def masks_of(root: Path) -> dict[str, np.ndarray]:
    """The mask of each defect and id."""
    return {
        f"{row.defect}/{row.id}": row.read_mask() for row in open_folder(root).labelled("all")
    }


@pytest.mark.parametrize("kind", SOURCES)
def test_a_source_is_imported_and_read_again(
    kind: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    name, build, more = SOURCES[kind]
    source = tmp_path / "nut"
    source.mkdir()
    build(source)
    out = tmp_path / "out"
    run(name, source, "--out", out, *more)
    printed = capsys.readouterr()
    assert printed.err == ""
    expected = {
        f"{defect_of(classes)}/{number}": np.logical_or.reduce([*classes.values()])
        for number, classes in DRAWN.items()
        if classes
    }
    masks = masks_of(out)
    assert masks.keys() == expected.keys()
    for key, mask in masks.items():
        assert (mask == expected[key]).all(), key
    good = open_folder(out).normals("nut")
    assert [path.stem.partition("__")[0] for path in good] == (
        ["004", "validation"] if kind == "loco" else ["004"]
    )
    originals = {path.read_bytes() for path in source.rglob("*") if path.is_file()}
    copies = [path for part in ("train", "test") for path in (out / "nut" / part).rglob("*.*")]
    assert len(copies) == (7 if kind == "loco" else 5)
    assert all(path.read_bytes() in originals for path in copies)
    shard.run([str(out), "--dry-run", "--split", "all"])
    printed = capsys.readouterr()
    assert "dry run: 4 samples" in printed.out
    notes = printed.err.splitlines()
    assert all("only the folder's name as words" in note for note in notes)
    before = sorted((path, path.stat().st_mtime_ns) for path in out.rglob("*"))
    run(name, source, "--out", out, *more)
    assert f"Nothing to do: {out / 'nut'} is complete" in capsys.readouterr().out
    assert sorted((path, path.stat().st_mtime_ns) for path in out.rglob("*")) == before


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """labelme's files."""
    (tmp_path / "nut").mkdir()
    labelme(tmp_path / "nut")
    return tmp_path / "nut"


def shapes(source: Path, name: str, *drawn: Mapping[str, Any]) -> None:
    """Replace what is drawn on an image."""
    file = source / f"{name}.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"shapes": drawn}))


def test_the_report_counts_and_says_the_rule_for_several_classes(
    source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run("labelme", source, "--dry-run")
    printed = capsys.readouterr().out
    assert "test/scratch                 2 images, 2 masks" in printed
    assert "combined: images of several classes (1 of dent + scratch)" in printed
    assert "dry run: 5 images would be imported; nothing written" in printed
    assert not list(tmp_path.glob("*/import.json"))


BOX = {"label": "scratch", "shape_type": "rectangle", "points": [[3, 2], [8, 6]]}


def test_boxes_are_left_out_counted_and_listed_or_filled_if_asked_for(
    source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shapes(source, "000", BOX)
    outline = json.loads((source / "001.json").read_text())["shapes"][0]
    shapes(source, "001", BOX | {"points": [[10, 2], [12, 6]]}, outline)
    run("labelme", source, "--out", tmp_path / "out")
    printed = capsys.readouterr().out
    assert "left out: 1 image with boxes alone" in printed
    assert "left out: 1 image with boxes beside outlines" in printed
    assert {*masks_of(tmp_path / "out")} == {"combined/002", "dent/003"}
    record = json.loads((tmp_path / "out/nut/import.json").read_text())
    listed = {row["source"]: row["boxes"] for row in record["left_out"]}
    assert listed["000.jpg"] == [{"label": "scratch", "x": 3, "y": 2, "width": 5, "height": 4}]
    run("labelme", source, "--out", tmp_path / "filled", "--boxes-as-masks")
    assert "2 boxes are filled: these masks hold good pixels too" in capsys.readouterr().out
    assert (masks_of(tmp_path / "filled")["scratch/000"] == box(3, 2, 8, 6)).all()


def test_lines_are_left_out_or_drawn_as_wide_as_asked_for(
    source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    line = {"label": "crack", "shape_type": "linestrip", "points": [[3, 4], [15, 4]]}
    shapes(source, "000", line)
    run("labelme", source, "--out", tmp_path / "out")
    assert "left out: 1 image with lines" in capsys.readouterr().out
    run("labelme", source, "--out", tmp_path / "drawn", "--line-width", "3")
    mask = masks_of(tmp_path / "drawn")["crack/000"]
    assert mask.any(1).sum() == 3 and 12 <= mask.any(0).sum() <= 16


def test_a_circle_is_filled(source: Path, tmp_path: Path) -> None:
    shape = {"label": "pore", "shape_type": "circle", "points": [[10, 7], [14, 7]]}
    shapes(source, "000", shape)
    run("labelme", source, "--out", tmp_path / "out")
    assert abs(masks_of(tmp_path / "out")["pore/000"].sum() - np.pi * 16) < 4


def test_an_image_without_annotation_is_good_only_if_something_says_it(
    source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (source / "003.json").unlink()
    message = refusal("labelme", source, "--out", tmp_path / "out")
    assert "003.jpg: has no annotation" in message and "--unmarked good" in message
    assert not (tmp_path / "out").exists()
    run("labelme", source, "--out", tmp_path / "less", "--unmarked", "leave-out")
    assert "left out: 1 image with no annotation" in capsys.readouterr().out
    assert len(open_folder(tmp_path / "less").normals("nut")) == 1
    run("labelme", source, "--out", tmp_path / "out", "--unmarked", "good")
    assert len(open_folder(tmp_path / "out").normals("nut")) == 2
    (source / "good").mkdir()
    (source / "003.jpg").rename(source / "good/003.jpg")
    run("labelme", source, "--out", tmp_path / "told")
    assert len(open_folder(tmp_path / "told").normals("nut")) == 2


def test_equal_names_in_several_folders_stay_apart(source: Path, tmp_path: Path) -> None:
    shutil.copytree(source, source / "day2")
    photograph(source / "day2/000.jpg")
    run("labelme", source, "--out", tmp_path / "out")
    files = by_id(tmp_path / "out/nut/test/scratch")
    assert sorted(files) == ["000", "001", "day2__000", "day2__001"]
    assert files["day2__000"].read_bytes() == (source / "day2/000.jpg").read_bytes()
    assert files["000"].read_bytes() == (source / "000.jpg").read_bytes()


def test_classes_are_renamed_and_ignored(
    source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    more = ("--classes", "scratch=line,none=x", "--ignore", "dent")
    run("labelme", source, "--out", tmp_path / "out", *more)
    assert {*masks_of(tmp_path / "out")} == {"line/000", "line/001", "line/002"}
    # Looked at, and of its classes none is a defect.
    assert [path.stem for path in open_folder(tmp_path / "out").normals("nut")] == [
        "003",
        "004",
    ]
    assert "note: no annotation is of the class 'none'" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["good", "a/b", "..", ".hidden", "", "x" * 200, "a\nb"])
def test_a_class_that_cannot_name_a_folder_needs_a_name(
    source: Path, tmp_path: Path, name: str
) -> None:
    shapes(source, "000", {"label": name, "points": [[1, 1], [9, 1], [9, 9]]})
    message = refusal("labelme", source, "--out", tmp_path / "out", "--skip-bad")
    assert "--classes" in message and "--ignore" in message
    assert not (tmp_path / "out").exists()


def test_classes_that_differ_only_in_case_are_refused(source: Path, tmp_path: Path) -> None:
    shapes(source, "000", {"label": "Scratch", "points": [[1, 1], [9, 1], [9, 9]]})
    message = refusal("labelme", source, "--out", tmp_path / "out")
    assert "'Scratch' and 'scratch' differ only in case" in message


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"points": [[1, 1], [2, 2]]}, "needs three points"),
        ({"points": [[1, 1], [2, 1], [3, 1]]}, "holds no pixel"),
        ({"points": [[1, 1], [9e9, 1], [3, 9]]}, "far outside the image"),
        ({"points": [[1, 1], [float("nan"), 1], [3, 9]]}, "shapes.0.points.1.0"),
        ({"shape_type": "star"}, "shape_type 'star' is not known"),
        ({"shape_type": "mask", "mask": "????"}, "cannot be decoded"),
        ({"label": 3}, "shapes.0.label"),
    ],
)
def test_a_bad_shape_is_one_line_that_says_where(
    source: Path,
    tmp_path: Path,
    change: dict[str, object],
    words: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    shapes(source, "000", {"label": "scratch", "points": [[1, 1], [9, 1], [9, 9]]} | change)
    message = refusal("labelme", source, "--out", tmp_path / "out")
    assert f"{source / '000.json'}: " in message and words in message
    assert not (tmp_path / "out").exists()
    run("labelme", source, "--out", tmp_path / "out", "--skip-bad")
    printed = capsys.readouterr()
    assert f"left out: {message}" in printed.err
    assert "left out: 1 image with an error" in printed.out
    assert "scratch/001" in masks_of(tmp_path / "out")


def test_an_image_that_viewers_turn_is_refused_as_everywhere(
    source: Path, tmp_path: Path
) -> None:
    with Image.open(source / "000.jpg") as image:
        exif = image.getexif()
        exif[0x0112] = 6
        image.save(source / "000.jpg", exif=exif)
    assert "EXIF orientation 6" in refusal("labelme", source, "--out", tmp_path / "out")


def test_an_annotation_of_another_size_is_refused(source: Path, tmp_path: Path) -> None:
    Image.new("RGB", (40, 28)).save(source / "000.jpg")
    message = refusal("labelme", source, "--out", tmp_path / "out")
    assert "was drawn on 20 x 14 pixels, and its image has 40 x 28" in message


def test_a_changed_source_or_command_does_not_pass_for_the_same(
    source: Path, tmp_path: Path
) -> None:
    run("labelme", source, "--out", tmp_path / "out")
    message = refusal("labelme", source, "--out", tmp_path / "out", "--ignore", "dent")
    assert "was imported with other settings" in message
    shapes(source, "000")
    message = refusal("labelme", source, "--out", tmp_path / "out")
    assert "was imported before its files changed" in message
    run("labelme", source, "--out", tmp_path / "out", "--category", "bolt")
    assert open_folder(tmp_path / "out").categories == ("bolt", "nut")


def test_an_output_in_the_source_is_refused(source: Path) -> None:
    assert "is inside SOURCE" in refusal("labelme", source, "--out", source / "out")


@pytest.mark.parametrize("name", ["../secret.png", "/etc/passwd", "..\\secret.png", "a\0.png"])
def test_an_image_outside_the_source_is_not_read(tmp_path: Path, name: str) -> None:
    photograph(tmp_path / "secret.png")
    coco(tmp_path / "nut")
    file = tmp_path / "nut/annotations/instances_default.json"
    content = json.loads(file.read_text())
    content["images"][1]["file_name"] = name
    file.write_text(json.dumps(content))
    words = "is no file's name" if "\0" in name else "leads out of"
    assert words in refusal("coco", tmp_path / "nut", "--out", tmp_path / "out")


@pytest.mark.parametrize(
    ("part", "change", "words"),
    [
        ("annotations", {"image_id": 77}, "is of image 77, which the file does not list"),
        ("annotations", {"category_id": 77}, "is of category 77"),
        (
            "annotations",
            {"segmentation": {"size": [9, 9], "counts": "0"}},
            "its size is (9, 9)",
        ),
        (
            "annotations",
            {"segmentation": {"size": [14, 20], "counts": [1, 2]}},
            "its runs cover 3 pixels of 20 x 14 = 280",
        ),
        ("annotations", {"segmentation": {"size": [14, 20], "counts": "P"}}, "cut off"),
        ("annotations", {"segmentation": [[1, 1, 2]]}, "odd number of coordinates"),
        ("annotations", {"segmentation": [], "bbox": []}, "neither an outline nor a box"),
        ("images", {"id": 1}, "lists two images of id 1"),
        ("images", {"file_name": "001.png"}, "lists 001.png twice"),
        ("images", {"file_name": "gone.png"}, "is in none of"),
        ("images", {"width": 10}, "lists 000.png with 10 x 14 pixels"),
    ],
)
def test_a_wrong_coco_file_is_one_line(
    tmp_path: Path, part: str, change: dict[str, object], words: str
) -> None:
    coco(tmp_path / "nut")
    file = tmp_path / "nut/annotations/instances_default.json"
    content = json.loads(file.read_text())
    content[part][0] |= change
    file.write_text(json.dumps(content))
    assert words in refusal("coco", file, "--out", tmp_path / "out", "--category", "nut")
    assert not (tmp_path / "out").exists()


def test_boxes_of_voc_are_read_where_there_is_no_mask(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = tmp_path / "nut"
    voc(root)
    (root / "SegmentationClass/000.png").unlink()
    (root / "Annotations").mkdir()
    corner = "<xmin>3</xmin><ymin>2</ymin><xmax>8</xmax><ymax>6</ymax>"
    thing = f"<object><name>scratch</name><bndbox>{corner}</bndbox></object>"
    (root / "Annotations/000.xml").write_text(f"<annotation>{thing}</annotation>")
    run("voc-masks", root, "--out", tmp_path / "out")
    assert "left out: 1 image with boxes alone" in capsys.readouterr().out
    record = json.loads((tmp_path / "out/nut/import.json").read_text())
    box = {"label": "scratch", "x": 2, "y": 1, "width": 6, "height": 5}
    assert record["left_out"][0]["boxes"] == [box]
    entity = "<!DOCTYPE a [<!ENTITY b 'c'>]>"
    (root / "Annotations/000.xml").write_text(f"{entity}<annotation/>")
    message = refusal("voc-masks", root, "--out", tmp_path / "other")
    assert "declares entities" in message


def test_unknown_pixels_of_voc_count_as_good_and_are_reported(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    voc(tmp_path / "nut")
    file = tmp_path / "nut/SegmentationClass/000.png"
    with Image.open(file) as image:
        mask = np.array(image)
    mask[0] = 255
    Image.fromarray(mask).save(file)
    run("voc-masks", tmp_path / "nut", "--out", tmp_path / "out")
    assert "1 mask has pixels marked as unknown (255)" in capsys.readouterr().out
    assert (masks_of(tmp_path / "out")["scratch/000"] == SCRATCH).all()


def test_levels_without_names_are_named_by_level_and_masks_of_edges_refused(
    tmp_path: Path,
) -> None:
    class_masks(tmp_path / "nut")
    run("class-masks", tmp_path / "nut", "--out", tmp_path / "out")
    assert "class-1/000" in masks_of(tmp_path / "out")
    with Image.open(tmp_path / "nut/masks/000.png") as image:
        image.convert("L").save(tmp_path / "nut/masks/000.jpg")
    (tmp_path / "nut/masks/000.png").unlink()
    message = refusal("class-masks", tmp_path / "nut", "--out", tmp_path / "other")
    assert "000.jpg: the mask is a JPEG" in message
    ramp = np.arange(280, dtype=np.uint16).reshape(14, 20).astype(np.uint8)
    Image.fromarray(ramp).save(tmp_path / "nut/masks/000.png")
    message = refusal("class-masks", tmp_path / "nut", "--out", tmp_path / "other")
    assert "000.png: the mask has 255 levels or colours, which are no classes" in message
