"""Generate a data set: plan it, check it, draw it here or on Ray, and write the report."""

import os
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch

from acontrol.config import AdapterCard
from acontrol.data.left_out import print_notes
from acontrol.data.lock import only_launch, refuse_if_locked
from acontrol.data.mvtec import open_folder
from acontrol.data.overlap import refuse_overlap
from acontrol.data.prompts import wording_note
from acontrol.data.publish import check_new, work_folder
from acontrol.data.split import refuse_mix
from acontrol.errors import UserError
from acontrol.generation.adapter import AdapterMethod
from acontrol.generation.exports import write_as_coco, write_as_yolo
from acontrol.generation.gate import DefectScorer, missed_limits
from acontrol.generation.inputs import INPUTS, check_inputs, refuse_changed
from acontrol.generation.job import JOB_NAME, Job, batches_of, draw_locally
from acontrol.generation.methods import LoadedMethod, load_method
from acontrol.generation.plan import PlannedImage, Planner, requests_for_all
from acontrol.generation.replay import machine_metadata, replayed
from acontrol.generation.report import write_as_shards, write_report
from acontrol.generation.request import read_requests
from acontrol.generation.sampler import Generator
from acontrol.generation.settings import (
    WITH_ADAPTER,
    Gate,
    GenerationConfig,
    OutputSettings,
    Sampling,
)
from acontrol.messages import counted, print_note
from acontrol.networks import locate
from acontrol.networks.load import quieten
from acontrol.progress import progress


def generate(config: GenerationConfig, model: str | None = None) -> None:
    """Draw a data set; the same call continues where an earlier one stopped.

    Args:
        config: Every setting.
        model: Where the adapter is, if not at ``config.model``.

    Raises:
        UserError: If the model, the data or a request is bad.
    """
    model = config.model if model is None else model
    quieten()
    read = {"data": config.data, "normal": config.normal, "masks-path": config.masks_path}
    read |= {"fitted": config.fitted}
    folders = {f"--{name}": folder for name, folder in read.items()}
    refuse_overlap(config.out, "--out", folders | {"--replay": config.replay})
    if not (config.out / JOB_NAME).exists():
        check_new(config.out)
    refuse_if_locked(work_folder(config.out))
    device = "cuda" if torch.cuda.is_available() else "cpu"
    # Workers load their own, and need the memory of the device.
    place = device if config.num_workers == 1 else "cpu"
    loaded = load_method(
        config.method, model, config.base_path, place, config.precision, config.fitted
    )
    planner = make_planner(config, loaded)
    roots = {"data": planner.folder.root, "normal": planner.normal_folder.root}
    threads = max(1, torch.get_num_threads() // config.num_workers)
    metadata = job_metadata(config, planner, loaded, device, threads)
    left_out: list[str] = []
    earlier_inputs = None
    if config.replay is not None:
        if ignored := ignored_by_replay(config):
            names = ", ".join(f"--{name.replace('_', '-')}" for name in ignored)
            print_note(f"--replay draws as {config.replay} did: {names} not used")
        metadata, batches = replayed(config.replay, config.batch, metadata, roots)
        planner.split = metadata["split"]
        earlier_inputs = metadata.pop(INPUTS, None)
    else:
        images, left_out = plan_images(config, planner)
        batches = batches_of(images, config.batch_size)
    planned = [image for batch in batches for image in batch]
    _check_start(config, planned)
    metadata[INPUTS] = check_inputs(loaded, planned, roots)
    if config.replay is not None and earlier_inputs is not None:
        refuse_changed(earlier_inputs, metadata, config.replay)
    unseen = _unseen_note(loaded, planner, planned)
    seen = loaded.card.seen if loaded.card else ()
    trained = {name for part in seen for name in part.categories or ()}
    words = wording_note(
        (image.name[1], image.reference.phrase, image.prompt)
        for image in planned
        if image.name[0] not in trained  # Else the shards were made with this note.
    )
    views = (
        view_notes(loaded.card, [image.sampling for image in planned]) if loaded.card else []
    )
    for note in [*([words] if words else []), *unseen, *views]:
        print_note(note)
    job = Job(config.out, metadata, batches, roots)
    if job.done:
        print(f"Nothing to do: {config.out} is complete")
        return
    with only_launch(job.folder):
        gate = Gate.model_validate(metadata["gate"])
        output = OutputSettings.model_validate(metadata["finish"])
        # A replay's batches are as large as the earlier job's.
        largest = max(len(batch) for batch in batches)
        compiled = None if config.compile == "off" else (config.compile, largest)
        if config.num_workers == 1:
            from acontrol.networks.compilation import attention_by  # Slow to import.

            scorer = DefectScorer(loaded.vlm, planner.training)
            generator = Generator(loaded.method, scorer, gate, output)
            with attention_by(config.attention):  # Compiling chooses the kernel for good.
                if compiled is not None and isinstance(loaded.method, AdapterMethod):
                    loaded.method.compile(*compiled)
                _draw(job, draw_locally(job, generator))
        else:
            from acontrol.generation.workers import GeneratorSpec, draw_on_ray

            split = planner.split
            del loaded, planner  # Their memory is the workers'.
            spec = GeneratorSpec(
                config.method,
                model,
                config.base_path,
                config.precision,
                split,
                gate,
                output,
                config.split_file,
                roots,
                threads,
                config.fitted,
                compiled,
                config.attention,
            )
            _draw(job, draw_on_ray(job, spec, config.num_workers))

        def report(folder: Path, lines: list[dict[str, Any]]) -> None:
            write_report(folder, lines, roots, gate, [*unseen, *_how(config)])
            kept = [line for line in lines if line["image"] is not None]
            if not kept:
                return
            if config.format == "shards":
                write_as_shards(folder, kept)
            elif config.format == "coco":
                write_as_coco(folder, kept, roots)
            elif config.format == "yolo":
                write_as_yolo(folder, kept, roots)

        _print_summary(config.out, gate, job.finish(report), left_out)


def _how(config: GenerationConfig) -> list[str]:
    """A note for the report if another method than ours drew."""
    return [] if config.method == "acontrol" else [f"drawn by --method {config.method}"]


def ignored_by_replay(config: GenerationConfig) -> list[str]:
    """The settings that were given, but that a replay takes from the earlier job."""
    used = {
        "method",
        "model",
        "fitted",
        "data",
        "normal",
        "out",
        "replay",
        "batch",
        "num_workers",
        "format",
        "split_file",
        "precision",
        "compile",
        "attention",
    }
    return sorted(config.model_fields_set - used - {"base_path"})


def view_notes(card: AdapterCard, sampling: Iterable[Sampling]) -> list[str]:
    """Lines on drawings at another scale than was trained, as far as the card says it."""
    used = {settings.crop for settings in sampling}
    if card.target_crop is None:
        unknown = (
            "the adapter's card does not say at what view it was trained: whole images are "
            "assumed, as earlier versions trained (--crop 4 draws near)"
        )
        return [unknown] if None in used else []
    others = used - {None, card.target_crop}
    trained = _view(card.target_crop, card.target_px)
    return [
        f"--crop {crop:g} draws {_view(crop, card.target_px)}, but the adapter was trained on "
        f"{trained}: details come out at another size than was learnt"
        for crop in sorted(crop for crop in others if crop is not None)
    ]


def _check_start(config: GenerationConfig, planned: Sequence[PlannedImage]) -> None:
    if config.method in WITH_ADAPTER:
        return
    if config.compile != "off":
        raise UserError(
            f"--compile is for an adapter's U-Net; --method {config.method} has no such choice"
        )
    for image in planned:
        if image.sampling.start != "noise" or image.sampling.detail:
            own = image.sampling
            what = "detail" if own.detail else f"start {own.start}"
            raise UserError(
                f"{what} is a choice of an adapter's drawing; --method {config.method} has no "
                "such choice"
            )


def _unseen_note(
    loaded: LoadedMethod, planner: Planner, planned: Sequence[PlannedImage]
) -> list[str]:
    """The note on products that the base has not learnt, if any, and if it draws."""
    if loaded.tokenizer is None:
        return []
    categories = {image.name[0] for image in planned}
    defect_types = {image.name[:2] for image in planned} | {
        (category, defect)
        for category in categories & {*planner.folder.categories}
        for defect in planner.folder.defect_types(category)
    }
    note = locate.unseen_note(loaded.base, defect_types)
    return [] if note is None else [note]


def _view(crop: float, limit: int | None) -> str:
    most = "" if limit is None else f" (at most {limit} px)"
    return f"squares of {crop:g} times the defect{most}" if crop else "whole images"


def job_metadata(
    config: GenerationConfig, planner: Planner, loaded: LoadedMethod, device: str, threads: int
) -> dict[str, Any]:
    """All that a job's images depend on, besides the plan.

    Raises:
        UserError: If model and data come from different splits.
    """
    return {
        "method": config.method,
        "model": loaded.digest,
        "split": planner.split,
        "trained_on": _trained_on(config, planner, loaded),
        "gate": config.model_dump(include=set(Gate.model_fields)),
        "finish": config.model_dump(include=set(OutputSettings.model_fields)),
        **machine_metadata(loaded, device, threads),
        **({} if config.compile == "off" else {"compile": config.compile}),
        **({} if config.attention == "auto" else {"attention": config.attention}),
    }


def make_planner(config: GenerationConfig, loaded: LoadedMethod) -> Planner:
    """A planner on the data that the settings name, for a loaded method."""
    folder = open_folder(config.data, config.captions, split_file=config.split_file)
    elsewhere = config.normal is not None and config.normal.resolve() != config.data.resolve()
    normal_folder = open_folder(config.normal or config.data) if elsewhere else folder
    for source in {folder.root: folder, normal_folder.root: normal_folder}.values():
        print_notes(source)
    return Planner(
        folder,
        split=config.split or loaded.split,
        cells=loaded.latent_side,
        crop=loaded.crop,
        masks_path=config.masks_path,
        normal_folder=normal_folder,
        masks=config.masks,
        sampling=Sampling(**config.model_dump(include=set(Sampling.model_fields))),
        seed=config.seed,
        read_phrase=loaded.read_phrase,
        base_digest=loaded.base_digest,
    )


def _trained_on(
    config: GenerationConfig, planner: Planner, loaded: LoadedMethod
) -> list[dict[str, Any]]:
    """Records of the images behind the generated ones: of base and adapter, last of the data.

    Raises:
        UserError: If model and data come from different splits.
    """
    data = planner.folder.trained_on(planner.split)
    seen = dict.fromkeys(loaded.seen)
    source = f"the base {loaded.base.path}"
    if chosen := config.fitted or config.model:
        source = f"the model {chosen}"
    refuse_mix(source, seen, f"the data {config.data}", data)
    parts = [*(part for part in seen if part != data), data]
    return [part.model_dump(mode="json") for part in parts]


def plan_images(
    config: GenerationConfig, planner: Planner
) -> tuple[list[PlannedImage], list[str]]:
    """All images of a call of `generate`, and a line for each that found no place.

    Raises:
        UserError: If a request is bad.
    """
    if config.requests is not None:
        return planner.plan_images(read_requests(config.requests), config.requests.parent)
    requests = requests_for_all(
        planner.folder,
        split=planner.split,
        count=config.count,
        category=config.category,
        defect=None if config.defect == "all" else config.defect,
        normal_folder=planner.normal_folder,
        reference_category=config.reference_category,
    )
    return planner.plan_images(requests)


def _draw(job: Job, finished: Iterable[int]) -> None:
    """Draw the job's missing batches, with a progress bar over its images."""
    size = sum(len(batch) for batch in job.batches)
    done = size - sum(len(job.batches[number]) for number in job.missing())
    if done:
        print(f"Continuing: {done} of {counted(size, 'image')} already drawn", flush=True)
    with progress("drawing", size, "image", initial=done) as bar:
        for number in finished:
            bar.update(len(job.batches[number]))


def _failures(scored: Sequence[dict[str, Any]], gate: Gate) -> str:
    """How many images missed each of the gate's limits."""
    counts = Counter(
        option for line in scored for option in missed_limits(line["scores"], gate)
    )
    texts = {
        "--min-fill": f"changed under {gate.min_fill:.0%} of the mask",
        "--max-distance": "farther from training defects than these are from each other"
        if gate.max_distance is None
        else f"farther than {gate.max_distance:g} from training defects",
        "--min-background": f"with a background under {gate.min_background:g} dB",
    }
    return "; ".join(
        f"{counts[option]} {text} ({option})"
        for option, text in texts.items()
        if counts[option]
    )


def _print_summary(
    out: Path, gate: Gate, lines: list[dict[str, Any]], left_out: Sequence[str]
) -> None:
    """Print what was drawn and, last, where it is."""
    failed = [line for line in lines if "error" in line]
    scored = [line for line in lines if "error" not in line]
    kept = [line for line in lines if line["image"] is not None]
    rejected = sum(not line["scores"]["passed"] for line in scored)
    if left_out:
        print(
            f"{len(left_out)} found no place for their defect (--masks same or file may); the "
            f"first: {left_out[0]}"
        )
    if failed:
        print(f"{len(failed)} could not be drawn; the first: {failed[0]['error']}")
    if gate.gate != "off" and rejected:
        action = (
            "the best try of each is kept, marked in the manifest"
            if gate.gate == "keep"
            else f"the best try of each is in {out / 'rejected'}"
        )
        print(f"{rejected} of {len(scored)} did not pass the gate: {action}")
        print(f"  {_failures(scored, gate)}")
    if not kept and scored and gate.gate == "reject":
        print("None passed; --gate keep with another --out keeps them in the set")
    if scored:
        print(f"Look at {out / 'report' / 'index.html'}")
    print(f"{counted(len(kept), 'image')} with masks: {os.fspath(out)}")
