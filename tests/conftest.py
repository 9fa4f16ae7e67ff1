import os
import secrets

# Read when transformers, deepspeed or ray are imported: before anything else.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["DS_ACCELERATOR"] = "cpu"
os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
# A cluster of ray.init has a token, by default for its own process alone: here one for all.
os.environ["RAY_AUTH_MODE"] = "token"
os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(16))
os.environ["OPENBLAS_NUM_THREADS"] = "1"

import contextlib
import copy
import dataclasses
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import settings
from jaxtyping import install_import_hook

# Shapes and types are checked while testing, and cost nothing in production.
install_import_hook(
    [
        "acontrol.method",
        "acontrol.networks.inpainting",
        # But for those modules whose annotations only type checkers import.
        *(
            f"acontrol.evaluation.{file.stem}"
            for file in (Path(__file__).parents[1] / "acontrol" / "evaluation").glob("*.py")
            if "if TYPE_CHECKING:" not in file.read_text()
        ),
    ],
    "beartype.beartype",
)

from acontrol.config import (  # noqa: E402
    AdapterCard,
    AseaConfig,
    BaseConfig,
    CsmConfig,
    SgaConfig,
)
from acontrol.data.builtin import write_dataset  # noqa: E402
from acontrol.data.stream import Batch  # noqa: E402
from acontrol.method.sga import SemanticAdapter  # noqa: E402
from acontrol.networks.load import BaseModels, load_base  # noqa: E402

torch.set_num_threads(1)
# A time limit an example fails at random on a busy machine.
settings.register_profile("no-deadline", deadline=None)
settings.load_profile("no-deadline")


def pytest_itemcollected(item: pytest.Item) -> None:
    """A file stays in one of make test's processes, and shares its fixtures there."""
    if item.get_closest_marker("xdist_group") is None:
        item.add_marker(pytest.mark.xdist_group(str(item.path)))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """What takes longest first, so that both processes end together; no GPU, no GPU tests."""
    if not torch.cuda.is_available():
        for item in items:
            if item.get_closest_marker("gpu") is not None:
                item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))
    items.sort(key=lambda item: item.path.parent.name not in ("launch", "train", "tune"))


@pytest.fixture(scope="session")
def built_in_data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two products, three defects, three images of each, two good ones."""
    root = tmp_path_factory.mktemp("built-in") / "data"
    write_dataset(
        root,
        num_good=2,
        num_good_test=1,
        num_defects=3,
        categories=("wood", "button"),
        defects=("crack", "stain", "spots"),
    )
    return root


CLUSTER = """
import ray
context = ray.init("local", num_cpus=4, object_store_memory=2**28, include_dashboard=False)
print(context.address_info["gcs_address"], flush=True)
input()
"""


@pytest.fixture(scope="session")
def ray_address() -> Iterator[str]:
    """One Ray cluster for all tests; a command joins it by RAY_ADDRESS.

    A process of its own has it, so that this one can join and leave.
    """
    process = subprocess.Popen(
        [sys.executable, "-c", CLUSTER],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    assert process.stdin and process.stdout
    yield process.stdout.readline().strip()
    with contextlib.suppress(BrokenPipeError):
        process.communicate("\n", timeout=60)


@pytest.fixture(scope="session")
def tiny_base() -> BaseModels:
    """The tiny base, shared: for tests that leave it as it is."""
    return load_base(BaseConfig())


@pytest.fixture
def base(tiny_base: BaseModels) -> BaseModels:
    """A tiny base whose U-Net and BLIP-2 are this test's own, to change as it likes."""
    return dataclasses.replace(
        tiny_base, unet=copy.deepcopy(tiny_base.unet), vlm=copy.deepcopy(tiny_base.vlm)
    )


@pytest.fixture
def card() -> Callable[..., AdapterCard]:
    """Make a card of an adapter on the tiny base, with some entries changed."""

    def make(**changes: Any) -> AdapterCard:
        entries: dict[str, Any] = {
            "acontrol_version": "0.0.0",
            "base": BaseConfig(),
            "base_digest": "0" * 64,
            "csm": CsmConfig(),
            "asea": AseaConfig(steps=1),
            "sga": SgaConfig(),
            "resolution": 64,
            "reference_view": "image",
            "split": "train",
            "data_digest": "1" * 64,
            "seed": 0,
            "steps": 10,
        }
        return AdapterCard(**{**entries, **changes})

    return make


@pytest.fixture
def adapter(base: BaseModels, card: Callable[..., AdapterCard]) -> SemanticAdapter:
    """An adapter that fits ``base``, of random weights: copies of the text's are tame."""
    torch.manual_seed(5)
    made = SemanticAdapter.from_unet(base.unet, 64, card=card().model_dump(mode="json"))
    torch.nn.init.normal_(made.proj.weight, std=0.3)
    return made


PHRASES = ["a crack", "large dark stain", "hole", "several broken spots", "a xyz"]
CAPTIONS = ["a wood with a crack", "a photo of dark metal with a stain", "hole", "tile", "x"]


@pytest.fixture
def batch() -> Callable[..., Batch]:
    """Make a batch of random images at 48 px with references at 64 px; masks differ in area."""

    def make(count: int = 3, *, resolution: int = 48, first: int = 7, seed: int = 0) -> Batch:
        generator = torch.Generator().manual_seed(seed)
        mask = torch.zeros(count, 1, resolution, resolution)
        reference_mask = torch.zeros(count, 1, 64, 64)
        for row in range(count):
            mask[row, :, 4 : 12 + 4 * row, 8:20] = 1
            reference_mask[row, :, 8 * row : 8 * row + 24, 16:40] = 1
        return Batch(
            image=torch.rand(count, 3, resolution, resolution, generator=generator) * 2 - 1,
            mask=mask,
            caption=CAPTIONS[:count],
            reference_image=torch.rand(count, 3, 64, 64, generator=generator) * 2 - 1,
            reference_mask=reference_mask,
            reference_phrase=PHRASES[:count],
            positions=list(range(first, first + count)),
            keys=[f"sample-{row}" for row in range(count)],
        )

    return make
