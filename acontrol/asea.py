"""Anomaly-semantic enhanced attention: Sec. 3.2.2, Eqs. (2)-(4).

The vision-language model stays frozen. For each batch we search for an offset e_g on its
visual embedding that draws the anomaly words' attention into the region.

    A     attention    text-to-image; how BLIP-2 yields it: docs/paper_notes.md
    M_A   region       on the image-token grid, True inside
    e_g   offset       same shape as the visual embedding e_v

Departures: token indices start at 0 (the paper's at 1). e_g restarts at zero for every batch
(Algorithm 1), so no optimizer holds it, although Sec. 3.2.3 lists it among the optimized
parameters.
"""

from collections.abc import Callable, Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor


def rollout(
    self_maps: Sequence[Float[Tensor, "batch head token token"]],
    cross_maps: Sequence[Float[Tensor, "batch head query patch"] | None],
) -> Float[Tensor, "batch text patch"]:
    """Follow the text's attention through the queries to the patches.

    Only the query tokens of a Q-Former attend to the image; the text reads, one layer later,
    what they fetched. So with S the self- and X the cross-attention, averaged over heads,

        A = sum over layers l of  S_{l+1}[text, query] @ X_l[query, patch].

    A layer whose successor does not exist is never read by the text and adds nothing.

    Args:
        self_maps: Self-attention probabilities of every layer, over queries then text.
        cross_maps: Cross-attention probabilities, None for a layer that has none.

    Returns:
        A of Eq. (2), one row a text token. Rows need not sum to one: Eq. (3) is a ratio.

    Raises:
        ValueError: If no cross-attention layer is followed by another layer.
    """
    total = None
    for layer, cross in enumerate(cross_maps[:-1]):
        if cross is None:
            continue
        num_queries = cross.shape[2]
        read = self_maps[layer + 1].mean(dim=1)[:, num_queries:, :num_queries]
        hop = read @ cross.mean(dim=1)
        total = hop if total is None else total + hop
    if total is None:
        raise ValueError("rollout needs a cross-attention layer that another layer follows")
    return total


def query_mean(
    cross_maps: Sequence[Float[Tensor, "batch head query patch"] | None],
) -> Float[Tensor, "batch patch"]:
    """Average over layers, heads and queries: the authors' code, where text acts indirectly."""
    maps = [cross.mean(dim=(1, 2)) for cross in cross_maps if cross is not None]
    return torch.stack(maps).mean(dim=0)


def anomaly_attention(
    attention: Float[Tensor, "batch text patch"], span: Bool[Tensor, "batch text"]
) -> Float[Tensor, "batch patch"]:
    """Average the rows of the anomaly's words, Eq. (2).

    Args:
        attention: A, text token by image patch.
        span: True on the tokens of [anomaly]; every sample has at least one.
    """
    weights = span.to(attention.dtype)
    weights = weights / weights.sum(dim=1, keepdim=True)
    return torch.einsum("bt,btp->bp", weights, attention)


def energy(
    attention: Float[Tensor, "batch patch"], region: Bool[Tensor, "batch patch"]
) -> Float[Tensor, " batch"]:
    """Score how much attention lies outside the region, Eq. (3): 0 is none, 1 is all."""
    inside = (attention * region).sum(dim=1)
    return (1 - inside / attention.sum(dim=1)) ** 2


def region_on_grid(
    mask: Float[Tensor, "batch 1 height width"], grid: int
) -> Bool[Tensor, "batch patch"]:
    """Bring a mask to the grid of image tokens; a mask with a pixel keeps a cell.

    A cell belongs to the region when at least half of it is covered. A mask too thin for that
    everywhere takes every cell that it touches: with an empty region E is 1 and its gradient
    zero, and the search would silently do nothing.

    Args:
        mask: 1 on the defect, 0 elsewhere.
        grid: Side of the square grid, in tokens.
    """
    half = (F.adaptive_avg_pool2d(mask, grid) >= 0.5).flatten(1)
    touched = (F.adaptive_max_pool2d(mask, grid) > 0).flatten(1)
    return torch.where(half.any(dim=1, keepdim=True), half, touched)


def guide(
    attend: Callable[[Tensor], Tensor],
    visual_embedding: Float[Tensor, "batch token dim"],
    region: Bool[Tensor, "batch patch"],
    *,
    steps: int,
    step_size: float,
    rule: Literal["normalized", "gd"],
) -> tuple[Float[Tensor, "batch token dim"], Float[Tensor, "batch step"]]:
    """Take T_g gradient steps on e_g from zero, Eq. (4), under plain autograd.

        gd          e_g <- e_g - alpha * grad E
        normalized  e_g <- e_g - alpha * |e_v| * grad E / |grad E|      (norms per sample)

    The second lets alpha carry over between models: E's gradient spreads over all tokens and
    is tiny, so Eq. (4) as printed needs an alpha near 1e3.

    Args:
        attend: Maps e_v + e_g to the anomaly's attention over patches.
        visual_embedding: e_v. No gradient flows into it.
        region: M_A on the token grid.
        steps: T_g; 0 returns the embedding itself.
        step_size: Alpha.
        rule: Which of the two updates.

    Returns:
        e_v + e_g after the last step, and E before each step.
    """
    e_v = visual_embedding.detach()
    e_g = torch.zeros_like(e_v)
    length = e_v.flatten(1).norm(dim=1)[:, None, None]
    energies = []
    for _ in range(steps):
        with torch.enable_grad():
            e_g.requires_grad_(True)
            value = energy(attend(e_v + e_g), region)
            (gradient,) = torch.autograd.grad(value.sum(), e_g)
        with torch.no_grad():
            if rule == "normalized":
                norm = gradient.flatten(1).norm(dim=1)[:, None, None]
                # Where the gradient is zero there is no direction: the offset stays.
                gradient = gradient * length / norm.clamp_min(torch.finfo(norm.dtype).tiny)
            e_g = e_g.detach() - step_size * gradient
        energies.append(value.detach())
    if not energies:
        return e_v, e_v.new_zeros(len(e_v), 0)
    return e_v + e_g, torch.stack(energies, dim=1)
