"""All that the page works with: data, drawings, and what is kept."""

import re
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from acontrol.data.images import encode_png, read_image
from acontrol.data.overlap import refuse_overlap
from acontrol.errors import UserError
from acontrol.studio import library
from acontrol.studio.access import check_address
from acontrol.studio.drawing import Drawer
from acontrol.studio.kept import Kept
from acontrol.studio.library import Library
from acontrol.studio.settings import StudioConfig
from acontrol.studio.tickets import PLACE, Ticket, Tickets


class Studio:
    """All that the page works with."""

    def __init__(self, config: StudioConfig):
        """Open data and output, and load the model.

        Raises:
            UserError: If one is bad.
        """
        check_address(config.host, config.token)
        refuse_overlap(config.out, "--out", {"--data": config.data})
        self.config = config.model_copy(update={"out": config.out.resolve()})
        self.library = Library.open(config.data, config.split_file)
        self.tickets = Tickets(self.config.out, config.waiting)
        self.drawer = Drawer(self.config, self.tickets)
        self.kept = Kept(self.config.out, self.drawer.metadata)

    def start(self) -> None:
        """Begin to draw what waits."""
        tickets = self.tickets.all()
        self.kept.drop_half_kept(tickets)
        results = [t.result for t in tickets if t.state not in ("waiting", "failed")]
        self.drawer.start([*self.kept.lines(), *results])

    def upload(self, content: bytes, name: str) -> str:
        """Keep an uploaded good image; returns its name.

        Raises:
            UserError: If it is none, or too large.
        """
        place = self.config.out / PLACE / "uploads"
        library.uploaded(content, self.config.megapixels, place, name)
        return name

    def uploaded(self, name: str) -> Path:
        """The file of an upload.

        Raises:
            UserError: If there is none.
        """
        file = self.config.out / PLACE / "uploads" / f"{name}.png"
        if not re.fullmatch(r"[0-9a-f]{16}", name) or not file.is_file():
            raise UserError(f"no upload {name!r}")
        return file

    def ask(self, user: str, request: dict[str, Any], mask: np.ndarray, count: int) -> None:
        """Check a request, and let its drawings wait for their turn.

        Raises:
            UserError: If it cannot be drawn, or too many wait.
        """
        with tempfile.TemporaryDirectory() as scratch:
            file = Path(scratch, "mask.png")
            file.write_bytes(encode_png(Image.fromarray(mask).convert("L")))
            self.drawer.check(request, file)
        seed = self.config.seed + 1000 * len(self.tickets.all())
        self.tickets.add(user, request, mask, seed, count)
        self.drawer.wake()

    def keep(self, ticket: Ticket) -> None:
        """Put a drawing into the data set."""
        self.kept.add(ticket, self.drawer.inputs_of(ticket))

    def picture(self, ticket: Ticket, kind: str) -> bytes:
        """A drawn image, its good image or their difference, cut out around the mask.

        Raises:
            UserError: If it is not drawn, or there is no such picture.
        """
        if ticket.state in ("waiting", "failed") or kind not in ("image", "normal", "change"):
            raise UserError(f"no picture {kind} of drawing {ticket.number}")
        drawn = read_image(ticket.folder / "image_out.png")
        normal = read_image(self.drawer.roots["normal"] / ticket.result["normal"])
        if kind == "normal":
            shown = normal
        elif kind == "image":
            shown = drawn
        else:
            difference = np.abs(drawn.astype(np.int16) - normal).max(axis=-1)
            shown = np.repeat((255 - np.minimum(255, 3 * difference))[..., None], 3, axis=-1)
        return encode_png(_around(Image.fromarray(shown.astype(np.uint8)), ticket.mask))


def _around(image: Image.Image, mask: Path) -> Image.Image:
    """A square of three times the mask, at least 64 px, scaled to 256."""
    with Image.open(mask) as painted:
        left, top, right, bottom = painted.convert("L").getbbox() or (0, 0, 1, 1)
    side = min(max(64, 3 * max(right - left, bottom - top)), max(image.size))
    x = min(max(0, (left + right - side) // 2), max(0, image.width - side))
    y = min(max(0, (top + bottom - side) // 2), max(0, image.height - side))
    part = image.crop((x, y, min(image.width, x + side), min(image.height, y + side)))
    scale = 256 / max(part.size)
    size = (max(1, round(scale * part.width)), max(1, round(scale * part.height)))
    how = Image.Resampling.NEAREST if scale > 2 else Image.Resampling.BICUBIC
    return part.resize(size, how)
