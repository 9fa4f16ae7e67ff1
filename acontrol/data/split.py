"""Which images train and which test."""

from collections.abc import Sequence


def training_third(ids: Sequence[str]) -> list[str]:
    """The training ids of one defect: the first floor(n / 3) when sorted."""
    return sorted(ids)[: len(ids) // 3]
