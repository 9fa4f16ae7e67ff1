"""Seeds derived from their purpose."""

import hashlib
import json


def derive_seed(*parts: str | int) -> int:
    """A seed in [0, 2**63), a pure function of the parts.

    Draws are keyed by their purpose ("noise", position) instead of by how many came before, so
    neither the number of workers nor a restart changes them.
    """
    text = json.dumps(parts)  # Unambiguous: 1 and "1" differ, and so do ("ab",) and ("a", "b").
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest()) >> 1
