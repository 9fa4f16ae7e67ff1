"""Every file that is read gives a result or one line, whatever is in it."""

import io
import json
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from safetensors.torch import save_file

from acontrol.config import BaseConfig
from acontrol.data import prompts
from acontrol.data.images import check_image, image_size, read_image, read_mask
from acontrol.data.mvtec import open_folder
from acontrol.data.reader import ShardReader
from acontrol.data.shards import write_shards
from acontrol.data.split import read_split
from acontrol.data.train_list import read_train_list
from acontrol.generation.job import read_job
from acontrol.generation.manifest import planned_of
from acontrol.generation.request import read_requests
from acontrol.interop import ip_adapter
from acontrol.masks.settings import Inversion, MaskCard
from acontrol.masks.store import read_card
from acontrol.networks import locate
from acontrol.pipelines.loading import load_adapter
from acontrol.runs.record import RunRecord
from acontrol.train.checkpoint import newest_checkpoint, read_checkpoint
from tests.data.test_features import CHUNK, folder, values
from tests.fuzz.mutations import (
    images,
    long,
    mutated_bytes,
    mutated_json,
    read_or_refuse,
    short,
)
from tests.train.checkpoints import checkpoint_at, small_adapter


@dataclass(frozen=True)
class Reader:
    """A file of a whole folder, and what reads it.

    Attributes:
        root: The folder.
        file: The file in it that is damaged.
        read: Reads it, given the folder.
    """

    root: Path
    file: str
    read: Callable[[Path], Any]


def picture(mode: str, form: str) -> bytes:
    pixels = np.random.default_rng(0).integers(0, 256, (20, 24, 3)).astype(np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).convert(mode).save(buffer, form)
    return buffer.getvalue()


def read_pixels(root: Path) -> None:
    for read in (read_image, check_image, image_size):
        read_or_refuse(lambda read=read: read(root / "image"))
    size = read_or_refuse(lambda: image_size(root / "image"))
    if size is not None:
        read_or_refuse(lambda: read_mask(root / "image", size))


def read_captions(root: Path) -> None:
    captions = prompts.Captions.load(root / "captions.json")
    captions.sentences("tile", "crack", ["000", "001"])


def read_manifest(root: Path) -> None:
    _, lines = read_job(root)
    for line in lines:
        planned_of(line, root, {"data": root, "normal": root})


def read_shards(root: Path) -> None:
    reader = ShardReader(str(root))
    for number in range(len(reader)):
        reader.read(number)


def read_steps(root: Path) -> None:
    checkpoint = newest_checkpoint(root)
    if checkpoint is not None:
        checkpoint.adapter_state()


JSON: dict[str, tuple[Any, Callable[[Path], Any]]] = {
    "captions.json": (
        {"tile": {"crack": {"000": "a", "001": "b"}, "dent": "c"}},
        read_captions,
    ),
    "phrases.json": (
        {"crack": "a crack", "crack/000": "a long crack"},
        lambda root: prompts.load_phrases(root / "phrases.json"),
    ),
    "list.json": (
        [
            {"image_file": "tile/test/crack/000.png", "mask_file": "m.png", "text": "a"},
            {"image_file": "tile/test/crack/001.png", "mask_file": "n.png", "text": "b"},
        ],
        lambda root: read_train_list(root, root / "list.json"),
    ),
    "split.json": (
        {"train": ["tile/test/crack/000.png"], "test": ["tile/test/crack/001.png"]},
        lambda root: read_split(root / "split.json"),
    ),
    "requests.jsonl": (
        {"category": "tile", "defect": "crack", "count": 3, "steps": 9, "normal": "a.png"},
        lambda root: read_requests(root / "requests.jsonl"),
    ),
    "run.json": (
        {"launch": "a", "mlflow_run": "b", "mlflow_uri": None},
        RunRecord.read,
    ),
}


@pytest.fixture(scope="module")
def whole(
    built_in_data: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[dict[str, Reader]]:
    """A good file of every kind in a folder of its own, and its reader."""
    readers: dict[str, Reader] = {}

    def place(name: str) -> Path:
        return tmp_path_factory.mktemp("whole") / name.replace(" ", "-")

    def write(name: str, file: str, content: bytes, read: Callable[[Path], Any]) -> None:
        root = place(name)
        root.mkdir()
        (root / file).write_bytes(content)
        readers[name] = Reader(root, file, read)

    for mode, form in (
        ("RGB", "PNG"),
        ("L", "PNG"),
        ("RGB", "JPEG"),
        ("L", "TIFF"),
        ("P", "BMP"),
    ):
        write(f"{mode} {form}", "image", picture(mode, form), read_pixels)
    write("caption", "000.txt", b"a tile", lambda root: prompts.read_caption(root / "000.txt"))
    for file, (value, read) in JSON.items():
        write(file, file, json.dumps(value).encode(), read)

    def add(name: str, root: Path, file: str, read: Callable[[Path], Any]) -> None:
        readers[name] = Reader(root, file, read)

    shards = place("shards")
    rows = open_folder(built_in_data).labelled("train", "wood")
    write_shards(rows[:2], shards, split="train", resolution=None)
    add("index", shards, "index.json", read_shards)
    add("shard", shards, "shard-00000.tar", read_shards)

    adapter = small_adapter({}, 1)
    run = place("run")
    path = checkpoint_at(adapter, run, 6)
    for name in ("manifest.json", "state.json", "moments.safetensors"):
        add(f"checkpoint's {name}", run, str((path / name).relative_to(run)), read_steps)
    assert read_checkpoint(path).state.step == 6

    own = place("adapter")
    shutil.copytree(locate.built_in_adapter(), own)
    add("adapter's card", own, "config.json", lambda root: load_adapter(str(root)))

    weights = place("ip")
    weights.mkdir()
    tensors = {
        "image_proj.proj.weight": torch.ones(4, 4),
        "ip_adapter.1.to_k_ip.weight": torch.ones(2, 4),
    }
    save_file(tensors, weights / "a.safetensors")
    add(
        "IP-Adapter",
        weights,
        "a.safetensors",
        lambda root: ip_adapter.read(root / "a.safetensors"),
    )

    features = place("features")
    made = folder(features)
    made.write(0, values(CHUNK))
    made.write(CHUNK, values(6, seed=1))
    made.finish()
    chunk = str((made.path / "samples-000000.safetensors").relative_to(features))
    about = str((made.path / "about.json").relative_to(features))

    def read_features(root: Path) -> None:
        opened = folder(root)
        if opened.why_not() is None:
            opened.read(3)

    add("features", features, chunk, read_features)
    add("features' settings", features, about, read_features)

    masks = place("masks")
    (masks / "tile" / "crack").mkdir(parents=True)
    card = MaskCard(
        acontrol_version="0",
        category="tile",
        defect="crack",
        base=BaseConfig(),
        base_digest="0" * 64,
        split="train",
        training=("000",),
        template="a crack",
        resolution=64,
        seed=0,
        inversion=Inversion(),
        drawn=9,
        kept=3,
        rejected={"small": 6},
    )
    (masks / "tile" / "crack" / "learned.json").write_text(card.model_dump_json())
    add(
        "masks' card",
        masks,
        "tile/crack/learned.json",
        lambda root: read_card(root, "tile", "crack"),
    )

    job = place("job")
    job.mkdir()
    Image.fromarray(np.eye(16, dtype=bool)).save(job / "m.png")
    Image.new("RGB", (16, 16), "red").save(job / "n.png")
    line = {
        **{"category": "a", "defect": "b", "number": "0", "normal": "n.png", "mask": "m.png"},
        **{"reference": "n.png", "reference_mask": "m.png", "reference_phrase": "b"},
        **{"reference_kind": ["a", "b"], "mask_source": "real", "prompt": "c", "first_seed": 1},
        **{"sampling": {"steps": 2}, "batch": 0, "place": 0, "part": [0, 1]},
    }
    (job / "job.json").write_text(json.dumps({"format": "x", "model": "y"}))
    (job / "manifest.jsonl").write_text(json.dumps(line) + "\n")
    add("job", job, "job.json", read_manifest)
    add("manifest", job, "manifest.jsonl", read_manifest)

    base = place("base")
    base.mkdir()
    record = {"categories": ["a"], "split": "train", "split_digest": "third"}
    about_base = {"held_out_from_denoiser": [], "data": "photographs", "trained_on": [record]}
    (base / locate.CARD).write_text(json.dumps(about_base))
    (base / "model_index.json").write_text("{}")
    add(
        "base's card",
        base,
        locate.CARD,
        lambda root: locate.trained_on(BaseConfig(path=str(root), vlm_path=str(root))),
    )
    yield readers


NAMES = (
    *("RGB PNG", "L PNG", "RGB JPEG", "L TIFF", "P BMP", "caption", *JSON, "index", "shard"),
    *(
        f"checkpoint's {name}"
        for name in ("manifest.json", "state.json", "moments.safetensors")
    ),
    *("adapter's card", "IP-Adapter", "features", "features' settings", "masks' card"),
    *("job", "manifest", "base's card"),
)


def with_content(reader: Reader, content: bytes) -> None:
    """Read a folder in which the reader's file is another, and put it back."""
    file = reader.root / reader.file
    before = file.read_bytes()
    file.write_bytes(content)
    try:
        read_or_refuse(lambda: reader.read(reader.root))
    finally:
        file.write_bytes(before)


def fuzzed(reader: Reader, data: st.DataObject) -> None:
    """One damaged form of a reader's file."""
    file = reader.root / reader.file
    content = file.read_bytes()
    ways = [mutated_bytes(content)]
    if file.suffix in (".json", ".jsonl"):
        value = json.loads(content)
        ways.append(mutated_json(value).map(lambda other: json.dumps(other).encode()))
    if reader.read is read_pixels:
        ways.append(images())
    with_content(reader, data.draw(st.one_of(ways)))


@pytest.mark.parametrize("name", NAMES)
def test_what_is_damaged_is_read_or_refused(name: str, whole: dict[str, Reader]) -> None:
    @short
    @given(st.data())
    def run(data: st.DataObject) -> None:
        fuzzed(whole[name], data)

    run()


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_much_that_is_damaged_is_read_or_refused(name: str, whole: dict[str, Reader]) -> None:
    @long
    @given(st.data())
    def run(data: st.DataObject) -> None:
        fuzzed(whole[name], data)

    run()
