"""Generate labelled defect images with a trained adapter, in MVTec AD's layout.

    python -m launch.generate --model MODEL --data ROOT --out DIR [--defect D] [--count N]
    python -m launch.generate --model MODEL --data ROOT --out DIR --paper [...]
    python -m launch.generate --model MODEL --data ROOT --out DIR --requests FILE.jsonl
    python -m launch.generate --model MODEL --data ROOT --out DIR --replay OLD [--batch N]
    python -m launch.generate --method copy-paste --data ROOT --out DIR [--model MODEL] [...]
    python -m launch.generate --method lora --fitted LORA --data ROOT --out DIR [...]

MODEL is a run's output folder, an adapter folder or models:/NAME@ALIAS. References and masks
come from the part of ROOT that was trained on (--split-file as in training), normal images from
its train/good or from --normal ROOT. The same command resumes after a kill. DIR/manifest.jsonl
records how each image was made and how it scored, DIR/report/index.html shows it; --replay
reproduces it. --method draws the same plan in another way, with the same gate and report.
"""

import os
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from acontrol.config import BUILT_IN
from acontrol.errors import UserError
from acontrol.generation.settings import FITTED, WITH_ADAPTER, GenerationConfig
from acontrol.runs.paths import full_path, in_ray_job
from launch.entry import loading, main
from launch.options import parse

PROG = "python -m launch.generate"


def run(args: Sequence[str], prog: str = PROG) -> None:
    """Check the settings, then generate."""
    given = parse(GenerationConfig, args, prog=prog, description=__doc__)
    command = _absolute(given.resolved)
    _check(command)
    # Imported only once the settings are valid.
    from acontrol.data.mvtec import open_folder

    open_folder(command.data, command.captions, split_file=command.split_file)
    with loading():
        from acontrol.generation.run import generate

    if command.model is None or not command.model.startswith("models:"):
        generate(command)
        return
    from acontrol.registry.pull import pull
    from acontrol.runs.server import server_uri

    with tempfile.TemporaryDirectory(prefix="acontrol-model-") as scratch:
        model = os.path.join(scratch, "adapter")
        pull(command.model, Path(model), server_uri(None))
        generate(command, model)


def _absolute(command: GenerationConfig) -> GenerationConfig:
    """Make paths absolute: workers have another working directory.

    Raises:
        UserError: Under ``ray job submit``, if one is relative.
    """
    if command.num_workers == 1 and not in_ray_job():
        return command
    names = (
        *("model", "data", "out", "captions", "normal", "requests", "replay", "masks_path"),
        *("split_file", "fitted"),
    )
    changed: dict[str, Any] = {}
    for name in (*names, "base_path"):
        value = getattr(command, name)
        # The shipped model or base stays a word; a Path equals none.
        if value in (None, BUILT_IN) or str(value).startswith("models:"):
            continue
        full = full_path(str(value), f"--{name.replace('_', '-')}")
        changed[name] = full if isinstance(value, str) else Path(full or "")
    return command.model_copy(update=changed)


def _check(command: GenerationConfig) -> None:
    """Refuse settings that are wrong whatever the model is."""
    from acontrol.networks.locate import adapter_path  # Slow to import, and --help needs none.

    model = command.model
    if model is None:
        if command.method in WITH_ADAPTER:
            raise UserError(
                f"--model MODEL is needed: --method {command.method} draws with a trained "
                "adapter"
            )
    elif not model.startswith("models:") and not adapter_path(model).is_dir():
        if Path(model).is_file():
            raise UserError(f"--model {model}: is a file; give the adapter's folder")
        raise UserError(f"--model {model}: no such folder")
    if command.method in FITTED and command.fitted is None:
        raise UserError(
            f"--method {command.method} needs --fitted DIR, which acontrol fit wrote"
        )
    if command.method not in FITTED and command.fitted is not None:
        raise UserError(
            f"--fitted is of --method {' and '.join(FITTED)}; --method {command.method} draws "
            "without it"
        )
    needs_path = command.masks in ("file", "learned")
    if needs_path != (command.masks_path is not None):
        option = f"--masks {command.masks}" if needs_path else "--masks file (or learned)"
        raise UserError(f"{option} and --masks-path DIR need each other")
    if command.batch is not None and command.replay is None:
        raise UserError("--batch says which batch of --replay OLD to draw again: give both")
    if command.requests is not None and command.replay is not None:
        raise UserError("give --requests or --replay, not both")


if __name__ == "__main__":
    main(run)
