"""What can be drawn on and imitated: the data's images, by name, and uploads.

Browsers send names, never paths: a name is looked up in a listing, so that none can lead
anywhere else. A link in the data that leads out of it is refused too.
"""

import hashlib
import io
import threading
from collections import OrderedDict
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from acontrol.data.images import encode_png, opened, read_image, read_mask, region, shrink_mask
from acontrol.data.mvtec import LabelledImage, MvtecFolder
from acontrol.data.pixels import image_pixels, mask_pixels
from acontrol.errors import UserError, nearest, one_line
from acontrol.reporting import outlined
from acontrol.runs import storage
from acontrol.studio.settings import MOST_BYTES

THUMBNAIL_PX = 160
_KEPT = 2048  # Thumbnails in memory, some 20 kB each.
UPLOADED = "upload:"


class Library:
    """Images by name."""

    def __init__(
        self,
        folder: MvtecFolder,
        training: Callable[[tuple[str, str]], Sequence[LabelledImage]],
        uploads: Path,
    ):
        """Use a data set.

        Args:
            folder: The data set.
            training: Lists the references of a category and defect.
            uploads: Folder for what is uploaded.
        """
        self.folder = folder
        self.training = training
        self.uploads = uploads
        self._thumbnails: OrderedDict[tuple[str, ...], bytes] = OrderedDict()
        self._lock = threading.Lock()

    def normals(self, category: str) -> list[str]:
        """Names of a category's good images."""
        return [file.name for file in self.folder.normals(category)]

    def normal(self, category: str, name: str) -> Path:
        """The file of a good image, or of an upload.

        Raises:
            UserError: If there is none of this name, or it leads out of the data.
        """
        if name.startswith(UPLOADED):
            return self._uploaded(name)
        files = {file.name: file for file in self.folder.normals(category)}
        if name not in files:
            raise UserError(f"{category} has no good image {name[:80]!r}; choose one listed")
        return self._inside(files[name])

    def references(self, category: str) -> list[LabelledImage]:
        """The defects that may be imitated: those of the training part."""
        return [
            image
            for defect in self.folder.defect_types(category)
            for image in self.training((category, defect))
        ]

    def reference(self, key: str) -> LabelledImage:
        """A reference by CATEGORY/DEFECT/ID.

        Raises:
            UserError: If there is none, or its files lead out of the data.
        """
        category, _, _ = key.partition("/")
        if category not in self.folder.categories:
            raise UserError(
                f"no category {category[:80]!r}; {nearest(category, self.folder.categories)}"
            )
        for image in self.references(category):
            if image.key == key:
                self._inside(image.image)
                self._inside(image.mask)
                return image
        raise UserError(f"no reference {key[:80]!r} in the training part of the data")

    def upload(self, content: bytes, *, mask: bool = False) -> str:
        """Store a picture or a mask as PNG, named by its pixels.

        Raises:
            UserError: If it is too large, or not a picture that can be read.
        """
        if len(content) > MOST_BYTES:
            raise UserError(f"the upload has over {MOST_BYTES // 2**20} MB; scale it down")
        try:
            with opened(io.BytesIO(content), ("PNG", "JPEG", "BMP", "TIFF")) as image:
                pixels = mask_pixels(image) if mask else image_pixels(image)
        except MemoryError:
            raise
        except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
            raise UserError(
                f"the picture is over {Image.MAX_IMAGE_PIXELS} pixels, the most that is "
                "decoded; scale it down"
            ) from error
        except Exception as error:  # A damaged file can raise anything in Pillow's readers.
            raise UserError(f"the upload cannot be read: {one_line(error, 200)}") from error
        digest = hashlib.sha256(repr(pixels.shape).encode() + pixels.tobytes()).hexdigest()[:32]
        file = self.uploads / f"{digest}.png"
        if not file.exists():
            image = Image.fromarray(pixels)
            storage.write(file, encode_png(image.convert("L") if mask else image))
        return f"{UPLOADED}{digest}"

    def thumbnail(self, category: str, name: str) -> bytes:
        """A small picture of a good image, as PNG."""
        return self._cached((category, name), lambda: read_image(self.normal(category, name)))

    def reference_thumbnail(self, key: str) -> bytes:
        """A reference's defect, close up and outlined, as PNG."""

        def draw() -> np.ndarray:
            image = self.reference(key)
            pixels = Image.fromarray(read_image(image.image))
            mask = Image.fromarray(image.read_mask())
            near, part = region(pixels, mask, margin=1)
            near.thumbnail((THUMBNAIL_PX, THUMBNAIL_PX))
            return np.asarray(outlined(near, shrink_mask(part, near.size)))

        return self._cached((key,), draw)

    def mask(self, name: str, size: tuple[int, int]) -> Path:
        """The file of an uploaded mask, after a check that it fits."""
        file = self._uploaded(name)
        read_mask(file, size)
        return file

    def _uploaded(self, name: str) -> Path:
        digest = name.removeprefix(UPLOADED)
        if len(digest) != 32 or set(digest) - set("0123456789abcdef"):
            raise UserError(f"no upload {name[:80]!r}")
        file = self.uploads / f"{digest}.png"
        if not file.is_file():
            raise UserError(f"no upload {name[:80]!r}; upload it again")
        return file

    def _inside(self, file: Path) -> Path:
        if not file.resolve().is_relative_to(self.folder.root.resolve()):
            raise UserError(f"{file}: is a link that leads out of {self.folder.root}; copy it")
        return file

    def _cached(self, key: tuple[str, ...], draw: Callable[[], np.ndarray]) -> bytes:
        with self._lock:
            if key in self._thumbnails:
                return self._thumbnails[key]
        image = Image.fromarray(draw())
        image.thumbnail((THUMBNAIL_PX, THUMBNAIL_PX))
        content = encode_png(image)
        with self._lock:
            self._thumbnails[key] = content
            if len(self._thumbnails) > _KEPT:
                self._thumbnails.popitem(last=False)
        return content
