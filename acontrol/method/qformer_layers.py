"""The parts of a frozen Q-Former layer, each with its way back: rows in, gradient of rows out.

Weights are frozen, so a way back gives gradients of inputs alone. ``map_slope`` is the gradient
that reaches attention probabilities directly, from Eq. (2)'s map.

The embedding's gradient is dS^T Q W_k + P^T dO W_v in every head, for logits S, probabilities P
and outputs O. A Q-Former has fewer queries (32) than a head has dimensions (64), so Q W_k comes
first: under autograd, gradients of 257 keys and values would go through these weights instead,
twice the work.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor

aten = torch.ops.aten


class Norm(NamedTuple):
    """A layer norm's input and statistics."""

    inputs: Tensor
    mean: Tensor
    inverse_std: Tensor


class SelfTape(NamedTuple):
    """Self-attention; value and norm are None where only the probabilities were wanted."""

    query: Tensor
    key: Tensor
    probs: Tensor
    value: Tensor | None
    norm: Norm | None


class CrossTape(NamedTuple):
    """Cross-attention; value and norm as above."""

    query: Tensor
    key: Tensor
    probs: Tensor
    value: Tensor | None
    norm: Norm | None


class FeedTape(NamedTuple):
    """Feed-forward: the activation's input."""

    inner: Tensor
    norm: Norm


class LayerTape(NamedTuple):
    """What the way back needs of a layer; None for what the pass did not do there."""

    own: SelfTape | None
    cross: CrossTape | None
    query_feed: FeedTape | None = None
    text_feed: FeedTape | None = None


def normalize(rows: Tensor, layer_norm: Any) -> tuple[Tensor, Norm]:
    """Layer norm."""
    out, mean, inverse_std = torch.native_layer_norm(
        rows, rows.shape[-1:], layer_norm.weight, layer_norm.bias, layer_norm.eps
    )
    return out, Norm(rows, mean, inverse_std)


def normalize_back(slope: Tensor, tape: Norm, layer_norm: Any) -> Tensor:
    """Gradient of a layer norm's input."""
    inputs, mean, inverse_std = tape
    weight, bias = layer_norm.weight, layer_norm.bias
    found: tuple[Tensor, ...] = aten.native_layer_norm_backward(
        slope, inputs, inputs.shape[-1:], mean, inverse_std, weight, bias, [True, False, False]
    )
    return found[0]


def feed(intermediate: Any, output: Any, rows: Tensor) -> tuple[Tensor, FeedTape]:
    """LN(W_2 gelu(W_1 x) + x)."""
    inner = intermediate.dense(rows)
    outer = output.dense(torch.nn.functional.gelu(inner)) + rows
    out, norm = normalize(outer, output.LayerNorm)
    return out, FeedTape(inner, norm)


def feed_back(intermediate: Any, output: Any, tape: FeedTape, slope: Tensor) -> Tensor:
    """Gradient of a feed-forward's input."""
    slope = normalize_back(slope, tape.norm, output.LayerNorm)
    inner = aten.gelu_backward(slope @ output.dense.weight, tape.inner)
    return slope + inner @ intermediate.dense.weight


def attend_self(
    block: Any, rows: Tensor, padding: Tensor | None, *, map_only: bool = False
) -> tuple[Tensor, SelfTape]:
    """LN(W_o softmax(Q K^T / sqrt(d)) V + x) on queries and text; x if ``map_only``."""
    attention = block.attention
    query = _split(attention.query(rows), attention)
    key = _split(attention.key(rows), attention)
    logits = (query @ key.mT) * attention.scaling
    probs = (logits if padding is None else logits + padding).softmax(dim=-1)
    if map_only:
        return rows, SelfTape(query, key, probs, None, None)
    value = _split(attention.value(rows), attention)
    out, norm = normalize(
        block.output.dense(_join(probs @ value)) + rows, block.output.LayerNorm
    )
    return out, SelfTape(query, key, probs, value, norm)


def attend_self_back(
    block: Any, tape: SelfTape, slope: Tensor | None, map_slope: Tensor | None
) -> Tensor:
    """Gradient of the rows, given that of the output, of the probabilities, or both."""
    attention = block.attention
    rows: Tensor | None = None
    probs_slope = map_slope
    if slope is not None and tape.norm is not None and tape.value is not None:
        rows = normalize_back(slope, tape.norm, block.output.LayerNorm)
        read = _split(rows @ block.output.dense.weight, attention)
        through = read @ tape.value.mT
        probs_slope = through if map_slope is None else through + map_slope
        rows = rows + _join(tape.probs.mT @ read) @ attention.value.weight
    assert probs_slope is not None
    logits = _softmax_back(probs_slope.expand_as(tape.probs), tape.probs) * attention.scaling
    found = _join(logits @ tape.key) @ attention.query.weight
    found = found + _join(logits.mT @ tape.query) @ attention.key.weight
    return found if rows is None else found + rows


def key_queries(block: Any, rows: Tensor) -> Tensor:
    """Q W_k^T / sqrt(d), a row a head and query: their product with e^T are the logits.

    But for the key's bias, which shifts a whole row of logits and so no probability.
    """
    attention = block.attention
    return _to_image(
        _split(attention.query(rows), attention) * attention.scaling, attention.key
    )


def attend_image(
    block: Any, rows: Tensor, embedding: Tensor, *, map_only: bool
) -> tuple[Tensor, CrossTape]:
    """LN(W_o softmax(Q K^T / sqrt(d)) V + x) for the queries; x itself if ``map_only``."""
    attention = block.attention
    query = _split(attention.query(rows), attention) * attention.scaling
    key = _split(attention.key(embedding), attention)
    probs = (query @ key.mT).softmax(dim=-1)
    if map_only:
        return rows, CrossTape(query, key, probs, None, None)
    value = _split(attention.value(embedding), attention)
    out, norm = normalize(
        block.output.dense(_join(probs @ value)) + rows, block.output.LayerNorm
    )
    return out, CrossTape(query, key, probs, value, norm)


def attend_image_back(
    block: Any,
    tape: CrossTape,
    slope: Tensor | None,
    map_slope: Tensor | None,
    found: Tensor,
    *,
    to_rows: bool,
) -> Tensor | None:
    """Add the embedding's gradient to ``found``, and return that of the rows.

    Args:
        block: The cross-attention.
        tape: Of the way there.
        slope: Of the output rows.
        map_slope: Of the probabilities.
        found: (batch, token, width), added to in place.
        to_rows: Whether the rows' gradient is asked for.
    """
    attention = block.attention
    beside, probs_slope = None, map_slope
    if slope is not None and tape.norm is not None and tape.value is not None:
        beside = normalize_back(slope, tape.norm, block.output.LayerNorm)
        read = _split(beside @ block.output.dense.weight, attention)
        through = read @ tape.value.mT
        probs_slope = through if map_slope is None else through + map_slope
        _add_product(found, tape.probs.flatten(1, 2).mT, _to_image(read, attention.value))
    assert probs_slope is not None
    logits = _softmax_back(probs_slope.expand_as(tape.probs), tape.probs)
    _add_product(found, logits.flatten(1, 2).mT, _to_image(tape.query, attention.key))
    if not to_rows:
        return None
    rows = _join(logits @ tape.key) @ (attention.query.weight * attention.scaling)
    return rows if beside is None else rows + beside


def _softmax_back(slope: Tensor, probs: Tensor) -> Tensor:
    found: Tensor = aten._softmax_backward_data(slope, probs, -1, probs.dtype)
    return found


def _split(rows: Tensor, attention: Any) -> Tensor:
    return rows.unflatten(-1, (attention.num_attention_heads, -1)).transpose(1, 2)


def _join(heads: Tensor) -> Tensor:
    return heads.transpose(1, 2).flatten(2)


def _to_image(heads: Tensor, linear: Any) -> Tensor:
    """(batch, head, query, dim) to (batch, head and query, width), each head by its weights."""
    batch, num_heads, num_queries, _ = heads.shape
    weight = linear.weight.unflatten(0, (num_heads, -1))
    out = torch.bmm(heads.transpose(0, 1).flatten(1, 2), weight)
    return out.unflatten(1, (batch, num_queries)).transpose(0, 1).flatten(1, 2)


def _add_product(total: Tensor, left: Tensor, right: Tensor) -> None:
    """``total += left @ right``, in one pass where the precisions agree."""
    if total.dtype == left.dtype:
        total.baddbmm_(left, right)
    else:
        total += left @ right
