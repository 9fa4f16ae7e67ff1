"""A batch: scored, tried again, halved, with nothing computed twice."""

import io
import json
import re
import shutil
from pathlib import Path
from typing import cast

import numpy as np
import pytest
import torch
from PIL import Image

from acontrol.data.images import image_size, read_image
from acontrol.data.mvtec import open_folder
from acontrol.errors import UserError
from acontrol.generation.adapter import AdapterMethod
from acontrol.generation.gate import DefectScorer
from acontrol.generation.inputs import INPUTS, check_inputs
from acontrol.generation.job import (
    FORMAT,
    BatchResult,
    Job,
    batches_of,
    draw_locally,
    generate_batch,
    read_job,
)
from acontrol.generation.manifest import planned_of
from acontrol.generation.methods import load_method
from acontrol.generation.plan import PlannedImage, Planner, Reference, requests_for_all
from acontrol.generation.sampler import Generator
from acontrol.generation.settings import Gate, OutputSettings, Sampling
from acontrol.masks.sampler import PlacedMask
from acontrol.networks.locate import built_in_adapter


class Setup:
    """What a job needs."""

    def __init__(self, data: Path, gate: Gate, count: int = 3):
        self.folder = open_folder(data)
        self.loaded = load_method("acontrol", str(built_in_adapter()))
        self.method = cast(AdapterMethod, self.loaded.method)
        self.pipeline = self.method.pipeline
        self.planner = Planner(self.folder, split="all", sampling=Sampling(steps=2), cells=16)
        requests = requests_for_all(self.folder, split="all", count=count, defect="spots")
        self.planned, _ = self.planner.plan_images(requests)
        self.roots = {"data": self.folder.root, "normal": self.folder.root}
        scorer = DefectScorer(self.loaded.vlm, self.planner.training)
        self.generator = Generator(self.method, scorer, gate, OutputSettings())


def test_an_image_that_never_passes_is_dropped_or_its_best_try_kept(built_in_data) -> None:
    setup = Setup(built_in_data, Gate(gate="reject", tries=3, max_distance=0.0))
    batch = setup.planned[:2]
    dropped = generate_batch(setup.generator, batch, 0, setup.roots)
    assert [line["image"] for line in dropped.lines] == [None, None]
    names = [f"rejected/{'-'.join(image.name)}" for image in batch]
    assert {*dropped.files} == {f"{n}{end}" for n in names for end in (".png", "_mask.png")}
    pixels = Image.open(io.BytesIO(dropped.files[f"{names[0]}.png"]))
    assert pixels.size == image_size(batch[0].normal)
    setup.generator.gate = Gate(gate="keep", tries=3, max_distance=0.0)
    best = setup.generator.generate_batch(batch)
    for row, image in enumerate(best):
        tries = [setup.generator._attempt(batch, attempt)[row] for attempt in range(3)]
        assert len({attempt.seed for attempt in tries}) == 3
        assert image.scores.distance == min(
            attempt.scores.distance for attempt in tries if attempt.scores.distance is not None
        )


def test_labels_are_what_changed_if_asked_for_and_can_be_replayed(
    built_in_data, tmp_path
) -> None:
    setup = Setup(built_in_data, Gate(gate="keep", tries=1))
    planned = setup.planned[0]
    setup.generator.output = OutputSettings(labels="changed")
    result = generate_batch(setup.generator, [planned], 0, setup.roots)
    (line,) = result.lines
    (image,) = setup.generator.generate_batch([planned])
    label = np.asarray(Image.open(io.BytesIO(result.files[line["mask"]]))) > 0
    assert (label == image.refined).all()
    assert line["changed_px"] == image.refined.sum() < line["requested_px"]
    for name, content in result.files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(content)
    again = planned_of(line, tmp_path, setup.roots)
    assert again.mask.packed == planned.mask.packed
    for name, value in (("sampling", None), ("reference_kind", ["b"]), ("normal", 1)):
        with pytest.raises(UserError, match=r"its manifest is not of this version: .") as told:
            planned_of(line | {name: value}, tmp_path, setup.roots)
        assert "\n" not in str(told.value)


def test_a_background_that_went_through_the_autoencoder_may_not_pass(built_in_data) -> None:
    setup = Setup(built_in_data, Gate(tries=1, min_fill=0, max_distance=2, min_background=0))
    setup.generator.output = OutputSettings(composite=False)
    (image,) = setup.generator.generate_batch(setup.planned[:1])
    level = image.scores.background_psnr
    assert level is not None
    assert image.scores.passed
    for least, passes in ((level - 0.1, True), (level + 0.1, False)):
        setup.generator.gate = setup.generator.gate.model_copy(update={"min_background": least})
        (again,) = setup.generator.generate_batch(setup.planned[:1])
        assert again.scores.passed is passes
    setup.generator.output = OutputSettings()
    (exact,) = setup.generator.generate_batch(setup.planned[:1])
    assert exact.scores.background_psnr is None
    assert exact.scores.passed


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
    assert setup.method.conditions.computed == len(prompts) + len(references)


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


def test_a_failed_allocation_costs_one_image(built_in_data) -> None:
    """As torch says it on a CPU; any other RuntimeError is a bug and passes."""
    setup = Setup(built_in_data, Gate(gate="off"))
    message = "[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried 9 bytes"

    def fail(*_: object) -> None:
        raise RuntimeError(message)

    handle = setup.pipeline.unet.register_forward_pre_hook(fail)
    result = generate_batch(setup.generator, setup.planned[:2], 0, setup.roots)
    assert [message in line["error"] for line in result.lines] == [True, True]
    message = "shapes differ"
    with pytest.raises(RuntimeError, match="shapes differ"):
        generate_batch(setup.generator, setup.planned[:2], 0, setup.roots)
    handle.remove()


def test_a_job_of_which_no_image_fits_in_memory_can_be_repeated(
    built_in_data, tmp_path
) -> None:
    setup = Setup(built_in_data, Gate(gate="off"))
    batches = [setup.planned[:1], setup.planned[1:2]]

    def draw(failing: int) -> list[dict]:
        """Draw the two images, of which the first few fail."""
        job = Job(tmp_path / "out", {}, batches, setup.roots)
        assert job.missing() == [0, 1]
        for number in draw_locally(job, setup.generator):
            if number + 1 == failing:
                handle.remove()
        return job.finish(lambda *_: None)

    for error in (MemoryError(), torch.OutOfMemoryError("CUDA out of memory")):

        def fail(*_: object, error: BaseException = error) -> None:
            raise error

        handle = setup.pipeline.unet.register_forward_pre_hook(fail)
        with pytest.raises(
            UserError, match=r"no image fits in memory \(.*out of memory.*bfloat"
        ):
            draw(2)
        assert not list(tmp_path.iterdir())
    handle = setup.pipeline.unet.register_forward_pre_hook(fail)
    assert ["error" in line for line in draw(1)] == [True, False]
    assert (tmp_path / "out" / "job.json").is_file()


def test_large_photographs_are_drawn_in_smaller_batches() -> None:
    """Each is held whole: with 12 megapixels four at a time."""
    mask = np.zeros((3000, 4000), bool)
    mask[0, 0] = True
    placed = PlacedMask.of("file", None, mask)
    reference = Reference(Path("r.png"), Path("m.png"), "a crack")
    image = PlannedImage(("a", "b", "0"), Path("n.png"), reference, placed, "", 0, Sampling())
    assert [len(batch) for batch in batches_of([image] * 10, 8)] == [4, 4, 2]


def test_an_image_that_changed_is_named(built_in_data, tmp_path) -> None:
    """By the same command after it is complete, while it is not, and by a replay."""
    data = tmp_path / "data"
    shutil.copytree(built_in_data, data)
    setup = Setup(data, Gate(gate="off"))
    before = {INPUTS: check_inputs(setup.loaded, setup.planned, setup.roots)}
    job = Job(tmp_path / "out", before, [setup.planned[:1]], setup.roots)
    file = setup.planned[0].normal
    Image.fromarray(255 - read_image(file)).save(file)
    after = {INPUTS: check_inputs(setup.loaded, setup.planned, setup.roots)}
    name = file.relative_to(data).as_posix()
    with pytest.raises(UserError, match=f"{name} has changed since"):
        Job(tmp_path / "out", after, [setup.planned[:1]], setup.roots)
    (line,) = generate_batch(setup.generator, setup.planned[:1], 0, setup.roots).lines
    job.keep(0, BatchResult({}, [line | {"image": None}]))
    job.finish(lambda *_: None)
    with pytest.raises(UserError, match=f"{name} has changed since"):
        Job(tmp_path / "out", after, [setup.planned[:1]], setup.roots)
    assert Job(tmp_path / "out", before, [setup.planned[:1]], setup.roots).done
    with pytest.raises(UserError, match=r"begun with other settings.*seed"):
        Job(tmp_path / "out", before | {"seed": 1}, [setup.planned[:1]], setup.roots)


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


def test_a_job_of_an_earlier_version_is_not_continued_but_a_finished_one_stays(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its other half would have other pixels."""
    job = Job(tmp_path / "set", {}, [[]], {})

    def age(folder: Path) -> None:
        file = folder / "job.json"
        file.write_text(file.read_text().replace(FORMAT, "acontrol-generation-2"))

    age(job.folder)
    with pytest.raises(UserError, match=f"format: acontrol-generation-2 -> {FORMAT}"):
        Job(tmp_path / "set", {}, [[]], {})
    line = {"image": "a.png", "mask": "m.png", "batch": 0, "place": 0}
    job.keep(0, BatchResult({"a.png": b"pixels"}, [line]))
    job.finish(lambda *_: None)
    assert "earlier version" not in capsys.readouterr().err
    assert Job(tmp_path / "set", {}, [[]], {}).done
    assert "was drawn by an earlier version" in capsys.readouterr().err


def test_a_manifest_that_was_cut_is_named_as_such(tmp_path: Path) -> None:
    lines = [
        json.dumps({"batch": batch, "place": place, "part": [0, 3]})
        for batch in range(2)
        for place in range(3)
    ]
    file = tmp_path / "manifest.jsonl"
    with pytest.raises(UserError, match=f"{tmp_path}: not a folder that acontrol generate"):
        read_job(tmp_path)
    (tmp_path / "job.json").write_text("9")
    with pytest.raises(UserError, match=f"{tmp_path}: not a folder that acontrol generate"):
        read_job(tmp_path)
    (tmp_path / "job.json").write_text("{}")
    file.write_text("\n".join(lines))
    assert len(read_job(tmp_path)[1]) == 6
    file.write_text("\n".join(lines)[:-5])
    with pytest.raises(UserError, match=f"{file}: line 6 is damaged .*; restore the file"):
        read_job(tmp_path)
    for kept, batch in ((lines[:-1], 1), (lines[3:], 0), (lines[:2] + lines[3:], 0)):
        file.write_text("\n".join(kept))
        with pytest.raises(UserError, match=f"lacks lines of batch {batch}; restore"):
            read_job(tmp_path)
    file.write_text("\n".join(lines[:3]))  # Whole batches at the end leave no gap.
    assert len(read_job(tmp_path)[1]) == 3
    (tmp_path / "job.json").write_text('{"images": 6}')
    with pytest.raises(UserError, match="hold 3 of 6 images; restore the files"):
        read_job(tmp_path)
