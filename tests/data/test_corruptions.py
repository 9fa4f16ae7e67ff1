"""Any damage to a set of shards is an error that names the place, or an exact count."""

import json
import re
import shutil
import tarfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from acontrol.config import DataConfig
from acontrol.data.index import INDEX_NAME
from acontrol.data.mvtec import open_folder
from acontrol.data.reader import ShardReader
from acontrol.data.shards import write_shards
from acontrol.data.skipping import find_damage, report, skip_damaged
from acontrol.data.stream import TrainingStream
from acontrol.errors import UserError
from tests.data import damaging
from tests.data.damaging import HURT, INDEX, MEMBERS, SAMPLE, TAR, UNSEEN

SIZE = 6  # Samples a shard, of 18.


@pytest.fixture(scope="module")
def whole(built_in_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("whole") / "s"
    images = open_folder(built_in_data).labelled("all")
    write_shards(images, out, split="all", shard_size=SIZE, resolution=48)
    return out


@pytest.fixture
def folder(whole: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(whole, tmp_path / "s"))


def read_all(reader: ShardReader) -> dict[str, np.ndarray]:
    """What training would see of each sample that can be used."""
    numbers = np.flatnonzero(reader.usable).tolist()
    return {reader.places[n][1].key: np.asarray(reader.read(n).image) for n in numbers}


def refusal(call: Callable[[], object]) -> str:
    with pytest.raises(UserError) as caught:
        call()
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 700
    return str(caught.value)


def hurt_tar(folder: Path, kind: str) -> list[str]:
    """Damage a shard; returns the keys whose bytes are lost, found independently."""
    shard = ShardReader(str(folder)).index.shards[HURT]
    path = folder / shard.name
    before = path.read_bytes()
    after = TAR[kind](before, shard)
    assert after != before
    if after is None:
        path.unlink()
    else:
        path.write_bytes(after)

    def slices(content: bytes, members: tuple) -> list[bytes]:
        return [content[m.offset : m.offset + m.size] for m in members]

    return [
        sample.key
        for sample in shard.samples
        if slices(before, sample.members) != slices(after or b"", sample.members)
    ]


LOST = {
    **dict.fromkeys(("name flipped", "size flipped", "checksum flipped", "header zeroed"), 0),
    **dict.fromkeys(("header a link", "padding flipped", "more behind the end"), 0),
    "cut at the tar's end": 0,
    **dict.fromkeys(("payload flipped",), 1),
    "contents swapped": 2,
    **dict.fromkeys(("cut at a member's boundary", "cut in a header", "cut in a payload"), 4),
    **dict.fromkeys(("block removed", "block added"), 4),
    **dict.fromkeys(("all zero", "empty", "compressed", "missing"), 6),
}


@pytest.mark.parametrize("kind", TAR)
def test_a_damaged_tar_is_an_error_that_names_the_place(folder: Path, kind: str) -> None:
    lost = hurt_tar(folder, kind)
    reader = ShardReader(str(folder))
    shard = reader.index.shards[HURT]
    message = refusal(lambda: read_all(reader))
    assert f"{folder}/{shard.name} is damaged" in message
    if lost:
        assert lost[0] in message
    if kind in ("padding flipped", "cut at the tar's end", "more behind the end"):
        assert "between its members" in message
    elif kind != "missing":
        offset = int(re.search(r"at offset (\d+)", message)[1])
        offsets = {member.offset for sample in shard.samples for member in sample.members}
        assert {offset, offset + 512} & offsets


@pytest.mark.parametrize("kind", TAR)
def test_a_damaged_tar_costs_exactly_what_is_damaged(
    whole: Path, folder: Path, kind: str
) -> None:
    lost = hurt_tar(folder, kind)
    assert len(lost) == LOST[kind]
    reader = ShardReader(str(folder))
    damage = find_damage(reader)
    assert damage, "the damage went unseen"
    assert [place.key for place in damage if place.lost] == lost
    skip_damaged(reader, damage, max_share=1)
    expected = read_all(ShardReader(str(whole)))
    seen = read_all(reader)
    assert seen.keys() == expected.keys() - set(lost)
    assert all(np.array_equal(seen[key], expected[key]) for key in seen)
    assert list(reader.skipped) == lost and bool(reader.skipped_digest) == bool(lost)
    text = report(reader, damage)
    assert text.startswith(f"Skipping {len(lost)} of 18 samples, damaged")
    assert reader.index.shards[HURT].name in text and all(key in text for key in lost)
    config = DataConfig(resolution=48)
    stream = TrainingStream(reader, config, seed=1, reference_px=24)
    assert len(stream) == 18 - len(lost)
    epoch = [stream[position]["keys"] for position in range(len(stream))]
    assert sorted(epoch) == sorted(seen)


def test_seven_kinds_of_damage_raise_nothing_in_plain_reading(folder: Path) -> None:
    silent = set()
    for kind in TAR.keys() - {"missing", "compressed"}:
        shard = ShardReader(str(folder)).index.shards[HURT]
        path = folder / shard.name
        whole = path.read_bytes()
        path.write_bytes(TAR[kind](whole, shard) or b"")
        try:
            with tarfile.open(path, "r|*") as archive:
                for info in archive:
                    file = archive.extractfile(info) if info.isfile() else None
                    _ = file.read() if file else b""
            silent.add(kind)
        except (tarfile.TarError, OSError):
            pass
        path.write_bytes(whole)
    # Why there is an index: whoever reads a shard as a stream sees nothing wrong.
    assert len(silent) >= 7, silent


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize("kind", MEMBERS)
def test_a_wrong_member_is_an_error_that_names_the_place(folder: Path, kind: str) -> None:
    member_kind, change, word = MEMBERS[kind]
    number, member = damaging.rewritten(folder, member_kind, change)
    reader = ShardReader(str(folder))
    assert find_damage(reader) == (), "the checksums are those of the wrong bytes"
    message = refusal(lambda: reader.read(number))
    place = f"{reader.places[number][0].name}: sample {reader.places[number][1].key}, member "
    assert place in message and word in message
    if "size" not in kind:
        assert f"{member.name} at offset {member.offset}" in message
    reader.read(number - 1)


@pytest.mark.parametrize("kind", INDEX)
def test_a_wrong_index_is_not_opened(folder: Path, kind: str) -> None:
    change, word = INDEX[kind]
    listing = json.loads((folder / INDEX_NAME).read_text())
    change(listing)
    (folder / INDEX_NAME).write_text(json.dumps(listing))
    message = refusal(lambda: ShardReader(str(folder)))
    assert message.startswith(f"{folder}/{INDEX_NAME}: ") and word in message


@pytest.mark.parametrize("kind", UNSEEN)
def test_a_wrong_figure_in_the_index_is_found_by_reading(folder: Path, kind: str) -> None:
    listing = json.loads((folder / INDEX_NAME).read_text())
    UNSEEN[kind](listing)
    (folder / INDEX_NAME).write_text(json.dumps(listing))
    reader = ShardReader(str(folder))
    message = refusal(lambda: read_all(reader))
    assert f"{reader.index.shards[HURT].name} is damaged" in message
    if "member" in kind:
        assert reader.index.shards[HURT].samples[SAMPLE].members[2].name in message


@pytest.mark.parametrize("share", [0.0, 0.03, 0.5, 0.97])
def test_a_cut_index_is_not_opened(folder: Path, share: float) -> None:
    content = (folder / INDEX_NAME).read_bytes()
    (folder / INDEX_NAME).write_bytes(content[: int(share * len(content))])
    assert "not an acontrol shard index" in refusal(lambda: ShardReader(str(folder)))
    (folder / INDEX_NAME).write_bytes(b"\xff\x00" * 9)
    assert "not an acontrol shard index" in refusal(lambda: ShardReader(str(folder)))
