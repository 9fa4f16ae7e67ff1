"""The files of a registered model: what each holds, checked without executing anything.

MLmodel                        MLflow's own description (YAML)
README.md                      the model card, for people
card.json                      the model card, for programs
samples.png                    the run's last sample grid, if it drew one
input_example.json, serving_input_example.json
adapter/config.json, adapter/diffusion_pytorch_model.safetensors
manifest.json                  size and sha256 of every file above
"""

import hashlib
import json
import os
import re
import stat
from collections.abc import Collection
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import torch
import yaml
from pydantic import Field, StringConstraints, ValidationError
from safetensors import SafetensorError, safe_open

from acontrol.config import AdapterCard, Settings
from acontrol.errors import UserError, explain

LOADER = "acontrol.registry.serving"
CONFIG, WEIGHTS = "adapter/config.json", "adapter/diffusion_pytorch_model.safetensors"
CARD, MANIFEST, MLMODEL, README, GRID = (
    "card.json",
    "manifest.json",
    "MLmodel",
    "README.md",
    "samples.png",
)
EXAMPLE, SERVING_EXAMPLE = "input_example.json", "serving_input_example.json"
REQUIRED = frozenset(
    {CARD, MANIFEST, MLMODEL, README, EXAMPLE, SERVING_EXAMPLE, CONFIG, WEIGHTS}
)
ALLOWED = REQUIRED | {GRID}
# Stable Diffusion 1.5's adapter is 77 MB; everything else is text and one picture.
MAX_BYTES = dict.fromkeys(ALLOWED, 2**22) | {WEIGHTS: 2**31, GRID: 2**26}

NAME_PATTERN = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,99}$"
ModelName = Annotated[str, StringConstraints(pattern=NAME_PATTERN)]
Sha256 = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]
Text = Annotated[str, StringConstraints(max_length=4000)]
Width = Annotated[int, Field(ge=1, le=4096)]


class ModelCard(Settings):
    """What a registered model is, where it comes from and how good it is."""

    name: ModelName
    adapter: AdapterCard
    weights_sha256: Sha256
    run: Text = Field(description="Id of the MLflow run.")
    commit: Text | None = Field(None, description="Commit of the code that trained it.")
    metrics: dict[Text, float] = Field(description="The run's last value of each metric.")
    licences: list[Text] = Field(description="What is known of licences, a note each.")


class AdapterFile(Settings):
    """An adapter's config.json, as diffusers writes it."""

    class_name: Literal["SemanticAdapter"] = Field(alias="_class_name")
    diffusers_version: Text = Field(alias="_diffusers_version")
    layers: list[tuple[Text, Width]] = Field(min_length=1, max_length=256)
    semantic_dim: Width
    mode: Literal["queries", "pooled"]
    card: AdapterCard


class FileSum(Settings):
    """What a file must be."""

    size: int = Field(ge=0)
    sha256: Sha256


class Manifest(Settings):
    """Every file of a registered model but the manifest itself."""

    files: dict[str, FileSum]


class PyfuncFlavour(Settings):
    """The only flavour: a loader of the installed package, no code and no environment."""

    loader_module: Literal["acontrol.registry.serving"]
    python_version: Text


class Flavours(Settings):
    """The flavours of an MLmodel."""

    python_function: PyfuncFlavour


class Signature(Settings):
    """Inputs, outputs and parameters, each JSON in a string."""

    inputs: Text
    outputs: Text
    params: Text | None = None


class ExampleInfo(Settings):
    """Where the input example is."""

    artifact_path: Literal["input_example.json"]
    serving_input_path: Literal["serving_input_example.json"]
    pandas_orient: Literal["split"]
    type: Literal["dataframe"]


class MlmodelFile(Settings):
    """An MLmodel as MLflow writes it for us; anything more is refused."""

    flavors: Flavours
    is_signature_from_type_hint: Literal[False] = False
    mlflow_version: Text
    model_id: Text | None = None
    model_uuid: Text
    prompts: None = None
    saved_input_example_info: ExampleInfo
    signature: Signature
    type_hint_from_example: Literal[False] = False
    utc_time_created: Text


def check_model_name(name: str) -> None:
    """Refuse a name that a URI, a folder or MLflow could not take.

    Raises:
        UserError: If it is one.
    """
    if not re.match(NAME_PATTERN, name):
        raise UserError(
            f"model name {name!r}: need letters, digits, '.', '_' and '-', the first a letter "
            "or a digit, at most 100"
        )


Checked = TypeVar("Checked", bound=Settings)


def check_model(
    folder: Path, manifest_sha256: str | None = None, ignored: Collection[str] = ()
) -> ModelCard:
    """Check every file of a registered model: names, sums, schemas and shapes.

    Args:
        folder: The model's folder, all of it here.
        manifest_sha256: Of the manifest, as the registry has it; None skips that check.
        ignored: Names of further files that may lie there, and are not looked at.

    Returns:
        The model card.

    Raises:
        UserError: At the first thing that is not as it must be; names it.
    """
    names = _files(folder) - set(ignored)
    check_names(names)
    manifest = read_json(folder, MANIFEST, Manifest)
    if manifest_sha256 is not None and sha256(folder / MANIFEST) != manifest_sha256:
        raise UserError(f"{MANIFEST}: its sha256 is not the one that the registry has")
    if unlisted := (names - {MANIFEST}) ^ set(manifest.files):
        raise UserError(
            f"{MANIFEST}: {min(unlisted)!r} is either not listed or not there; nothing is used"
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
    """Refuse a model with a file that none of ours has, or without one that all have.

    Raises:
        UserError: Names the file.
    """
    for name in sorted(names):
        if name not in ALLOWED:
            raise UserError(f"{name!r} is no file of an acontrol model; nothing is used")
    if missing := REQUIRED - set(names):
        raise UserError(f"the model has no {min(missing)}")


def check_weights(path: Path, config: AdapterFile) -> None:
    """Compare a safetensors file's header with what the adapter's config says.

    Raises:
        UserError: If it is no safetensors file, or a name, shape or type differs.
    """
    from acontrol.method.sga import SemanticAdapter  # Only here: it brings diffusers.

    with torch.device("meta"):
        adapter = SemanticAdapter(config.layers, config.semantic_dim, config.mode)
    expected = {name: list(value.shape) for name, value in adapter.state_dict().items()}
    try:
        with safe_open(path, framework="pt") as weights:
            slices = {name: weights.get_slice(name) for name in weights.keys()}  # noqa: SIM118
            found = {name: one.get_shape() for name, one in slices.items()}
            types = {one.get_dtype() for one in slices.values()}
    except (SafetensorError, OSError) as error:
        raise UserError(f"{WEIGHTS}: is no safetensors file: {error}") from error
    if found != expected or types != {"F32"}:
        raise UserError(
            f"{WEIGHTS}: holds {_few(found)} of {', '.join(sorted(types))}, but {CONFIG} "
            f"needs {_few(expected)} of F32"
        )


def read_json(folder: Path, name: str, kind: type[Checked]) -> Checked:
    """Read a JSON file of a model and check it.

    Raises:
        UserError: If it is missing or not what ``kind`` says.
    """
    try:
        return kind.model_validate_json((folder / name).read_bytes())
    except FileNotFoundError:
        raise UserError(f"{folder / name}: does not exist") from None
    except ValidationError as error:
        raise UserError(f"{name}: {explain(error)[:500]}") from error


def sha256(path: Path) -> str:
    """Of a file's content."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


class _PlainLoader(yaml.SafeLoader):
    """YAML without aliases, by which a small file can become a huge object."""

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.AliasEvent):
            raise yaml.YAMLError("it has an alias")
        return super().compose_node(parent, index)


def _check_mlmodel(folder: Path) -> None:
    try:
        # _PlainLoader is a SafeLoader: it makes plain values only.
        said = yaml.load((folder / MLMODEL).read_bytes(), Loader=_PlainLoader)
        # Through JSON, so that a YAML date is no string.
        MlmodelFile.model_validate_json(json.dumps(said))
    except ValidationError as error:
        raise UserError(f"{MLMODEL}: {explain(error)[:500]}") from error
    except (yaml.YAMLError, TypeError, ValueError, RecursionError) as error:
        raise UserError(f"{MLMODEL}: {' '.join(str(error).split())[:300]}") from error


def _files(folder: Path) -> set[str]:
    """Names of all files under a folder, of which none may be a link or too large."""
    found = set()
    for place, folders, files in os.walk(folder):
        for name in [*folders, *files]:
            path = Path(place, name)
            relative = path.relative_to(folder).as_posix()
            status = path.lstat()
            if stat.S_ISLNK(status.st_mode):
                raise UserError(f"{relative!r} is a symbolic link; nothing is used")
            if stat.S_ISDIR(status.st_mode):
                if not any(allowed.startswith(f"{relative}/") for allowed in ALLOWED):
                    raise UserError(f"{relative!r} is no folder of an acontrol model")
                continue
            if not stat.S_ISREG(status.st_mode):
                raise UserError(f"{relative!r} is no plain file")
            if status.st_size > MAX_BYTES.get(relative, 2**63):
                raise UserError(f"{relative!r} is too large: {status.st_size} bytes")
            found.add(relative)
    return found


def _few(shapes: dict[str, list[int]]) -> str:
    shown = [f"{name} {shape}" for name, shape in sorted(shapes.items())[:3]]
    return ", ".join(shown) + (", ..." if len(shapes) > 3 else "")
