"""Files in IP-Adapter's format: where training may start from, and what stock diffusers takes.

    image_proj.proj.weight, .bias, image_proj.norm.weight, .bias      image embedding -> tokens
    ip_adapter.1.to_k_ip.weight, ip_adapter.1.to_v_ip.weight, ip_adapter.3....

One pair a cross-attention layer, in the order of ``unet.attn_processors``, where every second
one is a cross-attention: hence the odd numbers. ``.bin`` files hold the same in two dicts.
"""

from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from acontrol.errors import UserError
from acontrol.method.sga import PooledTokens, SemanticAdapter

Weights = dict[str, Tensor]
FILES = (".safetensors", ".bin")
NO_FILE_FOR_QUERIES = (
    "an adapter of csm.mode queries has no file in IP-Adapter's format: it attends to C' "
    "itself, and the format always puts a projection between; acontrol.install(pipe, adapter) "
    "puts it into a pipeline, and csm.mode pooled trains one that has a file"
)


def read(path: str | Path) -> tuple[Weights, Weights]:
    """Read a file's two parts, ``image_proj`` and ``ip_adapter``, without running code of it.

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
            said = torch.load(path, map_location="cpu", weights_only=True)
            parts |= said if isinstance(said, dict) else {"": {}}
    except (OSError, SafetensorError, RuntimeError, ValueError, EOFError) as error:
        raise UserError(f"{path}: is not readable: {' '.join(str(error).split())[:200]}") from (
            error
        )
    except Exception as error:  # The unpickler's own kinds, for whatever it refuses.
        raise UserError(f"{path}: is refused: {' '.join(str(error).split())[:200]}") from error
    if extra := sorted(set(parts) - {"image_proj", "ip_adapter"}):
        raise UserError(
            f"{path}: holds {extra[0]!r} beside image_proj and ip_adapter: not in IP-Adapter's "
            "format (a trainer's own checkpoint has to be converted first)"
        )
    if not parts["ip_adapter"]:
        raise UserError(f"{path}: its part ip_adapter is empty: not in IP-Adapter's format")
    return parts["image_proj"], parts["ip_adapter"]


def names(adapter: SemanticAdapter) -> list[tuple[str, str]]:
    """Names of W'_k and W'_v of each layer in such a file."""
    places = range(1, 2 * len(adapter.widths), 2)
    return [(f"{place}.to_k_ip.weight", f"{place}.to_v_ip.weight") for place in places]


def start_from(adapter: SemanticAdapter, path: str | Path) -> None:
    """Give an adapter the weights of a file.

    Mode ``queries`` takes W'_k and W'_v and leaves the file's projection, which is for CLIP's
    image embeddings. Mode ``pooled`` takes the projection too: as its second linear layer
    where the file is IP-Adapter's, whole where it is ``export``'s.

    Raises:
        UserError: If a name or a shape is not what this adapter has.
    """
    projection, pairs = read(path)
    wanted = {
        name: tuple(matrix.shape)
        for names_of, pair in zip(names(adapter), adapter.matrices(), strict=True)
        for name, matrix in zip(names_of, pair, strict=True)
    }
    _check(path, {name: tuple(value.shape) for name, value in pairs.items()}, wanted)
    with torch.no_grad():
        for names_of, pair in zip(names(adapter), adapter.matrices(), strict=True):
            for name, matrix in zip(names_of, pair, strict=True):
                matrix.copy_(pairs[name])
        if adapter.pool is not None:
            _project_from(adapter.pool, projection, path)


def _check(
    path: str | Path, found: dict[str, tuple[int, ...]], wanted: dict[str, tuple[int, ...]]
) -> None:
    for name, shape in wanted.items():
        if found.get(name) != shape:
            has = f"is {found[name]}" if name in found else "is not there"
            raise UserError(
                f"{path}: {name} {has}, and this U-Net needs {shape}: the file is not for "
                "its architecture"
            )
    if extra := sorted(found.keys() - wanted.keys()):
        raise UserError(f"{path}: holds {extra[0]}, which this U-Net has no place for")


def _project_from(pool: PooledTokens, projection: Weights, path: str | Path) -> None:
    dim, hidden = pool.hidden.in_features, pool.HIDDEN_DIM
    rows = pool.NUM_TOKENS * dim
    shape = tuple(projection["proj.weight"].shape) if "proj.weight" in projection else None
    if shape not in ((rows, hidden), (rows, dim)) or dim > hidden:
        raise UserError(
            f"{path}: image_proj.proj.weight is {shape or 'not there'}, and csm.mode pooled "
            f"needs {(rows, hidden)} or {(rows, dim)}"
        )
    pool.tokens.bias.copy_(projection["proj.bias"])
    pool.norm.weight.copy_(projection["norm.weight"])
    pool.norm.bias.copy_(projection["norm.bias"])
    if shape == (rows, hidden):
        pool.tokens.weight.copy_(projection["proj.weight"])
        return
    # One layer as two: the first hands C' on.
    pool.hidden.weight.copy_(torch.eye(hidden, dim))
    pool.hidden.bias.zero_()
    pool.tokens.weight.zero_()
    pool.tokens.weight[:, :dim].copy_(projection["proj.weight"])


def folded(pool: PooledTokens) -> Weights:
    """The pooling's two linear layers as one, with its norm: a file's part ``image_proj``."""
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
        UserError: In mode ``queries``, which the format cannot say, or for a name that does
            not end in .safetensors.
    """
    if adapter.pool is None:
        raise UserError(NO_FILE_FOR_QUERIES)
    if Path(path).suffix != ".safetensors":
        raise UserError(f"{path}: name a file that ends in .safetensors")
    weights = {f"image_proj.{name}": value for name, value in folded(adapter.pool).items()}
    for names_of, pair in zip(names(adapter), adapter.matrices(), strict=True):
        for name, matrix in zip(names_of, pair, strict=True):
            weights[f"ip_adapter.{name}"] = matrix.detach().float()
    whole = {name: value.cpu().contiguous().clone() for name, value in weights.items()}
    save_file(whole, path, metadata={"format": "pt"})
