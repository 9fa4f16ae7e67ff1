"""Every method draws one plan, and is held to the same rules."""

import hashlib
import json
import shutil
import signal
import time
from pathlib import Path

import numpy as np
import pytest

from acontrol.errors import UserError
from acontrol.generation.settings import MethodName
from acontrol.networks.locate import built_in_adapter, built_in_base
from acontrol.rivals.copy_paste import CopyPaste
from launch import generate
from tests.launch import commands
from tests.rivals.conftest import lines_of, options, pixels

Drawn = dict[MethodName, Path]
PLANNED = ("normal", "reference", "mask_origin", "prompt", "first_seed", "requested_px")


def tree_of(folder: Path) -> dict[str, str]:
    return {
        file.relative_to(folder).as_posix(): hashlib.sha256(file.read_bytes()).hexdigest()
        for file in sorted(folder.rglob("*"))
        if file.is_file()
    }


def test_methods_share_normals_masks_and_references(drawn: Drawn) -> None:
    ours = lines_of(drawn["acontrol"])
    assert len(ours) == 6
    images = set()
    for method, out in drawn.items():
        lines = lines_of(out)
        assert {line["method"] for line in lines} == {method}
        assert json.loads((out / "job.json").read_text())["method"] == method
        for line, own in zip(lines, ours, strict=True):
            assert [line[name] for name in PLANNED] == [own[name] for name in PLANNED]
            mask, same = (pixels(folder / line["mask"]) for folder in (out, drawn["acontrol"]))
            assert np.array_equal(mask, same)
        images.add((out / lines[0]["image"]).read_bytes())
    assert len(images) == len(drawn)


def test_outside_the_label_every_pixel_is_the_normal_images(
    drawn: Drawn, built_in_data: Path
) -> None:
    for method, out in drawn.items():
        for line in lines_of(out):
            image, normal = pixels(out / line["image"]), pixels(built_in_data / line["normal"])
            mask = pixels(out / line["mask"]) > 0
            assert np.array_equal(image[~mask], normal[~mask]), method
            assert not np.array_equal(image[mask], normal[mask]), method
            assert line["scores"]["distance"] is not None


def test_labels_of_what_changed_are_what_was_pasted(
    drawn: Drawn, built_in_data: Path, tmp_path: Path
) -> None:
    out = tmp_path / "changed"
    generate.run(options("copy-paste", built_in_data, out, "--labels", "changed"))
    smaller = 0
    for line, whole in zip(lines_of(out), lines_of(drawn["copy-paste"]), strict=True):
        label = pixels(out / line["mask"]) > 0
        requested = pixels(out / line["requested_mask"]) > 0
        assert not (label & ~requested).any()
        assert label.sum() == line["changed_px"] == whole["changed_px"]
        assert line["scores"]["mask_fill"] == pytest.approx(label.sum() / requested.sum())
        smaller += label.sum() < requested.sum()
        image, normal = pixels(out / line["image"]), pixels(built_in_data / line["normal"])
        assert np.array_equal(image[~label], normal[~label])
    assert smaller


def test_copy_paste_gives_the_reference_back_up_to_its_edge(
    built_in_data: Path, tmp_path: Path
) -> None:
    """On another normal image at its own mask, with the edge cut hard."""
    wood = built_in_data / "wood"
    mask = wood / "ground_truth/crack/000_mask.png"
    request = {
        "category": "wood",
        "defect": "crack",
        "normal": str(wood / "train/good/000.png"),
        "mask": str(mask),
        "reference": "wood/crack/000",
    }
    (tmp_path / "one.jsonl").write_text(json.dumps(request) + "\n")
    out = tmp_path / "out"
    args = options("copy-paste", built_in_data, out, "--requests", tmp_path / "one.jsonl")
    generate.run([*args, "--blend", "hard", "--match-colour", "off"])
    (line,) = lines_of(out)
    inside = pixels(mask) > 0
    image = pixels(out / line["image"])[inside].astype(int)
    reference = pixels(wood / "test/crack/000.png")[inside].astype(int)
    scaled = (image > 0) & (image < 255)
    gain = [
        np.dot(image[rows, channel], reference[rows, channel])
        / np.dot(reference[rows, channel], reference[rows, channel])
        for channel, rows in enumerate(scaled.T)
    ]
    assert np.abs(image - np.clip(reference * gain, 0, 255)).max() <= 1
    assert line["scores"]["mask_fill"] == 1


def test_the_same_command_draws_the_same_bytes(
    drawn: Drawn, built_in_data: Path, tmp_path: Path
) -> None:
    for method in ("copy-paste", "perlin", "cutpaste", "procedural", "reference-only"):
        generate.run(options(method, built_in_data, tmp_path / method, "--batch-size", 3))
        for line in lines_of(drawn[method]):
            again = tmp_path / method / line["image"]
            if method == "reference-only":  # Another batch may move a last bit.
                gap = pixels(again).astype(int) - pixels(drawn[method] / line["image"])
                assert np.abs(gap).max() <= 1
            else:
                assert again.read_bytes() == (drawn[method] / line["image"]).read_bytes()


def test_a_changed_method_does_not_continue_a_job(
    drawn: Drawn, built_in_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys
) -> None:
    out = tmp_path / "out"
    shutil.copytree(drawn["copy-paste"], out)
    generate.run(options("copy-paste", built_in_data, out))
    assert "Nothing to do" in capsys.readouterr().out
    with pytest.raises(UserError, match="method: copy-paste -> perlin"):
        generate.run(options("perlin", built_in_data, out))
    again = ("--replay", out)
    with pytest.raises(UserError, match="was drawn by --method copy-paste, not perlin"):
        generate.run(options("perlin", built_in_data, tmp_path / "p", *again))
    generate.run(options("copy-paste", built_in_data, tmp_path / "c", *again))
    image = lines_of(out)[0]["image"]
    assert (tmp_path / "c" / image).read_bytes() == (out / image).read_bytes()
    monkeypatch.setattr(CopyPaste, "state", {"version": 0})
    with pytest.raises(UserError, match=r"begun with other settings \(model: "):
        generate.run(options("copy-paste", built_in_data, out))
    with pytest.raises(UserError, match="another model or version of it"):
        generate.run(options("copy-paste", built_in_data, tmp_path / "r", *again))


@pytest.mark.slow
def test_a_killed_job_continues_with_the_same_bytes(
    built_in_data: Path, tmp_path: Path
) -> None:
    args = ("--count", 16, "--batch-size", 1)
    command = options("copy-paste", built_in_data, tmp_path / "killed", *args)
    process = commands.start("launch.generate", *command)
    batches, deadline = tmp_path / ".killed.partial" / "batches", time.monotonic() + 300
    while len(list(batches.glob("*.jsonl"))) < 3:
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert not (tmp_path / "killed").exists()
    done = commands.run("launch.generate", *command)
    assert done.returncode == 0, done.stderr
    assert "Continuing: " in done.stdout
    whole = options("copy-paste", built_in_data, tmp_path / "whole", *args)
    assert commands.run("launch.generate", *whole).returncode == 0
    assert tree_of(tmp_path / "killed") == tree_of(tmp_path / "whole")


def test_a_method_that_cannot_draw_is_told_in_one_line(
    built_in_data: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    with pytest.raises(UserError, match="--model MODEL is needed: --method acontrol"):
        generate.run(["--data", str(built_in_data), "--out", str(out)])
    with pytest.raises(UserError, match=r"ip-adapter: .* reads the reference's words"):
        generate.run(options("ip-adapter", built_in_data, out))
    with pytest.raises(UserError, match="start clean is a choice of an adapter's drawing"):
        generate.run(options("perlin", built_in_data, out, "--start", "clean"))
    base = tmp_path / "base"
    shutil.copytree(built_in_base(), base)
    shutil.rmtree(base / "vlm")
    args = ["--method", "perlin", "--data", built_in_data, "--out", out, "--base-path", base]
    with pytest.raises(UserError, match="has no folder vlm, whose vision tower scores"):
        generate.run([str(arg) for arg in args])
    assert not out.exists()


def test_without_a_model_the_built_in_base_scores(built_in_data: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    args = ["--method", "copy-paste", "--data", built_in_data, "--out", out, "--count", 1]
    args += ["--category", "button", "--gate", "keep", "--split", "all"]
    generate.run([str(arg) for arg in args])
    lines = lines_of(out)
    assert lines
    assert all(0 <= line["scores"]["distance"] <= 2 for line in lines)


def test_ip_adapter_is_an_adapter_of_the_image_alone(
    built_in_data: Path, tmp_path: Path
) -> None:
    adapter = tmp_path / "adapter"
    shutil.copytree(built_in_adapter(), adapter)
    config = json.loads((adapter / "config.json").read_text())
    config["card"]["csm"]["text"] = False
    (adapter / "config.json").write_text(json.dumps(config))
    args = options("ip-adapter", built_in_data, tmp_path / "out", "--model", adapter)
    generate.run([*args, "--count", "1", "--defect", "crack"])
    (line,) = lines_of(tmp_path / "out")
    assert line["method"] == "ip-adapter"
