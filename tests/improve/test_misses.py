"""Regions, plans and admission, on arrays that are checked by hand."""

import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from acontrol.config import TrainedOn
from acontrol.data.builtin import write_dataset
from acontrol.data.mvtec import MvtecFolder, open_folder
from acontrol.evaluation.leaks import job_of
from acontrol.evaluation.metrics import count, f1_max
from acontrol.improve import admission, page, plan
from acontrol.improve.misses import Held, Region, best_threshold, part_of, regions_of
from acontrol.improve.rounds import Rounds
from acontrol.improve.settings import ImproveConfig
from acontrol.seeding import derive_seed


def held(
    name: str, defect: str, boxes: dict[tuple[int, int, int, int], float], mask=()
) -> Held:
    """A grey image of 40 x 60, its map at these levels in boxes (left, top, right, bottom)."""
    scores = np.full((40, 60), 0.1, np.float32)
    truth = np.zeros((40, 60), bool)
    image = np.full((40, 60, 3), 100, np.uint8)
    for (left, top, right, bottom), level in boxes.items():
        scores[top:bottom, left:right] = level
    for left, top, right, bottom in mask:
        truth[top:bottom, left:right] = True
        image[top:bottom, left:right] = 40
    return Held(name, defect, 1, image, truth, scores)


HELD = (
    # Two defects: the first is found, the second is not; and a strong region beside them.
    held(
        "a/test/crack/000.png",
        "crack",
        {(2, 2, 10, 6): 0.9, (45, 30, 51, 34): 0.95},
        [(2, 2, 10, 6), (30, 20, 36, 24)],
    ),
    # A false alarm, and a speck that is none.
    held("a/train/good/000.png", "good", {(20, 20, 26, 26): 0.8, (50, 5, 52, 6): 0.8}),
)


def read() -> Iterator[Held]:
    """What `regions_of` reads, anew at each call."""
    return iter(HELD)


def test_regions_are_what_was_drawn() -> None:
    found, missed, suspect, alarm = regions_of(read, 0.5)
    assert [r.kind for r in (found, missed, suspect, alarm)] == [
        *("found", "missed", "suspect", "false alarm")
    ]
    assert (found.box, found.area, found.covered) == ((2, 2, 10, 6), 32, 1.0)
    assert (missed.box, missed.area, missed.covered) == ((30, 20, 36, 24), 24, 0.0)
    assert missed.contrast == -60.0
    assert missed.response == pytest.approx(0.1, abs=1e-6)
    assert suspect.box == (45, 30, 51, 34)
    assert (alarm.box, alarm.defect, alarm.number) == ((20, 20, 26, 26), "good", 0)
    truth = HELD[0].mask
    assert part_of(truth, missed.number).sum() == missed.area
    assert Region.of_record(json.loads(json.dumps(missed.record()))) == missed


def test_a_speck_of_a_mask_is_no_defect() -> None:
    """Nor does its size let specks elsewhere pass as false alarms."""
    spotted = held("a/test/crack/001.png", "crack", {}, [(50, 2, 51, 3), (2, 2, 22, 8)])
    good = held("a/train/good/001.png", "good", {(20, 20, 30, 26): 0.8, (50, 5, 52, 6): 0.8})
    missed, alarm = regions_of(lambda: iter((spotted, good)), 0.5)
    assert (missed.kind, missed.area, alarm.box) == ("missed", 120, (20, 20, 30, 26))
    assert part_of(spotted.mask, missed.number).sum() == 120
    alone = held("a/test/crack/002.png", "crack", {}, [(50, 2, 51, 3)])
    assert [r.area for r in regions_of(lambda: iter((alone,)), 0.5)] == [1]


def test_a_weak_region_beside_a_defect_is_no_suspect() -> None:
    weak = held("a/test/crack/000.png", "crack", {(2, 2, 10, 6): 0.9, (45, 30, 51, 34): 0.7})
    strong = Held(weak.name, weak.defect, 1, weak.image, HELD[0].mask, weak.map)
    kinds = Counter(r.kind for r in regions_of(lambda: iter((strong,)), 0.5))
    assert kinds == {"found": 1, "missed": 1}


def test_the_threshold_is_that_of_the_highest_f1() -> None:
    rng = np.random.default_rng(0)
    maps = rng.random((3, 40, 60)).astype(np.float32)
    masks = rng.random((3, 40, 60)) < maps**3
    own = [
        Held(f"a/{n}", "crack", 1, HELD[0].image, mask, scores)
        for n, (scores, mask) in enumerate(zip(maps, masks, strict=True))
    ]
    threshold = best_threshold(lambda: iter(own))
    predicted = maps >= threshold
    true = (predicted & masks).sum()
    f1 = 2 * true / (predicted.sum() + masks.sum())
    (counts,) = count(maps, masks)
    assert f1 == pytest.approx(float(f1_max(counts)), abs=2e-4)


def regions(fold: int, kinds: str) -> list[Region]:
    """Regions of a fold: m missed, f found, a false alarms."""
    names = {"m": "missed", "f": "found", "a": "false alarm"}
    return [
        Region(
            names[kind],
            f"a/train/good/{fold}{n}.png" if kind == "a" else f"a/test/crack/{fold}{n}.png",
            "good" if kind == "a" else "crack",
            *(fold, 0 if kind == "a" else 1, (0, 0, 4, 4), 16, 5.0, 0.1 * n, 0.5),
        )
        for n, kind in enumerate(kinds)
    ]


GOOD = {fold: [f"a/train/good/{fold}{n}.png" for n in range(6)] for fold in (1, 2)}


def test_misses_are_drawn_on_images_of_their_own_fold_false_alarms_first() -> None:
    all_regions = [*regions(1, "mfaa"), *regions(2, "fmf")]
    wanted = plan.of_misses(all_regions, GOOD, 8, seed=3)
    assert len({one.seed for one in wanted}) == 8
    assert Counter(one.region.name for one in wanted) == {
        "a/test/crack/10.png": 4,
        "a/test/crack/21.png": 4,
    }
    assert all(one.normal in GOOD[one.region.fold] for one in wanted)
    own = [one.normal for one in wanted if one.region.fold == 1]
    assert own[:2] == ["a/train/good/12.png", "a/train/good/13.png"]
    assert len({*own}) == 4
    assert plan.of_misses(all_regions, GOOD, 8, seed=3) == wanted
    assert plan.of_misses(regions(1, "ff"), GOOD, 8, seed=3) == []
    # A fold that missed nothing draws what it hardly found.
    wanted = plan.of_misses([*regions(1, "mm"), *regions(2, "ffff")], GOOD, 8, seed=3)
    assert Counter(one.region.name for one in wanted) == {
        **{"a/test/crack/10.png": 2, "a/test/crack/11.png": 2},
        **{"a/test/crack/20.png": 2, "a/test/crack/21.png": 2},
    }


def test_the_uniform_plan_draws_found_and_missed_alike() -> None:
    all_regions = [*regions(1, "mfa"), *regions(2, "ff")]
    wanted = plan.uniform(all_regions, GOOD, 8, seed=3)
    assert {*Counter(one.region.name for one in wanted).values()} == {2}
    assert len(Counter(one.region.name for one in wanted)) == 4
    assert all(one.normal in GOOD[one.region.fold] for one in wanted)


def test_a_plan_is_written_as_requests_with_masks_inside_their_images(tmp_path: Path) -> None:
    mask = np.zeros((40, 60), bool)
    mask[0:3, 50:60] = True  # At the border, so that it can move inwards alone.
    mask[30:34, 5:9] = True
    for fold in (1, 2):
        for n in range(6):
            file = tmp_path / f"a/train/good/{fold}{n}.png"
            file.parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (60, 40) if n % 2 else (90, 60)).save(file)
    wanted = plan.of_misses(regions(1, "m"), GOOD, 6, seed=0)
    file = plan.write(wanted, tmp_path / "plan", lambda name: tmp_path / name, lambda _: mask)
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    assert len(lines) == 6
    areas = {}
    for line, one in zip(lines, wanted, strict=True):
        with Image.open(file.parent / line["mask"]) as drawn, Image.open(line["normal"]) as on:
            assert drawn.size == on.size
            areas.setdefault(on.size, set()).add(int((np.asarray(drawn) > 0).sum()))
            left, top, right, bottom = drawn.getbbox() or (0, 0, 0, 0)
            scale = on.width / 60  # Nothing has gone out on one side and in on another.
            assert (right - left, bottom - top) == (round(10 * scale), round(3 * scale))
        assert line["reference"] == "a/crack/10"
        assert line["seed"] == one.seed
    assert areas[60, 40] == {30}
    assert min(areas[90, 60]) > 50
    assert one.seed == derive_seed("drawing", 0, 5)


def test_drawings_are_judged_by_what_is_found_of_them() -> None:
    mask = np.zeros((10, 10), bool)
    mask[2:6, 2:7] = True
    scores = np.full((10, 10), 0.2, np.float32)

    def verdict(inside: float, share: float = 1.0, changed: float = 0.8) -> str:
        own = scores.copy()
        places = np.argwhere(mask)[: round(share * mask.sum())]
        own[tuple(places.T)] = inside
        return admission.judged("x", own, mask, 0.5, changed).verdict

    assert verdict(0.9) == "trivial"
    assert verdict(0.9, 0.85) == "kept"
    assert verdict(0.1) == "kept"
    assert verdict(0.1, changed=0.2) == verdict(0.9, changed=0.2) == "invisible"


def test_controls_have_as_many_of_each_defect() -> None:
    lines = [
        {"category": "a", "defect": defect, "image": f"{n}.png"}
        for n, defect in enumerate(("crack", "crack", "stain", "crack", "stain"))
    ]
    assert admission.as_many(lines, {"a/crack": 2, "a/stain": 1}) == ["0.png", "1.png", "2.png"]
    assert admission.as_many(lines, {"a/stain": 5}) == ["2.png", "4.png"]


def test_a_control_without_drawings_is_left_out_and_ends_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """As where nothing was missed: the uniform plan goes on."""
    write_dataset(
        tmp_path / "data", num_good=1, num_good_test=1, num_defects=3, categories=("wood",)
    )
    out = tmp_path / "out"
    config = ImproveConfig(root=tmp_path / "data", model="m", out=out, predictions=tmp_path)
    rounds = Rounds(config, open_folder(tmp_path / "data"), ("wood",), None)
    assert rounds.names == ("uniform", "misses", "copy-paste")
    drawn = out / "round-1" / "drawn" / "uniform"
    files = {"image": "wood/test/stain/000.png", "mask": "wood/ground_truth/stain/000_mask.png"}
    for file in files.values():
        (drawn / file).parent.mkdir(parents=True)
        Image.new("L", (8, 8), 255).save(drawn / file)
    record = TrainedOn(categories=("wood",), split="all")
    job = {"split": "all", "trained_on": [record.model_dump()]}
    (drawn / "job.json").write_text(json.dumps(job))
    kept = {**files, "fold": 0, "verdict": "kept"}
    admitted = {"uniform": [kept], "misses": [], "copy-paste": []}
    (out / "round-1" / "admitted.json").write_text(json.dumps(admitted))
    assert rounds.make_sets(1) is None
    assert rounds.made(1) == ("uniform",)
    made = open_folder(out / "round-1" / "sets" / "uniform" / "all")
    assert job_of(made) == (record,), "so that a test on images that it has seen is refused"
    assert capsys.readouterr().err.count("left out") == 2
    (out / "round-2").mkdir()
    admitted["uniform"] = [{**kept, "verdict": "trivial"}]
    (out / "round-1" / "admitted.json").write_text(json.dumps(admitted))
    (out / "round-2" / "admitted.json").write_text(json.dumps(admitted))
    assert rounds.make_sets(2) == "uniform of wood (all)"


def test_the_page_says_how_many_drawings_each_set_holds(tmp_path: Path) -> None:
    config = ImproveConfig(root=tmp_path, model="m", out=tmp_path, category=("wood",))
    rounds = Rounds(config, MvtecFolder(tmp_path, {}), ("wood",), None)
    kept, left = ({"verdict": verdict} for verdict in ("kept", "trivial"))
    for number, misses in ((1, [kept]), (2, [kept, left])):
        admitted = {"uniform": [kept, kept, left], "misses": misses, "copy-paste": []}
        rounds.folder(number).mkdir()
        (rounds.folder(number) / "admitted.json").write_text(json.dumps(admitted))
    sources = ("real", "real+uniform-1", "real+uniform-2", "real+misses-2")
    names = ("found", "missed", "false alarm", "suspect")
    names += ("pixel_ap", "pixel_aupro", "image_auroc")
    result = {"figures": {source: dict.fromkeys(names, 0) for source in sources}}
    table = page._figures(rounds, 2, result)
    assert table.head[:2] == ("trained on", "drawings")
    counts = {row[0]: row[1] for row in table.rows}
    assert counts == dict(zip(sources, ("0", "2", "4", "2"), strict=True))
