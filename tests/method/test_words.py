import logging

import pytest

from acontrol.config import AseaConfig, CsmConfig
from acontrol.method import words
from acontrol.method.csm import CrossModalEncoder
from acontrol.method.encoder import embed_text
from acontrol.networks.load import BaseModels

LONG = "a photo of wood with " + "a crack and " * 40 + "a stain"


@pytest.fixture(autouse=True)
def nothing_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(words, "_warned", set())


def test_a_caption_that_is_cut_is_named_once(
    tiny_base: BaseModels, caplog: pytest.LogCaptureFixture
) -> None:
    embed_text(tiny_base.text_encoder, tiny_base.tokenizer, ["a crack", "a stain"])
    assert caplog.messages == []
    for _ in range(2):
        embed_text(tiny_base.text_encoder, tiny_base.tokenizer, ["a crack", LONG])
    (line,) = caplog.messages
    limit = tiny_base.tokenizer.model_max_length
    assert f"target texts are truncated to {limit} tokens" in line
    assert repr(LONG) in line
    assert caplog.records[0].levelno == logging.WARNING


def test_an_anomaly_text_over_lavis_limit_is_named_once(
    tiny_base: BaseModels, caplog: pytest.LogCaptureFixture
) -> None:
    encoder = CrossModalEncoder(
        tiny_base.vlm, tiny_base.vlm_tokenizer, CsmConfig(), AseaConfig()
    )
    encoder.read(["a crack"])
    assert caplog.messages == []
    phrase = "dark " * 30 + "crack"
    for _ in range(2):
        encoder.read(["a crack", phrase])
    (line,) = caplog.messages
    assert "anomaly texts up to 32 tokens" in line
    assert phrase in line
