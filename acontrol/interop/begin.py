"""Initial weights of a training run: ``--init``."""

import json
from pathlib import Path

from safetensors import SafetensorError

from acontrol.errors import UserError, one_line
from acontrol.interop import ip_adapter
from acontrol.method.sga import SemanticAdapter
from acontrol.networks.checksum import refuse_damaged
from acontrol.runs.record import runs_in


def check_init(init: str) -> None:
    """Check initial weights before any worker starts.

    Raises:
        UserError: If ``init`` is neither an adapter's folder nor a readable IP-Adapter file, or
            its weights are damaged.
    """
    path = Path(init)
    if path.suffix in ip_adapter.SUFFIXES and path.is_file():
        ip_adapter.read(path)
    elif not (path / "config.json").is_file():
        own = path / "adapter"
        of_run = f"; it is a run: give {own}" if (own / "config.json").is_file() else ""
        raise UserError(
            f"init {init}: neither an adapter folder (with config.json) nor an IP-Adapter file "
            f"({', '.join(ip_adapter.SUFFIXES)}){of_run or runs_in(path)}"
        )
    else:
        refuse_damaged(path, f"init {init}")


def load_init(adapter: SemanticAdapter, init: str) -> None:
    """Load initial weights into a new adapter.

    Raises:
        UserError: If they are damaged, or of another architecture or mode.
    """
    if Path(init).is_file():
        ip_adapter.load_into(adapter, init)
        return
    try:
        source = SemanticAdapter.from_pretrained(init, use_safetensors=True)
    except (OSError, ValueError, TypeError, RuntimeError, SafetensorError) as error:
        raise UserError(
            f"init {init}: not an adapter of this version: {one_line(error)}"
        ) from error
    for name in ("layers", "semantic_dim", "mode"):
        before, now = json.dumps(source.config[name]), json.dumps(adapter.config[name])
        if before != now:
            raise UserError(
                f"init {init}: its {name} is {before[:100]}, and this run's is {now[:100]}"
            )
    before, now = (
        "an inpainting" if (model.config.card or {}).get("inpainting", False) else "a plain"
        for model in (source, adapter)
    )
    if before != now:
        raise UserError(
            f"init {init}: it was trained on {before} base, and this run has {now} base"
        )
    adapter.load_state_dict(source.state_dict())
