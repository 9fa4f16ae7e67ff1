"""The model card: what a user of a registered adapter must know."""

from collections.abc import Callable

import pytest

from acontrol.config import AdapterCard, BaseConfig, TrainedOn
from acontrol.registry.card import ModelCard
from acontrol.registry.readme import readme

NOTE = "pictures check the chain; see docs/recipes.md"


@pytest.mark.parametrize(
    ("base", "product", "is_noted"),
    [("tiny", "nut", True), ("tiny", "wood", False), ("my/base", "nut", False)],
)
def test_the_card_says_what_the_built_in_base_has_not_seen(
    card: Callable[..., AdapterCard], base: str, product: str, is_noted: bool
) -> None:
    adapter = card(
        base=BaseConfig(path=base),
        trained_on=(TrainedOn(categories=(product,), split="train"),),
    )
    page = readme(
        ModelCard(
            name="a", adapter=adapter, weights_sha256="0" * 64, run="r", metrics={}, licences=[]
        ),
        None,
    )
    assert (NOTE in page) == is_noted
