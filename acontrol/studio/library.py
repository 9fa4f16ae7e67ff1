"""The data set that the page shows: by name and number, never by a path from a browser."""

import io
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
from PIL import Image

from acontrol.data.images import encode_png, read_image, read_mask
from acontrol.data.mvtec import LabelledImage, MvtecFolder, open_folder
from acontrol.errors import UserError
from acontrol.reporting import outlined

THUMBNAIL_PX = 128
LISTED = 500  # Images of a category, at most: a page of 10,000 helps nobody.


@dataclass(frozen=True)
class Library:
    """Good images to draw on and reference defects.

    Attributes:
        folder: The data set.
        references: The defects of its training part by category, which alone are references.
    """

    folder: MvtecFolder
    references: dict[str, tuple[LabelledImage, ...]]

    @classmethod
    def open(cls, root: Path, split_file: Path | None = None) -> "Library":
        """Open a data set.

        Raises:
            UserError: If it is none.
        """
        folder = open_folder(root.resolve(), split_file=split_file)
        return cls(folder, {name: folder.labelled("train", name) for name in folder.categories})

    @property
    def categories(self) -> tuple[str, ...]:
        """Names of the products."""
        return self.folder.categories

    def normals(self, category: str) -> tuple[Path, ...]:
        """Good images of a product."""
        if category not in self.categories:
            raise UserError(f"no category {category!r}")
        return self.folder.normals(category)[:LISTED]

    def normal(self, category: str, number: int) -> Path:
        """A good image by its place in the list.

        Raises:
            UserError: If there is none.
        """
        return _at(self.normals(category), number, "good image")

    def reference(self, category: str, number: int) -> LabelledImage:
        """A reference by its place in the list.

        Raises:
            UserError: If there is none.
        """
        if category not in self.references:
            raise UserError(f"no category {category!r}")
        return _at(self.references[category][:LISTED], number, "reference")


def _at(items: tuple, number: int, what: str):  # type: ignore[type-arg, no-untyped-def]
    if not 0 <= number < len(items):
        raise UserError(f"no {what} of number {number}: there are {len(items)}")
    return items[number]


@lru_cache(maxsize=2000)
def thumbnail(image: Path, mask: Path | None = None, side: int = THUMBNAIL_PX) -> bytes:
    """A small PNG of an image, with its defect outlined."""
    pixels = Image.fromarray(read_image(image))
    if mask is not None:
        truth = Image.fromarray(read_mask(mask, pixels.size))
        width = max(1, round(max(pixels.size) / side))
        pixels = outlined(pixels, truth, width)
    pixels.thumbnail((side, side), Image.Resampling.LANCZOS)
    return encode_png(pixels)


def png(image: Path) -> bytes:
    """A whole image as PNG, as our reader sees it: turned upright, in RGB."""
    return encode_png(Image.fromarray(read_image(image)))


def uploaded(content: bytes, megapixels: float, folder: Path, name: str) -> Path:
    """Check an uploaded image and write it as PNG.

    Raises:
        UserError: If it is no image or too large; nothing is then written.
    """
    try:
        with Image.open(io.BytesIO(content)) as image:
            size = image.width * image.height
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise UserError("the upload is no image that can be read") from error
    if size > megapixels * 1e6:
        raise UserError(
            f"the upload has {size / 1e6:.0f} megapixels, and {megapixels:g} may be; scale "
            "it down"
        )
    folder.mkdir(parents=True, exist_ok=True)
    scratch = folder / f".{name}.upload"
    scratch.write_bytes(content)
    try:
        pixels = read_image(scratch)
    finally:
        scratch.unlink(missing_ok=True)
    file = folder / f"{name}.png"
    file.write_bytes(encode_png(Image.fromarray(pixels)))
    return file


def mask_of_png(content: bytes, size: tuple[int, int]) -> np.ndarray:
    """A painted mask, exactly as many pixels as its image.

    Raises:
        UserError: If it is of another size, or empty.
    """
    try:
        with Image.open(io.BytesIO(content)) as image:
            if image.size != size:
                raise UserError(
                    f"the mask has {image.width} x {image.height} px, and the image "
                    f"{size[0]} x {size[1]}"
                )
            mask = np.asarray(image.convert("RGBA"))[..., 3] >= 128
    except (OSError, ValueError, Image.DecompressionBombError) as error:
        raise UserError("the mask is no picture that can be read") from error
    if not mask.any():
        raise UserError("nothing is painted: paint where the defect is to go")
    return mask
