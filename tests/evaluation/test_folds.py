"""Cross-validation within the training part, and the count of the test part's openings."""

import json
import shutil
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from acontrol.data.builtin import write_dataset
from acontrol.data.mvtec import open_folder
from acontrol.errors import UserError
from acontrol.evaluation import openings
from acontrol.evaluation.budget import BUDGETS
from acontrol.evaluation.comparison import plan_comparison
from acontrol.evaluation.dataset import CONTROLS, DETECTOR
from acontrol.evaluation.folds import assigned, folds_of
from acontrol.evaluation.localization import Localization
from acontrol.evaluation.settings import LocalizationConfig
from acontrol.masks.perlin import perlin_blobs


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Nine training images of two defects; every test image is damaged."""
    folder = tmp_path_factory.mktemp("folds") / "real"
    write_dataset(
        folder,
        num_good=6,
        num_good_test=2,
        num_defects=9,
        categories=("wood",),
        defects=("crack", "stain"),
    )
    real = open_folder(folder)
    for file in (*(row.image for row in real.labelled("test")), *real.normals("wood", "test")):
        file.write_bytes(b"closed")
    return folder


@pytest.fixture(scope="module")
def groups(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Neighbours in pairs."""
    real = open_folder(root)
    files = [*real.normals("wood"), *(row.image for row in real.labelled("train"))]
    file = tmp_path_factory.mktemp("groups") / "groups.csv"
    lines = [
        f"{real.name_of('wood', path)},{path.parent.parent.name}-{path.parent.name}-"
        f"{number // 2 if 'good' in str(path) else number}"
        for number, path in enumerate(files)
    ]
    file.write_text("\n".join(lines))
    return file


def test_folds_hold_groups_out_together_and_every_image_once(root: Path, groups: Path) -> None:
    real = open_folder(root)
    splits = folds_of(real, ["wood"], 3, groups)
    named = dict(line.split(",") for line in groups.read_text().splitlines())
    held = Counter(name for split in splits for name in split.test)
    assert held == Counter({*named}), "once each, and no test image"
    for split in splits:
        assert {*split.train} | {*split.test} == {*named}
        assert not {named[name] for name in split.train} & {named[name] for name in split.test}
        counts = Counter(name.split("/")[2] for name in split.test)
        assert counts == {"good": 2, "crack": 1, "stain": 1}


def test_groups_go_to_where_most_is_lacking() -> None:
    labels = np.repeat(np.arange(6), [5, 1, 1, 1, 1, 1])
    chosen = assigned(labels, ["good"] * 10, 2, 0)
    assert sorted(np.bincount(chosen)) == [5, 5]
    assert len({*chosen[:5]}) == 1


def test_a_cross_validation_reads_no_test_image(
    root: Path, groups: Path, tmp_path: Path, capsys
) -> None:
    config = LocalizationConfig(
        real=root,
        out=tmp_path / "out",
        cross_validate=3,
        groups=groups,
        seeds=1,
        sources="real",
    )
    budget = BUDGETS["smallest"].model_copy(update={"epochs": 1})
    plan = plan_comparison(config, budget, CONTROLS, ["wood"], DETECTOR)
    assert [job.unit for job in plan.jobs] == [f"wood/fold-{k}" for k in (1, 2, 3)]
    assert len(set(map(str, plan.data.values()))) == 3
    experiment = Localization(
        plan.folders, budget, ("strict",), plan.data, perlin_blobs, folds=plan.folds
    )
    experiment.run(plan.jobs[1], tmp_path / "out")
    saved = plan.jobs[1].metrics(tmp_path / "out")
    assert saved["fold"] == 2
    assert 0 <= saved["strict"]["pixel_auroc"] <= 1
    plan.open_test("localization")
    assert not (tmp_path / "test-openings.jsonl").exists()
    assert "3 folds of whole pieces" in plan.about("smallest")
    assert "x 1 seed x 3 folds" in capsys.readouterr().out


def test_a_run_on_test_images_is_counted_once(tmp_path: Path) -> None:
    root = tmp_path / "real"
    write_dataset(
        root,
        num_good=2,
        num_good_test=1,
        num_defects=3,
        categories=("wood",),
        defects=("crack",),
    )

    def count(out: str, sources: str = "real") -> str:
        config = LocalizationConfig(real=root, out=tmp_path / out, seeds=1, sources=sources)
        budget = BUDGETS["smallest"]
        plan = plan_comparison(config, budget, CONTROLS, ["wood"], DETECTOR)
        plan.open_test("localization")
        return plan.about("smallest")

    file = tmp_path / "test-openings.jsonl"
    assert f"The test images have been opened 1 time ({file})." in count("a")
    assert "opened 1 time (" in count("a"), "the same again continues"
    assert "opened 2 times (" in count("a", "none")
    assert "opened 3 times (" in count("b", "none")
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    assert [line["sources"] for line in lines] == [["real"], ["none"], ["none"]]
    # Another data set in the same file is counted by itself.
    shutil.copytree(root, tmp_path / "other")
    entry = {"command": "localization"}
    assert openings.opened(file, entry, "other third", new=True) == 1
    assert openings.opened(file, entry, "real third", new=False) == 3
    assert openings.opened(tmp_path / "new" / "lines.jsonl", entry, "real third", new=True) == 1
    file.write_text("{")
    with pytest.raises(UserError, match="is damaged"):
        openings.opened(file, entry, "real third", new=False)


def test_what_folds_lack_is_said(root: Path, groups: Path, tmp_path: Path) -> None:
    real = open_folder(root)
    with pytest.raises(UserError, match=r"with 7 folds one of wood would hold out"):
        folds_of(real, ["wood"], 7, groups)
    short = tmp_path / "short.csv"
    short.write_text("\n".join(groups.read_text().splitlines()[1:]))
    with pytest.raises(UserError, match=r"names no group of wood/train/good/"):
        folds_of(real, ["wood"], 3, short)
    short.write_text("a,b,c\n")
    with pytest.raises(UserError, match="line 1 is not IMAGE,GROUP"):
        folds_of(real, ["wood"], 3, short)


def test_intervals_resample_groups_of_test_images(tmp_path: Path) -> None:
    root = tmp_path / "real"
    write_dataset(
        root,
        num_good=2,
        num_good_test=3,
        num_defects=6,
        categories=("wood",),
        defects=("crack",),
    )
    real = open_folder(root)
    files = [*real.normals("wood", "test"), *(row.image for row in real.labelled("test"))]
    names = [real.name_of("wood", file) for file in files]
    file = tmp_path / "groups.csv"

    def spread(out: str, lines: list[str] | None) -> tuple[str, np.ndarray]:
        if lines is not None:
            file.write_text("\n".join(lines))
        groups = None if lines is None else file
        config = LocalizationConfig(
            real=root, out=tmp_path / out, seeds=1, sources="none", groups=groups
        )
        budget = BUDGETS["smallest"].model_copy(update={"epochs": 1})
        plan = plan_comparison(config, budget, CONTROLS, ["wood"], DETECTOR)
        experiment = Localization(plan.folders, budget, ("strict",), plan.data, perlin_blobs)
        (job,) = plan.jobs
        experiment.run(job, config.out)
        resamples = job.array(config.out, "strict_resamples")
        return plan.data[job.unit]["none"], np.nan_to_num(resamples).std(axis=1)

    digest, alone = spread("a", None)
    same, singles = spread("b", [f"{name},{n}" for n, name in enumerate(names)])
    other, one_each = spread("c", [f"{name},{name.split('/')[2]}" for name in names])
    np.testing.assert_array_equal(alone, singles)
    assert (alone > 0).any()
    assert (one_each < 1e-9).all(), "one group of each is drawn whole every time"
    assert len({digest, same, other}) == 3
    with pytest.raises(UserError, match=r"groups.csv: names no group of wood/test/crack/"):
        spread("d", [f"{name},0" for name in names[:-1]])
