"""The one reader of pixels, for files (`acontrol.data.images`) and for images in memory.

What can be read in more than one way is refused, never guessed: a quarter turn, a range of
values or a page that nobody sees is a defect in the wrong place.
"""

import contextlib
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import ExifTags, Image

_STRIP = 2**20  # Pixels.
_LISTED = 6  # Most levels or colours in a message.
_DARK = 1 / 4  # Deep data whose largest value is below this share is of another range.
_CLASSES = 32  # More levels in a mask are no classes.
_WHITE_IS_ZERO = (262, 0)  # TIFF's photometric interpretation.


class PixelError(ValueError):
    """Pixels that cannot be read without a guess; says what to do."""


def image_pixels(image: Image.Image) -> npt.NDArray[np.uint8]:
    """The colours of an image of any mode.

    Sixteen-bit grey is scaled from 65535 to 255, floats from 1 or 255. Colour profiles are not
    applied: the stored values are the pixels.

    Returns:
        (H, W, 3) in [0, 255].

    Raises:
        PixelError: If it has several pages, an EXIF orientation, a transparent pixel, or values
            that are out of range or use less than a quarter of it, as 12 bits in 16 do.
    """
    deep = _is_deep(image)
    if getattr(image, "n_frames", 1) == 1:
        _require_opaque(image)
    pixels = _stored(image)
    if pixels.dtype != np.uint8:
        low, high = float(pixels.min()), float(pixels.max())
        if pixels.dtype.kind == "f":
            limit = 1.0 if high <= 1 else 255.0
            need = "floats in [0, 1] or [0, 255]"
        else:
            limit = 65535.0
            need = "integers in [0, 65535]"
        if low < 0 or high > limit:
            raise PixelError(f"holds values from {low:g} to {high:g}, need {need}; rescale it")
        _require_range(high, limit)
        pixels = np.rint(pixels * (255 / limit)).astype(np.uint8)
    elif deep:  # Pillow keeps the upper eight bits of colours.
        _require_range(float(pixels.max()), 255)
    if pixels.ndim == 2:
        pixels = np.repeat(pixels[:, :, None], 3, axis=2)
    return pixels


def as_rgb(image: Image.Image) -> Image.Image:
    """An image of any mode in RGB (`image_pixels`)."""
    return Image.fromarray(image_pixels(image))


def mask_pixels(image: Image.Image) -> npt.NDArray[np.bool_]:
    """The defect's pixels in a mask of two levels, black and another.

    Grey and colour are read, and transparency where it alone holds the shape, as it does in a
    drawing on an empty layer. A single level covers the image.

    Returns:
        (H, W), at least one True.

    Raises:
        PixelError: If it is empty or not binary, has several pages or an EXIF orientation.
    """
    pixels = _stored(image)
    coloured = pixels.ndim == 3 and bool((pixels != pixels[:, :, :1]).any())
    if pixels.ndim == 3:
        pixels = _packed(pixels) if coloured else np.ascontiguousarray(pixels[:, :, 0])
    levels = np.unique(pixels)
    alpha = _alpha(image)
    if alpha is not None:
        steps = np.unique(alpha)
        if len(steps) > 2 or steps[0] > 0:
            raise PixelError(
                f"the mask is transparent in {len(steps)} degrees; save it in black and white, "
                "without transparency"
            )
        visible = alpha > 0
        if len(levels) == 1:
            return visible
        if len(levels) > 2 or levels[0] > 0 or (visible != (pixels != 0)).any():
            raise PixelError(
                "the mask shows one shape in its colours and another in its transparency; save "
                "it in black and white, without transparency"
            )
    if not levels.any():
        raise PixelError("the mask is empty; mark the defect in it, or remove the image")
    if len(levels) > 2 or (len(levels) == 2 and levels[0] != 0):
        raise PixelError(_not_binary(levels, coloured))
    return np.asarray(pixels != 0)


def class_pixels(
    image: Image.Image, *, colours: bool = False
) -> dict[str, npt.NDArray[np.bool_]]:
    """The pixels of each class in a mask of levels, palette indices or colours.

    Args:
        image: The mask; 0 and black are no class.
        colours: Whether a class is a colour in grey images and palettes too.

    Returns:
        (H, W) by the level or index, such as "1", or the colour, such as "ff0000"; empty if
        no class is there.

    Raises:
        PixelError: If it is a JPEG, transparent in places or of over 32 classes, as smooth
            edges make, several pages or an EXIF orientation.
    """
    if image.format in ("JPEG", "MPO"):
        raise PixelError(
            "the mask is a JPEG, which blurs levels into others; save it as PNG from its source"
        )
    palette = image.mode == "P" and not colours
    alpha = _alpha(image)
    pixels = _stored(image)
    if alpha is not None:
        raise PixelError("the mask is transparent in places; save it without transparency")
    if palette:
        pixels = np.array(image)
    elif pixels.ndim == 3 and (colours or (pixels != pixels[:, :, :1]).any()):
        pixels, colours = _packed(pixels), True
    elif pixels.ndim == 3:
        pixels = pixels[:, :, 0]
    elif colours and pixels.dtype == np.uint8:
        pixels = _packed(np.repeat(pixels[:, :, None], 3, axis=2))
    levels = [level for level in np.unique(pixels) if level]
    if pixels.dtype.kind == "f" or (levels and levels[0] < 0):
        raise PixelError(
            "the mask's levels are no whole numbers from 0 on; save it with 8 bits"
        )
    if len(levels) > _CLASSES:
        raise PixelError(
            f"the mask has {len(levels)} levels or colours, which are no classes, as JPEG and "
            "smooth edges make them; save it as PNG with a level for each class"
        )
    return {f"{level:06x}" if colours else f"{level}": pixels == level for level in levels}


def _require_opaque(image: Image.Image) -> None:
    """Refuse transparent pixels: viewers show a background there, which nothing names."""
    if not image.has_transparency_data:
        return
    alpha = image if "A" in image.getbands() else image.convert("RGBA")
    opacities = alpha.getchannel("A").histogram()
    if seen := sum(opacities[:255]):
        share = seen / (image.width * image.height)
        raise PixelError(
            f"is transparent in {share:.2%} of its pixels, where viewers show a background and "
            "the file holds hidden colours; flatten it onto the background that is meant "
            "(mogrify -background white -alpha remove -alpha off FILE)"
        )


def _stored(image: Image.Image) -> npt.NDArray[Any]:
    """Pixels as stored: (H, W) of a grey image's own type, or (H, W, 3) uint8."""
    frames = getattr(image, "n_frames", 1)
    # An MPO is a camera's JPEG, with its preview or another eye's view behind it.
    if frames > 1 and image.format != "MPO":
        raise PixelError(
            f"holds {frames} pages or frames; save the one that is meant as a file of its own"
        )
    orientation = 1
    with contextlib.suppress(Exception):  # Viewers ignore damaged metadata too.
        orientation = image.getexif().get(ExifTags.Base.Orientation, 1)
    if orientation in range(2, 9):
        raise PixelError(
            f"has EXIF orientation {orientation}: viewers turn it, and nothing says whether "
            "masks were drawn on the turned pixels; turn the pixels themselves and drop the "
            "mark (mogrify -auto-orient FILE), then check its mask"
        )
    key, value = _WHITE_IS_ZERO
    if image.mode in ("I;16", "F") and getattr(image, "tag_v2", {}).get(key) == value:
        raise PixelError("stores white as 0 with deep values; save it with black as 0")
    image.load()
    if image.mode not in ("L", "I", "F", "RGB") and not image.mode.startswith("I;16"):
        # Through RGBA, since a palette with transparency warns otherwise.
        through = image.convert("RGBA") if image.mode in ("P", "PA") else image
        image = through.convert("RGB")
    pixels = _array(image)
    if pixels.dtype.kind == "f" and not np.isfinite(pixels).all():
        raise PixelError("holds non-finite values; save it without them")
    return pixels


def _array(image: Image.Image) -> npt.NDArray[Any]:
    """A writable array of an image, copied in strips: Pillow copies a whole one thrice."""
    width, height = image.size
    step = max(1, _STRIP // width)
    boxes = [(0, top, width, min(top + step, height)) for top in range(0, height, step)]
    first = np.array(image.crop(boxes[0]))
    pixels = np.empty((height, *first.shape[1:]), first.dtype)
    pixels[: len(first)] = first
    for box in boxes[1:]:
        pixels[box[1] : box[3]] = np.asarray(image.crop(box))
    return pixels


def _packed(pixels: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint32]:
    """(H, W) of colours as one number each, from (H, W, 3)."""
    red, green, blue = np.moveaxis(pixels.astype(np.uint32), 2, 0)
    return red << 16 | green << 8 | blue


def _is_deep(image: Image.Image) -> bool:
    """Whether a file's colours have 16 bits each, which Pillow tells only before it loads."""
    return any(";16" in str(tile[3]) for tile in getattr(image, "tile", ()))


def _require_range(high: float, limit: float) -> None:
    """Refuse deep data of fewer bits: its file looks nearly black, and so it would be read."""
    if high < limit * _DARK:
        raise PixelError(
            f"holds values up to {high:g} where {limit:g} is white, as data of fewer bits in a "
            "deeper file does; rescale it to the whole range, or save it with 8 bits"
        )


def _alpha(image: Image.Image) -> npt.NDArray[np.uint8] | None:
    """(H, W) opacity, or None if it is the same everywhere."""
    if not image.has_transparency_data:
        return None
    alpha = np.asarray(image.convert("RGBA").getchannel("A"))
    return None if (alpha == alpha[0, 0]).all() else alpha


def _not_binary(levels: npt.NDArray[Any], coloured: bool) -> str:
    shown = levels[:_LISTED].tolist()
    more = ", ..." if len(levels) > _LISTED else ""
    if coloured:
        colours = [(level >> 16, level >> 8 & 255, level & 255) for level in shown]
        what = f"is coloured in {len(levels)} colours ({', '.join(map(str, colours))}{more})"
        need = "black and one other"
    else:
        values = ", ".join(f"{level:g}" for level in shown)
        what = (
            f"holds {len(levels)} grey values from {levels[0]:g} to {levels[-1]:g} "
            f"({values}{more})"
        )
        need = "0 and one other"
    return (
        f"the mask {what}, need {need}: if each is a class, acontrol import class-masks makes "
        "masks in black and white of them; if they come from JPEG or smooth edges, threshold "
        "it and save it as PNG"
    )
