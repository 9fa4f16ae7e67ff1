"""Metrics of sets of images: IS, KID, diversity within clusters, and copies.

They take features or distances, so that any network can be used.
"""

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor
from torchmetrics.image.kid import poly_mmd

from acontrol.seeding import derive_seed

SPLITS = 10
MAX_MEMBERS = 50  # Of a cluster, at random, as in the published script.
COPY_SHARE = 0.2
_SUBSETS, _SUBSET = 100, 100


def inception_score(logits: Float[Tensor, "n classes"], seed: int = 0) -> float:
    """Exp of the mean divergence of p(y|x) from p(y), mean over splits (Salimans et al.).

    Splits are even, as torch-fidelity's are. torchmetrics' are not: an image alone in a split
    scores 1 whatever it shows.

    Returns:
        NaN with fewer than two images per split.
    """
    count = len(logits)
    if count < 2 * SPLITS:
        return float("nan")
    order = np.random.default_rng(derive_seed("inception", seed)).permutation(count)
    logs = logits.double().log_softmax(dim=1)[torch.from_numpy(order)]
    scores = []
    for split in range(SPLITS):
        part = logs[split * count // SPLITS : (split + 1) * count // SPLITS]
        mean = part.exp().mean(dim=0).log()
        scores.append((part.exp() * (part - mean)).sum(dim=1).mean().exp())
    return float(torch.stack(scores).mean())


def kernel_distance(real: Float[Tensor, "n width"], other: Float[Tensor, "m width"]) -> float:
    """KID: unbiased squared MMD with the kernel (x'y / width + 1)^3, mean over subsets.

    Small sets are compared whole. A negative value means that no difference shows.

    Returns:
        NaN if a set has fewer than two images.
    """
    size = min(len(real), len(other), _SUBSET)
    if size < 2:
        return float("nan")
    if max(len(real), len(other)) == size:
        return float(poly_mmd(real.double(), other.double()))
    rng = np.random.default_rng(derive_seed("kid", 0))
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


def cluster_members(
    to_references: Float[Tensor, "n reference"], seed: int = 0
) -> list[list[int]]:
    """Images by their nearest reference, at most `MAX_MEMBERS` each, at random."""
    nearest = to_references.argmin(dim=1).numpy()
    clusters = []
    for reference in range(to_references.shape[1]):
        members = np.flatnonzero(nearest == reference)
        if len(members) > MAX_MEMBERS:
            rng = np.random.default_rng(derive_seed("cluster", seed, reference))
            members = np.sort(rng.choice(members, MAX_MEMBERS, replace=False))
        clusters.append(members.tolist())
    return clusters


def cluster_diversity(within: Sequence[Tensor]) -> float:
    """Mean over clusters of the mean pairwise distance; clusters of one are left out.

    With LPIPS as the distance this is IC-LPIPS (Ojha et al., CVPR 2021).

    Args:
        within: Pairwise distances of each cluster's members, (k, k).

    Returns:
        NaN if no cluster has two members.
    """
    means = [
        float((pairs.sum() - pairs.diagonal().sum()) / (len(pairs) * (len(pairs) - 1)))
        for pairs in within
        if len(pairs) > 1
    ]
    return float(np.mean(means)) if means else float("nan")


def is_copy(
    to_training: Float[Tensor, "n training"], among_training: Float[Tensor, "training training"]
) -> list[bool]:
    """Which images are far nearer to a training defect than training defects to each other.

    That is, nearer than `COPY_SHARE` times the median distance between nearest training
    defects. With a single training defect only an image at distance 0 is a copy.
    """
    others = among_training.clone().fill_diagonal_(float("inf"))
    typical = float(others.min(dim=1).values.median()) if len(others) > 1 else 0.0
    nearest = to_training.min(dim=1).values
    return ((nearest < COPY_SHARE * typical) | (nearest == 0)).tolist()
