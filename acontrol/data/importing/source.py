"""What every reader of annotations gives: images, and what is drawn on each."""

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal, NamedTuple, TypeVar

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from acontrol.data.listing import entries, is_picture, subfolders
from acontrol.errors import UserError, one_line

GOOD = frozenset(("good", "normal", "ok"))  # Folders and classes of images without a defect.
Number = Annotated[float, Field(allow_inf_nan=False)]
Mask = npt.NDArray[np.bool_]
Model = TypeVar("Model", bound=BaseModel)


class Record(BaseModel):
    """A part of somebody else's JSON: fields that are not read may be anything."""

    model_config = ConfigDict(frozen=True, extra="ignore")


class Box(NamedTuple):
    """A rectangle of a class, in pixels."""

    label: str
    x: float
    y: float
    width: float
    height: float


@dataclass
class Annotations:
    """What is drawn on an image.

    Attributes:
        masks: The pixels of each class, (H, W).
        boxes: Rectangles, which say where a defect is and not which pixels it has.
        lines: The class of each line or point, which have no area.
        counts: How many annotations of each class there are.
        said: Whether there is an annotation of the whole image, so that none of a defect
            means a good one.
        void: Whether some pixels are marked as unknown; they count as good.
    """

    masks: dict[str, Mask] = field(default_factory=dict)
    boxes: list[Box] = field(default_factory=list)
    lines: list[str] = field(default_factory=list)
    counts: dict[str, int] = field(default_factory=dict)
    said: bool = False
    void: bool = False

    def add(self, label: str, mask: Mask) -> None:
        """Add pixels of a class.

        Raises:
            ValueError: If there are none.
        """
        if not mask.any():
            raise ValueError(f"an outline of {label!r} holds no pixel of the image")
        self.masks[label] = self.masks[label] | mask if label in self.masks else mask
        self.counts[label] = self.counts.get(label, 0) + 1


@dataclass(frozen=True)
class SourceImage:
    """An image of a source.

    Attributes:
        image: The file.
        name: Its path from the folder of all images, which names it if others have its name.
        read: Its annotations, given width and height.
        files: What ``read`` reads.
        good: Whether SOURCE says elsewhere that it is good, or shows a defect; None if not.
        part: Where it goes if it is good.
    """

    image: Path
    name: str
    read: Callable[[tuple[int, int]], Annotations]
    files: tuple[Path, ...] = ()
    good: bool | None = None
    part: Literal["train", "test"] = "train"


@dataclass
class Source:
    """What a reader found.

    Attributes:
        categories: The images of each product.
        bad: Messages on images that cannot be imported.
        notes: What is not read.
        levels: Whether classes may be levels or colours; 1 is then called class-1.
    """

    categories: dict[str, list[SourceImage]] = field(default_factory=dict)
    bad: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    levels: bool = False


def parse(model: type[Model], path: Path, what: str) -> Model:
    """Read a JSON file.

    Args:
        model: What it must hold.
        path: The file.
        what: What it should be, for the message.

    Raises:
        UserError: If it is missing, no JSON or something else.
    """
    try:
        content = path.read_bytes().removeprefix(b"\xef\xbb\xbf")
        return model.model_validate_json(content)
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}); mend it") from error
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False, include_input=False)[0]
        place = ".".join(str(part) for part in first["loc"])
        reason = f"{place}: {first['msg']}" if place else first["msg"]
        raise UserError(
            f"{path}: is not {what} ({one_line(Exception(reason), 160)})"
        ) from error


def category_of(given: str | None, folder: Path) -> str:
    """The product's name: what the user calls it, or its folder's."""
    return given or folder.resolve().name


def tree(folder: Path) -> Iterator[Path]:
    """The files in a folder and below, in order; links to folders are not followed."""
    rest = [folder]
    while rest:
        path = rest.pop()
        if path.is_dir():
            if path == folder or not path.is_symlink():
                rest += reversed(entries(path))
        else:
            yield path


def pictures_below(folder: Path) -> list[Path]:
    """The pictures in a folder and below, in order."""
    return [path for path in tree(folder) if is_picture(path)]


def subfolder(folder: Path, names: Sequence[str]) -> Path | None:
    """The folder inside a folder that has one of these names, whatever its case."""
    found = {path.name.casefold(): path for path in subfolders(folder)}
    return next((found[name] for name in names if name in found), None)


def is_good(name: str) -> bool:
    """Whether a path leads through a folder of good images."""
    return bool({part.casefold() for part in name.split("/")[:-1]} & GOOD)


def within(folder: Path, name: str, source: Path) -> Path:
    """The file that an annotation names, below a folder.

    Raises:
        UserError: If the name leads out of the folder, or can be no file's.
    """
    if any(ord(character) < 32 for character in name):
        raise UserError(f"{source}: {name[:200]!r} is no file's name; mend it")
    # By its name alone: a link below the folder may lead to another disk.
    path = Path(os.path.normpath(folder / name.replace("\\", "/")))
    if path.is_relative_to(os.path.normpath(folder)):
        return folder / path.relative_to(os.path.normpath(folder))
    raise UserError(
        f"{source}: names the image {name[:200]!r}, which leads out of {folder}; put the image "
        "into it and its name into the file"
    )


def is_file(path: Path) -> bool:
    """Whether there is a file; not if it cannot be one, as with a name that is too long."""
    try:
        return path.is_file()
    except (OSError, ValueError):
        return False


def first_with(folders: Sequence[Path], name: str, path: Path) -> Path:
    """The first of some folders that has a file of this name, which ``path`` lists.

    Raises:
        UserError: If none has.
    """
    for folder in folders:
        if is_file(within(folder, name, path)):
            return folder
    raise UserError(
        f"{path}: its first image {name[:200]!r} is in none of {', '.join(map(str, folders))}; "
        "give the folder with --images"
    )
