"""One split for everything: made, written, read, and carried by what comes from it."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from acontrol.config import THIRD, RunConfig, TrainedOn
from acontrol.data.index import parse_index
from acontrol.data.mvtec import image_names, open_folder
from acontrol.data.pieces import SIDES, balanced, find_pieces
from acontrol.data.split import Split, read_split, refuse_mix
from acontrol.data.textures import SMALLEST, THRESHOLD, textures
from acontrol.errors import UserError
from acontrol.evaluation.budget import BUDGETS, CLASSIFIER_BUDGETS
from launch import shard, split
from tests.evaluation.test_near_duplicates import photograph, piece

DATA = os.environ.get("ACONTROL_TEST_DATA") or Path(__file__).parents[3] / "shared" / "data"
MAGNETIC_TILE = Path(DATA) / "magnetic_tile"


def error_of(call: Callable[[], object]) -> str:
    with pytest.raises(UserError) as error:
        call()
    assert "\n" not in str(error.value)
    return str(error.value)


def made(root: Path, out: Path, by: str = "third") -> Path:
    split.run([str(root), "--by", by, "--out", str(out)])
    return out


def keys(root: Path, part: str, file: Path | None = None) -> list[str]:
    folder = open_folder(root, split_file=file)
    return [row.key for row in folder.labelled(part)]  # type: ignore[arg-type]


@pytest.fixture
def tiles(tmp_path: Path) -> Path:
    """Thirty pieces, each photographed one to four times, good and with two defects.

    Other photographs of a piece are anywhere in its category.
    """
    rng = np.random.default_rng(0)
    root = tmp_path / "data"
    places = [("train", "good")] * 5 + [("test", "good")] * 2
    places += [("test", "crack")] * 4 + [("test", "stain")] * 3
    count = 0
    for number in range(30):
        for _ in range(rng.integers(1, 5)):
            part, defect = places[count % len(places)]
            folder = root / "tile" / part / defect
            folder.mkdir(parents=True, exist_ok=True)
            file = folder / f"{len(list(folder.iterdir())):03d}.png"
            Image.fromarray(photograph(piece(number), count)).save(file)
            count += 1
    return root


def test_a_split_by_third_is_the_default(built_in_data: Path, tmp_path: Path) -> None:
    file = made(built_in_data, tmp_path / "third.json")
    plain, own = open_folder(built_in_data), open_folder(built_in_data, split_file=file)
    for part in ("train", "test"):
        assert own.labelled(part) == plain.labelled(part)  # type: ignore[arg-type]
        for category in plain.categories:
            assert own.normals(category, part) == plain.normals(category, part)  # type: ignore[arg-type]
    assert plain.trained_on("train").split_digest == THIRD
    assert own.trained_on("train").split_digest == read_split(file).digest != THIRD


def test_no_piece_is_on_both_sides(
    tiles: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = made(tiles, tmp_path / "new" / "split.json", "pieces")
    printed = capsys.readouterr().out
    assert "30 pieces, the largest of 4 images" in printed
    assert "No pair over .8 crosses the sides" in printed
    folder = open_folder(tiles, split_file=file)

    def read(part: str) -> torch.Tensor:
        rows = folder.labelled(part)  # type: ignore[arg-type]
        files = [row.image for row in rows] + [*folder.normals("tile", part)]  # type: ignore[arg-type]
        pixels = [np.array(Image.open(file).convert("RGB")) for file in files]
        return textures(torch.from_numpy(np.stack(pixels)).permute(0, 3, 1, 2))

    train, test = read("train"), read("test")
    assert len(train) + len(test) == len(image_names(folder))
    assert float((train @ test.T).max()) < THRESHOLD
    plain = open_folder(tiles)
    for defect in ("crack", "stain"):
        share = len(folder.labelled("train", defect=defect))
        assert abs(share - len(plain.labelled("train", defect=defect))) <= 1
    assert abs(len(folder.normals("tile")) - len(plain.normals("tile"))) <= 2
    again = made(tiles, tmp_path / "again.json", "pieces")
    assert again.read_bytes() == file.read_bytes()


def test_the_first_third_shows_pieces_again(tiles: Path) -> None:
    """What --by pieces is for: without it the same tiles are on both sides."""
    folder = open_folder(tiles)
    files = [*folder.normals("tile"), *folder.normals("tile", "test")]
    labels = find_pieces(files, len(files)).labels
    first = len(folder.normals("tile"))
    assert {*labels[:first]} & {*labels[first:]}


def test_pieces_that_look_alike_are_not_told_apart(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    part = tmp_path / "data" / "nut"
    for number in range(12):
        defect = ("train/good", "test/bent")[number % 2]
        (part / defect).mkdir(parents=True, exist_ok=True)
        pixels = photograph(piece(0) + 0.1 * piece(number), number)
        Image.fromarray(pixels).save(part / defect / f"{number:02d}.png")
    # Equal images are one piece all the same.
    shutil.copy(part / "train" / "good" / "00.png", part / "test" / "bent" / "99.png")
    made(tmp_path / "data", tmp_path / "split.json", "pieces")
    printed = capsys.readouterr().out
    assert "12 pieces, the largest of 2 images" in printed
    assert "look alike: only equal images are one piece" in printed


def test_every_size_that_is_compared_is_looked_at() -> None:
    sizes = {budget.size for budget in (*BUDGETS.values(), *CLASSIFIER_BUDGETS.values())}
    assert {size for size in sizes if size >= SMALLEST} == {*SIDES}


@pytest.mark.parametrize(
    ("sizes", "expected"),
    [
        ([1] * 9, 3),
        ([2, 1, 1, 1, 1], 2),
        ([5, 1], 1),
        ([1, 1], 1),
        ([3], 3),  # Nothing can be drawn like a defect without a training image.
    ],
)
def test_a_third_of_a_defect_trains_and_one_at_least(sizes: list[int], expected: int) -> None:
    pieces = np.repeat(np.arange(len(sizes)), sizes)
    targets = {"crack": max(1, len(pieces) // 3)}
    for seed in range(5):
        train = balanced(pieces, ["crack"] * len(pieces), targets, seed)
        assert train.sum() == expected
        assert all(len({*train[pieces == number]}) == 1 for number in pieces)


def test_a_digest_is_of_the_sides_alone() -> None:
    first = Split(train=("a/test/b/1.png", "a/test/b/2.png"), test=("a/test/b/3.png",))
    other = Split(train=first.train[::-1], test=first.test)
    assert first.digest == other.digest
    assert Split(train=first.train[:1], test=("a/test/b/2.png", *first.test)) != first.digest


def test_other_images_are_refused(built_in_data: Path, tmp_path: Path) -> None:
    root = Path(shutil.copytree(built_in_data, tmp_path / "data"))
    file = made(root, tmp_path / "split.json")
    image = root / "wood" / "test" / "crack" / "000.png"
    for name in ("900.png", "901.png"):
        shutil.copy(image, image.with_name(name))
    message = error_of(lambda: open_folder(root, split_file=file))
    assert "does not name wood/test/crack/900.png (and 1 more), which" in message
    for name in ("900.png", "901.png", "000.png"):
        image.with_name(name).unlink()
    message = error_of(lambda: open_folder(root, split_file=file))
    assert "names wood/test/crack/000.png, which" in message
    assert "make the split again with acontrol split" in message


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("{", "not a split of acontrol split"),
        ('{"format": "acontrol-split-1", "train": []}', "test: Field required"),
        ('{"train": ["a/b/c.png"], "test": ["a/b/c.png"]}', "names 'a/b/c.png' 2 times"),
        ('{"train": ["/a/b/c.png"], "test": []}', "is no CATEGORY"),
        ('{"train": ["a/../c.png"], "test": []}', "is no CATEGORY"),
        ('{"format": "acontrol-split-2", "train": [], "test": []}', "format"),
        (f"<html>{'page ' * 500}</html>", "Invalid JSON"),
        (RunConfig().model_dump_json(), "train: Field required"),
    ],
)
def test_a_bad_file_is_one_line(tmp_path: Path, text: str, words: str) -> None:
    file = tmp_path / "split.json"
    file.write_text(text)
    message = error_of(lambda: read_split(file))
    assert str(file) in message and words in message
    assert len(message) < len(str(file)) + 220, "not the file's contents"


def test_a_split_replaces_nothing_but_a_split(built_in_data: Path, tmp_path: Path) -> None:
    made(built_in_data, made(built_in_data, tmp_path / "split.json", "pieces"))
    (tmp_path / "notes.json").write_text("mine")
    message = error_of(lambda: made(built_in_data, tmp_path / "notes.json"))
    assert "notes.json: exists and is no split file" in message
    assert (tmp_path / "notes.json").read_text() == "mine"
    assert "does not exist" in error_of(lambda: made(tmp_path / "no", tmp_path / "a.json"))
    assert not (tmp_path / "a.json").exists()


def test_shards_hold_the_files_training_images(built_in_data: Path, tmp_path: Path) -> None:
    file = tmp_path / "split.json"
    rest = {*image_names(open_folder(built_in_data))}
    train = {f"{c}/test/{d}/002.png" for c in ("wood", "button") for d in ("crack", "stain")}
    train |= {"wood/test/spots/001.png", "button/test/spots/002.png"}
    file.write_text(json.dumps({"train": sorted(train), "test": sorted(rest - train)}))
    shard.run([str(built_in_data), "--out", str(tmp_path / "a"), "--split-file", str(file)])
    text = (tmp_path / "a" / "index.json").read_text()
    index = parse_index(text, "")
    assert sorted(s.key for part in index.shards for s in part.samples) == sorted(
        keys(built_in_data, "train", file)
    )
    assert index.trained_on == TrainedOn(
        categories=("button", "wood"), split="train", split_digest=read_split(file).digest
    )
    assert parse_index(index.model_dump_json(), "") == index


def test_shards_of_the_first_third_are_as_before(built_in_data: Path, tmp_path: Path) -> None:
    shard.run([str(built_in_data), "--out", str(tmp_path / "a")])
    text = (tmp_path / "a" / "index.json").read_text()
    assert "split_digest" not in text
    index = parse_index(text, "")
    assert index.trained_on.split_digest == THIRD
    assert "split_digest" not in index.model_dump_json(), "their digest is that of before"


def test_a_list_of_training_images_is_of_the_files(built_in_data: Path, tmp_path: Path) -> None:
    """So what comes from the authors' list can be tested on the rest."""
    file = made(built_in_data, tmp_path / "split.json")
    listed = tmp_path / "list.json"
    args = [str(built_in_data), "--out", str(tmp_path / "a"), "--train-list", str(listed)]
    for name, refused in (("000", False), ("001", True)):
        part = "wood/{}/crack/" + name
        entry = {"image_file": part.format("test") + ".png", "text": "a crack"}
        entry["mask_file"] = part.format("ground_truth") + "_mask.png"
        listed.write_text(json.dumps([entry]))
        if refused:
            message = error_of(lambda: shard.run([*args, "--split-file", str(file)]))
            assert "crack/001.png, which is not in the split file's train" in message
            continue
        shard.run(args)
        assert parse_index((tmp_path / "a" / "index.json").read_text(), "").split == "all"
        shard.run([*args, "--split-file", str(file)])
    index = parse_index((tmp_path / "a" / "index.json").read_text(), "")
    assert (index.split, index.split_digest) == ("train", read_split(file).digest)


@pytest.mark.parametrize(
    ("part", "refused"),
    [
        (TrainedOn(categories=("wood",), split="train"), True),
        (TrainedOn(categories=None, split="train"), True),
        (TrainedOn(categories=("tile",), split="train"), False),  # Other data.
        (TrainedOn(categories=("wood",), split="train", split_digest="a" * 64), False),
        (TrainedOn(categories=("wood",), split="all"), False),
    ],
)
def test_two_splits_of_one_category_are_a_mix(part: TrainedOn, refused: bool) -> None:
    data = TrainedOn(categories=("wood", "button"), split="train", split_digest="a" * 64)
    if not refused:
        refuse_mix("the base B", [part], "the data D", data)
        return
    message = error_of(lambda: refuse_mix("the base B", [part], "the data D", data))
    assert message == (
        "the base B comes from the first third of each defect (no --split-file), and the data "
        "D from the split file of digest aaaaaaaaaaaa: give --split-file the same file "
        "everywhere, or nowhere"
    )


@pytest.mark.slow
@pytest.mark.skipif(not MAGNETIC_TILE.is_dir(), reason="needs the magnetic tiles")
def test_the_magnetic_tiles_have_442_pieces(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = made(MAGNETIC_TILE, tmp_path / "split.json", "pieces")
    printed = capsys.readouterr().out
    assert "813 images, 442 pieces" in printed
    assert "No pair over .8 crosses the sides" in printed
    folder = open_folder(MAGNETIC_TILE, split_file=file)
    for defect, third in (("blowhole", 23), ("break", 17), ("crack", 11), ("uneven", 19)):
        assert abs(len(folder.labelled("train", defect=defect)) - third) <= 1


def test_a_file_that_is_no_json_is_not_printed(tmp_path: Path) -> None:
    (tmp_path / "photo.png").write_bytes(b"\x89PNG\r\n" + bytes(range(256)))
    with pytest.raises(UserError) as caught:
        read_split(tmp_path / "photo.png")
    message = str(caught.value)
    assert "photo.png: not a split of acontrol split: Invalid JSON" in message
    assert message.isascii() and "b'" not in message
