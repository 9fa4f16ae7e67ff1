import json
import threading
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import uvicorn
from PIL import Image

from acontrol.data.images import encode_png
from acontrol.networks.locate import built_in_adapter
from acontrol.studio.server import application
from acontrol.studio.settings import StudioConfig
from acontrol.studio.studio import Studio

STEPS = 2


@dataclass
class Browser:
    """Asks a server, with its own cookie."""

    address: str
    cookies: dict[str, str] = field(default_factory=dict)

    def ask(
        self, path: str, content: Any = None, headers: dict[str, str] | None = None
    ) -> tuple[int, Any]:
        """Status, and what was answered; POST if there is content."""
        data = content if isinstance(content, bytes | None) else json.dumps(content).encode()
        request = urllib.request.Request(self.address + path, data, headers or {})
        if self.cookies:
            pairs = (f"{name}={value}" for name, value in self.cookies.items())
            request.add_header("Cookie", "; ".join(pairs))
        try:
            with urllib.request.urlopen(request, timeout=60) as answer:
                body, status, sent = answer.read(), answer.status, answer.headers
        except urllib.error.HTTPError as error:
            body, status, sent = error.read(), error.code, error.headers
        for cookie in sent.get_all("Set-Cookie") or []:
            name, _, rest = cookie.partition("=")
            self.cookies[name] = rest.partition(";")[0]
        is_json = sent.get_content_type() == "application/json"
        return status, json.loads(body) if is_json else body

    def get(self, path: str, content: Any = None) -> Any:
        status, answer = self.ask(path, content)
        assert status == 200, answer
        return answer


def rectangle(size: tuple[int, int], box: tuple[int, int, int, int]) -> bytes:
    mask = np.zeros(size[::-1], dtype=np.uint8)
    mask[box[1] : box[3], box[0] : box[2]] = 255
    return encode_png(Image.fromarray(mask))


def drawing(browser: Browser, **more: Any) -> dict[str, Any]:
    """A request that can be drawn."""
    mask = browser.get("/api/mask", rectangle((64, 64), (20, 24, 36, 40)))["name"]
    category = browser.get("/api/category/wood")
    return {
        "category": "wood",
        "normal": category["normals"][0],
        "mask": mask,
        "reference": category["references"][0]["key"],
        "steps": STEPS,
        "seed": 7,
    } | more


def open_studio(data: Path, out: Path) -> Studio:
    return Studio(StudioConfig(model=str(built_in_adapter()), data=data, out=out))


Serve = Callable[..., Browser]


@pytest.fixture
def serve() -> Iterator[Serve]:
    """Serve a studio on a free port; gives a browser at it."""
    servers: list[tuple[uvicorn.Server, threading.Thread]] = []

    def begin(studio: Studio, token: str | None = None) -> Browser:
        settings = uvicorn.Config(
            application(studio, token), port=0, log_level="error", ws="none"
        )
        server = uvicorn.Server(settings)
        thread = threading.Thread(target=server.run, daemon=True)
        thread.start()
        while not server.started:
            thread.join(0.01)
        servers.append((server, thread))
        port = server.servers[0].sockets[0].getsockname()[1]
        return Browser(f"http://127.0.0.1:{port}")

    yield begin
    for server, thread in servers:
        server.should_exit = True
        thread.join()
