"""What lies under the noise when a drawing starts."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import acontrol
from acontrol.data.crops import crops
from acontrol.data.images import image_size, read_image, read_mask
from acontrol.errors import UserError
from acontrol.networks.locate import built_in_adapter
from acontrol.pipelines.anomaly_control import AnomalyControlPipeline
from acontrol.rivals.copy_paste import pasted
from launch import generate


def prepared(files: dict[str, Path]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The normal image, its mask, and the reference pasted there."""
    size = image_size(files["image"])
    normal, mask = read_image(files["image"]), np.asarray(read_mask(files["mask"], size))
    reference = read_image(files["reference_image"])
    reference_mask = np.asarray(read_mask(files["reference_mask"], size))
    paste = pasted(normal, mask, reference, reference_mask).pixels
    return normal, mask, paste


def test_a_low_strength_keeps_the_paste_and_a_high_one_does_not(
    pipe: AnomalyControlPipeline, crack: dict[str, Path]
) -> None:
    normal, mask, paste = prepared(crack)

    def gap(target: np.ndarray, **settings: object) -> float:
        words = {"reference_phrase": "a crack", "product": "wood", "steps": 5}
        drawn = acontrol.draw_defect(pipe, **crack, **words, blend="hard", **settings)
        pixels = np.asarray(drawn)
        assert np.array_equal(pixels[~mask], normal[~mask])
        return float(np.abs(pixels[mask].astype(int) - target[mask]).mean())

    kept = [gap(paste, start="reference", strength=strength) for strength in (0, 0.2, 1)]
    assert max(kept[:2]) < kept[2] / 2
    assert kept[0] < 0.7 * gap(normal, start="reference", strength=0)  # No normal image.
    assert kept[0] < 0.7 * gap(paste)  # Nor what noise alone gives.
    clean = {"start": "clean", "strength": 0}
    assert gap(normal, **clean) < 0.7 * gap(paste, **clean)
    with pytest.raises(ValueError, match="give start reference or clean"):
        gap(paste, strength=0.5)


@pytest.fixture
def near(tmp_path: Path) -> Path:
    """An adapter that draws in squares of up to 24 pixels."""
    adapter = shutil.copytree(built_in_adapter(), tmp_path / "adapter")
    config = json.loads((adapter / "config.json").read_text())
    config["card"] |= {"target_crop": 4.0, "target_px": 24}
    (adapter / "config.json").write_text(json.dumps(config))
    return Path(adapter)


def test_a_long_defect_starts_from_its_reference_once(
    crack: dict[str, Path], near: Path
) -> None:
    """Not with the reference's whole defect in every part."""
    _, mask, paste = prepared(crack)
    assert len(crops(mask, 4.0, 64, 24)) > 2
    drawn = acontrol.draw_defect(
        acontrol.load_pipeline(near),
        **crack,
        **{"reference_phrase": "a crack", "product": "wood", "steps": 5, "blend": "hard"},
        **{"start": "reference", "strength": 0},
    )
    gap = np.abs(np.asarray(drawn)[mask].astype(int) - paste[mask]).mean()
    assert gap < 15  # 6 here; 29 with the whole of it in every part.


def test_what_lies_beyond_a_part_is_not_taken_for_a_leak(
    crack: dict[str, Path], near: Path, tmp_path: Path
) -> None:
    """The start holds the whole defect; of its square a part changes its own pixels alone."""
    blob = np.zeros((64, 64), np.uint8)
    blob[12:52, 12:52] = 255
    Image.fromarray(blob).save(tmp_path / "blob.png")
    request = {
        **{"category": "wood", "defect": "crack", "reference_phrase": "a crack"},
        **{"normal": str(crack["image"]), "mask": "blob.png"},
        "reference_image": str(crack["reference_image"]),
        "reference_mask": str(crack["reference_mask"]),
    }
    (tmp_path / "r.jsonl").write_text(json.dumps(request))
    args = ["--model", near, "--data", crack["image"].parents[3], "--split", "all"]
    args += ["--out", tmp_path / "out", "--requests", tmp_path / "r.jsonl", "--gate", "off"]
    args += ["--steps", 5, "--start", "reference", "--strength", 0.2, "--detail"]
    generate.run([str(arg) for arg in args])
    line = json.loads((tmp_path / "out" / "manifest.jsonl").read_text())
    assert len(line["boxes"]) == 16
    assert line["scores"]["leak_psnr"] > 30  # 35 here; 24 with the paste beyond the part.


def test_a_request_sets_its_own_start_and_the_manifest_records_it(
    built_in_data: Path, tmp_path: Path
) -> None:
    request = {"category": "wood", "defect": "crack", "seed": 3}
    lines = [request, request | {"start": "reference"}, request | {"start": "clean"}]
    (tmp_path / "r.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    args = ["--model", built_in_adapter(), "--data", built_in_data, "--split", "all"]
    args += ["--out", tmp_path / "out", "--steps", 4, "--gate", "off"]
    args += ["--requests", tmp_path / "r.jsonl"]
    with pytest.raises(UserError, match=r"r\.jsonl:1: strength 0.5 keeps"):
        generate.run([str(arg) for arg in [*args, "--strength", 0.5]])
    lines[0] = request | {"strength": 1.0}
    (tmp_path / "r.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    generate.run([str(arg) for arg in [*args, "--strength", 0.5]])
    text = (tmp_path / "out" / "manifest.jsonl").read_text()
    settings = [json.loads(line)["sampling"] for line in text.splitlines()]
    assert [(row["start"], row["strength"]) for row in settings] == [
        ("noise", 1.0),
        ("reference", 0.5),
        ("clean", 0.5),
    ]
    images = {
        (tmp_path / "out" / json.loads(line)["image"]).read_bytes()
        for line in text.splitlines()
    }
    assert len(images) == 3


def test_detail_keeps_what_the_base_cannot_draw(
    pipe: AnomalyControlPipeline, crack: dict[str, Path]
) -> None:
    """Of an unchanged start every pixel; the drawing's own difference on top of it."""
    normal, mask, paste = prepared(crack)

    def drawn(**settings: object) -> np.ndarray:
        words = {"reference_phrase": "a crack", "product": "wood", "steps": 5}
        own = words | settings
        return np.asarray(acontrol.draw_defect(pipe, **crack, **own, blend="hard"))

    assert np.array_equal(drawn(start="clean", strength=0, detail=True), normal)
    gaps = [
        np.abs(drawn(start="reference", strength=0, detail=detail).astype(int) - paste)[mask]
        for detail in (False, True)
    ]
    assert gaps[1].mean() < gaps[0].mean() / 1.5, "but where latents meet the normal image's"
    plain, with_detail = (drawn(detail=detail).astype(int) for detail in (False, True))
    lost = normal - drawn(start="clean", strength=0).astype(int)
    assert np.abs(lost[mask]).mean() > 1, "the autoencoder is not exact"
    expected = (plain + lost).clip(0, 255)
    near = np.abs(with_detail - expected)[mask] <= 2
    assert near.mean() > 0.95, "but where the limit of the colours takes part"


def test_only_an_adapters_drawing_has_detail(built_in_data: Path, tmp_path: Path) -> None:
    args = ["--data", str(built_in_data), "--out", str(tmp_path / "out"), "--detail"]
    with pytest.raises(UserError, match="detail is a choice of an adapter's drawing"):
        generate.run([*args, "--method", "copy-paste", "--count", "1"])
    assert not (tmp_path / "out").exists()
