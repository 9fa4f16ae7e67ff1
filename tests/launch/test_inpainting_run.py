"""The whole chain on an inpainting base, begun from an IP-Adapter file, exported again."""

from pathlib import Path

import pytest
from safetensors.torch import load_file

from acontrol.config import AdapterCard, BaseConfig
from acontrol.interop import ip_adapter
from acontrol.method.sga import SemanticAdapter
from acontrol.networks.load import load_base
from acontrol.pipelines.loading import load_adapter
from tests.launch import commands
from tests.networks.nine_channels import write_inpainting_base


@pytest.mark.slow
def test_shards_training_drawing_and_export(built_in_data: Path, tmp_path: Path) -> None:
    base = write_inpainting_base(tmp_path / "base")
    begin = SemanticAdapter.from_unet(load_base(BaseConfig()).unet, 64, mode="pooled")
    ip_adapter.export(begin, tmp_path / "ip.safetensors")
    shards, run = tmp_path / "shards", tmp_path / "run"
    done = commands.run("launch.shard", built_in_data, "--out", shards, "--split", "all")
    assert done.returncode == 0, done.stderr
    done = commands.run(
        "launch.train",
        *("tiny", "--data.shards", shards, "--output", run, "--base.path", base),
        *("--csm.mode", "pooled", "--init", tmp_path / "ip.safetensors"),
        *("--optim.steps", 2, "--optim.batch-size", 2, "--samples.every", 0),
        *("--samples.steps", 2, "--samples.count", 1),
        limit_s=600,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    adapter, card, _ = load_adapter(str(run))
    assert isinstance(card, AdapterCard) and card.inpainting
    moved = (adapter.proj.weight - begin.proj.weight).abs().max()
    assert 0 < moved < 0.02  # Two steps from where the file left off.
    done = commands.run(
        "launch.generate",
        *("--model", run, "--data", built_in_data, "--out", tmp_path / "new"),
        *("--category", "wood", "--defect", "crack", "--count", 1, "--steps", 2),
        *("--gate", "keep"),
        limit_s=600,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert len(list((tmp_path / "new").rglob("test/crack/*.png"))) == 1
    done = commands.run("launch.export", run, "--out", tmp_path / "ours.safetensors")
    assert done.returncode == 0, done.stderr
    assert (
        load_file(tmp_path / "ours.safetensors").keys()
        == load_file(tmp_path / "ip.safetensors").keys()
    )
