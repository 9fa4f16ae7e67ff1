"""A batch: judged, tried again, halved, and nothing computed twice."""

import shutil
from pathlib import Path

import torch

from acontrol.data.mvtec import open_folder
from acontrol.generation.job import batches_of, generate_batch
from acontrol.generation.plan import Planner, every_defect
from acontrol.generation.sampler import Generator
from acontrol.generation.scoring import DefectScorer
from acontrol.generation.settings import Gate, OutputSettings, Sampling
from acontrol.networks.locate import built_in_adapter
from acontrol.pipelines.loading import load_pipeline


class Setup:
    """The parts that a job is made of."""

    def __init__(self, data: Path, gate: Gate, count: int = 3):
        self.folder = open_folder(data)
        self.pipeline = load_pipeline(str(built_in_adapter()))
        self.pipeline.set_progress_bar_config(disable=True)
        self.planner = Planner(self.folder, split="all", sampling=Sampling(steps=2), cells=16)
        asked = every_defect(self.folder, split="all", count=count, defect="spots")
        self.planned, _ = self.planner.plan(asked)
        self.roots = {"data": self.folder.root, "normal": self.folder.root}
        scorer = DefectScorer(self.pipeline, self.planner.training)
        self.generator = Generator(self.pipeline, scorer, gate, OutputSettings())


def test_what_never_passes_is_tried_and_dropped_or_the_best_kept(built_in_data) -> None:
    setup = Setup(built_in_data, Gate(gate="drop", tries=3, max_distance=0.0))
    batch = setup.planned[:2]
    dropped = generate_batch(setup.generator, batch, 0, setup.roots)
    assert [line["image"] for line in dropped.lines] == [None, None]
    assert all(name.startswith("not_kept/") for name in dropped.files)
    setup.generator.gate = Gate(gate="keep", tries=3, max_distance=0.0)
    best = setup.generator.batch(batch)
    for row, one in enumerate(best):
        tries = [setup.generator._attempt(batch, attempt)[row] for attempt in range(3)]
        assert len({again.seed for again in tries}) == 3
        assert one.scores.distance == min(
            again.scores.distance for again in tries if again.scores.distance is not None
        )


def test_each_condition_is_computed_once(built_in_data) -> None:
    setup = Setup(built_in_data, Gate(tries=2, max_distance=0.0), count=6)
    seen: list[int] = []
    vision = setup.pipeline.text_encoder
    handle = vision.register_forward_hook(lambda *_: seen.append(1))
    for batch in batches_of(setup.planned, 3):
        setup.generator.batch(batch)
    handle.remove()
    prompts = {one.prompt for one in setup.planned}
    references = {one.reference for one in setup.planned}
    assert len(seen) == len(prompts) + 1  # And the empty text.
    assert setup.generator.conditions.computed == len(prompts) + len(references)


def test_a_batch_too_large_for_memory_is_halved_and_says_so(built_in_data) -> None:
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


def test_a_file_that_breaks_meanwhile_costs_one_image(built_in_data, tmp_path) -> None:
    data = tmp_path / "data"
    shutil.copytree(built_in_data, data)
    setup = Setup(data, Gate(gate="off"), count=4)
    batch = setup.planned[:4]
    batch[2].normal.write_bytes(b"broken")
    result = generate_batch(setup.generator, batch, 0, setup.roots)
    broken = [one.normal == batch[2].normal for one in batch]
    assert ["error" in line for line in result.lines] == broken
    assert all(
        str(batch[2].normal) in line["error"] for line in result.lines if "error" in line
    )
