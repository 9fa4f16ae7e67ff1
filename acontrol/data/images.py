"""Image and mask files: decoding, checking, resizing and encoding."""

import contextlib
import errno
import hashlib
import io
import os
import stat
from collections.abc import Iterator
from typing import BinaryIO, Literal

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor

from acontrol.data.pixels import (
    PixelError,
    class_pixels,
    image_pixels,
    mask_pixels,
)
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
    """Decode a whole image (`pixels.image_pixels`).

    Returns:
        The colours, (H, W, 3) in [0, 255].

    Raises:
        UserError: If the file is missing, damaged or cannot be read without a guess.
    """
    with _decoded(path) as image:
        return image_pixels(image)


def read_mask(
    path: str | os.PathLike[str], image_size: tuple[int, int]
) -> npt.NDArray[np.bool_]:
    """Decode a mask of two levels, black and another (`pixels.mask_pixels`).

    Args:
        path: The file.
        image_size: Width and height of its image.

    Returns:
        The defect's pixels, (H, W), at least one True.

    Raises:
        UserError: If the file is missing, damaged, empty, not binary or differs in size from
            the image.
    """
    with _decoded(path) as image:
        mask = mask_pixels(image)
    _require_size(path, mask.shape, image_size)
    return mask


def read_classes(
    path: str | os.PathLike[str], image_size: tuple[int, int], *, colours: bool = False
) -> dict[str, npt.NDArray[np.bool_]]:
    """Decode a mask in which each level, palette index or colour is a class (`class_pixels`).

    Raises:
        UserError: If the file is missing, damaged, of no classes or differs in size from the
            image.
    """
    with _decoded(path) as image:
        _require_size(path, image.size[::-1], image_size)
        return class_pixels(image, colours=colours)


def _require_size(
    path: str | os.PathLike[str], shape: tuple[int, ...], image_size: tuple[int, int]
) -> None:
    height, width = shape
    if (width, height) != image_size:
        raise UserError(
            f"{path}: the mask is {width} x {height} pixels and its image {image_size[0]} x "
            f"{image_size[1]}; make the mask for this image at its size"
        )


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
    except PixelError as error:
        raise UserError(f"{path}: {error}") from error
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


@contextlib.contextmanager
def _decoded(path: str | os.PathLike[str]) -> Iterator[Image.Image]:
    """Open an image file after a check of its checksums and its end, which decoding skips."""
    with _explained(path):
        with opened(path, FORMATS) as image:
            image.verify()
        with opened(path, FORMATS) as image:
            yield image


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
