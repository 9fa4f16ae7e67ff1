"""Assemble a registered model's folder."""

import json
import platform
import shutil
from pathlib import Path

from mlflow.models import Model, ModelSignature
from mlflow.types import ColSpec, ParamSchema, ParamSpec, Schema
from PIL import Image, ImageDraw

from acontrol.registry.card import (
    CARD,
    CONFIG,
    EXAMPLE,
    GRID,
    LOADER,
    MANIFEST,
    MLMODEL,
    README,
    SERVING_EXAMPLE,
    WEIGHTS,
    FileSum,
    Manifest,
    ModelCard,
)
from acontrol.registry.model_files import check_model
from acontrol.registry.readme import readme
from acontrol.registry.requests import COLUMNS, IMAGES, ServedSampling, encode
from acontrol.runs.storage import sha256


def package(folder: Path, adapter: Path, card: ModelCard, grid: Path | None) -> str:
    """Write a model's folder and check it as those who pull it will.

    Args:
        folder: Empty folder to fill.
        adapter: The adapter's folder.
        card: The model card.
        grid: The run's last sample grid, a PNG.

    Returns:
        Sha256 of the manifest, which has the digests of all other files.

    Raises:
        UserError: If the adapter does not fit its own config.
    """
    (folder / CONFIG).parent.mkdir()
    for name in (CONFIG, WEIGHTS):
        shutil.copyfile(adapter / Path(name).name, folder / name)
    if grid is not None:
        shutil.copyfile(grid, folder / GRID)
    (folder / CARD).write_text(card.model_dump_json(indent=1))
    (folder / README).write_text(readme(card, None if grid is None else GRID), encoding="utf-8")
    example = _example(card)
    (folder / EXAMPLE).write_text(json.dumps(example))
    (folder / SERVING_EXAMPLE).write_text(json.dumps({"dataframe_split": example}))
    _write_mlmodel(folder, card)
    sums = {
        file.relative_to(folder).as_posix(): FileSum(
            size=file.stat().st_size, sha256=sha256(file)
        )
        for file in sorted(folder.rglob("*"))
        if file.is_file()
    }
    (folder / MANIFEST).write_text(Manifest(files=sums).model_dump_json(indent=1))
    check_model(folder)
    return sha256(folder / MANIFEST)


def _signature(card: ModelCard) -> ModelSignature:
    """Inputs, outputs and parameters of a served model."""
    defaults = ServedSampling(semantic_scale=card.adapter.sga.scale)
    types = {int: "long", float: "double", bool: "boolean"}
    return ModelSignature(
        Schema([ColSpec("long" if name == "seed" else "string", name) for name in COLUMNS]),
        Schema([ColSpec("string", "image")]),
        ParamSchema(
            [
                ParamSpec(name, types[type(value)], value)
                for name, value in vars(defaults).items()
            ]
        ),
    )


def _write_mlmodel(folder: Path, card: ModelCard) -> None:
    model = Model(
        signature=_signature(card),
        saved_input_example_info={
            "artifact_path": EXAMPLE,
            "serving_input_path": SERVING_EXAMPLE,
            "type": "dataframe",
            "pandas_orient": "split",
        },
    )
    # Like mlflow.pyfunc.add_to_model, whose import warns about MLflow's own type hints.
    model.add_flavor(
        "python_function", loader_module=LOADER, python_version=platform.python_version()
    )
    model.save(str(folder / MLMODEL))


def _example(card: ModelCard) -> dict[str, list[object]]:
    """An example request: a dark line on grey, to be drawn in another place."""
    size = card.adapter.resolution
    grey = Image.new("RGB", (size, size), (150, 150, 150))
    reference, mask, place = grey.copy(), Image.new("1", grey.size), Image.new("1", grey.size)
    line = (size // 4, size // 4, size * 3 // 4, size // 2)
    ImageDraw.Draw(reference).line(line, (40, 40, 40), size // 16)
    ImageDraw.Draw(mask).line(line, 1, size // 16)
    ImageDraw.Draw(place).rectangle((size // 3, size // 3, size * 2 // 3, size // 2), 1)
    images = dict(zip(IMAGES, (reference, mask, grey, place), strict=True))
    entries: dict[str, object] = {
        "prompt": "a photo with a crack",
        "reference_phrase": "a crack",
        "seed": 0,
        **{name: encode(image) for name, image in images.items()},
    }
    return {"columns": list(COLUMNS), "data": [[entries[name] for name in COLUMNS]]}
