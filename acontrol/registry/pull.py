"""Fetch a registered model as an adapter folder, without executing anything in it.

No path from the server is trusted: it may only list the files that our models have. They are
downloaded one by one into a scratch folder, checked there, and renamed into place.
"""

import re
import shutil
import tempfile
from pathlib import Path
from urllib.parse import urlparse

from mlflow.store.artifact.artifact_repo import ArtifactRepository
from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository
from mlflow.store.artifact.local_artifact_repo import LocalArtifactRepository

from acontrol.data.lock import only_writer
from acontrol.data.publish import put_in_place, work_folder
from acontrol.errors import UserError
from acontrol.registry.card import (
    ALLOWED,
    CARD,
    CONFIG,
    GRID,
    MAX_BYTES,
    README,
    WEIGHTS,
    ModelCard,
    check_model_name,
)
from acontrol.registry.model_files import check_model, check_names
from acontrol.runs.mlflow_client import (
    MANIFEST_TAG,
    client_of,
    nearest_model,
    reaching,
    version_of,
)

# Stores that only hold files; MLflow's other schemes run code of their own.
STORES = ("", "file", "mlflow-artifacts", "s3", "gs", "wasbs", "abfss", "r2", "b2")
MODEL_URI = re.compile(r"^models:/([^/@]+)(?:@([A-Za-z0-9_-]+)|/(\d+))$")


def pull(model_uri: str, out: Path, uri: str) -> ModelCard:
    """Fetch a model into ``out``, as an adapter folder with its model card.

    Args:
        model_uri: models:/NAME@ALIAS or models:/NAME/VERSION.
        out: Folder to create.
        uri: MLflow server or database.

    Returns:
        The model card.

    Raises:
        UserError: If the model does not exist, a file fails its check, ``out`` is not empty,
            or another pull is writing it. Then nothing is written.
    """
    with only_writer(out):
        return _pulled(model_uri, out, uri)


def _pulled(model_uri: str, out: Path, uri: str) -> ModelCard:
    match = MODEL_URI.match(model_uri)
    if match is None:
        raise UserError(f"{model_uri}: need models:/NAME@ALIAS or models:/NAME/VERSION")
    name, alias, number = match.groups()
    check_model_name(name)
    with reaching(uri):
        client = client_of(uri)
        version = version_of(client, name, alias, number)
        if version is None:
            raise UserError(
                f"{model_uri}: no such model on the MLflow server; "
                f"{nearest_model(client, name, alias)}"
            )
        manifest_sha256 = version.tags.get(MANIFEST_TAG)
        if manifest_sha256 is None:
            raise UserError(
                f"{model_uri}: version {version.version} has no tag {MANIFEST_TAG}; only "
                "models from acontrol register can be pulled"
            )
        source = client.get_model_version_download_uri(name, version.version)
        repository = _repository(source, uri)
    place = work_folder(out).parent
    place.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{out.name}.partial-", dir=place) as scratch:
        model, adapter = Path(scratch, "model"), Path(scratch, "adapter")
        model.mkdir()
        with reaching(uri):
            _fetch(repository, model)
        card = check_model(model, manifest_sha256)
        adapter.mkdir()
        for file in (CONFIG, WEIGHTS, CARD, README, GRID):
            if (model / file).exists():
                shutil.move(model / file, adapter / Path(file).name)
        put_in_place(adapter, out, last=CONFIG)
    return card


def _repository(source: str, uri: str) -> ArtifactRepository:
    if urlparse(source).scheme not in STORES:
        raise UserError(f"the model's files are at {source!r}, a store that is not supported")
    return get_artifact_repository(source, tracking_uri=uri, registry_uri=uri)


def _fetch(repository: ArtifactRepository, target: Path) -> None:
    if isinstance(repository, LocalArtifactRepository):
        for name in sorted(ALLOWED):
            _refuse_links(Path(repository.artifact_dir), name)
    names = _listed(repository)
    check_names(names)
    for name in sorted(names):
        (target / name).parent.mkdir(exist_ok=True)
        # Not download_artifacts, which asks again whether the name is a folder.
        repository._download_file(name, str(target / name))


def _listed(repository: ArtifactRepository) -> set[str]:
    """Every file that the store lists; refuses those that are too large."""
    names = set()
    for file in [*repository.list_artifacts(), *repository.list_artifacts("adapter")]:
        if file.is_dir and file.path == "adapter":
            continue
        limit = MAX_BYTES.get(file.path)
        if limit is not None and (file.file_size or 0) > limit:
            raise UserError(f"{file.path!r} is too large: {file.file_size} bytes")
        names.add(file.path)
    return names


def _refuse_links(folder: Path, name: str) -> None:
    path = folder
    for part in Path(name).parts:
        path = path / part
        if path.is_symlink():
            raise UserError(f"{name!r} is a symbolic link; nothing is used")
