import dataclasses
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from acontrol.data.mvtec import MvtecFolder, open_folder
from acontrol.data.split import training_third
from acontrol.data.validation import check
from acontrol.errors import UserError

HEIGHT, WIDTH = 6, 9
REAL = Path(os.environ.get("ACONTROL_TEST_DATA") or Path(__file__).parents[3] / "shared/data")

# Labelled images of each defect type in MVTec AD's test sets, and how many the paper's split
# trains on. By defect name, in alphabetical order.
MVTEC_AD = {
    "bottle": ([20, 22, 21], 20),
    "cable": ([13, 12, 11, 14, 10, 12, 10, 10], 28),
    "capsule": ([23, 22, 21, 23, 20], 34),
    "carpet": ([19, 17, 17, 17, 19], 27),
    "grid": ([12, 12, 11, 11, 11], 17),
    "hazelnut": ([18, 17, 18, 17], 22),
    "leather": ([19, 19, 17, 19, 18], 29),
    "metal_nut": ([25, 22, 23, 23], 29),
    "pill": ([25, 17, 21, 26, 19, 9, 24], 45),
    "screw": ([24, 24, 25, 23, 23], 38),
    "tile": ([17, 18, 16, 18, 15], 27),
    "toothbrush": ([30], 10),
    "transistor": ([10, 10, 10, 10], 12),
    "wood": ([8, 11, 10, 10, 21], 18),
    "zipper": ([19, 16, 17, 16, 17, 18, 16], 37),
}


def save(path: Path, pixels: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.asarray(pixels)).save(path)
    return path


def grey(level: int = 90) -> np.ndarray:
    return np.full((HEIGHT, WIDTH), level, np.uint8)


def spot() -> np.ndarray:
    pixels = grey(0)
    pixels[2:4, 3:8] = 255
    return pixels


def add(category: Path, defect: str, *ids: str) -> None:
    for name in ids:
        save(category / "test" / defect / f"{name}.png", grey() + spot() // 9)
        save(category / "ground_truth" / defect / f"{name}_mask.png", spot())


def refusal(call: Callable[[], Any]) -> str:
    """The message of a one-line refusal."""
    with pytest.raises(UserError) as caught:
        call()
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Two categories: nut (bent 7, flip 3; 2 + 1 normal) and tile (bent 4)."""
    root = tmp_path / "set"
    add(root / "nut", "bent", *(f"{number:03d}" for number in range(7)))
    add(root / "nut", "flip", "a", "c", "b")
    add(root / "tile", "bent", "000", "001", "002", "003")
    save(root / "nut/train/good/001.png", grey())
    save(root / "nut/train/good/000.jpg", grey())
    save(root / "nut/test/Good/005.PNG", grey())
    return root


def keys(folder: MvtecFolder, *args: Any, **kwargs: Any) -> list[str]:
    return [image.key for image in folder.labelled(*args, **kwargs)]


def test_a_root_of_categories_is_listed_sorted(root: Path) -> None:
    (root / "notes").mkdir()
    (root / ".cache/test").mkdir(parents=True)
    folder = open_folder(root)
    assert folder.root == root
    assert folder.categories == ("nut", "tile")
    assert folder.defect_types("nut") == ("bent", "flip")


def test_one_category_is_named_after_its_resolved_folder(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(root / "tile")
    folder = open_folder(".")
    assert folder.categories == ("tile",)
    assert keys(folder, "train") == ["tile/bent/000"]
    link = root.parent / "link"
    link.symlink_to(root / "nut")
    assert open_folder(link).categories == ("nut",)


def test_a_category_may_have_train_alone(tmp_path: Path) -> None:
    save(tmp_path / "nut/train/good/0.png", grey())
    folder = open_folder(tmp_path / "nut")
    assert folder.defect_types("nut") == ()
    assert folder.labelled("train") == ()
    assert [path.name for path in folder.normals("nut")] == ["0.png"]


@pytest.mark.parametrize(
    ("name", "problem"),
    [("nowhere", "does not exist"), ("file", "is not a folder"), ("empty", "no category")],
)
def test_a_root_of_another_kind_is_refused_with_the_layout(
    tmp_path: Path, name: str, problem: str
) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "empty/inside").mkdir(parents=True)
    message = refusal(lambda: open_folder(tmp_path / name))
    assert str(tmp_path / name) in message and problem in message
    assert "<category>/ground_truth/<defect>/<id>_mask.png" in message


def test_a_folder_that_cannot_be_listed_is_refused(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def locked(folder: Path) -> None:
        raise PermissionError(13, "Permission denied", str(folder))

    monkeypatch.setattr(Path, "iterdir", locked)
    message = refusal(lambda: open_folder(root))
    assert message.startswith(f"{root}: cannot be listed (Permission denied)")


def test_normals_are_sorted_and_good_is_found_in_any_case(root: Path) -> None:
    folder = open_folder(root)
    assert [path.name for path in folder.normals("nut")] == ["000.jpg", "001.png"]
    assert folder.normals("nut", "test") == (root / "nut/test/Good/005.PNG",)
    assert folder.normals("tile") == folder.normals("tile", "test") == ()


def test_splits_are_the_first_third_the_rest_and_all(root: Path) -> None:
    folder = open_folder(root)
    train, test, both = (keys(folder, split) for split in ("train", "test", "all"))
    assert train == ["nut/bent/000", "nut/bent/001", "nut/flip/a", "tile/bent/000"]
    assert both == sorted(train + test) and len(both) == 7 + 3 + 4
    assert test == [key for key in both if key not in train]


def test_filters_select_a_category_a_defect_or_both(root: Path) -> None:
    folder = open_folder(root)
    assert keys(folder, "train", "tile") == ["tile/bent/000"]
    assert keys(folder, "all", defect="flip") == ["nut/flip/a", "nut/flip/b", "nut/flip/c"]
    assert keys(folder, "train", "nut", "bent") == ["nut/bent/000", "nut/bent/001"]
    assert len(folder.labelled("all", defect="bent")) == 11


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda f: f.labelled("all", "bolt"), ("category 'bolt'", "nut, tile")),
        (lambda f: f.defect_types("bolt"), ("category 'bolt'", "nut, tile")),
        (lambda f: f.normals("bolt"), ("category 'bolt'", "nut, tile")),
        (lambda f: f.labelled("all", defect="hole"), ("defect 'hole'", "bent, flip")),
        (lambda f: f.labelled("all", "tile", "flip"), ("defect 'flip'", "from bent", "tile:")),
        (lambda f: f.labelled("all", defect="Good"), ("defect 'Good'", "bent, flip")),
    ],
)
def test_unknown_filters_are_refused_with_what_exists(
    root: Path, call: Callable[[MvtecFolder], Any], words: tuple[str, ...]
) -> None:
    message = refusal(lambda: call(open_folder(root)))
    assert str(root) in message and all(word in message for word in words)


def test_an_unknown_split_is_a_programming_error(root: Path) -> None:
    with pytest.raises(ValueError, match="'val'"):
        open_folder(root).labelled("val")  # type: ignore[arg-type]


def test_training_takes_the_first_third_of_the_sorted_ids() -> None:
    assert training_third(["d", "b", "a", "c", "f", "e", "h", "g"]) == ["a", "b"]
    assert [len(training_third(["x"] * count)) for count in range(7)] == [0, 0, 0, 1, 1, 1, 2]


def test_training_third_gives_the_papers_counts_on_mvtec_ad() -> None:
    train = {
        category: sum(
            len(training_third([f"{i:03d}" for i in range(count)])) for count in counts
        )
        for category, (counts, _) in MVTEC_AD.items()
    }
    assert train == {category: expected for category, (_, expected) in MVTEC_AD.items()}
    counts_of_all = [count for counts, _ in MVTEC_AD.values() for count in counts]
    assert (len(counts_of_all), sum(counts_of_all), sum(train.values())) == (73, 1258, 393)
    assert sum(counts_of_all) - sum(train.values()) == 865


def test_defects_too_few_for_the_training_split_are_all_named(root: Path) -> None:
    add(root / "nut", "cut", "000", "001")
    (root / "tile/test/hole").mkdir()
    folder = open_folder(root)
    message = refusal(lambda: folder.labelled("train"))
    assert "nut/cut (2), tile/hole (0);" in message and "bent" not in message
    assert str(root) in message and "--split all" in message
    assert len(folder.labelled("all")) == 16
    assert keys(folder, "test", defect="cut") == ["nut/cut/000", "nut/cut/001"]
    assert keys(folder, "train", defect="flip") == ["nut/flip/a"]


def test_only_the_first_eight_defects_too_few_are_named(root: Path) -> None:
    for number in range(8):
        (root / f"tile/test/hole{number}").mkdir()
    assert "more" not in refusal(lambda: open_folder(root).labelled("train")).split("three")[1]
    for number in range(8, 10):
        (root / f"tile/test/hole{number}").mkdir()
    message = refusal(lambda: open_folder(root).labelled("train"))
    assert "tile/hole7 (0) and 2 more;" in message and "hole8" not in message


def test_hidden_and_other_files_are_no_images(root: Path) -> None:
    place = root / "tile/test/bent"
    for name in (".000.png", "._000.png", "Thumbs.db", "notes.txt", "000.json"):
        (place / name).touch()
    (place / "folder.png").mkdir()
    (root / "tile/test/.hidden").mkdir()
    (root / "tile/test/readme.md").touch()
    folder = open_folder(root)
    assert folder.defect_types("tile") == ("bent",)
    assert len(folder.labelled("all", "tile")) == 4


@pytest.mark.parametrize("suffix", ["png", "jpg", "jpeg", "bmp", "tif", "tiff", "PNG", "Tif"])
def test_image_files_are_known_by_their_suffix(tmp_path: Path, suffix: str) -> None:
    image = save(tmp_path / f"nut/test/bent/0.{suffix}", grey())
    mask = save(tmp_path / f"nut/ground_truth/bent/0_mask.{suffix}", spot())
    (labelled,) = open_folder(tmp_path).labelled("all")
    assert (labelled.id, labelled.image, labelled.mask) == ("0", image, mask)


def test_a_mask_may_go_without_its_ending_and_an_extra_one_is_ignored(root: Path) -> None:
    truth = root / "tile/ground_truth/bent"
    (truth / "001_mask.png").rename(truth / "001.png")
    save(truth / "999_mask.png", spot())
    save(truth / "999.png", spot())
    images = open_folder(root).labelled("all", "tile")
    assert [labelled.mask.name for labelled in images[:2]] == ["000_mask.png", "001.png"]
    assert len(images) == 4


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ("tile/test/bent/000.png", "tile/test/bent/000.jpg"),
        ("tile/ground_truth/bent/002_mask.png", "tile/ground_truth/bent/002_mask.bmp"),
        ("tile/ground_truth/bent/002_mask.png", "tile/ground_truth/bent/002.png"),
        ("tile/train/good/7.png", "tile/train/good/7.TIF"),
    ],
)
def test_two_files_of_one_id_are_refused(root: Path, first: str, second: str) -> None:
    for name in (first, second):
        save(root / name, spot())
    folder = open_folder(root)
    message = refusal(lambda: (folder.labelled("test", "tile"), folder.normals("tile")))
    assert str((root / first).parent) in message
    assert Path(first).name in message and Path(second).name in message


def test_captions_go_from_text_file_to_json_to_template(root: Path) -> None:
    for name, text in (("000", "From the file.\n"), ("001", " \n")):
        path = root / f"tile/prompt/bent/{name}.txt"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    listed = {"tile": {"bent": {"000": "x", "001": "From JSON.", "002": " "}}, "bolt": {}}
    file = root / "captions.json"
    file.write_text(json.dumps(listed))
    captions = [x.caption for x in open_folder(root, file).labelled("all", "tile")]
    template = "a photo of tile with bent"
    assert captions == ["From the file.", "From JSON.", template, template]


def test_a_list_of_captions_counts_the_images_of_all_splits(root: Path) -> None:
    file = root / "captions.json"
    file.write_text(json.dumps({"tile": {"bent": ["0", "1", "2", "3"]}}))
    assert [x.caption for x in open_folder(root, file).labelled("test", "tile")] == [*"123"]
    file.write_text(json.dumps({"tile": {"bent": ["0", "1", "2"]}}))
    message = refusal(lambda: open_folder(root, file).labelled("train", "tile"))
    assert f"{file}: tile: bent: 3 captions for 4 images" in message


def test_captions_for_other_categories_alone_are_refused(root: Path) -> None:
    file = root / "captions.json"
    file.write_text(json.dumps({"bolt": {"bent": "x"}}))
    message = refusal(lambda: open_folder(root, file))
    assert str(file) in message and "nut, tile" in message


def test_phrases_come_from_the_category_file_or_the_folder_name(root: Path) -> None:
    assert {x.phrase for x in open_folder(root).labelled("all", "tile")} == {"bent"}
    file = root / "tile/prompt/phrases.json"
    file.parent.mkdir()
    file.write_text(json.dumps({"bent": "a bend", "bent/001": "a sharp bend"}))
    images = open_folder(root).labelled("all", defect="bent")[-4:]
    assert [image.phrase for image in images] == ["a bend", "a sharp bend", "a bend", "a bend"]
    assert images[1].caption == "a photo of tile with a sharp bend"
    file.write_text("[]")
    assert str(file) in refusal(lambda: open_folder(root).labelled("all"))


def test_labelled_images_are_frozen(root: Path) -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        open_folder(root).labelled("all")[0].id = "x"  # type: ignore[misc]


def test_check_stops_at_the_first_bad_image_or_skips_all(root: Path) -> None:
    images = open_folder(root).labelled("all", "nut")
    checked = check(images, skip_bad=False)
    assert (checked.good, checked.bad) == (list(images), [])
    broken, unmasked, empty = images[1], images[3], images[4]
    broken.image.write_bytes(b"no image")
    unmasked.mask.unlink()
    save(empty.mask, grey(0))
    images = open_folder(root).labelled("all", "nut")
    assert images[3].mask == unmasked.mask
    assert str(broken.image) in refusal(lambda: check(images, skip_bad=False))
    checked = check(images, skip_bad=True)
    good, messages = checked.good, checked.bad
    assert good == [images[i] for i in (0, 2, 5, 6, 7, 8, 9)]
    assert [str(broken.image) in messages[0], str(empty.mask) in messages[2]] == [True, True]
    expected = f"{unmasked.image}: has no mask; put it at {unmasked.mask}"
    assert messages[1].startswith(expected) and len(messages) == 3


def test_real_magnetic_tiles_are_read() -> None:
    if not (REAL / "magnetic_tile").is_dir():
        pytest.skip(f"no real images in {REAL}; ACONTROL_TEST_DATA names their folder")
    folder = open_folder(REAL / "magnetic_tile")
    assert folder.categories == ("magnetic_tile",)
    counts = {
        d: len(folder.labelled("train", None, d)) for d in folder.defect_types("magnetic_tile")
    }
    assert counts == {"blowhole": 23, "break": 17, "crack": 11, "uneven": 19}
    assert len(folder.normals("magnetic_tile")) == 500
    checked = check(folder.labelled("all")[::20], skip_bad=True)
    assert (len(checked.good), checked.bad) == (11, [])


def test_real_few_shot_images_are_read() -> None:
    if not (REAL / "mvtec_fewshot").is_dir():
        pytest.skip(f"no real images in {REAL}; ACONTROL_TEST_DATA names their folder")
    folder = open_folder(REAL / "mvtec_fewshot")
    assert len(folder.categories) == 13
    assert "and 53 more" in refusal(lambda: folder.labelled("train"))
    checked = check(folder.labelled("all")[::10], skip_bad=True)
    assert (len(checked.good), checked.bad) == (13, [])


@pytest.mark.parametrize(
    ("link", "target"),
    [
        ("nut/test/a", "nut/test/bent"),
        ("nut/test/z", "nut/test/bent"),
        ("jar", "nut"),
    ],
)
def test_a_folder_that_is_there_twice_by_a_link_is_refused(
    root: Path, link: str, target: str
) -> None:
    (root / link).symlink_to(root / target)
    message = refusal(lambda: keys(open_folder(root), "all"))
    assert message == (
        f"{root / link}: is {root / target} by another name, and its images would be read "
        "twice; remove the link"
    )
