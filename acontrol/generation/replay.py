"""Replay an earlier job: its settings and batches, and the machine it ran on."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import diffusers
import torch
import transformers

from acontrol.config import THIRD
from acontrol.errors import UserError
from acontrol.generation.inputs import INPUTS
from acontrol.generation.job import FORMAT, read_job
from acontrol.generation.manifest import Roots, planned_of
from acontrol.generation.methods import LoadedMethod
from acontrol.generation.plan import PlannedImage
from acontrol.messages import print_note


def machine_metadata(loaded: LoadedMethod, device: str, threads: int) -> dict[str, Any]:
    """What pixels can depend on besides plan, model and settings."""
    versions = {lib.__name__: lib.__version__ for lib in (torch, diffusers, transformers)}
    return {
        "resolution": loaded.resolution,
        "dtype": str(loaded.dtype).removeprefix("torch."),
        "device": device,
        "threads": threads,
        "versions": versions | loaded.versions,
    }


def replayed(
    folder: Path, number: int | None, current: Mapping[str, Any], roots: Roots
) -> tuple[dict[str, Any], list[list[PlannedImage]]]:
    """Settings and batches of an earlier job.

    Args:
        folder: Its output folder.
        number: Only this batch; None is all.
        current: Metadata of a job with this model on this machine. Differences of the machine
            are printed, since pixels may then differ.
        roots: Folders that the manifest's paths start at.

    Returns:
        The new job's metadata, and its batches, halved where the earlier ones were.

    Raises:
        UserError: If it is not a job's folder, is another model's, or has no such batch.
    """
    metadata, lines = read_job(folder)
    method = metadata.get("method", "acontrol")  # A job from before.
    if method != current["method"]:
        raise UserError(
            f"--replay {folder}: was drawn by --method {method}, not {current['method']}"
        )
    if metadata["model"] != current["model"]:
        raise UserError(f"--replay {folder}: was drawn with another model or version of it")
    for name in ("dtype", "device", "threads", "versions", "compile", "attention"):
        default = "auto" if name == "attention" else "off"
        before, now = (of.get(name, default) for of in (metadata, current))
        if before != now:
            print_note(f"{name} was {before}, now {now}: pixels may differ")
    if metadata["format"] != FORMAT:
        print_note(f"{folder} was drawn by an earlier version: pixels will differ")
    groups: dict[tuple[int, int], list[PlannedImage]] = {}
    for line in lines:
        if number in (None, line["batch"]) and "error" not in line:
            key = (line["batch"], line["part"][0])
            groups.setdefault(key, []).append(planned_of(line, folder, roots))
    if not groups:
        raise UserError(f"--replay {folder}: has no batch {number}")
    settings = {name: metadata[name] for name in ("split", "gate", "finish")}
    trained_on = metadata.get("trained_on", [{"split_digest": THIRD}])  # A job from before.
    if trained_on[-1]["split_digest"] != current["trained_on"][-1]["split_digest"]:
        raise UserError(f"--replay {folder}: was drawn with another --split-file than this")
    if INPUTS in metadata:
        settings[INPUTS] = metadata[INPUTS]
    if "trained_on" in metadata:
        settings["trained_on"] = trained_on
    return {**current, **settings}, list(groups.values())
