"""The files and phrases that a job draws from: read before it begins, and unchanged after."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from acontrol.data.images import read_image, read_mask
from acontrol.errors import UserError
from acontrol.generation.manifest import Roots, within
from acontrol.generation.methods import LoadedMethod
from acontrol.generation.plan import PlannedImage
from acontrol.method.encoder import warn_of_cut
from acontrol.runs import storage

INPUTS = "inputs"  # In a job's settings: the digests of the files that were read.


def check_inputs(
    loaded: LoadedMethod, images: Sequence[PlannedImage], roots: Roots
) -> dict[str, dict[str, str]]:
    """Read every file and phrase of a plan once, before the first image is drawn.

    Returns:
        Sha256 of each file by its name in the manifest, normal images and references apart.

    Raises:
        UserError: At the first bad one.
    """
    digests: dict[str, dict[str, str]] = {"normal": {}, "data": {}}

    def add(root: str, file: Path) -> None:
        digests[root][within(file, roots[root])] = storage.sha256(file)

    for normal in sorted({image.normal for image in images}):
        read_image(normal)
        add("normal", normal)
    references = {(image.reference.image, image.reference.mask) for image in images}
    for file, mask in sorted(references):
        height, width = read_image(file).shape[:2]
        read_mask(mask, (width, height))
        add("data", file)
        add("data", mask)
    if loaded.tokenizer is not None:
        warn_of_cut(loaded.tokenizer, sorted({image.prompt for image in images}))
    if loaded.read_phrase is None:
        return digests
    for phrase in sorted({image.reference.phrase for image in images}):
        try:
            loaded.read_phrase([phrase])
        except ValueError as error:
            raise UserError(str(error)) from error
    return digests


def refuse_changed(before: Any, now: Mapping[str, Any], drawn: Path) -> None:
    """Refuse images that changed after they were drawn on: the result would be of both.

    Args:
        before: The earlier job's digests, from ``check_inputs``.
        now: Metadata of the job to begin.
        drawn: The earlier job's folder.

    Raises:
        UserError: Naming the first changed file.
    """
    changed = [
        name
        for root, digests in now.get(INPUTS, {}).items()
        for name, digest in digests.items()
        if before[root].get(name, digest) != digest
    ]
    if changed:
        more = f" and {len(changed) - 1} more have" if len(changed) > 1 else " has"
        raise UserError(
            f"{changed[0]}{more} changed since {drawn} was drawn from it: put the earlier file "
            "back, or draw anew into another --out"
        )
