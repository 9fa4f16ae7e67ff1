"""The authors' list of training images, with captions.

    [{"image_file": "bottle/test/crack/000.png", "mask_file": "bottle/ground_truth/...png",
      "text": "a bottle with a crack", "subject_text": "crack"}, ...]

Paths are relative to the data's root. ``text`` is the caption; ``subject_text``, which the
authors' training reads but does not use, is the anomaly's words.
"""

import json
import os
from collections import Counter
from pathlib import Path, PurePosixPath
from typing import Any

from acontrol.data import prompts
from acontrol.data.mvtec import LabelledImage
from acontrol.errors import UserError

NEEDED = ("image_file", "mask_file", "text")


def read_train_list(
    root: str | os.PathLike[str], path: str | os.PathLike[str]
) -> tuple[LabelledImage, ...]:
    """The images of a list, in its order.

    An image's category and defect are the first and the last folder of its path.

    Raises:
        UserError: If the list is malformed, names a file outside the root, a missing image, or
            an image twice.
    """
    root, path = Path(root), Path(path)
    try:
        entries = json.loads(path.read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from error
    except ValueError as error:
        raise UserError(f"{path}: not valid JSON: {error}") from error
    if not isinstance(entries, list) or not entries:
        raise UserError(f"{path}: need a list of objects with {', '.join(NEEDED)}")
    images = [_image(root, entry, f"{path}: entry {n}") for n, entry in enumerate(entries)]
    key, count = Counter(image.key for image in images).most_common(1)[0]
    if count > 1:
        raise UserError(f"{path}: names {key} twice")
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
        raise UserError(f"{place}: {image} is missing")
    category, defect = parts[0], parts[-2]
    phrase = entry.get("subject_text", "").strip() or prompts.phrase(defect)
    caption = entry["text"].strip() or prompts.target_text(category, phrase)
    return LabelledImage(category, defect, image.stem, image, mask, caption, phrase)


def _inside(root: Path, name: str, place: str) -> Path:
    relative = PurePosixPath(name)
    if relative.is_absolute() or ".." in relative.parts:
        raise UserError(f"{place}: {name} is not under {root}")
    return root / relative
