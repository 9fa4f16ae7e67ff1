"""Loading an adapter with its base, and a pipeline that was saved whole."""

import hashlib
import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load

import acontrol
from acontrol.errors import UserError
from acontrol.generation.settings import GenerationConfig
from acontrol.interop.begin import check_init
from acontrol.method.sga import SemanticAdapter
from acontrol.networks.checksum import WEIGHTS, save_with_checksum
from acontrol.networks.locate import built_in_adapter
from acontrol.pipelines.anomaly_control import AnomalyControlPipeline
from acontrol.pipelines.loading import load_adapter, load_with_digest
from launch import generate
from launch.options import parse


def test_the_public_name_returns_the_pipeline_alone() -> None:
    pipe = acontrol.load_pipeline(str(built_in_adapter()))
    assert isinstance(pipe, AnomalyControlPipeline)
    assert not pipe.adapter.training


def test_the_digest_names_weights_and_base() -> None:
    folder = built_in_adapter()
    pipe, digest = load_with_digest(str(folder))
    weights = (folder / "diffusion_pytorch_model.safetensors").read_bytes()
    assert digest == hashlib.sha256(weights + pipe.card.base_digest.encode()).hexdigest()


def test_the_shipped_adapter_has_a_short_name_also_for_workers_elsewhere() -> None:
    assert load_adapter("tiny")[2] == (built_in_adapter() / WEIGHTS).read_bytes()
    words = ["--model", "tiny", "--data", "d", "--out", "o", "--num-workers", "2"]
    command = generate._absolute(parse(GenerationConfig, words, prog="generate"))
    generate._check(command)  # Which refuses what is no folder.
    assert command.model == "tiny"
    assert command.data.is_absolute()


def test_a_pipeline_saved_before_the_adapter_moved_loads(tmp_path: Path) -> None:
    pipe = acontrol.load_pipeline(str(built_in_adapter()))
    pipe.save_pretrained(tmp_path)
    file = tmp_path / "model_index.json"
    index = json.loads(file.read_text())
    assert index["adapter"] == ["acontrol.method.sga", "SemanticAdapter"]
    file.write_text(json.dumps({**index, "adapter": ["acontrol.sga", "SemanticAdapter"]}))
    loaded = AnomalyControlPipeline.from_pretrained(tmp_path)
    assert type(loaded.adapter) is SemanticAdapter
    torch.testing.assert_close(
        loaded.adapter.state_dict(), pipe.adapter.state_dict(), rtol=0, atol=0
    )
    # Saved again, it has the present form.
    loaded.save_pretrained(tmp_path / "again")
    again = json.loads((tmp_path / "again" / "model_index.json").read_text())
    assert again["adapter"] == index["adapter"]


@pytest.mark.parametrize("place", ["weights", "card"])
def test_weights_with_another_checksum_than_recorded_are_refused(
    tmp_path: Path, place: str
) -> None:
    folder = tmp_path / "adapter"
    shutil.copytree(built_in_adapter(), folder)  # From before: without a checksum.
    file = folder / WEIGHTS
    before = file.read_bytes()
    tensors = load(before)
    if place == "weights":
        file.write_bytes(save_with_checksum(tensors))
        assert file.read_bytes() == save_with_checksum(tensors) != before
    else:
        card = {"weights_sha256": hashlib.sha256(before).hexdigest()}
        (folder / "card.json").write_text(json.dumps(card))
    loaded = load_adapter(str(folder))[0].state_dict()
    torch.testing.assert_close(loaded, tensors, rtol=0, atol=0)
    check_init(str(folder))
    content = bytearray(file.read_bytes())
    content[-1000] ^= 1
    file.write_bytes(content)
    for read, name in ((load_adapter, "--model"), (check_init, "init")):
        with pytest.raises(UserError) as caught:
            read(str(folder))
        assert str(caught.value).startswith(f"{name} {folder}: its weights are damaged")
    file.write_bytes(before)
    (folder / "card.json").unlink(missing_ok=True)
    load_adapter(str(folder))


@pytest.mark.parametrize("content", ['""', "[]", "null", "{", "3"])
def test_a_config_that_is_none_is_one_line(tmp_path: Path, content: str) -> None:
    (tmp_path / "config.json").write_text(content)
    why = "Expecting property name" if content == "{" else "config.json holds no settings"
    told = f"^{tmp_path} is not an adapter of this version: {why}[^\n]*$"
    with pytest.raises(UserError, match=told):
        load_adapter(str(tmp_path))
