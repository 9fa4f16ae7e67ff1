"""Draw a data set: plan it, check it, draw it here or on Ray, and write the report."""

import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from acontrol.data.mvtec import open_folder
from acontrol.generation.job import (
    JOB_NAME,
    Job,
    batches_of,
    check_empty,
    check_inputs,
    run_local,
)
from acontrol.generation.plan import PlannedImage, Planner, every_defect
from acontrol.generation.replay import machine, replayed
from acontrol.generation.report import write_as_shards, write_report
from acontrol.generation.request import read_requests
from acontrol.generation.sampler import Generator
from acontrol.generation.scoring import DefectScorer
from acontrol.generation.settings import Gate, GenerationConfig, OutputSettings, Sampling
from acontrol.networks.load import quieten
from acontrol.pipelines.loading import load_with_digest


def generate(command: GenerationConfig, model: str | None = None) -> None:
    """Draw what the settings ask for; the same call continues where an earlier one stopped.

    Args:
        command: Every setting.
        model: Where the adapter is, if not where ``command.model`` says.

    Raises:
        UserError: If the model, the data or a request must be put right.
    """
    model = command.model if model is None else model
    quieten()
    if not (command.out / JOB_NAME).exists():
        check_empty(command.out)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    pipeline, digest = load_with_digest(model, command.base_path, device)
    pipeline.set_progress_bar_config(disable=True)
    folder = open_folder(command.data)
    normal_folder = open_folder(command.normal) if command.normal else folder
    planner = Planner(
        folder,
        split=command.split or pipeline.card.split,
        cells=pipeline.latent_side,
        masks_path=command.masks_path,
        normal_folder=normal_folder,
        masks=command.masks,
        sampling=Sampling(**command.model_dump(include=set(Sampling.model_fields))),
        seed=command.seed,
        read_phrase=pipeline.semantics.read,
        base_digest=pipeline.card.base_digest,
    )
    roots = {"data": folder.root, "normal": normal_folder.root}
    threads = max(1, torch.get_num_threads() // command.num_workers)
    metadata = {
        "model": digest,
        "split": planner.split,
        "gate": command.model_dump(include=set(Gate.model_fields)),
        "finish": command.model_dump(include=set(OutputSettings.model_fields)),
        **machine(pipeline, threads),
    }
    left_out: list[str] = []
    if command.replay is not None:
        metadata, batches = replayed(command.replay, command.batch, metadata, roots)
        planner.split = metadata["split"]
    else:
        planned, left_out = _planned(command, planner)
        batches = batches_of(planned, command.batch_size)
    check_inputs(pipeline, [one for batch in batches for one in batch])
    job = Job(command.out, metadata, batches, roots)
    if job.done:
        print(f"Nothing to do: {command.out} holds what this command draws")
        return
    size = sum(len(batch) for batch in batches)
    drawn = sum(len(batches[number]) for number in job.missing())
    if drawn < size:
        print(f"Continuing: {size - drawn} of {size} images are there", flush=True)
    gate, finish = (
        Gate.model_validate(metadata["gate"]),
        OutputSettings.model_validate(metadata["finish"]),
    )
    bar = tqdm(total=size, initial=size - drawn, desc="drawing", unit="image", disable=None)

    def progress(numbers: Iterable[int]) -> Iterable[int]:
        for number in numbers:
            yield number
            bar.update(len(batches[number]))

    with bar:
        if command.num_workers == 1:
            scorer = DefectScorer(pipeline, planner.training)
            run_local(job, Generator(pipeline, scorer, gate, finish), roots, progress)
        else:
            from acontrol.generation.workers import GeneratorSpec, run_on_ray

            del pipeline  # Its memory is the workers'.
            spec = GeneratorSpec(
                model, command.base_path, planner.split, gate, finish, roots, threads
            )
            run_on_ray(job, spec, command.num_workers, progress)

    def report(where: Path, kept: list[dict[str, Any]]) -> None:
        write_report(where, kept, roots)
        if command.format == "shards":
            write_as_shards(where, kept)

    lines = job.finish(report)
    _tell(command, lines, left_out)


def _planned(
    command: GenerationConfig, planner: Planner
) -> tuple[list[PlannedImage], list[str]]:
    if command.requests is not None:
        return planner.plan(read_requests(command.requests), command.requests.parent)
    asked = every_defect(
        planner.folder,
        split=planner.split,
        count=command.count,
        category=command.category,
        defect=None if command.defect == "all" else command.defect,
        normal_folder=planner.normal_folder,
        reference_category=command.reference_category,
    )
    return planner.plan(asked)


def _tell(
    command: GenerationConfig, lines: list[dict[str, Any]], left_out: Sequence[str]
) -> None:
    """What came out, and last where it is."""
    failed = [line for line in lines if "error" in line]
    kept = [line for line in lines if line["image"] is not None]
    if left_out:
        print(f"{len(left_out)} found no place for their defect; the first: {left_out[0]}")
    if failed:
        print(f"{len(failed)} could not be drawn; the first: {failed[0]['error']}")
    if command.gate != "off":
        missed = sum(not line["scores"]["passed"] for line in lines if "error" not in line)
        what = "the best try of each was kept" if command.gate == "keep" else "dropped"
        if missed:
            print(f"{missed} of {len(lines) - len(failed)} did not pass the gate: {what}")
    if kept:
        print(f"Look at {command.out / 'report' / 'index.html'}")
    print(f"{len(kept)} images with masks: {os.fspath(command.out)}")
