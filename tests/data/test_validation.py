"""launch.shard names bad input and leaves out exactly that."""

import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from acontrol.data.images import read_image
from acontrol.data.index import INDEX_NAME, parse_index
from acontrol.data.mvtec import open_folder
from acontrol.data.validation import check, token_share
from acontrol.errors import UserError
from launch import shard
from tests.data.damaging import EPS, bomb, png, text_bomb

DEFECT = "wood/test/crack"
IMAGE, MASK = f"{DEFECT}/001.png", "wood/ground_truth/crack/001_mask.png"


def write(place: str, content: bytes) -> Callable[[Path], object]:
    return lambda root: (root / place).write_bytes(content)


def change(place: str, how: Callable[[bytes], bytes]) -> Callable[[Path], object]:
    return lambda root: (root / place).write_bytes(how((root / place).read_bytes()))


def flip(content: bytes) -> bytes:
    """In the checksum of the last but one chunk, which decoding does not look at."""
    return content[:-14] + bytes([content[-14] ^ 1]) + content[-13:]


def renamed(name: bytes) -> Callable[[Path], object]:
    def rename(root: Path) -> None:
        for place in (IMAGE, MASK):
            path = os.fsencode(root / place)
            os.rename(path, path.replace(b"001", name))

    return rename


def link(place: str, target: str) -> Callable[[Path], object]:
    def replace(root: Path) -> None:
        (root / place).unlink()
        (root / place).symlink_to(target)

    return replace


def pipe(root: Path) -> None:
    (root / IMAGE).unlink()
    os.mkfifo(root / IMAGE)


def copy(source: str, target: str) -> Callable[[Path], object]:
    return lambda root: shutil.copy(root / source, root / target)


def both(*changes: Callable[[Path], object]) -> Callable[[Path], object]:
    return lambda root: [change(root) for change in changes]


NAN = np.full((64, 64), 0.5, np.float32)
NAN[3, 4] = np.nan
SPECK = np.zeros((400, 400), np.uint8)
SPECK[70, 80:95] = 255  # 15 pixels, of which 15/16 of one are left at 100.


def floats(root: Path) -> None:
    (root / IMAGE).unlink()
    Image.fromarray(NAN).save((root / IMAGE).with_suffix(".tif"))


def speck(root: Path) -> None:
    (root / MASK).write_bytes(png(SPECK))
    Image.fromarray(SPECK // 2 + 9).save(root / IMAGE)


# What is done to the folder, words of the message, and how many images that costs.
BAD: dict[str, tuple[Callable[[Path], object], str, int]] = {
    "image cut": (change(IMAGE, lambda old: old[: len(old) // 2]), f"{IMAGE}: cannot be", 1),
    "image without its end": (change(IMAGE, lambda old: old[:-12]), f"{IMAGE}: cannot be", 1),
    "image's checksum flipped": (change(IMAGE, flip), f"{IMAGE}: cannot be decoded", 1),
    "image empty": (write(IMAGE, b""), f"{IMAGE}: is not a PNG", 1),
    "image PostScript": (write(IMAGE, EPS), f"{IMAGE}: is not a PNG", 1),
    "image a bomb": (write(IMAGE, bomb(9_500)), f"{IMAGE}: is over 89478485 pixels", 1),
    "image a larger bomb": (write(IMAGE, bomb(20_000)), f"{IMAGE}: is over 89478485", 1),
    "image with a text bomb": (write(IMAGE, text_bomb()), f"{IMAGE}: cannot be decoded", 1),
    "image of one colour": (
        write(IMAGE, png(np.full((64, 64, 3), (7, 8, 9), np.uint8))),
        f"{IMAGE}: every pixel has the same colour, (7, 8, 9)",
        1,
    ),
    "image with NaN": (floats, "001.tif: holds non-finite values", 1),
    "image a circle of links": (link(IMAGE, "001.png"), f"{IMAGE}: cannot be decoded", 1),
    "image a link to nowhere": (link(IMAGE, "x.png"), f"{IMAGE}: does not exist", 1),
    "image a pipe": (pipe, f"{IMAGE}: is not a file", 1),
    "mask cut": (change(MASK, lambda old: old[:60]), f"{MASK}: cannot be decoded", 1),
    "mask missing": (lambda root: (root / MASK).unlink(), f"{IMAGE}: has no mask", 1),
    "mask empty": (write(MASK, png(np.zeros((64, 64), bool))), f"{MASK}: the mask is empty", 1),
    "mask a bomb": (write(MASK, bomb(9_500)), f"{MASK}: is over 89478485 pixels", 1),
    "mask of another size": (write(MASK, png(np.eye(9, dtype=bool))), f"{MASK}: the mask", 1),
    "mask that vanishes": (speck, f"{MASK}: the defect's 15 pixels are 0.94 of one", 1),
    "id twice": (copy(IMAGE, f"{DEFECT}/001.bmp"), "share the id '001'", 1),
    "mask twice": (copy(MASK, MASK.replace("png", "bmp")), "share the id '001'", 1),
    "ids alike but for case": (
        both(renamed(b"a"), *(copy(one.replace("001", "000"), one.replace("001", "A"))
                              for one in (IMAGE, MASK))),
        "differ only in case or in the coding of accents",
        2,
    ),
    "ids alike but for accents": (
        both(renamed("\u00e9".encode()),
             *(copy(one.replace("001", "000"), one.replace("001", "e\u0301"))
               for one in (IMAGE, MASK))),
        "differ only in case or in the coding of accents",
        2,
    ),
    "name not UTF-8": (renamed(b"\xff\xfe"), r"the name b'\xff\xfe.png' is not UTF-8", 1),
    "name of two lines": (renamed(b"a\nb"), r"b'a\nb.png' holds a control character", 1),
}  # fmt: skip


@pytest.fixture
def root(built_in_data: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(built_in_data, tmp_path / "data"))


def refusal(*args: object) -> str:
    with pytest.raises(UserError) as caught:
        shard.run([str(arg) for arg in args])
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize("kind", BAD)
def test_bad_input_stops_or_is_left_out_and_counted(
    root: Path, tmp_path: Path, kind: str, capsys: pytest.CaptureFixture[str]
) -> None:
    spoil, words, cost = BAD[kind]
    out = tmp_path / "shards"
    args = [root, "--out", out, "--split", "all", "--resolution", 100]
    total = 18 + (kind.startswith("ids alike"))
    spoil(root)
    message = refusal(*args)
    assert words in message and str(root) in message
    assert not out.exists()
    shard.run([str(arg) for arg in [*args, "--skip-bad"]])
    printed = capsys.readouterr()
    assert printed.err.count("left out: ") == cost and words in printed.err
    assert f"left out {cost} of {total} images\n" in printed.err
    index = parse_index((out / INDEX_NAME).read_bytes(), "index")
    assert index.num_samples == total - cost


def test_empty_defect_folders_are_named_and_counted(
    root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("hole", "dent"):
        (root / "wood/test" / name).mkdir()
    (root / "wood/test/dent/notes.txt").touch()
    args = [root, "--out", tmp_path / "s", "--split", "all"]
    assert refusal(*args).startswith(f"{root}/wood/test/dent: holds no image")
    shard.run([str(arg) for arg in [*args, "--skip-bad"]])
    printed = capsys.readouterr()
    assert f"left out: {root}/wood/test/hole: holds no image" in printed.err
    assert "left out 0 of 18 images and 2 empty defect folders\n" in printed.err


@pytest.mark.parametrize("place", ["hole", "wood/test/hole"])
@pytest.mark.parametrize("target", ["hole", "gone"])
def test_a_folder_that_is_a_link_to_nowhere_or_itself_is_named(
    root: Path, place: str, target: str
) -> None:
    (root / place).symlink_to(target)
    for skip in ([], ["--skip-bad"]):
        message = refusal(root, "--dry-run", "--split", "all", *skip)
        assert message == f"{root / place}: the link is broken; repair or remove it"


def test_a_link_back_up_is_not_followed_for_ever(root: Path) -> None:
    (root / "wood/test/crack/loop").symlink_to("..")
    (root / "wood/test/crack/loop.png").symlink_to(root)
    assert len(open_folder(root).labelled("all")) == 18


def test_a_folder_whose_name_is_not_utf8_is_named(root: Path) -> None:
    os.mkdir(os.fsencode(root / "wood/test/") + b"/\xff")
    assert r"the name b'\xff' is not UTF-8" in refusal(root, "--dry-run", "--split", "all")


def test_what_may_not_be_read_says_so(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def locked(*args: object, **kwargs: object) -> None:
        raise PermissionError(13, "Permission denied", str(args[0]))

    monkeypatch.setattr("acontrol.data.images.Image.open", locked)
    expected = "cannot be decoded (Permission denied); check its permissions"
    assert f"crack/000.png: {expected} (acontrol inspect" in refusal(root, "--dry-run")


@pytest.mark.skipif(sys.platform != "linux", reason="file names of another kind")
def test_ids_with_dots_and_other_signs_are_good(root: Path, tmp_path: Path) -> None:
    for source, name in (("000", "a.b"), ("001", "a%2Eb"), ("002", "\u00e9 .5")):
        for place in (IMAGE, MASK):
            old = root / place.replace("001", source)
            old.rename(root / place.replace("001", name))
    shard.run([str(root), "--out", str(tmp_path / "s"), "--split", "all"])
    index = parse_index((tmp_path / "s" / INDEX_NAME).read_bytes(), "index")
    keys = {sample.key for one in index.shards for sample in one.samples}
    names = ("a%2Eb", "a%252Eb", "\u00e9 %2E5")
    assert {f"wood/crack/{name}" for name in names} < keys and len(keys) == 18


def test_bad_images_count_for_the_thirds_all_the_same(root: Path) -> None:
    (root / f"{DEFECT}/000.bmp").write_bytes(b"")  # Shares the id of the first.
    bad: list[str] = []
    folder = open_folder(root)
    train = folder.labelled("train", "wood", "crack", left_out=bad)
    assert train == () and len(bad) == 1
    bad.clear()
    test = folder.labelled("test", "wood", "crack", left_out=bad)
    assert [one.id for one in test] == ["001", "002"] and bad == []


def test_a_small_defect_is_kept_and_noted(
    root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    image = read_image(root / IMAGE)
    mask = np.zeros(image.shape[:2], np.uint8)
    mask[16, 20] = 255  # One of the 4 x 4 pixels of a token's cell.
    (root / MASK).write_bytes(png(mask))
    shard.run([str(root), "--out", str(tmp_path / "s"), "--split", "all"])
    printed = capsys.readouterr()
    assert "left out" not in printed.err and "18 samples" in printed.out
    assert "(the smallest: wood/crack/001, 6.25% of one)" in printed.err
    (one,) = [
        one for one in open_folder(root).labelled("all", "wood") if one.key in printed.err
    ]
    assert check([one], skip_bad=False).small == {"wood/crack/001": pytest.approx(1 / 16)}


def test_the_share_of_a_token_is_the_largest_of_all_cells() -> None:
    mask = np.zeros((160, 320), bool)  # Cells of 10 x 20 pixels.
    mask[10:20, 20:30] = True
    assert token_share(mask) == pytest.approx(0.5)
    mask[50:60, 80:100] = True
    assert token_share(mask) == pytest.approx(1)
    assert token_share(np.zeros((160, 320), bool)) == 0


def test_masks_that_are_white_on_the_good_part_are_noted(
    root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    masks = sorted(root.glob("*/ground_truth/*/*.png"))
    shard.run([str(root), "--dry-run", "--split", "all"])
    assert "over half" not in capsys.readouterr().err
    for file in masks[: len(masks) // 2 + 1]:
        Image.fromarray(~np.asarray(Image.open(file)).astype(bool)).save(file)
    shard.run([str(root), "--dry-run", "--split", "all"])
    (note,) = (line for line in capsys.readouterr().err.splitlines() if "over half" in line)
    assert note.startswith("note: 10 of 18 masks cover over half") and "invert" in note


def test_transparent_pixels_are_refused(root: Path) -> None:
    image = Image.open(root / IMAGE).convert("RGBA")
    image.save(root / IMAGE)
    shard.run([str(root), "--dry-run", "--split", "all"])
    image.putpixel((3, 4), (1, 2, 3, 0))
    image.save(root / IMAGE)
    with pytest.raises(UserError, match=r"is transparent in .*% of its pixels.*flatten it"):
        shard.run([str(root), "--dry-run", "--split", "all"])
