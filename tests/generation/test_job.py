"""A batch: scored, tried again, halved, with nothing computed twice."""

import re
import shutil
from pathlib import Path

import pytest
import torch

from acontrol.data.mvtec import open_folder
from acontrol.generation.gate import DefectScorer
from acontrol.generation.job import BatchResult, Job, batches_of, generate_batch
from acontrol.generation.plan import Planner, requests_for_all
from acontrol.generation.sampler import Generator
from acontrol.generation.settings import Gate, OutputSettings, Sampling
from acontrol.networks.locate import built_in_adapter
from acontrol.pipelines.loading import load_pipeline


class Setup:
    """What a job needs."""

    def __init__(self, data: Path, gate: Gate, count: int = 3):
        self.folder = open_folder(data)
        self.pipeline = load_pipeline(str(built_in_adapter()))
        self.pipeline.set_progress_bar_config(disable=True)
        self.planner = Planner(self.folder, split="all", sampling=Sampling(steps=2), cells=16)
        requests = requests_for_all(self.folder, split="all", count=count, defect="spots")
        self.planned, _ = self.planner.plan_images(requests)
        self.roots = {"data": self.folder.root, "normal": self.folder.root}
        scorer = DefectScorer(self.pipeline, self.planner.training)
        self.generator = Generator(self.pipeline, scorer, gate, OutputSettings())


def test_an_image_that_never_passes_is_dropped_or_its_best_try_kept(built_in_data) -> None:
    setup = Setup(built_in_data, Gate(gate="drop", tries=3, max_distance=0.0))
    batch = setup.planned[:2]
    dropped = generate_batch(setup.generator, batch, 0, setup.roots)
    assert [line["image"] for line in dropped.lines] == [None, None]
    assert all(name.startswith("not_kept/") for name in dropped.files)
    setup.generator.gate = Gate(gate="keep", tries=3, max_distance=0.0)
    best = setup.generator.generate_batch(batch)
    for row, image in enumerate(best):
        tries = [setup.generator._attempt(batch, attempt)[row] for attempt in range(3)]
        assert len({attempt.seed for attempt in tries}) == 3
        assert image.scores.distance == min(
            attempt.scores.distance for attempt in tries if attempt.scores.distance is not None
        )


def test_each_condition_is_computed_once(built_in_data) -> None:
    setup = Setup(built_in_data, Gate(tries=2, max_distance=0.0), count=6)
    calls: list[int] = []
    encoder = setup.pipeline.text_encoder
    handle = encoder.register_forward_hook(lambda *_: calls.append(1))
    for batch in batches_of(setup.planned, 3):
        setup.generator.generate_batch(batch)
    handle.remove()
    prompts = {image.prompt for image in setup.planned}
    references = {image.reference for image in setup.planned}
    assert len(calls) == len(prompts) + 1  # And the empty text.
    assert setup.generator.conditions.computed == len(prompts) + len(references)


def test_a_batch_too_large_for_memory_is_halved_and_recorded(built_in_data) -> None:
    setup = Setup(built_in_data, Gate(gate="off"))
    batch = setup.planned[:3]

    def refuse(module: object, args: tuple[torch.Tensor, ...]) -> None:
        if len(args[0]) > 2:  # With guidance, one image is two rows.
            raise torch.OutOfMemoryError("CUDA out of memory")

    handle = setup.pipeline.unet.register_forward_pre_hook(refuse)
    result = generate_batch(setup.generator, batch, 7, setup.roots)
    handle.remove()
    assert [line["part"] for line in result.lines] == [[0, 1], [1, 2], [2, 3]]
    assert all(line["image"] and line["batch"] == 7 for line in result.lines)
    alone = generate_batch(setup.generator, batch[:1], 7, setup.roots)
    (image,) = (name for name in alone.files if "/test/" in name)
    assert result.files[image] == alone.files[image]


def test_a_file_that_breaks_during_the_job_costs_one_image(built_in_data, tmp_path) -> None:
    data = tmp_path / "data"
    shutil.copytree(built_in_data, data)
    setup = Setup(data, Gate(gate="off"), count=4)
    batch = setup.planned[:4]
    batch[2].normal.write_bytes(b"broken")
    result = generate_batch(setup.generator, batch, 0, setup.roots)
    broken = [image.normal == batch[2].normal for image in batch]
    assert ["error" in line for line in result.lines] == broken
    assert all(
        str(batch[2].normal) in line["error"] for line in result.lines if "error" in line
    )


def test_a_finished_job_is_put_in_place_without_drawing_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The current directory cannot be replaced: its files move in, and the move can go on."""
    monkeypatch.chdir(tmp_path)
    line = {"image": "a/test/b/000.png", "mask": "m.png", "batch": 0, "place": 0}
    result = BatchResult({"a/test/b/000.png": b"pixels"}, [line])
    job = Job(Path(), {}, [[]], {})
    job.keep(0, result)
    (tmp_path / "manifest.jsonl").mkdir()  # In the way of the move.
    with pytest.raises(OSError, match=re.escape("manifest.jsonl")):
        job.finish(lambda folder, lines: None)
    (tmp_path / "manifest.jsonl").rmdir()
    again = Job(Path(), {}, [[]], {})
    assert not again.done
    assert again.missing() == []
    assert again.finish(lambda folder, lines: None) == [line]
    assert Job(Path(), {}, [[]], {}).done
    names = {path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*.*")}
    assert names == {"a/test/b/000.png", "job.json", "manifest.jsonl"}
