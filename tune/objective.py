"""Objectives that rank trials, and the settings that each can rank."""

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
        blind: Prefixes of settings that it cannot rank: they change what it measures, or one
            side of them is always better.
        only: Prefixes of the only settings that it depends on, if not all.
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
        reason="a loss of conditioned samples always prefers less condition dropout, and "
        "compares only between trials with the same loss on the same pairs",
    ),
    "validation_energy": Objective(
        "min",
        only=("asea.steps", "asea.step_size", "asea.rule", "asea.bound", "asea.stop_energy"),
        reason="the energy depends only on ASEA's steps, for one map and one solver",
    ),
    "guided_agreement": Objective("max"),
}


def choose(
    requested: Name | None, searched: Space, defaults: Space
) -> tuple[Name, Space, list[str]]:
    """Settle objective and space together.

    Args:
        requested: The user's objective, if any.
        searched: The user's search space.
        defaults: What is searched besides.

    Returns:
        The objective, the space, and lines to print about them.

    Raises:
        UserError: If the requested objective cannot rank a setting of the user's space.
    """
    space = {**defaults, **searched}
    varied = {key for key, domain in space.items() if len(domain.marks) > 1}
    if requested is None:
        loss = OBJECTIVES["validation_loss"]
        blind = sorted(key for key in varied if not loss.judges(key))
        if not blind:
            return "validation_loss", space, []
        note = (
            f"Ranking by guided_agreement, not by validation_loss: {', '.join(blind)} searched"
        )
        return "guided_agreement", space, [f"{note}; {loss.reason}"]
    objective = OBJECTIVES[requested]
    blind = sorted(key for key in varied if not objective.judges(key))
    if refused := [key for key in blind if key in searched]:
        raise UserError(
            f"--objective {requested} cannot judge {', '.join(refused)}: {objective.reason}; "
            "use --objective guided_agreement, or leave them out of --space"
        )
    if not blind:
        return requested, space, []
    space = {key: domain for key, domain in space.items() if key not in blind}
    return requested, space, [f"Not searched: {', '.join(blind)}; {objective.reason}"]
