"""All images of a generated data set on one page: thumbnails, sorted and filtered in place.

The page holds one short row per image, and thumbnails are files of their own that a browser
loads as they come into view, so thousands of images stay light. It works from a disk, without a
server and without any request to elsewhere.
"""

import html
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

from PIL import Image

from acontrol.data.images import region
from acontrol.generation.gate import missed_limits
from acontrol.generation.manifest import Line, drawn_file
from acontrol.generation.settings import Gate
from acontrol.messages import counted
from acontrol.progress import tracked
from acontrol.reporting import tinted

THUMBNAILS = "thumbnails"
SIDE_PX = 144  # Of each half of a thumbnail.
MOST_REJECTED = 60  # Rows of the table.
ORDER = (
    "The best score is the largest share of the mask that changed, times the similarity to the "
    "nearest training defect (1 - distance); what did not pass the gate comes after the rest."
)


def write_thumbnails(folder: Path, lines: Sequence[Line]) -> None:
    """Write each defect close up, without and with its mask tinted, to report/thumbnails.

    Args:
        folder: The generated data set.
        lines: What was drawn, kept or rejected.
    """
    (folder / "report" / THUMBNAILS).mkdir(exist_ok=True)
    for line in tracked(lines, "thumbnails", "image", leave=False):
        with Image.open(folder / str(drawn_file(line))) as opened:
            image = opened.convert("RGB")
        with Image.open(folder / line["mask"]) as opened:
            mask = opened.convert("1")
        near, inside = region(image, mask, margin=1.0)
        strip = Image.new("RGB", (2 * SIDE_PX, SIDE_PX), "white")
        for place, cut in enumerate((near, tinted(near, inside))):
            scale = SIDE_PX / max(cut.size)
            # A smooth enlargement would flatter the model.
            filter_ = Image.Resampling.NEAREST if scale > 1 else Image.Resampling.LANCZOS
            size = (max(1, round(cut.width * scale)), max(1, round(cut.height * scale)))
            left = place * SIDE_PX + (SIDE_PX - size[0]) // 2
            strip.paste(cut.resize(size, filter_), (left, (SIDE_PX - size[1]) // 2))
        strip.save(folder / "report" / _thumbnail(line), quality=85)


def quality(line: Line) -> tuple[bool, float]:
    """What the page sorts by, as `ORDER` says: an image that hardly changed is not the best."""
    scores = line["scores"]
    nearness = max(0.0, 1 - (scores["distance"] or 0.0))
    return scores["passed"], scores["mask_fill"] * nearness


def rejected_table(lines: Sequence[Line], gate: Gate, *, shown: bool) -> str:
    """HTML with the rejected images: thumbnail, file, and which limit each missed.

    Args:
        lines: Of the rejected images, the best first.
        gate: The job's.
        shown: Whether the section is open at first.
    """
    rows = []
    for line in lines[:MOST_REJECTED]:
        name = html.escape(f"{line['category']}/{line['defect']} {line['number']}")
        reasons = "<br>".join(
            html.escape(f"{text} ({option})")
            for option, text in missed_limits(line["scores"], gate).items()
        )
        rows.append(
            f"<tr><td><a href='{quote('../' + line['rejected'])}'><img loading='lazy' "
            f"src='{quote(_thumbnail(line))}' alt='{name}'></a></td>"
            f"<td>{name}</td><td style='text-align:left'>{reasons}</td></tr>"
        )
    more = len(lines) - len(rows)
    rest = f"<p>And {more} more, in rejected.jsonl.</p>" if more else ""
    return (
        f"<h2>Rejected</h2><details{' open' if shown else ''}><summary>"
        f"{counted(len(lines), 'image')} not in the set, the best of "
        f"{counted(gate.tries, 'attempt')} each</summary>"
        "<table><tr><th>close up, and with its mask</th><th>image</th>"
        f"<th style='text-align:left'>limit missed</th></tr>{''.join(rows)}</table>{rest}"
        "</details>"
    )


def gallery(lines: Sequence[Line]) -> str:
    """HTML with all images: sorted by score or number, filtered by defect, with their files.

    Args:
        lines: The manifest, the best first.
    """
    kinds = sorted({(line["category"], line["defect"]) for line in lines})
    rows = [_row(line, kinds.index((line["category"], line["defect"]))) for line in lines]
    names = [f"{category}/{defect}" for category, defect in kinds]
    options = "".join(
        f"<option value={number}>{html.escape(name)}</option>"
        for number, name in enumerate(names)
    )
    data = json.dumps({"kinds": names, "rows": rows}, separators=(",", ":"))
    data = data.replace("<", "\\u003c")  # Nothing in it ends the script.
    return (
        "<h2>All images</h2><p>Each defect close up, and again with its mask tinted. "
        f"A click shows the whole image. {ORDER}</p>"
        f"<p><label>Defect <select id='kind'><option value=''>all</option>{options}</select>"
        "</label> <label>Order <select id='order'><option value='best'>best score first"
        "</option><option value='worst'>worst score first</option><option value='number'>"
        "number</option></select></label> <label><input type='checkbox' id='failed'> only what "
        "did not pass the gate</label> <span id='count'></span></p>"
        "<div id='gallery'></div><p><button id='more'>Show more</button></p>"
        "<noscript>Sorting and filtering need JavaScript; the contact sheets above do not."
        "</noscript><dialog id='large'></dialog>"
        f"<style>{_STYLE}</style><script type='application/json' id='rows'>{data}</script>"
        f"<script>{_SCRIPT}</script>"
    )


def _row(line: Line, kind: int) -> list[Any]:
    """What the page knows of an image; links are relative to report/."""
    scores = line["scores"]
    files = (line["image"], line["mask"], line["refined_mask"])
    return [
        kind,
        line["number"],
        *(file and quote(f"../{file}") for file in files),
        quote(_thumbnail(line)),
        int(scores["passed"]),
        round(scores["mask_fill"], 2),
        None if scores["distance"] is None else round(scores["distance"], 3),
    ]


def _thumbnail(line: Line) -> str:
    name = "-".join((line["category"], line["defect"], line["number"]))
    return f"{THUMBNAILS}/{name}.jpg"


_STYLE = (
    "#gallery{display:flex;flex-wrap:wrap;gap:.7rem}"
    "#gallery figure{margin:0;width:290px;font-size:13px}"
    "#gallery figure.failed img{border-color:#c00}"
    "#gallery img{display:block;width:288px;height:144px;cursor:zoom-in}"
    "dialog{max-width:95vw}dialog figure{display:inline-block;margin:.3rem}"
    "dialog img{max-width:44vw;max-height:75vh}"
    "dialog img.small{width:20vw;image-rendering:pixelated}label,button{margin-right:1rem}"
)
_SCRIPT = """
const {kinds, rows} = JSON.parse(document.getElementById('rows').textContent);
const at = id => document.getElementById(id), PAGE = 120;
let chosen = [], shown = 0;
function make(tag, attributes, ...children) {
  const element = Object.assign(document.createElement(tag), attributes);
  element.append(...children);
  return element;
}
function links([, , image, mask, refined]) {
  return [['image', image], ['mask', mask], ['refined mask', refined]].filter(part => part[1]);
}
function enlarge(row, words) {
  const pictures = links(row).map(([name, file]) => {
    const image = make('img', {src: file, alt: name});
    image.onload = () => { if (image.naturalWidth < 300) image.className = 'small'; };
    return make('figure', {}, image,
      make('figcaption', {}, make('a', {href: file, target: '_blank'}, name)));
  });
  at('large').replaceChildren(make('p', {}, words + '  (Esc closes)'), ...pictures);
  at('large').showModal();
}
function figure(row) {
  const [kind, number, , , , thumbnail, passed, fill, distance] = row;
  const words = `${kinds[kind]} ${number}: fill ${fill.toFixed(2)}`
    + (distance === null ? '' : `, distance ${distance.toFixed(3)}`)
    + (passed ? '' : ', did not pass');
  const caption = make('figcaption', {}, words + ' ');
  for (const [name, file] of links(row))
    caption.append(make('a', {href: file, target: '_blank'}, name), ' ');
  return make('figure', {className: passed ? '' : 'failed'},
    make('img', {loading: 'lazy', src: thumbnail, alt: words,
      onclick: () => enlarge(row, words)}), caption);
}
function more() {
  at('gallery').append(...chosen.slice(shown, shown += PAGE).map(figure));
  at('more').hidden = shown >= chosen.length;
}
function choose() {
  const kind = at('kind').value, order = at('order').value;
  chosen = rows.filter(row => (kind === '' || row[0] === +kind)
    && !(at('failed').checked && row[6]));
  if (order === 'worst') chosen.reverse();
  if (order === 'number')
    chosen.sort((a, b) => a[0] - b[0] || a[1].localeCompare(b[1], 'en', {numeric: true}));
  at('count').textContent = `${chosen.length} of ${rows.length}`;
  at('gallery').replaceChildren();
  shown = 0;
  more();
}
for (const id of ['kind', 'order', 'failed']) at(id).onchange = choose;
at('more').onclick = more;
at('large').onclick = event => { if (event.target === at('large')) at('large').close(); };
choose();
"""
