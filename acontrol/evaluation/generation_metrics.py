"""Scores of a set of images by what networks see: IS, KID, and diversity within clusters.

Everything takes features or distances that are computed already, so that any network serves.
"""

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor
from torchmetrics.image.kid import poly_mmd

from acontrol.seeding import derive_seed

SPLITS = 10
MEMBERS = 50  # Of a cluster, at random, as in the published script.
COPY_SHARE = 0.2
_SUBSETS, _SUBSET = 100, 100


def inception_score(logits: Float[Tensor, "n classes"], seed: int = 0) -> float:
    """Exp of the mean divergence of p(y|x) from p(y), mean over splits (Salimans et al.).

    Splits are as even as torch-fidelity's; torchmetrics' are not, and an image alone in a split
    scores 1 whatever it shows.

    Returns:
        NaN for fewer than two images a split.
    """
    count = len(logits)
    if count < 2 * SPLITS:
        return float("nan")
    order = np.random.default_rng(derive_seed("inception", seed)).permutation(count)
    logs = logits.double().log_softmax(dim=1)[torch.from_numpy(order)]
    scores = []
    for split in range(SPLITS):
        own = logs[split * count // SPLITS : (split + 1) * count // SPLITS]
        mean = own.exp().mean(dim=0).log()
        scores.append((own.exp() * (own - mean)).sum(dim=1).mean().exp())
    return float(torch.stack(scores).mean())


def kernel_distance(
    real: Float[Tensor, "n width"], other: Float[Tensor, "m width"], seed: int = 0
) -> float:
    """KID: unbiased squared MMD with the kernel (x'y / width + 1)^3, mean over subsets.

    Small sets are compared whole. It can be negative, which says: no difference seen.

    Returns:
        NaN where a set has fewer than two images.
    """
    size = min(len(real), len(other), _SUBSET)
    if size < 2:
        return float("nan")
    if max(len(real), len(other)) == size:
        return float(poly_mmd(real.double(), other.double()))
    rng = np.random.default_rng(derive_seed("kid", seed))
    values = [
        float(
            poly_mmd(
                real[rng.choice(len(real), size, replace=False)].double(),
                other[rng.choice(len(other), size, replace=False)].double(),
            )
        )
        for _ in range(_SUBSETS)
    ]
    return float(np.mean(values))


def members(to_references: Float[Tensor, "n reference"], seed: int = 0) -> list[list[int]]:
    """Clusters by the nearest reference, each of at most `MEMBERS` images, at random."""
    nearest = to_references.argmin(dim=1).numpy()
    clusters = []
    for reference in range(to_references.shape[1]):
        own = np.flatnonzero(nearest == reference)
        if len(own) > MEMBERS:
            rng = np.random.default_rng(derive_seed("cluster", seed, reference))
            own = np.sort(rng.choice(own, MEMBERS, replace=False))
        clusters.append(own.tolist())
    return clusters


def cluster_diversity(within: Sequence[Tensor]) -> float:
    """Mean over clusters of the mean distance of two members; clusters of one are left out.

    With LPIPS as the distance this is IC-LPIPS (Ojha et al., CVPR 2021).

    Args:
        within: Distances of each cluster's members to each other, (k, k).

    Returns:
        NaN where no cluster has two.
    """
    means = [
        float((one.sum() - one.diagonal().sum()) / (len(one) * (len(one) - 1)))
        for one in within
        if len(one) > 1
    ]
    return float(np.mean(means)) if means else float("nan")


def is_copy(
    to_training: Float[Tensor, "n training"], among_training: Float[Tensor, "training training"]
) -> list[bool]:
    """Which images are far nearer to a training defect than training defects are to each other.

    That is, nearer than `COPY_SHARE` of the median distance of a training defect to its
    nearest other. With a single training defect only an image at distance 0 is a copy.
    """
    others = among_training.clone().fill_diagonal_(float("inf"))
    usual = float(others.min(dim=1).values.median()) if len(others) > 1 else 0.0
    nearest = to_training.min(dim=1).values
    return ((nearest < COPY_SHARE * usual) | (nearest == 0)).tolist()
