"""A LoRA is fitted by the command, continued, drawn with, or refused."""

import copy
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionPipeline
from safetensors.torch import load_file

from acontrol.data.mvtec import open_folder
from acontrol.errors import UserError
from acontrol.generation.methods import load_method
from acontrol.generation.settings import MethodName
from acontrol.networks.load import BaseModels
from acontrol.rivals import fitting
from acontrol.rivals.lora import WEIGHTS, Lora, add_matrices, matrices
from acontrol.rivals.objective import DefectObjective, TrainingImages
from acontrol.rivals.settings import Fit
from launch import fit, generate
from tests.rivals.conftest import lines_of, options, pixels

FEW = ("--steps", 3, "--batch-size", 2, "--save-every", 1, "--rank", 2)


def learn(data: Path, out: Path, database: str, *more: object) -> None:
    args = [data, "--method", "lora", "--output", out, "--tracking-uri", database, *FEW]
    fit.run([str(one) for one in [*args, *more]])


@pytest.fixture(scope="module")
def fitted(
    built_in_data: Path, database: str, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    out = tmp_path_factory.mktemp("fitted") / "lora"
    learn(built_in_data, out, database, "--learning-rate", 0.5)
    return out


def test_what_was_learnt_is_a_lora_for_any_pipeline(
    fitted: Path, tiny_base: BaseModels, built_in_data: Path
) -> None:
    assert {file.name for file in fitted.iterdir()} >= {WEIGHTS, "fitted.json", "run.json"}
    assert not (fitted / "training").exists()
    card = json.loads((fitted / "fitted.json").read_text())
    images = open_folder(built_in_data).labelled("train")
    assert card["training"] == [image.key for image in images]
    assert card["seen"] == open_folder(built_in_data).trained_on("train").model_dump(
        mode="json"
    )
    weights = load_file(fitted / WEIGHTS)
    # Two matrices at four projections of two attentions in each of four blocks.
    assert len(weights) == 2 * 4 * 2 * 4
    assert all(value.abs().max() > 0 for value in weights.values())
    pipe = StableDiffusionPipeline(
        *(tiny_base.vae, tiny_base.text_encoder, tiny_base.tokenizer),
        *(copy.deepcopy(tiny_base.unet), tiny_base.scheduler, None, None),
        requires_safety_checker=False,
    )
    pipe.load_lora_weights(str(fitted))
    method = load_method("lora", None, fitted=fitted).method
    assert isinstance(method, Lora)
    inputs = torch.randn(1, 4, 16, 16), torch.tensor(300), method.texts(["a crack"])
    with torch.no_grad():
        stock = pipe.unet(*inputs).sample
        torch.testing.assert_close(method.unet(*inputs), stock, rtol=0, atol=1e-4)
        assert (stock - tiny_base.unet(*inputs).sample).abs().max() > 1e-2


def test_a_killed_fit_goes_on_to_the_same_bytes(
    fitted: Path,
    built_in_data: Path,
    database: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    out = tmp_path / "lora"
    steps: list[int] = []

    class Stopped(DefectObjective):
        def __call__(self, positions: Any, conditions: Any = None) -> torch.Tensor:
            steps.append(positions.start // len(positions))
            if steps == [0, 1, 2]:
                raise KeyboardInterrupt
            return super().__call__(positions, conditions)

    monkeypatch.setattr(fitting, "DefectObjective", Stopped)
    same = ("--learning-rate", 0.5)
    with pytest.raises(KeyboardInterrupt):
        learn(built_in_data, out, database, *same)
    with pytest.raises(UserError, match="is not finished: give acontrol fit the same"):
        load_method("lora", None, fitted=out)
    with pytest.raises(UserError, match=r"other settings \(seed: 0 -> 1\)"):
        learn(built_in_data, out, database, *same, "--seed", 1)
    learn(built_in_data, out, database, *same)
    assert steps == [0, 1, 2, 2]
    assert (out / WEIGHTS).read_bytes() == (fitted / WEIGHTS).read_bytes()
    learn(built_in_data, out, database, *same)  # All is there: no step is taken.
    assert steps == [0, 1, 2, 2]


def test_it_draws_the_plan_of_every_method(
    drawn: dict[MethodName, Path], fitted: Path, built_in_data: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    generate.run(options("lora", built_in_data, out, "--fitted", fitted))
    for line, own in zip(lines_of(out), lines_of(drawn["acontrol"]), strict=True):
        assert line["method"] == "lora"
        names = ("normal", "reference", "mask_origin", "prompt", "first_seed")
        assert [line[name] for name in names] == [own[name] for name in names]
        image, normal = pixels(out / line["image"]), pixels(built_in_data / line["normal"])
        mask = pixels(out / line["mask"]) > 0
        assert np.array_equal(image[~mask], normal[~mask])
        assert not np.array_equal(image[mask], normal[mask])
    assert "peft" in json.loads((out / "job.json").read_text())["versions"]
    # Other weights are another method.
    other = tmp_path / "other"
    shutil.copytree(fitted, other)
    card = json.loads((other / "fitted.json").read_text())
    card["fit"]["crop"] = 0
    (other / "fitted.json").write_text(json.dumps(card))
    with pytest.raises(UserError, match=r"begun with other settings \(model: "):
        generate.run(options("lora", built_in_data, out, "--fitted", other))
    card["fit"] |= {"crop": 4.0, "target_px": 16}
    (other / "fitted.json").write_text(json.dumps(card))
    generate.run(options("lora", built_in_data, tmp_path / "near", "--fitted", other))
    boxes = [box for line in lines_of(tmp_path / "near") for box in line["boxes"]]
    assert {right - left for left, _, right, _ in boxes} == {16}


def test_what_cannot_be_drawn_or_fitted_is_told_in_a_line(
    fitted: Path, built_in_data: Path, database: str, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    with pytest.raises(UserError, match="--method lora needs --fitted DIR"):
        generate.run(options("lora", built_in_data, out))
    with pytest.raises(UserError, match="is of --method lora and anodiff; --method perlin"):
        generate.run(options("perlin", built_in_data, out, "--fitted", fitted))
    with pytest.raises(UserError, match="holds no fitted method"):
        load_method("lora", None, fitted=built_in_data)
    with pytest.raises(UserError, match="is not empty, and holds no fitted method"):
        learn(built_in_data, built_in_data.parent, database)
    other = tmp_path / "other"
    shutil.copytree(fitted, other)
    content = bytearray((other / WEIGHTS).read_bytes())
    content[-1] ^= 1
    (other / WEIGHTS).write_bytes(content)
    with pytest.raises(UserError, match="its weights are damaged"):
        load_method("lora", None, fitted=other)
    card = json.loads((fitted / "fitted.json").read_text())
    (other / WEIGHTS).write_bytes((fitted / WEIGHTS).read_bytes())
    (other / "fitted.json").write_text(json.dumps(card | {"base_digest": "0" * 64}))
    with pytest.raises(UserError, match=r"not the one that .* was fitted on"):
        load_method("lora", None, fitted=other)
    assert not out.exists()


def test_the_loss_is_the_bases_own_and_only_the_matrices_learn(
    base: BaseModels, built_in_data: Path
) -> None:
    images = open_folder(built_in_data).labelled("train")
    settings = Fit(method="lora", crop=0, loss_weighting="none", mask_weight=0, rank=2)
    encoded = TrainingImages(base, images, 0, 64)
    objective = DefectObjective(encoded, settings)
    frozen = {name: value.clone() for name, value in base.unet.state_dict().items()}

    def value(positions: range) -> float:
        return float(objective(positions).detach())

    plain = value(range(8))
    add_matrices(base.unet, 2, seed=5)
    assert value(range(8)) == pytest.approx(plain, abs=1e-6)  # They begin as zero.
    assert value(range(8, 16)) != pytest.approx(plain, abs=1e-6)
    trained = [weight for weight in base.unet.parameters() if weight.requires_grad]
    assert len(trained) == len(matrices(base.unet))
    optimizer = torch.optim.AdamW(trained, lr=0.02)
    for _ in range(4):  # The same batch: the loss falls by learning alone.
        optimizer.zero_grad()
        loss = objective(range(8))
        loss.backward()
        optimizer.step()
    assert value(range(8)) < plain - 1e-4
    now = base.unet.state_dict()
    for name, weight in frozen.items():
        name = name if name in now else ".base_layer.".join(name.rsplit(".", 1))
        assert torch.equal(now[name], weight)
