"""A real MLflow server, and finished runs on it."""

import contextlib
import os
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from PIL import Image

from acontrol.config import AdapterCard, BaseConfig, RunConfig
from acontrol.method.sga import SemanticAdapter
from acontrol.networks import locate
from acontrol.networks.load import BaseModels
from acontrol.presets import preset
from acontrol.runs.inputs import DataInput
from acontrol.runs.record import RunRecord
from acontrol.runs.tracking import Tracker
from tests.launch.commands import kill_with_children

STEPS = 10
COUNTS = {"wood/crack": 3, "wood/stain": 2}
BIN = Path(sys.executable).parent


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@contextlib.contextmanager
def serving(args: list[object], port: int, path: str, log: Path, **env: str) -> Iterator[str]:
    """Run an HTTP server until the block ends; gives its address once it answers."""
    address = f"http://127.0.0.1:{port}"
    with log.open("w") as stream:
        process = subprocess.Popen(
            [sys.executable, "-m", *(str(arg) for arg in args)],
            # MLflow starts uvicorn by its name.
            env={**os.environ, "PATH": f"{BIN}:{os.environ['PATH']}", **env},
            stdout=stream,
            stderr=subprocess.STDOUT,
            text=True,
        )
    try:
        for _ in range(480):
            assert process.poll() is None, log.read_text()
            with contextlib.suppress(OSError):
                urllib.request.urlopen(address + path, timeout=5).close()
                break
            time.sleep(0.25)
        else:
            raise AssertionError(log.read_text())
        yield address
    finally:
        kill_with_children(process)


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of a server with a database and an artifact store that it proxies."""
    home = tmp_path_factory.mktemp("mlflow")
    port = free_port()
    args = [
        *("mlflow", "server", "--host", "127.0.0.1", "--port", port, "--workers", 1),
        *("--backend-store-uri", f"sqlite:///{home}/mlflow.db"),
        *("--artifacts-destination", home / "artifacts"),
    ]
    with serving(args, port, "/health", home / "log") as address:
        yield address


@pytest.fixture(scope="session")
def own_run(tmp_path_factory: pytest.TempPathFactory, tiny_base: BaseModels) -> Path:
    """A finished run in its own database, whose tables take MLflow seconds to make."""
    return run_maker(tmp_path_factory.mktemp("own"), tiny_base)()


@pytest.fixture
def finished_run(tmp_path: Path, tiny_base: BaseModels) -> Callable[..., Path]:
    """Make the folder of a finished run, logged through the real tracker."""
    return run_maker(tmp_path, tiny_base)


def run_maker(home: Path, base: BaseModels) -> Callable[..., Path]:
    digest = locate.digest(BaseConfig())

    def make(
        name: str = "run",
        uri: str | None = None,
        *,
        seed: int = 5,
        metrics: dict[str, float] | None = None,
        steps: int = STEPS,
        data_digest: str = "1" * 64,
    ) -> Path:
        run = home / name
        run.mkdir()
        tiny = preset("tiny")
        config = RunConfig(
            **{
                **dict(tiny),
                "output": str(run),
                "optim": tiny.optim.model_copy(update={"steps": STEPS}),
                "tracking": tiny.tracking.model_copy(update={"uri": uri}),
            }
        )
        card = AdapterCard(
            acontrol_version="0.0.0",
            base=config.base,
            base_digest=digest,
            csm=config.csm,
            asea=config.asea,
            sga=config.sga,
            resolution=config.data.resolution,
            reference_view=config.data.reference_view,
            split="train",
            data_digest=data_digest,
            seed=seed,
            steps=steps,
        )
        torch.manual_seed(seed)
        made = SemanticAdapter.from_unet(base.unet, 64, card=card.model_dump(mode="json"))
        torch.nn.init.normal_(made.proj.weight, std=0.3)
        made.save_pretrained(run / "adapter")
        (run / "config.json").write_text(config.model_dump_json())
        data = DataInput(
            "wood (train)", data_digest, "/data/shards", COUNTS, context="training"
        )
        tracker = Tracker.start(config, run, None, data)
        for step in (STEPS // 2, STEPS):
            tracker.log_metrics(metrics or {"validation_loss": 1 / step}, step)
            tracker.log_image(Image.new("RGB", (8, 8), (step, 0, 0)), "samples", step)
        tracker.finish("FINISHED")
        RunRecord.of(run, "a", tracker.run_id, tracker.uri).write(run)
        return run

    return make
