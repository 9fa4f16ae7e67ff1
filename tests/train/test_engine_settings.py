"""Our settings in DeepSpeed's words, and those that do not fit together."""

import pytest
from pydantic import ValidationError

from acontrol.config import RunConfig
from acontrol.train.engine import deepspeed_config
from tests.train.test_engine import config_of


def test_deepspeed_is_told_the_settings() -> None:
    settings = deepspeed_config(config_of("stage 2, two passes, clipped, cosine", 4))
    assert settings["train_batch_size"] == 8
    assert settings["train_micro_batch_size_per_gpu"] == 1
    assert settings["gradient_accumulation_steps"] == 2
    assert settings["gradient_clipping"] == 0.1
    assert settings["zero_optimization"]["stage"] == 2
    assert "bf16" not in settings


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"zero": {"stage": 0}, "runtime": {"precision": "bfloat16"}}, "zero.stage 1, 2 or 3"),
        ({"zero": {"stage": 0, "offload_optimizer": True}}, "offload_optimizer needs stage"),
        ({"optim": {"steps": 5, "warmup_steps": 5}}, "warmup_steps 5 must stay under steps 5"),
        ({"optim": {"batch_size": 6, "accumulation": 4}}, "optim.accumulation 4"),
    ],
)
def test_settings_that_do_not_fit_are_refused(changed, words) -> None:
    with pytest.raises(ValidationError, match=words):
        RunConfig.model_validate(changed)
