"""The page in Debian's headless Chromium, by its mouse."""

import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import numpy as np
import pytest
from PIL import Image

from acontrol.studio.studio import Studio
from tests.studio.conftest import Serve, open_studio

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
playwright_sync = pytest.importorskip(
    "playwright.sync_api", reason="playwright is not installed: the page was not tested"
)
expect = playwright_sync.expect
pytestmark = pytest.mark.skipif(
    CHROMIUM is None, reason="no Chromium here: the page was not tested in a browser"
)
WIDE = (4000, 3000)


@pytest.fixture(scope="module")
def chromium() -> Iterator[object]:
    with playwright_sync.sync_playwright() as started:
        browser = started.chromium.launch(
            executable_path=CHROMIUM, args=["--no-sandbox", "--disable-dev-shm-usage"]
        )
        yield browser
        browser.close()


@pytest.fixture
def data(built_in_data: Path, tmp_path: Path) -> Path:
    """With one good image of 12 megapixels, the first of its category."""
    root = tmp_path / "data"
    shutil.copytree(built_in_data, root)
    good = sorted((root / "wood" / "train" / "good").iterdir())
    with Image.open(good[0]) as image:
        image.convert("RGB").resize(WIDE, Image.Resampling.BICUBIC).save(good[0])
    return root


class Page:
    """A page, and every host that it asked."""

    def __init__(self, chromium: object, address: str):
        self.context = chromium.new_context(viewport={"width": 1500, "height": 1000})  # type: ignore[attr-defined]
        self.hosts: set[str | None] = set()
        self.errors: list[str] = []
        self.context.on(
            "request", lambda request: self.hosts.add(urlsplit(request.url).hostname)
        )
        self.page = self.context.new_page()
        self.page.on("pageerror", lambda error: self.errors.append(str(error)))
        self.page.goto(address)
        self.ready()
        self.page.select_option("#category", "wood")
        expect(self.page.locator("#painted")).to_contain_text("4000 x 3000", timeout=20_000)

    def ready(self) -> None:
        expect(self.page.locator("#canvas")).to_have_attribute(
            "data-scale", re.compile(r"[\d.]+")
        )
        expect(self.page.locator("#painted")).to_contain_text("pixels")

    def drag(self, box: tuple[int, int, int, int]) -> None:
        """From the first pixel to the last, both inside."""
        canvas = self.page.locator("#canvas")
        place = canvas.bounding_box()
        at = {name: float(canvas.get_attribute(f"data-{name}")) for name in ("scale", "x", "y")}

        def screen(x: int, y: int) -> tuple[float, float]:
            return (
                place["x"] + at["x"] + (x + 0.5) * at["scale"],
                place["y"] + at["y"] + (y + 0.5) * at["scale"],
            )

        self.page.mouse.move(*screen(*box[:2]))
        self.page.mouse.down()
        self.page.mouse.move(*screen(*box[2:]))
        self.page.mouse.up()


def sent_mask(studio: Studio, state: str = "waiting") -> np.ndarray:
    """The mask of the last request."""
    last = max(studio.kept.drawings)
    with Image.open(str(studio.kept.get(last).request.mask)) as mask:
        return np.asarray(mask)


def expected(size: tuple[int, int], box: tuple[int, int, int, int]) -> np.ndarray:
    mask = np.zeros(size[::-1], dtype=np.uint8)
    mask[box[1] : box[3] + 1, box[0] : box[2] + 1] = 255
    return mask


def test_a_painted_rectangle_is_exactly_those_pixels(
    chromium: object, data: Path, tmp_path: Path, serve: Serve
) -> None:
    studio = open_studio(data, tmp_path / "kept")
    shown = Page(chromium, serve(studio).address)
    page = shown.page
    page.click("[data-tool=rectangle]")
    page.click("#one")
    for zooms, box in ((0, (1900, 1450, 2010, 1519)), (5, (1990, 1493, 2011, 1507))):
        page.click("#clear")
        for _ in range(zooms):
            page.click("#in")
        scale = f"{1.5**zooms:g}"
        expect(page.locator("#canvas")).to_have_attribute("data-scale", scale)
        shown.drag(box)
        count = len(studio.kept.drawings)
        page.click("#go")
        page.wait_for_selector(f"#cards article:nth-of-type({count + 1})")
        assert (sent_mask(studio) == expected(WIDE, box)).all()
    assert shown.errors == []


def test_paint_draw_accept_and_reload(
    chromium: object, data: Path, tmp_path: Path, serve: Serve
) -> None:
    studio = open_studio(data, tmp_path / "kept")
    studio.start()
    shown = Page(chromium, serve(studio).address)
    page = shown.page
    page.click("#normals button:nth-of-type(2)")
    expect(page.locator("#painted")).to_contain_text("64 x 64")
    page.click("[data-tool=rectangle]")
    shown.drag((20, 22, 40, 44))
    page.click("summary")
    page.fill("#steps", "4")
    page.fill("#count", "2")
    page.evaluate("""() => {  // Changed before the mask has arrived: the next one's.
        document.getElementById('go').click();
        document.getElementById('count').value = '5';
    }""")
    expect(page.locator("#cards .accept")).to_have_count(2)
    assert page.input_value("#seed") == "2"
    assert len(studio.kept.drawings) == 2
    if folder := os.environ.get("STUDIO_SCREENSHOTS"):
        page.screenshot(path=f"{folder}/draw.png", full_page=True)
    page.click("#cards article:nth-of-type(1) .accept")
    expect(page.locator("#cards .accept")).to_have_count(1)
    page.click("#cards article:nth-of-type(1) .reject")
    expect(page.locator("#cards .accept")).to_have_count(0)
    page.reload()
    shown.ready()
    # What is painted, and what is kept, is there again.
    expect(page.locator("#painted")).to_contain_text("483 painted")
    page.click("#tab-kept")
    page.wait_for_selector("#gallery img")
    assert page.locator("#gallery article").count() == 1
    lines = (tmp_path / "kept" / "manifest.jsonl").read_text().splitlines()
    assert len(lines) == 1
    assert (sent_mask(studio) == expected((64, 64), (20, 22, 40, 44))).all()
    assert page.locator("img:not([alt])").count() == 0
    assert shown.hosts <= {"127.0.0.1", None}
    assert shown.errors == []
    studio.queue.close()
