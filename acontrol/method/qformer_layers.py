"""The operations of a frozen Q-Former layer, each with its backward.

Weights are frozen, so a backward computes gradients of inputs only. ``map_grad`` is the
gradient that reaches attention probabilities directly, from Eq. (2)'s map.

The embedding's gradient is dS^T Q W_k + P^T dO W_v in every head, for logits S, probabilities P
and outputs O. A Q-Former has fewer queries (32) than a head has dimensions (64), so Q W_k is
computed first: autograd would send gradients of 257 keys and values through these weights,
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


class SavedSelfAttention(NamedTuple):
    """Of self-attention; value and norm are None if only the probabilities were needed."""

    query: Tensor
    key: Tensor
    probs: Tensor
    value: Tensor | None
    norm: Norm | None


class SavedCrossAttention(NamedTuple):
    """Of cross-attention; value and norm as above, and whether values follow the embedding."""

    query: Tensor
    key: Tensor
    probs: Tensor
    value: Tensor | None
    norm: Norm | None
    values_move: bool = True


class SavedFeedForward(NamedTuple):
    """Of a feed-forward: the activation's input."""

    inner: Tensor
    norm: Norm


class SavedLayer(NamedTuple):
    """A layer's tensors for the backward pass; None for operations that did not run."""

    own: SavedSelfAttention | None
    cross: SavedCrossAttention | None
    query_feed: SavedFeedForward | None = None
    text_feed: SavedFeedForward | None = None


def normalize(rows: Tensor, layer_norm: Any) -> tuple[Tensor, Norm]:
    """Layer norm."""
    out, mean, inverse_std = torch.native_layer_norm(
        rows, rows.shape[-1:], layer_norm.weight, layer_norm.bias, layer_norm.eps
    )
    return out, Norm(rows, mean, inverse_std)


def normalize_backward(grad: Tensor, saved: Norm, layer_norm: Any) -> Tensor:
    """Gradient of a layer norm's input."""
    inputs, mean, inverse_std = saved
    weight, bias = layer_norm.weight, layer_norm.bias
    grads: tuple[Tensor, ...] = aten.native_layer_norm_backward(
        grad, inputs, inputs.shape[-1:], mean, inverse_std, weight, bias, [True, False, False]
    )
    return grads[0]


def feed(intermediate: Any, output: Any, rows: Tensor) -> tuple[Tensor, SavedFeedForward]:
    """LN(W_2 gelu(W_1 x) + x)."""
    inner = intermediate.dense(rows)
    outer = output.dense(torch.nn.functional.gelu(inner)) + rows
    out, norm = normalize(outer, output.LayerNorm)
    return out, SavedFeedForward(inner, norm)


def feed_backward(
    intermediate: Any, output: Any, saved: SavedFeedForward, grad: Tensor
) -> Tensor:
    """Gradient of a feed-forward's input."""
    grad = normalize_backward(grad, saved.norm, output.LayerNorm)
    inner = aten.gelu_backward(grad @ output.dense.weight, saved.inner)
    return grad + inner @ intermediate.dense.weight


def attend_self(
    block: Any, rows: Tensor, padding: Tensor | None, *, map_only: bool = False
) -> tuple[Tensor, SavedSelfAttention]:
    """LN(W_o softmax(Q K^T / sqrt(d)) V + x) on queries and text; x if ``map_only``."""
    attention = block.attention
    query = _split(attention.query(rows), attention)
    key = _split(attention.key(rows), attention)
    logits = (query @ key.mT) * attention.scaling
    probs = (logits if padding is None else logits + padding).softmax(dim=-1)
    if map_only:
        return rows, SavedSelfAttention(query, key, probs, None, None)
    value = _split(attention.value(rows), attention)
    out, norm = normalize(
        block.output.dense(_join(probs @ value)) + rows, block.output.LayerNorm
    )
    return out, SavedSelfAttention(query, key, probs, value, norm)


def attend_self_backward(
    block: Any, saved: SavedSelfAttention, grad: Tensor | None, map_grad: Tensor | None
) -> Tensor:
    """Gradient of the rows from that of the output, of the probabilities, or both."""
    attention = block.attention
    rows: Tensor | None = None
    probs_grad = map_grad
    if grad is not None and saved.norm is not None and saved.value is not None:
        rows = normalize_backward(grad, saved.norm, block.output.LayerNorm)
        read = _split(rows @ block.output.dense.weight, attention)
        through = read @ saved.value.mT
        probs_grad = through if map_grad is None else through + map_grad
        rows = rows + _join(saved.probs.mT @ read) @ attention.value.weight
    assert probs_grad is not None
    logits = (
        _softmax_backward(probs_grad.expand_as(saved.probs), saved.probs) * attention.scaling
    )
    result = _join(logits @ saved.key) @ attention.query.weight
    result = result + _join(logits.mT @ saved.query) @ attention.key.weight
    return result if rows is None else result + rows


def key_queries(block: Any, rows: Tensor) -> Tensor:
    """Q W_k^T / sqrt(d), one row per head and query; times e^T they are the logits.

    The key's bias is missing: it shifts whole rows of logits, which changes no probability.
    """
    attention = block.attention
    return _to_image(
        _split(attention.query(rows), attention) * attention.scaling, attention.key
    )


def attend_image(
    block: Any, rows: Tensor, embedding: Tensor, values: Tensor | None, *, map_only: bool
) -> tuple[Tensor, SavedCrossAttention]:
    """LN(W_o softmax(Q K^T / sqrt(d)) V + x) for the queries; x itself if ``map_only``.

    V is read from ``values`` if given, a constant, and else from the embedding like K.
    """
    attention = block.attention
    query = _split(attention.query(rows), attention) * attention.scaling
    key = _split(attention.key(embedding), attention)
    probs = (query @ key.mT).softmax(dim=-1)
    if map_only:
        return rows, SavedCrossAttention(query, key, probs, None, None)
    value = _split(attention.value(embedding if values is None else values), attention)
    out, norm = normalize(
        block.output.dense(_join(probs @ value)) + rows, block.output.LayerNorm
    )
    return out, SavedCrossAttention(query, key, probs, value, norm, values is None)


def attend_image_backward(
    block: Any,
    saved: SavedCrossAttention,
    grad: Tensor | None,
    map_grad: Tensor | None,
    embedding_grad: Tensor,
    *,
    to_rows: bool,
) -> Tensor | None:
    """Add to the embedding's gradient, and return that of the rows.

    Args:
        block: The cross-attention.
        saved: Of the forward pass.
        grad: Of the output rows.
        map_grad: Of the probabilities.
        embedding_grad: (batch, token, width), added to in place.
        to_rows: Whether to compute the rows' gradient.
    """
    attention = block.attention
    residual, probs_grad = None, map_grad
    if grad is not None and saved.norm is not None and saved.value is not None:
        residual = normalize_backward(grad, saved.norm, block.output.LayerNorm)
        read = _split(residual @ block.output.dense.weight, attention)
        through = read @ saved.value.mT
        probs_grad = through if map_grad is None else through + map_grad
        if saved.values_move:
            _add_product(
                embedding_grad, saved.probs.flatten(1, 2).mT, _to_image(read, attention.value)
            )
    assert probs_grad is not None
    logits = _softmax_backward(probs_grad.expand_as(saved.probs), saved.probs)
    _add_product(embedding_grad, logits.flatten(1, 2).mT, _to_image(saved.query, attention.key))
    if not to_rows:
        return None
    rows = _join(logits @ saved.key) @ (attention.query.weight * attention.scaling)
    return rows if residual is None else rows + residual


def _softmax_backward(grad: Tensor, probs: Tensor) -> Tensor:
    result: Tensor = aten._softmax_backward_data(grad, probs, -1, probs.dtype)
    return result


def _split(rows: Tensor, attention: Any) -> Tensor:
    return rows.unflatten(-1, (attention.num_attention_heads, -1)).transpose(1, 2)


def _join(heads: Tensor) -> Tensor:
    return heads.transpose(1, 2).flatten(2)


def _to_image(heads: Tensor, linear: Any) -> Tensor:
    """(batch, head, query, dim) to (batch, head * query, width), by each head's weights."""
    batch, num_heads, num_queries, _ = heads.shape
    weight = linear.weight.unflatten(0, (num_heads, -1))
    out = torch.bmm(heads.transpose(0, 1).flatten(1, 2), weight)
    return out.unflatten(1, (batch, num_queries)).transpose(0, 1).flatten(1, 2)


def _add_product(total: Tensor, left: Tensor, right: Tensor) -> None:
    """``total += left @ right``, in one pass if the dtypes agree."""
    if total.dtype == left.dtype:
        total.baddbmm_(left, right)
    else:
        total += left @ right
