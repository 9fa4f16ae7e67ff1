"""Draw a plan batch by batch, and write it as a labelled data set with its manifest."""

import hashlib
import json
import os
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

import torch
from PIL import Image
from pydantic import ValidationError

from acontrol import base as base_models
from acontrol.config import AdapterCard, Settings, UserError, explain
from acontrol.data.pixels import read_image, read_mask
from acontrol.generation.plan import Planned
from acontrol.pipeline import AnomalyControlPipeline
from acontrol.sga import SemanticAdapter

MANIFEST_NAME = "manifest.jsonl"


class DrawSettings(Settings):
    """How an image is sampled; recorded in the manifest."""

    num_inference_steps: int = 30
    guidance_scale: float = 7.5
    semantic_scale: float | None = None
    composite: bool = True


def load_pipeline(
    model: str, base_path: str | None = None, device: str | torch.device = "cpu"
) -> tuple[AnomalyControlPipeline, str]:
    """Load a run's or an adapter's folder with the base it was trained on.

    Args:
        model: The run's output folder, or an adapter folder.
        base_path: Where the base is now, if it has moved.
        device: Where to put it.

    Returns:
        The pipeline, and a digest of adapter and base together.

    Raises:
        UserError: If there is no adapter, its JSON is not ours, or the base is another one.
    """
    folder = Path(model)
    if (folder / "adapter" / "config.json").is_file():
        folder = folder / "adapter"
    if (folder / "run.json").is_file():
        raise UserError(f"--model {model}: this run has no checkpoint yet")
    if not (folder / "config.json").is_file():
        raise UserError(
            f"--model {model}: neither a run's output folder (adapter/config.json) nor an "
            "adapter folder (config.json)"
        )
    try:
        adapter = SemanticAdapter.from_pretrained(folder, use_safetensors=True)
        card = AdapterCard.model_validate(adapter.config.card)
    except ValidationError as error:
        raise UserError(f"{folder}/config.json: {explain(error)}") from error
    except (OSError, ValueError, TypeError, RuntimeError) as error:
        reason = " ".join(str(error).split())[:300]
        raise UserError(f"{folder} is no adapter of this version: {reason}") from error
    config = card.base
    if base_path is not None:
        config = config.model_copy(update={"path": base_path})
    found = base_models.digest(config)
    if found != card.base_digest:
        raise UserError(
            f"the base at {config.path} is not the one that {folder} was trained on "
            "(its files have another digest): name the right one with --base-path"
        )
    pipeline = AnomalyControlPipeline.from_base(base_models.load_base(config), adapter.eval())
    weights = folder / "diffusion_pytorch_model.safetensors"
    digest = hashlib.sha256(weights.read_bytes() + found.encode()).hexdigest()
    return pipeline.to(device), digest


def draw(
    pipeline: AnomalyControlPipeline,
    planned: Sequence[Planned],
    settings: DrawSettings,
    batch_size: int,
) -> Iterator[tuple[Planned, Image.Image, Image.Image]]:
    """Draw the plan in batches of ``batch_size``: yields (plan, image, mask)."""
    for start in range(0, len(planned), batch_size):
        batch = planned[start : start + batch_size]
        normals = [Image.fromarray(read_image(one.normal)) for one in batch]
        references = [Image.fromarray(read_image(one.reference.image)) for one in batch]
        reference_masks = [
            Image.fromarray(read_mask(one.reference.mask, image.size))
            for one, image in zip(batch, references, strict=True)
        ]
        masks = [one.mask.image() for one in batch]
        images = pipeline(
            [one.prompt for one in batch],
            references,
            reference_masks,
            [one.reference.phrase for one in batch],
            normals,
            masks,
            num_inference_steps=settings.num_inference_steps,
            guidance_scale=settings.guidance_scale,
            semantic_scale=settings.semantic_scale,
            composite=settings.composite,
            generator=[torch.Generator().manual_seed(one.seed) for one in batch],
        ).images
        yield from zip(batch, images, masks, strict=True)


def write_dataset(
    out: Path,
    pipeline: AnomalyControlPipeline,
    digest: str,
    planned: Sequence[Planned],
    settings: DrawSettings,
    *,
    roots: tuple[Path, Path],
    batch_size: int,
    progress: Callable[[Iterable[int]], Iterable[int]] = iter,
) -> None:
    """Draw the plan into ``out`` in MVTec AD's layout, with a JSONL manifest.

    Everything is drawn into a folder beside ``out`` and renamed at the end.

    Args:
        out: Folder to create; must not exist or be empty.
        pipeline: Draws.
        digest: Of the model, for the manifest.
        planned: What to draw.
        settings: How.
        roots: Folders of the defects and of the normals; the manifest's paths start there.
        batch_size: Images drawn together; part of the manifest, since it can change a pixel.
        progress: Wraps the running number of the images, to show a progress bar.

    Raises:
        UserError: If ``out`` holds something, or an image or mask is bad.
    """
    check_empty(out)
    check_inputs(pipeline, planned)
    out.parent.mkdir(parents=True, exist_ok=True)
    shared = {
        "model": digest,
        "settings": settings.model_dump(),
        "batch_size": batch_size,
        "dtype": str(pipeline.unet.dtype).removeprefix("torch."),
        "device": pipeline.device.type,
        "threads": torch.get_num_threads(),
        "resolution": pipeline.card.resolution,
    }
    with tempfile.TemporaryDirectory(prefix=f".{out.name}.partial-", dir=out.parent) as scratch:
        folder = Path(scratch, "images")
        lines = []
        drawings = draw(pipeline, planned, settings, batch_size)
        for number in progress(range(len(planned))):
            one, image, mask = next(drawings)
            category, defect, name = one.name
            image_path = Path(category, "test", defect, f"{name}.png")
            mask_path = Path(category, "ground_truth", defect, f"{name}_mask.png")
            for path, picture in ((image_path, image), (mask_path, mask.convert("L"))):
                (folder / path).parent.mkdir(parents=True, exist_ok=True)
                picture.save(folder / path)
            facts = {
                "image": image_path.as_posix(),
                "mask": mask_path.as_posix(),
                "category": category,
                "defect": defect,
                "normal": one.normal.relative_to(roots[1]).as_posix(),
                "reference": one.reference.image.relative_to(roots[0]).as_posix(),
                "mask_source": one.mask.source,
                "mask_origin": _named(one.mask.origin, roots[0]),
                "prompt": one.prompt,
                "reference_phrase": one.reference.phrase,
                "seed": one.seed,
                "batch": number // batch_size,
                **shared,
            }
            lines.append(json.dumps(facts, ensure_ascii=False))
        (folder / MANIFEST_NAME).write_text("\n".join(lines) + "\n")
        if out.exists():
            out.rmdir()
        os.rename(folder, out)


def _named(file: Path | None, root: Path) -> str | None:
    """A file within the data by its place there, any other by its name."""
    if file is None:
        return None
    return file.relative_to(root).as_posix() if file.is_relative_to(root) else file.name


def check_inputs(pipeline: AnomalyControlPipeline, planned: Sequence[Planned]) -> None:
    """Read every file of a plan and every phrase once, before the first image is drawn.

    Raises:
        UserError: At the first that is bad.
    """
    for normal in sorted({one.normal for one in planned}):
        read_image(normal)
    for source in {one.reference.key: one.reference for one in planned}.values():
        height, width = read_image(source.image).shape[:2]
        read_mask(source.mask, (width, height))
    for phrase in sorted({one.reference.phrase for one in planned}):
        try:
            pipeline.semantics.read([phrase])
        except ValueError as error:
            raise UserError(str(error)) from error


def check_empty(out: Path) -> None:
    """Refuse to write into a folder that holds something.

    Raises:
        UserError: If it does.
    """
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"{out} exists and is not empty: name another --out")
