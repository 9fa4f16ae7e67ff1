"""Seeds that depend on what they are for."""

import hashlib
import json


def derive_seed(*parts: str | int) -> int:
    """A seed in [0, 2**63) that depends on every part and on nothing else.

    Draws are keyed by what they are for ("noise", position) instead of by how many came
    before, so neither the number of workers nor a restart changes them.
    """
    text = json.dumps(parts)  # Unambiguous: 1 and "1" differ, and so do ("ab",) and ("a", "b").
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest()) >> 1
