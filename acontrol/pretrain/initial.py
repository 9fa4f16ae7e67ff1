"""Start from another base: its sizes, its weights that fit, and what the words mean to it."""

import json
import math
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from acontrol.config import BaseConfig
from acontrol.errors import UserError, one_line
from acontrol.networks.load import load_base
from acontrol.networks.locate import has_small_vlm, resolve
from acontrol.pretrain.networks import Networks

_LISTED = 3  # Most layers in a message.


def sizes_of(init: str) -> dict[str, Any]:
    """The sizes of a base of launch.pretrain, by the names of `Sizes`.

    Raises:
        UserError: If it is missing, damaged or another base.
    """
    config = BaseConfig(path=init)
    if not Path(resolve(config)[0]).is_dir() or not has_small_vlm(config):
        raise UserError(
            f"--init {init}: is no base of acontrol pretrain (it has no card.json of one); "
            "name one, or tiny"
        )
    folder = Path(resolve(config)[0])
    try:
        vae, unet, text, vlm = (
            json.loads((folder / part / "config.json").read_bytes())
            for part in ("vae", "unet", "text_encoder", "vlm")
        )
        vision, qformer = vlm["vision_config"], vlm["qformer_config"]
        return {
            "resolution": vae["sample_size"],
            "vae_channels": vae["block_out_channels"],
            "unet_channels": unet["block_out_channels"],
            "width": text["hidden_size"],
            "vision_width": vision["hidden_size"],
            "vision_layers": vision["num_hidden_layers"],
            "patch": vision["patch_size"],
            "qformer_layers": qformer["num_hidden_layers"],
            "queries": vlm["num_query_tokens"],
        }
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise UserError(f"--init {init}: is damaged ({one_line(error)}); restore it") from error


def start_from(networks: Networks, init: str) -> str:
    """Copy the weights of a base into networks in place, where they fit.

    Embeddings of text tokens go by the token, those of new words stay fresh; the vision
    tower's positions are interpolated to another number of patches.

    Args:
        networks: Fresh ones, on the CPU.
        init: The base.

    Returns:
        What was taken, and what not, in a line.

    Raises:
        UserError: As ``load_base``.
    """
    base = load_base(BaseConfig(path=init))
    fresh, count, known = [], 0, 0
    for part in ("vae", "text_encoder", "unet", "vlm"):
        own, before = getattr(networks, part), getattr(base, part).state_dict()
        for name, value in own.state_dict().items():
            count += 1
            source = before.get(name)
            if source is not None and name.endswith("token_embedding.weight"):
                known = _copy_tokens(value, source, networks.tokenizer, base.tokenizer)
            elif source is not None and name.endswith("word_embeddings.weight"):
                _copy_tokens(value, source, networks.vlm_tokenizer, base.vlm_tokenizer)
            elif source is not None and source.shape == value.shape:
                value.copy_(source)
            elif source is not None and _is_grid(name) and source.shape[2] == value.shape[2]:
                value.copy_(_positions(source, value.shape[1] - 1))
            else:
                fresh.append(f"{part}.{name}")
    words = f"{known} of {len(networks.tokenizer)} text tokens"
    line = f"Init {init}: {count - len(fresh)} of {count} weights taken, {words}"
    if not fresh:
        return line
    more = f" and {len(fresh) - _LISTED} more" if len(fresh) > _LISTED else ""
    return f"{line}; fresh, for want of a fit: {', '.join(fresh[:_LISTED])}{more}"


def _copy_tokens(value: Tensor, source: Tensor, own: Any, before: Any) -> int:
    """Copy the rows of tokens that both tokenizers have; returns how many."""
    if source.shape[1] != value.shape[1]:
        return 0
    ids, old_ids = own.get_vocab(), before.get_vocab()
    common = sorted(ids.keys() & old_ids.keys())
    value[[ids[token] for token in common]] = source[[old_ids[token] for token in common]]
    return len(common)


def _is_grid(name: str) -> bool:
    """Whether these are the positions of the vision tower's patches."""
    return name == "vision_model.embeddings.position_embedding"


def _positions(source: Tensor, patches: int) -> Tensor:
    """Positions (1, 1 + old patches, width) of a square grid, interpolated to another's."""
    side, old = math.isqrt(patches), math.isqrt(source.shape[1] - 1)
    grid = source[:, 1:].unflatten(1, (old, old)).permute(0, 3, 1, 2)
    grid = F.interpolate(grid, size=(side, side), mode="bicubic", align_corners=False)
    return torch.cat([source[:, :1], grid.permute(0, 2, 3, 1).flatten(1, 2)], dim=1)
