"""Other people's folders: what is read, what is named, what is never lost in silence."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from acontrol.data.left_out import notes, unused_captions
from acontrol.data.listing import numbered
from acontrol.data.mvtec import open_folder
from acontrol.errors import UserError
from launch import shard

RNG = np.random.default_rng(0)
IMAGE = RNG.integers(0, 256, (12, 16, 3), dtype=np.uint8)
MASK = np.zeros((12, 16), np.uint8)
MASK[3:6, 4:9] = 255


def save(path: Path, pixels: np.ndarray = IMAGE) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)
    return path


def fill(category: Path, defect: str = "bent", count: int = 3) -> Path:
    save(category / "train/good/000.png")
    for number in range(count):
        save(category / f"test/{defect}/{number:03d}.png")
        save(category / f"ground_truth/{defect}/{number:03d}_mask.png", MASK)
    return category


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """One category, nut, with three bent ones."""
    fill(tmp_path / "set/nut")
    return tmp_path / "set"


def refusal(call: Callable[[], object]) -> str:
    with pytest.raises(UserError) as caught:
        call()
    assert "\n" not in str(caught.value)
    return str(caught.value)


def dry_run(root: Path, *args: str) -> None:
    shard.run([str(root), "--dry-run", *args])


@pytest.mark.parametrize(
    "name",
    (
        *("@eaDir", "#recycle", "@Recycle", "__MACOSX", "$RECYCLE.BIN", ".ipynb_checkpoints"),
        *("System Volume Information", "lost+found", "@Recently-Snapshot"),
    ),
)
def test_a_systems_own_folders_are_nowhere_seen(root: Path, name: str) -> None:
    for place in ("", "nut/test", "nut/test/bent", "nut/train/good", "nut/ground_truth/bent"):
        save(root / place / name / "000.png")
        save(root / place / name / "test/good/000.png")
    (root / "nut/test/bent/Thumbs.db").touch()
    (root / "nut/test/bent/desktop.ini").touch()
    folder = open_folder(root)
    assert (folder.categories, folder.defect_types("nut")) == (("nut",), ("bent",))
    assert len(folder.labelled("all")) == 3
    assert notes(folder) == []


@pytest.mark.parametrize("suffix", ["webp", "gif", "jp2", "HEIC"])
def test_a_picture_that_is_not_read_stops_or_counts_for_the_thirds(
    root: Path, suffix: str, capsys: pytest.CaptureFixture[str]
) -> None:
    first = root / "nut/test/bent/000.png"
    other = first.rename(first.with_suffix(f".{suffix}"))
    for split in ("train", "test", "all"):
        message = refusal(lambda split=split: open_folder(root).labelled(split))
        assert message == f"{other}: .{suffix} is not read; save it as PNG, or remove it"
    dry_run(root, "--split", "test", "--skip-bad")
    assert "nut/bent: 2" in capsys.readouterr().out
    dry_run(root, "--split", "all", "--skip-bad")
    printed = capsys.readouterr()
    assert f"left out: {message}" in printed.err and "left out 1 of 3 images" in printed.err
    save(first)  # Read instead, so that nothing is lost.
    assert len(open_folder(root).labelled("all")) == 3
    (note,) = notes(open_folder(root))
    assert note.startswith("1 file of other suffixes is not read") and str(other) in note


def test_a_normal_image_that_is_not_read_is_named(root: Path) -> None:
    (root / "nut/train/good/001.webp").touch()
    assert "001.webp: .webp is not read" in refusal(lambda: open_folder(root).normals("nut"))


def test_images_in_a_sub_folder_stop_or_count_for_the_thirds(
    root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (root / "nut/test/bent/day1").mkdir()
    inner = (root / "nut/test/bent/000.png").rename(root / "nut/test/bent/day1/000.png")
    message = refusal(lambda: dry_run(root))
    assert message.startswith(f"{inner}: lies in a sub-folder of") and "move it up" in message
    dry_run(root, "--split", "all", "--skip-bad")
    assert "left out 1 of 3 images" in capsys.readouterr().err
    test = open_folder(root).labelled("test", left_out=[])
    assert [image.id for image in test] == ["001", "002"]


def test_good_images_and_twins_in_sub_folders_are_counted(root: Path) -> None:
    save(root / "nut/train/good/day1/001.png")
    save(root / "nut/test/bent/small/000.png")
    (note,) = notes(open_folder(root))
    assert note.startswith("2 images in sub-folders are not read")
    assert len(open_folder(root).labelled("all")) == 3


@pytest.mark.parametrize("ending", ["_mask", "_gt", "_label"])
def test_a_mask_beside_its_image_is_no_photograph(
    root: Path, ending: str, capsys: pytest.CaptureFixture[str]
) -> None:
    beside = save(root / f"nut/test/bent/001{ending}.png", MASK)
    message = refusal(lambda: open_folder(root).labelled("all"))
    assert message.startswith(f"{beside}: looks like the mask of 001.png")
    dry_run(root, "--skip-bad", "--split", "train")
    printed = capsys.readouterr()
    assert message in printed.err and "nut/bent: 1" in printed.out
    beside.unlink()
    save(root / f"nut/train/good/000{ending}.png", MASK)
    assert "looks like the mask" in refusal(lambda: open_folder(root).normals("nut"))


def test_what_is_not_read_is_counted_once_for_each_kind(
    root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    nut = root / "nut"
    save(nut / "ground_truth/bent/777_mask.png", MASK)
    save(nut / "ground_truth/flip/000.png", MASK)
    save(nut / "test/lost.png")
    for name in ("notes.txt", "000.json", "001.json"):
        (nut / "test/bent" / name).touch()
    (nut / "prompt/bent").mkdir(parents=True)
    (nut / "prompt/bent/009.txt").write_text("A bend.")
    phrases = {"bent": "a bend", "bent/000": "a", "bent/8": "b", "flip": "c"}
    (nut / "prompt/phrases.json").write_text(json.dumps(phrases))
    save(root / "bolt/Test/bent/000.png")
    dry_run(root)
    printed = capsys.readouterr().err
    for words in (
        f"note: 3 files of other suffixes are not read (the first: {nut}/test/bent/000.json)"
        ": 2 .json, 1 .txt\n",
        "note: 1 image in no defect's folder and in no good/ is not read",
        f"note: 2 masks without an image are not read (the first: {nut}/ground_truth/bent/777",
        "note: 1 caption without an image is not read",
        f"note: 2 phrases are for things that are not there (the first: {nut}/prompt/phrases"
        ".json: bent/8)",
        f"note: 1 folder without test/ and train/ is not read (the first: {root}/bolt)",
    ):
        assert words in printed
    assert printed.count("note:") == 6


def test_masks_of_good_images_and_other_folders_of_a_category_are_noted(root: Path) -> None:
    save(root / "nut/test/good/0.png")
    save(root / "nut/ground_truth/good/0_mask.png", MASK)
    save(root / "nut/validation/bent/0.png")
    assert notes(open_folder(root)) == [
        "1 mask of good images is not read (the first: "
        f"{root}/nut/ground_truth/good/0_mask.png)",
        "1 image in other folders of a category is not read (the first: "
        f"{root}/nut/validation/bent/0.png)",
    ]


def test_accents_coded_in_another_way_are_named(root: Path) -> None:
    folder = fill(root / "nut", "f\u00e9l\u00e9")
    truth = folder / "ground_truth"
    (truth / "f\u00e9l\u00e9").rename(truth / "fe\u0301le\u0301")
    assert "has its accents coded in another way" in refusal(
        lambda: dry_run(root, "--split", "all")
    )


def test_a_test_folder_of_another_name_is_named(root: Path) -> None:
    (root / "nut/test").rename(root / "nut/Test")
    assert refusal(lambda: dry_run(root)) == f"{root}/nut/Test: is not read; call it test"


def test_a_clean_folder_has_no_notes(root: Path, built_in_data: Path) -> None:
    assert notes(open_folder(root)) == notes(open_folder(built_in_data)) == []


def test_captions_of_nobody_are_counted_or_refused(root: Path, tmp_path: Path) -> None:
    file = tmp_path / "captions.json"
    table = {"nut": {"bend": "x", "bent": {"0": "x", "000": "y"}}, "nutt": {"bent": "z"}}
    file.write_text(json.dumps(table))
    note = unused_captions(open_folder(root, file))
    assert note is not None and "3 captions are for things that are not in" in note
    assert "(the first: nut/bend; did you mean bent?)" in note
    del table["nut"]["bent"]["000"]
    file.write_text(json.dumps(table))
    message = refusal(lambda: dry_run(root, "--captions", str(file)))
    assert "3 captions" in message and "there is no other" in message
    file.write_text(json.dumps({"nut": {"bent": "x"}}))
    assert unused_captions(open_folder(root, file)) is None


@pytest.mark.parametrize("skip", [[], ["--skip-bad"]])
def test_an_empty_defect_is_skipped_from_the_default_split_too(
    root: Path, skip: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    (root / "nut/test/hole").mkdir()
    if not skip:
        assert "hole: holds no image" in refusal(lambda: dry_run(root))
        return
    dry_run(root, *skip)
    printed = capsys.readouterr()
    assert "nut/bent: 1" in printed.out and "1 empty defect folder" in printed.err


@pytest.mark.parametrize("name", ["train", "test"])
def test_a_category_may_be_called_train_or_test(tmp_path: Path, name: str) -> None:
    root = tmp_path / "set"
    fill(root / name)
    fill(root / "nut")
    assert open_folder(root).categories == tuple(sorted(("nut", name)))
    assert open_folder(root / name).categories == (name,)
    assert len(open_folder(root).labelled("all")) == 6


def test_a_defect_may_be_called_train_or_test(root: Path) -> None:
    for name in ("train", "test"):
        fill(root / "nut", name)
    for place in (root, root / "nut"):
        folder = open_folder(place)
        assert folder.defect_types("nut") == ("bent", "test", "train")


def test_images_straight_in_test_are_named(root: Path) -> None:
    nut = root / "nut"
    for path in (nut / "test/bent").iterdir():
        path.rename(nut / "test" / path.name)
    (nut / "test/bent").rmdir()
    message = refusal(lambda: open_folder(root).labelled("all"))
    assert message.startswith(f"{nut}/test: 3 images lie straight in it (the first: 000.png)")
    assert "test/<defect>" in message


def test_a_normal_image_straight_in_train_is_named(root: Path) -> None:
    nut = root / "nut"
    (nut / "train/good/000.png").rename(nut / "train/000.png")
    assert any("no defect's folder" in note for note in notes(open_folder(root)))


# What is done to the category, and words of the message.
NEAR: dict[str, tuple[Callable[[Path], object], str]] = {
    "masks": (
        lambda nut: (nut / "ground_truth").rename(nut / "masks"),
        "masks is not read: call",
    ),
    "Ground Truth": (
        lambda nut: (nut / "ground_truth").rename(nut / "Ground Truth"),
        "Ground Truth is not read: call it ground_truth",
    ),
    "another defect's name": (
        lambda nut: (nut / "ground_truth/bent").rename(nut / "ground_truth/Bent_mask"),
        "Bent_mask has another name than test/bent",
    ),
    "LOCO": (
        lambda nut: save(nut / "ground_truth/bent/000/000.png", MASK) and unmask(nut),
        "ground_truth/bent/000 holds masks, as in MVTec LOCO",
    ),
    "_gt": (
        lambda nut: (nut / "ground_truth/bent/000_mask.png").rename(
            nut / "ground_truth/bent/000_gt.png"
        ),
        "000_gt.png has another name",
    ),
    "labelme": (
        lambda nut: (unmask(nut), (nut / "test/bent/000.json").write_text("{}")),
        "000.json may hold its outline",
    ),
}


def unmask(nut: Path) -> None:
    (nut / "ground_truth/bent/000_mask.png").unlink()


@pytest.mark.parametrize("kind", NEAR)
def test_a_mask_that_is_nearly_in_its_place_is_named(root: Path, kind: str) -> None:
    spoil, words = NEAR[kind]
    spoil(root / "nut")
    message = refusal(lambda: dry_run(root, "--split", "all"))
    assert message.startswith(f"{root}/nut/test/bent/000.png: has no mask (")
    assert words in message and "put it at" in message


@pytest.mark.parametrize(
    ("place", "words"),
    [
        ("set/nut/test", "that is a category's test/: give"),
        ("", "set holds some: give that"),
        ("deep", "deep/a/b holds some: give that"),
        ("other", "other/nut/Test, which must be called test"),
        ("flat", "it has images straight in"),
    ],
)
def test_a_root_that_is_nearly_a_data_set_is_named(
    root: Path, tmp_path: Path, place: str, words: str
) -> None:
    if place == "other":
        save(tmp_path / "other/nut/Test/bent/000.png")
    if place == "deep":
        save(tmp_path / "deep/a/b/nut/test/bent/000.png")
    if place == "flat":
        save(tmp_path / "flat/000.png")
    message = refusal(lambda: open_folder(tmp_path / place))
    assert words in message and "holds no category" in message


def test_a_folder_of_a_home_is_expanded(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(root.parent))
    assert open_folder("~/set").categories == ("nut",)


@pytest.mark.parametrize(("count", "last"), [(1, "000"), (1000, "999"), (1001, "1000")])
def test_sorted_names_keep_the_order(count: int, last: str) -> None:
    names = [numbered(number, count) for number in range(count)]
    assert names == sorted(names) and names[-1] == last
    # anomalib's Folder pairs images and masks by their sorted paths.
    masks = sorted(f"{name}_mask.png" for name in names)
    assert [mask.removesuffix("_mask.png") for mask in masks] == sorted(names)
