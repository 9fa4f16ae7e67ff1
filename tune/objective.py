"""What trials are ranked by, and which settings each of these can judge."""

from dataclasses import dataclass
from typing import Literal

from acontrol.errors import UserError
from tune.space import Space

Name = Literal["validation_loss", "validation_energy", "guided_agreement"]


@dataclass(frozen=True)
class Objective:
    """A metric of the held-out samples.

    Attributes:
        mode: Which way is better, "min" or "max".
        blind: Settings that it cannot judge, by the start of their keys: they change what it
            measures, or it is always better on one side of them.
        only: If given, settings on which it depends at all.
        reason: Why.
    """

    mode: Literal["min", "max"]
    blind: tuple[str, ...] = ()
    only: tuple[str, ...] = ()
    reason: str = ""

    def judges(self, key: str) -> bool:
        """Whether trials that differ in this setting can be ranked."""
        return not key.startswith(self.blind or "?") and (
            not self.only or key.startswith(self.only)
        )


OBJECTIVES: dict[Name, Objective] = {
    "validation_loss": Objective(
        "min",
        blind=("dropout.", "data.", "optim.loss_weighting", "optim.mask_weight"),
        reason="a loss of conditioned samples prefers less condition dropout whatever "
        "becomes of guidance, and compares only where it is the same loss on the same pairs",
    ),
    "validation_energy": Objective(
        "min",
        only=("asea.steps", "asea.step_size", "asea.rule", "asea.bound", "asea.stop_energy"),
        reason="the energy depends only on how ASEA steps, with one map and one solver",
    ),
    "guided_agreement": Objective("max"),
}


def choose(asked: Name | None, named: Space, defaults: Space) -> tuple[Name, Space, list[str]]:
    """Settle objective and space together.

    Args:
        asked: The user's objective, if any.
        named: What the user searches.
        defaults: What is searched besides.

    Returns:
        The objective, the space, and what to tell the user about them.

    Raises:
        UserError: If the objective asked for cannot judge a setting that the user named.
    """
    space = {**defaults, **named}
    searched = {key for key, domain in space.items() if len(domain.marks) > 1}
    if asked is None:
        loss = OBJECTIVES["validation_loss"]
        blind = sorted(key for key in searched if not loss.judges(key))
        if not blind:
            return "validation_loss", space, []
        why = (
            f"Ranking by guided_agreement, not by validation_loss: {', '.join(blind)} searched"
        )
        return "guided_agreement", space, [f"{why}; {loss.reason}"]
    objective = OBJECTIVES[asked]
    blind = sorted(key for key in searched if not objective.judges(key))
    if mine := [key for key in blind if key in named]:
        raise UserError(
            f"--objective {asked} cannot judge {', '.join(mine)}: {objective.reason}; use "
            "--objective guided_agreement, or leave them out of --space"
        )
    if not blind:
        return asked, space, []
    left = {key: domain for key, domain in space.items() if key not in blind}
    return asked, left, [f"Not searched: {', '.join(blind)}; {objective.reason}"]
