"""A safetensors file that holds the sha256 of its own tensors.

In its header and not beside it, so that one rename replaces both.
"""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors.torch import save
from torch import Tensor

from acontrol.errors import UserError

WEIGHTS, CARD = "diffusion_pytorch_model.safetensors", "card.json"  # Of an adapter's folder.
_LENGTH = 8  # Bytes at a file's start that say how long its header is.
_METADATA, _KEY = "__metadata__", "tensors_sha256"


def save_with_checksum(tensors: Mapping[str, Tensor]) -> bytes:
    """A file that diffusers reads, with the checksum; the same tensors give the same bytes."""
    header, data = _parts(save(dict(tensors), metadata={"format": "pt"}))
    header[_METADATA][_KEY] = hashlib.sha256(data).hexdigest()
    # Not by save, which writes several entries in random order.
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % _LENGTH)
    return b"".join((len(text).to_bytes(_LENGTH, "little"), text, data))


def refuse_damaged(folder: Path, name: str) -> None:
    """Refuse an adapter whose weights differ from a checksum of theirs.

    It is in the weights file and, of an adapter that was pulled, in the model card. Adapters
    from before have none. What is no adapter at all is for its reader to say.

    Args:
        folder: The adapter's.
        name: What to call it in the message.

    Raises:
        UserError: If they differ.
    """
    try:
        content = (folder / WEIGHTS).read_bytes()
        header, data = _parts(content)
        pairs = [(header.get(_METADATA, {}).get(_KEY), data)]
        if (folder / CARD).is_file():
            card = json.loads((folder / CARD).read_bytes())
            pairs.append((card.get("weights_sha256"), memoryview(content)))
    except (OSError, ValueError, AttributeError):
        return
    for recorded, part in pairs:
        if recorded not in (None, hashlib.sha256(part).hexdigest()):
            raise UserError(
                f"{name}: its weights are damaged ({WEIGHTS} has another checksum than was "
                "recorded); copy the adapter again"
            )


def _parts(content: bytes) -> tuple[dict[str, Any], memoryview]:
    start = _LENGTH + int.from_bytes(content[:_LENGTH], "little")
    return json.loads(content[_LENGTH:start]), memoryview(content)[start:]
