"""Malicious models: each is refused, and nothing is written or executed."""

import http.server
import json
import pickle
import shutil
import threading
import urllib.parse
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import mlflow
import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file

from acontrol.registry.card import CARD, CONFIG, MANIFEST, MLMODEL, WEIGHTS, Manifest
from acontrol.registry.register import register_run
from acontrol.runs.mlflow_client import MANIFEST_TAG
from acontrol.runs.storage import sha256
from launch import pull
from tests.launch.test_errors import error_of

Change = Callable[[Path], Any]


def in_json(name: str, *keys: str, value: object) -> Change:
    """Set an entry of a JSON or YAML file."""

    def change(model: Path) -> None:
        whole = yaml.safe_load((model / name).read_text())
        inner = whole
        for key in keys[:-1]:
            inner = inner[key]
        inner[keys[-1]] = value
        (model / name).write_text(
            yaml.safe_dump(whole) if name == MLMODEL else json.dumps(whole)
        )

    return change


def in_both(*keys: str, value: object) -> Change:
    """Set an entry of the adapter's card in both places that hold it."""

    def change(model: Path) -> None:
        in_json(CONFIG, "card", *keys, value=value)(model)
        in_json(CARD, "adapter", *keys, value=value)(model)

    return change


class Bomb:
    """Writes a file when it is unpickled."""

    def __init__(self, canary: Path):
        self.canary = canary

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.canary,)


def with_file(name: str, content: bytes = b"x = 1\n") -> Change:
    def change(model: Path) -> None:
        (model / name).parent.mkdir(exist_ok=True, parents=True)
        (model / name).write_bytes(content)

    return change


def with_pickle(name: str) -> Change:
    return lambda model: with_file(name, pickle.dumps(Bomb(model.parent / "canary")))(model)


def with_other_weights(content: Callable[[Path], bytes]) -> Change:
    def change(model: Path) -> None:
        with_file(WEIGHTS, content(model))(model)
        in_json(CARD, "weights_sha256", value=sha256(model / WEIGHTS))(model)

    return change


def with_code(model: Path) -> None:
    """A loader of the model's own, in a code folder that MLflow would put on the path."""
    body = f"open({str(model.parent / 'canary')!r}, 'w')\n"
    with_file("code/evil.py", body.encode())(model)
    in_json(MLMODEL, "flavors", "python_function", "code", value="code")(model)
    in_json(MLMODEL, "flavors", "python_function", "loader_module", value="evil")(model)


def with_weights(**changes: torch.Tensor | None) -> Change:
    def change(model: Path) -> None:
        weights = load_file(model / WEIGHTS)
        for name, value in changes.items():
            weights.pop("proj.weight", None) if value is None else None
            if value is not None:
                weights[name.replace("__", ".")] = value
        save_file(weights, model / WEIGHTS)
        in_json(CARD, "weights_sha256", value=sha256(model / WEIGHTS))(model)

    return change


BOMB_YAML = b"a: &a [x, x]\nb: &b [*a, *a]\nc: [*b, *b]\n"

CHANGES: dict[str, tuple[Change, str]] = {
    "an extra pickle": (with_pickle("model.pkl"), "'model.pkl' is not a file of"),
    "a pickle in the adapter": (
        with_pickle("adapter/diffusion_pytorch_model.bin"),
        "'adapter/diffusion_pytorch_model.bin' is not a file of",
    ),
    "a pickle as weights": (
        with_other_weights(lambda model: pickle.dumps(Bomb(model.parent / "canary"))),
        "is not a safetensors file",
    ),
    "a pickle as config": (with_pickle(CONFIG), f"{CONFIG}: Invalid JSON"),
    "another loader": (
        in_json(MLMODEL, "flavors", "python_function", "loader_module", value="os"),
        "loader_module: Input should be 'acontrol.registry.serving'",
    ),
    "another flavour": (
        in_json(MLMODEL, "flavors", "sklearn", value={"pickled_model": "model.pkl"}),
        "flavors.sklearn: Extra inputs",
    ),
    "another function": (
        in_json(MLMODEL, "flavors", "python_function", "predict_fn", value="__init__"),
        "predict_fn: Extra inputs",
    ),
    "a code folder": (with_code, "'code' is not a file of"),
    "a code folder only named": (
        in_json(MLMODEL, "flavors", "python_function", "code", value="../code"),
        "code: Extra inputs",
    ),
    "data elsewhere": (
        in_json(MLMODEL, "flavors", "python_function", "data", value="/etc"),
        "data: Extra inputs",
    ),
    "an environment": (with_file("conda.yaml"), "'conda.yaml' is not a file of"),
    "an object in YAML": (
        with_file(MLMODEL, b"flavors: !!python/object/apply:os.system [id]\n"),
        "MLmodel: could not determine a constructor",
    ),
    "a YAML bomb": (with_file(MLMODEL, BOMB_YAML), "MLmodel: it has an alias"),
    "an extra field": (in_both("custom_pipeline", value="x"), "Extra inputs"),
    "an extra field of diffusers": (
        in_json(CONFIG, "auto_map", value={"AutoModel": "evil.Evil"}),
        "auto_map: Extra inputs",
    ),
    "another class": (in_json(CONFIG, "_class_name", value="Evil"), "_class_name"),
    "gamma out of range": (in_both("sga", "scale", value=99), "less than or equal to 10"),
    "no number": (in_both("sga", "scale", value=float("nan")), "finite number"),
    "resolution out of range": (in_both("resolution", value=-8), "greater than or equal to 16"),
    "a huge layer": (
        in_json(CONFIG, "layers", value=[["a", 10**9]]),
        "less than or equal to 4096",
    ),
    "a card of another adapter": (
        in_json(CARD, "adapter", "steps", value=1),
        "another adapter",
    ),
    "weights of another shape": (
        with_weights(proj__weight=torch.zeros(3, 64)),
        "holds proj.weight [3, 64]",
    ),
    "weights of another type": (
        lambda model: with_weights(
            proj__weight=load_file(model / WEIGHTS)["proj.weight"].half()
        )(model),
        "of F16",
    ),
    "weights too many": (with_weights(more=torch.zeros(1)), "holds more [1]"),
    "a cut file": (
        with_other_weights(lambda model: (model / WEIGHTS).read_bytes()[:-10]),
        "is not a safetensors file",
    ),
}
LISTED: dict[str, str] = {
    "a path upwards": "../../escaped",
    "an absolute path": "/tmp/escaped",
    "a path that climbs within": "adapter/../../escaped",
}


@pytest.fixture(scope="module")
def good(own_run: Path) -> Path:
    """A good model's folder."""
    done = register_run(own_run, "good")
    client = mlflow.MlflowClient(done.uri, done.uri)
    return Path(client.get_model_version("good", "1").source.removeprefix("file://"))


@pytest.fixture
def model(good: Path, tmp_path: Path) -> Path:
    """A good model's folder, to be changed."""
    shutil.copytree(good, tmp_path / "model")
    return tmp_path / "model"


def seal(model: Path, extra: str | None = None) -> str:
    """List a model's files with their sums, as its maker can do for whatever it holds."""
    files = {
        file.relative_to(model).as_posix(): {
            "size": file.stat().st_size,
            "sha256": sha256(file),
        }
        for file in model.rglob("*")
        if file.is_file() and file.name != MANIFEST
    }
    if extra is not None:
        files[extra] = {"size": 1, "sha256": "0" * 64}
    (model / MANIFEST).write_text(Manifest.model_validate({"files": files}).model_dump_json())
    return sha256(model / MANIFEST)


def publish(model: Path, server: str, name: str, manifest: str) -> None:
    """Put a folder on a server as a version of a model."""
    client = mlflow.MlflowClient(server, server)
    run = client.create_run("0")
    client.log_artifacts(run.info.run_id, str(model), "model")
    client.create_registered_model(name)
    tags = {MANIFEST_TAG: manifest}
    source = f"{run.info.artifact_uri}/model"
    client.create_model_version(name, source, run_id=run.info.run_id, tags=tags)


def refused(server: str, name: str, home: Path) -> str:
    """Pull, which must fail and leave no trace; gives the words."""
    place = home / "place"
    place.mkdir()
    before = sorted(home.rglob("*"))
    out = ("--out", place / "out", "--tracking.uri", server)
    words = error_of(pull.run, f"models:/{name}/1", *out)
    # The place is as empty as it was, and no canary was written.
    assert sorted(home.rglob("*")) == before
    assert not (home / "canary").exists()
    return words


@pytest.mark.parametrize("label", CHANGES)
def test_a_changed_model_is_refused(
    label: str, model: Path, server: str, tmp_path: Path
) -> None:
    change, words = CHANGES[label]
    change(model)
    name = label.replace(" ", "-")
    publish(model, server, name, seal(model))
    assert words in refused(server, name, tmp_path)


@pytest.mark.parametrize("label", LISTED)
def test_a_manifest_does_not_lead_elsewhere(
    label: str, model: Path, server: str, tmp_path: Path
) -> None:
    name = f"manifest-{label.replace(' ', '-')}"
    publish(model, server, name, seal(model, LISTED[label]))
    assert f"{LISTED[label]!r} is either not listed or missing" in refused(
        server, name, tmp_path
    )


def test_an_unchanged_model_is_taken(model: Path, server: str, tmp_path: Path) -> None:
    publish(model, server, "as-it-was", seal(model))
    pull.run(["models:/as-it-was/1", "--out", str(tmp_path / "out"), "--tracking.uri", server])
    assert (tmp_path / "out" / "config.json").read_bytes() == (model / CONFIG).read_bytes()


def test_a_sum_that_does_not_match_is_refused(model: Path, server: str, tmp_path: Path) -> None:
    content = bytearray((model / WEIGHTS).read_bytes())
    content[-1] ^= 1
    (model / WEIGHTS).write_bytes(content)
    publish(model, server, "flipped", sha256(model / MANIFEST))
    assert f"{WEIGHTS}: its sha256" in refused(server, "flipped", tmp_path)


def test_a_manifest_that_the_registry_does_not_know_is_refused(
    model: Path, server: str, tmp_path: Path
) -> None:
    known = sha256(model / MANIFEST)
    content = bytearray((model / WEIGHTS).read_bytes())
    content[-1] ^= 1
    (model / WEIGHTS).write_bytes(content)
    in_json(CARD, "weights_sha256", value=sha256(model / WEIGHTS))(model)
    seal(model)
    publish(model, server, "resealed", known)
    assert f"{MANIFEST}: its sha256" in refused(server, "resealed", tmp_path)


@pytest.mark.parametrize("name", [WEIGHTS, "adapter", CARD])
def test_a_link_in_a_local_store_is_refused(name: str, own_run: Path, tmp_path: Path) -> None:
    model = f"linked-{Path(name).name}"
    done = register_run(own_run, model)
    client = mlflow.MlflowClient(done.uri, done.uri)
    source = client.get_model_version(model, "1").source
    place = Path(source.removeprefix("file://"), name)
    place.rename(tmp_path / "secret")  # The same bytes: only the link is at fault.
    place.symlink_to(tmp_path / "secret")
    assert "is a symbolic link" in refused(done.uri, model, tmp_path)


class LyingHandler(http.server.BaseHTTPRequestHandler):
    """Answers as an MLflow server does, but lists a path of its own choice."""

    path_listed = ""
    source = "mlflow-artifacts:/0/a/artifacts/model"

    def do_GET(self) -> None:
        url = urllib.parse.urlparse(self.path)
        version = {"name": "m", "version": "1", "source": self.source}
        version["tags"] = [{"key": MANIFEST_TAG, "value": "0" * 64}]  # type: ignore[assignment]
        answers: dict[str, object] = {
            "model-versions/get": {"model_version": version},
            "registered-models/get": {"registered_model": {"name": "m"}},
            "model-versions/get-download-uri": {"artifact_uri": self.source},
            "mlflow-artifacts/artifacts": {
                "files": [{"path": self.path_listed, "is_dir": False, "file_size": 1}]
            },
        }
        body = b"evil"
        for end, answer in answers.items():
            if url.path.endswith(end):
                body = json.dumps(answer).encode()
        self.send_response(200)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *args: object) -> None:
        pass


@pytest.fixture
def lying_server() -> Iterator[tuple[str, type[LyingHandler]]]:
    class Handler(LyingHandler):
        pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}", Handler
        server.shutdown()
        thread.join()


@pytest.mark.parametrize("label", LISTED)
def test_a_listing_does_not_lead_elsewhere(
    label: str, lying_server: Any, tmp_path: Path
) -> None:
    address, handler = lying_server
    handler.path_listed = LISTED[label]
    words = refused(address, "m", tmp_path)
    assert "Invalid path" in words or "is not a file of" in words


@pytest.mark.parametrize("source", ["ftp://evil/x", "dbfs:/x", "models:/m/1", "runs:/a/b"])
def test_files_come_only_from_plain_stores(
    source: str, lying_server: Any, tmp_path: Path
) -> None:
    address, handler = lying_server
    handler.source = source
    assert "a store that is not supported" in refused(address, "m", tmp_path)
