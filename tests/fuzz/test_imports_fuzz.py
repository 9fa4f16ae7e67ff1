"""Whatever a source holds, it is imported, and can be read again, or refused in one line."""

import contextlib
import importlib
import io
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from acontrol.data.importing.recognise import annotations
from acontrol.data.outlines import run_lengths, runs_mask
from launch import shard
from tests.data.annotated import SOURCES
from tests.fuzz.mutations import (
    images,
    long,
    mutated_bytes,
    mutated_json,
    read_or_refuse,
    short,
)

importer = importlib.import_module("launch.import")
KINDS = ("labelme", "coco with polygons", "coco with runs", "voc of CVAT", "VisA", "loco")
# A file of each kind that is not an image.
TEXTS = {
    "labelme": "000.json",
    "coco with polygons": "annotations/instances_default.json",
    "coco with runs": "annotations/instances_default.json",
    "voc of CVAT": "labelmap.txt",
    "VisA": "image_anno.csv",
}
MASKS = {
    "voc of CVAT": "SegmentationClass/000.png",
    "VisA": "Data/Masks/Anomaly/000.png",
    "loco": "ground_truth/scratch/000/000.png",
}


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A good source of each kind."""
    folders = {}
    for kind in KINDS:
        folders[kind] = tmp_path_factory.mktemp("sources") / "nut"
        folders[kind].mkdir()
        SOURCES[kind][1](folders[kind])
    return folders


@contextlib.contextmanager
def changed(source: Path, file: str, content: bytes) -> Iterator[Path]:
    """A copy of a source in which one file is another."""
    with TemporaryDirectory() as scratch:
        copy = shutil.copytree(source, Path(scratch, "nut"))
        (copy / file).write_bytes(content)
        yield copy


def check(kind: str, source: Path, *more: str) -> None:
    """Import it; nothing is left by a refusal, and what is there can be read."""
    out = source.parent / "out"
    name, _, own = SOURCES[kind]
    args = [name, str(source), "--out", str(out), *own, *more]
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        if read_or_refuse(lambda: importer.run(args) or True) is None:
            assert not out.exists()
        elif any(out.glob("nut/test/*/*")):  # Shards hold defects alone.
            shard.run([str(out), "--dry-run", "--split", "all"])
        read_or_refuse(lambda: annotations(source))


MORE = st.sampled_from(
    ([], ["--skip-bad"], ["--unmarked", "good"], ["--skip-bad", "--unmarked", "leave-out"])
)


def edited_text(sources: dict[str, Path], kind: str, data: st.DataObject) -> None:
    source = sources[kind]
    content = data.draw(mutated_bytes((source / TEXTS[kind]).read_bytes()))
    with changed(source, TEXTS[kind], content) as copy:
        check(kind, copy, *data.draw(MORE))


def edited_json(sources: dict[str, Path], kind: str, data: st.DataObject) -> None:
    source = sources[kind]
    good: Any = json.loads((source / TEXTS[kind]).read_text())
    content = json.dumps(data.draw(mutated_json(good))).encode("utf-8", "surrogatepass")
    filled = ["--boxes-as-masks"] if data.draw(st.booleans()) else []
    with changed(source, TEXTS[kind], content) as copy:
        check(kind, copy, *data.draw(MORE), *filled)


def edited_mask(sources: dict[str, Path], kind: str, data: st.DataObject) -> None:
    source = sources[kind]
    content = data.draw(mutated_bytes((source / MASKS[kind]).read_bytes()) | images())
    with changed(source, MASKS[kind], content) as copy:
        check(kind, copy, *data.draw(MORE))


JSONS = [kind for kind in KINDS if TEXTS.get(kind, "").endswith(".json")]


@pytest.mark.parametrize("kind", TEXTS)
@short
@given(data=st.data())
def test_any_text_is_read_or_refused(sources, kind, data) -> None:
    edited_text(sources, kind, data)


@pytest.mark.parametrize("kind", JSONS)
@short
@given(data=st.data())
def test_any_json_is_read_or_refused(sources, kind, data) -> None:
    edited_json(sources, kind, data)


@pytest.mark.parametrize("kind", MASKS)
@short
@given(data=st.data())
def test_any_mask_is_read_or_refused(sources, kind, data) -> None:
    edited_mask(sources, kind, data)


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
@long
@given(data=st.data())
def test_many_changes_are_read_or_refused(sources, kind, data) -> None:
    edits = [edited_text] * (kind in TEXTS) + [edited_json] * (kind in JSONS)
    edits += [edited_mask] * (kind in MASKS)
    data.draw(st.sampled_from(edits))(sources, kind, data)


@short
@given(text=st.text(max_size=40) | st.text(alphabet=[*map(chr, range(48, 112))], max_size=40))
def test_any_run_lengths_are_a_mask_or_an_error(text: str) -> None:
    with contextlib.suppress(ValueError):
        assert runs_mask(run_lengths(text), (6, 5)).shape == (5, 6)
