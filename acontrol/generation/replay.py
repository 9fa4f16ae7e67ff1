"""Draw an earlier job again: what it was, and on which machine."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import diffusers
import torch
import transformers

from acontrol.errors import UserError
from acontrol.generation.job import read_job
from acontrol.generation.manifest import Roots, planned_of
from acontrol.generation.plan import PlannedImage
from acontrol.pipelines.anomaly_control import AnomalyControlPipeline


def machine(pipeline: AnomalyControlPipeline, threads: int) -> dict[str, Any]:
    """What else than plan, model and settings a pixel can depend on."""
    return {
        "resolution": pipeline.card.resolution,
        "dtype": str(pipeline.unet.dtype).removeprefix("torch."),
        "device": pipeline.device.type,
        "threads": threads,
        "versions": {one.__name__: one.__version__ for one in (torch, diffusers, transformers)},
    }


def replayed(
    folder: Path, number: int | None, here: Mapping[str, Any], roots: Roots
) -> tuple[dict[str, Any], list[list[PlannedImage]]]:
    """Settings and batches of an earlier job.

    Args:
        folder: What it wrote.
        number: Only this batch; None is all.
        here: The facts of a job with this model on this machine; a difference of the machine
            is printed, since pixels may then differ.
        roots: Folders that the manifest's paths start at.

    Returns:
        The facts of the new job, and its batches, halved where the earlier one's were.

    Raises:
        UserError: If it is no job, another model's, or has no such batch.
    """
    metadata, lines = read_job(folder)
    if metadata["model"] != here["model"]:
        raise UserError(f"--replay {folder}: was drawn by another model than --model")
    for name in ("dtype", "device", "threads", "versions"):
        if metadata[name] != here[name]:
            print(f"Note: {name} was {metadata[name]} and is {here[name]}: pixels may differ")
    groups: dict[tuple[int, int], list[PlannedImage]] = {}
    for line in lines:
        if number in (None, line["batch"]) and "error" not in line:
            key = (line["batch"], line["part"][0])
            groups.setdefault(key, []).append(planned_of(line, folder, roots))
    if not groups:
        raise UserError(f"--replay {folder}: has no batch {number}")
    known = {name: metadata[name] for name in ("split", "gate", "finish")}
    return {**here, **known}, list(groups.values())
