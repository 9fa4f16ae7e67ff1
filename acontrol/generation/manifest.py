"""The manifest: one JSON object per image, enough to draw the image again."""

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from acontrol.data.images import image_size, read_mask
from acontrol.errors import UserError, one_line
from acontrol.generation.plan import PlannedImage, Reference
from acontrol.generation.sampler import GeneratedImage
from acontrol.generation.settings import OutputSettings, Sampling
from acontrol.masks.sampler import PlacedMask

Roots = Mapping[str, Path]  # "data" and "normal": the folders that paths are relative to.
Line = dict[str, Any]

DIGESTED = ("image", "mask")  # Files of a line whose checksum it has.


def output_paths(name: tuple[str, str, str]) -> dict[str, str]:
    """An image's files, in MVTec AD's layout."""
    category, defect, number = name
    return {
        "image": f"{category}/test/{defect}/{number}.png",
        "mask": f"{category}/ground_truth/{defect}/{number}_mask.png",
        "refined_mask": f"{category}/ground_truth_refined/{defect}/{number}_mask.png",
        "requested_mask": f"{category}/ground_truth_requested/{defect}/{number}_mask.png",
    }


def request_metadata(planned: PlannedImage, roots: Roots) -> Line:
    """The plan's part of a line."""
    reference = planned.reference
    return {
        "category": planned.name[0],
        "defect": planned.name[1],
        "number": planned.name[2],
        "normal": within(planned.normal, roots["normal"]),
        "reference": within(reference.image, roots["data"]),
        "reference_mask": within(reference.mask, roots["data"]),
        "reference_phrase": reference.phrase,
        "reference_kind": list(reference.defect_type) if reference.defect_type else None,
        "mask_source": planned.mask.source,
        "mask_origin": _origin(planned.mask.origin, roots["data"]),
        "prompt": planned.prompt,
        "first_seed": planned.seed,
        "sampling": planned.sampling.model_dump(),
    }


def rejected_paths(name: tuple[str, str, str]) -> dict[str, str]:
    """The files of an image that is not in the data set."""
    stem = f"rejected/{'-'.join(name)}"
    return {"rejected": f"{stem}.png", "mask": f"{stem}_mask.png"}


def drawn_file(line: Mapping[str, Any]) -> str | None:
    """An image's file, in the data set or in rejected/; None if it could not be drawn."""
    return line["image"] or line.get("rejected")


def result_metadata(image: GeneratedImage, kept: bool, output: OutputSettings) -> Line:
    """The result's part of a line."""
    files = output_paths(image.planned.name)
    scores = {
        name: round(value, 6) if isinstance(value, float) else value
        for name, value in asdict(image.scores).items()
    }
    line: Line = {
        "image": files["image"] if kept else None,
        "mask": files["mask"],
        "refined_mask": files["refined_mask"] if kept and output.refine_mask else None,
    }
    if not kept:
        line |= rejected_paths(image.planned.name)
    elif output.labels == "changed":
        line["requested_mask"] = files["requested_mask"]
    return line | {
        "requested_px": int(image.planned.mask.packed.unpacked().sum()),
        "changed_px": image.changed_px,
        "seed": image.seed,
        "attempt": image.attempt,
        "boxes": [list(box) for box in image.boxes],
        "scores": scores,
    }


def planned_of(line: Mapping[str, Any], folder: Path, roots: Roots) -> PlannedImage:
    """The planned image of a manifest's line; its mask is read from the manifest's folder.

    Raises:
        UserError: If a file is missing or bad, or the line has another format.
    """
    try:
        normal = roots["normal"] / line["normal"]
        mask = read_mask(folder / line.get("requested_mask", line["mask"]), image_size(normal))
        defect_type = line["reference_kind"]
        return PlannedImage(
            name=(line["category"], line["defect"], line["number"]),
            normal=normal,
            reference=Reference(
                roots["data"] / line["reference"],
                roots["data"] / line["reference_mask"],
                line["reference_phrase"],
                (defect_type[0], defect_type[1]) if defect_type else None,
            ),
            mask=PlacedMask.of(line["mask_source"], None, np.asarray(mask)),
            prompt=line["prompt"],
            seed=line["first_seed"],
            sampling=Sampling.model_validate(line["sampling"]),
        )
    except (LookupError, TypeError, ValueError) as error:
        reason = one_line(error) or type(error).__name__
        raise UserError(f"{folder}: its manifest is not of this version: {reason}") from error


def within(file: Path, root: Path) -> str:
    """A path relative to the data; an absolute one for a file outside it."""
    return file.relative_to(root).as_posix() if file.is_relative_to(root) else str(file)


def _origin(file: Path | None, root: Path) -> str | None:
    """A mask file's path relative to the data; only its name for a file outside it."""
    if file is None:
        return None
    return file.relative_to(root).as_posix() if file.is_relative_to(root) else file.name
