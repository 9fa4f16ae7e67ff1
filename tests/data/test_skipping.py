import hashlib
import json
import pickle
import shutil
from pathlib import Path

import fsspec
import numpy as np
import pytest
import torch

from acontrol.config import DataConfig
from acontrol.data.mvtec import open_folder
from acontrol.data.reader import ShardReader
from acontrol.data.shards import write_shards
from acontrol.data.skipping import (
    agree_on_damage,
    find_damage,
    refuse_other_skips,
    skip_damaged,
)
from acontrol.data.stream import TrainingStream, held_out
from acontrol.errors import UserError


@pytest.fixture(scope="module")
def whole(built_in_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("whole") / "s"
    images = open_folder(built_in_data).labelled("all")
    write_shards(images, out, split="all", shard_size=5, resolution=32)
    return out


def hurt(folder: Path, *numbers: int) -> list[str]:
    """Flip a bit in the image of these samples; returns their keys."""
    reader = ShardReader(str(folder))
    for number in numbers:
        shard, sample = reader.places[number]
        content = bytearray((folder / shard.name).read_bytes())
        content[sample.members[2].offset + 50] ^= 4
        (folder / shard.name).write_bytes(content)
    return [reader.places[number][1].key for number in numbers]


@pytest.fixture
def folder(whole: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(whole, tmp_path / "s"))


def skipping(folder: Path) -> ShardReader:
    reader = ShardReader(str(folder))
    skip_damaged(reader, find_damage(reader), max_share=1)
    return reader


def order_of(reader: ShardReader, seed: int = 3, used: np.ndarray | None = None) -> list[str]:
    """Keys of the first two epochs."""
    stream = TrainingStream(
        reader, DataConfig(resolution=32), seed=seed, reference_px=24, used=used
    )
    return [str(stream[position]["keys"]) for position in range(2 * len(stream))]


def test_the_other_samples_keep_their_order(whole: Path, folder: Path) -> None:
    before = order_of(ShardReader(str(whole)))
    lost = hurt(folder, 2, 11, 12)
    assert order_of(skipping(folder)) == [key for key in before if key not in lost]
    assert order_of(skipping(folder), seed=4) != order_of(skipping(folder))


def test_held_out_samples_stay_held_out(whole: Path, folder: Path) -> None:
    held = held_out(ShardReader(str(whole)).index, 0.3)
    lost = hurt(folder, int(np.flatnonzero(held)[0]), int(np.flatnonzero(~held)[0]))
    for used in (held, ~held):
        left = set(order_of(skipping(folder), used=used))
        assert left == set(order_of(ShardReader(str(whole)), used=used)) - set(lost)


def test_no_usable_sample_is_an_error(folder: Path) -> None:
    hurt(folder, 4)
    with pytest.raises(UserError, match="every sample"):
        order_of(skipping(folder), used=np.arange(18) == 4)


@pytest.mark.parametrize(
    ("most", "passes"),
    [(0.0, False), (0.05, False), (0.1111, False), (1 / 9, True), (1.0, True)],
)
def test_the_share_that_may_be_lost_is_capped(folder: Path, most: float, passes: bool) -> None:
    lost = hurt(folder, 2, 11)
    reader = ShardReader(str(folder))
    damage = find_damage(reader)
    if passes:
        skip_damaged(reader, damage, most)
        assert reader.skipped == tuple(lost)
        return
    with pytest.raises(UserError) as caught:
        skip_damaged(reader, damage, most)
    for part in (str(folder), "2 of 18 samples", "11.11%", f"{most:g}", lost[0], "offset"):
        assert part in str(caught.value)
    assert reader.usable.all()


def test_damage_that_loses_no_sample_is_no_loss(folder: Path) -> None:
    shard = ShardReader(str(folder)).index.shards[1]
    with (folder / shard.name).open("ab") as stream:
        stream.write(b"more")
    reader = ShardReader(str(folder))
    skip_damaged(reader, find_damage(reader), max_share=0)
    assert reader.usable.all() and reader.skipped == () and reader.skipped_digest == ""
    assert len(order_of(reader)) == 36


def test_an_intact_set_is_read_as_before(whole: Path) -> None:
    reader = skipping(whole)
    assert order_of(reader) == order_of(ShardReader(str(whole)))
    refuse_other_skips("", reader)


def test_another_set_of_skipped_samples_is_noticed(folder: Path) -> None:
    hurt(folder, 2)
    first = skipping(folder)
    refuse_other_skips(first.skipped_digest, skipping(folder))
    hurt(folder, 3)
    with pytest.raises(UserError, match="the order would differ"):
        refuse_other_skips(first.skipped_digest, skipping(folder))
    with pytest.raises(UserError, match="with no samples skipped"):
        refuse_other_skips("", first)


@pytest.mark.parametrize("checked", [False, True])
def test_later_damage_is_an_error(folder: Path, checked: bool) -> None:
    hurt(folder, 2)
    reader = skipping(folder) if checked else ShardReader(str(folder))
    later = 9 if checked else 12
    if not checked:
        reader.read(10)  # Its shard is verified, and so are the next two samples.
    key = hurt(folder, later)[0]
    with pytest.raises(UserError) as caught:
        reader.read(later)
    reason = "damaged since this run's check" if checked else "no longer matches the index"
    assert reason in str(caught.value) and key in str(caught.value)


def test_later_damage_of_a_damaged_shard_is_an_error(folder: Path) -> None:
    hurt(folder, 2)
    reader = skipping(folder)
    reader.read(1)
    key = hurt(folder, 3)[0]
    with pytest.raises(UserError, match="no longer matches") as caught:
        reader.read(3)
    assert key in str(caught.value)
    with pytest.raises(ValueError, match="is skipped"):
        reader.read(2)


def test_a_disk_that_cannot_read_a_block_loses_that_sample(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reader = ShardReader(str(folder))
    shard, sample = reader.places[7]
    bad = sample.members[1].offset
    open_whole = Path.open

    class Rotten:
        def __init__(self, file):
            self.file = file

        def __enter__(self):
            return self

        def __exit__(self, *_):
            self.file.close()

        def readinto(self, buffer):
            raise OSError(5, "Input/output error")

        def readable(self):
            return True

        def seek(self, offset):
            return self.file.seek(offset)

        def read(self, count):
            if self.file.tell() <= bad < self.file.tell() + count:
                raise OSError(5, "Input/output error")
            return self.file.read(count)

    def opened(path, *args, **kwargs):
        file = open_whole(path, *args, **kwargs)
        return Rotten(file) if path.name == shard.name else file

    monkeypatch.setattr(Path, "open", opened)
    assert [place.key for place in find_damage(reader)] == [sample.key]


def test_a_shard_that_may_not_be_read_is_no_damage(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def locked(path, *args, **kwargs):
        raise PermissionError(13, "Permission denied", str(path))

    reader = ShardReader(str(folder))
    monkeypatch.setattr(Path, "open", locked)
    for call in (lambda: find_damage(reader), lambda: reader.read(0)):
        with pytest.raises(UserError, match=r"\.tar: cannot be read \(Permission denied\)"):
            call()


def test_loader_processes_skip_the_same(folder: Path) -> None:
    hurt(folder, 2, 11)
    reader = skipping(folder)
    again = pickle.loads(pickle.dumps(reader))  # As a spawned loader gets it.
    assert order_of(again) == order_of(reader)
    assert again.skipped_digest == reader.skipped_digest


def test_a_damaged_copy_in_the_cache_is_fetched_again(folder: Path, tmp_path: Path) -> None:
    memory = fsspec.filesystem("memory")
    memory.put(str(folder), "/bucket/cached", recursive=True)
    cache = str(tmp_path / "cache")
    ShardReader("memory://bucket/cached", cache).read(0)
    (copy,) = Path(cache).iterdir()
    copy.write_bytes(b"cut")
    ShardReader("memory://bucket/cached", cache).read(0)
    assert hashlib.sha256(copy.read_bytes()).hexdigest() == copy.stem
    shard = ShardReader("memory://bucket/cached", cache).index.shards[1]
    memory.rm(f"/bucket/cached/{shard.name}")
    reader = ShardReader("memory://bucket/cached", cache)
    lost = [sample.key for sample in shard.samples]
    assert [place.key for place in find_damage(reader)] == lost
    with pytest.raises(UserError, match="which is missing"):
        reader.read(5)


@pytest.mark.parametrize("first", ["whole", "damaged"])
def test_rank_0_decides_for_all(
    whole: Path,
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    first: str,
) -> None:
    lost = hurt(folder, 2, 11) if first == "damaged" else []
    views = [folder, whole]
    sent: list[object] = []
    data = DataConfig(damaged="skip", max_damaged=0.2)
    readers = [ShardReader(str(view)) for view in views]
    for rank, reader in enumerate(readers):

        def exchange(message: list[object], rank: int = rank) -> None:
            message[:] = sent if rank else message
            sent[:] = message

        monkeypatch.setattr(torch.distributed, "get_rank", lambda rank=rank: rank)
        monkeypatch.setattr(torch.distributed, "broadcast_object_list", exchange)
        agree_on_damage(reader, data)
        assert list(reader.skipped) == lost
    messages = [record.getMessage() for record in caplog.records]
    assert len(messages) == bool(lost)  # Once, and all of it.
    assert all(key in message for message in messages for key in lost)


def rank_of_two(rank: int, folders: list[str], out: str) -> None:
    """What one of two gloo processes takes, each with its own view of the storage."""
    store = torch.distributed.FileStore(f"{out}/store", 2)
    torch.distributed.init_process_group("gloo", store=store, rank=rank, world_size=2)
    strict, loose = (
        DataConfig(resolution=32, damaged="skip", max_damaged=most) for most in (0.01, 0.2)
    )
    with pytest.raises(UserError, match="2 of 18 samples"):  # On both: neither hangs.
        agree_on_damage(ShardReader(folders[rank]), strict)
    reader = ShardReader(folders[rank])
    agree_on_damage(reader, loose)
    stream = TrainingStream(reader, loose, seed=3, reference_px=24)
    taken = [batch.keys for batch in stream.batches(0, 2, rank, 2, steps=8)]
    Path(out, f"{rank}.json").write_text(json.dumps([reader.skipped_digest, taken]))
    torch.distributed.destroy_process_group()


@pytest.mark.slow
def test_ranks_skip_what_rank_0_finds_whatever_they_see(
    whole: Path, folder: Path, tmp_path: Path
) -> None:
    hurt(folder, 2, 11)
    torch.multiprocessing.spawn(rank_of_two, ([str(folder), str(whole)], str(tmp_path)), 2)
    (digest, first), (other, second) = (
        json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(2)
    )
    assert digest == other == skipping(folder).skipped_digest != ""
    steps = zip(first, second, strict=True)  # Ranks side by side make the global batch.
    taken = [key for pair in steps for keys in pair for key in keys]
    assert taken == order_of(skipping(folder))
