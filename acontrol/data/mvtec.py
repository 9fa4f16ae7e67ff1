"""Folders in the layout of MVTec AD: which images they hold, and with which words.

    <category>/train/good/*                               normal images
    <category>/test/good/*
    <category>/test/<defect>/<id>.<ext>                   labelled images
    <category>/ground_truth/<defect>/<id>_mask.<ext>      their masks, or <id>.<ext>
    <category>/prompt/<defect>/<id>.txt                   their captions, optional
    <category>/prompt/phrases.json                        their phrases, optional

Listing decodes nothing: `acontrol.data.validation` says whether the files are fit for use.
"""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt

from acontrol.data import prompts
from acontrol.data.images import image_size, read_mask
from acontrol.errors import UserError

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff")


def _entries(folder: Path) -> list[Path]:
    """What a folder holds, sorted, without hidden entries; nothing if it is missing."""
    try:
        return sorted(path for path in folder.iterdir() if not path.name.startswith("."))
    except (FileNotFoundError, NotADirectoryError):
        return []
    except OSError as error:
        raise UserError(
            f"{folder}: cannot be listed ({error.strerror}); check its permissions"
        ) from error


def subfolders(folder: Path) -> list[Path]:
    """The folders inside a folder, sorted.

    Raises:
        UserError: If a link leads nowhere, which may have been one, or a folder's name is none
            that shards can hold.
    """
    found = []
    for path in _entries(folder):
        if path.is_symlink() and not path.exists():
            raise UserError(f"{path}: the link leads nowhere; mend or remove it")
        if path.is_dir():
            _check_name(path)
            found.append(path)
    return found


def image_files(folder: Path) -> dict[str, list[Path]]:
    """The image files of a folder by their ids, which are their stems."""
    files: dict[str, list[Path]] = {}
    for path in _entries(folder):
        # A dangling link counts, so that reading it says what is wrong.
        if path.suffix.lower() in IMAGE_SUFFIXES and not path.is_dir():
            files.setdefault(path.stem, []).append(path)
    return files


def by_id(folder: Path) -> dict[str, Path]:
    """The one image file of each id.

    Raises:
        UserError: If two share an id, or a name is none that shards can hold.
    """
    return {name: only(name, paths) for name, paths in image_files(folder).items()}


def only(name: str, paths: Sequence[Path]) -> Path:
    """The one file of an id.

    Raises:
        UserError: If there is another, or its name is none that shards can hold.
    """
    _check_name(paths[0])
    if len(paths) > 1:
        both = " and ".join(path.name for path in paths)
        raise UserError(f"{paths[0].parent}: {both} share the id {name!r}; keep one of them")
    return paths[0]


def _check_name(path: Path) -> None:
    """Names go into JSON, tars and other people's file systems: UTF-8, no control characters.

    Raises:
        UserError: For another name.
    """
    if not path.name.isascii() and not _is_utf8(path.name):
        problem = "is not UTF-8"
    elif any(ord(sign) < 32 or ord(sign) == 127 for sign in path.name):
        problem = "holds a control character"
    else:
        return
    raise UserError(f"{path.parent}: the name {os.fsencode(path.name)!r} {problem}; rename it")


def _is_utf8(name: str) -> bool:
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True


_LAYOUT = (
    "<category>/train/good/*, <category>/test/<defect>/<id>.png and "
    "<category>/ground_truth/<defect>/<id>_mask.png, or one such category"
)
_NAMED = 8


@dataclass(frozen=True)
class LabelledImage:
    """One image of a defect, with its words.

    Attributes:
        category: Name of the category.
        defect: Name of the defect folder.
        id: The image's file name without its suffix.
        image: The image file.
        mask: The mask file; where there is none, the place where it is expected.
        caption: The sentence for the whole image (T_t).
        phrase: The words for the defect, such as "broken large".
    """

    category: str
    defect: str
    id: str
    image: Path
    mask: Path
    caption: str
    phrase: str

    @property
    def key(self) -> str:
        """The image's name within the data set."""
        return f"{self.category}/{self.defect}/{self.id}"

    @property
    def size(self) -> tuple[int, int]:
        """Width and height in pixels, from the image file's header (`image_size`)."""
        return image_size(self.image)

    def read_mask(self) -> npt.NDArray[np.bool_]:
        """The defect's pixels, (H, W), at least one True.

        Raises:
            UserError: If the mask is missing, bad or of another size than the image.
        """
        if not os.path.lexists(self.mask):
            raise UserError(
                f"{self.image}: has no mask; put it at {self.mask}, or remove the image"
            )
        return read_mask(self.mask, self.size)


@dataclass(frozen=True)
class MvtecFolder:
    """A data set on disk; `open_folder` makes one. Files are listed at each call.

    Attributes:
        root: The folder as it was given.
        folders: The folder of each category.
        captions: Captions from a JSON file, if any.
    """

    root: Path
    folders: Mapping[str, Path]
    captions: prompts.Captions | None = None

    @property
    def categories(self) -> tuple[str, ...]:
        """The categories' names, sorted."""
        return tuple(sorted(self.folders))

    def defect_types(self, category: str) -> tuple[str, ...]:
        """The names of a category's defect folders, sorted, empty folders too.

        Raises:
            UserError: If there is no such category.
        """
        folders = subfolders(self._folder(category) / "test")
        return tuple(folder.name for folder in folders if not _is_good(folder))

    def normals(
        self, category: str, part: Literal["train", "test"] = "train"
    ) -> tuple[Path, ...]:
        """The images of good products, sorted; none where the folder is missing.

        Raises:
            UserError: If there is no such category, or two images share an id.
        """
        good = [f for f in subfolders(self._folder(category) / part) if _is_good(f)]
        return tuple(path for folder in good for _, path in sorted(by_id(folder).items()))

    def labelled(
        self,
        split: Literal["train", "test", "all"],
        category: str | None = None,
        defect: str | None = None,
        left_out: list[str] | None = None,
    ) -> tuple[LabelledImage, ...]:
        """The images of defects, sorted by category, defect and id.

        Masks are looked for and not read: `LabelledImage.read_mask` refuses a missing one.

        Args:
            split: "train" for the first third of each defect (`training_third`), "test" for
                the rest, "all" for both.
            category: This category alone.
            defect: This defect alone, in each category that has it.
            left_out: If given, images that cannot be told apart or named are left out, and
                what is wrong with each is put here. They count for the thirds all the same.

        Returns:
            The images; none where no category has a defect.

        Raises:
            UserError: If there is no such category or defect, a caption file is malformed,
                with split "train" a selected defect has fewer than three images, or, without
                ``left_out``, two images or masks share an id or a name is not UTF-8.
        """
        if split not in ("train", "test", "all"):
            raise ValueError(f"split must be 'train', 'test' or 'all', got {split!r}")
        names = self.categories if category is None else (category,)
        types = {name: self.defect_types(name) for name in names}
        if defect is not None:
            known = sorted({one for found in types.values() for one in found})
            if defect not in known:
                where = self.root if category is None else self.folders[category]
                raise UserError(_unknown(where, "defect", defect, known))
            types = {name: (defect,) for name, found in types.items() if defect in found}
        found = {
            (name, one): image_files(self.folders[name] / "test" / one)
            for name, several in types.items()
            for one in several
        }
        if left_out is None:
            for images in found.values():
                for name, paths in images.items():
                    only(name, paths)
        if split == "train":
            self._refuse_few(found)
        phrases = {
            name: prompts.load_phrases(self.folders[name] / "prompt" / "phrases.json")
            for name in types
        }
        return tuple(
            one
            for (name, kind), images in found.items()
            for one in self._defect(name, kind, images, split, phrases[name], left_out)
        )

    def _folder(self, category: str) -> Path:
        if category not in self.folders:
            raise UserError(_unknown(self.root, "category", category, self.categories))
        return self.folders[category]

    def _refuse_few(self, found: Mapping[tuple[str, str], Mapping[str, list[Path]]]) -> None:
        few = [
            f"{category}/{defect} ({len(images)})"
            for (category, defect), images in found.items()
            if not training_third(list(images))
        ]
        if few:
            more = f" and {len(few) - _NAMED} more" if len(few) > _NAMED else ""
            raise UserError(
                f"{self.root}: the training split is the first third of each defect's images, "
                f"and these have fewer than three: {', '.join(few[:_NAMED])}{more}; "
                "add images (shards can hold every image, by launch.shard --split all)"
            )

    def _defect(
        self,
        category: str,
        defect: str,
        images: Mapping[str, list[Path]],
        split: str,
        phrases: Mapping[str, str],
        left_out: list[str] | None,
    ) -> list[LabelledImage]:
        """The images of one defect that the split takes, in the order of their ids."""
        ids = sorted(images)
        train = set(training_third(ids))
        taken = [
            name for name in ids if split == "all" or (name in train) == (split == "train")
        ]
        folder = self.folders[category]
        truth = folder / "ground_truth" / defect
        masks = image_files(truth)
        listed = self.captions.sentences(category, defect, ids) if self.captions else {}
        several = phrases.get(defect) or prompts.phrase(defect)
        rows = []
        for name in taken:
            phrase = phrases.get(f"{defect}/{name}") or several
            caption = (
                prompts.read_caption(folder / "prompt" / defect / f"{name}.txt")
                or listed.get(name)
                or prompts.target_text(category, phrase)
            )
            found = masks.get(f"{name}_mask", []) + masks.get(name, [])
            try:
                image = only(name, images[name])
                mask = only(name, found) if found else truth / f"{name}_mask.png"
            except UserError as error:
                if left_out is None:
                    raise
                left_out.append(str(error))
            else:
                rows.append(LabelledImage(category, defect, name, image, mask, caption, phrase))
        return rows


def open_folder(
    root: str | os.PathLike[str], captions: str | os.PathLike[str] | None = None
) -> MvtecFolder:
    """Open a folder of categories, or one category.

    Args:
        root: A folder that holds `test` or `train` is one category, named after the folder
            that the path resolves to; otherwise each such folder inside it is one.
        captions: JSON file of captions (`prompts.Captions`). A caption beside an image goes
            before it; what it does not name falls back to the template.

    Raises:
        UserError: If the folder is missing or not of this layout, or the captions are
            malformed or for other categories alone.
    """
    path = Path(root)
    if not path.is_dir():
        problem = "is not a folder" if path.exists() else "does not exist"
        raise UserError(f"{path}: {problem}; give a folder that holds {_LAYOUT}")
    if _is_category(path):
        folders = {path.resolve().name: path}
    else:
        folders = {one.name: one for one in subfolders(path) if _is_category(one)}
    if not folders:
        raise UserError(f"{path}: holds no category; give a folder that holds {_LAYOUT}")
    given = None if captions is None else prompts.Captions.load(captions)
    if given is not None and not given.table.keys() & folders.keys():
        raise UserError(
            f"{captions}: has captions for none of the categories of {path}; name these: "
            f"{', '.join(sorted(folders))}"
        )
    return MvtecFolder(path, folders, given)


def training_third(ids: Sequence[str]) -> list[str]:
    """The ids of one defect to train on: the first floor(n / 3) when sorted."""
    return sorted(ids)[: len(ids) // 3]


def _unknown(where: Path, what: str, name: str, known: Sequence[str]) -> str:
    return f"{where}: has no {what} {name!r}; choose from {', '.join(known) or 'none'}"


def _is_category(folder: Path) -> bool:
    return (folder / "test").is_dir() or (folder / "train").is_dir()


def _is_good(folder: Path) -> bool:
    return folder.name.casefold() == "good"
