"""Data sets drawn with the adapter that ships: placed, judged, continued, drawn again."""

import hashlib
import json
import re
import shutil
import signal
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from scipy import ndimage

from acontrol.data.mvtec import open_folder
from acontrol.data.reader import ShardReader
from acontrol.errors import UserError
from acontrol.networks.locate import built_in_adapter
from launch import generate
from tests.launch import commands

# As many outputs as there are; in processes of its own, since threads can change a bit.
WATCHED = ("--count", 4, "--refine-mask", "--format", "shards")


def options(out: Path, data: Path, *more: object) -> list[str]:
    args = ["--model", built_in_adapter(), "--data", data, "--out", out, "--split", "all"]
    return [str(arg) for arg in [*args, "--steps", 2, "--batch-size", 3, *more]]


def generate_into(out: Path, data: Path, *more: object) -> None:
    generate.run(options(out, data, *more))


def lines_of(out: Path) -> list[dict]:
    return [json.loads(line) for line in (out / "manifest.jsonl").read_text().splitlines()]


def tree_of(folder: Path) -> dict[str, str]:
    """Every file's sum by its path."""
    return {
        file.relative_to(folder).as_posix(): hashlib.sha256(file.read_bytes()).hexdigest()
        for file in sorted(folder.rglob("*"))
        if file.is_file()
    }


def test_every_source_of_masks_draws_in_its_own_places(built_in_data, tmp_path) -> None:
    mine = tmp_path / "mine"
    mine.mkdir()
    own = np.zeros((64, 64), np.uint8)
    own[20:36, 24:44] = 255
    Image.fromarray(own).save(mine / "one.png")
    places = {}
    for source in ("real", "same", "perlin", "file"):
        more = ["--masks-path", mine] if source == "file" else []
        out = tmp_path / source
        generate_into(out, built_in_data, "--count", 1, "--masks", source, *more)
        lines = [json.loads(line) for line in (out / "manifest.jsonl").read_text().splitlines()]
        assert len(lines) == 6
        assert {line["mask_source"] for line in lines} == {source}
        origins = {line["mask_origin"] for line in lines}
        assert origins == {None} if source == "perlin" else None not in origins
        masks = [np.asarray(Image.open(out / line["mask"])) > 0 for line in lines]
        assert all(mask.any() for mask in masks)
        places[source] = [mask.tobytes() for mask in masks]
    assert len({tuple(one) for one in places.values()}) == 4
    assert set(places["file"]) == {(own > 0).tobytes()}


def test_masks_that_fit_nowhere_are_told_before_anything_is_drawn(
    built_in_data, tmp_path
) -> None:
    mine = tmp_path / "mine"
    mine.mkdir()
    dot = np.zeros((64, 64), np.uint8)
    dot[30, 30] = 255
    Image.fromarray(dot).save(mine / "dot.png")
    out, masks = tmp_path / "g", ("--masks", "file")
    with pytest.raises(UserError, match=r"found a place.*dot\.png is smaller than one"):
        generate_into(out, built_in_data, *masks, "--masks-path", mine)
    with pytest.raises(UserError, match="need each other"):
        generate_into(out, built_in_data, *masks)
    with pytest.raises(UserError, match=r"no \.png there"):
        generate_into(out, built_in_data, *masks, "--masks-path", tmp_path)
    assert not out.exists()


@pytest.fixture(scope="module")
def undisturbed(built_in_data, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("generate") / "whole"
    done = commands.run("launch.generate", *options(out, built_in_data, *WATCHED))
    assert done.returncode == 0, done.stderr
    return out


@pytest.mark.parametrize("kills", [(3,), pytest.param((1, 3, 5), marks=pytest.mark.slow)])
def test_a_killed_job_continues_and_ends_with_the_same_bytes(
    undisturbed, built_in_data, tmp_path, kills
) -> None:
    out = tmp_path / "whole"
    for kept in kills:
        process = commands.start("launch.generate", *options(out, built_in_data, *WATCHED))
        deadline = time.monotonic() + 120
        while len(list((tmp_path / ".whole.partial").glob("batches/*.jsonl"))) < kept:
            assert process.poll() is None, process.communicate()
            assert time.monotonic() < deadline
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
        process.communicate()
        assert not out.exists()
    done = commands.run("launch.generate", *options(out, built_in_data, *WATCHED))
    assert done.returncode == 0, done.stderr
    (there,) = re.findall(r"Continuing: (\d+) of 24 images", done.stdout)
    assert int(there) >= 3 * kills[-1]
    assert len(lines_of(out)) == 24
    assert tree_of(out) == tree_of(undisturbed)
    assert not (tmp_path / ".whole.partial").exists()


def test_the_same_command_has_nothing_to_do_and_another_is_refused(
    undisturbed, built_in_data, capsys
) -> None:
    before = tree_of(undisturbed)
    threads = torch.get_num_threads()
    # A job continues on a machine like its own only.
    torch.set_num_threads(json.loads((undisturbed / "job.json").read_text())["threads"])
    try:
        generate_into(undisturbed, built_in_data, *WATCHED)
        assert "Nothing to do" in capsys.readouterr().out
        with pytest.raises(UserError, match="not empty"):
            generate_into(undisturbed, built_in_data, *WATCHED, "--seed", 1)
    finally:
        torch.set_num_threads(threads)
    assert tree_of(undisturbed) == before


def test_an_unfinished_job_is_not_mixed_with_another(built_in_data, tmp_path) -> None:
    partial = tmp_path / ".a.partial"
    partial.mkdir()
    (partial / "job.json").write_text("{}")
    with pytest.raises(UserError, match=r"other settings \(format: None -> acontrol-gen"):
        generate_into(tmp_path / "a", built_in_data, "--count", 1)
    assert (partial / "job.json").read_text() == "{}"


def test_any_batch_is_drawn_again_from_the_manifest(
    undisturbed, built_in_data, tmp_path
) -> None:
    """In a process of its own, with nothing but manifest, masks and data."""
    old, new = tmp_path / "old", tmp_path / "new"
    shutil.copytree(undisturbed, old)
    lines = lines_of(old)
    last = max(line["batch"] for line in lines)
    wanted = [line for line in lines if line["batch"] == last]
    before = {line["image"]: (old / line["image"]).read_bytes() for line in wanted}
    for line in lines:
        (old / line["image"]).unlink()
    more = ("--replay", old, "--batch", last)
    done = commands.run("launch.generate", *options(new, built_in_data, *more))
    assert done.returncode == 0, done.stderr
    again = {line["image"]: (new / line["image"]).read_bytes() for line in lines_of(new)}
    assert again == before
    masks = {line["mask"]: (new / line["mask"]).read_bytes() for line in lines_of(new)}
    assert all((old / name).read_bytes() == content for name, content in masks.items())


def test_outside_mask_and_fade_the_normal_image_is_kept(undisturbed, built_in_data) -> None:
    for line in lines_of(undisturbed):
        normal = np.asarray(Image.open(built_in_data / line["normal"]))
        image = np.asarray(Image.open(undisturbed / line["image"]))
        mask = np.asarray(Image.open(undisturbed / line["mask"])) > 0
        refined = np.asarray(Image.open(undisturbed / line["refined_mask"])) > 0
        assert image.shape == normal.shape
        assert mask.shape == normal.shape[:2]
        assert mask.any()
        assert refined.any()
        assert not (refined & ~mask).any()
        faded = ndimage.distance_transform_edt(~mask) < 3
        assert (image[~faded] == normal[~faded]).all()
        assert line["scores"]["background_psnr"] > line["scores"]["leak_psnr"]


def test_without_composite_the_leak_is_what_is_left(built_in_data, tmp_path) -> None:
    more = ("--count", 1, "--defect", "crack")
    generate_into(tmp_path / "a", built_in_data, *more, "--no-composite")
    for line in lines_of(tmp_path / "a"):
        assert line["scores"]["background_psnr"] == line["scores"]["leak_psnr"]


def test_the_shards_hold_the_same_images_and_masks(undisturbed) -> None:
    lines = {
        f"{one['category']}/{one['defect']}/{one['number']}": one
        for one in lines_of(undisturbed)
    }
    reader = ShardReader(str(undisturbed / "shards"))
    samples = [one for shard in reader.index.shards for one in shard.samples]
    assert {one.key for one in samples} == set(lines)
    for place, one in enumerate(samples):
        sample, line = reader.read(place), lines[one.key]
        assert sample.caption == line["prompt"]
        for ours, name in ((sample.image, "image"), (sample.mask, "mask")):
            with Image.open(undisturbed / line[name]) as theirs:
                assert (np.asarray(ours) == np.asarray(theirs.convert(ours.mode))).all()


def test_the_page_needs_nothing_else(undisturbed) -> None:
    page = (undisturbed / "report" / "index.html").read_text()
    assert set(re.findall(r"src='([^']{0,22})", page)) == {"data:image/png;base64,"}
    assert "http" not in page
    for line in lines_of(undisturbed):
        assert f"{line['category']}/{line['defect']}" in page


def test_a_scratch_on_a_large_image_is_drawn_near_and_changes_nothing_else(
    built_in_data, tmp_path
) -> None:
    good = np.asarray(Image.open(open_folder(built_in_data).normals("wood")[0]))
    large = np.tile(good, (32, 32, 1))
    Image.fromarray(large).save(tmp_path / "large.png")
    mask = np.zeros(large.shape[:2], np.uint8)
    mask[1000:1008, 700:724] = 255
    mask[200:216, 1500:1524] = 255
    Image.fromarray(mask).save(tmp_path / "mask.png")
    request = {
        "category": "wood",
        "defect": "crack",
        "normal": "large.png",
        "mask": "mask.png",
        "reference_category": "button",
    }
    (tmp_path / "r.jsonl").write_text(json.dumps(request))
    generate_into(tmp_path / "g", built_in_data, "--requests", tmp_path / "r.jsonl")
    (line,) = lines_of(tmp_path / "g")
    boxes = sorted(line["boxes"])
    assert [box[2] - box[0] for box in boxes] == [96, 96]
    image = np.asarray(Image.open(tmp_path / "g" / line["image"]))
    faded = ndimage.distance_transform_edt(mask == 0) < 5
    assert (image[~faded] == large[~faded]).all()
    for place in (np.s_[1000:1008, 700:724], np.s_[200:216, 1500:1524]):
        assert (image[place] != large[place]).any(axis=2).mean() > 0.5


def test_two_workers_draw_what_one_does(
    built_in_data, ray_address, tmp_path, monkeypatch
) -> None:
    """On a real Ray cluster of this machine; a thread each, as this process has too."""
    more = ("--count", 2, "--refine-mask")
    generate_into(tmp_path / "one", built_in_data, *more)
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    two = options(tmp_path / "two", built_in_data, *more, "--num-workers", 2)
    done = commands.run("launch.generate", *two, cluster=ray_address)
    assert done.returncode == 0, done.stderr
    assert tree_of(tmp_path / "one") == tree_of(tmp_path / "two")
