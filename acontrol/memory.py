"""What a training step keeps in memory, counted on shapes: nothing is loaded or computed."""

from collections.abc import Callable, Iterable
from typing import Any

import torch
import torch.nn.functional as F
from diffusers import UNet2DConditionModel
from torch import Tensor
from torch.overrides import TorchFunctionMode

from acontrol.method.sga import SemanticAdapter, cross_attention_layers, install_processors


def adapter_bytes(count: int, stage: int, workers: int, low: int) -> int:
    """Weights, gradients, master weights and AdamW's moments on one worker, in bytes.

    Args:
        count: Trainable parameters.
        stage: ZeRO stage; splits moments and masters from 1, gradients from 2, weights from 3.
        workers: Among which they are split.
        low: Bytes of a weight in the passes; under 4 a float32 master is kept besides.
    """
    optimizer = (8 + (4 if low < 4 else 0)) * count // (workers if stage >= 1 else 1)
    gradients = 4 * count // (workers if stage >= 2 else 1)
    weights = low * count // (workers if stage >= 3 else 1)
    return optimizer + gradients + weights


def activation_bytes(
    unet: UNet2DConditionModel,
    latent_side: int,
    text_tokens: int,
    semantic_tokens: int,
    dtype: torch.dtype,
) -> int:
    """What one sample's pass through the U-Net keeps for the way back, in bytes.

    The tensors that autograd saves on the meta device, each storage once, weights left out;
    attention saves what a fused kernel does. Nothing is kept before the first
    cross-attention, since only K' and V' have gradients. The largest part of a step's memory,
    but not all: workspaces, the allocator's rounding and the frozen encoders come on top.

    Args:
        unet: On the meta device.
        latent_side: Height and width of the latents.
        text_tokens: Length of the target text.
        semantic_tokens: Length of C' as the adapter hands it on.
        dtype: Of the pass.
    """
    with torch.device("meta"):
        # A copy: the caller's keeps its precision and its processors.
        copied = _in(dtype, UNet2DConditionModel.from_config(unet.config))
        layers = cross_attention_layers(copied)
        width = unet.config.cross_attention_dim
        adapter = _in(dtype, SemanticAdapter(layers, width))
        install_processors(copied)
        copied.requires_grad_(False)
        inputs = (
            torch.empty(1, unet.config.in_channels, latent_side, latent_side, dtype=dtype),
            torch.empty(1),
            torch.empty(1, text_tokens, width, dtype=dtype),
        )
        tokens = torch.empty(1, semantic_tokens, width, dtype=dtype)
    weights = {_storage(one) for one in (*copied.parameters(), *adapter.parameters())}
    kept: dict[int, Tensor] = {}

    def keep(tensor: Tensor) -> Tensor:
        if _storage(tensor) not in weights:
            kept[_storage(tensor)] = tensor  # Held, so that its storage's id stays its own.
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor), _FusedSaves():
        copied(
            *inputs,
            cross_attention_kwargs={
                "semantic": adapter.split(adapter(tokens)),
                "semantic_scale": 1.0,
            },
        )
    return sum(one.untyped_storage().nbytes() for one in kept.values())


def _in(dtype: torch.dtype, module: Any) -> Any:
    """In a precision, without diffusers' warning about layers that stay in float32."""
    return torch.nn.Module.to(module, dtype)


def _storage(tensor: Tensor) -> int:
    return tensor.untyped_storage()._cdata


class _FusedAttention(torch.autograd.Function):
    """Attention as far as memory goes: q, k, v, the result and one float32 a row and head."""

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        result = query.new_empty(*query.shape[:-1], value.shape[-1])
        rows = query.new_empty(query.shape[:-1], dtype=torch.float32)
        ctx.save_for_backward(query, key, value, result, rows)
        return result

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        raise AssertionError("shapes have no way back")


class _FusedSaves(TorchFunctionMode):
    """On the meta device attention would fall back to whole matrices of weights."""

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Iterable[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        if func is F.scaled_dot_product_attention:
            return _FusedAttention.apply(*args[:3])
        return func(*args, **(kwargs or {}))
