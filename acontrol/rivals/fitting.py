"""Fit a method to the training defects, resumable.

    OUT/run.json      the settings, which a rerun must share
    OUT/training/     the newest state
    OUT/events/       events for MLflow, sent or queued
    OUT/pytorch_lora_weights.safetensors, or OUT/anodiff.safetensors
    OUT/fitted.json   `FittedCard`, written last

A rerun of a finished one does nothing.
"""

import json
import shutil
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor, nn

from acontrol._version import __version__
from acontrol.data.lock import only_launch, refuse_file, refuse_if_locked
from acontrol.data.mvtec import LabelledImage, MvtecFolder, open_folder
from acontrol.data.overlap import refuse_overlap
from acontrol.data.split import refuse_mix
from acontrol.errors import UserError, explain
from acontrol.networks import locate
from acontrol.networks.load import load_base
from acontrol.rivals import anodiff, lora
from acontrol.rivals.objective import DefectObjective, TrainingImages
from acontrol.rivals.settings import Fit, FitConfig, FitMethod, FittedCard
from acontrol.runs import guard, storage
from acontrol.runs.inputs import DataInput
from acontrol.runs.server import tracking_store
from acontrol.runs.stage import StageContext, run_stage
from acontrol.runs.tracking import Tracker
from acontrol.seeding import derive_seed

RUN, TRAINING, CARD = "run.json", "training", "fitted.json"
WEIGHTS: dict[FitMethod, str] = {"lora": lora.WEIGHTS, "anodiff": anodiff.WEIGHTS}


def fit(config: FitConfig, root: Path) -> FittedCard:
    """Fit a method; a repeated call continues where the last one stopped.

    Args:
        config: The settings.
        root: Folder in MVTec AD's layout.

    Raises:
        UserError: If the data is bad; or if the output holds anything else, or weights of
            other settings or another base.
    """
    if config.method == "lora":
        lora.require("--method lora")
    refuse_overlap(config.output, "--output", {"ROOT": root})
    refuse_if_locked(config.output)
    folder = open_folder(root, config.captions, split_file=config.split_file)
    images = folder.labelled(config.split)
    if not images:
        raise UserError(f"{root}: no masks of defects in split {config.split}")
    data = folder.trained_on(config.split)
    digest = locate.digest(config.base_config)
    seen = locate.trained_on(config.base_config)
    refuse_mix(f"the base {config.base}", seen, f"the data {root}", data)
    settings = Fit.model_validate(config.model_dump(include=set(Fit.model_fields)))
    inputs = DataInput.of_folder(folder, config.split, "training")
    captions = [[image.key, image.caption] for image in images]
    record = _claim(
        config.output,
        settings.model_dump(mode="json", exclude_none=True)
        | {"base_digest": digest, "data": inputs.digest, "captions": captions},
    )
    with only_launch(config.output):
        if (config.output / CARD).is_file():
            return read_fitted(config.output)[0]
        return _fit(config, settings, record, folder, images, inputs, digest)


def _fit(
    config: FitConfig,
    settings: Fit,
    record: dict[str, Any],
    folder: MvtecFolder,
    images: tuple[LabelledImage, ...],
    inputs: DataInput,
    digest: str,
) -> FittedCard:
    device = "cuda" if torch.cuda.is_available() else "cpu"
    base = load_base(config.base_config, device)
    resolution = int(base.unet.config.sample_size) * base.latent_shape[1]
    objective = DefectObjective(
        TrainingImages(base, images, settings.crop, resolution, settings.target_px), settings
    )
    store = tracking_store(config.tracking_uri, config.output.resolve(), record["mlflow_uri"])
    tracker = Tracker.open(
        store,
        config.experiment,
        f"{settings.method} {config.output.name}",
        record["mlflow_run"],
        config.output.resolve(),
        resolved={name: record["settings"].get(name) for name in Fit.model_fields},
        data=inputs,
    )
    if record["mlflow_run"] is None:
        opened = {"mlflow_run": tracker.run_id, "mlflow_uri": store.uri}
        _write(config.output / RUN, record | opened)
    training = config.output / TRAINING
    training.mkdir(exist_ok=True)
    context = StageContext(
        training, tracker, settings.seed, torch.device(device), config.save_every, 0
    )
    size = settings.batch_size
    seed = derive_seed(settings.seed, settings.method)
    types = anodiff.types_of(images) if settings.method == "anodiff" else {}
    learned: nn.Module = base.unet
    conditions = None
    if settings.method == "lora":
        lora.add_matrices(base.unet, settings.rank, seed)
    else:
        embedding = anodiff.AnomalyEmbedding.of_captions(
            base, list(types.values()), settings.vectors, seed
        ).to(device)
        learned = embedding
        order = {name: number for number, name in enumerate(types)}
        kinds = [order[f"{image.category}/{image.defect}"] for image in images]

        def conditions(numbers: list[int]) -> Tensor:
            masks = objective.images.masks[numbers].to(device)
            return embedding.conditions(base, [kinds[number] for number in numbers], masks)

    def loss(step: int) -> dict[str, Tensor]:
        positions = range(step * size, (step + 1) * size)
        return {"loss": objective(positions, conditions)}

    run_stage(
        settings.method,
        learned,
        loss,
        context,
        steps=settings.steps,
        learning_rate=settings.learning_rate,
    )
    tensors = learned.state_dict() if types else lora.matrices(base.unet)
    tensors = {name: value.detach().cpu().contiguous() for name, value in tensors.items()}
    weights = config.output / WEIGHTS[settings.method]
    storage.write(weights, save(tensors, metadata={"format": "pt"}))
    card = FittedCard(
        acontrol_version=__version__,
        base=config.base_config,
        base_digest=digest,
        seen=folder.trained_on(config.split),
        training=tuple(image.key for image in images),
        resolution=resolution,
        fit=settings,
        types=tuple(types),
        weights_sha256=storage.sha256(weights),
    )
    storage.write(config.output / CARD, f"{card.model_dump_json(indent=1)}\n".encode())
    tracker.finish("FINISHED")
    shutil.rmtree(training)
    return card


def read_fitted(folder: Path) -> tuple[FittedCard, dict[str, Tensor]]:
    """The card and the weights of a fitted method.

    Raises:
        UserError: If there are none, or they are damaged.
    """
    try:
        card = FittedCard.model_validate_json((folder / CARD).read_bytes())
        file = folder / WEIGHTS[card.fit.method]
        weights = load(file.read_bytes())
    except ValidationError as error:
        raise UserError(f"{folder / CARD}: {explain(error)}") from error
    except (OSError, SafetensorError) as error:
        unfinished = (folder / RUN).is_file() and not (folder / CARD).exists()
        reason = "is not finished: give acontrol fit the same command again"
        if not unfinished:
            reason = f"holds no fitted method ({CARD} and its weights); acontrol fit writes one"
        raise UserError(f"{folder}: {reason}") from error
    if storage.sha256(file) != card.weights_sha256:
        raise UserError(
            f"{folder}: its weights are damaged (another checksum than was recorded); copy "
            "the folder again"
        )
    return card, weights


def _claim(output: Path, settings: dict[str, Any]) -> dict[str, Any]:
    """Claim the output folder, or check that it has these settings; returns its record."""
    refuse_file(output)
    file = output / RUN
    if not file.is_file():
        if output.exists() and any(output.iterdir()):
            raise UserError(f"{output} is not empty, and holds no fitted method")
        output.mkdir(parents=True, exist_ok=True)
        record = {"settings": settings, "mlflow_run": None, "mlflow_uri": None}
        _write(file, record)
        return record
    record = json.loads(file.read_text())
    guard.refuse(output, guard.changes(record["settings"], settings))
    return record


def _write(file: Path, record: dict[str, Any]) -> None:
    storage.write(file, f"{json.dumps(record, indent=1)}\n".encode())
