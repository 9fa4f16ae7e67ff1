"""Train an adapter on Ray; the same command resumes a run.

    python -m launch.train PRESET --data.shards DIR --output RUN [--config FILE.json]
                           [--register NAME] [--dry-run] ...

PRESET is one of: tiny (built-in base, offline, CPU), mvtec-sd15 (the paper),
mvtec-sd15-inpainting (the base of the authors' code). Every setting has a dotted name, as
--optim.steps 100; with PRESET before it, --help shows the preset's values. FILE.json holds
settings that replace the preset's.
--register NAME registers the finished run as acontrol register does (docs/registry.md).
--dry-run prints the resolved config, what a batch and an epoch are, parameters and memory by
ZeRO stage, and what would be downloaded; it needs neither weights nor cluster nor data.
"""

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, TypeVar

import tyro
from pydantic import Field, ValidationError

from acontrol.config import RunConfig
from acontrol.errors import UserError, explain
from acontrol.presets import PRESETS, preset
from acontrol.registry.card import check_model_name
from launch.entry import loading, main
from launch.options import ALL, parse
from launch.register import REGISTERED, register

PROG = "python -m launch.train"
Config = TypeVar("Config", bound=RunConfig)
# What --help shows of the settings of a run.
COMMON = (
    *("output", "data.shards", "base.path", "optim.steps", "optim.batch_size"),
    *("optim.learning_rate", "asea.steps", "runtime.precision", "cluster.num_workers"),
    *("samples.every", "validation.every", "tracking.uri"),
)


class TrainCommand(RunConfig):
    """A run, and what to do with it."""

    # `register` is a method of every class of pydantic's.
    register_: Annotated[str | None, tyro.conf.arg(name="register")] = Field(
        None, description="Model under whose name the finished run is registered."
    )
    dry_run: bool = Field(False, description="Print what the run would be; change nothing.")


def read_config(
    args: Sequence[str],
    prog: str = PROG,
    description: str | None = __doc__,
    required: Sequence[str] = ("output", "data.shards"),
) -> RunConfig:
    """Preset, then --config, then single options; --config alone needs no preset.

    Args:
        args: The command line.
        prog: How the command was started.
        description: Shown by --help.
        required: Dotted settings that the command needs and no preset has.
    """
    return read_config_of(RunConfig, args, prog, description, required)


def read_config_of(
    model: type[Config],
    args: Sequence[str],
    prog: str,
    description: str | None,
    required: Sequence[str] = ("output", "data.shards"),
) -> Config:
    """``read_config`` for a command whose settings extend a run's."""
    rest = [
        part
        for arg in args
        for part in (arg.split("=", 1) if arg.startswith("--config=") else [arg])
    ]
    asks = {"-h", "--help", ALL} & {*rest}
    if rest and not rest[0].startswith("-"):
        default = model.model_validate(preset(rest[0]).model_dump())
        prog = f"{prog} {rest.pop(0)}"
    elif asks:
        default = model()
        prog = f"{prog} PRESET"
    elif "--config" in rest:  # A run's own config needs no preset.
        default = model()
    else:
        raise UserError(f"name a preset first, one of: {', '.join(PRESETS)}")
    if "--config" in rest and not asks:
        place = rest.index("--config")
        if place + 1 == len(rest):
            raise UserError("--config needs a file")
        default = _from_file(Path(rest[place + 1]).expanduser(), default)
        del rest[place : place + 2]
    own = [name for name in model.model_fields if name not in RunConfig.model_fields]
    return parse(
        model,
        rest,
        prog=prog,
        description=description,
        default=default,
        common=[*COMMON, *own, *required],
        required=required,
    )


def _from_file(path: Path, default: Config) -> Config:
    """The preset with the file's settings on top, group by group."""
    merged = default.model_dump()
    try:
        settings = json.loads(path.read_bytes())
        if not isinstance(settings, dict):
            raise UserError(f"--config {path}: need a JSON object, got {settings!r:.40}")
        for name, value in settings.items():
            both = isinstance(value, dict) and isinstance(merged.get(name), dict)
            merged[name] = {**merged[name], **value} if both else value
        return type(default).model_validate(merged)
    except OSError as error:
        raise UserError(f"--config {path}: {error.strerror}") from error
    except ValidationError as error:
        raise UserError(f"--config {path}: {explain(error)}") from error
    except ValueError as error:
        raise UserError(f"--config {path}: not JSON: {error}") from error


def run(args: Sequence[str], prog: str = PROG) -> None:
    """Train, and print where the result is."""
    command = read_config_of(TrainCommand, args, prog, __doc__)
    config, name = command.run, command.register_
    if name is not None:
        check_model_name(name)  # Before any training.
    if command.dry_run:
        from acontrol.train.dry_run import describe

        for line in describe(config):
            print(line)
        return
    train(config, name)


def train(config: RunConfig, register_as: str | None = None) -> None:
    """Train, and print where the result is; an unfinished run ends the process."""
    # Ray and the models are imported only once the settings are valid.
    with loading():
        from acontrol.runs.storage import local_copy
        from acontrol.train.driver import TrainingStoppedError, run_training

    try:
        folder = run_training(config)
    except TrainingStoppedError as stop:
        print(stop if stop.status == 130 else f"error: {stop}", file=sys.stderr)
        sys.exit(stop.status)
    print(f"Draw with it:  acontrol generate --model {folder} --data ROOT --out DIR")
    if register_as is not None:
        with local_copy(folder, REGISTERED) as run_folder:
            register(run_folder, register_as, config.tracking.uri)
    print(f"Adapter: {folder / 'adapter'}")


if __name__ == "__main__":
    main(run)
