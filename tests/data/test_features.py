"""Features on disk: complete or unusable, and never those of other settings."""

import json
from pathlib import Path

import pytest
import torch

from acontrol.config import AseaConfig, CsmConfig, DataConfig, RunConfig, RuntimeConfig
from acontrol.data.features import (
    ABOUT,
    CHUNK,
    NAMES,
    FeatureFolder,
    Features,
    digest_of,
    identity,
    joined,
)
from acontrol.errors import UserError

KEYS = [f"wood/crack/{number:03d}" for number in range(CHUNK + 6)]
BASE = RunConfig()


def values(count: int, seed: int = 0) -> Features:
    generator = torch.Generator().manual_seed(seed)
    return Features(
        *(
            torch.randn(count, *shape, generator=generator)
            for shape in ((4, 2, 2), (4, 2, 2), (1, 2, 2), (7, 8), (3, 8), (), ())
        )
    )


def folder(
    root: Path, config: RunConfig = BASE, keys: list[str] | None = None
) -> FeatureFolder:
    return FeatureFolder(root, identity(config, "d", "b"), KEYS if keys is None else keys)


@pytest.fixture
def whole(tmp_path: Path) -> FeatureFolder:
    made = folder(tmp_path)
    made.write(0, values(CHUNK))
    made.write(CHUNK, values(6, seed=1))
    made.finish()
    return made


def test_what_is_written_is_read(whole: FeatureFolder) -> None:
    everything = joined([values(CHUNK), values(6, seed=1)])
    assert whole.why_not() is None
    for number in (0, 5, CHUNK - 1, CHUNK, CHUNK + 5):
        row = whole.read(number)
        assert row.keys() == set(NAMES)
        for name in NAMES:
            assert torch.equal(row[name], getattr(everything, name)[number])


def test_a_set_continues_where_it_stopped(tmp_path: Path) -> None:
    made = folder(tmp_path)
    assert made.missing() == [0, CHUNK]
    made.write(CHUNK, values(6))
    assert made.missing() == [0]
    assert "is not finished" in (made.why_not() or "")
    with pytest.raises(UserError, match="samples from 0 on are missing"):
        made.finish()
    assert not list(made.path.glob(".*"))


def test_a_set_without_its_last_file_is_not_finished(whole: FeatureFolder) -> None:
    (whole.path / ABOUT).unlink()
    assert "is not finished" in (whole.why_not() or "")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"asea": AseaConfig(steps=5)}, "asea.steps: 3 -> 5"),
        ({"asea": AseaConfig(step_size=0.2)}, "asea.step_size: 0.1 -> 0.2"),
        ({"asea": AseaConfig(map="query_mean")}, "asea.map: rollout -> query_mean"),
        (
            {"data": DataConfig(target_view="region", target_px=96)},
            "target_px: None -> 96",
        ),
        ({"csm": CsmConfig(text=False)}, "csm.text: True -> False"),
        ({"runtime": RuntimeConfig(precision="bfloat16")}, "precision: float32 -> bfloat16"),
    ],
)
def test_other_settings_are_another_set(
    whole: FeatureFolder, changes: dict[str, object], words: str
) -> None:
    other = folder(whole.root, BASE.model_copy(update=changes))
    assert other.digest != whole.digest
    assert words in (other.why_not() or "")


def test_other_data_and_weights_are_another_set(whole: FeatureFolder) -> None:
    for digests, words in ((("e", "b"), "other data"), (("d", "c"), "other base")):
        other = FeatureFolder(whole.root, identity(BASE, *digests), KEYS)
        assert words in (other.why_not() or "")


def test_what_does_not_matter_does_not_change_the_set() -> None:
    changed = BASE.model_copy(
        update={"seed": 5, "output": "x", "csm": CsmConfig(mode="pooled")}
    )
    assert digest_of(identity(changed, "d", "b")) == digest_of(identity(BASE, "d", "b"))


def test_an_empty_folder_holds_none(tmp_path: Path) -> None:
    assert folder(tmp_path / "new").why_not() == f"{tmp_path / 'new'} holds none"


def test_a_damaged_file_is_named(whole: FeatureFolder) -> None:
    file = whole.path / "samples-000000.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(UserError, match=r"samples-000000.safetensors is damaged"):
        folder(whole.root).read(3)


@pytest.mark.parametrize("place", [0.3, 0.6, 0.99])
def test_a_flipped_bit_is_seen(whole: FeatureFolder, place: float) -> None:
    file = whole.path / "samples-000000.safetensors"
    content = bytearray(file.read_bytes())
    content[int(place * len(content))] ^= 4
    file.write_bytes(content)
    with pytest.raises(UserError, match="checksum differs"):
        whole.read(0)


def test_a_file_of_other_samples_is_refused(whole: FeatureFolder) -> None:
    renamed = folder(whole.root, keys=[key.replace("crack", "hole") for key in KEYS])
    with pytest.raises(UserError, match="belongs to other samples"):
        renamed.read(0)


def test_about_says_what_the_set_depends_on(whole: FeatureFolder) -> None:
    assert json.loads((whole.path / ABOUT).read_text()) == whole.identity
