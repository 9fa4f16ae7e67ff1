"""Draw new labelled defect images with a trained adapter, in MVTec AD's layout.

    python -m launch.generate --model MODEL --data ROOT --out DIR [--defect D] [--count N]
    python -m launch.generate --model MODEL --data ROOT --out DIR --requests FILE.jsonl
    python -m launch.generate --model MODEL --data ROOT --out DIR --replay OLD [--batch N]

MODEL is a run's output folder, an adapter folder or models:/NAME@ALIAS. References and masks
come from the part of ROOT that was trained on, normal images from its train/good or from
--normal ROOT. Killed, the same command continues. DIR/manifest.jsonl says how each image was
made and how it scored, DIR/report/index.html shows it; --replay draws it again.
"""

import os
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field
from tqdm import tqdm

from acontrol.config import Settings
from acontrol.data.mvtec import open_folder
from acontrol.errors import UserError
from acontrol.generation.settings import Finish, Gate, Sampling
from acontrol.masks.settings import SourceName
from acontrol.runs.paths import full_path, in_ray_job
from acontrol.runs.storage import place
from launch.entry import main, parse

if TYPE_CHECKING:
    from acontrol.generation.plan import Planned, Planner

PROG = "python -m launch.generate"


class Asked(Settings):
    """What to draw, with what, and where to."""

    model: str = Field(
        description="A run's or adapter's folder or its URI, or models:/NAME@ALIAS of the "
        "server in MLFLOW_TRACKING_URI."
    )
    data: Path = Field(description="Folder of the defects, in MVTec AD's layout.")
    out: Path = Field(description="Folder to create.")
    normal: Path | None = Field(
        None, description="Folder of the good images, if they are not in --data."
    )
    category: str | None = Field(None, description="Only this category; by default all.")
    defect: str = Field("all", description="Only this defect type, or 'all'.")
    count: int = Field(4, ge=1, description="Images of each category and defect.")
    requests: Path | None = Field(
        None, description="What to draw, one JSON object a line (docs/generation.md), instead."
    )
    replay: Path | None = Field(
        None, description="Draw again what an earlier job drew: its folder."
    )
    batch: int | None = Field(None, ge=0, description="Of --replay, only this batch.")
    split: Literal["train", "test", "all"] | None = Field(
        None, description="Part of --data for references and masks; by default as trained."
    )
    reference_category: str | None = Field(
        None, description="Take references from this category; by default each its own."
    )
    masks: SourceName = Field(
        "real",
        description="Where defects go. real: training masks of that defect, moved, turned, "
        "scaled and bent; same: these as they are; learned: what launch.masks drew; perlin: "
        "blobs, as a control; file: yours.",
    )
    masks_path: Path | None = Field(
        None,
        description="Masks for --masks file: DIR/DEFECT/*.png, or DIR/*.png for all; for "
        "--masks learned what launch.masks wrote.",
    )
    seed: int = Field(0, ge=0, lt=2**63, description="Everything drawn follows from it.")
    batch_size: int = Field(4, ge=1, description="Images drawn together.")
    num_workers: int = Field(
        1, ge=1, description="Processes that draw, each with a GPU where there are; over Ray."
    )
    format: Literal["mvtec", "shards"] = Field(
        "mvtec", description="shards: also write them as WebDataset shards, in DIR/shards."
    )
    base_path: str | None = Field(None, description="Where the base is now, if it moved.")


# --help lists the last base's options first.
class GenerateCommand(Finish, Gate, Sampling, Asked):
    """Options of launch.generate."""


def run(args: Sequence[str]) -> None:
    """Plan, check, draw, and write the report."""
    command = _absolute(parse(GenerateCommand, args, prog=PROG, description=__doc__))
    _check(command)
    open_folder(command.data)
    if not command.model.startswith("models:"):
        _generate(command, command.model)
        return
    from acontrol.registry.pull import pull
    from acontrol.runs.mlflow_client import server_uri

    with tempfile.TemporaryDirectory(prefix="acontrol-model-") as scratch:
        model = os.path.join(scratch, "adapter")
        pull(command.model, Path(model), server_uri(None))
        _generate(command, model)


def _generate(command: GenerateCommand, model: str) -> None:
    # Imported only once the arguments are known to be good.
    import torch

    from acontrol.generation.job import (
        JOB_NAME,
        Job,
        batches_of,
        check_empty,
        check_inputs,
        run_local,
    )
    from acontrol.generation.plan import Planner
    from acontrol.generation.replay import machine, replayed
    from acontrol.generation.report import write_as_shards, write_report
    from acontrol.generation.sampler import Drawer
    from acontrol.generation.scoring import Judge
    from acontrol.networks.load import quieten
    from acontrol.pipelines.loading import load_pipeline

    quieten()
    if not (command.out / JOB_NAME).exists():
        check_empty(command.out)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    pipeline, digest = load_pipeline(model, command.base_path, device)
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
    facts = {
        "model": digest,
        "split": planner.split,
        "gate": command.model_dump(include=set(Gate.model_fields)),
        "finish": command.model_dump(include=set(Finish.model_fields)),
        **machine(pipeline, threads),
    }
    left_out: list[str] = []
    if command.replay is not None:
        facts, batches = replayed(command.replay, command.batch, facts, roots)
        planner.split = facts["split"]
    else:
        planned, left_out = _planned(command, planner)
        batches = batches_of(planned, command.batch_size)
    check_inputs(pipeline, [one for batch in batches for one in batch])
    job = Job(command.out, facts, batches, roots)
    if job.done:
        print(f"Nothing to do: {command.out} holds what this command draws")
        return
    size = sum(len(batch) for batch in batches)
    drawn = sum(len(batches[number]) for number in job.missing())
    if drawn < size:
        print(f"Continuing: {size - drawn} of {size} images are there", flush=True)
    gate, finish = Gate.model_validate(facts["gate"]), Finish.model_validate(facts["finish"])
    bar = tqdm(total=size, initial=size - drawn, desc="drawing", unit="image", disable=None)

    def progress(numbers: Iterable[int]) -> Iterable[int]:
        for number in numbers:
            yield number
            bar.update(len(batches[number]))

    with bar:
        if command.num_workers == 1:
            judge = Judge(pipeline, planner.training)
            run_local(job, Drawer(pipeline, judge, gate, finish), roots, progress)
        else:
            from acontrol.generation.workers import Drawers, run_on_ray

            del pipeline  # Its memory is the workers'.
            drawers = Drawers(
                model, command.base_path, planner.split, gate, finish, roots, threads
            )
            run_on_ray(job, drawers, command.num_workers, progress)

    def report(where: Path, kept: list[dict[str, Any]]) -> None:
        write_report(where, kept, roots)
        if command.format == "shards":
            write_as_shards(where, kept)

    lines = job.finish(report)
    _tell(command, lines, left_out)


def _absolute(command: GenerateCommand) -> GenerateCommand:
    """Make paths absolute: workers have another working directory.

    Raises:
        UserError: Under ``ray job submit``, if one is relative.
    """
    if command.num_workers == 1 and not in_ray_job():
        return command
    names = ("model", "data", "out", "normal", "requests", "replay", "masks_path", "base_path")
    changed: dict[str, Any] = {}
    for name in names:
        value = getattr(command, name)
        if value is None or str(value).startswith("models:"):
            continue
        full = full_path(str(value), f"--{name.replace('_', '-')}")
        changed[name] = full if isinstance(value, str) else Path(full or "")
    return command.model_copy(update=changed)


def _check(command: GenerateCommand) -> None:
    """What needs no model to be seen as wrong."""
    if not command.model.startswith("models:") and not place(command.model).is_dir():
        raise UserError(f"--model {command.model}: no such folder")
    named = command.masks in ("file", "learned")
    if named != (command.masks_path is not None):
        what = f"--masks {command.masks}" if named else "--masks file (or learned)"
        raise UserError(f"{what} and --masks-path DIR need each other")
    if command.batch is not None and command.replay is None:
        raise UserError("--batch says which batch of --replay OLD to draw again: give both")
    if command.requests is not None and command.replay is not None:
        raise UserError("give --requests or --replay, not both")


def _planned(command: GenerateCommand, planner: "Planner") -> "tuple[list[Planned], list[str]]":
    from acontrol.generation.plan import every_defect
    from acontrol.generation.request import read_requests

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
    command: GenerateCommand, lines: list[dict[str, Any]], left_out: Sequence[str]
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


if __name__ == "__main__":
    main(run)
