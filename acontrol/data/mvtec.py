"""Folders in MVTec AD's layout: their images, masks, captions and phrases.

    <category>/train/good/*                               normal images
    <category>/test/good/*
    <category>/test/<defect>/<id>.<ext>                   labelled images
    <category>/ground_truth/<defect>/<id>_mask.<ext>      their masks, or <id>.<ext>
    <category>/prompt/<defect>/<id>.txt                   their captions, optional
    <category>/prompt/phrases.json                        their phrases, optional

Listing decodes nothing; `acontrol.data.validation` checks the files.
"""

import dataclasses
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt

from acontrol.config import THIRD, TrainedOn
from acontrol.data import near_misses, prompts
from acontrol.data.images import image_size, read_mask
from acontrol.data.listing import (
    by_id,
    distinct,
    image_files,
    mask_beside,
    masks_beside,
    only,
    subfolders,
)
from acontrol.data.split import Split, read_split, training_third
from acontrol.errors import UserError, nearest

_LAYOUT = (
    "<category>/train/good/*, <category>/test/<defect>/<id>.png and "
    "<category>/ground_truth/<defect>/<id>_mask.png, or one such category"
)
_LISTED = 8  # Most names in a message.


@dataclass(frozen=True)
class LabelledImage:
    """One image of a defect, with its mask and words.

    Attributes:
        category: Name of the category.
        defect: Name of the defect folder.
        id: The image's file name without its suffix.
        image: The image file.
        mask: The mask file; if missing, where it is expected.
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
        """The image's unique name in the data set."""
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
            near = near_misses.of_mask(self.image, self.mask)
            raise UserError(
                f"{self.image}: has no mask{near}; put it at {self.mask}, or remove the image"
            )
        return read_mask(self.mask, self.size)


@dataclass(frozen=True)
class MvtecFolder:
    """A data set on disk, from `open_folder`. Files are listed at each call.

    Attributes:
        root: The folder.
        folders: The folder of each category.
        captions: Captions from a JSON file, if any.
        split: Which images train, from a split file; None is the first third of each defect
            and the good images in train/good.
    """

    root: Path
    folders: Mapping[str, Path]
    captions: prompts.Captions | None = None
    split: Split | None = None

    @property
    def categories(self) -> tuple[str, ...]:
        """The names of the categories, sorted."""
        return tuple(sorted(self.folders))

    def trained_on(self, split: Literal["train", "test", "all"]) -> TrainedOn:
        """The record of weights that come from a part of this data."""
        digest = THIRD if self.split is None else self.split.digest
        return TrainedOn(categories=self.categories, split=split, split_digest=digest)

    def name_of(self, category: str, file: Path) -> str:
        """An image's name in a split file."""
        return f"{category}/{file.relative_to(self.folders[category]).as_posix()}"

    def defect_types(self, category: str) -> tuple[str, ...]:
        """The names of a category's defect folders, sorted, including empty ones.

        Raises:
            UserError: If the category is unknown, its images are in no defect's folder, or a
            folder is there twice by a link.
        """
        test = self._folder(category) / "test"
        folders = distinct(subfolders(test))
        if not folders and (problem := near_misses.unlabelled(test.parent)):
            raise UserError(problem)
        return tuple(folder.name for folder in folders if not _is_good(folder))

    def normals(
        self, category: str, part: Literal["train", "test"] = "train"
    ) -> tuple[Path, ...]:
        """The images of good products, sorted; empty if the folder is missing.

        Raises:
            UserError: If the category is unknown, or for an image as in `by_id`.
        """
        parts = (part,) if self.split is None else ("train", "test")
        folders = distinct(
            f for name in parts for f in subfolders(self._folder(category) / name)
        )
        good = [path for f in folders if _is_good(f) for _, path in sorted(by_id(f).items())]
        if self.split is None:
            return tuple(good)
        training = self.split.training
        return tuple(
            path
            for path in good
            if (self.name_of(category, path) in training) == (part == "train")
        )

    def labelled(
        self,
        split: Literal["train", "test", "all"],
        category: str | None = None,
        defect: str | None = None,
        left_out: list[str] | None = None,
    ) -> tuple[LabelledImage, ...]:
        """The images of defects, sorted by category, defect and id.

        Masks are not read: a missing one is an error of `LabelledImage.read_mask`.

        Args:
            split: "train" for the first third of each defect (`training_third`), or what the
                split file says, "test" for the rest, "all" for both.
            category: Only this category.
            defect: Only this defect, in each category that has it.
            left_out: If given, images that cannot be listed are left out, with a message for
                each here. They still count towards the thirds. So are masks beside images,
                which do not, and defects without an image.

        Returns:
            The images; empty if no category has a defect.

        Raises:
            UserError: If the category or defect is unknown, a caption file is malformed, a
                selected defect has no image in split "train", or, without ``left_out``, an
                image is in a sub-folder, of a format that is not read, shares its id, looks
                like another's mask or has a name that is not UTF-8.
        """
        if split not in ("train", "test", "all"):
            raise ValueError(f"split must be 'train', 'test' or 'all', got {split!r}")
        categories = self.categories if category is None else (category,)
        defects = {name: self.defect_types(name) for name in categories}
        if defect is not None:
            choices = sorted({name for names in defects.values() for name in names})
            if defect not in choices:
                folder = self.root if category is None else self.folders[category]
                raise UserError(_unknown(folder, "defect", defect, choices))
            defects = {name: (defect,) for name, names in defects.items() if defect in names}
        files = {
            (category, defect): self._images(category, defect, left_out)
            for category, names in defects.items()
            for defect in names
        }
        if split == "train":
            self._require_training(files, allow_empty=left_out is not None)
        phrases = {
            name: prompts.load_phrases(self.folders[name] / "prompt" / "phrases.json")
            for name in defects
        }
        return tuple(
            image
            for (category, defect), images in files.items()
            for image in self._defect(
                category, defect, images, split, phrases[category], left_out
            )
        )

    def _folder(self, category: str) -> Path:
        if category not in self.folders:
            raise UserError(_unknown(self.root, "category", category, self.categories))
        return self.folders[category]

    def _images(
        self, category: str, defect: str, left_out: list[str] | None
    ) -> dict[str, list[Path]]:
        """The pictures of a defect by id, without masks beside them."""
        folder = self.folders[category] / "test" / defect
        images = image_files(folder, nested=True)
        for mask, image in masks_beside(images).items():
            message = mask_beside(images.pop(mask)[0], images[image][0])
            if left_out is None:
                raise UserError(message)
            left_out.append(message)
        if left_out is None:
            for name, paths in images.items():
                only(name, paths, folder)
        return images

    def _training_ids(
        self, category: str, defect: str, images: Mapping[str, list[Path]]
    ) -> set[str]:
        if self.split is None:
            return {*training_third(list(images))}
        names = {name: self.name_of(category, paths[0]) for name, paths in images.items()}
        return {name for name in names if names[name] in self.split.training}

    def _require_training(
        self,
        files: Mapping[tuple[str, str], Mapping[str, list[Path]]],
        *,
        allow_empty: bool,
    ) -> None:
        few = [
            f"{category}/{defect} ({len(images)})"
            for (category, defect), images in files.items()
            if not self._training_ids(category, defect, images) and (images or not allow_empty)
        ]
        if not few:
            return
        more = f" and {len(few) - _LISTED} more" if len(few) > _LISTED else ""
        listed = f"{', '.join(few[:_LISTED])}{more}"
        if self.split is not None:
            raise UserError(
                f"{self.root}: the split file has no training image of {listed}; make the "
                "split again with acontrol split"
            )
        raise UserError(
            f"{self.root}: the training split is the first third of each defect's images, "
            f"and these have fewer than three: {listed}; "
            "add images (shards can hold every image, by acontrol shard --split all)"
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
        """One defect's images in the split, sorted by id."""
        ids = sorted(images)
        train = self._training_ids(category, defect, images)
        folder = self.folders[category]
        truth = folder / "ground_truth" / defect
        masks = image_files(truth)
        captions = self.captions.sentences(category, defect, ids) if self.captions else {}
        defect_phrase = phrases.get(defect) or prompts.phrase(defect)
        rows = []
        for name in ids:
            if split != "all" and (name in train) != (split == "train"):
                continue
            phrase = phrases.get(f"{defect}/{name}") or defect_phrase
            caption = (
                prompts.read_caption(folder / "prompt" / defect / f"{name}.txt")
                or captions.get(name)
                or prompts.target_text(category, phrase)
            )
            files = masks.get(f"{name}_mask", []) + masks.get(name, [])
            try:
                image = only(name, images[name], folder / "test" / defect)
                mask = only(name, files, truth) if files else truth / f"{name}_mask.png"
            except UserError as error:
                if left_out is None:
                    raise
                left_out.append(str(error))
            else:
                rows.append(LabelledImage(category, defect, name, image, mask, caption, phrase))
        return rows


def open_folder(
    root: str | os.PathLike[str],
    captions: str | os.PathLike[str] | None = None,
    split_file: str | os.PathLike[str] | None = None,
) -> MvtecFolder:
    """Open a folder of categories, or one category.

    Args:
        root: A folder with a `test` or `train` folder is one category, named after the
            resolved path; otherwise each such folder inside it is a category.
        captions: JSON file of captions (`prompts.Captions`). An image's own caption file takes
            precedence over it, and it over the template.
        split_file: Which images train (`acontrol.data.split`); by default the first third.

    Raises:
        UserError: If the folder is missing or has another layout, the captions are malformed
            or cover none of its categories, the split file is malformed or of other images, or
            a category is there twice by a link.
    """
    path = Path(root).expanduser()
    if not path.is_dir():
        problem = "is not a folder" if path.exists() else "does not exist"
        raise UserError(f"{path}: {problem}; give a folder that holds {_LAYOUT}")
    if is_category(path):
        folders = {path.resolve().name: path}
    else:
        categories = distinct(filter(is_category, subfolders(path)))
        folders = {folder.name: folder for folder in categories}
    if not folders:
        near = near_misses.of_root(path, is_category)
        raise UserError(f"{path}: holds no category{near}; give a folder that holds {_LAYOUT}")
    loaded = None if captions is None else prompts.Captions.load(captions)
    if loaded is not None and not loaded.table.keys() & folders.keys():
        raise UserError(
            f"{captions}: has captions for none of the categories of {path}; name these: "
            f"{', '.join(sorted(folders))}"
        )
    folder = MvtecFolder(path, folders, loaded)
    if split_file is None:
        return folder
    split = read_split(split_file)
    split.check(image_names(folder), Path(split_file), path)
    return dataclasses.replace(folder, split=split)


def image_names(folder: MvtecFolder) -> list[str]:
    """The names in a split file of all images, good and defective ones."""
    return [
        folder.name_of(category, file)
        for category, own in folder.folders.items()
        for part in ("train", "test")
        for images in subfolders(own / part)
        if part == "test" or _is_good(images)
        for files in image_files(images).values()
        for file in files
    ]


def _unknown(folder: Path, noun: str, name: str, choices: Sequence[str]) -> str:
    return f"{folder}: has no {noun} {name!r}; {nearest(name, choices)}"


def is_category(folder: Path) -> bool:
    """Whether a folder has test/ or train/, and these are not categories of such names."""
    parts = [folder / part for part in near_misses.PARTS if (folder / part).is_dir()]
    return bool(parts) and not any(
        (part / name).is_dir()
        for part in parts
        for name in (near_misses.TRUTH, "train/good", "test/good")
    )


def _is_good(folder: Path) -> bool:
    return folder.name.casefold() == "good"
