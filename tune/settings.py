"""A sweep's own settings, beside those of its trials."""

from typing import Literal

from pydantic import Field

from acontrol.config import RunConfig
from tune.objective import Name


class SweepConfig(RunConfig):
    """A sweep: the run that its trials start from, and how they differ."""

    trials: int | None = Field(
        None, ge=1, description="Trials in all; by default 12, or the whole grid."
    )
    space: tuple[str, ...] = Field(
        (),
        description="What to search, on top of the default: KEY=1,3,5 or KEY=0.5:1.5 or "
        "KEY=log:1e-5:1e-3; KEY=3 fixes a default one.",
    )
    space_file: str | None = Field(None, description="The same in a JSON file.")
    default_space: bool = Field(
        True, description="Search gamma, T_g, alpha and the dropout rates too."
    )
    search: str = Field(
        "random",
        description="random, grid, or any searcher of Ray Tune whose package is installed, as "
        "optuna.",
    )
    scheduler: Literal["asha", "none"] = Field(
        "asha", description="Whether trials that fall behind end early."
    )
    reduction: int = Field(
        3, ge=2, description="ASHA goes on with one trial in this many at each of its rungs."
    )
    objective: Name | None = Field(
        None,
        description="What trials are ranked by; by default validation_loss, or "
        "guided_agreement where the loss cannot judge what is searched.",
    )
    max_concurrent: int | None = Field(
        None, ge=1, description="Trials at a time; by default what the cluster has room for."
    )
    retry_failed: bool = Field(
        False, description="Give failed trials of this sweep another go."
    )

    @property
    def run(self) -> RunConfig:
        """What a trial starts from, without its values."""
        own = set(SweepConfig.model_fields) - set(RunConfig.model_fields)
        return RunConfig.model_validate(self.model_dump(exclude=own))
