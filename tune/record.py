"""The files of a sweep's folder.

SWEEP/
  sweep.json         what is searched, how, and the MLflow parent run
  trials/<id>/       one training run each, with outcome.json once it has ended
  ray/               Ray Tune's own state, from which the same command continues
  best.json          the best trial's config, for acontrol train --config
  trials.csv         every trial's values and metrics
  *.png              parallel coordinates, parameter importance
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, ValidationError

from acontrol.config import RunConfig, Settings
from acontrol.errors import UserError, explain
from acontrol.runs import storage
from acontrol.runs.guard import changes
from acontrol.train.resume import changed_settings
from tune.objective import OBJECTIVES, Name
from tune.space import Space, Value, in_words

METRICS = ("step", "loss", *OBJECTIVES)


class Sweep(Settings):
    """The record of a sweep; a command with the same settings resumes it.

    Attributes:
        run: The run that trials start from; its output is the sweep's folder.
        space: The search space.
        mlflow_uri: MLflow of all runs.
        parent_run: Id of the MLflow run that the trials' runs are nested in.
    """

    run: RunConfig
    space: Space
    objective: Name
    search: str
    scheduler: Literal["asha", "none"]
    reduction: int = Field(ge=2)
    trials: int = Field(ge=1)
    mlflow_uri: str
    parent_run: str

    @property
    def folder(self) -> Path:
        """SWEEP."""
        return Path(self.run.output or "")

    @classmethod
    def read(cls, folder: Path) -> "Sweep | None":
        """The sweep of a folder, or None.

        Raises:
            UserError: If its record is damaged or of another version.
        """
        try:
            return cls.model_validate_json((folder / "sweep.json").read_bytes())
        except FileNotFoundError:
            return None
        except ValidationError as error:
            raise UserError(f"{folder}/sweep.json: {explain(error)}") from error

    def write(self) -> None:
        """Replace the record in one step."""
        storage.write(self.folder / "sweep.json", self.model_dump_json(indent=1).encode())

    def changes(self, now: "Sweep") -> list[str]:
        """What another sweep does differently, as "name: before -> now"."""
        return changed_settings(self.run, now.run) + changes(self._compared(), now._compared())

    def _compared(self) -> dict[str, Any]:
        return {
            **self.run.model_dump(mode="json", include={"checkpoint", "samples"}),
            "space": in_words(self.space),
            **self.model_dump(mode="json", exclude={"run", "space", "parent_run"}),
        }

    def trial_folder(self, trial: str) -> Path:
        """The folder of a trial's run."""
        return self.folder / "trials" / trial

    def trial_config(self, trial: str, values: Mapping[str, Value]) -> RunConfig:
        """The run of a trial: the shared settings with its values, nested in the parent."""
        tracking = self.run.tracking.model_copy(
            update={
                "uri": self.mlflow_uri,
                "run_name": run_name(trial),
                "parent_run": self.parent_run,
            }
        )
        run = self.run.model_copy(
            update={"output": str(self.trial_folder(trial)), "tracking": tracking}
        )
        return run.with_values(values)

    def forget_failed(self) -> None:
        """Let failed trials run again."""
        for trial, outcome in self.outcomes().items():
            if outcome.status == "failed":
                (self.trial_folder(trial) / "outcome.json").unlink()

    def outcomes(self) -> "dict[str, Outcome]":
        """The outcome of each ended trial, by its id."""
        outcomes = {}
        for folder in sorted((self.folder / "trials").glob("*/")):
            outcome = Outcome.read(folder)
            if outcome is not None:
                outcomes[folder.name] = outcome
        return outcomes


class Outcome(Settings):
    """How a trial ended.

    Attributes:
        status: "finished" at its last step, "stopped" early by the scheduler, or "failed".
        values: The trial's values, by dotted key.
        metrics: The last metrics, including "step".
        failure: The cause of a failure, in one line.
    """

    status: Literal["finished", "stopped", "failed"]
    values: dict[str, Value]
    metrics: dict[str, float]
    failure: str | None = None

    @classmethod
    def read(cls, trial: Path) -> "Outcome | None":
        """The outcome of a trial's folder; None if missing or unreadable."""
        try:
            return cls.model_validate_json((trial / "outcome.json").read_bytes())
        except (OSError, ValidationError):
            return None

    def write(self, trial: Path) -> None:
        """Write it in one step."""
        storage.write(trial / "outcome.json", self.model_dump_json(indent=1).encode())


def run_name(trial: str) -> str:
    """The name of a trial's MLflow run."""
    return f"trial-{trial}"
