"""launch.improve: rounds that go on after a kill in any phase, and another detector's maps."""

import hashlib
import json
import re
import shutil
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from acontrol.data.builtin import write_dataset
from acontrol.data.images import image_size, read_mask
from acontrol.data.mvtec import open_folder
from acontrol.evaluation.leaks import job_of
from acontrol.networks.locate import built_in_adapter
from launch import improve
from tests.launch import commands
from tests.launch.test_errors import error_of

MODEL = str(built_in_adapter())


@pytest.fixture(scope="module")
def maps(wood: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Maps that find every crack and no stain, and see one where there is none."""
    folder = tmp_path_factory.mktemp("maps")
    real = open_folder(wood)
    for number, file in enumerate(real.normals("wood")):
        scores = np.zeros((32, 32), np.float32)
        scores[4:12, 4:12] = 255.0 if number == 0 else 0.0
        write(folder / "train/good" / f"{file.stem}.npy", scores)
    for row in real.labelled("train", "wood"):
        scores = read_mask(row.image.parents[2] / row.mask, image_size(row.image)) * 255.0
        if row.defect == "stain":
            scores[:] = 0
        write(folder / "test" / row.defect / f"{row.id}.tiff", scores.astype(np.float32))
    return folder


def write(file: Path, scores: np.ndarray) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    if file.suffix == ".npy":
        np.save(file, scores)
    else:
        Image.fromarray(scores).save(file)


def test_misses_of_another_detector_are_drawn(
    wood: Path, maps: Path, database: Path, tmp_path: Path, capsys
) -> None:
    out = tmp_path / "out"
    out.mkdir()
    shutil.copy(database, out)
    args = [wood, "--model", MODEL, "--out", out, "--predictions", maps, "--images", 3]
    args += ["--no-controls", "--plan", "misses"]
    improve.run([str(arg) for arg in args])
    regions = json.loads((out / "round-1/misses.json").read_text())["wood"]["regions"]
    kinds = {(one["defect"], one["kind"]) for one in regions}
    assert kinds == {("crack", "found"), ("stain", "missed"), ("good", "false alarm")}
    (alarm,) = [one["name"] for one in regions if one["kind"] == "false alarm"]
    lines = [
        json.loads(line)
        for line in (out / "round-1/plan/misses/requests.jsonl").read_text().splitlines()
    ]
    assert {line["defect"] for line in lines} == {"stain"}
    assert lines[0]["normal"].endswith(alarm.removeprefix("wood/"))
    kept = open_folder(out / "kept")
    assert job_of(kept) == (open_folder(wood).trained_on("train"),)
    verdicts = json.loads((out / "round-1/admitted.json").read_text())["misses"]
    assert len(kept.labelled("all", "wood")) == len(verdicts) > 0
    page = (out / "index.html").read_text()
    assert re.findall(r"src='data:image/png", page)
    assert "another detector's; nothing was trained" in page
    said = capsys.readouterr().out
    assert f"Kept drawings: {out / 'kept'}\n" in said
    assert f"Look at {out / 'index.html'}\n" in said
    assert not list(out.rglob("trainings"))


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (lambda maps: (maps / "test/stain/000.tiff").unlink(), r"no map .*000\.tiff"),
        (lambda maps: np.save(maps / "train/good/000.npy", np.full((4, 4), np.nan)), "finite"),
        (lambda maps: np.save(maps / "train/good/000.npy", np.zeros((4, 4, 3))), "finite"),
        (lambda maps: (maps / "train/good/000.npy").write_bytes(b"no"), "is no anomaly map"),
    ],
)
def test_a_bad_map_is_one_line(wood, maps, database, tmp_path, change, problem, capsys) -> None:
    out, own = tmp_path / "out", tmp_path / "maps"
    out.mkdir()
    shutil.copy(database, out)
    shutil.copytree(maps, own)
    change(own)
    args = [str(wood), "--model", MODEL, "--out", str(out), "--predictions", str(own)]
    args += ["--plan", "misses"]
    assert re.search(problem, error_of(improve.run, *args))
    assert not (out / "round-1").exists()


def tree(out: Path) -> dict[str, str]:
    """Checksum of every file that is not MLflow's or of this machine."""
    files = (file for file in out.rglob("*") if file.is_file())
    names = {file.relative_to(out).as_posix(): file for file in files}
    return {
        name: hashlib.sha256(file.read_bytes()).hexdigest()
        for name, file in names.items()
        if not re.search(
            r"(^|/)events/|mlflow|\.lock$|job\.json$|\.npz$|^final/(command|index|report)", name
        )
    }


@pytest.mark.slow
def test_a_run_killed_in_every_phase_ends_with_the_same_tree(
    ray_address: str, tmp_path: Path
) -> None:
    data = tmp_path / "data"
    kinds = {"categories": ("wood",), "defects": ("stain", "crack")}
    write_dataset(data, num_good=8, num_good_test=2, num_defects=9, **kinds)

    def args(out: Path) -> list[object]:
        small = ["--detector", "unet", "--budget", "smallest", "--tile", 32, "--seeds", 1]
        small += [
            "--plan",
            "misses",
            "--images",
            12,
            "--folds",
            2,
            "--rounds",
            1,
            "--num-workers",
            1,
        ]
        return [data, "--model", MODEL, "--out", out, *small]

    whole, killed = tmp_path / "whole", tmp_path / "killed"
    done = commands.run("launch.improve", *args(whole), "--final", cluster=ray_address)
    assert done.returncode == 0, done.stderr
    assert "missed before" in done.stdout, done.stdout
    assert "final/index.html" in (whole / "index.html").read_text()
    assert "real+misses" in (whole / "final/report.md").read_text()
    phases = (
        *("trainings/wood/real/fold-1-seed-0.json", "round-1/misses.json"),
        *("round-1/plan/misses/plan.json", "round-1/drawn/misses/manifest.jsonl"),
        *("round-1/admitted.json", "round-1/sets/misses/all"),
        "trainings/wood/real+misses-1/fold-1-seed-0.json",
    )
    for phase in phases:
        process = commands.start("launch.improve", *args(killed), cluster=ray_address)
        while not (killed / phase).exists():
            assert process.poll() is None or (killed / phase).exists(), (
                phase,
                *process.communicate(),
            )
            time.sleep(0.02)
        commands.kill_with_children(process)
    done = commands.run("launch.improve", *args(killed), "--final", cluster=ray_address)
    assert done.returncode == 0, done.stderr
    opened = (tmp_path / "test-openings.jsonl").read_text().splitlines()
    assert [json.loads(line)["out"] for line in opened] == [
        str(out / "final") for out in (whole, killed)
    ]
    ours, theirs = tree(killed), tree(whole)
    assert ours.keys() == theirs.keys()
    assert {name for name in ours if ours[name] != theirs[name]} == set()
    assert any(name.startswith("kept/") for name in ours)
