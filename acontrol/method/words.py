"""Texts that are longer than their network reads: one warning, which names the longest."""

import logging
from collections.abc import Sequence

log = logging.getLogger(__name__)
LAVIS_TOKENS = 32  # Longest text that BLIP-2 was trained with; more is read, but unfamiliar.
_warned: set[str] = set()


def warn_if_long(what: str, texts: Sequence[str], lengths: Sequence[int], limit: int) -> None:
    """Warn, once in a process for each ``what``, of texts over a limit of tokens.

    Args:
        what: What the texts are, and what happens past the limit, such as "captions are cut".
        texts: The texts.
        lengths: Tokens of each, the special ones included.
        limit: Most tokens.
    """
    longest = max(range(len(texts)), key=lengths.__getitem__)
    if lengths[longest] > limit and what not in _warned:
        _warned.add(what)
        log.warning(
            "%s %d tokens; shorten this one of %d, or those like it: %r",
            *(what, limit, lengths[longest], texts[longest]),
        )
