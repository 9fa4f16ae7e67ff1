"""What training starts from instead of the text's projections: ``--init``."""

import json
from pathlib import Path

from safetensors import SafetensorError

from acontrol.errors import UserError
from acontrol.interop import ip_adapter
from acontrol.method.sga import SemanticAdapter


def check_beginning(init: str) -> None:
    """Look whether there is something to start from, before any worker does.

    Raises:
        UserError: If it is neither an adapter's folder nor a readable IP-Adapter file.
    """
    path = Path(init)
    if path.suffix in ip_adapter.FILES and path.is_file():
        ip_adapter.read(path)
    elif not (path / "config.json").is_file():
        raise UserError(
            f"init {init}: no adapter there (its folder holds config.json), nor an IP-Adapter "
            f"file ({', '.join(ip_adapter.FILES)})"
        )


def begin_from(adapter: SemanticAdapter, init: str) -> None:
    """Give a new adapter the weights that it starts from.

    Raises:
        UserError: If they are of another architecture or mode, or damaged.
    """
    if Path(init).is_file():
        ip_adapter.start_from(adapter, init)
        return
    try:
        before = SemanticAdapter.from_pretrained(init, use_safetensors=True)
    except (OSError, ValueError, TypeError, RuntimeError, SafetensorError) as error:
        reason = " ".join(str(error).split())[:300]
        raise UserError(f"init {init}: no adapter of this version: {reason}") from error
    for name in ("layers", "semantic_dim", "mode"):
        was, now = (json.dumps(one.config[name]) for one in (before, adapter))
        if was != now:
            raise UserError(
                f"init {init}: its {name} is {was[:100]}, and this run's is {now[:100]}"
            )
    kinds = [(one.config.card or {}).get("inpainting", False) for one in (before, adapter)]
    if kinds[0] != kinds[1]:
        raise UserError(
            f"init {init}: it was trained on {'an' if kinds[0] else 'no'} inpainting base, and "
            f"this run's base is {'one' if kinds[1] else 'none'}"
        )
    adapter.load_state_dict(before.state_dict())
