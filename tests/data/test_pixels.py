"""What a file's or an image's pixels mean, where that can be mistaken."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from acontrol.data.images import read_image, read_mask
from acontrol.data.pixels import as_rgb, image_pixels, mask_pixels
from acontrol.errors import UserError

HEIGHT, WIDTH = 6, 9
SIZE = (WIDTH, HEIGHT)
RAMP = np.arange(HEIGHT * WIDTH, dtype=np.uint8).reshape(HEIGHT, WIDTH) * np.uint8(4)
SPOT = np.zeros((HEIGHT, WIDTH), np.uint8)
SPOT[2:4, 3:8] = 255
FULL = np.full_like(SPOT, 255)
NONE = np.zeros_like(SPOT)


def refusal(call: Callable[[], Any], kind: type[Exception] = UserError) -> str:
    with pytest.raises(kind) as caught:
        call()
    assert "\n" not in str(caught.value)
    return str(caught.value)


def png_of_16_bits(path: Path, pixels: np.ndarray) -> Path:
    """A colour PNG of 16 bits, which Pillow reads but does not write."""
    import struct
    import zlib

    def chunk(kind: bytes, body: bytes) -> bytes:
        crc = zlib.crc32(kind + body)
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", crc)

    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in pixels)
    header = struct.pack(">IIBBBBB", pixels.shape[1], pixels.shape[0], 16, 2, 0, 0, 0)
    parts = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + parts)
    return path


@pytest.mark.parametrize(
    ("name", "pixels"),
    [
        ("x.png", RAMP.astype(np.uint16) * np.uint16(16)),  # 12 bits.
        ("x.png", RAMP.astype(np.uint16)),  # 8 bits.
        ("x.tif", RAMP.astype(np.int32) * 4),  # 10 bits.
        ("x.tif", RAMP.astype(np.float32) / 4),  # Over 1, and next to black of 255.
        ("x.tif", RAMP.astype(np.float32) * np.float32(16 / 65535)),
    ],
)
def test_fewer_bits_in_a_deeper_file_are_refused(
    tmp_path: Path, name: str, pixels: np.ndarray
) -> None:
    image = Image.fromarray(pixels)
    image.save(tmp_path / name)
    message = refusal(lambda: read_image(tmp_path / name))
    assert str(tmp_path / name) in message and "rescale it to the whole range" in message
    assert "rescale" in refusal(lambda: image_pixels(image), ValueError)


def test_fewer_bits_in_colour_are_refused_and_sixteen_are_read(tmp_path: Path) -> None:
    colour = np.stack([RAMP, RAMP[::-1], 255 - RAMP], axis=-1)
    whole = png_of_16_bits(tmp_path / "x.png", colour.astype(np.uint16) * 257)
    np.testing.assert_array_equal(read_image(whole), colour)
    few = png_of_16_bits(tmp_path / "y.png", colour.astype(np.uint16) * 16)
    assert "holds values up to 15 where 255 is white" in refusal(lambda: read_image(few))


def test_a_dark_image_of_eight_bits_is_read(tmp_path: Path) -> None:
    Image.fromarray(RAMP // 32).save(tmp_path / "x.png")
    assert read_image(tmp_path / "x.png").max() == RAMP.max() // 32


@pytest.mark.parametrize("name", ["x.jpg", "x.png", "x.tif"])
@pytest.mark.parametrize("orientation", range(2, 9))
def test_an_exif_orientation_is_refused(tmp_path: Path, name: str, orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(SPOT).save(tmp_path / name, exif=exif)
    for read in (read_image, lambda path: read_mask(path, SIZE)):
        message = refusal(lambda read=read: read(tmp_path / name))
        assert str(tmp_path / name) in message
        assert f"EXIF orientation {orientation}" in message and "auto-orient" in message
    # Converted in memory, it keeps the mark and not the turn.
    with Image.open(tmp_path / name) as image:
        if name != "x.tif":  # Pillow itself turns a TIFF as it loads.
            assert "EXIF" in refusal(lambda: image_pixels(image.convert("RGB")), ValueError)


def test_an_upright_or_damaged_exif_is_no_matter(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 1
    Image.fromarray(RAMP).save(tmp_path / "x.png", exif=exif)
    Image.fromarray(RAMP).save(tmp_path / "y.png", exif=b"Exif\0\0no EXIF")
    for name in ("x.png", "y.png"):
        np.testing.assert_array_equal(read_image(tmp_path / name)[:, :, 0], RAMP)


@pytest.mark.parametrize("name", ["x.tif", "x.png"])
def test_pages_and_frames_are_refused(tmp_path: Path, name: str) -> None:
    pages = [Image.fromarray(SPOT), Image.fromarray(RAMP)]
    pages[0].save(tmp_path / name, save_all=True, append_images=pages[1:])
    for read in (read_image, lambda path: read_mask(path, SIZE)):
        message = refusal(lambda read=read: read(tmp_path / name))
        assert str(tmp_path / name) in message and "holds 2 pages or frames" in message


def test_a_cameras_jpeg_with_a_preview_is_its_first_image(tmp_path: Path) -> None:
    first, preview = Image.fromarray(RAMP), Image.fromarray(SPOT)
    first.save(tmp_path / "x.jpg", "MPO", save_all=True, append_images=[preview])
    first.save(tmp_path / "y.jpg")
    np.testing.assert_array_equal(
        read_image(tmp_path / "x.jpg"), read_image(tmp_path / "y.jpg")
    )


@pytest.mark.parametrize(
    "stored",
    [
        np.dstack([FULL, FULL, FULL, SPOT]),  # White, shown where it is opaque.
        np.dstack([NONE, NONE, NONE, SPOT]),  # Black paint on an empty layer.
        np.dstack([SPOT, NONE, NONE, SPOT]),  # Red paint on an empty layer.
        np.dstack([FULL, SPOT]),
        np.dstack([SPOT, NONE, SPOT]),  # Magenta on black.
        np.dstack([SPOT, NONE, NONE, FULL]),
    ],
)
def test_the_shape_is_found_in_transparency_and_in_one_colour(
    tmp_path: Path, stored: np.ndarray
) -> None:
    image = Image.fromarray(stored)
    image.save(tmp_path / "x.png")
    np.testing.assert_array_equal(read_mask(tmp_path / "x.png", SIZE), SPOT > 0)
    np.testing.assert_array_equal(mask_pixels(image), SPOT > 0)


CLASSES = SPOT.copy()
CLASSES[0, 0] = 128


@pytest.mark.parametrize(
    ("stored", "words"),
    [
        (CLASSES, ("3 grey values", "(0, 128, 255)", "each is a class")),
        (
            np.dstack([SPOT, CLASSES, NONE]),
            ("3 colours", "(0, 0, 0), (0, 128, 0), (255, 255, 0)", "each is a class"),
        ),
        (np.dstack([SPOT, RAMP]), ("transparent in 54 degrees", "black and white")),
        (np.dstack([SPOT, 255 - SPOT]), ("another in its transparency", "black and white")),
    ],
)
def test_what_a_mask_could_mean_twice_is_refused(
    tmp_path: Path, stored: np.ndarray, words: tuple[str, ...]
) -> None:
    image = Image.fromarray(stored)
    image.save(tmp_path / "x.png")
    message = refusal(lambda: read_mask(tmp_path / "x.png", SIZE))
    assert str(tmp_path / "x.png") in message and all(word in message for word in words)
    assert all(word in refusal(lambda: mask_pixels(image), ValueError) for word in words)


def test_an_image_is_opaque_everywhere(tmp_path: Path) -> None:
    file = tmp_path / "x.png"
    for colours in ((RAMP, RAMP, RAMP), (RAMP,)):
        Image.fromarray(np.dstack([*colours, FULL])).save(file)
        np.testing.assert_array_equal(read_image(file)[:, :, 0], RAMP)
        for alpha in (SPOT, FULL // 2):
            image = Image.fromarray(np.dstack([*colours, alpha]))
            image.save(file)
            assert "is transparent in" in refusal(lambda: read_image(file))
            assert "background" in refusal(lambda image=image: as_rgb(image), ValueError)


def test_sixteen_bits_in_memory_are_what_a_file_of_them_is(tmp_path: Path) -> None:
    image = Image.fromarray(RAMP.astype(np.uint16) * np.uint16(257))
    image.save(tmp_path / "x.png")
    np.testing.assert_array_equal(np.asarray(as_rgb(image)), read_image(tmp_path / "x.png"))
    np.testing.assert_array_equal(np.asarray(as_rgb(image))[:, :, 1], RAMP)
