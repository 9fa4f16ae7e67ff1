"""``launch.train --dry-run``: describes a run without weights, cluster or output."""

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from diffusers import UNet2DConditionModel
from torch import Tensor
from torch.overrides import TorchFunctionMode

from acontrol.config import BaseConfig, RunConfig
from acontrol.data.reader import ShardReader
from acontrol.data.stream import check_view
from acontrol.messages import counted
from acontrol.method.sga import (
    PooledTokens,
    SemanticAdapter,
    cross_attention_layers,
    install_processors,
)
from acontrol.networks import locate
from acontrol.networks.shapes import Shapes, parameters, shapes_of
from acontrol.train.plan import unmet


def adapter_bytes(count: int, stage: int, workers: int, low: int) -> int:
    """Bytes per worker of weights, gradients, master weights and AdamW's moments.

    Args:
        count: Trainable parameters.
        stage: ZeRO stage; splits moments and masters from 1, gradients from 2, weights from 3.
        workers: Number of workers to split among.
        low: Bytes of a weight in the passes; under 4 there is also a float32 master.
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
    """Bytes that one sample's pass through the U-Net saves for backward.

    Measured on the meta device: the tensors that autograd saves, each storage once, without
    weights; attention saves what a fused kernel would. Nothing is saved before the first
    cross-attention, since only K' and V' have gradients. This is the largest part of a step's
    memory; workspaces, the allocator's rounding and the frozen encoders come on top.

    Args:
        unet: On the meta device.
        latent_side: Height and width of the latents.
        text_tokens: Length of the target text.
        semantic_tokens: Length of C' after the adapter.
        dtype: Precision of the pass.
    """
    with torch.device("meta"):
        # A copy, so that the caller's keeps its precision and processors.
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
    frozen, trained = copied.parameters(), adapter.parameters()
    weights = {_storage(weight) for weight in (*frozen, *trained)}
    kept: dict[int, Tensor] = {}

    def keep(tensor: Tensor) -> Tensor:
        if _storage(tensor) not in weights:
            kept[_storage(tensor)] = (
                tensor  # A reference, so that its storage's id is not reused.
            )
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor), _FusedSaves():
        copied(
            *inputs,
            cross_attention_kwargs={
                "semantic": adapter.split(adapter(tokens)),
                "semantic_scale": 1.0,
            },
        )
    return sum(tensor.untyped_storage().nbytes() for tensor in kept.values())


def _in(dtype: torch.dtype, module: Any) -> Any:
    """Convert, without diffusers' warning about layers that stay in float32."""
    return torch.nn.Module.to(module, dtype)


def _storage(tensor: Tensor) -> int:
    return tensor.untyped_storage()._cdata


class _FusedAttention(torch.autograd.Function):
    """Saves what fused attention does: q, k, v, the result, one float32 per row and head."""

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        result = query.new_empty(*query.shape[:-1], value.shape[-1])
        rows = query.new_empty(query.shape[:-1], dtype=torch.float32)
        ctx.save_for_backward(query, key, value, result, rows)
        return result

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        raise AssertionError("the meta device has no backward")


class _FusedSaves(TorchFunctionMode):
    """Replaces attention, which on the meta device would save whole weight matrices."""

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


BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}


def describe(config: RunConfig) -> Iterator[str]:
    """The lines of ``--dry-run``; reads no weights and changes nothing.

    Raises:
        UserError: If named shards or folders do not exist.
    """
    shards = config.data.shards
    reader = None if shards is None else ShardReader(shards, config.data.cache_dir)
    base, vlm = _places(config.base)
    yield config.model_dump_json(indent=2)
    yield ""
    yield from _batches(config)
    if reader is not None:
        yield from _data(config, reader)
    shapes = shapes_of(base, vlm)
    if shapes is None:
        yield f"parameters and memory: unknown, {base} or {vlm} is not on this machine"
    else:
        yield from _memory(config, shapes)
    if not torch.cuda.is_available():
        yield "device: no GPU on this machine; on CPUs, unless the cluster it joins has some"
    missing = unmet(config)
    for line in missing:
        yield f"missing: {line}"
    if not missing:
        yield "nothing is missing"
    yield "dry run: nothing was changed"


def _batches(config: RunConfig) -> Iterator[str]:
    yield (
        f"batch: {counted(config.optim.batch_size, 'sample')} per step = "
        f"{counted(config.cluster.num_workers, 'worker')} x "
        f"{counted(config.optim.accumulation, 'pass', 'passes')} x "
        f"{counted(config.micro_batch_size, 'sample')}"
    )
    steps = config.optim.steps
    yield f"steps: {steps} = {counted(steps * config.optim.batch_size, 'sample')}"


def _data(config: RunConfig, reader: ShardReader) -> Iterator[str]:
    check_view(config.data, reader.index, reader.root)
    count, batch = len(reader), config.optim.batch_size
    steps = config.optim.steps
    yield (
        f"data: {counted(count, 'sample')} in {counted(len(reader.index.shards), 'shard')} "
        f"(split {reader.index.split}); {batch // config.cluster.num_workers} per rank and step"
    )
    yield (
        f"      {count / batch:.1f} steps per epoch, {counted(steps, 'step')} = "
        f"{steps * batch / count:.1f} epochs"
    )


def _places(config: BaseConfig) -> tuple[str, str]:
    """Base and vision-language model; hub ids need no commit here."""
    pinned = config.model_copy(
        update={
            "revision": config.revision or "unpinned",
            "vlm_revision": config.vlm_revision or "unpinned",
        }
    )
    path, vlm_path, folder = locate.resolve(pinned)
    return path, str(Path(vlm_path, folder)) if folder else vlm_path


def _memory(config: RunConfig, shapes: Shapes) -> Iterator[str]:
    layers = cross_attention_layers(shapes.unet)
    width = shapes.vlm.config.qformer_config.hidden_size
    trainable = 2 * width * sum(inner for _, inner in layers)
    frozen = {
        name: parameters(getattr(shapes, name))
        for name in ("unet", "vae", "text_encoder", "vlm")
    }
    yield f"trainable: {trainable:,} parameters in {len(layers)} cross-attention layers" + (
        ", besides the pooling's" if config.csm.mode == "pooled" else ""
    )
    parts = ", ".join(f"{name} {count:,}" for name, count in frozen.items())
    yield f"frozen: {sum(frozen.values()):,} parameters ({parts})"
    low = BYTES[config.runtime.precision]
    qformer = parameters(shapes.vlm.qformer)
    fixed = low * (sum(frozen.values()) - qformer) + 4 * qformer
    yield (
        f"memory per worker: {_readable(fixed)} of frozen weights in "
        f"{config.runtime.precision} (Q-Former in float32), and for the adapter by ZeRO stage:"
    )
    for stage in range(4):
        if stage == 0 and low == 2:
            yield "  stage 0: not with low precision"
            continue
        size = adapter_bytes(trainable, stage, config.cluster.num_workers, low)
        mark = "  <- this run" if stage == config.zero.stage else ""
        yield f"  stage {stage}: {_readable(size)}{mark}"
    yield from _activations(config, shapes, fixed, trainable)


def _activations(
    config: RunConfig, shapes: Shapes, fixed: int, trainable: int
) -> Iterator[str]:
    """Memory of activations, and the total by samples per pass."""
    low, micro = BYTES[config.runtime.precision], config.micro_batch_size
    factor = 2 ** (len(shapes.vae.config.block_out_channels) - 1)
    pooled = config.csm.mode == "pooled"
    per_sample = activation_bytes(
        shapes.unet,
        config.data.resolution // factor,
        shapes.text_encoder.config.max_position_embeddings,
        PooledTokens.NUM_TOKENS if pooled else shapes.vlm.config.num_query_tokens,
        getattr(torch, config.runtime.precision),
    )
    adapter = adapter_bytes(trainable, config.zero.stage, config.cluster.num_workers, low)
    activations = f"{_readable(per_sample)} per sample"
    yield f"  activations: {activations}, as the U-Net's shapes say; in all"
    for samples in sorted({1, 8, micro, 64}):
        mark = "  <- this run" if samples == micro else ""
        total = fixed + adapter + samples * per_sample
        yield f"    {counted(samples, 'sample')} per pass: {_readable(total)}{mark}"
    yield "  (estimates: workspaces and the encoders' own passes come on top)"


def _readable(size: int) -> str:
    unit, name = (2**30, "GiB") if size >= 2**30 else (2**20, "MiB")
    return f"{size / unit:.2f} {name}"
