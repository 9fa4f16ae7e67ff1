"""What a data set's folder holds that is not read: one counted note for each kind.

What would change the meaning of the split is refused by `MvtecFolder.labelled` instead.
"""

import difflib
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from acontrol.data import near_misses, prompts
from acontrol.data.listing import (
    IMAGE_SUFFIXES,
    entries,
    image_files,
    nested_pictures,
    pictures,
    subfolders,
)
from acontrol.data.mvtec import MvtecFolder, is_category
from acontrol.errors import UserError
from acontrol.messages import counted, print_note


def notes(folder: MvtecFolder, categories: Sequence[str] | None = None) -> list[str]:
    """A sentence for each kind of thing that is not read, with a count and the first one.

    Args:
        folder: The data set.
        categories: Only these; by default all, and what lies beside them.
    """
    own = [folder.folders[name] for name in categories or folder.categories]
    kinds: list[tuple[str, str, list[Path]]] = [
        ("file", "of other suffixes", _each(own, _other_files)),
        ("image", "in sub-folders", _each(own, _nested)),
        ("image", "in no defect's folder and in no good/", _each(own, _straight)),
        ("mask", "without an image", _each(own, _orphans)),
        ("mask", "of good images", _each(own, _masks_of_good)),
        ("image", "in other folders of a category", _each(own, _elsewhere)),
        ("caption", "without an image", _each(own, _captions)),
    ]
    if categories is None and folder.root not in own:
        beside = list(near_misses.near_categories(folder.root, is_category))
        kinds.append(("folder", "without test/ and train/", beside))
    found = [
        f"{counted(len(paths), noun)} {kind} {'is' if len(paths) == 1 else 'are'} not read "
        f"(the first: {paths[0]}){_by_suffix(paths)}"
        for noun, kind, paths in kinds
        if paths
    ]
    if names := [name for category in own for name in _phrases(category)]:
        found.append(
            f"{counted(len(names), 'phrase is', 'phrases are')} for things that are not there "
            f"(the first: {names[0]})"
        )
    return found


def print_notes(folder: MvtecFolder, categories: Sequence[str] | None = None) -> None:
    """Print `notes` on standard error."""
    for note in notes(folder, categories):
        print_note(note)


def unused_captions(folder: MvtecFolder) -> str | None:
    """A note on captions of `MvtecFolder.captions` for things that are not there.

    Raises:
        UserError: If there is no other caption.
    """
    if folder.captions is None:
        return None
    used = 0
    absent: list[str] = []
    for category, defects in folder.captions.table.items():
        if category not in folder.folders:
            absent.append(f"{category}{_meant(category, folder.categories)}")
            continue
        known = folder.defect_types(category)
        for defect, value in defects.items():
            if defect not in known:
                absent.append(f"{category}/{defect}{_meant(defect, known)}")
                continue
            ids = image_files(folder.folders[category] / "test" / defect)
            wrong = (
                [name for name in value if name not in ids] if isinstance(value, dict) else []
            )
            absent += [f"{category}/{defect}/{name}{_meant(name, [*ids])}" for name in wrong]
            used += len(value) - len(wrong) if isinstance(value, dict) else 1
    if not absent:
        return None
    text = (
        f"{folder.captions.path}: {counted(len(absent), 'caption is', 'captions are')} for "
        f"things that are not in {folder.root} (the first: {absent[0]})"
    )
    if not used:
        raise UserError(f"{text}, and there is no other; name its categories, defects and ids")
    return text


def _each(folders: Sequence[Path], find: Callable[[Path], Iterator[Path]]) -> list[Path]:
    return [path for folder in folders for path in find(folder)]


def _parts(category: Path) -> Iterator[Path]:
    """The folders of a category whose files are read."""
    for part in ("test", near_misses.TRUTH):
        yield from subfolders(category / part)
    yield from (path for path in subfolders(category / "train") if _is_good(path))


def _other_files(category: Path) -> Iterator[Path]:
    for folder in _parts(category):
        ids = image_files(folder)
        shown = {path for paths in ids.values() for path in paths}
        yield from (path for path in entries(folder) if path not in shown and not path.is_dir())


def _nested(category: Path) -> Iterator[Path]:
    for folder in _parts(category):
        yield from nested_pictures(folder)


def _straight(category: Path) -> Iterator[Path]:
    for part in ("test", "train", near_misses.TRUTH):
        yield from pictures(category / part)
    for folder in subfolders(category / "train"):
        if not _is_good(folder):
            yield from pictures(folder)


def _orphans(category: Path) -> Iterator[Path]:
    for truth in subfolders(category / near_misses.TRUTH):
        ids = image_files(category / "test" / truth.name, nested=True)
        for name, paths in image_files(truth).items():
            if name not in ids and name.removesuffix("_mask") not in ids:
                yield from (path for path in paths if path.suffix.lower() in IMAGE_SUFFIXES)


def _masks_of_good(category: Path) -> Iterator[Path]:
    for truth in subfolders(category / near_misses.TRUTH):
        if _is_good(truth) and (category / "test" / truth.name).is_dir():
            yield from pictures(truth)


def _elsewhere(category: Path) -> Iterator[Path]:
    read = (*near_misses.PARTS, near_misses.TRUTH, "prompt")
    for folder in subfolders(category):
        # A folder of another name for masks is told where one is missing.
        if folder.name not in read and not is_category(folder):
            yield from pictures(folder)
            yield from nested_pictures(folder)


def _captions(category: Path) -> Iterator[Path]:
    for folder in subfolders(category / "prompt"):
        ids = image_files(category / "test" / folder.name, nested=True)
        yield from (
            path for path in entries(folder) if path.suffix == ".txt" and path.stem not in ids
        )


def _phrases(category: Path) -> Iterator[str]:
    file = category / "prompt" / "phrases.json"
    for key in prompts.load_phrases(file):
        defect, _, name = key.partition("/")
        folder = category / "test" / defect
        if not folder.is_dir() or (name and name not in image_files(folder, nested=True)):
            yield f"{file}: {key}"


def _by_suffix(paths: Sequence[Path]) -> str:
    counts = Counter(path.suffix or "none" for path in paths if not path.is_dir())
    if len(counts) < 2:
        return ""
    return ": " + ", ".join(f"{count} {suffix}" for suffix, count in counts.most_common(5))


def _meant(name: str, choices: Sequence[str]) -> str:
    close = difflib.get_close_matches(name, choices, n=1)
    return f"; did you mean {close[0]}?" if close else ""


def _is_good(folder: Path) -> bool:
    return folder.name.casefold() == "good"
