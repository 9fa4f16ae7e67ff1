import json
import shutil
from pathlib import Path

import huggingface_hub.constants
import pytest
import torch
from safetensors.torch import load_file, save_file

from acontrol.config import BaseConfig
from acontrol.errors import UserError
from acontrol.networks import hub
from acontrol.networks.load import BaseModels, load_base
from acontrol.networks.locate import built_in_base
from acontrol.presets import preset

COMMIT, OTHER = "a1" * 20, "b2" * 20


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache of the hub's; the whole suite is offline."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    return tmp_path / "hub"


def put(cache: Path, source: Path, repo: str, commit: str) -> Path:
    """A folder as the hub's cache holds it."""
    place = cache / f"models--{repo.replace('/', '--')}" / "snapshots" / commit
    shutil.copytree(source, place)
    return place


@pytest.fixture
def config() -> BaseConfig:
    return BaseConfig(
        path="someone/sd", revision=COMMIT, vlm_path="someone/blip", vlm_revision=OTHER
    )


@pytest.fixture
def cached(cache: Path) -> dict[str, Path]:
    """The built-in base under two hub ids, as SD1.5 and BLIP-2 are."""
    places = {"sd": put(cache, built_in_base(), "someone/sd", COMMIT)}
    shutil.rmtree(places["sd"] / "vlm")
    places["blip"] = put(cache, built_in_base() / "vlm", "someone/blip", OTHER)
    return places


def test_pinned_hub_ids_load_offline_from_the_cache(
    tiny_base: BaseModels, cached: dict[str, Path], config: BaseConfig
) -> None:
    assert hub.missing(config) == []
    models = load_base(config)
    assert torch.equal(models.unet.conv_in.weight, tiny_base.unet.conv_in.weight)
    assert torch.equal(models.vlm.query_tokens, tiny_base.vlm.query_tokens)
    words = "a crack on metal"
    assert models.vlm_tokenizer(words).input_ids == tiny_base.vlm_tokenizer(words).input_ids


def test_a_variants_weights_are_read(
    tiny_base: BaseModels, cached: dict[str, Path], config: BaseConfig
) -> None:
    for part, stem in (
        ("unet", "diffusion_pytorch_model"),
        ("vae", "diffusion_pytorch_model"),
        ("text_encoder", "model"),
    ):
        folder = cached["sd"] / part
        weights = load_file(folder / f"{stem}.safetensors")
        negated = {name: -value for name, value in weights.items()}
        save_file(negated, folder / f"{stem}.fp16.safetensors", {"format": "pt"})
        (folder / f"{stem}.safetensors").unlink()
    (line,) = hub.missing(config)
    assert "--include 'unet/diffusion_pytorch_model.safetensors'" in line
    models = load_base(config.model_copy(update={"variant": "fp16"}))
    assert torch.equal(models.unet.conv_in.weight, -tiny_base.unet.conv_in.weight)
    for part in ("vae", "text_encoder"):
        result, plain = getattr(models, part), getattr(tiny_base, part)
        for one, theirs in zip(result.parameters(), plain.parameters(), strict=True):
            assert torch.equal(one, -theirs)


def test_weights_in_pieces_are_seen_whole(cached: dict[str, Path], config: BaseConfig) -> None:
    blip = cached["blip"]
    pieces = ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"]
    weights = list(load_file(blip / "model.safetensors").items())
    (blip / "model.safetensors").unlink()
    parts = dict(weights[::2]), dict(weights[1::2])
    for name, part in zip(pieces, parts, strict=True):
        save_file(part, blip / name, {"format": "pt"})
    table = {key: name for name, part in zip(pieces, parts, strict=True) for key in part}
    index = {"metadata": {}, "weight_map": table}
    (blip / "model.safetensors.index.json").write_text(json.dumps(index))
    assert hub.missing(config) == []
    load_base(config)
    (blip / pieces[1]).unlink()
    (line,) = hub.missing(config)
    assert line.startswith(f"base.vlm-path someone/blip at commit {OTHER} is not on this")


@pytest.mark.parametrize(
    "file",
    [
        "unet/config.json",
        "vae/diffusion_pytorch_model.safetensors",
        "text_encoder/model.safetensors",
        "scheduler/scheduler_config.json",
        "tokenizer",
    ],
)
def test_a_file_short_is_missing(
    cached: dict[str, Path], config: BaseConfig, file: str
) -> None:
    place = cached["sd"] / file
    shutil.rmtree(place) if place.is_dir() else place.unlink()
    (line,) = hub.missing(config)
    assert line.startswith(f"base.path someone/sd at commit {COMMIT} is not on this machine")


def test_another_commit_is_not_taken(cached: dict[str, Path], config: BaseConfig) -> None:
    (line,) = hub.missing(config.model_copy(update={"revision": OTHER}))
    assert f"hf download someone/sd --revision {OTHER}" in line
    with pytest.raises(UserError, match="is not on this machine") as caught:
        load_base(config.model_copy(update={"revision": OTHER}))
    assert str(caught.value) == line


def test_folders_need_nothing(cache: Path) -> None:
    assert hub.missing(BaseConfig()) == []
    assert hub.missing(BaseConfig(path=str(built_in_base()))) == []
    hub.fetch(BaseConfig())


def test_the_presets_say_what_to_download_and_how_large(cache: Path) -> None:
    # float32: 859,520,964 + 83,653,863 + 123,060,480 weights of four bytes, and 1,172,032,258.
    base, vlm = hub.missing(preset("mvtec-sd15").base)
    assert "(unet 3.44 GB, vae 0.33 GB, text_encoder 0.49 GB, 4.26 GB in all)" in base
    assert "--revision 451f4fe16113bff5a5d2269ed5ad43b0592e9a14" in base
    assert "(vlm 4.69 GB)" in vlm
    assert "'model*.safetensors*'" in vlm
    # Safetensors of the inpainting checkpoint are there in float16 alone.
    base, same = hub.missing(preset("mvtec-sd15-inpainting").base)
    assert "(unet 1.72 GB, vae 0.17 GB, text_encoder 0.25 GB, 2.13 GB in all)" in base
    assert "--include 'unet/diffusion_pytorch_model.fp16.safetensors'" in base
    assert same == vlm


def test_online_it_is_fetched_and_a_refusal_is_one_line(
    cache: Path, config: BaseConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = []

    def snapshot_download(repo: str, revision: str, allow_patterns: list[str]) -> str:
        calls.append((repo, revision, allow_patterns))
        if repo == "someone/blip":
            raise OSError("no\nroute")
        return ""

    monkeypatch.setattr(hub, "is_offline_mode", lambda: False)
    monkeypatch.setattr(hub, "snapshot_download", snapshot_download)
    with pytest.raises(UserError, match="the download failed: no route") as caught:
        hub.fetch(config)
    assert "\n" not in str(caught.value)
    assert [call[:2] for call in calls] == [("someone/sd", COMMIT), ("someone/blip", OTHER)]
    assert "unet/diffusion_pytorch_model.safetensors" in calls[0][2]
