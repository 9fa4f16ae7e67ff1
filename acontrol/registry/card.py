"""Schemas of a registered model's files; anything else is refused.

MLmodel                        MLflow's own description (YAML)
README.md                      the model card, for people
card.json                      the model card, for programs
samples.png                    the run's last sample grid, if any
input_example.json, serving_input_example.json
adapter/config.json, adapter/diffusion_pytorch_model.safetensors
manifest.json                  size and sha256 of every file above
"""

import re
from typing import Annotated, Literal

from pydantic import Field, StringConstraints

from acontrol.config import AdapterCard, Settings
from acontrol.errors import UserError

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
# Stable Diffusion 1.5's adapter is 77 MB; all else is text and one image.
MAX_BYTES = dict.fromkeys(ALLOWED, 2**22) | {WEIGHTS: 2**31, GRID: 2**26}

NAME_PATTERN = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,99}$"
ModelName = Annotated[str, StringConstraints(pattern=NAME_PATTERN)]
Sha256 = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]
Text = Annotated[str, StringConstraints(max_length=4000)]
Width = Annotated[int, Field(ge=1, le=4096)]


class ModelCard(Settings):
    """A registered model's origin and quality."""

    name: ModelName
    adapter: AdapterCard
    weights_sha256: Sha256
    run: Text = Field(description="Id of the MLflow run.")
    commit: Text | None = Field(None, description="Commit of the code that trained it.")
    metrics: dict[Text, float] = Field(description="The run's last value of each metric.")
    licences: list[Text] = Field(description="Notes on licences.")
    # Models registered before 0.2 have none of these.
    author: Text | None = Field(None, description="Who trained it.")
    date: Text | None = Field(None, description="Day of its last step, as 2026-11-28.")
    counts: dict[Text, int] = Field({}, description='Training images by "product/defect".')
    evaluation: dict[Text, float] = Field({}, description="Figures of acontrol evaluate.")
    cautions: list[Text] = Field([], description="What these figures cannot show.")


class AdapterFile(Settings):
    """An adapter's config.json, as diffusers writes it."""

    class_name: Literal["SemanticAdapter"] = Field(alias="_class_name")
    diffusers_version: Text = Field(alias="_diffusers_version")
    layers: list[tuple[Text, Width]] = Field(min_length=1, max_length=256)
    semantic_dim: Width
    mode: Literal["queries", "pooled"]
    card: AdapterCard


class FileSum(Settings):
    """Size and digest of a file."""

    size: int = Field(ge=0)
    sha256: Sha256


class Manifest(Settings):
    """All files of a registered model except the manifest itself."""

    format: Literal["acontrol-model-1"] = "acontrol-model-1"  # None before 0.2.
    files: dict[str, FileSum]


class PyfuncFlavour(Settings):
    """The only flavour: a loader of the installed package, no code and no environment."""

    loader_module: Literal["acontrol.registry.serving"]
    python_version: Text


class Flavours(Settings):
    """The flavours of an MLmodel."""

    python_function: PyfuncFlavour


class Signature(Settings):
    """Inputs, outputs and parameters, each as a JSON string."""

    inputs: Text
    outputs: Text
    params: Text | None = None


class ExampleInfo(Settings):
    """Location of the input example."""

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
    """Check that a name works in a URI, as a folder and in MLflow.

    Raises:
        UserError: If it does not.
    """
    if not re.match(NAME_PATTERN, name):
        raise UserError(
            f"model name {name!r}: need letters, digits, '.', '_' and '-', the first a letter "
            "or a digit, at most 100"
        )
