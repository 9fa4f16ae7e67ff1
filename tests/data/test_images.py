from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageFile

from acontrol.data.images import image_size, read_image, read_mask
from acontrol.errors import UserError

HEIGHT, WIDTH = 6, 9
SIZE = (WIDTH, HEIGHT)


def save(path: Path, pixels: Any) -> Path:
    Image.fromarray(np.asarray(pixels)).save(path)
    return path


def grey(level: int = 90) -> np.ndarray:
    return np.full((HEIGHT, WIDTH), level, np.uint8)


def spot(level: int = 255) -> np.ndarray:
    pixels = grey(0)
    pixels[2:4, 3:8] = level
    return pixels


def refusal(call: Callable[[], Any]) -> str:
    """The message of a one-line refusal."""
    with pytest.raises(UserError) as caught:
        call()
    assert "\n" not in str(caught.value)
    return str(caught.value)


RAMP = np.arange(HEIGHT * WIDTH, dtype=np.uint8).reshape(HEIGHT, WIDTH) * np.uint8(4)
COLOUR = np.stack([RAMP, RAMP[::-1], 255 - RAMP], axis=-1)
THREE = np.stack([RAMP] * 3, axis=-1)
WIDE = RAMP.astype(np.uint16) * np.uint16(257)


@pytest.mark.parametrize(
    ("name", "stored", "mode", "expected"),
    [
        ("grey.png", RAMP, "L", THREE),
        ("rgb.png", COLOUR, "RGB", COLOUR),
        ("rgb.bmp", COLOUR, "RGB", COLOUR),
        ("rgba.png", np.dstack([COLOUR, np.full_like(RAMP, 255)]), "RGBA", COLOUR),
        ("grey_alpha.png", np.dstack([RAMP, np.full_like(RAMP, 255)]), "LA", THREE),
        ("bits.png", RAMP > 99, "1", np.where(THREE > 99, 255, 0)),
        ("wide.png", WIDE, "I;16", THREE),
        ("between.png", WIDE + np.uint16(129), "I;16", THREE + np.uint8(1)),
        ("wide.tif", WIDE.astype(">u2"), "I;16B", THREE),
        ("integers.tif", WIDE.astype(np.int32), "I", THREE),
        ("unit.tif", (RAMP / 255).astype(np.float32), "F", THREE),
        ("bytes.tif", RAMP.astype(np.float32), "F", THREE),
    ],
)
def test_images_of_every_mode_become_rgb(
    tmp_path: Path, name: str, stored: np.ndarray, mode: str, expected: np.ndarray
) -> None:
    path = save(tmp_path / name, stored)
    with Image.open(path) as image:
        assert image.mode == mode
    pixels = read_image(path)
    assert pixels.dtype == np.uint8 and pixels.flags.writeable
    np.testing.assert_array_equal(pixels, expected)


@pytest.mark.parametrize("transparency", [None, 9, b"\xff\xff\xff"])
def test_a_palette_image_has_its_palettes_colours(tmp_path: Path, transparency: Any) -> None:
    image = Image.fromarray(RAMP // 4 % 5)
    image.putpalette([10, 20, 30, 200, 0, 0, 0, 200, 0, 0, 0, 200, 7, 8, 9])
    extra = {} if transparency is None else {"transparency": transparency}
    image.save(tmp_path / "p.png", **extra)
    palette = np.array([[10, 20, 30], [200, 0, 0], [0, 200, 0], [0, 0, 200], [7, 8, 9]])
    np.testing.assert_array_equal(read_image(tmp_path / "p.png"), palette[RAMP // 4 % 5])


def test_a_cmyk_image_becomes_rgb(tmp_path: Path) -> None:
    Image.new("CMYK", SIZE, (0, 255, 255, 0)).save(tmp_path / "c.tif")
    np.testing.assert_array_equal(read_image(tmp_path / "c.tif")[0, 0], [255, 0, 0])


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (np.float32(np.nan), "non-finite"),
        (np.float32(np.inf), "non-finite"),
        (np.float32(-0.5), "from -0.5"),
        (np.float32(256), "to 256"),
        (np.int32(65536), "to 65536"),
        (np.int32(-1), "from -1"),
    ],
)
def test_values_out_of_range_are_refused(tmp_path: Path, value: Any, words: str) -> None:
    pixels = np.zeros((HEIGHT, WIDTH), value.dtype)
    pixels[1, 2] = value
    path = save(tmp_path / "x.tif", pixels)
    message = refusal(lambda: read_image(path))
    assert str(path) in message and words in message


NOISE = np.random.default_rng(0).integers(0, 256, (64, 48, 3), dtype=np.uint8)


@pytest.mark.parametrize("suffix", ["png", "jpg", "bmp", "tif"])
def test_a_truncated_file_is_refused(tmp_path: Path, suffix: str) -> None:
    path = save(tmp_path / f"x.{suffix}", NOISE)
    assert read_image(path).shape == (64, 48, 3)
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) * 2 // 3])
    for reader in (read_image, lambda path: read_mask(path, (48, 64))):
        message = refusal(lambda reader=reader: reader(path))
        assert str(path) in message and "replace or remove it" in message
    assert ImageFile.LOAD_TRUNCATED_IMAGES is False


@pytest.mark.parametrize("read", [read_image, image_size])
def test_a_file_that_is_not_an_image_is_refused(
    tmp_path: Path, read: Callable[[Path], Any]
) -> None:
    for name, content in (("text.png", b"no image"), ("empty.png", b"")):
        (tmp_path / name).write_bytes(content)
        message = refusal(lambda name=name: read(tmp_path / name))
        expected = "is not a PNG, JPEG, BMP or TIFF image; replace or remove it"
        assert message == f"{tmp_path / name}: {expected}"
    (tmp_path / "folder.png").mkdir()
    assert "is not a file" in refusal(lambda: read(tmp_path / "folder.png"))
    (tmp_path / "link.png").symlink_to(tmp_path / "gone.png")
    assert "link.png: does not exist" in refusal(lambda: read(tmp_path / "link.png"))


def test_the_size_comes_from_the_header_alone(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # Orientation: turned by 90 degrees.
    Image.fromarray(NOISE).save(tmp_path / "x.jpg", exif=exif)
    content = (tmp_path / "x.jpg").read_bytes()
    assert image_size(tmp_path / "x.jpg") == (48, 64)
    (tmp_path / "x.jpg").write_bytes(content[: len(content) * 2 // 3])
    assert image_size(tmp_path / "x.jpg") == (48, 64)


def palette_of_spot() -> Image.Image:
    image = Image.fromarray(spot(1))
    image.putpalette([0, 0, 0, 255, 255, 255])
    return image


@pytest.mark.parametrize(
    ("name", "stored"),
    [
        ("x.png", spot()),
        ("x.png", spot(1)),
        ("x.png", spot().astype(bool)),
        ("x.png", spot(1).astype(np.uint16)),
        ("x.png", spot().astype(np.uint16) * np.uint16(257)),
        ("x.tif", spot(1).astype(np.float32)),
        ("x.png", np.dstack([spot()] * 3)),
        ("x.png", np.dstack([spot(), spot(), spot(), grey()])),
        ("x.png", np.dstack([spot(), grey()])),
        ("x.png", palette_of_spot()),
    ],
)
def test_two_grey_levels_of_any_kind_are_a_mask(tmp_path: Path, name: str, stored: Any) -> None:
    image = stored if isinstance(stored, Image.Image) else Image.fromarray(stored)
    image.save(tmp_path / name)
    mask = read_mask(tmp_path / name, SIZE)
    assert mask.dtype == np.bool_
    np.testing.assert_array_equal(mask, spot() > 0)


def test_one_level_marks_the_whole_image(tmp_path: Path) -> None:
    assert read_mask(save(tmp_path / "x.png", grey(255)), SIZE).all()


SMOOTH = spot()
SMOOTH[1, 3:8] = 128


@pytest.mark.parametrize(
    ("stored", "words"),
    [
        (grey(0), ("is empty", "remove the image")),
        (spot().T, ("6 x 9", "9 x 6")),
        (SMOOTH, ("3 grey values from 0 to 255", "threshold")),
        (spot() // 2 + np.uint8(60), ("2 grey values from 60 to 187", "threshold")),
        (spot().astype(np.int32) - 255, ("2 grey values from -255 to 0", "threshold")),
        (np.dstack([spot(), spot(), grey(9)]), ("coloured in 2 colours", "black and white")),
        (np.where(spot() > 0, np.float32(np.nan), np.float32(0)), ("non-finite",)),
    ],
)
def test_a_bad_mask_is_refused(tmp_path: Path, stored: Any, words: tuple[str, ...]) -> None:
    path = save(tmp_path / "x.tif", stored)
    message = refusal(lambda: read_mask(path, SIZE))
    assert str(path) in message and all(word in message for word in words)


def test_a_jpeg_mask_is_refused(tmp_path: Path) -> None:
    pixels = np.zeros((32, 32), np.uint8)
    pixels[5:20, 7:22] = 255
    path = save(tmp_path / "x.jpg", pixels)
    message = refusal(lambda: read_mask(path, (32, 32)))
    values = len(np.unique(np.asarray(Image.open(path))))
    assert values > 2 and f"{path}: the mask holds {values} grey values" in message
