"""What figures cannot show: one line each, at a command's start and end and on its report."""

from collections.abc import Sequence

from acontrol.config import BUILT_IN, BaseConfig
from acontrol.networks import locate


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
