"""What `acontrol inspect` says of a folder."""

import base64
import io
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from acontrol import inspection
from acontrol.data.mvtec import open_folder
from acontrol.errors import UserError
from launch import inspect


def save(file: Path, pixels: np.ndarray) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(file)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A category with one of each thing that is found."""
    rng = np.random.default_rng(0)
    tile = tmp_path / "data" / "tile"

    def photograph() -> np.ndarray:
        return rng.integers(60, 200, (96, 128)).astype(np.uint8)

    def mask(rows: slice, columns: slice) -> np.ndarray:
        pixels = np.zeros((96, 128), np.uint8)
        pixels[rows, columns] = 255
        return pixels

    for number in range(6):
        save(tile / "train" / "good" / f"{number}.png", photograph())
    same = photograph()
    for number, where in enumerate(
        [slice(10, 40), slice(10, 11), slice(0, 90), slice(10, 40), slice(20, 30), slice(5, 25)]
    ):
        image = same if number in (0, 5) else photograph()
        save(tile / "test" / "crack" / f"{number}.png", image)
        columns = slice(8, 9) if number == 1 else slice(8, 120 if number == 2 else 28)
        save(tile / "ground_truth" / "crack" / f"{number}_mask.png", mask(where, columns))
    (tile / "ground_truth" / "crack" / "3_mask.png").unlink()
    save(tile / "test" / "dent" / "0.png", photograph())
    save(tile / "ground_truth" / "dent" / "0_mask.png", mask(slice(40, 60), slice(40, 60)))
    (tile / "test" / "crack" / "notes.docx").write_text("x")
    return tile.parent


def findings_in(root: Path) -> dict[str, inspection.Finding]:
    (category,), beside = inspection.inspect(open_folder(root))
    return {finding.text: finding for finding in [*category.findings, *beside]}


def test_each_thing_is_counted_and_named(root: Path) -> None:
    findings = findings_in(root)

    def found(start: str) -> inspection.Finding:
        (text,) = (text for text in findings if start in text)
        return findings[text]

    (line,) = found("1 of 13 images cannot be used").names
    assert "crack/3.png: has no mask" in line
    assert found("Small defects: 1 of 6;").names == ("tile/crack/1",)
    assert found("Masks over half of the image: 1 of 6;").names == ("tile/crack/2",)
    assert found(
        "2 of 12 images show 1 piece several times, 1 of them in training and in test:"
    )
    assert found("No image trains of dent")
    assert found("1 file of other suffixes is not")
    assert all(len(found(text).pictures) > 0 for text in ("Small", "over half", "show 1"))


def test_counts_and_sizes_are_those_of_the_files(root: Path) -> None:
    (category,), _ = inspection.inspect(open_folder(root))
    assert category.counts == {"good": (6, 0), "crack": (2, 3), "dent": (0, 1)}
    assert category.files == {"PNG L, 128 x 96": 12}
    assert category.grey is True
    (area,), (width,) = category.sizes["dent"].areas, category.sizes["dent"].widths
    assert area == pytest.approx(400 / (96 * 128))
    assert width == 19  # Twice the distance from the middle's pixel to the edge.


def test_the_page_is_whole_and_the_text_says_the_same(
    root: Path, tmp_path: Path, capsys
) -> None:
    out = tmp_path / "page.html"
    inspect.run([str(root), "--out", str(out)])
    printed = capsys.readouterr().out
    page = out.read_text()
    for text in findings_in(root):
        assert text in printed
        assert text.replace("'", "&#x27;") in page
    assert "crack                2     3" in printed
    sources = re.findall(r"src='data:image/png;base64,([^']+)'", page)
    assert len(sources) == page.count("<img") > 8
    sizes = [Image.open(io.BytesIO(base64.b64decode(source))).size for source in sources]
    assert max(max(size) for size in sizes) <= inspection.SIDE
    assert "http" not in page
    with pytest.raises(UserError, match="is a folder"):
        inspect.run([str(root), "--out", str(tmp_path)])


def test_pieces_on_one_side_ask_for_no_split(root: Path) -> None:
    """Two photographs of a piece that both test: there is nothing to keep apart."""
    crack = root / "tile" / "test" / "crack"
    (crack / "4.png").write_bytes((crack / "5.png").read_bytes())
    (crack / "0.png").unlink()
    (text,) = (text for text in findings_in(root) if "several times" in text)
    assert text.endswith("show 1 piece several times, none of them in training and in test.")


def test_a_small_defect_is_enlarged_and_its_pixels_are_seen(tmp_path: Path) -> None:
    """A dark defect of 20 px on a light image: a line around it, and nothing on it."""
    tile = tmp_path / "data" / "tile"
    pixels, mask = np.full((400, 600), 200, np.uint8), np.zeros((400, 600), np.uint8)
    pixels[100:120, 300:320], mask[100:120, 300:320] = 20, 255
    for number in range(3):
        save(tile / "test" / "hole" / f"{number}.png", pixels)
        save(tile / "ground_truth" / "hole" / f"{number}_mask.png", mask)
    (category,), _ = inspection.inspect(open_folder(tile.parent))
    (sample,) = category.samples
    assert sample.text == "hole, close up and outlined:"
    shown = np.asarray(sample.pictures[0]).astype(int)
    assert max(shown.shape) == inspection.SIDE
    dark = (shown.max(axis=2) < 90).sum(axis=1).max()
    assert 40 <= dark <= 50, "a third of the thumbnail's side"
    red = shown[..., 0] - shown[..., 2] > 150
    rows, columns = np.nonzero(red)
    around = np.s_[rows.min() + 1 : rows.max(), columns.min() + 1 : columns.max()]
    assert red.any() and not red[around].any()
