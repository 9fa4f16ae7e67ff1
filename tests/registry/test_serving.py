"""A registered model served by MLflow: real HTTP requests, good and bad."""

import base64
import io
import json
import shutil
import urllib.error
import urllib.request
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from acontrol.errors import UserError
from acontrol.pipelines.loading import load_pipeline
from acontrol.registry.register import register_run
from acontrol.registry.requests import (
    IMAGES,
    MAX_BASE64,
    MAX_PIXELS,
    MAX_ROWS,
    encode,
    read_rows,
)
from acontrol.registry.serving import _load_pyfunc
from examples import serve_client
from tests.launch import commands
from tests.registry.conftest import free_port, serving

PARAMS = {"num_inference_steps": 2}


@pytest.fixture(scope="module")
def uri(own_run: Path) -> str:
    """The database that has the registered model ``served``."""
    return register_run(own_run, "served").uri


@pytest.fixture(scope="module")
def address(uri: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Of ``mlflow models serve``."""
    port = free_port()
    args = [
        *("mlflow", "models", "serve", "--model-uri", "models:/served@candidate"),
        *("--env-manager", "local", "--host", "127.0.0.1", "--port", port),
    ]
    log = tmp_path_factory.mktemp("serve") / "log"
    with serving(args, port, "/ping", log, MLFLOW_TRACKING_URI=uri) as result:
        yield result


@pytest.fixture(scope="module")
def example(own_run: Path, uri: str) -> dict[str, Any]:
    """The model's own example, as a record."""
    (file,) = own_run.parent.glob("artifacts/**/served-*/input_example.json")
    content = json.loads(file.read_text())
    return dict(zip(content["columns"], content["data"][0], strict=True))


def png(mode: str = "RGB", size: tuple[int, int] = (64, 64), colour: Any = None) -> str:
    return encode(Image.new(mode, size, colour or 0))


def claiming(width: int, height: int) -> str:
    """A few bytes that say they are a picture of that size."""
    header = b"IHDR" + width.to_bytes(4, "big") + height.to_bytes(4, "big") + b"\x08\2\0\0\0"
    content = b"\x89PNG\r\n\x1a\n" + (13).to_bytes(4, "big") + header
    content += zlib.crc32(header).to_bytes(4, "big") + bytes(4) + b"IDAT" + bytes(4)
    return base64.b64encode(content).decode()


def blurred_mask() -> Image.Image:
    mask = Image.new("L", (64, 64))
    mask.paste(255, (11, 13, 40, 37))
    return mask


def other(kind: str, image: Image.Image | None = None) -> str:
    content = io.BytesIO()
    (image or Image.new("RGB", (64, 64))).save(content, kind)
    return base64.b64encode(content.getvalue()).decode()


CLASSES = np.arange(4096, dtype=np.uint8).reshape(64, 64) % np.uint8(3)
# What is said of a row, and what the answer must say.
BAD_ROWS: dict[str, tuple[dict[str, Any], str]] = {
    "no text": ({"prompt": ""}, "row 0: prompt: need a text"),
    "a long text": ({"prompt": "x" * 501}, "prompt: at most 500 characters, got 501"),
    "a number for a text": ({"prompt": 3}, "prompt"),
    "no token": ({"reference_phrase": "\u200b"}, "gives no token"),
    "too many tokens": ({"reference_phrase": "crack " * 80}, "is too long"),
    "no base64": ({"image": "?"}, "image: is not base64"),
    "no image": ({"image": "aGFsbG8="}, "image: is not a readable PNG or JPEG"),
    "a BMP": ({"image": other("BMP")}, "image: is not a readable PNG or JPEG"),
    "a cut PNG": ({"image": png()[:80]}, "image: is not a readable PNG or JPEG"),
    "a cut JPEG": ({"image": other("JPEG")[:80]}, "image: is not a readable PNG or JPEG"),
    "a JPEG of a mask": (
        {"mask_image": other("JPEG", blurred_mask())},
        "mask_image: the mask holds",
    ),
    "a huge PNG": ({"image": claiming(50_000, 50_000)}, f"more than {MAX_PIXELS} pixels"),
    "a wide PNG": ({"image": claiming(2**31 - 1, 2)}, f"more than {MAX_PIXELS} pixels"),
    "too many characters": ({"image": "A" * (MAX_BASE64 + 4)}, f"at most {MAX_BASE64}"),
    "an empty mask": ({"mask_image": png("L")}, "mask_image: the mask is empty"),
    "an empty reference mask": (
        {"reference_mask": png("1")},
        "reference_mask: the mask is empty",
    ),
    "a mask of another size": (
        {"mask_image": png("L", (32, 64), 255)},
        "mask_image: is (32, 64), its image (64, 64)",
    ),
    "a mask of classes": (
        {"mask_image": encode(Image.fromarray(CLASSES))},
        "mask_image: the mask holds 3 grey values",
    ),
    "twelve bits": (
        {"image": encode(Image.fromarray(np.full((64, 64), 4095, np.uint16)))},
        "image: holds values up to 4095 where 65535 is white",
    ),
    "no seed": ({"seed": None}, "seed"),
    "a seed below zero": ({"seed": -1}, "seed: need a whole number"),
    "a seed too large": ({"seed": 2**64}, "seed"),
    "a text for a seed": ({"seed": "one"}, "seed"),
}
BAD_PARAMS: dict[str, tuple[dict[str, Any], str]] = {
    "no steps": ({"num_inference_steps": 0}, "must be from 1 to 200, got 0"),
    "too many steps": ({"num_inference_steps": 10**6}, "must be from 1 to 200"),
    "gamma out of range": ({"semantic_scale": 11.0}, "semantic_scale must be from 0 to 10"),
    "a text for a number": ({"guidance_scale": "much"}, "guidance_scale"),
}
BAD_BODIES: dict[str, tuple[bytes, str]] = {
    "no JSON": (b"{", "valid JSON"),
    "a list": (b"[]", "Received a list"),
    "nothing": (b"{}", "input fields"),
    "no rows": (b'{"dataframe_records": []}', "prompt"),
    "no columns": (b'{"dataframe_records": [{}]}', "prompt"),
    "rows as a text": (b'{"dataframe_split": "x"}', ""),
}


def test_bad_rows_are_refused_before_a_server_sees_them() -> None:
    good = {name: png(colour=9) for name in ("reference_image", "image")}
    good |= {name: png("L", colour=255) for name in ("reference_mask", "mask_image")}
    good |= {"prompt": "a photo", "reference_phrase": "a crack", "seed": 1}
    assert read_rows([good])[0].mask_image.getbbox() == (0, 0, 64, 64)
    photo = Image.new("RGB", (64, 64), (200, 90, 30))
    (read,) = read_rows([good | {"image": other("JPEG", photo)}])
    assert read.image.size == (64, 64)
    assert np.abs(np.asarray(read.image).astype(int) - np.asarray(photo)).max() <= 3
    for kind in ("an empty mask", "a mask of classes", "twelve bits", "a cut PNG"):
        row, words = BAD_ROWS[kind]
        with pytest.raises(ValueError) as caught:
            read_rows([{**good, **row}])
        assert words in str(caught.value) and "\n" not in str(caught.value)


def refusal(address: str, body: bytes) -> str:
    """Send what must be refused with status 400; gives the reason."""
    headers = {"Content-Type": "application/json"}
    request = urllib.request.Request(f"{address}/invocations", body, headers)
    with pytest.raises(urllib.error.HTTPError) as caught:
        urllib.request.urlopen(request, timeout=60)
    with caught.value as answer:
        assert answer.code == 400
        return str(json.loads(answer.read())["message"])


def asking(row: dict[str, Any], params: dict[str, Any] | None = None) -> bytes:
    return json.dumps({"dataframe_records": [row], "params": params or PARAMS}).encode()


def test_the_server_lives_through_bad_requests_and_repeats_itself(
    address: str, example: dict[str, Any]
) -> None:
    first = serve_client.draw(address, [example], PARAMS)
    for row, words in BAD_ROWS.values():
        assert words in refusal(address, asking({**example, **row}))
    for params, words in BAD_PARAMS.values():
        assert words in refusal(address, asking(example, params))
    for body, words in BAD_BODIES.values():
        assert words in refusal(address, body)
    many = {"dataframe_records": [example] * (MAX_ROWS + 1), "params": PARAMS}
    assert f"need 1 to {MAX_ROWS} rows" in refusal(address, json.dumps(many).encode())
    # The same request, the same bytes; a row's image is the same among others.
    assert serve_client.draw(address, [example], PARAMS) == first
    other = {**example, "seed": 1}
    two = serve_client.draw(address, [other, example], PARAMS)
    assert two[1:] == first
    assert two[0] != first[0]


def test_the_client_writes_what_the_pipeline_draws(
    address: str, example: dict[str, Any], own_run: Path, tmp_path: Path
) -> None:
    for name in IMAGES:
        (tmp_path / f"{name}.png").write_bytes(base64.b64decode(example[name]))
    files = ("--reference", "--reference-mask", "--image", "--mask")
    args: list[object] = [address, "--steps", 2, "--out", tmp_path / "out.png"]
    for option, name in zip(files, IMAGES, strict=True):
        args += [option, tmp_path / f"{name}.png"]
    args += ["--prompt", example["prompt"], "--reference-phrase"]
    done = commands.run("examples.serve_client", *args, "a crack")
    assert done.stdout == f"Image: {tmp_path / 'out.png'}\n", done.stderr
    pipeline = load_pipeline(str(own_run))
    images = {name: [Image.open(tmp_path / f"{name}.png")] for name in IMAGES}
    drawn = pipeline(
        prompt=[example["prompt"]],
        reference_phrase=["a crack"],
        **images,
        num_inference_steps=2,
        generator=[torch.Generator().manual_seed(0)],
    ).images[0]
    served = Image.open(tmp_path / "out.png")
    assert served.tobytes() == drawn.tobytes()
    refused = commands.run("examples.serve_client", *args, "crack " * 80)
    assert refused.returncode == 1
    assert refused.stderr.startswith("error: ")
    assert "is too long" in refused.stderr


def test_the_pyfunc_flavour_loads_and_checks(
    uri: str, example: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    import mlflow.pyfunc
    import pandas as pd

    monkeypatch.setattr(mlflow, "get_tracking_uri", mlflow.get_tracking_uri)
    mlflow.set_tracking_uri(uri)
    try:
        model = mlflow.pyfunc.load_model("models:/served/1")
        rows = pd.DataFrame([example])
        first, second = (model.predict(rows, params=PARAMS)["image"][0] for _ in range(2))
        assert first == second
        assert Image.open(io.BytesIO(base64.b64decode(first))).size == (64, 64)
        with pytest.raises(mlflow.exceptions.MlflowException, match="need a text"):
            model.predict(rows.assign(prompt=""), params=PARAMS)
    finally:
        mlflow.set_tracking_uri(None)


@pytest.mark.usefixtures("uri")
def test_a_damaged_folder_is_not_served(own_run: Path, tmp_path: Path) -> None:
    (model,) = own_run.parent.glob("artifacts/**/served-*/MLmodel")
    shutil.copytree(model.parent, tmp_path / "model")
    (tmp_path / "model" / "card.json").write_text("{}")
    with pytest.raises(UserError, match=r"card\.json: its sha256"):
        _load_pyfunc(str(tmp_path / "model"))
