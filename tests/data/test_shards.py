import gc
import json
import shutil
import warnings
from pathlib import Path

import numpy as np
import pytest
import webdataset
from PIL import Image

from acontrol.data.images import shrink_mask
from acontrol.data.index import INDEX_NAME, parse_index
from acontrol.data.mvtec import open_folder
from acontrol.data.shards import webdataset_key, write_shards
from acontrol.errors import UserError


@pytest.fixture(scope="module")
def labelled(built_in_data: Path):
    return open_folder(built_in_data).labelled("all")


def stock_samples(folder: Path) -> list[dict]:
    """Read a set with nothing but webdataset, which leaves closing files to the collector."""
    tars = [str(tar) for tar in sorted(folder.glob("*.tar"))]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)
        samples = list(webdataset.WebDataset(tars, shardshuffle=False).decode("pil"))
        gc.collect()
    return samples


def bytes_of(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in sorted(folder.iterdir())}


def test_the_same_input_gives_the_same_bytes(labelled, tmp_path) -> None:
    write_shards(labelled, tmp_path / "a", split="all", shard_size=5)
    write_shards(tuple(reversed(labelled)), tmp_path / "b", split="all", shard_size=5)
    assert bytes_of(tmp_path / "a") == bytes_of(tmp_path / "b")
    assert len(bytes_of(tmp_path / "a")) == -(-len(labelled) // 5) + 1


def test_stock_webdataset_reads_what_the_index_lists(labelled, tmp_path) -> None:
    index = write_shards(labelled, tmp_path / "s", split="all", shard_size=7)
    samples = stock_samples(tmp_path / "s")
    listed = [sample.key for shard in index.shards for sample in shard.samples]
    assert [sample["__key__"] for sample in samples] == listed
    assert len(listed) == index.num_samples == len(labelled)
    by_key = {webdataset_key(image): image for image in labelled}
    for sample in samples:
        original = by_key[sample["__key__"]]
        assert np.array_equal(sample["png"], Image.open(original.image).convert("RGB"))
        assert np.array_equal(sample["mask.png"].convert("L"), Image.open(original.mask))
        assert sample["json"]["caption"] == original.caption


def test_the_index_points_at_the_members(labelled, tmp_path) -> None:
    index = write_shards(labelled, tmp_path / "s", split="all")
    shard = index.shards[0]
    content = (tmp_path / "s" / shard.name).read_bytes()
    assert len(content) == shard.size
    for sample in shard.samples:
        kinds = {member.name.split(".", 1)[1]: member for member in sample.members}
        assert set(kinds) == {"png", "mask.png", "json"}
        metadata = kinds["json"]
        loaded = json.loads(content[metadata.offset : metadata.offset + metadata.size])
        assert f"{loaded['category']}/{loaded['defect']}/{loaded['id']}" == sample.key


def test_an_id_with_dots_keeps_its_members_together(built_in_data, tmp_path) -> None:
    root = tmp_path / "wood"
    shutil.copytree(built_in_data / "wood", root)
    source = root / "test" / "crack" / "000.png"
    source.rename(source.with_name("line.1 left.png"))
    mask = root / "ground_truth" / "crack" / "000_mask.png"
    mask.rename(mask.with_name("line.1 left_mask.png"))
    images = [image for image in open_folder(root).labelled("all") if image.id == "line.1 left"]
    write_shards(images, tmp_path / "s", split="all")
    (sample,) = stock_samples(tmp_path / "s")
    assert {"png", "mask.png", "json"} <= set(sample)
    assert sample["json"]["id"] == "line.1 left"


def test_a_set_that_fails_midway_leaves_nothing(labelled, tmp_path, monkeypatch) -> None:
    def stop_after_three(images):
        for number, image in enumerate(images):
            if number == 3:
                raise KeyboardInterrupt
            yield image

    with pytest.raises(KeyboardInterrupt):
        write_shards(labelled, tmp_path / "s", split="all", progress=stop_after_three)
    assert list(tmp_path.iterdir()) == []


def test_a_failed_rewrite_keeps_the_earlier_set(labelled, tmp_path) -> None:
    write_shards(labelled, tmp_path / "s", split="all")
    before = bytes_of(tmp_path / "s")

    def stop(images):
        raise KeyboardInterrupt
        yield

    with pytest.raises(KeyboardInterrupt):
        write_shards(labelled[:2], tmp_path / "s", split="all", progress=stop)
    assert bytes_of(tmp_path / "s") == before


def test_a_folder_of_something_else_is_not_overwritten(labelled, tmp_path) -> None:
    (tmp_path / "s").mkdir()
    (tmp_path / "s" / "thesis.txt").write_text("mine")
    with pytest.raises(UserError, match="is not empty"):
        write_shards(labelled, tmp_path / "s", split="all")
    assert (tmp_path / "s" / "thesis.txt").read_text() == "mine"


@pytest.mark.parametrize("index", ["{}", None])
def test_a_folder_with_a_strangers_index_or_file_is_not_overwritten(
    labelled, tmp_path, index
) -> None:
    out = tmp_path / "s"
    if index is None:
        write_shards(labelled, out, split="all")
    else:
        out.mkdir()
        (out / INDEX_NAME).write_text(index)
    (out / "thesis.txt").write_text("mine")
    with pytest.raises(UserError, match=r"thesis\.txt|not an acontrol shard index"):
        write_shards(labelled, out, split="all")
    assert (out / "thesis.txt").read_text() == "mine"


@pytest.mark.parametrize("name", ["wood/crack/000.pyd", "wood/crack/000.pickle", "a.b.json"])
def test_an_index_with_other_members_is_refused(labelled, tmp_path, name) -> None:
    index = write_shards(labelled, tmp_path / "s", split="all")
    listing = json.loads(index.model_dump_json())
    listing["shards"][0]["samples"][0]["members"][0]["name"] = name
    with pytest.raises(UserError, match="pattern"):
        parse_index(json.dumps(listing), "index")


def test_large_images_are_scaled_down_and_small_ones_kept(built_in_data, tmp_path) -> None:
    images = open_folder(built_in_data).labelled("all")[:2]
    write_shards(images, tmp_path / "s", split="all", resolution=32)
    for sample in stock_samples(tmp_path / "s"):
        assert sample["png"].size == (32, 32) == sample["mask.png"].size
        assert set(np.unique(sample["mask.png"])) == {0, 255}


@pytest.mark.parametrize("size", [(64, 64), (7, 9), (1, 1)])
def test_a_speck_survives_shrinking(size) -> None:
    mask = Image.new("1", (1000, 900))
    mask.putpixel((977, 13), 1)
    small = shrink_mask(mask, size)
    assert small.size == size
    assert small.getbbox() is not None


@pytest.mark.parametrize(
    "text",
    ["", "{}", '{"format": "other"}', '{"split": "all", "num_samples": 3, "shards": []}'],
)
def test_a_bad_index_is_one_line(text) -> None:
    with pytest.raises(UserError) as caught:
        parse_index(text, "there/index.json")
    assert str(caught.value).startswith("there/index.json")
    assert "\n" not in str(caught.value)


def test_the_digest_follows_the_contents(labelled, tmp_path) -> None:
    whole = write_shards(labelled, tmp_path / "a", split="all")
    fewer = write_shards(labelled[1:], tmp_path / "b", split="all")
    again = parse_index((tmp_path / "a" / INDEX_NAME).read_text(), "a")
    assert whole.digest == again.digest != fewer.digest
