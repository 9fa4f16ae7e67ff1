"""Semantic guided adapter: Sec. 3.2.3, Eq. (5).

Only W'_k and W'_v are trained. They live in one module that maps C' to the K' and V' of all
cross-attention layers with a single matrix product; the U-Net's attention processors receive
their pair through ``cross_attention_kwargs``.
"""

from collections.abc import Sequence
from typing import Any, Literal

import torch
import torch.nn.functional as F
from diffusers import ConfigMixin, ModelMixin, UNet2DConditionModel
from diffusers.configuration_utils import register_to_config
from diffusers.models.attention_processor import Attention, AttnProcessor2_0
from jaxtyping import Float
from torch import Tensor, nn

KeyValue = tuple[Tensor, Tensor]
SLICING = (
    "attention slicing would replace the adapter's attention processors with its own, which "
    "ignore C'; for less memory use model CPU offload, or the VAE's slicing and tiling"
)


def decoupled_attention(
    query: Float[Tensor, "batch head latent dim"],
    text_key: Float[Tensor, "batch head text dim"],
    text_value: Float[Tensor, "batch head text dim"],
    semantic_key: Float[Tensor, "batch head semantic dim"],
    semantic_value: Float[Tensor, "batch head semantic dim"],
    *,
    semantic_scale: float,
) -> Float[Tensor, "batch head latent dim"]:
    """Attend to text and semantic tokens with one shared query, Eq. (5).

    The softmaxes are separate: semantic tokens never take weight from the text.

    Args:
        query: Q, where "latent" is the flattened h * w grid.
        text_key: K, from the frozen projection.
        text_value: V, from the frozen projection.
        semantic_key: K', trained.
        semantic_value: V', trained.
        semantic_scale: Gamma, dimensionless; 0 restores the base model.

    Raises:
        ValueError: If ``semantic_scale`` is negative.
    """
    if semantic_scale < 0:
        raise ValueError(f"semantic_scale must be >= 0, got {semantic_scale}")
    text = F.scaled_dot_product_attention(query, text_key, text_value)
    if semantic_scale == 0:
        return text
    semantic = F.scaled_dot_product_attention(query, semantic_key, semantic_value)
    return torch.add(text, semantic, alpha=semantic_scale)


class SemanticAttnProcessor(AttnProcessor2_0):
    """Cross-attention by Eq. (5); without semantic tokens exactly diffusers' own.

    Self-attention layers get one too (``layer`` None), because the U-Net passes its
    ``cross_attention_kwargs`` to every processor.
    """

    def __init__(self, layer: int | None):
        """Set the layer's index among the cross-attention layers."""
        super().__init__()
        self.layer = layer

    def __call__(
        self,
        attn: Attention,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        temb: Tensor | None = None,
        semantic: Sequence[KeyValue] | None = None,
        semantic_scale: float = 1.0,
    ) -> Tensor:
        """Run the layer; ``semantic`` holds (K', V') of every cross-attention layer."""
        if semantic is None or self.layer is None or semantic_scale == 0:
            return super().__call__(
                attn, hidden_states, encoder_hidden_states, attention_mask, temb
            )

        def heads(tensor: Tensor) -> Tensor:
            return tensor.unflatten(-1, (attn.heads, -1)).transpose(1, 2)

        key, value = semantic[self.layer]
        attended = decoupled_attention(
            heads(attn.to_q(hidden_states)),
            heads(attn.to_k(encoder_hidden_states)),
            heads(attn.to_v(encoder_hidden_states)),
            heads(key.to(hidden_states.dtype)),
            heads(value.to(hidden_states.dtype)),
            semantic_scale=semantic_scale,
        )
        out: Tensor = attn.to_out[0](attended.transpose(1, 2).flatten(2))
        if attn.residual_connection:
            out = out + hidden_states
        return out / attn.rescale_output_factor


def install_processors(unet: UNet2DConditionModel) -> None:
    """Set processors that take (K', V') on every attention layer of a U-Net.

    Raises:
        ValueError: If a cross-attention layer normalizes its input or its heads, which is
            not so in Stable Diffusion 1.5 and left open by Eq. (5).
    """
    processors = unet.attn_processors.values()
    if all(isinstance(processor, SemanticAttnProcessor) for processor in processors):
        return  # A compiled U-Net has changed its own.
    cross = [name for name, _ in cross_attention_layers(unet)]
    for name in cross:
        attn = unet.get_submodule(name.removesuffix(".processor"))
        if any(
            norm is not None
            for norm in (attn.spatial_norm, attn.group_norm, attn.norm_q, attn.norm_k)
        ):
            raise ValueError(f"{name}: attention layers with inner norms are not supported")
    indices = {name: index for index, name in enumerate(cross)}
    unet.set_attn_processor(
        {name: SemanticAttnProcessor(indices.get(name)) for name in unet.attn_processors}
    )


def check_processors(unet: Any) -> None:
    """Check that the processors of ``install_processors`` are still there.

    Args:
        unet: The U-Net, compiled or not.

    Raises:
        ValueError: If one was replaced, for instance by attention slicing: C' would silently
            be ignored.
    """
    for name, processor in unet.attn_processors.items():
        if not isinstance(processor, SemanticAttnProcessor):
            raise ValueError(
                f"{name} is a {type(processor).__name__}, which ignores C': something replaced "
                "the adapter's processors; acontrol.method.sga.install_processors(unet) puts "
                "them back"
            )


def cross_attention_layers(unet: UNet2DConditionModel) -> list[tuple[str, int]]:
    """Name and width of each cross-attention layer, in the order of ``attn_processors``."""
    return [
        (name, unet.get_submodule(name.removesuffix(".processor")).inner_dim)
        for name in unet.attn_processors
        if name.endswith("attn2.processor")
    ]


class PooledTokens(nn.Module):
    """As in the authors' code: mean over queries, two linear layers, four tokens, LayerNorm."""

    NUM_TOKENS = 4
    HIDDEN_DIM = 1024

    def __init__(self, dim: int):
        """Build for C' of width ``dim``."""
        super().__init__()
        self.hidden = nn.Linear(dim, self.HIDDEN_DIM)
        self.tokens = nn.Linear(self.HIDDEN_DIM, self.NUM_TOKENS * dim)
        self.norm = nn.LayerNorm(dim)

    def forward(
        self, semantic_tokens: Float[Tensor, "batch query dim"]
    ) -> Float[Tensor, "batch token dim"]:
        """Pool a sequence into four tokens."""
        tokens = self.tokens(self.hidden(semantic_tokens.mean(dim=1)))
        return self.norm(tokens.unflatten(-1, (self.NUM_TOKENS, -1)))


class SemanticAdapter(ModelMixin, ConfigMixin):
    """W'_k and W'_v of all layers as one bias-free projection of C'.

    In mode ``queries`` zero tokens give exactly zero K' and V', so they add nothing to the
    image and nothing to the gradient. ``pooled`` has neither property.

    Attributes of its config: ``layers`` (name and width of each cross-attention layer),
    ``semantic_dim``, ``mode``, and ``card``: a JSON object (config.AdapterCard) that says on
    which base and with which settings the weights were trained.
    """

    @register_to_config
    def __init__(
        self,
        layers: Sequence[Sequence[Any]],  # of (name, width): lists once they were JSON
        semantic_dim: int,
        mode: Literal["queries", "pooled"] = "queries",
        card: dict[str, Any] | None = None,
    ):
        """Build with random weights; ``from_unet`` starts from the text's projections."""
        super().__init__()
        self.widths = tuple(width for _, width in layers)
        self.pool = PooledTokens(semantic_dim) if mode == "pooled" else None
        self.proj = nn.Linear(semantic_dim, 2 * sum(self.widths), bias=False)

    @classmethod
    def from_unet(
        cls, unet: UNet2DConditionModel, semantic_dim: int, **config: Any
    ) -> "SemanticAdapter":
        """Start as a copy of the frozen text projections W_k and W_v.

        Raises:
            ValueError: If C' and the text embedding differ in width: nothing fits to be copied
                (docs/paper_notes.md).
        """
        layers = cross_attention_layers(unet)
        if semantic_dim != unet.config.cross_attention_dim:
            raise ValueError(
                f"C' is {semantic_dim} wide and the U-Net's text "
                f"{unet.config.cross_attention_dim}: this vision-language model does not fit"
            )
        adapter = cls(layers, semantic_dim, **config)
        blocks = []
        for name, _ in layers:
            attn = unet.get_submodule(name.removesuffix(".processor"))
            blocks += [attn.to_k.weight, attn.to_v.weight]
        with torch.no_grad():
            adapter.proj.weight.copy_(torch.cat([block.float() for block in blocks]))
        return adapter

    def matrices(self) -> list[KeyValue]:
        """W'_k and W'_v of each layer, views on the fused weight."""
        blocks = self.proj.weight.split([width for width in self.widths for _ in range(2)])
        return list(zip(blocks[::2], blocks[1::2], strict=True))

    def forward(
        self, semantic_tokens: Float[Tensor, "batch query dim"]
    ) -> Float[Tensor, "batch token fused"]:
        """Project C' to the fused K' and V' of all layers, for ``split``."""
        if self.pool is not None:
            semantic_tokens = self.pool(semantic_tokens)
        return self.proj(semantic_tokens)

    def split(self, fused: Float[Tensor, "batch token fused"]) -> list[KeyValue]:
        """Views on (K', V') of each layer, in the order of the config's ``layers``."""
        parts = fused.split([width for width in self.widths for _ in range(2)], dim=-1)
        return list(zip(parts[::2], parts[1::2], strict=True))
