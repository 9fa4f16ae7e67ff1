"""Requests to a served model, checked before anything is drawn.

All limits are here. A bad request raises ValueError with a one-line message for the client.
"""

import base64
import binascii
import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image

from acontrol.data.images import encode_png
from acontrol.data.pixels import PixelError, image_pixels, mask_pixels
from acontrol.errors import one_line

MAX_ROWS = 8
MAX_BASE64 = 8 * 2**20  # characters of one image
MAX_PIXELS = 4096 * 4096
MAX_TEXT = 500
FORMATS = ("PNG", "JPEG")
TEXTS = ("prompt", "reference_phrase")
IMAGES = ("reference_image", "reference_mask", "image", "mask_image")
COLUMNS = (*TEXTS, *IMAGES, "seed")


@dataclass(frozen=True)
class ServedRequest:
    """One image to draw; fields are named like the pipeline's arguments."""

    prompt: str
    reference_phrase: str
    reference_image: Image.Image
    reference_mask: Image.Image
    image: Image.Image
    mask_image: Image.Image
    seed: int


@dataclass(frozen=True)
class ServedSampling:
    """Sampling settings for all images of a request."""

    num_inference_steps: int = 30
    guidance_scale: float = 7.5
    semantic_scale: float = 1.0
    composite: bool = True


def read_rows(rows: Sequence[Mapping[str, Any]]) -> list[ServedRequest]:
    """Decode and check a request's rows.

    Raises:
        ValueError: If there are no rows or too many, or an entry is bad; names row and entry.
    """
    if not 1 <= len(rows) <= MAX_ROWS:
        raise ValueError(f"need 1 to {MAX_ROWS} rows, got {len(rows)}")
    requests = []
    for number, row in enumerate(rows):
        try:
            requests.append(_row(row))
        except ValueError as error:
            raise ValueError(f"row {number}: {error}") from error
    return requests


def read_params(params: Mapping[str, Any] | None, defaults: ServedSampling) -> ServedSampling:
    """Check a request's parameters.

    Raises:
        ValueError: If one is out of range.
    """
    given = {name: value for name, value in (params or {}).items() if value is not None}
    sampling = ServedSampling(**{**vars(defaults), **given})
    for name, low, high in (
        ("num_inference_steps", 1, 200),
        ("guidance_scale", 1, 50),
        ("semantic_scale", 0, 10),
    ):
        value = getattr(sampling, name)
        if not math.isfinite(value) or not low <= value <= high:
            raise ValueError(f"{name} must be from {low} to {high}, got {value}")
    return sampling


def encode(image: Image.Image) -> str:
    """An image as base64 PNG."""
    return base64.b64encode(encode_png(image)).decode("ascii")


def _row(row: Mapping[str, Any]) -> ServedRequest:
    for name in TEXTS:
        value = row.get(name)
        if not isinstance(value, str) or not value.strip():
            raise ValueError(f"{name}: need a text")
        if len(value) > MAX_TEXT:
            raise ValueError(f"{name}: at most {MAX_TEXT} characters, got {len(value)}")
    seed = row.get("seed")
    if (
        isinstance(seed, bool)
        or not isinstance(seed, int | np.integer)
        or not 0 <= seed < 2**63
    ):
        raise ValueError(f"seed: need a whole number from 0 to 2^63 - 1, got {seed!r}")
    images = {name: _image(name, row.get(name)) for name in IMAGES}
    for name, mask in (("reference_image", "reference_mask"), ("image", "mask_image")):
        if images[name].size != images[mask].size:
            raise ValueError(f"{mask}: is {images[mask].size}, its image {images[name].size}")
    return ServedRequest(row["prompt"], row["reference_phrase"], **images, seed=int(seed))


def _image(name: str, value: Any) -> Image.Image:
    if not isinstance(value, str):
        raise ValueError(f"{name}: need a PNG or JPEG in base64")
    if len(value) > MAX_BASE64:
        raise ValueError(f"{name}: at most {MAX_BASE64} characters, got {len(value)}")
    try:
        content = base64.b64decode(value, validate=True)
    except (binascii.Error, ValueError):
        raise ValueError(f"{name}: is not base64") from None
    try:
        # Only the header so far: a small file can claim any size.
        with Image.open(io.BytesIO(content), formats=FORMATS) as opened:
            if opened.width * opened.height > MAX_PIXELS:
                raise OverflowError(f"{opened.width} x {opened.height}")
            opened.load()
            # The same reading as of files.
            read = mask_pixels if "mask" in name else image_pixels
            return Image.fromarray(read(opened))
    except PixelError as error:
        raise ValueError(f"{name}: {error}") from None
    except (OverflowError, Image.DecompressionBombError, Image.DecompressionBombWarning) as big:
        raise ValueError(f"{name}: more than {MAX_PIXELS} pixels ({big})") from None
    except Exception as error:  # Damaged files raise many kinds.
        reason = one_line(error, 100).partition(" <")[0]
        raise ValueError(f"{name}: is not a readable PNG or JPEG ({reason})") from None
