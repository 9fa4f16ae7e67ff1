"""The built-in procedural data set."""

import json
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from acontrol.data.builtin import dataset
from acontrol.data.builtin.dataset import (
    ATTRIBUTES,
    CATEGORIES,
    DEFECT_TYPES,
    draw,
    specimens,
    write_dataset,
)

KINDS = [(defect, attribute) for defect in DEFECT_TYPES for attribute in ATTRIBUTES[defect]]


def _colour_of(specimen):
    """The median colour where the defect changed the picture most."""
    change = np.abs(specimen.image.astype(int) - specimen.normal).sum(-1)
    strong = change > np.quantile(change[specimen.mask], 0.5)
    return np.median(specimen.image[strong & specimen.mask].astype(float), axis=0)


def _files(root: Path) -> dict[str, bytes]:
    return {
        path.relative_to(root).as_posix(): path.read_bytes()
        for path in root.rglob("*")
        if path.is_file()
    }


@pytest.mark.parametrize("category", CATEGORIES)
def test_the_same_arguments_draw_the_same_bytes(category):
    for defect in (*DEFECT_TYPES, "good"):
        first, second = (draw(category, defect, seed=3) for _ in range(2))
        assert first.image.tobytes() == second.image.tobytes()
        assert first.mask.tobytes() == second.mask.tobytes()
        assert first.normal.tobytes() == second.normal.tobytes()
        assert first.caption == second.caption


@pytest.mark.parametrize("category", CATEGORIES)
def test_another_seed_draws_another_product_and_another_defect(category):
    assert not np.array_equal(
        draw(category, "good", seed=1).image, draw(category, "good", seed=2).image
    )
    for defect in DEFECT_TYPES:
        masks = {draw(category, defect, seed=seed).mask.tobytes() for seed in range(2)}
        assert len(masks) == 2


@pytest.mark.parametrize(("defect", "attribute"), KINDS)
@pytest.mark.parametrize("category", CATEGORIES)
def test_the_mask_is_exactly_what_the_defect_changed(category, defect, attribute):
    specimen = draw(category, defect, seed=11, attribute=attribute)
    assert specimen.image.dtype == specimen.normal.dtype == np.uint8
    assert specimen.image.shape == specimen.normal.shape == (64, 64, 3)
    assert specimen.mask.dtype == np.bool_
    assert specimen.mask.shape == (64, 64)
    changed = (specimen.image != specimen.normal).any(-1)
    assert not changed[~specimen.mask].any()
    # Shading passes through "no change" between its light and its dark side, no more.
    assert changed[specimen.mask].mean() > 0.9
    assert np.abs(specimen.image.astype(int) - specimen.normal)[specimen.mask].mean() > 10


@pytest.mark.parametrize("category", CATEGORIES)
def test_a_defect_is_neither_tiny_nor_large(category):
    for defect in DEFECT_TYPES:
        areas = [draw(category, defect, seed=seed).mask.mean() for seed in range(6)]
        assert min(areas) > 0.01
        assert max(areas) < 0.3
        assert np.mean(areas) < 0.12


@pytest.mark.parametrize("category", CATEGORIES)
def test_a_good_product_is_the_normal_side_of_every_defect(category):
    good = draw(category, "good", seed=5)
    assert not good.mask.any()
    assert np.array_equal(good.image, good.normal)
    for defect in DEFECT_TYPES:
        assert np.array_equal(draw(category, defect, seed=5).normal, good.image)


@pytest.mark.parametrize("defect", ["stain", "spots", "scratch"])
def test_an_attribute_changes_the_look_but_not_the_shape(defect):
    first, *others = (
        draw("tile", defect, seed=4, attribute=attribute) for attribute in ATTRIBUTES[defect]
    )
    for other in others:
        assert np.array_equal(first.mask, other.mask)
        assert not np.array_equal(first.image, other.image)


@pytest.mark.parametrize("defect", ["stain", "spots"])
@pytest.mark.parametrize("category", CATEGORIES)
def test_the_colour_named_is_the_colour_seen(category, defect):
    for seed in range(2):
        for channel, colour in enumerate(("red", "green", "blue")):
            seen = _colour_of(draw(category, defect, seed=seed, attribute=colour))
            assert seen[channel] > 1.3 * np.delete(seen, channel).max()
        assert _colour_of(draw(category, defect, seed=seed, attribute="black")).max() < 90


@pytest.mark.parametrize("category", CATEGORIES)
def test_a_light_scratch_is_lighter_than_a_dark_one(category):
    for seed in range(2):
        drawn = [
            draw(category, "scratch", seed=seed, attribute=attribute)
            for attribute in ("light", "dark")
        ]
        light, dark = (specimen.image.astype(int) for specimen in drawn)
        mask, normal = drawn[0].mask, drawn[0].normal
        assert light[mask].mean() > dark[mask].mean() + 30
        assert np.quantile(light[mask], 0.75) > np.quantile(normal[mask], 0.75)
        assert np.quantile(dark[mask], 0.25) < np.quantile(normal[mask], 0.25)


def test_every_spot_is_at_least_three_pixels_in_radius():
    for seed in range(5):
        mask = draw("metal", "spots", seed=seed, attribute="red").mask
        # A cross of three pixels each way fits only where a spot is that large.
        inner = mask.copy()
        for step in (-2, -1, 1, 2):
            inner &= np.roll(mask, step, 0) & np.roll(mask, step, 1)
        assert inner.any()
        # Grown back by the radius, what survived must reach every spot again.
        reached = np.zeros_like(mask)
        for row, column in np.argwhere(inner):
            reached[max(0, row - 5) : row + 6, max(0, column - 5) : column + 6] = True
        assert not (mask & ~reached).any()


@pytest.mark.parametrize("defect", DEFECT_TYPES)
def test_a_defect_of_the_button_lies_on_the_button(defect):
    y, x = (np.mgrid[:64, :64] + 0.5) / 64
    for seed in range(5):
        mask = draw("button", defect, seed=seed).mask
        # No button is larger than this circle, nor further off the centre.
        assert not mask[np.hypot(x - 0.5, y - 0.5) > 0.49].any()


@pytest.mark.parametrize("category", CATEGORIES)
def test_a_seed_gives_the_same_composition_at_other_resolutions(category):
    for defect in DEFECT_TYPES:
        small = draw(category, defect, seed=7)
        large = draw(category, defect, seed=7, resolution=128)
        assert large.image.shape == (128, 128, 3)
        assert large.attribute == small.attribute
        touched = large.mask.reshape(64, 2, 64, 2).any((1, 3))
        assert (touched & small.mask).sum() > 0.8 * (touched | small.mask).sum()
        shrunk = large.image.reshape(64, 2, 64, 2, 3).mean((1, 3))
        # Leather has detail that 64 px cannot hold; two seeds are some 30 apart.
        assert np.abs(shrunk - small.image).mean() < 8


def test_there_are_84_captions():
    captions = {
        draw(category, defect, seed=0, resolution=32, attribute=attribute).caption
        for category in CATEGORIES
        for defect, attribute in [*KINDS, ("good", "")]
    }
    assert len(captions) == 84
    assert "a photo of wood with a red stain" in captions
    assert "a photo of leather" in captions


@pytest.mark.parametrize(
    ("defect", "attribute", "phrase"),
    [
        ("stain", "red", "a red stain"),
        ("spots", "blue", "blue spots"),
        ("scratch", "light", "a light scratch"),
        ("hole", "", "a hole"),
        ("crack", "", "a crack"),
        ("dent", "", "a dent"),
        ("good", "", ""),
    ],
)
def test_a_phrase_names_the_anomaly(defect, attribute, phrase):
    assert draw("metal", defect, seed=0, attribute=attribute).phrase == phrase


def test_an_attribute_left_out_is_drawn_from_the_seed():
    drawn = {draw("metal", "stain", seed=seed, resolution=32).attribute for seed in range(15)}
    assert drawn == set(ATTRIBUTES["stain"])


@pytest.mark.parametrize(
    ("category", "defect", "attribute", "allowed"),
    [
        ("glass", "hole", None, "leather"),
        ("wood", "rust", None, "scratch"),
        ("wood", "stain", "pink", "green"),
        ("wood", "hole", "red", "''"),
        ("wood", "good", "red", "''"),
    ],
)
def test_an_unknown_name_is_refused_with_what_is_allowed(category, defect, attribute, allowed):
    with pytest.raises(ValueError, match=f"allowed are .*{allowed}"):
        draw(category, defect, seed=0, attribute=attribute)


@pytest.mark.parametrize(("seed", "resolution"), [(-1, 64), (0, 8)])
def test_a_seed_or_a_resolution_out_of_range_is_refused(seed, resolution):
    with pytest.raises(ValueError, match="or more"):
        draw("wood", "hole", seed=seed, resolution=resolution)


def test_the_stream_repeats_for_a_seed_and_differs_for_another():
    first, second, other = (list(islice(specimens(seed, 32), 12)) for seed in (1, 1, 2))
    assert [s.image.tobytes() for s in first] == [s.image.tobytes() for s in second]
    assert [s.caption for s in first] != [s.caption for s in other]


def test_about_one_in_seven_of_the_stream_is_good():
    drawn = list(islice(specimens(0, 32), 150))
    assert 0.08 < np.mean([specimen.defect == "good" for specimen in drawn]) < 0.22
    assert {specimen.category for specimen in drawn} == set(CATEGORIES)
    assert {specimen.defect for specimen in drawn} == {*DEFECT_TYPES, "good"}


def test_the_data_set_has_the_layout_of_mvtec_ad(tmp_path):
    root = tmp_path / "set"
    write_dataset(
        root,
        num_good=2,
        num_good_test=1,
        num_defects=2,
        categories=("wood", "button"),
        defects=("stain", "hole"),
    )
    expected = set()
    for category in ("wood", "button"):
        expected |= {f"{category}/train/good/{i:03d}.png" for i in range(2)}
        expected |= {f"{category}/test/good/000.png", f"{category}/prompt/phrases.json"}
        for defect in ("stain", "hole"):
            for i in range(2):
                expected |= {
                    f"{category}/test/{defect}/{i:03d}.png",
                    f"{category}/ground_truth/{defect}/{i:03d}_mask.png",
                    f"{category}/prompt/{defect}/{i:03d}.txt",
                }
    assert set(_files(root)) == expected
    assert [path.name for path in tmp_path.iterdir()] == ["set"]

    with Image.open(root / "wood/ground_truth/stain/001_mask.png") as mask:
        assert mask.mode == "L"
        assert set(np.unique(np.asarray(mask))) == {0, 255}
    with Image.open(root / "wood/test/stain/001.png") as image:
        assert image.mode == "RGB"
    phrases = json.loads((root / "wood/prompt/phrases.json").read_text())
    assert phrases == {
        "stain/000": "a red stain",
        "stain/001": "a blue stain",
        "hole/000": "a hole",
        "hole/001": "a hole",
    }
    caption = (root / "wood/prompt/stain/001.txt").read_text()
    assert caption == "a photo of wood with a blue stain\n"


def test_no_two_pictures_of_the_data_set_are_the_same_product(tmp_path):
    write_dataset(tmp_path / "set", num_good=4, num_defects=2, categories=("metal",))
    pictures = [data for name, data in _files(tmp_path).items() if "/ground_truth/" not in name]
    pictures = [data for data in pictures if data.startswith(b"\x89PNG")]
    assert len(pictures) == len(set(pictures)) == 4 + 5 + 2 * 6


def test_every_attribute_is_in_the_first_third_of_twelve(tmp_path):
    write_dataset(
        tmp_path / "set",
        resolution=32,
        num_good=0,
        num_good_test=0,
        num_defects=12,
        categories=("tile",),
    )
    phrases = json.loads((tmp_path / "set/tile/prompt/phrases.json").read_text())
    for defect in DEFECT_TYPES:
        first = {phrases[f"{defect}/{i:03d}"] for i in range(4)}
        assert len(first) == len(ATTRIBUTES[defect])


def test_the_same_arguments_write_the_same_bytes_and_another_seed_does_not(tmp_path):
    for name, seed in (("first", 3), ("again", 3), ("other", 4)):
        write_dataset(
            tmp_path / name,
            seed=seed,
            resolution=32,
            num_good=1,
            num_good_test=1,
            num_defects=1,
            categories=("wood", "button"),
        )
    first, again, other = (_files(tmp_path / name) for name in ("first", "again", "other"))
    assert first == again
    assert first.keys() == other.keys()
    assert first != other


def test_a_folder_with_something_in_it_is_refused_and_kept(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(FileExistsError, match="not an empty folder"):
        write_dataset(tmp_path, num_good=1, num_defects=1)
    assert _files(tmp_path) == {"notes.txt": b"mine"}


def test_a_file_in_the_place_of_the_folder_is_refused(tmp_path):
    (tmp_path / "set").write_text("mine")
    with pytest.raises(FileExistsError, match="not an empty folder"):
        write_dataset(tmp_path / "set", num_good=1, num_defects=1)


def test_an_empty_folder_is_filled_and_missing_parents_are_made(tmp_path):
    for place in (tmp_path / "empty", tmp_path / "far" / "away"):
        if place.name == "empty":
            place.mkdir()
        write_dataset(
            place, resolution=32, num_good=1, num_good_test=0, defects=(), categories=("wood",)
        )
        assert (place / "wood/train/good/000.png").is_file()


def test_a_failure_half_way_leaves_nothing_behind(tmp_path, monkeypatch):
    calls = []

    def fail_late(*args, **kwargs):
        calls.append(args)
        if len(calls) > 3:
            raise OSError("disk full")
        return draw(*args, **kwargs)

    monkeypatch.setattr(dataset, "draw", fail_late)
    with pytest.raises(OSError, match="disk full"):
        write_dataset(tmp_path / "set", num_good=9)
    assert len(calls) == 4
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("wrong", [{"categories": ("glass",)}, {"defects": ("good",)}])
def test_an_unknown_part_is_refused_before_anything_is_written(tmp_path, wrong):
    with pytest.raises(ValueError, match="allowed are"):
        write_dataset(tmp_path / "set", **wrong)
    assert list(tmp_path.iterdir()) == []


def test_words_may_leave_out_colour_and_shade(tmp_path: Path) -> None:
    settings = {"num_good": 1, "num_good_test": 1, "num_defects": 2, "categories": ("wood",)}
    write_dataset(tmp_path / "named", **settings, defects=("stain",))
    write_dataset(tmp_path / "plain", **settings, defects=("stain",), name_attributes=False)
    with_attributes, plain = (
        json.loads((tmp_path / name / "wood/prompt/phrases.json").read_text())
        for name in ("named", "plain")
    )
    assert with_attributes == {"stain/000": "a red stain", "stain/001": "a blue stain"}
    assert plain == {"stain/000": "a stain", "stain/001": "a stain"}
    caption = (tmp_path / "plain/wood/prompt/stain/000.txt").read_text()
    assert caption == "a photo of wood with a stain\n"
    for image in (tmp_path / "named").rglob("*.png"):
        other = tmp_path / "plain" / image.relative_to(tmp_path / "named")
        assert other.read_bytes() == image.read_bytes(), "the pictures stay the same"
