"""Images and masks: decoding, checking, resizing and encoding.

Pixels are read as stored: EXIF orientation is not applied, since masks have none.
"""

import contextlib
import errno
import hashlib
import io
import os
import stat
from collections.abc import Iterator
from typing import Any, BinaryIO, Literal

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor

from acontrol.errors import UserError, one_line

# No other Pillow reader, whatever the file's name: one starts Ghostscript.
FORMATS = ("PNG", "JPEG", "BMP", "TIFF")
_ADVICE = {
    errno.EACCES: "check its permissions",
    errno.EPERM: "check its permissions",
    errno.ELOOP: "the links lead in a circle, mend them",
}


def image_size(path: str | os.PathLike[str]) -> tuple[int, int]:
    """Width and height of an image, from its file's header alone.

    Raises:
        UserError: If the file is missing or not an image.
    """
    with _explained(path), opened(path, FORMATS) as image:
        return image.size


def read_image(path: str | os.PathLike[str]) -> npt.NDArray[np.uint8]:
    """Decode a whole image.

    Sixteen-bit grey is scaled from 65535 to 255. Float images must be in [0, 1] or [0, 255].
    Transparency is dropped.

    Returns:
        The colours, (H, W, 3) in [0, 255].

    Raises:
        UserError: If the file is missing, damaged or has values out of range.
    """
    pixels = _decode(path)
    if pixels.dtype != np.uint8:
        low, high = float(pixels.min()), float(pixels.max())
        if pixels.dtype.kind == "f":
            limit = 1.0 if high <= 1 else 255.0
            need = "floats in [0, 1] or [0, 255]"
        else:
            limit = 65535.0
            need = "integers in [0, 65535]"
        if low < 0 or high > limit:
            raise UserError(
                f"{path}: holds values from {low:g} to {high:g}, need {need}; rescale it"
            )
        pixels = np.rint(pixels * (255 / limit)).astype(np.uint8)
    if pixels.ndim == 2:
        pixels = np.repeat(pixels[:, :, None], 3, axis=2)
    return pixels


def read_mask(
    path: str | os.PathLike[str], image_size: tuple[int, int]
) -> npt.NDArray[np.bool_]:
    """Decode a mask of two grey levels, black and another; a single level covers the image.

    Args:
        path: The file; colour is accepted if the channels are equal.
        image_size: Width and height of its image.

    Returns:
        The defect's pixels, (H, W), at least one True.

    Raises:
        UserError: If the file is missing, damaged, empty, coloured, not binary or differs in
            size from the image.
    """
    pixels = _decode(path)
    if pixels.ndim == 3:
        if (pixels != pixels[:, :, :1]).any():
            raise UserError(f"{path}: the mask is coloured; save it in black and white")
        pixels = pixels[:, :, 0]
    height, width = pixels.shape
    if (width, height) != image_size:
        raise UserError(
            f"{path}: the mask is {width} x {height} pixels and its image {image_size[0]} x "
            f"{image_size[1]}; make the mask for this image at its size"
        )
    levels = np.unique(pixels)
    if not levels.any():
        raise UserError(
            f"{path}: the mask is empty; mark the defect in it, or remove the image"
        )
    if len(levels) > 2 or (len(levels) == 2 and levels[0] != 0):
        raise UserError(
            f"{path}: the mask holds {len(levels)} grey values from {levels[0]:g} to "
            f"{levels[-1]:g}, need 0 and one other (JPEG compression or smooth edges add "
            "more); threshold it and save it as PNG"
        )
    return np.asarray(pixels != 0)


def check_image(path: str | os.PathLike[str]) -> npt.NDArray[np.uint8]:
    """``read_image`` for training, which refuses a uniform image.

    Raises:
        UserError: Also if every pixel has the same colour.
    """
    pixels = read_image(path)
    if (pixels == pixels[:1, :1]).all():
        raise UserError(
            f"{path}: every pixel has the same colour, {tuple(pixels[0, 0].tolist())}; replace "
            "or remove it"
        )
    return pixels


@contextlib.contextmanager
def opened(
    source: str | os.PathLike[str] | BinaryIO, formats: tuple[str, ...]
) -> Iterator[Image.Image]:
    """Open an image of these formats, up to Pillow's pixel limit.

    Pillow itself only warns up to twice its limit, and turning its warning into an error would
    reset the process's warning filters.

    Raises:
        Image.DecompressionBombError: If it has more pixels.
    """
    with Image.open(source, formats=formats) as image:
        pixels, limit = image.width * image.height, Image.MAX_IMAGE_PIXELS
        if limit is not None and pixels > limit:
            raise Image.DecompressionBombError(
                f"{pixels} pixels, over {limit}, may be a decompression bomb"
            )
        yield image


@contextlib.contextmanager
def _explained(path: str | os.PathLike[str]) -> Iterator[None]:
    """Turn whatever reading an image file raises into a UserError.

    Raises:
        UserError: Also if the path is not a regular file.
    """
    try:
        if not stat.S_ISREG(os.stat(path).st_mode):
            raise UserError(f"{path}: is not a file; replace or remove it")
        yield
    except (MemoryError, UserError):
        raise
    except FileNotFoundError as error:
        raise UserError(f"{path}: does not exist; put the file there") from error
    except UnidentifiedImageError as error:
        raise UserError(
            f"{path}: is not a PNG, JPEG, BMP or TIFF image; replace or remove it"
        ) from error
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise UserError(
            f"{path}: is over {Image.MAX_IMAGE_PIXELS} pixels, the most that is decoded; scale "
            "it down or remove it"
        ) from error
    except Exception as error:  # A damaged file can raise anything in Pillow's readers.
        # str() of an OSError would repeat the path.
        reason = getattr(error, "strerror", None) or one_line(error)
        advice = _ADVICE.get(getattr(error, "errno", None) or 0, "replace or remove it")
        raise UserError(f"{path}: cannot be decoded ({reason}); {advice}") from error


def _decode(path: str | os.PathLike[str]) -> npt.NDArray[Any]:
    """Pixels as stored: (H, W) of a grey image's own type, or (H, W, 3) uint8."""
    with _explained(path):
        with opened(path, FORMATS) as image:
            image.verify()  # Checksums and the end of the file, which decoding skips.
        with opened(path, FORMATS) as image:
            image.load()
            mode = image.mode
            converted: Image.Image = image
            if mode not in ("L", "I", "F") and not mode.startswith("I;16"):
                # Through RGBA, since a palette with transparency warns otherwise.
                through = image.convert("RGBA") if mode in ("P", "PA") else image
                converted = through.convert("RGB")
            # A copy: Pillow's own array is read-only, which torch warns about.
            pixels = np.array(converted)
    if pixels.dtype.kind == "f" and not np.isfinite(pixels).all():
        raise UserError(f"{path}: holds values that are not finite; save it without them")
    return pixels


def fit(image: Image.Image, mask: Image.Image, size: int) -> tuple[Tensor, Tensor]:
    """Resize image and mask to a square, ignoring the aspect ratio: no defect is cropped.

    Returns:
        (3, size, size) in [-1, 1] and (1, size, size) of 0 and 1.
    """
    if mask.size != (size, size):
        mask = shrink_mask(mask, (size, size))
    return _pixels(image, size), torch.from_numpy(np.array(mask, dtype=np.float32))[None]


def _pixels(image: Image.Image, size: int) -> Tensor:
    """(3, size, size) in [-1, 1]."""
    if image.size != (size, size):
        image = image.resize((size, size), Image.Resampling.BICUBIC)
    pixels = torch.from_numpy(np.array(image, dtype=np.uint8)).permute(2, 0, 1)
    return pixels.float() / 127.5 - 1


def region(
    image: Image.Image, mask: Image.Image, margin: float = 0.5
) -> tuple[Image.Image, Image.Image]:
    """Cut out a square around the mask, larger than it by ``margin`` on each side.

    The square is moved into the image if possible, and cut at the edge rather than padded.
    """
    left, top, right, bottom = mask.getbbox() or (0, 0, *mask.size)
    side = max(right - left, bottom - top) * (1 + 2 * margin)
    width, height = min(side, image.width), min(side, image.height)
    x = min(max((left + right - width) / 2, 0), image.width - width)
    y = min(max((top + bottom - height) / 2, 0), image.height - height)
    box = (
        int(x),
        int(y),
        min(image.width, int(x + width + 1)),
        min(image.height, int(y + height + 1)),
    )
    return image.crop(box), mask.crop(box)


def reference_view(
    image: Image.Image, mask: Image.Image, view: Literal["image", "region"], size: int
) -> tuple[Tensor, Tensor]:
    """A reference as the vision tower sees it: whole, or the surroundings of its defect.

    Returns:
        (3, size, size) in [-1, 1], and (1, size, size) in [0, 1]: the share of each pixel that
        the defect covers, so that none is too thin to count.
    """
    if view == "region":
        image, mask = region(image, mask)
    # In floating point, since 8 bits round a speck away.
    covered = mask.convert("L").convert("F").resize((size, size), Image.Resampling.BOX)
    return _pixels(image, size), torch.from_numpy(np.array(covered) / np.float32(255))[None]


def shrink_mask(mask: Image.Image, size: tuple[int, int]) -> Image.Image:
    """Resize a 1-bit mask; a defect thinner than a pixel keeps every pixel it touches."""
    covered = mask.convert("L").resize(size, Image.Resampling.BOX)
    half = covered.point(lambda value: 255 * (value >= 128))
    if half.getbbox() is None:
        half = covered.point(lambda value: 255 * (value > 0))
    if half.getbbox() is None:  # A speck under 1/255 of a pixel: round it up to one.
        left, top, right, bottom = mask.getbbox() or (0, 0, 1, 1)
        x = min(size[0] - 1, (left + right) * size[0] // (2 * mask.width))
        y = min(size[1] - 1, (top + bottom) * size[1] // (2 * mask.height))
        half.putpixel((x, y), 255)
    return half.convert("1")


def pictures(images: Tensor) -> list[Image.Image]:
    """Convert (batch, 3, height, width) in [-1, 1] to PIL, rounded to the nearest level."""
    levels = ((images.float().clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)
    return [Image.fromarray(pixels.permute(1, 2, 0).numpy()) for pixels in levels.cpu()]


def pixel_digest(pixels: npt.NDArray[np.uint8]) -> str:
    """Digest of an image's pixels, whatever the file format."""
    shape = "x".join(str(length) for length in pixels.shape)
    return hashlib.sha256(shape.encode() + pixels.tobytes()).hexdigest()


def encode_png(image: Image.Image) -> bytes:
    """The image as a PNG file."""
    buffer = io.BytesIO()
    image.save(buffer, format="PNG")
    return buffer.getvalue()
