"""The page of all images: what it says of each, and that it stays small."""

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from acontrol.generation.gallery import (
    MOST_REJECTED,
    ORDER,
    SIDE_PX,
    gallery,
    quality,
    rejected_table,
    write_thumbnails,
)
from acontrol.generation.settings import Gate


def line(number: int, **changes: Any) -> dict[str, Any]:
    """A line of a manifest, as far as the page reads it."""
    category, defect = changes.pop("kind", ("metal nut", "bent"))
    name = f"{number:04}"
    return {
        "category": category,
        "defect": defect,
        "number": name,
        "image": f"{category}/test/{defect}/{name}.png",
        "mask": f"{category}/ground_truth/{defect}/{name}_mask.png",
        "refined_mask": None,
        "scores": {"passed": True, "mask_fill": 0.512345, "distance": 0.25},
        **changes,
    }


def rows_of(page: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(re.findall(r"id='rows'>(.*?)</script>", page)[0])
    return found


def test_a_row_has_links_scores_and_the_refined_mask_if_there_is_one() -> None:
    failed = {"passed": False, "mask_fill": 0.1, "distance": None}
    lines = [line(1, refined_mask="refined/1.png"), line(2, scores=failed, kind=("a", "b"))]
    data = rows_of(gallery(lines))
    assert data["kinds"] == ["a/b", "metal nut/bent"]
    near = "thumbnails/metal%20nut-bent-0001.jpg"
    image = "../metal%20nut/test/bent/0001.png"
    mask = "../metal%20nut/ground_truth/bent/0001_mask.png"
    assert data["rows"][0] == [1, "0001", image, mask, "../refined/1.png", near, 1, 0.51, 0.25]
    assert data["rows"][1][4] is None
    assert data["rows"][1][6:] == [0, 0.1, None]


def test_four_thousand_images_are_a_light_page() -> None:
    one, many = (len(gallery([line(n) for n in range(count)])) for count in (1, 4001))
    assert (many - one) / 4000 < 250


def test_names_do_not_end_the_script() -> None:
    name = "</script><b>"
    page = gallery([line(1, kind=("tile", name))])
    assert page.count("</script>") == 2
    assert rows_of(page)["kinds"] == [f"tile/{name}"]


@pytest.mark.parametrize("side", [40, 600])
def test_a_thumbnail_shows_the_defect_close_up_and_its_mask(tmp_path: Path, side: int) -> None:
    own = line(3)
    pixels, mask = np.full((side, side, 3), 90, np.uint8), np.zeros((side, side), np.uint8)
    mask[:8, :8] = 255
    for name, content in (("image", pixels), ("mask", mask)):
        (tmp_path / own[name]).parent.mkdir(parents=True)
        Image.fromarray(content).save(tmp_path / own[name])
    (tmp_path / "report").mkdir()
    write_thumbnails(tmp_path, [own])
    (file,) = (tmp_path / "report" / "thumbnails").iterdir()
    strip = np.asarray(Image.open(file)).astype(int)
    assert strip.shape == (SIDE_PX, 2 * SIDE_PX, 3)
    red = strip[..., 0] - strip[..., 2] > 80
    assert not red[:, :SIDE_PX].any()
    assert 0.08 < red[:, SIDE_PX:].mean() < 0.4


def test_the_best_image_is_not_one_that_hardly_changed() -> None:
    """A normal image may lie near the training defects, as grey ones near faint ones do."""

    def scores(fill: float, distance: float | None, passed: bool = True) -> dict[str, Any]:
        return {"passed": passed, "mask_fill": fill, "distance": distance}

    lines = [
        line(1, scores=scores(0.01, 0.02)),
        line(2, scores=scores(0.9, 0.1)),
        line(3, scores=scores(0.9, 0.4)),
        line(4, scores=scores(1.0, None, passed=False)),
    ]
    ranked = sorted(lines, key=quality, reverse=True)
    assert [entry["number"] for entry in ranked] == ["0002", "0003", "0001", "0004"]
    assert ORDER in gallery(ranked)


def test_a_rejected_image_says_which_limits_it_missed() -> None:
    scores = {"mask_fill": 0.031, "distance": 0.4, "limit": 0.25, "background_psnr": 18.0}
    rejected = line(7, image=None, rejected="rejected/nut-0007.png", scores=scores)
    (own,) = re.findall("<td style='text-align:left'>(.*?)</td>", table([rejected]))
    assert own.split("<br>") == [
        "3.1% of the mask changed, under 20% (--min-fill)",
        "distance 0.400 to the nearest training defect, over 0.250 (--max-distance)",
        "background at 18.0 dB, under 20 dB (--min-background)",
    ]
    assert "1 image not in the set, the best of 3 attempts each" in table([rejected])
    many = table([rejected] * (MOST_REJECTED + 2))
    assert many.count("<img") == MOST_REJECTED and "And 2 more" in many


def table(lines: list[dict[str, Any]]) -> str:
    return rejected_table(lines, Gate(), shown=False)
