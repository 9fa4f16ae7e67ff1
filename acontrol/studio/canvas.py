"""The canvas to paint a mask on, as an element of the page."""

import base64
from typing import Any

from nicegui.element import Element

from acontrol.data.images import encode_png


class MaskCanvas(Element, component="canvas.js"):
    """A picture that a mask is painted over, pixel for pixel."""

    def __init__(self, source: str, label: str, on_painted: Any):
        """Show the picture at an address."""
        super().__init__()
        self._props["src"], self._props["label"] = source, label
        self.on("painted", on_painted)
        self.on("loaded", on_painted)

    def show_picture(self, source: str, label: str) -> None:
        """Show another picture; what was painted goes."""
        self._props["src"], self._props["label"] = source, label
        self.update()

    async def png(self) -> bytes:
        """The painted mask as PNG: opaque where it is painted."""
        text = await self.run_method("png", timeout=30)
        return base64.b64decode(str(text).partition(",")[2])

    def suggest(self, mask: Any) -> None:
        """Paint a mask, (height, width) of bool."""
        import numpy as np
        from PIL import Image

        pixels = np.zeros((*mask.shape, 4), np.uint8)
        pixels[mask] = (255, 45, 45, 255)
        content = base64.b64encode(encode_png(Image.fromarray(pixels))).decode()
        self.run_method("show", f"data:image/png;base64,{content}")
