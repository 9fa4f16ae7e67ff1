"""Compile a U-Net for training or drawing, and ASEA's steps; choose attention's kernel."""

import contextlib
import os
import warnings
from collections.abc import Callable
from typing import Any

import torch
from diffusers import UNet2DConditionModel
from diffusers.models.attention import BasicTransformerBlock
from diffusers.models.resnet import ResnetBlock2D
from torch import Tensor, nn
from torch._inductor.runtime.cache_dir_utils import default_cache_dir
from torch.nn.attention import SDPBackend, sdpa_kernel

from acontrol.config import AseaConfig, RunConfig
from acontrol.config.training import Attention, Extent
from acontrol.errors import one_line
from acontrol.method.asea import Solver, solver_of
from acontrol.method.csm import CrossModalEncoder
from acontrol.method.model import AnomalyControl
from acontrol.method.sga import SemanticAttnProcessor, cross_attention_layers

Backend = str | Callable[..., Any]
# Of one piece of code, which blocks of all shapes share: Stable Diffusion 1.5 has 20 shapes,
# most of them with and without a gradient. torch gives up after 8, without a word.
GRAPHS = 64
CODE = "TORCHINDUCTOR_CACHE_DIR"
KERNELS = {
    "flash": SDPBackend.FLASH_ATTENTION,
    "efficient": SDPBackend.EFFICIENT_ATTENTION,
    "cudnn": SDPBackend.CUDNN_ATTENTION,
    "math": SDPBackend.MATH,
}
# With torch 2.13 its loss is right and its gradient 12 % off, by the norm; that of blocks is
# the plain one to 2e-7, and that of the whole by other backends, too.
WRONG = "gradients of the whole, compiled on a CPU, are wrong; give runtime.compile blocks"
LONG = 1_000  # Steps of a run that make up for compiling.


def compile_for_training(
    model: AnomalyControl, extent: Extent, batch_size: int, backend: Backend = "inductor"
) -> str | None:
    """Compile the model's U-Net, and take a step on zeros with it, which does the work.

    Args:
        model: The assembly.
        extent: What to compile.
        batch_size: Samples of every pass to come.
        backend: Of torch.compile.

    Returns:
        Why the U-Net stays uncompiled, in one line; None if it does not.
    """
    on_cpu = next(model.unet.parameters()).device.type == "cpu"
    if extent == "whole" and on_cpu and backend == "inductor":
        return WRONG
    undo = compile_unet(model.unet, extent, lambda _: torch.is_grad_enabled(), backend)
    return _warmed_up(lambda: model.warm_up(batch_size), undo)


def compile_asea(
    semantics: CrossModalEncoder, batch_size: int, backend: Backend = "inductor"
) -> str | None:
    """Compile ASEA's steps for batches of that size, and take them on zeros.

    Its arguments and what it returns are those of `compile_for_training`.
    """
    plain = solver_of(semantics.asea)
    fast: Solver = torch.compile(plain, backend=backend, dynamic=False, fullgraph=True)

    def solve(attention: Any, e_v: Tensor, region: Tensor, settings: AseaConfig) -> Any:
        chosen = fast if len(e_v) == batch_size else plain
        return chosen(attention, e_v, region, settings)

    semantics.solve = solve
    image = torch.zeros(batch_size, 3, semantics.image_px, semantics.image_px)
    mask = torch.ones(batch_size, 1, semantics.image_px, semantics.image_px)

    def undo() -> None:
        semantics.solve = None

    return _warmed_up(lambda: semantics(image, ["defect"] * batch_size, mask), undo)


def compile_for_drawing(
    unet: UNet2DConditionModel,
    warm_up: Callable[[int], None],
    extent: Extent,
    batch_size: int,
    backend: Backend = "inductor",
) -> str | None:
    """Compile a U-Net for guided batches of one size; others run uncompiled.

    Args:
        unet: The pipeline's.
        warm_up: Draws so many images, in one step.
        extent: What to compile.
        batch_size: Images of a batch.
        backend: Of torch.compile.

    Returns:
        Why the U-Net stays uncompiled, in one line; None if it does not.
    """

    def is_full(latents: Tensor) -> bool:
        return len(latents) == 2 * batch_size and not torch.is_grad_enabled()

    undo = compile_unet(unet, extent, is_full, backend)
    return _warmed_up(lambda: warm_up(batch_size), undo)


def _warmed_up(warm_up: Callable[[], object], undo: Callable[[], None]) -> str | None:
    try:
        # Tracing warns of its own look at .grad.
        with warnings.catch_warnings(action="ignore"):
            warm_up()
    except Exception as error:  # Of the compilers, which have no common one.
        undo()
        return one_line(error, 300)
    return None


def compile_unet(
    unet: UNet2DConditionModel,
    extent: Extent,
    fits: Callable[[Tensor], bool],
    backend: Backend = "inductor",
) -> Callable[[], None]:
    """Compile the passes that ``fits`` chooses; the others run uncompiled.

    ``blocks`` compiles the residual and the transformer blocks, which hold nearly all work:
    blocks of one shape share their code, so this takes a fraction of the time of ``whole``.

    Args:
        unet: With the processors of ``install_processors``; changed in place. The names of its
            weights stay.
        extent: What to compile.
        fits: Whether to run a pass compiled, by what the U-Net or a block is given first.
        backend: Of torch.compile.

    Returns:
        Undoes it.
    """
    torch._dynamo.config.recompile_limit = GRAPHS
    parts: list[nn.Module] = [unet]
    if extent == "blocks":
        parts = [
            part
            for part in unet.modules()
            if isinstance(part, ResnetBlock2D | BasicTransformerBlock)
        ]
    places = {
        unet.get_submodule(name.removesuffix(".attn2.processor")): layer
        for layer, (name, _) in enumerate(cross_attention_layers(unet))
    }
    moved: list[tuple[SemanticAttnProcessor, int | None]] = []
    for part in parts:
        plain = part.forward
        fast: Callable[..., Any] = torch.compile(plain, backend=backend, dynamic=False)
        if part in places:
            # A layer's number in the code would give each layer code of its own.
            processor: Any = part.attn2.processor  # type: ignore[union-attr]
            moved.append((processor, processor.layer))
            processor.layer = 0
            plain, fast = (_of_layer(run, places[part]) for run in (plain, fast))
        part.forward = _choosing(plain, fast, fits)

    def undo() -> None:
        for part in parts:
            del part.forward  # The class's own again.
        for processor, layer in moved:
            processor.layer = layer

    return undo


def _of_layer(run: Callable[..., Any], layer: int) -> Callable[..., Any]:
    """A transformer block's forward that is given its own (K', V') alone."""

    def forward(
        *args: Any, cross_attention_kwargs: dict[str, Any] | None = None, **kwargs: Any
    ) -> Any:
        given = cross_attention_kwargs
        if given is not None and given.get("semantic") is not None:
            given = {**given, "semantic": [given["semantic"][layer]]}
        return run(*args, cross_attention_kwargs=given, **kwargs)

    return forward


def _choosing(
    plain: Callable[..., Any], fast: Callable[..., Any], fits: Callable[[Tensor], bool]
) -> Callable[..., Any]:
    def forward(first: Tensor, *args: Any, **kwargs: Any) -> Any:
        return (fast if fits(first) else plain)(first, *args, **kwargs)

    return forward


def chosen_extent(config: RunConfig, on_gpu: bool) -> Extent | None:
    """What ``runtime.compile`` asks for; None is nothing."""
    chosen = config.runtime.compile
    if chosen == "auto":
        return "blocks" if on_gpu and config.optim.steps >= LONG else None
    return None if chosen == "off" else chosen


def attention_by(kernel: Attention) -> contextlib.AbstractContextManager[None]:
    """Let attention try a kernel first; what it cannot do is left to the others.

    As the head size of some layers, a precision, or a device without it. ``math`` can do all.
    """
    if kernel == "auto":
        return contextlib.nullcontext()
    first = KERNELS[kernel]
    others = (
        []
        if first is SDPBackend.MATH
        else [own for own in KERNELS.values() if own is not first]
    )
    context: contextlib.AbstractContextManager[None] = sdpa_kernel(
        [first, *others], set_priority=True
    )
    return context


def keep_compiled_code(folder: str) -> None:
    """Keep what torch.compile makes in a folder, for later starts.

    Not if the environment names another. The default is no choice: importing libraries sets it.
    """
    if os.environ.get(CODE, default_cache_dir()) == default_cache_dir():
        os.environ[CODE] = folder
