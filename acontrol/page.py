"""A self-contained HTML page: tables and pictures in one file, no other needed."""

import base64
import html
import io
from collections.abc import Sequence

from PIL import Image

_STYLE = (
    "body{font:15px/1.5 system-ui,sans-serif;margin:2rem auto;max-width:80rem;padding:0 1rem}"
    "table{border-collapse:collapse;margin:1rem 0;display:block;overflow-x:auto}"
    "td,th{padding:.25rem .8rem;text-align:right;border-bottom:1px solid #ccc}"
    "td{white-space:nowrap}td:first-child,th:first-child{text-align:left}"
    "img{max-width:100%;border:1px solid #ccc}h2{margin-top:2rem}"
)


def page(title: str, body: str) -> str:
    """A whole page around HTML."""
    name = html.escape(title)
    return (
        "<!doctype html><html lang='en'><meta charset='utf-8'>"
        f"<title>{name}</title><style>{_STYLE}</style><h1>{name}</h1>{body}</html>\n"
    )


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table of texts."""
    lines = [
        "".join(f"<{tag}>{html.escape(cell)}</{tag}>" for cell in cells)
        for tag, cells in [("th", head), *(("td", row) for row in rows)]
    ]
    return f"<table>{''.join(f'<tr>{line}</tr>' for line in lines)}</table>"


def picture(image: Image.Image, name: str) -> str:
    """A picture, within the page itself."""
    buffer = io.BytesIO()
    image.save(buffer, format="PNG")
    data = base64.b64encode(buffer.getvalue()).decode()
    return f"<img alt='{html.escape(name, quote=True)}' src='data:image/png;base64,{data}'>"
