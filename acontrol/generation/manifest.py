"""The manifest: one JSON object an image, from which the image can be drawn again."""

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from acontrol.data.images import image_size, read_mask
from acontrol.errors import UserError
from acontrol.generation.plan import PlannedImage, Reference
from acontrol.generation.sampler import GeneratedImage
from acontrol.generation.settings import Sampling
from acontrol.masks.sampler import PlacedMask

Roots = Mapping[str, Path]  # "data" and "normal": what the manifest's paths start at.


def paths_of(name: tuple[str, str, str]) -> dict[str, Path]:
    """Where an image's files are, in MVTec AD's layout."""
    category, defect, number = name
    return {
        "image": Path(category, "test", defect, f"{number}.png"),
        "mask": Path(category, "ground_truth", defect, f"{number}_mask.png"),
        "refined_mask": Path(category, "ground_truth_refined", defect, f"{number}_mask.png"),
    }


def request_metadata(planned: PlannedImage, roots: Roots) -> dict[str, Any]:
    """What was asked for."""
    reference = planned.reference
    return {
        "category": planned.name[0],
        "defect": planned.name[1],
        "number": planned.name[2],
        "normal": _within(planned.normal, roots["normal"]),
        "reference": _within(reference.image, roots["data"]),
        "reference_mask": _within(reference.mask, roots["data"]),
        "reference_phrase": reference.phrase,
        "reference_kind": list(reference.kind) if reference.kind else None,
        "mask_source": planned.mask.source,
        "mask_origin": _origin(planned.mask.origin, roots["data"]),
        "prompt": planned.prompt,
        "first_seed": planned.seed,
        "sampling": planned.sampling.model_dump(),
    }


def result_metadata(drawing: GeneratedImage, kept: bool, refine: bool) -> dict[str, Any]:
    """What came of it."""
    files = paths_of(drawing.planned.name)
    scores = {
        name: round(value, 6) if isinstance(value, float) else value
        for name, value in asdict(drawing.scores).items()
    }
    return {
        "image": files["image"].as_posix() if kept else None,
        "mask": files["mask"].as_posix(),
        "refined_mask": files["refined_mask"].as_posix() if kept and refine else None,
        "seed": drawing.seed,
        "attempt": drawing.attempt,
        "boxes": [list(box) for box in drawing.boxes],
        "scores": scores,
    }


def planned_of(line: Mapping[str, Any], folder: Path, roots: Roots) -> PlannedImage:
    """What a line of a manifest asked for; its mask is read from beside the manifest.

    Raises:
        UserError: If a file is missing or bad, or the line is no manifest's.
    """
    try:
        normal = roots["normal"] / line["normal"]
        mask = read_mask(folder / line["mask"], image_size(normal))
        kind = line["reference_kind"]
        return PlannedImage(
            name=(line["category"], line["defect"], line["number"]),
            normal=normal,
            reference=Reference(
                roots["data"] / line["reference"],
                roots["data"] / line["reference_mask"],
                line["reference_phrase"],
                (kind[0], kind[1]) if kind else None,
            ),
            mask=PlacedMask.of(line["mask_source"], None, np.asarray(mask)),
            prompt=line["prompt"],
            seed=line["first_seed"],
            sampling=Sampling.model_validate(line["sampling"]),
        )
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(f"{folder}: its manifest is none of this version: {error}") from error


def mask_picture(mask: Any) -> Image.Image:
    """A mask as it is written: 0 and 255."""
    return Image.fromarray(np.asarray(mask)).convert("L")


def _within(file: Path, root: Path) -> str:
    """A file by its place in the data; one from elsewhere by its whole path."""
    return file.relative_to(root).as_posix() if file.is_relative_to(root) else str(file)


def _origin(file: Path | None, root: Path) -> str | None:
    """A mask's file by its place in the data, any other by its name."""
    if file is None:
        return None
    return file.relative_to(root).as_posix() if file.is_relative_to(root) else file.name
