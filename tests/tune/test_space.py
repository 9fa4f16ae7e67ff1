import json
from pathlib import Path

import pytest

from acontrol.errors import UserError
from acontrol.presets import preset
from tune.space import Choice, Range, check, default_space, in_words, read_file, read_words


def test_words_are_lists_ranges_and_fixed_values() -> None:
    space = read_words(
        [
            "sga.scale=0.5:1.5",
            "optim.learning-rate=log:1e-5:1e-3",
            "asea.steps=1,3,5",
            "optim.warmup_steps=0:20",
            "csm.text=true,false",
            "asea.rule=normalized",
        ]
    )
    assert space["sga.scale"] == Range(low=0.5, high=1.5)
    assert space["optim.learning_rate"] == Range(low=1e-5, high=1e-3, log=True)
    assert space["asea.steps"] == Choice(values=(1, 3, 5))
    assert space["optim.warmup_steps"] == Range(low=0, high=20, whole=True)
    assert space["csm.text"] == Choice(values=(True, False))
    assert space["asea.rule"] == Choice(values=("normalized",))
    assert read_words([f"{key}={text}" for key, text in in_words(space).items()]) == space


def test_a_file_says_the_same(tmp_path: Path) -> None:
    file = tmp_path / "space.json"
    said = {
        "sga.scale": {"low": 0.5, "high": 1.5},
        "asea.steps": [1, 3],
        "asea.bound": "0.1:0.3",
    }
    file.write_text(json.dumps(said))
    assert read_file(file) == read_words(
        ["sga.scale=0.5:1.5", "asea.steps=1,3", "asea.bound=0.1:0.3"]
    )


@pytest.mark.parametrize(
    ("word", "reason"),
    [
        ("sga.scale", "need KEY=VALUES"),
        ("sga.scal=1:2", "no such setting; did you mean sga.scale?"),
        ("base.path=a,b", "is the same for all trials"),
        ("output=a,b", "is the same for all trials"),
        ("sga.scale=2:1", "an empty range"),
        ("sga.scale=1:1", "an empty range"),
        ("sga.scale=", "an empty list"),
        ("sga.scale=log:0:1", "must start above 0"),
        ("sga.scale=a:b", "LOW:HIGH of numbers"),
        ("asea.steps=1:2.5", "LOW:HIGH of whole numbers"),
        ('asea.rule=["gd"]', "a list holds numbers"),
    ],
)
def test_what_is_no_space_is_one_line(word: str, reason: str) -> None:
    with pytest.raises(UserError, match="--space") as refused:
        read_words([word])
    assert reason in str(refused.value)
    assert "\n" not in str(refused.value)


def test_a_key_is_named_once() -> None:
    with pytest.raises(UserError, match="given twice"):
        read_words(["sga.scale=1,2", "sga.scale=0:1"])


@pytest.mark.parametrize(
    ("text", "reason"),
    [("{", "not JSON"), ("[]", "need a JSON object"), ('{"sga.scale": []}', "an empty list")],
)
def test_a_bad_file_is_one_line(tmp_path: Path, text: str, reason: str) -> None:
    file = tmp_path / "space.json"
    file.write_text(text)
    with pytest.raises(UserError, match="--space-file") as refused:
        read_file(file)
    assert reason in str(refused.value)
    with pytest.raises(UserError, match="No such file"):
        read_file(tmp_path / "none.json")


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (["asea.steps=1,99"], "asea.steps 99"),
        (["asea.rule=gd,fastest"], "asea.rule fastest"),
        (["sga.scale=-1:1"], "sga.scale -1"),
        (["dropout.text=0:0.5", "dropout.both=0:0.5"], "dropout.text 0.5, dropout.both 0.5"),
        (["asea.rule=normalized,adam", "asea.solver=all,first"], "adam"),
    ],
)
def test_values_that_make_no_config_are_found_before_any_trial(
    words: list[str], reason: str
) -> None:
    with pytest.raises(UserError, match="the search space allows") as refused:
        check(preset("tiny"), read_words(words))
    assert reason in str(refused.value)


def test_the_default_space_is_sound_and_its_rates_stay_under_one() -> None:
    for name in ("tiny", "mvtec-sd15"):
        run = preset(name)
        space = default_space(run)
        check(run, space)
        assert (
            sum(max(space[f"dropout.{one}"].marks) for one in ("text", "semantic", "both")) < 1
        )
        # Precomputed features are shared by trials that agree on these.
        assert all(isinstance(space[f"asea.{one}"], Choice) for one in ("steps", "step_size"))
