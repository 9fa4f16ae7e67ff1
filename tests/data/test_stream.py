import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from acontrol.config import DataConfig
from acontrol.data.crops import crops
from acontrol.data.features import NAMES, FeatureFolder, Features
from acontrol.data.images import fit, region
from acontrol.data.index import IndexedSample, Shard, ShardIndex
from acontrol.data.mvtec import open_folder
from acontrol.data.reader import ShardReader
from acontrol.data.shards import write_shards
from acontrol.data.stream import TrainingStream, check_view, epoch_order, held_out
from acontrol.errors import UserError


@pytest.fixture(scope="module")
def shards(built_in_data: Path, tmp_path_factory) -> str:
    out = tmp_path_factory.mktemp("shards") / "s"
    write_shards(open_folder(built_in_data).labelled("all"), out, split="all", shard_size=5)
    return str(out)


def stream_of(shards: str, seed: int = 3, **data) -> TrainingStream:
    config = DataConfig(resolution=32, block_shards=2, **data)
    return TrainingStream(ShardReader(shards), config, seed=seed, reference_px=24)


def keys(
    stream: TrainingStream, start: int, per_rank: int, world: int, steps: int
) -> list[str]:
    """The keys of the global batches, ranks side by side."""
    ranks = [stream.batches(start, per_rank, rank, world, steps) for rank in range(world)]
    taken = []
    for _ in range(steps):
        for rank in ranks:
            taken += next(rank).keys
    return taken


def test_features_take_the_places_of_sample_and_reference(shards, tmp_path) -> None:
    stream = stream_of(shards, reference="same_defect", loader_workers=2)
    count = len(stream.reader)
    names = [sample.key for _, sample in stream.reader.places]
    folder = FeatureFolder(tmp_path, {}, names)
    number = torch.arange(count).float()
    folder.write(0, Features(*[number[:, None] + 100 * field for field in range(7)]))
    kept = TrainingStream(
        stream.reader, stream.config, seed=3, reference_px=24, features=folder
    )
    differ = 0
    for batch in kept.batches(0, 4, 0, 1, 5):
        for row, position in enumerate(batch.positions):
            target, reference = stream.pair(position)
            differ += target != reference
            assert batch.keys[row] == names[target]
            values = [getattr(batch, name)[row].item() for name in NAMES]
            expected = [target] * 4 + [reference] * 3
            assert values == [100 * column + number for column, number in enumerate(expected)]
    assert differ > 5


@pytest.mark.parametrize("limit", [None, 24])
def test_a_region_is_cut_from_original_pixels_as_drawing_cuts_it(
    built_in_data, shards, tmp_path, limit
) -> None:
    images = []
    for number, small in enumerate(open_folder(built_in_data).labelled("all")):
        pixels, mask = Image.new("RGB", (260, 200), "gray"), Image.new("L", (260, 200))
        for large, file in ((pixels, small.image), (mask, small.mask)):
            large.paste(Image.open(file), (8 * number, 4 * number))
        files = [tmp_path / f"{number}.png", tmp_path / f"{number}_mask.png"]
        pixels.save(files[0]), mask.save(files[1])
        images.append(dataclasses.replace(small, image=files[0], mask=files[1]))
    write_shards(images, tmp_path / "s", split="all", resolution=None)
    stream = stream_of(str(tmp_path / "s"), target_view="region", target_px=limit)
    whole = stream_of(str(tmp_path / "s"))
    near = 0
    for number in range(len(stream)):
        sample = stream.reader.read(number)
        parts = crops(np.asarray(sample.mask), 4, 32, limit)
        box = max(parts, key=lambda part: part.mask.sum()).box
        image, mask = fit(sample.image.crop(box), sample.mask.crop(box), 32)
        row = stream.paired(number, number, number)
        assert torch.equal(row["image"], image)
        assert torch.equal(row["mask"], mask)
        near += not torch.equal(row["image"], whole.paired(number, number, number)["image"])
        assert limit is None or box[2] - box[0] <= limit
    assert near == len(stream)
    check_view(stream.config, stream.reader.index, stream.reader.root)
    check_view(DataConfig(), stream_of(shards).reader.index, shards)
    with pytest.raises(UserError, match=r"scaled down to 512 px: .*shard --resolution None"):
        check_view(stream.config, stream_of(shards).reader.index, shards)


def test_every_epoch_holds_every_sample_once(shards) -> None:
    stream = stream_of(shards)
    count = len(stream.reader)
    first, second = (
        [stream[position]["keys"] for position in range(epoch * count, (epoch + 1) * count)]
        for epoch in range(2)
    )
    assert sorted(first) == sorted(second) == sorted(set(first))
    assert first != second


def test_the_order_follows_the_seed(shards) -> None:
    index = ShardReader(shards).index
    orders = [epoch_order(index, seed, 0, 2).tolist() for seed in (1, 1, 2)]
    assert orders[0] == orders[1] != orders[2]


def test_the_order_is_the_same_as_ever() -> None:
    def samples(count: int) -> tuple[IndexedSample, ...]:
        return (IndexedSample.model_construct(key="x"),) * count

    shards = tuple(Shard.model_construct(samples=samples(count)) for count in (3, 4, 2, 5))
    index = ShardIndex.model_construct(shards=shards)
    # A change here changes what all runs train on, and breaks all resumes.
    first = [13, 12, 7, 10, 9, 11, 8, 6, 0, 4, 3, 2, 5, 1]
    second = [10, 11, 0, 9, 2, 13, 12, 1, 8, 3, 7, 5, 6, 4]
    assert epoch_order(index, seed=5, epoch=0, block_shards=2).tolist() == first
    assert epoch_order(index, seed=5, epoch=1, block_shards=2).tolist() == second


def test_a_block_is_read_before_the_next(shards) -> None:
    index = ShardReader(shards).index
    sizes = [len(shard.samples) for shard in index.shards]
    shard_of = np.repeat(np.arange(len(sizes)), sizes)
    order = epoch_order(index, 5, 0, 2)
    visited = shard_of[order]
    blocks, place = [], 0
    while place < len(order):
        block = set()
        while place < len(order) and (len(block | {visited[place]}) <= 2):
            block.add(visited[place])
            place += 1
        blocks.append(block)
    assert sum(len(block) for block in blocks) == len(sizes), "a shard came back"


@pytest.mark.parametrize(("world", "per_rank"), [(1, 6), (2, 3), (3, 2), (6, 1)])
def test_the_global_batch_is_the_same_for_any_number_of_ranks(shards, world, per_rank) -> None:
    assert keys(stream_of(shards), 0, per_rank, world, 4) == keys(stream_of(shards), 0, 6, 1, 4)


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 80))
def test_a_resume_continues_with_the_next_sample(shards, start) -> None:
    whole = [stream_of(shards)[position]["keys"] for position in range(start, start + 4)]
    assert keys(stream_of(shards), start, 2, 2, 1) == whole


def test_loader_processes_change_nothing(shards) -> None:
    inline = list(stream_of(shards).batches(4, 3, 0, 1, 3))
    apart = list(stream_of(shards, loader_workers=2).batches(4, 3, 0, 1, 3))
    assert len(inline) == 3
    for batch, other in zip(inline, apart, strict=True):
        assert batch.keys == other.keys
        assert torch.equal(batch.image, other.image)
        assert torch.equal(batch.reference_mask, other.reference_mask)


def test_a_sample_has_the_documented_shapes_and_ranges(shards) -> None:
    batch = next(stream_of(shards).batches(0, 3, 0, 1, 1))
    assert batch.image.shape == (3, 3, 32, 32)
    assert batch.mask.shape == (3, 1, 32, 32)
    assert batch.reference_image.shape == (3, 3, 24, 24)
    assert batch.reference_mask.shape == (3, 1, 24, 24)
    assert -1 <= batch.image.min() < -0.5 < 0.5 < batch.image.max() <= 1
    assert set(batch.mask.unique().tolist()) == {0.0, 1.0}
    assert all(mask.any() for mask in batch.reference_mask)
    assert batch.positions == [0, 1, 2]


def test_references_keep_to_their_pairing(shards) -> None:
    for pairing in ("self", "same_defect", "cross_category"):
        stream = stream_of(shards, reference=pairing)
        samples = [sample for _, sample in stream.reader.places]
        for number, partners in enumerate(stream._partners):
            sample = samples[number]
            for other in (samples[partner] for partner in partners):
                assert other.defect == sample.defect
                if pairing == "self":
                    assert other.key == sample.key
                elif pairing == "same_defect":
                    assert other.category == sample.category
                    assert other.key != sample.key
                else:
                    assert other.category != sample.category


def test_a_defect_on_one_category_has_no_cross_reference(built_in_data, tmp_path) -> None:
    images = open_folder(built_in_data / "wood").labelled("all")
    write_shards(images, tmp_path / "s", split="all")
    with pytest.raises(UserError, match="cross_category"):
        stream_of(str(tmp_path / "s"), reference="cross_category")


def test_the_region_shows_the_defect_magnified() -> None:
    image = Image.new("RGB", (200, 100), "white")
    mask = Image.new("1", (200, 100))
    image.paste((255, 0, 0), (150, 40, 170, 60))
    mask.paste(1, (150, 40, 170, 60))
    cut, cut_mask = region(image, mask)
    assert cut.size == cut_mask.size
    assert max(cut.size) <= 42
    assert np.asarray(cut_mask).sum() == 400
    assert (np.asarray(cut)[np.asarray(cut_mask)] == (255, 0, 0)).all()


def test_the_region_of_a_defect_in_the_corner_stays_inside() -> None:
    mask = Image.new("1", (50, 80))
    mask.paste(1, (45, 75, 50, 80))
    cut, cut_mask = region(Image.new("RGB", mask.size), mask)
    assert np.asarray(cut_mask).sum() == 25
    assert cut.size[0] >= 10
    assert cut.size[1] >= 10


def test_fitting_keeps_a_mask_binary_and_non_empty() -> None:
    mask = Image.new("1", (300, 200))
    mask.putpixel((3, 190), 1)
    _, fitted = fit(Image.new("RGB", mask.size), mask, 16)
    assert fitted.shape == (1, 16, 16)
    assert fitted.sum() == 1
    assert fitted[0, 15, 0] == 1


@pytest.fixture
def damaged(shards, tmp_path) -> Path:
    folder = tmp_path / "damaged"
    folder.mkdir()
    for file in Path(shards).iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    return folder


def test_a_flipped_byte_names_shard_sample_and_offset(damaged) -> None:
    reader = ShardReader(str(damaged))
    shard = reader.index.shards[0]
    member = shard.samples[2].members[0]
    path = damaged / shard.name
    content = bytearray(path.read_bytes())
    content[member.offset + member.size // 2] ^= 1
    path.write_bytes(content)
    with pytest.raises(UserError) as caught:
        reader.read(0)
    for part in (shard.name, shard.samples[2].key, str(member.offset)):
        assert part in str(caught.value)


def test_a_cut_or_missing_shard_is_noticed(damaged) -> None:
    reader = ShardReader(str(damaged))
    first, second = (damaged / shard.name for shard in reader.index.shards[:2])
    first.write_bytes(first.read_bytes()[:-2048])
    second.unlink()
    with pytest.raises(UserError, match="damaged"):
        reader.read(0)
    with pytest.raises(UserError, match="which is missing"):
        reader.read(len(reader.index.shards[0].samples))


def test_remote_shards_are_read_through_the_cache(shards, tmp_path) -> None:
    import fsspec

    memory = fsspec.filesystem("memory")
    memory.put(shards, "/bucket/s", recursive=True)
    remote = ShardReader("memory://bucket/s", cache_dir=str(tmp_path / "cache"))
    local = ShardReader(shards)
    assert np.array_equal(remote.read(1).image, local.read(1).image)
    assert len(list((tmp_path / "cache").iterdir())) == 1


def test_a_folder_without_index_says_how_to_make_one(tmp_path) -> None:
    with pytest.raises(UserError, match="acontrol shard ROOT"):
        ShardReader(str(tmp_path))


@pytest.mark.parametrize("pairing", ["self", "same_defect"])
def test_what_is_held_out_is_seen_in_no_form(shards, pairing) -> None:
    reader = ShardReader(shards)
    held = held_out(reader.index, 0.3)
    assert held.sum() == round(0.3 * len(reader))
    config = DataConfig(resolution=32, reference=pairing)
    streams = [
        TrainingStream(reader, config, seed=1, reference_px=24, used=used)
        for used in (held, ~held)
    ]
    seen = []
    for stream, used in zip(streams, (held, ~held), strict=True):
        numbers = set(stream._order(0).tolist())
        assert len(stream) == len(numbers) == used.sum()
        partners = {other for number in numbers for other in stream._partners[number]}
        assert all(used[other] for other in partners)
        seen.append(numbers)
    assert seen[0].isdisjoint(seen[1])


def test_the_held_out_choice_is_fixed_and_leaves_both_sides_something(shards) -> None:
    index = ShardReader(shards).index
    assert np.array_equal(held_out(index, 0.2), held_out(index, 0.2))
    assert held_out(index, 1e-6).sum() == 1
    assert (~held_out(index, 1 - 1e-6)).sum() == 1
