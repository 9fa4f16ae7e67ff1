"""Every setting of launch.import."""

from pathlib import Path
from typing import Literal, get_args

from pydantic import Field, field_validator

from acontrol.config import Settings

Format = Literal["labelme", "coco", "voc-masks", "class-masks", "loco"]
FORMATS: tuple[str, ...] = get_args(Format)
# Settings that only some formats have a use for.
USES: dict[str, tuple[str, ...]] = {
    "images": ("coco", "class-masks"),
    "masks": ("class-masks",),
    "line_width": ("labelme",),
    "boxes_as_masks": ("labelme", "coco", "voc-masks"),
}


class ImportConfig(Settings):
    """What is imported, and what becomes of it."""

    format: Format = Field(description="How SOURCE is annotated.")
    source: Path = Field(description="Folder; for coco also the JSON, for class-masks a CSV.")
    out: Path | None = Field(None, description="Folder of categories to write to.")
    category: str | None = Field(
        None, description="What the product is called; by default as SOURCE's folder."
    )
    images: Path | None = Field(None, description="Folder of the images, if not found.")
    masks: Path | None = Field(None, description="Folder of the class masks, if not found.")
    classes: tuple[str, ...] = Field(
        (),
        description="Names of defects, as 1=scratch,2=dent, for classes, levels or colours "
        "(ff0000); those that are not listed keep theirs.",
    )
    ignore: tuple[str, ...] = Field(
        (), description="Classes that are no defects; their annotations are left out."
    )
    unmarked: Literal["good", "leave-out"] | None = Field(
        None, description="What images without annotation are, where SOURCE does not say it."
    )
    boxes_as_masks: bool = Field(
        False, description="Fill boxes, though they hold good pixels too; else left out."
    )
    line_width: float | None = Field(
        None, gt=0, le=1000, description="Draw lines so many pixels wide; else left out."
    )
    skip_bad: bool = Field(
        False, description="Leave out, list and count bad images instead of stopping."
    )
    dry_run: bool = Field(False, description="Read everything, count, and write nothing.")

    @field_validator("classes")
    @classmethod
    def _pairs(cls, texts: tuple[str, ...]) -> tuple[str, ...]:
        pairs = [pair for text in texts for pair in text.split(",") if pair.strip()]
        names = [pair.rpartition("=")[0].strip() for pair in pairs]
        for pair, name in zip(pairs, names, strict=True):
            if not name or not pair.rpartition("=")[2].strip():
                raise ValueError(f"{pair!r} is no pair like 1=scratch")
            if names.count(name) > 1:
                raise ValueError(f"{name!r} has two names")
        return texts

    @property
    def names(self) -> dict[str, str]:
        """The name of each class in ``classes``."""
        pairs = [pair for text in self.classes for pair in text.split(",") if pair.strip()]
        return {
            name.strip(): defect.strip()
            for name, _, defect in (pair.rpartition("=") for pair in pairs)
        }

    @property
    def ignored(self) -> frozenset[str]:
        """The classes in ``ignore``."""
        return frozenset(name.strip() for text in self.ignore for name in text.split(","))
