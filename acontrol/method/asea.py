"""Anomaly-semantic enhanced attention: Sec. 3.2.2, Eq. (4) on the energy of Eqs. (2)-(3).

The vision-language model stays frozen. For each batch we search for an offset e_g on its
visual embedding that draws the anomaly words' attention into the region. Gradients are derived
by hand, so nothing here needs autograd: it also runs under ``torch.inference_mode``, and
tensors saved for the backward pass are freed after each step.

    A     attention    text-to-image; how BLIP-2 yields it: docs/paper_notes.md
    M_A   region       weights of the image tokens, 1 inside
    e_v   visual embedding, class token first, then patches
    e_g   offset       same shape as e_v

Departures: token indices start at 0 (the paper's at 1). e_g restarts at zero for every batch
(Algorithm 1), so no optimizer holds it, although Sec. 3.2.3 lists it among the optimized
parameters.
"""

from collections.abc import Callable
from typing import Any, Protocol, runtime_checkable

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from acontrol.config import AseaConfig
from acontrol.method.anomaly_map import at_least_float32, energy, energy_grad


@runtime_checkable
class GuidedAttention(Protocol):
    """How e_v + e_g becomes the anomaly's attention; ``qformer.QFormerPass`` is BLIP-2's.

    Solver ``all`` needs the two methods, solver ``first`` the two tensors.

    Attributes:
        key_query: Q W_k^T / sqrt(d) of the first cross-attention, one row per head and query.
        query_weight: Weight of each row's probabilities in that layer's map.
    """

    key_query: Tensor  # (batch, row, dim)
    query_weight: Tensor  # (batch, row)

    def forward(
        self, embedding: Float[Tensor, "batch token dim"]
    ) -> tuple[Float[Tensor, "batch patch"], Any]:
        """The attention, and a trace for ``backward``."""

    def backward(
        self, trace: Any, grad: Float[Tensor, "batch patch"]
    ) -> Float[Tensor, "batch token dim"]:
        """The embedding's gradient from the attention's."""


# Of an attention, e_v, the region and settings: e_g, and E before each step.
Solver = Callable[[GuidedAttention, Tensor, Tensor, AseaConfig], tuple[Tensor, Tensor]]


@torch.compiler.disable
def guide(
    attention: GuidedAttention,
    visual_embedding: Float[Tensor, "batch token dim"],
    region: Float[Tensor, "batch patch"],
    settings: AseaConfig,
    solve: Solver | None = None,
) -> tuple[Float[Tensor, "batch token dim"], Float[Tensor, "batch step"]]:
    """Take T_g gradient steps on e_g from zero, Eq. (4).

        gd          e_g <- e_g - alpha * grad E
        token       e_g <- e_g - alpha * grad E / max_t (|grad_t E| / |e_v,t|)
        normalized  e_g <- e_g - alpha * |e_v| * grad E / |grad E|      (norms per sample)
        adam        Adam with rate alpha and PyTorch's defaults

    E's gradient is tiny, so Eq. (4) as printed needs an alpha near 1e3. ``token`` carries over
    between models and grids: the token t that moves most moves by alpha of its own length.
    With ``normalized`` that length grows with the number of tokens outside the mask.

    Within a compiled model the steps run as they are, between compiled graphs; ``solve`` may be
    compiled itself.

    Args:
        attention: The frozen model on this batch.
        visual_embedding: e_v. The backward pass treats e_v + e_g as e_v: straight through.
        region: M_A on the token grid.
        settings: T_g (0 returns e_v itself), alpha, rule, solver, bound and stop.
        solve: The steps; by default ``solver_of`` the settings.

    Returns:
        e_v + e_g after the last step, and E before each step.
    """
    solve = solve or solver_of(settings)
    return AseaFunction.apply(visual_embedding, region, attention, settings, solve)


class AseaFunction(torch.autograd.Function):
    """``guide`` as one autograd node: T_g steps forward, the identity backward."""

    @staticmethod
    def forward(
        ctx: Any,
        visual_embedding: Tensor,
        region: Tensor,
        attention: GuidedAttention,
        settings: AseaConfig,
        solve: Solver,
    ) -> tuple[Tensor, Tensor]:
        """Return e_v + e_g, and E before each step."""
        e_v = at_least_float32(visual_embedding)
        if settings.steps == 0:
            energies = e_v.new_zeros(len(e_v), 0)
            ctx.mark_non_differentiable(energies)
            return visual_embedding.clone(), energies
        # The weights' precision whatever the caller's autocast: C' is a pure function.
        with torch.autocast(e_v.device.type, enabled=False):
            e_g, energies = solve(attention, e_v, region.to(e_v.dtype), settings)
        ctx.mark_non_differentiable(energies)
        return (e_v + e_g).to(visual_embedding.dtype), energies

    @staticmethod
    def backward(
        ctx: Any, grad: Tensor, _energies: Tensor
    ) -> tuple[Tensor, None, None, None, None]:
        """Straight through to e_v."""
        return grad, None, None, None, None


def solver_of(settings: AseaConfig) -> Solver:
    """The steps that ``solver`` names."""
    return _all_layers if settings.solver == "all" else _first_layer


def _all_layers(
    attention: GuidedAttention, e_v: Tensor, region: Tensor, settings: AseaConfig
) -> tuple[Tensor, Tensor]:
    """Steps on the energy of the whole map, each a forward and a backward pass."""
    e_g, length = torch.zeros_like(e_v), _norm(e_v)
    mean, square = torch.zeros(2, *([1] * e_v.ndim), dtype=e_v.dtype, device=e_v.device)
    energies = []
    for step in range(1, settings.steps + 1):
        attended, trace = attention.forward(e_v + e_g)
        value = energy(attended, region)
        grad = attention.backward(trace, energy_grad(attended, region))
        if settings.rule == "adam":
            mean = _ADAM_MEAN * mean + (1 - _ADAM_MEAN) * grad
            square = _ADAM_SQUARE * square + (1 - _ADAM_SQUARE) * grad**2
            scale = (square / (1 - _ADAM_SQUARE**step)).sqrt() + _ADAM_FLOOR
            moved = e_g - settings.step_size * mean / (1 - _ADAM_MEAN**step) / scale
        else:
            moved = e_g - grad * _stride(_norm(grad), length, settings)
        moved = moved * _shrink(_norm(moved), length, settings)
        e_g = _unless_done(value, moved, e_g, settings)
        energies.append(value)
    return e_g, torch.stack(energies, dim=1)


# PyTorch's defaults.
_ADAM_MEAN, _ADAM_SQUARE, _ADAM_FLOOR = 0.9, 0.999, 1e-8


def _first_layer(
    attention: GuidedAttention, e_v: Tensor, region: Tensor, settings: AseaConfig
) -> tuple[Tensor, Tensor]:
    """Steps on the energy of the first cross-attention, in its logits.

    Its queries do not depend on e_g, so with Q~ the key queries the logits are S = Q~ e^T and
    E's gradient is dS^T Q~. So e_g stays a combination of Q~'s rows, e_g = C^T Q~, and a step
    on e_g moves S by G = Q~ Q~^T:

        C <- C - alpha dS,    S <- S - alpha G dS,    |C^T Q~|^2 = <C, G C>.
    """
    key_query = at_least_float32(attention.key_query)
    weight = at_least_float32(attention.query_weight)[:, :, None]
    start, gram = key_query @ e_v.mT, key_query @ key_query.mT
    rows, shift = torch.zeros_like(start), torch.zeros_like(start)  # C and G C
    length = _norm(e_v)
    energies = []
    for _ in range(settings.steps):
        probs = (start + shift).softmax(dim=-1)
        attended = (weight.mT @ probs)[
            :, 0, 1:
        ]  # Without the class token, which has no place in the image.
        value = energy(attended, region)
        outer = F.pad(energy_grad(attended, region), (1, 0))[:, None]
        grad = weight * probs * (outer - probs @ outer.mT)
        pull = gram @ grad
        stride = _stride(_norm_of_rows(grad, pull), length, settings)
        moved, moved_shift = rows - stride * grad, shift - stride * pull
        factor = _shrink(_norm_of_rows(moved, moved_shift), length, settings).mT
        rows = _unless_done(value, moved * factor, rows, settings)
        shift = _unless_done(value, moved_shift * factor, shift, settings)
        energies.append(value)
    return rows.mT @ key_query, torch.stack(energies, dim=1)


def _norm(embedding: Tensor) -> Tensor:
    """The length of each token: (batch, token, 1)."""
    return torch.linalg.vector_norm(embedding, dim=2, keepdim=True)


def _norm_of_rows(rows: Tensor, moved: Tensor) -> Tensor:
    """The same of C^T Q~, from C and G C."""
    return (rows * moved).sum(dim=1).clamp_min(0).sqrt()[..., None]


def _stride(norm: Tensor, length: Tensor, settings: AseaConfig) -> Tensor:
    """What the gradient is multiplied with, (batch, 1, 1), from its and e_v's token lengths."""
    if settings.rule == "gd":
        return norm.new_full((len(norm), 1, 1), settings.step_size)
    # A zero gradient has no direction: the offset stays. The root, so that no quotient is inf.
    tiny = torch.finfo(norm.dtype).tiny ** 0.5
    if settings.rule == "token":
        share = norm / length.clamp_min(tiny)
        return settings.step_size / share.amax(dim=1, keepdim=True).clamp_min(tiny)
    whole, of = (torch.linalg.vector_norm(part, dim=1, keepdim=True) for part in (norm, length))
    return settings.step_size * of / whole.clamp_min(tiny)


def _shrink(norm: Tensor, length: Tensor, settings: AseaConfig) -> Tensor:
    """Factors that scale e_g's tokens back to the bound's share of e_v's; 1 within it."""
    if settings.bound is None:
        return torch.ones_like(norm)
    return (settings.bound * length / norm.clamp_min(torch.finfo(norm.dtype).tiny)).clamp_max(1)


def _unless_done(value: Tensor, moved: Tensor, old: Tensor, settings: AseaConfig) -> Tensor:
    """Freeze samples with low enough energy; masked, so that the host never waits."""
    if settings.stop_energy is None:
        return moved
    return torch.where((value < settings.stop_energy)[:, None, None], old, moved)
