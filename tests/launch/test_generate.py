"""Data sets drawn with the adapter that ships: placed, judged, continued, drawn again."""

import hashlib
import json
import re
import shutil
import signal
import time
from pathlib import Path
from urllib.parse import unquote

import numpy as np
import pytest
import torch
from PIL import Image

from acontrol.data.images import read_image
from acontrol.data.mvtec import open_folder
from acontrol.data.reader import ShardReader
from acontrol.errors import UserError
from acontrol.evaluation import caveats
from acontrol.generation.settings import GenerationConfig
from acontrol.networks.locate import built_in_adapter
from launch import generate
from launch.options import parse
from tests.data.test_mvtec import REAL
from tests.launch import commands

# As many outputs as there are; in processes of its own, since threads can change a bit.
WATCHED = ("--count", 4, "--refine-mask", "--format", "shards")


def options(out: Path, data: Path, *more: object) -> list[str]:
    args = ["--model", built_in_adapter(), "--data", data, "--out", out, "--split", "all"]
    own = {"--gate", "--paper"} & {*more}
    gate = [] if own else ["--gate", "keep"]  # Few pass after two steps.
    return [str(arg) for arg in [*args, "--steps", 2, "--batch-size", 3, *gate, *more]]


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
    (tmp_path / "none").mkdir()
    with pytest.raises(UserError, match=r"no .* there"):
        generate_into(out, built_in_data, *masks, "--masks-path", tmp_path / "none")
    assert not out.exists()


@pytest.fixture(scope="module")
def undisturbed(built_in_data, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("generate") / "whole"
    done = commands.run("launch.generate", *options(out, built_in_data, *WATCHED))
    assert done.returncode == 0, done.stderr
    return out


def test_files_changed_after_they_were_drawn_are_told(undisturbed, tmp_path) -> None:
    out = tmp_path / "changed"
    shutil.copytree(undisturbed, out)
    category = next(place for place in out.iterdir() if (place / "test").is_dir())
    assert caveats.of_files({"ours": out, "one": category}) == []
    first, second, third = sorted(category.glob("test/*/*.png"))[:3]
    Image.fromarray(read_image(first)[::-1].copy()).save(first)
    second.unlink()
    mask = category / "ground_truth" / third.parent.name / f"{third.stem}_mask.png"
    Image.new("L", (64, 64), 255).save(mask)
    files = 2 * len((out / "manifest.jsonl").read_text().splitlines())
    changed, gone = caveats.of_files({"ours": out})
    told = f"--synthetic ours: 2 of {files} files are not as they were drawn (first {mask}); "
    assert changed.startswith(told)
    told = f"--synthetic ours: 1 of {files} files are no longer there (first {second}); "
    assert gone.startswith(told)
    assert len(caveats.of_files({"one": category})) == 2


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
        with pytest.raises(UserError, match=r"begun with other settings \(plan: "):
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


def test_outside_the_mask_the_normal_image_is_kept(undisturbed, built_in_data) -> None:
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
        assert (image[~mask] == normal[~mask]).all()
        assert line["scores"]["background_psnr"] is None
        assert line["scores"]["leak_psnr"] is not None


def coloured(out: Path) -> list[float]:
    """Of each image, the share of pixels whose channels differ."""
    images = [np.asarray(Image.open(out / line["image"])) for line in lines_of(out)]
    return [float((image != image[..., :1]).any(axis=2).mean()) for image in images]


def test_grey_products_stay_grey_and_others_keep_their_colours(
    undisturbed, built_in_data, tmp_path
) -> None:
    grey = tmp_path / "grey"
    shutil.copytree(built_in_data, grey)
    for file in grey.glob("*/t*/*/*.png"):
        Image.open(file).convert("L").convert("RGB").save(file)
    one = ("--count", 1, "--defect", "stain", "--gate", "off")
    generate_into(tmp_path / "a", grey, *one)
    assert coloured(tmp_path / "a") == [0.0, 0.0]
    generate_into(tmp_path / "off", grey, *one, "--match-colour", "off")
    assert min(coloured(tmp_path / "off")) > 0
    assert min(coloured(undisturbed)) > 0.5


def test_a_drawing_is_no_more_colourful_than_its_product_and_its_defects(
    built_in_data, tmp_path
) -> None:
    """A product of little colour, whose real defects have as little."""
    pale = tmp_path / "pale"
    shutil.copytree(built_in_data, pale)
    for file in pale.glob("*/t*/*/*.png"):
        pixels = np.asarray(Image.open(file).convert("L").convert("RGB")).astype(int)
        tinted = np.clip(pixels + np.array([4, 0, -4]), 0, 255).astype(np.uint8)
        Image.fromarray(tinted).save(file)
    most = {}
    for match in ("auto", "off"):
        more = ("--defect", "stain", "--count", 1, "--gate", "off")
        generate_into(tmp_path / match, pale, "--match-colour", match, *more)
        images = [
            np.asarray(Image.open(tmp_path / match / line["image"])).astype(int)
            for line in lines_of(tmp_path / match)
        ]
        most[match] = max(int((one.max(axis=2) - one.min(axis=2)).max()) for one in images)
    assert most["auto"] <= 9  # Each channel is rounded.
    assert most["off"] > 20


def test_magnetic_tiles_stay_grey(tmp_path) -> None:
    if not (REAL / "magnetic_tile").is_dir():
        pytest.skip(f"{REAL} has no magnetic_tile")
    generate_into(tmp_path / "a", REAL / "magnetic_tile", "--count", 1, "--gate", "off")
    assert set(coloured(tmp_path / "a")) == {0.0}
    for line in lines_of(tmp_path / "a"):
        normal = np.asarray(Image.open(REAL / "magnetic_tile" / line["normal"]).convert("RGB"))
        image = np.asarray(Image.open(tmp_path / "a" / line["image"]))
        mask = np.asarray(Image.open(tmp_path / "a" / line["mask"])) > 0
        assert (image[~mask] == normal[~mask]).all()
        assert (image[mask] != normal[mask]).any(axis=1).mean() > 0.5


def test_in_bfloat16_nearly_the_same_is_drawn(built_in_data, tmp_path) -> None:
    images = {}
    for precision in ("float32", "bfloat16"):
        out = tmp_path / precision
        more = ("--count", 1, "--defect", "stain", "--gate", "off", "--precision", precision)
        generate_into(out, built_in_data, *more)
        assert json.loads((out / "job.json").read_text())["dtype"] == precision
        images[precision] = [
            np.asarray(Image.open(out / line["image"])) for line in lines_of(out)
        ]
    for one, other in zip(*images.values(), strict=True):
        gap = np.abs(one.astype(int) - other)
        assert gap.max() > 0
        assert gap.mean() < 2


def test_the_papers_procedure_is_one_option(built_in_data, tmp_path) -> None:
    adapter, paper = shutil.copytree(built_in_adapter(), tmp_path / "adapter"), tmp_path / "p"
    config = json.loads((adapter / "config.json").read_text())
    config["card"]["target_crop"] = 4.0
    (adapter / "config.json").write_text(json.dumps(config))
    command = parse(GenerationConfig, options(paper, built_in_data, "--paper"), prog="here")
    resolved = command.resolved
    assert (resolved.count, resolved.guidance_scale, resolved.crop) == (1000, 7.5, 0)
    assert (resolved.gate, resolved.blend, resolved.match_colour) == ("off", "hard", "off")
    assert resolved.steps == 2  # Given besides; 30 by itself.
    assert GenerationConfig(model="m", data=paper, out=paper, paper=True).resolved.steps == 30
    assert command.model_copy(update={"paper": False}).resolved.count == 4
    more = ("--paper", "--count", 1, "--defect", "stain", "--model", adapter)
    generate_into(paper, built_in_data, *more)
    job = json.loads((paper / "job.json").read_text())
    assert job["gate"]["gate"] == "off"
    assert (job["finish"]["blend"], job["finish"]["match_colour"]) == ("hard", "off")
    for line in lines_of(paper):
        assert line["boxes"] == [[0, 0, 64, 64]]
        assert line["sampling"]["guidance_scale"] == 7.5


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
    assert "http" not in page
    assert "src=" not in page  # The script makes the images, of files that exist:
    lines = lines_of(undisturbed)
    data = json.loads(re.findall(r"id='rows'>(.*?)</script>", page)[0])
    assert len(data["rows"]) == len(lines)
    files = {file for row in data["rows"] for file in row[2:6] if file}
    report = undisturbed / "report"
    assert all((report / unquote(file)).is_file() for file in files)
    for line in lines:
        assert f"../{line['image']}" in files
        assert f"{line['category']}/{line['defect']}" in data["kinds"]
    assert "has not seen" not in page


def test_the_page_shows_what_was_rejected_and_why(built_in_data, tmp_path, capsys) -> None:
    few = ("--count", 1, "--category", "wood", "--tries", 1)
    generate_into(tmp_path / "all", built_in_data, *few)
    near, far = sorted(line["scores"]["distance"] for line in lines_of(tmp_path / "all"))[::2]
    assert near < far

    def page_of(name: str, limit: float) -> tuple[str, list[str]]:
        capsys.readouterr()
        more = (*few, "--gate", "reject", "--min-fill", 0, "--max-distance", limit)
        generate_into(tmp_path / name, built_in_data, *more)
        page = tmp_path / name / "report" / "index.html"
        printed = capsys.readouterr().out.splitlines()
        assert f"Look at {page}" in printed
        return page.read_text(), printed

    page, printed = page_of("some", (near + far) / 2)
    rejected = (tmp_path / "some" / "rejected.jsonl").read_text().count("\n")
    assert page.count("(--max-distance)") == rejected > 0
    assert "<details><summary>" in page and "id='gallery'" in page
    page, printed = page_of("none", 0.0)
    assert "None passed; --gate keep" in "\n".join(printed)
    assert printed[-1] == f"0 images with masks: {tmp_path / 'none'}"
    assert page.count("nearest training defect, over 0.000 (--max-distance)") == 3
    assert "<details open>" in page and "id='gallery'" not in page
    for file in re.findall(r"(?:href|src)='([^']+)'", page):
        assert (tmp_path / "none" / "report" / unquote(file)).is_file(), file
    assert not (tmp_path / "none" / "shards").exists()


def test_a_product_that_the_base_has_not_seen_is_noted_on_the_page_too(
    built_in_data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(built_in_data / "wood", tmp_path / "data" / "plank")
    generate_into(tmp_path / "out", tmp_path / "data", "--count", 1, "--defect", "crack")
    note = "the built-in base has not seen this product (plank)"
    assert f"note: {note}" in capsys.readouterr().err
    assert note in (tmp_path / "out" / "report" / "index.html").read_text()


@pytest.fixture
def large(built_in_data, tmp_path) -> Path:
    """A request to draw two scratches, far apart, on a large image."""
    good = np.asarray(Image.open(open_folder(built_in_data).normals("wood")[0]))
    Image.fromarray(np.tile(good, (32, 32, 1))).save(tmp_path / "large.png")
    mask = np.zeros((2048, 2048), np.uint8)
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
    return tmp_path / "r.jsonl"


def test_a_scratch_on_a_large_image_is_drawn_near_and_changes_nothing_else(
    built_in_data, large, tmp_path, capsys
) -> None:
    generate_into(tmp_path / "g", built_in_data, "--requests", large, "--crop", 4)
    (note,) = re.findall("note: .*", capsys.readouterr().err)
    assert "--crop 4 draws squares of 4 times the defect" in note
    assert "the adapter was trained on whole images" in note
    (line,) = lines_of(tmp_path / "g")
    boxes = sorted(line["boxes"])
    assert [box[2] - box[0] for box in boxes] == [96, 96]
    image = np.asarray(Image.open(tmp_path / "g" / line["image"]))
    normal = np.asarray(Image.open(tmp_path / "large.png"))
    mask = np.asarray(Image.open(tmp_path / "mask.png")) > 0
    assert (image[~mask] == normal[~mask]).all()
    for place in (np.s_[1000:1008, 700:724], np.s_[200:216, 1500:1524]):
        assert (image[place] != normal[place]).any(axis=2).mean() > 0.5


@pytest.mark.parametrize(
    ("trained", "limit", "sides", "words"),
    [
        (0.0, None, [2048], None),
        (4.0, None, [96, 96], None),
        (4.0, 30, [30] * 6, None),  # Three along each.
        (None, None, [2048], "whole images are assumed"),
    ],
)
def test_drawing_follows_the_view_of_the_adapters_card(
    built_in_data, large, tmp_path, capsys, trained, limit, sides, words
) -> None:
    adapter = tmp_path / "adapter"
    shutil.copytree(built_in_adapter(), adapter)
    config = json.loads((adapter / "config.json").read_text())
    config["card"] |= {"target_crop": trained, "target_px": limit}
    if trained is None:
        del config["card"]["target_crop"]  # As earlier versions wrote it.
    (adapter / "config.json").write_text(json.dumps(config))
    generate_into(
        tmp_path / "g",
        built_in_data,
        *("--requests", large, "--gate", "off", "--model", adapter),
    )
    notes = re.findall("note: .*", capsys.readouterr().err)
    assert [words in note for note in notes] == [True] * (words is not None)
    (line,) = lines_of(tmp_path / "g")
    assert [box[2] - box[0] for box in line["boxes"]] == sides


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
