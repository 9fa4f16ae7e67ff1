"""The studio's parts without a browser: the queue, what is kept, and who may ask for what."""

import hashlib
import io
import json
import shutil
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from starlette.applications import Starlette
from starlette.responses import PlainTextResponse
from starlette.routing import Route
from starlette.testclient import TestClient
from starlette.websockets import WebSocketDisconnect

from acontrol.data.builtin import write_dataset
from acontrol.data.mvtec import open_folder
from acontrol.errors import UserError
from acontrol.networks.locate import built_in_adapter
from acontrol.studio import library
from acontrol.studio.access import TokenGate, check_address
from acontrol.studio.settings import StudioConfig
from acontrol.studio.tickets import Tickets
from acontrol.studio.workbench import Studio
from launch import generate

MODEL = str(built_in_adapter())
MASK = np.zeros((64, 64), bool)
MASK[20:36, 18:40] = True


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("studio") / "data"
    kinds = {"categories": ("wood",), "defects": ("stain",)}
    write_dataset(root, num_good=2, num_good_test=1, num_defects=3, **kinds)
    return root


def test_users_take_turns_and_none_is_lost(tmp_path: Path) -> None:
    tickets = Tickets(tmp_path, 20)
    for user, count in (("a", 4), ("b", 2), ("c", 3)):
        tickets.add(user, {"defect": "x"}, MASK, 10, count)
    order = []
    while (ticket := tickets.next()) is not None:
        order.append(ticket.user)
        (ticket.folder / "result.json").write_text("{}")
        if len(order) == 4:  # As after a kill.
            tickets = Tickets(tmp_path, 20)
    assert sorted(order) == sorted("aaaabbccc")
    assert order[:4] == ["a", "b", "c", "a"]
    assert len({(t.number, t.folder) for t in tickets.all()}) == 9
    with pytest.raises(UserError, match="0 drawings wait already"):
        tickets.add("a", {}, MASK, 0, 21)
    tickets.add("d", {}, MASK, 0, 3)
    assert tickets.cancel("d") == 3
    assert tickets.next() is None


def test_a_painted_mask_comes_back_to_the_pixel() -> None:
    pixels = np.zeros((64, 64, 4), np.uint8)
    pixels[MASK] = (255, 45, 45, 255)
    assert (library.mask_of_png(as_png(pixels), (64, 64)) == MASK).all()
    for content, size, problem in (
        (as_png(pixels), (65, 64), "64 x 64 px, and the image 65 x 64"),
        (as_png(np.zeros((64, 64, 4), np.uint8)), (64, 64), "nothing is painted"),
        (b"no", (64, 64), "no picture"),
    ):
        with pytest.raises(UserError, match=problem):
            library.mask_of_png(content, size)


def as_png(pixels: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


def test_uploads_are_bounded_and_leave_nothing(tmp_path: Path) -> None:
    bomb = as_png(np.zeros((3000, 3000), np.uint8))
    for content, problem in ((bomb, "9 megapixels, and 5 may be"), (b"GIF89a", "no image")):
        with pytest.raises(UserError, match=problem):
            library.uploaded(content, 5, tmp_path / "up", "0" * 16)
    assert not (tmp_path / "up").exists()
    file = library.uploaded(as_png(np.full((8, 9), 7, np.uint8)), 5, tmp_path / "up", "0" * 16)
    assert [path.name for path in (tmp_path / "up").iterdir()] == [file.name]


@pytest.mark.parametrize("category", ["..", "../data", "/etc", "wood/../wood", ""])
def test_only_what_the_data_set_lists_is_shown(data: Path, category: str) -> None:
    lib = library.Library.open(data)
    with pytest.raises(UserError, match="no category"):
        lib.normal(category, 0)
    with pytest.raises(UserError, match="no category"):
        lib.reference(category, 0)
    for number in (-1, 2, 10_000):
        with pytest.raises(UserError, match="there are 2"):
            lib.normal("wood", number)


def test_other_addresses_need_a_token() -> None:
    for host in ("127.0.0.1", "localhost", "::1"):
        check_address(host, None)
    for host in ("0.0.0.0", "::", "192.168.0.5", "studio.local"):
        with pytest.raises(UserError, match="give --token"):
            check_address(host, None)
        check_address(host, "long enough")


def test_the_token_is_asked_for_once() -> None:
    app = Starlette(routes=[Route("/", lambda request: PlainTextResponse("page"))])
    client = TestClient(TokenGate(app, "secret-token"))
    assert client.get("/").status_code == 403
    assert client.get("/?token=wrong").status_code == 403
    answer = client.get("/?token=secret-token")
    assert (answer.status_code, answer.text) == (200, "page")
    assert "token" not in str(answer.url)
    assert client.get("/").status_code == 200
    stranger = TestClient(TokenGate(app, "secret-token"))
    with pytest.raises(WebSocketDisconnect), stranger.websocket_connect("/ws"):
        raise AssertionError("connected without a token")


def test_what_is_kept_is_drawn_again_to_the_byte(data: Path, tmp_path: Path) -> None:
    out = tmp_path / "kept"
    config = StudioConfig(model=MODEL, data=data, out=out)
    studio = Studio(config)
    normal = studio.library.normal("wood", 0)
    upload = as_png(np.asarray(Image.open(studio.library.normal("wood", 1)))[:, ::-1].copy())
    name = studio.upload(upload, hashlib.sha256(upload).hexdigest()[:16])
    request = {"category": "wood", "defect": "stain", "reference": "wood/stain/000", "steps": 4}
    studio.ask("a", {**request, "normal": str(normal)}, MASK, 2)
    studio.ask("b", {**request, "normal": str(studio.uploaded(name)), "scale": 0.7}, MASK, 1)
    with pytest.raises(UserError, match="no reference"):
        wrong = {**request, "reference": "wood/stain/002", "normal": str(normal)}
        studio.ask("a", wrong, MASK, 1)
    studio.start()
    end = time.monotonic() + 120
    while any(ticket.state == "waiting" for ticket in studio.tickets.all()):
        assert time.monotonic() < end
        time.sleep(0.1)
    studio.drawer.stop()
    tickets = studio.tickets.all()
    assert [ticket.state for ticket in tickets] == ["drawn"] * 3, tickets
    for ticket in (tickets[2], tickets[0], tickets[1]):
        studio.keep(ticket)
    assert studio.picture(tickets[0], "change")[:4] == b"\x89PNG"
    studio.kept.remove(tickets[0])
    studio.keep(tickets[0])
    # Stopped between files and manifest, and between job.json and manifest.
    studio.kept.remove(tickets[1])
    line = tickets[1].result
    shutil.copy(tickets[1].folder / "image_out.png", out / line["image"])
    job = json.loads((out / "job.json").read_text())
    (out / "job.json").write_text(json.dumps({**job, "images": 3}))
    again = Studio(config)
    again.kept.drop_half_kept(again.tickets.all())
    assert not (out / line["image"]).exists()
    assert sum(ticket.state == "kept" for ticket in again.tickets.all()) == 2
    again.keep(again.tickets.get(1))
    assert len(open_folder(out).labelled("all", "wood")) == 3
    replayed = tmp_path / "replayed"
    options = ["--replay", out, "--model", MODEL, "--data", data, "--out", replayed]
    generate.run([str(option) for option in options])
    for one in again.kept.lines():
        for file in (one["image"], one["mask"]):
            assert (replayed / file).read_bytes() == (out / file).read_bytes()
    shutil.rmtree(replayed)
    with pytest.raises(UserError, match="holds a generated set"):
        (out / "job.json").write_text(json.dumps({**job, "studio": False}))
        Studio(config)
