"""Contact sheets, and self-contained HTML pages."""

import base64
import html
from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw
from scipy import ndimage

from acontrol.data.images import encode_png

CELL_PX = 160
RED = (255, 30, 30)


def outlined(image: Image.Image, mask: Image.Image, width_px: int = 1) -> Image.Image:
    """Draw a red line around the masked pixels, outside them: it hides nothing of a defect."""
    inside = np.asarray(mask.convert("1"))
    line = ndimage.binary_dilation(inside, iterations=width_px) & ~inside
    pixels = np.array(image.convert("RGB"))
    pixels[line] = RED
    return Image.fromarray(pixels)


def tinted(image: Image.Image, mask: Image.Image) -> Image.Image:
    """Tint the masked pixels red; beside the image as it is, since a tint hides a defect."""
    if image.mode != "RGB":  # A copy of a photograph is large.
        image = image.convert("RGB")
    tint = Image.new("RGB", image.size, RED)
    return Image.composite(Image.blend(image, tint, 0.6), image, mask.convert("1"))


def in_cell(picture: Image.Image, cell_px: int = CELL_PX) -> Image.Image:
    """A picture in RGB whose longer side is a cell's."""
    scale = cell_px / max(picture.size)
    size = (max(1, round(picture.width * scale)), max(1, round(picture.height * scale)))
    # A smooth enlargement would flatter the model.
    filter_ = Image.Resampling.NEAREST if scale > 1 else Image.Resampling.LANCZOS
    return picture.convert("RGB").resize(size, filter_)


def contact_sheet(
    rows: Sequence[Sequence[Image.Image]],
    titles: Sequence[str],
    captions: Sequence[str] | None = None,
    cell_px: int = CELL_PX,
) -> Image.Image:
    """Lay out pictures in titled columns, with a caption under each row.

    The parts of a caption, separated by " | ", share the row's width.
    """
    gap, head, foot = 8, 20, 20 if captions else 0
    width = len(titles) * (cell_px + gap) + gap
    height = head + len(rows) * (cell_px + foot + gap) + gap
    sheet = Image.new("RGB", (width, height), "white")
    pen = ImageDraw.Draw(sheet)
    for column, title in enumerate(titles):
        pen.text((gap + column * (cell_px + gap), 5), title, fill="black")
    for number, row in enumerate(rows):
        top = head + number * (cell_px + foot + gap)
        for column, picture in enumerate(row):
            cell = in_cell(picture, cell_px)
            left = gap + column * (cell_px + gap) + (cell_px - cell.width) // 2
            sheet.paste(cell, (left, top + (cell_px - cell.height) // 2))
        if captions:
            parts = captions[number].split(" | ")
            for index, part in enumerate(parts):
                left = gap + index * (width - gap) // len(parts)
                pen.text((left, top + cell_px + 3), part, fill="black")
    return sheet


_STYLE = (
    "body{font:15px/1.5 system-ui,sans-serif;margin:2rem auto;max-width:80rem;padding:0 1rem}"
    "table{border-collapse:collapse;margin:1rem 0;display:block;overflow-x:auto}"
    "td,th{padding:.25rem .8rem;text-align:right;border-bottom:1px solid #ccc}"
    "td{white-space:nowrap}td:first-child,th:first-child{text-align:left}"
    "img{max-width:100%;border:1px solid #ccc}h2{margin-top:2rem}"
)


PAGE = "<!doctype html><html lang='en'>"  # How a page of ours begins.


def page(title: str, body: str) -> str:
    """A complete HTML page around a body."""
    name = html.escape(title)
    return (
        f"{PAGE}<meta charset='utf-8'>"
        f"<title>{name}</title><style>{_STYLE}</style><h1>{name}</h1>{body}</html>\n"
    )


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """An HTML table of texts."""
    lines = [
        "".join(f"<{tag}>{html.escape(cell)}</{tag}>" for cell in cells)
        for tag, cells in [("th", head), *(("td", row) for row in rows)]
    ]
    return f"<table>{''.join(f'<tr>{line}</tr>' for line in lines)}</table>"


def picture(image: Image.Image, name: str) -> str:
    """An HTML image with its data inline."""
    data = base64.b64encode(encode_png(image)).decode()
    return f"<img alt='{html.escape(name, quote=True)}' src='data:image/png;base64,{data}'>"
