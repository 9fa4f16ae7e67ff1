"""Install the adapter in a stock diffusers pipeline.

acontrol.install(pipe, adapter)
pipe.set_ip_adapter_scale(gamma)
pipe(prompt, ip_adapter_image_embeds=image_embeds(adapter, tokens))
"""

from types import MethodType
from typing import Any

import torch
from diffusers import DiffusionPipeline, UNet2DConditionModel
from diffusers.models.attention_processor import AttnProcessor2_0, IPAdapterAttnProcessor2_0
from diffusers.models.embeddings import ImageProjection, MultiIPAdapterImageProjection
from torch import Tensor, nn

from acontrol.config import AdapterCard
from acontrol.interop.ip_adapter import folded
from acontrol.method.sga import SLICING, PooledTokens, SemanticAdapter, cross_attention_layers
from acontrol.networks.inpainting import check_inpainting


def install(pipe: DiffusionPipeline, adapter: SemanticAdapter) -> None:
    """Put stock IP-Adapter processors with the adapter's weights into a pipeline's U-Net.

    ``ip_adapter_image_embeds`` then takes C' (``image_embeds``), ``set_ip_adapter_scale`` sets
    gamma, and ``unload_ip_adapter`` removes the adapter. Any U-Net of the adapter's
    architecture will do, such as a fine-tune or one with a LoRA.

    Raises:
        ValueError: If the U-Net has other layers, or only one of U-Net and adapter is for
            inpainting.
    """
    unet = pipe.unet
    _check_fits(unet, adapter)
    card = adapter.config.card and AdapterCard.model_validate(adapter.config.card)
    if card is not None:
        check_inpainting(card, unet)
    pool = adapter.pool
    tokens = PooledTokens.NUM_TOKENS if pool is not None else 1  # Unused with a single adapter.
    pairs = iter(adapter.matrices())
    widths = dict(cross_attention_layers(unet))
    processors: dict[str, Any] = {}
    for name in unet.attn_processors:
        if name not in widths:
            processors[name] = AttnProcessor2_0()
            continue
        processor = IPAdapterAttnProcessor2_0(
            widths[name], adapter.proj.in_features, num_tokens=(tokens,), scale=1.0
        )
        key, value = next(pairs)
        with torch.no_grad():
            processor.to_k_ip[0].weight.copy_(key)
            processor.to_v_ip[0].weight.copy_(value)
        processors[name] = processor.to(unet.device, unet.dtype).requires_grad_(False)
    unet.set_attn_processor(processors)
    projection = nn.Identity() if pool is None else _projection(pool)
    unet.encoder_hid_proj = MultiIPAdapterImageProjection([projection]).to(
        unet.device, unet.dtype
    )
    unet.config.encoder_hid_dim_type = "ip_image_proj"
    unet.set_attention_slice = MethodType(_refuse_slicing, unet)
    if card is not None:
        pipe.set_ip_adapter_scale(card.sga.scale)


def image_embeds(
    adapter: SemanticAdapter, tokens: Tensor, *, guided: bool = True
) -> list[Tensor]:
    """C' in the shape of ``ip_adapter_image_embeds``, for ``install`` or an exported file.

    Args:
        adapter: Its mode decides the shape.
        tokens: C' of one reference, (1, query, dim), from
            ``AnomalyControlPipeline.reference_tokens``. A stock call shares it among all its
            prompts.
        guided: Whether the pipeline uses classifier-free guidance: the unconditional half,
            C' = 0, then comes first.

    Returns:
        One tensor: (2, 1, query, dim), or in mode ``pooled`` (2, 1, dim), the mean over
        queries; 1 instead of 2 if not guided.

    Raises:
        ValueError: If there are several references: a stock pipeline would mix them up.
    """
    if len(tokens) != 1:
        raise ValueError(f"a stock pipeline takes one reference per call, got {len(tokens)}")
    if adapter.pool is not None:
        tokens = tokens.mean(dim=1)
    if guided:
        tokens = torch.cat([torch.zeros_like(tokens), tokens])
    return [tokens[:, None]]


def _projection(pool: PooledTokens) -> ImageProjection:
    dim = pool.hidden.in_features
    projection = ImageProjection(dim, dim, pool.NUM_TOKENS)
    names = {"proj.weight": "image_embeds.weight", "proj.bias": "image_embeds.bias"}
    projection.load_state_dict(
        {names.get(name, name): value for name, value in folded(pool).items()}
    )
    return projection.requires_grad_(False)


def _check_fits(unet: UNet2DConditionModel, adapter: SemanticAdapter) -> None:
    layers = [tuple(layer) for layer in adapter.config.layers]
    unet_layers = cross_attention_layers(unet)
    if unet_layers != layers or unet.config.cross_attention_dim != adapter.proj.in_features:
        raise ValueError(
            f"the adapter is for {len(layers)} layers from {layers[0]} on with "
            f"{adapter.proj.in_features} wide text, and this U-Net has {len(unet_layers)} from "
            f"{unet_layers[0] if unet_layers else None} on with "
            f"{unet.config.cross_attention_dim}"
        )


def _refuse_slicing(unet: UNet2DConditionModel, slice_size: Any) -> None:
    """Replaces ``set_attention_slice`` while the adapter is installed."""
    if any(
        isinstance(processor, IPAdapterAttnProcessor2_0)
        for processor in unet.attn_processors.values()
    ):
        raise ValueError(SLICING)
    type(unet).set_attention_slice(unet, slice_size)
