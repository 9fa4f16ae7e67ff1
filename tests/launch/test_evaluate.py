"""launch.evaluate: short chains on the built-in data, and what a user can get wrong."""

import csv
import json
import re
import shutil
import sqlite3
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from acontrol.data.procedural import write_dataset
from launch import evaluate, shard
from tests.launch import commands
from tests.launch.test_errors import error_of

SMALLEST = ("--budget", "smallest", "--seeds", "1")


@pytest.fixture(scope="module")
def real(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One product with two defects, five of each."""
    root = tmp_path_factory.mktemp("evaluate") / "real"
    write_dataset(
        root,
        num_good=4,
        num_good_test=3,
        num_defects=5,
        categories=("wood",),
        defects=("crack", "stain"),
    )
    return root


@pytest.fixture(scope="module")
def other(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """As a generator would write it: other images of the same kinds, without good ones."""
    root = tmp_path_factory.mktemp("evaluate") / "other"
    write_dataset(
        root,
        num_good=1,
        num_good_test=1,
        num_defects=3,
        categories=("wood",),
        defects=("crack", "stain"),
        seed=3,
    )
    return root


def table_of(out: Path) -> list[dict[str, str]]:
    with (out / "results.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def page_is_whole(out: Path) -> None:
    page = (out / "index.html").read_text()
    assert re.findall(r"(?:src|href)='([^']{0,20})", page)
    assert all(
        one.startswith("data:image/png") for one in re.findall(r"src='([^']{0,20})", page)
    )


def test_quality_scores_a_folder(real: Path, other: Path, tmp_path: Path, capsys) -> None:
    out = tmp_path / "out"
    evaluate.run(
        ["quality", "--real", str(real), "--synthetic", f"again={other}", "--out", str(out)]
    )
    assert capsys.readouterr().out.splitlines()[-1] == f"Results: {out / 'report.md'}"
    rows = table_of(out)
    assert [(one["source"], one["defect"]) for one in rows] == [
        (source, defect)
        for source in ("real", "again")
        for defect in ("mean", "crack", "stain")
    ]
    names = [name for name in rows[0] if "vlm" in name]
    assert len(names) == 4
    assert all(re.search(r"\(vlm [0-9a-f]{8}\)$", name) for name in names)
    assert all(0 <= float(one[names[3]]) <= 100 for one in rows)
    page_is_whole(out)
    assert (out / "mlflow.db").is_file()


def test_localization_compares_sources_and_continues(
    real: Path, other: Path, tmp_path: Path, capsys
) -> None:
    out = tmp_path / "out"
    args = [
        *("localization", "--real", str(real), "--synthetic", f"ours={other}", *SMALLEST),
        *("--sources", "real,ours", "--out", str(out)),
    ]
    evaluate.run(args)
    said = capsys.readouterr().out
    assert "3 trainings: 1 categories x 3 sources (real, ours, real+ours) x 1 seeds" in said
    assert said.splitlines()[-1] == f"Results: {out / 'report.md'}"
    rows = table_of(out)
    assert {one["protocol"] for one in rows} == {"paper", "strict"}
    assert {one["source"] for one in rows} == {"real", "ours", "real+ours"}
    text = (out / "report.md").read_text()
    assert "Budget smallest: 32 px, width 4" in text
    assert "Quoted from the paper's Table 3" in text
    assert "Against real alone, protocol strict" in text
    page_is_whole(out)
    # Again: what is there stays, what is missing is the same again, in the same MLflow run.
    folder = out / "trainings" / "wood"
    kept, lost = folder / "real" / "seed-0.json", folder / "ours" / "seed-0.json"
    before, written = lost.read_bytes(), kept.stat().st_mtime_ns
    table = (out / "results.csv").read_bytes()
    lost.unlink()
    evaluate.run(args)
    assert "Continuing: 2 of 3 trainings are there" in capsys.readouterr().out
    assert lost.read_bytes() == before
    assert kept.stat().st_mtime_ns == written
    assert (out / "results.csv").read_bytes() == table
    runs = sqlite3.connect(out / "mlflow.db").execute("select count(*) from runs").fetchone()
    assert runs == (1,)
    # Another budget is another comparison.
    changed = [*args, "--pairs", "2"]
    assert "is of another comparison (differs in budget" in error_of(evaluate.run, *changed)


def test_a_dry_run_trains_nothing(real: Path, tmp_path: Path, capsys) -> None:
    evaluate.run(["localization", "--real", str(real), *SMALLEST, "--dry-run"])
    said = capsys.readouterr().out
    assert "4 trainings: 1 categories x 4 sources (none, real, perlin, cutpaste)" in said
    assert re.search(r"About [\d.]+ min a training on this machine, [\d.]+ min for all", said)
    assert "Results" not in said


@pytest.mark.slow
def test_ablation_adds_parts(real: Path, tmp_path: Path) -> None:
    shards, out = tmp_path / "shards", tmp_path / "out"
    shard.run([str(real), "--out", str(shards)])
    done = commands.run(
        "launch.evaluate",
        *("ablation", "tiny", "--real", real, "--data.shards", shards, "--out", out),
        *("--rows", "nothing,sga", "--count", 2, *SMALLEST, "--optim.steps", 2),
        *("--optim.batch-size", 2, "--samples.steps", 1, "--samples.every", 0),
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == f"Results: {out / 'report.md'}"
    text = (out / "report.md").read_text()
    assert "| nothing |" in text
    assert "| SGA |" in text
    assert "Quoted from the paper's Table 4" in text
    config = json.loads((out / "rows" / "sga" / "run" / "config.json").read_text())
    assert (config["csm"]["text"], config["asea"]["steps"]) == (False, 0)
    jobs = [
        json.loads(
            (out / "rows" / row / "images" / "manifest.jsonl").read_text().split("\n")[0]
        )
        for row in ("nothing", "sga")
    ]
    assert [one["sampling"]["scale"] for one in jobs] == [0, None]
    assert jobs[0]["first_seed"] == jobs[1]["first_seed"]
    query = "select value from tags where key = 'mlflow.parentRunId'"
    nested = sqlite3.connect(out / "mlflow.db").execute(query).fetchall()
    assert nested == [((out / "mlflow_run.txt").read_text().split("\n")[1],)]
    page_is_whole(out)


@pytest.mark.slow
def test_the_whole_chain(real: Path, other: Path, tmp_path: Path) -> None:
    shards, out = tmp_path / "shards", tmp_path / "out"
    shard.run([str(real), "--out", str(shards)])
    done = commands.run(
        "launch.evaluate",
        *("ablation", "tiny", "--real", real, "--data.shards", shards, "--out", out),
        *("--rows", "sga,csm,t1", "--count", 4, *SMALLEST, "--optim.steps", 6),
        *("--optim.batch-size", 4, "--samples.steps", 2, "--samples.every", 0),
    )
    assert done.returncode == 0, done.stderr
    drawn = out / "rows" / "csm" / "images"
    done = commands.run(
        "launch.evaluate",
        *("quality", "--real", real, "--synthetic", f"csm={drawn}", f"again={other}"),
        *("--model", out / "rows" / "csm" / "run", "--out", tmp_path / "quality"),
    )
    assert done.returncode == 0, done.stderr
    sources = {one["source"] for one in table_of(tmp_path / "quality")}
    assert sources == {"real", "csm", "again"}
    done = commands.run(
        "launch.evaluate",
        *("localization", "--real", real, "--synthetic", f"csm={drawn}", *SMALLEST),
        *("--sources", "real,csm", "--protocol", "strict", "--out", tmp_path / "localization"),
    )
    assert done.returncode == 0, done.stderr
    for folder in (out, tmp_path / "quality", tmp_path / "localization"):
        page_is_whole(folder)


def changed(real: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(real, tmp_path / "changed"))


def localization_error(root: Path, tmp_path: Path, *args: object) -> str:
    out = tmp_path / "out"
    message = error_of(
        evaluate.run, "localization", "--real", root, *SMALLEST, "--out", out, *args
    )
    assert not out.exists()
    return message


def test_a_test_image_in_training_is_refused(real: Path, other: Path, tmp_path: Path) -> None:
    root = changed(real, tmp_path)
    # The same pixels in another file format, with another name.
    with Image.open(root / "wood" / "test" / "good" / "001.png") as image:
        image.save(root / "wood" / "train" / "good" / "x.bmp")
    message = localization_error(root, tmp_path, "--sources", "real")
    assert "x.bmp: is the test image" in message
    assert "test/good/001.png, pixel by pixel" in message
    leaky = Path(shutil.copytree(other, tmp_path / "leaky"))
    for part in ("test/crack/004.png", "ground_truth/crack/004_mask.png"):
        shutil.copy(real / "wood" / part, leaky / "wood" / part)
    message = localization_error(real, tmp_path, "--synthetic", leaky)
    assert "leaky/wood/test/crack/004.png: is the test image" in message


def test_the_training_third_is_no_leak(real: Path, tmp_path: Path) -> None:
    """A generated folder may hold training images; only tested ones are refused."""
    evaluate.run(
        [
            *("localization", "--real", str(real), "--dry-run", *SMALLEST),
            *("--sources", "none,real,real+perlin"),
        ]
    )


@pytest.mark.parametrize(
    ("args", "words"),
    [
        ([], "say what to measure first, one of: quality, localization, ablation"),
        (["speed"], "got 'speed'"),
        (["quality", "--real", "x"], "--synthetic"),
        (["localization", "--real", "/nowhere"], "/nowhere: does not exist"),
        (["localization", "--real", "ROOT", "--sources", "real,gan"], "no source 'gan'"),
        (["localization", "--real", "ROOT", "--sources", "none+real"], "no source 'none+real'"),
        (["localization", "--real", "ROOT", "--sources", "real,real"], "real is named twice"),
        (["localization", "--real", "ROOT", "--budget", "huge"], "'huge'"),
        (["localization", "--real", "ROOT", "--category", "tin"], "has no category 'tin'"),
        (["localization", "--real", "ROOT"], "--out DIR is needed"),
        (
            ["localization", "--real", "ROOT", "--synthetic", "a=ROOT", "a=ROOT"],
            "named a; name",
        ),
        (["localization", "--real", "ROOT", "--synthetic", "real=ROOT"], "source of its own"),
        (["localization", "--synthetic", "a", "--synthetic", "b"], "give --synthetic once"),
        (["localization", "--real", "ROOT", "--synthetic", "a=/nowhere"], "/nowhere"),
        (["ablation", "tiny", "--out", "x"], "--real ROOT is needed"),
        (["ablation", "tiny", "--real", "x"], "--out DIR is needed"),
        (["ablation", "tiny", "--real", "x", "--out", "x"], "--data.shards DIR is needed"),
        (
            [
                *("ablation", "tiny", "--real", "x", "--out", "x"),
                *("--data.shards", "x", "--rows", "csm,t9"),
            ],
            "--rows: 't9'",
        ),
        (
            [
                *("quality", "--real", "ROOT", "--synthetic", "a=ROOT", "--out", "x"),
                *("--features", "lpips-vgg", "--weights", "/nowhere"),
            ],
            "/nowhere/lpips-vgg.safetensors: does not exist",
        ),
        (
            [
                *("quality", "--real", "ROOT", "--synthetic", "a=ROOT", "--out", "x"),
                *("--features", "inception", "--weights", "/nowhere"),
            ],
            "/nowhere/inception.safetensors: does not exist",
        ),
    ],
)
def test_mistakes_are_one_line(real: Path, args: list[str], words: str) -> None:
    given = [one.replace("ROOT", str(real)) for one in args]
    assert words in error_of(evaluate.run, *given)


def test_bad_data_is_one_line(real: Path, tmp_path: Path) -> None:
    root = changed(real, tmp_path)
    mask = root / "wood" / "ground_truth" / "crack" / "003_mask.png"
    whole = mask.read_bytes()
    mask.unlink()
    assert "crack/003.png: has no mask" in localization_error(root, tmp_path)
    Image.fromarray(np.full((9, 9), 255, np.uint8)).save(mask)
    assert "the mask is 9 x 9 pixels and its image" in localization_error(root, tmp_path)
    mask.write_bytes(whole)
    for defect in ("crack", "stain"):
        shutil.rmtree(root / "wood" / "test" / defect)
    assert "has no images of defects" in localization_error(root, tmp_path)
    shutil.rmtree(root / "wood" / "test" / "good")
    shutil.copytree(real / "wood" / "test" / "crack", root / "wood" / "test" / "crack")
    assert "has no images in test/good" in localization_error(root, tmp_path)
    shutil.rmtree(root / "wood" / "train")
    shutil.copytree(real / "wood" / "test" / "good", root / "wood" / "test" / "good")
    assert "has no images in train/good" in localization_error(root, tmp_path)


def test_shards_of_all_images_are_refused(real: Path, tmp_path: Path) -> None:
    shard.run([str(real), "--out", str(tmp_path / "shards"), "--split", "all"])
    message = error_of(
        evaluate.run,
        *("ablation", "tiny", "--real", real, "--out", tmp_path / "out"),
        *("--data.shards", tmp_path / "shards"),
    )
    assert "holds split 'all', with the images that detectors are tested on" in message
    assert not (tmp_path / "out").exists()
