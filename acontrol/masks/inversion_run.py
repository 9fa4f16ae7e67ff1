"""Learn masks for each category and defect in turn, resumable.

    MASKS/run.json   the settings, which a rerun must share
    MASKS/training/  the state of the current embedding
    MASKS/events/    events for MLflow, sent or queued

The masks themselves: `acontrol.masks.store`.
"""

import json
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from acontrol._version import __version__
from acontrol.config import THIRD
from acontrol.data.lock import only_launch, refuse_file, refuse_if_locked
from acontrol.data.mvtec import LabelledImage, open_folder
from acontrol.data.overlap import refuse_overlap
from acontrol.data.split import refuse_mix
from acontrol.errors import UserError
from acontrol.masks.inversion import MaskObjective, MaskWords, draw_masks, picture_side
from acontrol.masks.sampler import DefectType
from acontrol.masks.settings import Inversion, MaskCard, MasksConfig
from acontrol.masks.shape import Mask
from acontrol.masks.statistics import Limits
from acontrol.masks.store import finished, read_card, write_learned
from acontrol.networks import locate
from acontrol.networks.load import BaseModels, load_base
from acontrol.progress import progress
from acontrol.reporting import contact_sheet
from acontrol.runs import guard, storage
from acontrol.runs.inputs import DataInput
from acontrol.runs.server import tracking_store
from acontrol.runs.stage import StageContext, run_stage
from acontrol.runs.tracking import Tracker
from acontrol.seeding import derive_seed

RUN, TRAINING = "run.json", "training"
_SHOWN = 12  # Masks in a row of the sheet.


def claim(
    config: MasksConfig, root: Path, digest: str, split_digest: str = THIRD
) -> dict[str, Any]:
    """Claim the output folder, or check that it has these settings.

    Returns:
        Its record: the settings, and the MLflow run or None.

    Raises:
        UserError: If it holds anything else, or masks of other settings.
    """
    free = {"output", "category", "defect", "save_every", "tracking_uri", "experiment"}
    settings = config.model_dump(mode="json", exclude=free | {"base", "vlm_path", "split_file"})
    settings |= {"data": str(root.resolve()), "base_digest": digest}
    settings |= {"split_digest": split_digest}
    refuse_file(config.output)
    file = config.output / RUN
    begun = (config.output / TRAINING).exists() or bool(finished(config.output))
    if not (file.exists() and begun):  # A run without any result does not bind the next.
        if not file.exists() and config.output.exists() and any(config.output.iterdir()):
            raise UserError(f"{config.output} is not empty, and holds no learned masks")
        config.output.mkdir(parents=True, exist_ok=True)
        record: dict[str, Any] = {"settings": settings, "mlflow_run": None, "mlflow_uri": None}
        _write(file, record)
        return record
    record = json.loads(file.read_text())
    # Earlier versions had no other.
    before = {"precision": "float32", "split_digest": THIRD, **record["settings"]}
    guard.refuse(config.output, guard.changes(before, settings))
    return record


def open_context(
    config: MasksConfig, record: dict[str, Any], device: torch.device, data: DataInput
) -> StageContext:
    """Open the MLflow run; create and record it the first time.

    Raises:
        UserError: If the tracking server cannot be reached or refuses.
    """
    output = config.output.resolve()
    store = tracking_store(config.tracking_uri, output, record.get("mlflow_uri"))
    tracker = Tracker.open(
        store,
        config.experiment,
        f"masks {output.name}",
        record["mlflow_run"],
        output,
        resolved=record["settings"],
        data=data,
    )
    if record["mlflow_run"] is None:
        opened = {"mlflow_run": tracker.run_id, "mlflow_uri": store.uri}
        _write(config.output / RUN, record | opened)
    return StageContext(
        config.output / TRAINING, tracker, config.seed, device, config.save_every, config.steps
    )


def _write(file: Path, record: Mapping[str, Any]) -> None:
    storage.write(file, f"{json.dumps(record, indent=1)}\n".encode())


def learn_masks(config: MasksConfig, root: Path) -> list[MaskCard]:
    """Learn the masks of every selected category and defect.

    A repeated call continues where the last one stopped; finished defects are kept.

    Args:
        config: The settings.
        root: Folder in MVTec AD's layout.

    Returns:
        The cards of all selected categories and defects.

    Raises:
        UserError: If the masks are missing or too few; if the output holds anything else, or
            masks of other settings or another base; or if no drawing resembles a mask.
    """
    refuse_overlap(config.output, "--output", {"ROOT": root})
    refuse_if_locked(config.output)
    images: dict[DefectType, list[LabelledImage]] = {}
    folder = open_folder(root, split_file=config.split_file)
    data = folder.trained_on(config.split)
    for image in folder.labelled(config.split, config.category, config.defect):
        images.setdefault((image.category, image.defect), []).append(image)
    if not images:
        raise UserError(f"{root}: no masks of defects in split {config.split}")
    masks = {
        defect_type: {image.id: image.read_mask() for image in group}
        for defect_type, group in images.items()
    }
    digest = locate.digest(config.base_config)
    seen = locate.trained_on(config.base_config)
    refuse_mix(f"the base {config.base}", seen, f"the data {root}", data)
    record = claim(config, root, digest, data.split_digest)
    with only_launch(config.output):
        cards = {defect_type: read_card(config.output, *defect_type) for defect_type in images}
        missing = [defect_type for defect_type, card in cards.items() if card is None]
        if missing:
            device = "cuda" if torch.cuda.is_available() else "cpu"
            base = load_base(config.base_config, device, getattr(torch, config.precision))
            inputs = DataInput.of_folder(folder, config.split, "training")
            context = open_context(config, record, torch.device(device), inputs)
            failures = []
            for defect_type in missing:
                caption = images[defect_type][0].caption
                card = _learn(
                    config,
                    base,
                    digest,
                    data.split_digest,
                    defect_type,
                    masks[defect_type],
                    caption,
                    context,
                )
                if isinstance(card, str):
                    failures.append(card)
                else:
                    cards[defect_type] = card
            context.tracker.finish("FINISHED")
            if failures:
                more = f" (and {len(failures) - 1} more)" if failures[1:] else ""
                raise UserError(f"{failures[0]}{more}; give more --steps, or another --base")
    return [card for card in cards.values() if card is not None]


def _learn(
    config: MasksConfig,
    base: BaseModels,
    digest: str,
    split_digest: str,
    defect_type: DefectType,
    masks: Mapping[str, Mask],
    caption: str,
    context: StageContext,
) -> MaskCard | str:
    """Learn and write the masks of one category and defect; why not if none is kept."""
    name = _metric_name(defect_type)
    words = MaskWords.of_caption(base, caption, config.vectors)
    objective = MaskObjective(base, masks, pool=config.pool, seed=config.seed)
    size = config.batch_size

    def loss(step: int) -> dict[str, Tensor]:
        return {"loss": objective(words, config.seed, range(step * size, (step + 1) * size))}

    _state(context, name).parent.mkdir(parents=True, exist_ok=True)
    run_stage(
        name, words, loss, context, steps=config.steps, learning_rate=config.learning_rate
    )
    vectors = words.vectors.detach()
    kept, drawn, rejected = _draw(config, base, vectors, defect_type, list(masks.values()))
    if not kept:
        reasons = ", ".join(f"{reason} {count}x" for reason, count in rejected.most_common())
        return f"{'/'.join(defect_type)}: none of {drawn} drawings is like a mask ({reasons})"
    sheet = _sheet(list(masks.values()), kept)
    context.tracker.log_image(sheet, name, config.steps)
    counts = {f"{name}/drawn": float(drawn), f"{name}/kept": float(len(kept))}
    context.tracker.log_metrics(counts, config.steps)
    context.tracker.flush()
    card = MaskCard(
        acontrol_version=__version__,
        category=defect_type[0],
        defect=defect_type[1],
        base=config.base_config,
        base_digest=digest,
        split=config.split,
        split_digest=split_digest,
        training=tuple(masks),
        template=caption,
        resolution=picture_side(base),
        seed=config.seed,
        inversion=Inversion.model_validate(
            config.model_dump(include=set(Inversion.model_fields))
        ),
        drawn=drawn,
        kept=len(kept),
        rejected=dict(rejected),
    )
    write_learned(config.output, card, vectors, kept, sheet)
    _clear(context, name)
    return card


def _draw(
    config: MasksConfig,
    base: BaseModels,
    vectors: Tensor,
    defect_type: DefectType,
    training: Sequence[Mask],
) -> tuple[list[Mask], int, Counter[str]]:
    """Draw until enough masks are within the range of training masks.

    Returns:
        The masks, how many were drawn, and why the others were rejected.
    """
    limits = Limits.of(training)
    kept: list[Mask] = []
    rejected: Counter[str] = Counter()
    drawn = 0
    name = f"{'/'.join(defect_type)} drawing"
    with progress(name, config.count, "mask") as bar:
        while len(kept) < config.count and drawn < config.tries * config.count:
            # Batches are always whole: a mask does not depend on how many are wanted.
            numbers = range(drawn, drawn + config.drawing_batch)
            for mask in draw_masks(
                base,
                vectors,
                [derive_seed(config.seed, "drawn mask", *defect_type, n) for n in numbers],
                steps=config.drawing_steps,
                guidance_scale=config.guidance_scale,
            ):
                if len(kept) == config.count:
                    break
                drawn += 1
                result = limits.check(mask)
                if isinstance(result, str):
                    rejected[result] += 1
                else:
                    kept.append(result)
                    bar.update()
    return kept, drawn, rejected


def _sheet(real: Sequence[Mask], drawn: Sequence[Mask]) -> Image.Image:
    """Training masks above, drawn masks below."""
    rows = [real[:_SHOWN]]
    rows += [drawn[first : first + _SHOWN] for first in range(0, 4 * _SHOWN, _SHOWN)]
    pictures = [[Image.fromarray(mask) for mask in row] for row in rows if row]
    captions = ["training masks"] + ["drawn"] * (len(pictures) - 1)
    return contact_sheet(pictures, [""] * _SHOWN, captions, cell_px=96)


def _metric_name(defect_type: DefectType) -> str:
    """A name that MLflow accepts."""
    return "/".join(re.sub(r"[^\w.\- ]", "_", part) for part in defect_type)


def _clear(context: StageContext, name: str) -> None:
    """Remove a state and its folders once empty; another run may still use them."""
    _state(context, name).unlink(missing_ok=True)
    for folder in (_state(context, name).parent, context.folder):
        with suppress(OSError):
            folder.rmdir()


def _state(context: StageContext, name: str) -> Path:
    """Where ``run_stage`` keeps the state of this stage."""
    return context.folder / f"{name}.safetensors"
