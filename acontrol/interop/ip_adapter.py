"""Files in IP-Adapter's format: initial weights of training, and export to stock diffusers.

    image_proj.proj.weight, .bias, image_proj.norm.weight, .bias      image embedding -> tokens
    ip_adapter.1.to_k_ip.weight, ip_adapter.1.to_v_ip.weight, ip_adapter.3....

One pair per cross-attention layer, in the order of ``unet.attn_processors``, where every
second is a cross-attention: hence the odd numbers. ``.bin`` files hold the same as two dicts.
"""

from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from acontrol.errors import UserError, one_line
from acontrol.method.sga import PooledTokens, SemanticAdapter

Weights = dict[str, Tensor]
SUFFIXES = (".safetensors", ".bin")
NO_FILE_FOR_QUERIES = (
    "an adapter of csm.mode queries cannot be a file in IP-Adapter's format, which always has "
    "a projection before the attention; use acontrol.install(pipe, adapter), or train with "
    "csm.mode pooled"
)


def read(path: str | Path) -> tuple[Weights, Weights]:
    """Read a file's parts ``image_proj`` and ``ip_adapter``, without executing anything in it.

    Raises:
        UserError: If it is damaged or of another format.
    """
    path = Path(path)
    parts: dict[str, Weights] = {"image_proj": {}, "ip_adapter": {}}
    try:
        if path.suffix == ".safetensors":
            with safe_open(path, framework="pt") as weights:
                for name in weights.keys():  # noqa: SIM118 (no mapping)
                    part, _, rest = name.partition(".")
                    parts.setdefault(part, {})[rest] = weights.get_tensor(name)
        else:
            content = torch.load(path, map_location="cpu", weights_only=True)
            parts |= content if isinstance(content, dict) else {"": {}}
    except (OSError, SafetensorError, RuntimeError, ValueError, EOFError) as error:
        raise UserError(f"{path}: is not readable: {one_line(error, 200)}") from error
    except Exception as error:  # The unpickler's own types, for whatever it refuses.
        raise UserError(f"{path}: is refused: {one_line(error, 200)}") from error
    if extra := sorted(set(parts) - {"image_proj", "ip_adapter"}):
        raise UserError(
            f"{path}: holds {extra[0]!r} besides image_proj and ip_adapter: not in "
            "IP-Adapter's format (a trainer's own checkpoint has to be converted first)"
        )
    if not parts["ip_adapter"]:
        raise UserError(f"{path}: its part ip_adapter is empty: not in IP-Adapter's format")
    return parts["image_proj"], parts["ip_adapter"]


def named_matrices(adapter: SemanticAdapter) -> Weights:
    """W'_k and W'_v of each layer by their names in such a file; views, not copies."""
    return {
        f"{2 * index + 1}.{name}.weight": matrix
        for index, pair in enumerate(adapter.matrices())
        for name, matrix in zip(("to_k_ip", "to_v_ip"), pair, strict=True)
    }


def load_into(adapter: SemanticAdapter, path: str | Path) -> None:
    """Load a file's weights into an adapter.

    Mode ``queries`` takes W'_k and W'_v and ignores the file's projection, which is for CLIP's
    image embeddings. Mode ``pooled`` takes the projection too: as its second linear layer
    from IP-Adapter's files, as a whole from those of ``export``.

    Raises:
        UserError: If a name or a shape differs from this adapter's.
    """
    projection, pairs = read(path)
    matrices = named_matrices(adapter)
    expected = {name: tuple(matrix.shape) for name, matrix in matrices.items()}
    _check(path, {name: tuple(value.shape) for name, value in pairs.items()}, expected)
    with torch.no_grad():
        for name, matrix in matrices.items():
            matrix.copy_(pairs[name])
        if adapter.pool is not None:
            _load_projection(adapter.pool, projection, path)


def _check(
    path: str | Path, shapes: dict[str, tuple[int, ...]], expected: dict[str, tuple[int, ...]]
) -> None:
    for name, shape in expected.items():
        if shapes.get(name) != shape:
            raise UserError(
                f"{path}: {name} is {shapes.get(name, 'missing')}, and this U-Net needs "
                f"{shape}: the file is not for its architecture"
            )
    if extra := sorted(shapes.keys() - expected.keys()):
        raise UserError(f"{path}: holds {extra[0]}, which this U-Net does not have")


def _load_projection(pool: PooledTokens, projection: Weights, path: str | Path) -> None:
    dim, hidden = pool.hidden.in_features, pool.HIDDEN_DIM
    rows = pool.NUM_TOKENS * dim
    shape = tuple(projection["proj.weight"].shape) if "proj.weight" in projection else None
    if shape not in ((rows, hidden), (rows, dim)) or dim > hidden:
        raise UserError(
            f"{path}: image_proj.proj.weight is {shape or 'missing'}, and csm.mode pooled "
            f"needs {(rows, hidden)} or {(rows, dim)}"
        )
    pool.tokens.bias.copy_(projection["proj.bias"])
    pool.norm.weight.copy_(projection["norm.weight"])
    pool.norm.bias.copy_(projection["norm.bias"])
    if shape == (rows, hidden):
        pool.tokens.weight.copy_(projection["proj.weight"])
        return
    # One layer as two: the first is the identity on C'.
    pool.hidden.weight.copy_(torch.eye(hidden, dim))
    pool.hidden.bias.zero_()
    pool.tokens.weight.zero_()
    pool.tokens.weight[:, :dim].copy_(projection["proj.weight"])


def folded(pool: PooledTokens) -> Weights:
    """A file's part ``image_proj``: the pooling's two linear layers as one, and its norm."""
    first, second = pool.hidden, pool.tokens
    with torch.no_grad():
        weight = second.weight.double() @ first.weight.double()
        bias = second.weight.double() @ first.bias.double() + second.bias.double()
    return {
        "proj.weight": weight.float(),
        "proj.bias": bias.float(),
        "norm.weight": pool.norm.weight.detach().float(),
        "norm.bias": pool.norm.bias.detach().float(),
    }


def export(adapter: SemanticAdapter, path: str | Path) -> None:
    """Write an adapter of mode ``pooled`` as a file for stock ``load_ip_adapter``.

    Raises:
        UserError: In mode ``queries``, which the format cannot express, or for a name that
            does not end in .safetensors.
    """
    if adapter.pool is None:
        raise UserError(NO_FILE_FOR_QUERIES)
    if Path(path).suffix != ".safetensors":
        raise UserError(f"{path}: name a file that ends in .safetensors")
    weights = {f"image_proj.{name}": value for name, value in folded(adapter.pool).items()}
    for name, matrix in named_matrices(adapter).items():
        weights[f"ip_adapter.{name}"] = matrix.detach().float()
    copies = {name: value.cpu().contiguous().clone() for name, value in weights.items()}
    save_file(copies, path, metadata={"format": "pt"})
