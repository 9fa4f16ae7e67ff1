"""The list of training images that the authors' repository prepares, with its captions.

    [{"image_file": "bottle/test/crack/000.png", "mask_file": "bottle/ground_truth/...png",
      "text": "a bottle with a crack", "subject_text": "crack"}, ...]

Paths are relative to the data's root. ``text`` is the caption; ``subject_text``, which the
authors' training reads and does not use, is the anomaly's words.
"""

import json
import os
from pathlib import Path, PurePosixPath
from typing import Any

from acontrol.data import prompts
from acontrol.data.mvtec import LabelledImage
from acontrol.errors import UserError

NEEDED = ("image_file", "mask_file", "text")


def read_train_list(
    root: str | os.PathLike[str], path: str | os.PathLike[str]
) -> tuple[LabelledImage, ...]:
    """The images that a list names, in its order.

    An image's category and defect are the first folder of its path and the one that it lies
    in. Masks are taken where the list says.

    Raises:
        UserError: If the list is malformed, names a file outside the root, an image twice, or
            one that is not there; says which entry.
    """
    root, path = Path(root), Path(path)
    try:
        entries = json.loads(path.read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from error
    except ValueError as error:
        raise UserError(f"{path}: no JSON: {error}") from error
    if not isinstance(entries, list) or not entries:
        raise UserError(f"{path}: need a list of objects with {', '.join(NEEDED)}")
    images = [_image(root, entry, f"{path}: entry {n}") for n, entry in enumerate(entries)]
    keys = [one.key for one in images]
    if twice := sorted({key for key in keys if keys.count(key) > 1}):
        raise UserError(f"{path}: names {twice[0]} twice")
    return tuple(images)


def _image(root: Path, entry: Any, place: str) -> LabelledImage:
    if not isinstance(entry, dict):
        raise UserError(f"{place}: need an object, got {json.dumps(entry)[:60]}")
    for name in (*NEEDED, "subject_text"):
        if not isinstance(entry.get(name, "" if name == "subject_text" else None), str):
            raise UserError(f"{place}: {name} is {json.dumps(entry.get(name))}, need a text")
    image, mask = (_inside(root, entry[name], place) for name in ("image_file", "mask_file"))
    parts = PurePosixPath(entry["image_file"]).parts
    if len(parts) < 3:
        raise UserError(
            f"{place}: image_file {entry['image_file']}: need <category>/.../<defect>/<id>.png"
        )
    if not image.is_file():
        raise UserError(f"{place}: {image} is not there")
    category, defect = parts[0], parts[-2]
    phrase = entry.get("subject_text", "").strip() or prompts.phrase(defect)
    caption = entry["text"].strip() or prompts.target_text(category, phrase)
    return LabelledImage(category, defect, image.stem, image, mask, caption, phrase)


def _inside(root: Path, name: str, place: str) -> Path:
    relative = PurePosixPath(name)
    if relative.is_absolute() or ".." in relative.parts:
        raise UserError(f"{place}: {name} is not under {root}")
    return root / relative
