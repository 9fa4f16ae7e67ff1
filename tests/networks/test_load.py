import json
import logging
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from acontrol.config import BaseConfig
from acontrol.errors import UserError
from acontrol.method.sga import SemanticAdapter
from acontrol.networks.load import BaseModels, load_base, quieten
from acontrol.networks.locate import PARTS, built_in_base, digest, resolve


@pytest.fixture
def folder(tiny_base: BaseModels, tmp_path: Path) -> Path:
    """A copy of the tiny base, to spoil."""
    return Path(shutil.copytree(built_in_base(), tmp_path / "base"))


def networks(models: BaseModels) -> dict[str, torch.nn.Module]:
    return {
        "vae": models.vae,
        "text_encoder": models.text_encoder,
        "unet": models.unet,
        "vlm": models.vlm,
    }


def test_everything_is_frozen(tiny_base: BaseModels) -> None:
    for name, network in networks(tiny_base).items():
        assert not any(module.training for module in network.modules()), name
        assert not any(parameter.requires_grad for parameter in network.parameters()), name


def test_a_saved_folder_loads_to_the_same_weights(folder: Path, tiny_base: BaseModels) -> None:
    models = load_base(BaseConfig(path=str(folder)))
    for name, network in networks(models).items():
        theirs = networks(tiny_base)[name].state_dict()
        assert network.state_dict().keys() == theirs.keys()
        for key, value in network.state_dict().items():
            assert torch.equal(value, theirs[key]), f"{name}: {key}"
    # And they are the file's, not fresh ones under the same seed.
    stored = load_file(folder / "unet" / "diffusion_pytorch_model.safetensors")
    assert torch.equal(models.unet.conv_in.weight, stored["conv_in.weight"])
    stored = load_file(folder / "vlm" / "model.safetensors")
    assert torch.equal(models.vlm.query_tokens, stored["query_tokens"])
    assert models.latent_shape == (4, 4)
    text = "a crack on metal, xyz"
    assert models.tokenizer(text).input_ids == tiny_base.tokenizer(text).input_ids
    assert models.vlm_tokenizer(text).input_ids == tiny_base.vlm_tokenizer(text).input_ids


def test_in_low_precision_the_qformer_is_the_files_own(tiny_base: BaseModels) -> None:
    low = load_base(BaseConfig(), dtype=torch.bfloat16)
    own = ("qformer.", "embeddings.", "query_tokens")
    exact = tiny_base.vlm.state_dict()
    for key, value in low.vlm.state_dict().items():
        if key.startswith(own):
            assert torch.equal(value, exact[key]), key
        else:
            assert value.dtype == torch.bfloat16 or not value.is_floating_point(), key
    for network in (low.unet, low.vae, low.text_encoder):
        assert {value.dtype for value in network.parameters()} == {torch.bfloat16}


def test_a_tokenizer_that_pads_on_the_left_is_refused(folder: Path) -> None:
    file = folder / "vlm" / "tokenizer_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"padding_side": "left"}))
    with pytest.raises(UserError, match=r"pads on the left; set padding_side to 'right' in"):
        load_base(BaseConfig(path=str(folder)))


def test_the_vlm_may_lie_elsewhere(folder: Path, tmp_path: Path) -> None:
    elsewhere = folder.rename(tmp_path / "whole")
    vlm = (elsewhere / "vlm").rename(tmp_path / "blip")
    config = BaseConfig(path=str(elsewhere), vlm_path=str(vlm))
    assert resolve(config) == (str(elsewhere), str(vlm), "")
    assert torch.equal(
        load_base(config).vlm.query_tokens, load_base(BaseConfig()).vlm.query_tokens
    )
    assert digest(config) == digest(BaseConfig())


@pytest.mark.parametrize("path", ["/no/such/folder", "./runs/base", "runs/a/base", "base"])
@pytest.mark.parametrize(
    ("field", "option"), [("path", "base.path"), ("vlm_path", "base.vlm-path")]
)
def test_a_missing_folder_is_named(
    tiny_base: BaseModels, path: str, field: str, option: str
) -> None:
    with pytest.raises(UserError) as caught:
        load_base(BaseConfig.model_validate({field: path}))
    assert str(caught.value) == f"{option} {path}: no such folder"


@pytest.mark.parametrize(
    ("field", "option", "remedy"),
    [
        ("path", "base.path", "--base.revision COMMIT"),
        ("vlm_path", "base.vlm-path", "--base.vlm-revision COMMIT"),
    ],
)
def test_a_hub_id_needs_a_revision(
    tiny_base: BaseModels, field: str, option: str, remedy: str
) -> None:
    with pytest.raises(UserError) as caught:
        load_base(BaseConfig.model_validate({field: "someone/some-model"}))
    line = str(caught.value)
    assert line.startswith(f"{option} someone/some-model: ")
    assert remedy in line
    assert "\n" not in line


def test_a_pinned_hub_id_is_accepted_and_its_absence_is_one_line(tiny_base: BaseModels) -> None:
    config = BaseConfig(vlm_path="someone/some-model", vlm_revision="0" * 40)
    assert resolve(config)[1:] == ("someone/some-model", "")
    with pytest.raises(UserError, match="someone/some-model") as caught:
        load_base(config)  # Offline, and not in the cache.
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("part", PARTS)
def test_a_missing_part_is_named(folder: Path, part: str) -> None:
    shutil.rmtree(folder / part)
    with pytest.raises(UserError) as caught:
        load_base(BaseConfig(path=str(folder)))
    line = str(caught.value)
    assert line.startswith(f"base.path {folder}: no folder {part};")
    assert "diffusers' layout" in line


def test_all_missing_parts_are_named(folder: Path) -> None:
    for part in ("unet", "vae"):
        shutil.rmtree(folder / part)
    with pytest.raises(UserError, match="no folder vae, unet;"):
        digest(BaseConfig(path=str(folder)))


def test_a_missing_vlm_is_named(folder: Path) -> None:
    shutil.rmtree(folder / "vlm")
    with pytest.raises(UserError, match=r"no folder vlm: name a BLIP-2 with --base\.vlm-path"):
        load_base(BaseConfig(path=str(folder)))


WEIGHTS = {
    "vae": "diffusion_pytorch_model",
    "unet": "diffusion_pytorch_model",
    "text_encoder": "model",
    "vlm": "model",
}


@pytest.mark.parametrize("part", WEIGHTS)
def test_pickled_weights_are_not_loaded(folder: Path, part: str) -> None:
    safe = folder / part / f"{WEIGHTS[part]}.safetensors"
    names = {
        "model": "pytorch_model.bin",
        "diffusion_pytorch_model": "diffusion_pytorch_model.bin",
    }
    torch.save(load_file(safe), folder / part / names[WEIGHTS[part]])
    safe.unlink()
    with pytest.raises(UserError, match="do not load") as caught:
        load_base(BaseConfig(path=str(folder)))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("part", WEIGHTS)
def test_cut_weights_are_one_line(folder: Path, part: str) -> None:
    weights = folder / part / f"{WEIGHTS[part]}.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1000])
    with pytest.raises(UserError, match="do not load") as caught:
        load_base(BaseConfig(path=str(folder)))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("part", WEIGHTS)
def test_weights_that_lack_a_tensor_are_refused(folder: Path, part: str) -> None:
    # A layer that silently starts at random would differ from process to process.
    weights = folder / part / f"{WEIGHTS[part]}.safetensors"
    tensors = load_file(weights)
    del tensors[max(name for name in tensors if name.endswith("bias"))]
    save_file(tensors, weights, metadata={"format": "pt"})
    with pytest.raises(UserError) as caught:
        load_base(BaseConfig(path=str(folder)))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("part", [*WEIGHTS, "scheduler"])
def test_a_spoiled_config_is_one_line(folder: Path, part: str) -> None:
    name = "scheduler_config.json" if part == "scheduler" else "config.json"
    (folder / part / name).write_text("{")
    with pytest.raises(UserError, match="do not load") as caught:
        load_base(BaseConfig(path=str(folder)))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("kind", ["v_prediction", "sample"])
def test_another_prediction_than_the_noise_is_refused(folder: Path, kind: str) -> None:
    file = folder / "scheduler" / "scheduler_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "prediction_type": kind}))
    with pytest.raises(UserError, match=f"the scheduler predicts '{kind}'"):
        load_base(BaseConfig(path=str(folder)))


@pytest.mark.parametrize("part", WEIGHTS)
def test_the_digest_feels_one_byte_of_the_weights(folder: Path, part: str) -> None:
    config = BaseConfig(path=str(folder))
    before = digest(config)
    assert before == digest(BaseConfig())
    weights = folder / part / f"{WEIGHTS[part]}.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    assert digest(config) != before
    content[-1] ^= 1
    weights.write_bytes(content)
    assert digest(config) == before


@pytest.mark.parametrize(
    "file",
    [
        "unet/config.json",
        "scheduler/scheduler_config.json",
        "tokenizer/tokenizer.json",
        "vlm/tokenizer.json",
    ],
)
def test_the_digest_feels_settings_and_vocabularies(folder: Path, file: str) -> None:
    config = BaseConfig(path=str(folder))
    before = digest(config)
    (folder / file).write_text((folder / file).read_text() + "\n")
    assert digest(config) != before


def test_the_digest_feels_names_but_not_the_folders_place(folder: Path, tmp_path: Path) -> None:
    before = digest(BaseConfig(path=str(folder)))
    moved = folder.rename(tmp_path / "elsewhere")
    assert digest(BaseConfig(path=str(moved))) == before
    (moved / "README.md").write_text("Beside the parts: not read.")
    assert digest(BaseConfig(path=str(moved))) == before
    # The files' order stays the same.
    (moved / "unet" / "config.json").rename(moved / "unet" / "configs.json")
    assert digest(BaseConfig(path=str(moved))) != before


def test_a_warning_that_names_no_layer_is_left_out_and_others_are_not(
    adapter: SemanticAdapter, caplog: pytest.LogCaptureFixture
) -> None:
    quieten()
    log = logging.getLogger("diffusers.models.modeling_utils")
    text = "There are modules in A that should be kept in float32: {}. Casting ..."
    with caplog.at_level(logging.WARNING):
        log.addHandler(caplog.handler)
        adapter.to("cpu", torch.float32)
        log.warning(text.format([]))
        log.warning(text.format(["norm"]))
        log.removeHandler(caplog.handler)
    assert {record.getMessage() for record in caplog.records} == {text.format(["norm"])}
