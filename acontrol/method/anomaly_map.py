"""The attention map A of the anomaly's words, Eq. (2), its energy, Eq. (3), and gradients.

S     self maps    self-attention of each layer, over queries then text
X     cross maps   cross-attention, queries to image patches
A     attention    text to patches; how BLIP-2 yields it: docs/paper_notes.md
M_A   region       on the image-token grid: the share of each token that the mask covers
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor


@dataclass(frozen=True)
class ReferenceText:
    """T_a as token ids, with the span of the anomaly's words.

    Attributes:
        input_ids: Padded token ids.
        attention_mask: 1 on real tokens.
        span: True on the tokens of [anomaly] (L_prefix + 1 to L, without [SEP]).
    """

    input_ids: Int[Tensor, "batch text"]
    attention_mask: Int[Tensor, "batch text"]
    span: Bool[Tensor, "batch text"]


def at_least_float32(tensor: Tensor) -> Tensor:
    """Half precision is too coarse for energies and sums of steps; float64 stays."""
    return tensor.float() if tensor.dtype in (torch.float16, torch.bfloat16) else tensor


def rollout(
    self_maps: Sequence[Float[Tensor, "batch head token token"]],
    cross_maps: Sequence[Float[Tensor, "batch head query patch"] | None],
) -> Float[Tensor, "batch text patch"]:
    """Follow the text's attention through the queries to the patches.

    Only the query tokens of a Q-Former attend to the image; the text attends to them one
    layer later. So with S the self- and X the cross-attention, averaged over heads,

        A = sum over layers l of  S_{l+1}[text, query] @ X_l[query, patch].

    The text never attends to the last layer's queries, so that layer adds nothing.

    Args:
        self_maps: Self-attention probabilities of every layer, over queries then text.
        cross_maps: Cross-attention probabilities, None for a layer without.

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
        text_to_query = self_maps[layer + 1].mean(dim=1)[:, num_queries:, :num_queries]
        hop = text_to_query @ cross.mean(dim=1)
        total = hop if total is None else total + hop
    if total is None:
        raise ValueError("rollout needs a cross-attention layer that another layer follows")
    return total


def query_mean(
    cross_maps: Sequence[Float[Tensor, "batch head query patch"] | None],
) -> Float[Tensor, "batch patch"]:
    """Average over layers, heads and queries, as in the authors' code: text acts indirectly."""
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


def rollout_backward(
    self_maps: Sequence[Float[Tensor, "batch head token token"]],
    cross_maps: Sequence[Float[Tensor, "batch head query patch"] | None],
    span: Bool[Tensor, "batch text"],
    grad: Float[Tensor, "batch patch"],
) -> tuple[list[Tensor | None], list[Tensor | None]]:
    """Backward of Eq. (2) on a rollout: gradients of both kinds of maps, equal in all heads.

    With R = S[span, query] averaged over heads and the anomaly's tokens, A is
    sum_l R_{l+1} X_l, so dX_l = R_{l+1}^T dA and dR_{l+1} = X_l dA.

    Returns:
        For each layer the gradients of its self map (batch, 1, token, token) and of its cross
        map (batch, query, patch); None where A does not depend on it.
    """
    self_grads: list[Tensor | None] = [None] * len(self_maps)
    cross_grads: list[Tensor | None] = [None] * len(self_maps)
    weight = span.to(grad.dtype)
    weight = weight / weight.sum(dim=1, keepdim=True)
    for layer, cross in enumerate(cross_maps[:-1]):
        if cross is None:
            continue
        num_heads, num_queries = cross.shape[1:3]
        heads = self_maps[layer + 1].mean(dim=1)
        read = anomaly_attention(heads[:, num_queries:, :num_queries], span)
        cross_grads[layer] = read[:, :, None] * grad[:, None] / num_heads
        rows = weight[:, :, None] * (grad[:, None] @ cross.mean(dim=1).mT) / num_heads
        num_text = heads.shape[-1] - num_queries
        self_grads[layer + 1] = F.pad(rows, (0, num_text, num_queries, 0))[:, None]
    return self_grads, cross_grads


def query_mean_backward(
    cross_maps: Sequence[Float[Tensor, "batch head query patch"] | None],
    grad: Float[Tensor, "batch patch"],
) -> list[Tensor | None]:
    """Backward of ``query_mean``: gradients (batch, query, patch), equal in all heads."""
    count = sum(cross is not None for cross in cross_maps)
    return [
        None
        if cross is None
        else (grad[:, None] / (count * cross.shape[1] * cross.shape[2])).expand(
            -1, cross.shape[2], -1
        )
        for cross in cross_maps
    ]


def energy(
    attention: Float[Tensor, "batch patch"], region: Float[Tensor, "batch patch"]
) -> Float[Tensor, " batch"]:
    """Score how much attention is outside the region, Eq. (3): 0 is none, 1 is all.

    A token counts as inside by its weight in the region (`region_on_grid`).
    """
    inside = (attention * region).sum(dim=1)
    return (1 - inside / attention.sum(dim=1)) ** 2


def energy_grad(
    attention: Float[Tensor, "batch patch"], region: Float[Tensor, "batch patch"]
) -> Float[Tensor, "batch patch"]:
    """The gradient of Eq. (3): dE/dA_p = 2 (1 - I/T) (I - T m_p) / T^2.

    I is the attention inside, T all of it, m_p the weight of p in the region.
    """
    total = attention.sum(dim=1, keepdim=True)
    inside = (attention * region).sum(dim=1, keepdim=True)
    return 2 * (1 - inside / total) * (inside - total * region) / total**2


def region_on_grid(
    mask: Float[Tensor, "batch 1 height width"], grid: int
) -> Float[Tensor, "batch patch"]:
    """M_A on the grid of image tokens: the share of each that the mask covers.

    Divided by the largest share, so that E can reach 0 for a crack that covers no token. A
    threshold instead would lose thin masks, and small parts beside a large one.

    Args:
        mask: The share of each pixel that the defect covers, in [0, 1].
        grid: Side of the square grid, in tokens.

    Returns:
        Weights in [0, 1]; 1 for at least one token unless the mask is empty.
    """
    share = F.adaptive_avg_pool2d(mask, grid).flatten(1)
    return share / share.amax(dim=1, keepdim=True).clamp_min(torch.finfo(share.dtype).tiny)
