"""What figures cannot show: one line each, at a command's start and end and on its report."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from acontrol.config import BUILT_IN, BaseConfig
from acontrol.data.mvtec import MvtecFolder, open_folder
from acontrol.errors import UserError, one_line
from acontrol.networks import locate
from acontrol.runs.storage import sha256

MANIFEST = "manifest.jsonl"  # Of acontrol generate, next to its categories.


def of_budget(name: str) -> list[str]:
    """What a budget's figures cannot show."""
    if name != "smallest":
        return []
    return ["smallest budget: these figures check the chain and compare nothing"]


def of_folds(number: int | None, synthetic: Sequence[str]) -> list[str]:
    """What cross-validated figures of generated images cannot show."""
    if number is None or not synthetic:
        return []
    return [
        "cross-validated synthetic sources: a generator trained on the training images has "
        "seen the defects that each fold holds out, so that its figures are too good"
    ]


def of_files(synthetic: Mapping[str, Path]) -> list[str]:
    """What generated folders have that their manifests do not tell: files changed or gone.

    Raises:
        UserError: If a manifest is damaged, or a folder is not a data set.
    """
    caveats = []
    for name, folder in synthetic.items():
        files = _digests(open_folder(folder))
        gone = [file for file in files if not file.exists()]
        changed = [file for file in files if file.exists() and sha256(file) != files[file]]
        for group, how in ((changed, "not as they were drawn"), (gone, "no longer there")):
            if group:
                caveats.append(
                    f"--synthetic {name}: {len(group)} of {len(files)} files are {how} (first "
                    f"{min(group)}); its manifest does not tell how to draw what is compared"
                )
    return caveats


def _digests(folder: MvtecFolder) -> dict[Path, str]:
    """Sha256 of the files that a manifest tells of, in the folder's categories."""
    # A category of a generated folder may be given alone.
    alone = [*folder.folders.values()] == [folder.root]
    root = folder.root.resolve().parent if alone else folder.root
    manifest = root / MANIFEST
    if not manifest.is_file():
        return {}
    inside = [place.resolve() for place in folder.folders.values()]
    digests = {}
    for number, text in enumerate(manifest.read_bytes().splitlines(), start=1):
        try:
            line = json.loads(text)
            for name, digest in line.get("sha256", {}).items():  # None before they had them.
                digests[(root / line[name]).resolve()] = digest
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise UserError(
                f"{manifest}: line {number} is damaged ({one_line(error)}); restore it"
            ) from error
    return {
        file: digest
        for file, digest in digests.items()
        if any(file.is_relative_to(place) for place in inside)
    }


def of_vision_tower(config: BaseConfig) -> list[str]:
    """What the figures of a base's vision tower cannot show.

    Raises:
        UserError: If a model or its card is not found or damaged.
    """
    unpublished = "not the published Inception or LPIPS weights"
    if not locate.has_small_vlm(config):
        return [
            f"features of a vision tower: vlm is {unpublished}; compare its figures within "
            "this report alone"
        ]
    base = "the built-in base" if config.path == BUILT_IN else f"the base {config.path}"
    return [
        f"toy features: vlm is the small vision tower of {base}, {unpublished}; its figures "
        "check the chain and compare nothing"
    ]


def of_lite0() -> list[str]:
    """What the figures of EfficientNet-Lite0 cannot show."""
    return [
        "features of EfficientNet-Lite0: ImageNet weights, but not the published Inception or "
        "LPIPS; compare its figures within this report alone"
    ]


def of_classifier(pretrained: bool) -> list[str]:
    """What the figures of classifiers cannot show."""
    if pretrained:
        return []
    return [
        "random weights: classifiers do not start from the published ImageNet weights; compare "
        "their figures within this report alone"
    ]


def print_caveats(caveats: Sequence[str]) -> None:
    """Print each as a line."""
    for caveat in caveats:
        print(f"Caution: {caveat}", flush=True)
