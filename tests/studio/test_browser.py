"""The page in a real browser: paint, draw, keep, reload. Left out where there is none."""

import json
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
from PIL import Image

from acontrol.data.builtin import write_dataset
from acontrol.networks.locate import built_in_adapter
from tests.launch import commands

pytest.importorskip("nicegui")
sync_api = pytest.importorskip("playwright.sync_api")
BROWSER = shutil.which("chromium") or shutil.which("google-chrome")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(BROWSER is None, reason="no chromium here: the page is not driven"),
]
PORT = 8765
SIZE = (4000, 3000)


class Server:
    """The command in a process of its own."""

    def __init__(self, folder: Path):
        """Write data with one large good image, and start."""
        self.folder = folder
        kinds = {"categories": ("wood",), "defects": ("stain",)}
        write_dataset(folder / "data", num_good=1, num_good_test=1, num_defects=3, **kinds)
        (good,) = (folder / "data/wood/train/good").iterdir()
        with Image.open(good) as image:
            large = image.resize(SIZE)
        large.save(good)
        self.start()

    def start(self) -> None:
        """Start it, on what is there."""
        args = ["--model", built_in_adapter(), "--data", self.folder / "data"]
        args += ["--out", self.folder / "kept", "--port", PORT, "--no-show"]
        self.process = subprocess.Popen(
            [sys.executable, "-m", "launch.studio", *map(str, args)],
            cwd=commands.ROOT,
            env={**os.environ, "NICEGUI_SCREEN_TEST_PORT": str(PORT)},
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        assert line.startswith(f"Open http://127.0.0.1:{PORT}"), line
        end = time.monotonic() + 30
        while True:  # Until it listens.
            try:
                socket.create_connection(("127.0.0.1", PORT), 1).close()
                return
            except OSError:
                assert time.monotonic() < end
                time.sleep(0.1)

    def kill(self) -> None:
        """As a crash would."""
        psutil.Process(self.process.pid).kill()
        self.process.communicate()

    def tickets(self) -> list[Path]:
        """Folders of drawings, the oldest first."""
        return sorted((self.folder / "kept/.studio").glob("[0-9]*"))


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    one = Server(tmp_path_factory.mktemp("studio"))
    yield one
    one.kill()


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with sync_api.sync_playwright() as playwright:
        yield playwright.chromium.launch(executable_path=BROWSER, args=["--no-sandbox"])


def opened(browser: Any) -> tuple[Any, list[str]]:
    """A new page, once its picture is there, and the addresses it asks for."""
    page = browser.new_page(viewport={"width": 1500, "height": 1150})
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    page.goto(f"http://127.0.0.1:{PORT}/")
    page.wait_for_function(f"window.maskCanvas && window.maskCanvas.width == {SIZE[0]}")
    return page, asked


def paint(page: Any, first: tuple[int, int], last: tuple[int, int]) -> None:
    """Drag a box between two places of the canvas on the screen, in its pixels."""
    page.get_by_role("button", name="box", exact=True).click()
    corner = page.locator(".mc-stage canvas").bounding_box()
    (left, top), (right, bottom) = (
        (corner["x"] + x + 0.5, corner["y"] + y + 0.5) for x, y in (first, last)
    )
    page.mouse.move(left, top)
    page.mouse.down()
    page.mouse.move(right, bottom, steps=4)
    page.mouse.up()


def asked_for(page: Any, server: Server) -> np.ndarray:
    """Press Draw; the mask that arrived."""
    before = len(server.tickets())
    page.get_by_role("button", name="Draw", exact=True).click()
    end = time.monotonic() + 60
    while (
        len(server.tickets()) == before or not (server.tickets()[-1] / "ticket.json").exists()
    ):
        assert time.monotonic() < end
        time.sleep(0.1)
    with Image.open(server.tickets()[-1] / "mask.png") as mask:
        return np.asarray(mask) > 0


def rectangle(left: int, top: int, right: int, bottom: int) -> np.ndarray:
    mask = np.zeros(SIZE[::-1], bool)
    mask[top : bottom + 1, left : right + 1] = True
    return mask


def test_a_rectangle_arrives_to_the_pixel_at_every_zoom(browser: Any, server: Server) -> None:
    page, asked = opened(browser)
    page.get_by_role("button", name="Image pixels as they are").click()
    paint(page, (100, 60), (300, 200))
    assert (asked_for(page, server) == rectangle(100, 60, 300, 200)).all()
    page.get_by_role("button", name="clear").click()
    for _ in range(2):
        page.get_by_role("button", name="Zoom in").click()  # 2.25
    paint(page, (90, 45), (270, 180))
    assert (asked_for(page, server) == rectangle(40, 20, 120, 80)).all()
    page.get_by_role("button", name="undo").click()
    page.get_by_role("button", name="undo").click()
    assert (asked_for(page, server) == rectangle(100, 60, 300, 200)).all()
    assert asked
    assert [url for url in asked if not url.startswith(f"http://127.0.0.1:{PORT}/")] == []
    page.close()


def test_what_is_kept_survives_a_kill_of_the_server(
    browser: Any, server: Server, request: pytest.FixtureRequest
) -> None:
    page, _ = opened(browser)
    paint(page, (200, 150), (260, 200))
    asked_for(page, server)
    ticket = server.tickets()[-1]
    page.wait_for_selector(
        f"img[src='/picture/drawing/{int(ticket.name)}/image']", timeout=120_000
    )
    page.screenshot(path=server.folder / "studio.png")
    (own,) = (
        page.locator(".s-result")
        .filter(has=page.locator(f"img[src='/picture/drawing/{int(ticket.name)}/image']"))
        .all()
    )
    own.get_by_role("button", name="Keep").click()
    end = time.monotonic() + 30
    while not (ticket / "verdict").exists():
        assert time.monotonic() < end
        time.sleep(0.1)
    server.kill()
    line = json.loads((server.folder / "kept/manifest.jsonl").read_text())
    assert (server.folder / "kept" / line["image"]).exists()
    server.start()
    page.close()
    page, _ = opened(browser)
    page.get_by_role("tab", name="Kept").click()
    page.wait_for_selector(f"text={line['image']}")
    page.get_by_role("button", name="Take out").click()
    page.wait_for_selector("text=it waits among the drawings again")
    assert not (server.folder / "kept" / line["image"]).exists()
    page.close()
