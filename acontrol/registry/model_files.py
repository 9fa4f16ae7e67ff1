"""Check the folder of a registered model, without executing anything in it."""

import json
import os
import stat
from collections.abc import Collection
from pathlib import Path
from typing import Any, TypeVar

import torch
import yaml
from pydantic import ValidationError
from safetensors import SafetensorError, safe_open

from acontrol.config import Settings
from acontrol.errors import UserError, explain, one_line
from acontrol.registry.card import (
    ALLOWED,
    CARD,
    CONFIG,
    MANIFEST,
    MAX_BYTES,
    MLMODEL,
    REQUIRED,
    WEIGHTS,
    AdapterFile,
    Manifest,
    MlmodelFile,
    ModelCard,
)
from acontrol.runs.storage import sha256

Schema = TypeVar("Schema", bound=Settings)


def check_model(
    folder: Path, manifest_sha256: str | None = None, ignored: Collection[str] = ()
) -> ModelCard:
    """Check every file of a registered model: names, sums, schemas and shapes.

    Args:
        folder: The model's folder.
        manifest_sha256: Of the manifest, as the registry has it; None skips that check.
        ignored: Names of other files that may be there; they are not read.

    Returns:
        The model card.

    Raises:
        UserError: At the first file that is missing, unknown or malformed.
    """
    names = _files(folder) - set(ignored)
    check_names(names)
    manifest = read_json(folder, MANIFEST, Manifest)
    if manifest_sha256 is not None and sha256(folder / MANIFEST) != manifest_sha256:
        raise UserError(f"{MANIFEST}: its sha256 is not the one that the registry has")
    if unlisted := (names - {MANIFEST}) ^ set(manifest.files):
        raise UserError(
            f"{MANIFEST}: {min(unlisted)!r} is either not listed or missing; nothing is used"
        )
    for name, expected in sorted(manifest.files.items()):
        path = folder / name
        if path.stat().st_size != expected.size or sha256(path) != expected.sha256:
            raise UserError(f"{name}: its sha256 is not the one in {MANIFEST}")
    _check_mlmodel(folder)
    config = read_json(folder, CONFIG, AdapterFile)
    card = read_json(folder, CARD, ModelCard)
    if card.adapter != config.card:
        raise UserError(f"{CARD}: describes another adapter than {CONFIG}")
    if card.weights_sha256 != manifest.files[WEIGHTS].sha256:
        raise UserError(f"{CARD}: weights_sha256 is not that of {WEIGHTS}")
    check_weights(folder / WEIGHTS, config)
    return card


def check_names(names: Collection[str]) -> None:
    """Refuse a model with an unknown file, or without a required one.

    Raises:
        UserError: Names the file.
    """
    for name in sorted(names):
        if name not in ALLOWED:
            raise UserError(f"{name!r} is not a file of an acontrol model; nothing is used")
    if missing := REQUIRED - set(names):
        raise UserError(f"the model has no {min(missing)}")


def check_weights(path: Path, config: AdapterFile) -> None:
    """Compare a safetensors file's header with the adapter's config.

    Raises:
        UserError: If it is not a safetensors file, or a name, shape or type differs.
    """
    from acontrol.method.sga import SemanticAdapter  # Only here: it imports diffusers.

    with torch.device("meta"):
        adapter = SemanticAdapter(config.layers, config.semantic_dim, config.mode)
    expected = {name: list(value.shape) for name, value in adapter.state_dict().items()}
    try:
        with safe_open(path, framework="pt") as weights:
            slices = {name: weights.get_slice(name) for name in weights.keys()}  # noqa: SIM118
            shapes = {name: value.get_shape() for name, value in slices.items()}
            dtypes = {value.get_dtype() for value in slices.values()}
    except (SafetensorError, OSError) as error:
        raise UserError(f"{WEIGHTS}: is not a safetensors file: {error}") from error
    if shapes != expected or dtypes != {"F32"}:
        raise UserError(
            f"{WEIGHTS}: holds {_few(shapes)} of {', '.join(sorted(dtypes))}, but {CONFIG} "
            f"needs {_few(expected)} of F32"
        )


def read_json(folder: Path, name: str, schema: type[Schema]) -> Schema:
    """Read and check a JSON file.

    Raises:
        UserError: If it is missing or does not fit the schema.
    """
    try:
        return schema.model_validate_json((folder / name).read_bytes())
    except FileNotFoundError:
        raise UserError(f"{folder / name}: does not exist") from None
    except ValidationError as error:
        raise UserError(f"{name}: {explain(error)[:500]}") from error


class _PlainLoader(yaml.SafeLoader):
    """YAML without aliases, with which a small file can become a huge object."""

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.AliasEvent):
            raise yaml.YAMLError("it has an alias")
        return super().compose_node(parent, index)


def _check_mlmodel(folder: Path) -> None:
    try:
        # _PlainLoader is a SafeLoader: it makes plain values only.
        content = yaml.load((folder / MLMODEL).read_bytes(), Loader=_PlainLoader)
        # Through JSON, where a YAML date is an error.
        MlmodelFile.model_validate_json(json.dumps(content))
    except ValidationError as error:
        raise UserError(f"{MLMODEL}: {explain(error)[:500]}") from error
    except (yaml.YAMLError, TypeError, ValueError, RecursionError) as error:
        raise UserError(f"{MLMODEL}: {one_line(error)}") from error


def _files(folder: Path) -> set[str]:
    """Names of all files under a folder; refuses links and files that are too large."""
    names = set()
    for parent, folders, files in os.walk(folder):
        for name in [*folders, *files]:
            path = Path(parent, name)
            relative = path.relative_to(folder).as_posix()
            status = path.lstat()
            if stat.S_ISLNK(status.st_mode):
                raise UserError(f"{relative!r} is a symbolic link; nothing is used")
            if stat.S_ISDIR(status.st_mode):
                if not any(allowed.startswith(f"{relative}/") for allowed in ALLOWED):
                    raise UserError(f"{relative!r} is not a folder of an acontrol model")
                continue
            if not stat.S_ISREG(status.st_mode):
                raise UserError(f"{relative!r} is not a regular file")
            if status.st_size > MAX_BYTES.get(relative, 2**63):
                raise UserError(f"{relative!r} is too large: {status.st_size} bytes")
            names.add(relative)
    return names


def _few(shapes: dict[str, list[int]]) -> str:
    shown = [f"{name} {shape}" for name, shape in sorted(shapes.items())[:3]]
    return ", ".join(shown) + (", ..." if len(shapes) > 3 else "")
