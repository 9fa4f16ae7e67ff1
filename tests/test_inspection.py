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
    assert found("1 of 6 defects are small").names == ("tile/crack/1",)
    assert found("1 of 6 masks cover over half").names == ("tile/crack/2",)
    assert found("2 of 12 images show 1 pieces several times, 1 of them in training and in")
    assert found("No image trains of dent")
    assert found("1 files of other suffixes")
    assert all(len(found(text).pictures) > 0 for text in ("are small", "over half", "show 1"))


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
