"""From training masks to learned ones: each category and defect in turn, resumable.

    MASKS/run.json   the settings; other ones are not mixed in
    MASKS/training/  the state of what is being learned
    MASKS/events/    what goes to MLflow, sent or not yet
    MASKS/mlflow.db  MLflow, unless a server was named

What lies in MASKS otherwise: `acontrol.masks.store`.
"""

import json
import os
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from tqdm import tqdm

from acontrol._version import __version__
from acontrol.data.mvtec import LabelledImage, open_folder
from acontrol.errors import UserError
from acontrol.masks.inversion import MaskObjective, MaskWords, draw_masks, picture_side
from acontrol.masks.sampler import DefectType
from acontrol.masks.settings import Inversion, MaskCard, MasksConfig
from acontrol.masks.shape import Mask
from acontrol.masks.statistics import Limits
from acontrol.masks.store import CARD, read_card, write_learned
from acontrol.networks import locate
from acontrol.networks.load import BaseModels, load_base
from acontrol.reporting import contact_sheet
from acontrol.runs import storage
from acontrol.runs.stage import StageContext, run_stage
from acontrol.runs.tracking import Tracker
from acontrol.seeding import derive_seed

RUN, TRAINING = "run.json", "training"


def claim(config: MasksConfig, root: Path, digest: str) -> dict[str, Any]:
    """Make the output ours, or see that it is.

    Returns:
        What it notes: settings, and the MLflow run if there is one.

    Raises:
        UserError: If it holds anything else, or masks of other settings.
    """
    free = {"output", "category", "defect", "save_every", "tracking_uri", "experiment"}
    settings = config.model_dump(mode="json", exclude=free | {"base", "vlm_path"})
    settings |= {"data": str(root.resolve()), "base_digest": digest}
    file = config.output / RUN
    begun = (config.output / TRAINING).exists() or any(config.output.glob(f"*/*/{CARD}"))
    if not (file.exists() and begun):  # A run that came to nothing binds nobody.
        if not file.exists() and config.output.exists() and any(config.output.iterdir()):
            raise UserError(f"{config.output} is not empty, and holds no learned masks")
        config.output.mkdir(parents=True, exist_ok=True)
        noted: dict[str, Any] = {"settings": settings, "mlflow_run": None}
        _write(file, noted)
        return noted
    noted = json.loads(file.read_text())
    other = sorted(name for name in settings if noted["settings"].get(name) != settings[name])
    if other:
        name = other[0]
        raise UserError(
            f"{config.output} holds masks learned with another {name} "
            f"({noted['settings'].get(name)}, now {settings[name]}): name a new --output"
        )
    return noted


def open_context(
    config: MasksConfig, noted: dict[str, Any], device: torch.device
) -> StageContext:
    """Open the MLflow run, or make it and note it.

    Raises:
        UserError: If the tracking server cannot be reached or refuses.
    """
    output = config.output.resolve()
    uri = config.tracking_uri or os.environ.get("MLFLOW_TRACKING_URI")
    tracker = Tracker.open(
        uri or f"sqlite:///{output / 'mlflow.db'}",
        config.experiment,
        config.output.name,
        noted["mlflow_run"],
        output,
        artifacts=None if uri else output / "artifacts",
        resolved=noted["settings"],
    )
    if noted["mlflow_run"] is None:
        _write(config.output / RUN, noted | {"mlflow_run": tracker.run_id})
    return StageContext(
        config.output / TRAINING, tracker, config.seed, device, config.save_every, config.steps
    )


def _write(file: Path, noted: Mapping[str, Any]) -> None:
    storage.write(file, f"{json.dumps(noted, indent=1)}\n".encode())


_SHOWN = 12  # Masks in a row of the sheet.


def learn_masks(config: MasksConfig, root: Path) -> list[MaskCard]:
    """Learn the masks of every category and defect asked for.

    The same call goes on where an earlier one stopped; what is finished is kept.

    Args:
        config: Every setting.
        root: Folder in MVTec AD's layout.

    Returns:
        What there is, of each category and defect asked for.

    Raises:
        UserError: If there are no such masks, or too few; if the output holds anything else,
            or masks of other settings or another base; or if nothing drawn is like a mask.
    """
    folder = open_folder(root)
    kinds: dict[DefectType, list[LabelledImage]] = {}
    for one in folder.labelled(config.split, category=config.category, defect=config.defect):
        kinds.setdefault((one.category, one.defect), []).append(one)
    if not kinds:
        raise UserError(f"{root}: no masks of defects in split {config.split}")
    masks = {kind: _read(images) for kind, images in kinds.items()}
    digest = locate.digest(config.base_config)
    known = claim(config, root, digest)
    done = {kind: read_card(config.output, *kind) for kind in kinds}
    missing = [kind for kind in kinds if done[kind] is None]
    if not missing:
        return [card for card in done.values() if card is not None]
    device = "cuda" if torch.cuda.is_available() else "cpu"
    base = load_base(config.base_config, device)
    context = open_context(config, known, torch.device(device))
    inversion = Inversion.model_validate(config.model_dump(include=set(Inversion.model_fields)))
    failed = []
    for kind in missing:
        name = _metric_name(kind)
        words = _learn(base, masks[kind], kinds[kind][0].caption, name, inversion, context)
        vectors = words.vectors.detach()
        limits = Limits.of(list(masks[kind].values()))
        found, drawn, rejected = _draw(base, vectors, kind, limits, inversion, config.seed)
        if not found:
            why = ", ".join(f"{reason} {count}x" for reason, count in rejected.most_common())
            failed.append(f"{'/'.join(kind)}: none of {drawn} drawings is like a mask ({why})")
            continue
        sheet = _sheet(list(masks[kind].values()), found)
        context.tracker.log_image(sheet, name, inversion.steps)
        counts = {"drawn": float(drawn), "kept": float(len(found))}
        context.tracker.log_metrics(
            {f"{name}/{k}": v for k, v in counts.items()}, inversion.steps
        )
        context.tracker.flush()
        card = MaskCard(
            acontrol_version=__version__,
            category=kind[0],
            defect=kind[1],
            base=config.base_config,
            base_digest=digest,
            split=config.split,
            training=tuple(masks[kind]),
            template=kinds[kind][0].caption,
            resolution=picture_side(base),
            seed=config.seed,
            inversion=inversion,
            drawn=drawn,
            kept=len(found),
            rejected=dict(rejected),
        )
        write_learned(config.output, card, vectors, found, sheet)
        done[kind] = card
        _clear(context, name)
    context.tracker.finish("FINISHED")
    if failed:
        more = f" (and {len(failed) - 1} more)" if failed[1:] else ""
        raise UserError(f"{failed[0]}{more}; give more --steps, or another --base")
    return [card for card in done.values() if card is not None]


def _read(images: Sequence[LabelledImage]) -> dict[str, Mask]:
    masks = {one.id: one.read_mask() for one in images}
    for one in images:
        if not masks[one.id].any():
            raise UserError(f"{one.mask}: the mask is empty; remove it with its image")
    return masks


def _learn(
    base: BaseModels,
    masks: Mapping[str, Mask],
    caption: str,
    name: str,
    inversion: Inversion,
    context: StageContext,
) -> MaskWords:
    """Train the vectors of one category and defect, from its newest state on."""
    words = MaskWords.of_caption(base, caption, inversion.vectors)
    objective = MaskObjective(base, masks, pool=inversion.pool, seed=context.seed)
    size = inversion.batch_size

    def loss(step: int) -> dict[str, Tensor]:
        return {"loss": objective(words, context.seed, range(step * size, (step + 1) * size))}

    _state(context, name).parent.mkdir(parents=True, exist_ok=True)
    run_stage(
        name,
        words,
        loss,
        context,
        steps=inversion.steps,
        learning_rate=inversion.learning_rate,
    )
    return words


def _draw(
    base: BaseModels,
    vectors: Tensor,
    kind: DefectType,
    limits: Limits,
    inversion: Inversion,
    seed: int,
) -> tuple[list[Mask], int, Counter[str]]:
    """Draw until there are enough that are like training masks.

    Returns:
        Masks, how many were drawn for them, and why others are not there.
    """
    kept: list[Mask] = []
    rejected: Counter[str] = Counter()
    drawn = 0
    name = f"{'/'.join(kind)} drawing"
    with tqdm(total=inversion.count, desc=name, unit="mask", disable=None) as bar:
        while len(kept) < inversion.count and drawn < inversion.tries * inversion.count:
            # Batches are always whole: a mask does not depend on how many are wanted.
            numbers = range(drawn, drawn + inversion.drawing_batch)
            for one in draw_masks(
                base,
                vectors,
                [derive_seed(seed, "drawn mask", *kind, number) for number in numbers],
                steps=inversion.drawing_steps,
                guidance_scale=inversion.guidance_scale,
            ):
                if len(kept) == inversion.count:
                    break
                drawn += 1
                found = limits.check(one)
                if isinstance(found, str):
                    rejected[found] += 1
                else:
                    kept.append(found)
                    bar.update()
    return kept, drawn, rejected


def _sheet(real: Sequence[Mask], drawn: Sequence[Mask]) -> Image.Image:
    """Training masks above, drawn ones below."""
    rows = [real[:_SHOWN]]
    rows += [drawn[first : first + _SHOWN] for first in range(0, 4 * _SHOWN, _SHOWN)]
    pictures = [[Image.fromarray(mask) for mask in row] for row in rows if row]
    captions = ["training masks"] + ["drawn"] * (len(pictures) - 1)
    return contact_sheet(pictures, [""] * _SHOWN, captions, cell_px=96)


def _metric_name(kind: DefectType) -> str:
    """A name that MLflow takes."""
    return "/".join(re.sub(r"[^\w.\- ]", "_", part) for part in kind)


def _clear(context: StageContext, name: str) -> None:
    """Remove a state, and folders that are empty then: another run may be at work beside."""
    _state(context, name).unlink(missing_ok=True)
    for folder in (_state(context, name).parent, context.folder):
        with suppress(OSError):
            folder.rmdir()


def _state(context: StageContext, name: str) -> Path:
    """Where ``run_stage`` keeps a stage of this name."""
    return context.folder / f"{name}.safetensors"
