"""Contact sheets: pictures side by side, for people to look at."""

from collections.abc import Sequence

from PIL import Image, ImageDraw

CELL_PX = 160


def outlined(image: Image.Image, mask: Image.Image) -> Image.Image:
    """Tint the masked pixels red, so that image and mask show in one picture."""
    image = image.convert("RGB")
    tint = Image.new("RGB", image.size, (255, 30, 30))
    return Image.composite(Image.blend(image, tint, 0.6), image, mask.convert("1"))


def contact_sheet(
    rows: Sequence[Sequence[Image.Image]],
    titles: Sequence[str],
    captions: Sequence[str] | None = None,
    cell_px: int = CELL_PX,
) -> Image.Image:
    """Lay pictures out in titled columns, a caption under each row.

    A caption's parts, divided by " | ", share the row's width.
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
            scale = cell_px / max(picture.size)
            size = (max(1, round(picture.width * scale)), max(1, round(picture.height * scale)))
            # Enlarged pixels stay pixels: a smooth enlargement would flatter the model.
            kind = Image.Resampling.NEAREST if scale > 1 else Image.Resampling.LANCZOS
            shown = picture.convert("RGB").resize(size, kind)
            left = gap + column * (cell_px + gap) + (cell_px - size[0]) // 2
            sheet.paste(shown, (left, top + (cell_px - size[1]) // 2))
        if captions:
            parts = captions[number].split(" | ")
            for place, part in enumerate(parts):
                left = gap + place * (width - gap) // len(parts)
                pen.text((left, top + cell_px + 3), part, fill="black")
    return sheet
