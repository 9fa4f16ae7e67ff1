"""Loading an adapter with its base."""

import hashlib

import acontrol
from acontrol.networks.locate import built_in_adapter
from acontrol.pipelines.anomaly_control import AnomalyControlPipeline
from acontrol.pipelines.loading import load_with_digest


def test_the_public_name_returns_the_pipeline_alone() -> None:
    pipe = acontrol.load_pipeline(str(built_in_adapter()))
    assert isinstance(pipe, AnomalyControlPipeline)
    assert not pipe.adapter.training


def test_the_digest_names_weights_and_base() -> None:
    folder = built_in_adapter()
    pipe, digest = load_with_digest(str(folder))
    weights = (folder / "diffusion_pytorch_model.safetensors").read_bytes()
    assert digest == hashlib.sha256(weights + pipe.card.base_digest.encode()).hexdigest()
