"""ASEA the plain way: every step runs transformers' whole Q-Former under autograd.

The baseline of ``bench_asea.py`` and the reference of the tests; the library does not use it.
"""

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers import Blip2ForImageTextRetrieval

from acontrol.config import AseaConfig
from acontrol.method import anomaly_map
from acontrol.method.anomaly_map import ReferenceText


class Recorder:
    """Keeps the attention probabilities of every Q-Former layer for the length of a block."""

    def __init__(self, qformer: nn.Module):
        # The only kind of attention that hands out its probabilities.
        qformer.set_attn_implementation("eager")
        self.layers = list(qformer.encoder.layer)
        self.self_maps: list[Tensor] = []
        self.cross_maps: list[Tensor | None] = []

    def __enter__(self) -> "Recorder":
        self._hooks = []
        for layer in self.layers:
            attention = layer.attention.attention
            self._hooks.append(attention.register_forward_hook(self._keep_self))
            if layer.has_cross_attention:
                cross = layer.crossattention.attention
                self._hooks.append(cross.register_forward_hook(self._keep_cross))
        return self

    def __exit__(self, *exception: object) -> None:
        for hook in self._hooks:
            hook.remove()

    def _keep_self(self, module: nn.Module, args: Any, output: tuple[Tensor, Tensor]) -> None:
        self.self_maps.append(output[1])
        self.cross_maps.append(None)

    def _keep_cross(self, module: nn.Module, args: Any, output: tuple[Tensor, Tensor]) -> None:
        self.cross_maps[-1] = output[1]


@contextlib.contextmanager
def reading(qformer: nn.Module, values: Tensor | None) -> Iterator[None]:
    """Let the values of every cross-attention read this."""
    hooks = [
        layer.crossattention.attention.value.register_forward_pre_hook(lambda *_: (values,))
        for layer in qformer.encoder.layer
        if layer.has_cross_attention and values is not None
    ]
    yield
    for hook in hooks:
        hook.remove()


def attend(
    vlm: Blip2ForImageTextRetrieval,
    visual: Tensor,
    text: ReferenceText | None,
    *,
    method: str = "rollout",
    solver: str = "all",
    values: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """One pass of the genuine Q-Former: query outputs, and the anomaly's attention.

    Values read ``values`` if given, and else the visual embedding like the keys.
    """
    queries = vlm.query_tokens.expand(len(visual), -1, -1)
    num_queries = queries.shape[1]
    mask = queries.new_ones(queries.shape[:2], dtype=torch.long)
    inputs = queries
    if text is not None:
        inputs = vlm.embeddings(input_ids=text.input_ids, query_embeds=queries)
        mask = torch.cat([mask, text.attention_mask], dim=1)
    with Recorder(vlm.qformer) as record, reading(vlm.qformer, values):
        hidden = vlm.qformer(
            query_embeds=inputs,
            query_length=num_queries,
            attention_mask=mask,
            encoder_hidden_states=visual,
        ).last_hidden_state
    # The class token is no place in the image.
    cross = [
        None if cross_map is None else cross_map[..., 1:] for cross_map in record.cross_maps
    ]
    return hidden[:, :num_queries], read_map(record.self_maps, cross, text, method, solver)


def read_map(
    self_maps: Sequence[Tensor],
    cross: Sequence[Tensor | None],
    text: ReferenceText | None,
    method: str,
    solver: str,
) -> Tensor:
    """Eq. (2), written out."""
    if solver == "first":
        first = cross[0]
        assert first is not None
        if text is None or method == "query_mean":
            return first.mean(dim=(1, 2))
        num_queries = first.shape[2]
        read = self_maps[0].mean(dim=1)[:, num_queries:, :num_queries]
        return anomaly_map.anomaly_attention(read @ first.mean(dim=1), text.span)
    if text is None or method == "query_mean":
        return anomaly_map.query_mean(cross)
    return anomaly_map.anomaly_attention(anomaly_map.rollout(self_maps, cross), text.span)


def guide(
    attention: Callable[[Tensor], Tensor],
    visual: Tensor,
    region: Tensor,
    settings: AseaConfig,
) -> tuple[Tensor, Tensor]:
    """T_g steps on e_g; returns e_v + e_g and E before each step."""
    e_g = torch.zeros_like(visual)
    length = visual.norm(dim=2, keepdim=True)
    adam = torch.optim.Adam([e_g], lr=settings.step_size)
    energies = []
    for _ in range(settings.steps):
        with torch.enable_grad():
            offset = e_g.detach().requires_grad_(True)
            value = anomaly_map.energy(attention(visual + offset), region)
            (gradient,) = torch.autograd.grad(value.sum(), offset)
        old = e_g.clone()
        with torch.no_grad():
            if settings.rule == "adam":
                e_g.grad = gradient
                adam.step()
            elif settings.rule == "gd":
                e_g -= settings.step_size * gradient
            elif settings.rule == "token":
                share = gradient.norm(dim=2, keepdim=True) / length
                e_g -= settings.step_size * gradient / share.amax(dim=1, keepdim=True)
            else:
                whole = length.norm(dim=1, keepdim=True)
                norm = gradient.flatten(1).norm(dim=1)[:, None, None]
                e_g -= settings.step_size * whole * gradient / norm.clamp_min(1e-150)
            if settings.bound is not None:
                ratio = e_g.norm(dim=2, keepdim=True) / length
                e_g /= (ratio / settings.bound).clamp_min(1)
            if settings.stop_energy is not None:
                done = value < settings.stop_energy
                e_g[done] = old[done]
        energies.append(value.detach())
    return visual + e_g, torch.stack(energies, dim=1)
