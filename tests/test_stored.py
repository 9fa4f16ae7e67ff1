"""What earlier releases wrote is read (docs/compatibility.md)."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from acontrol.config import AdapterCard
from acontrol.data.mvtec import open_folder
from acontrol.data.reader import ShardReader
from acontrol.data.split import Split, read_split
from acontrol.errors import UserError
from acontrol.generation.job import FORMAT, read_job
from acontrol.generation.manifest import planned_of
from acontrol.pipelines.loading import load_adapter
from acontrol.registry.card import Manifest
from acontrol.registry.model_files import check_model
from acontrol.train.checkpoint import TrainState, newest_checkpoint

RELEASES = sorted(
    path for path in (Path(__file__).parent / "stored").glob("*/") if "." in path.name
)


@pytest.fixture(params=RELEASES, ids=lambda path: path.name)
def stored(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A copy, in case reading writes."""
    return Path(shutil.copytree(request.param, tmp_path / "stored"))


def test_there_are_some() -> None:
    assert [path.name for path in RELEASES] == ["0.1"]


def test_shards_and_split(stored: Path) -> None:
    reader = ShardReader(str(stored / "shards"))
    assert reader.index.trained_on.categories == ("wood",)
    sample = reader.read(0)
    assert sample.image.size == sample.mask.size == (16, 16)
    assert np.asarray(sample.mask).any()
    split = read_split(stored / "split.json")
    assert "wood/test/crack/000.png" in split.train
    assert len(split.test) == 3


def test_a_checkpoint_continues(stored: Path) -> None:
    checkpoint = newest_checkpoint(stored / "run")
    assert checkpoint is not None
    assert (checkpoint.state.step, checkpoint.state.position) == (3, 24)
    assert checkpoint.state.config.optim.steps > 3
    state = checkpoint.adapter_state()
    assert state.weights["proj.weight"].eq(0.5).all()
    assert state.moments["exp_avg_sq.proj.weight"].eq(0.5).all()


def test_an_adapter_and_a_registered_model_load(stored: Path) -> None:
    adapter, card, _ = load_adapter(str(stored / "adapter"))
    assert adapter.proj.weight.eq(0.5).all()
    assert (card.steps, card.seed, card.resolution) == (3, 0, 64)
    registered = check_model(stored / "model")
    assert registered.name == "stored"
    assert registered.adapter == card
    assert registered.metrics == {"loss": 0.5}
    assert registered.author is None


def test_a_generated_set_can_be_planned_again(stored: Path) -> None:
    metadata, (line,) = read_job(stored / "generated")
    assert metadata["format"] in {"acontrol-generation-2", FORMAT}
    data = open_folder(stored / "data").root
    planned = planned_of(line, stored / "generated", {"data": data, "normal": data})
    assert planned.name == ("wood", "crack", "000")
    assert planned.reference.phrase == line["reference_phrase"]
    assert np.asarray(planned.mask.image()).any()
    file = stored / "generated" / "job.json"
    file.write_text(file.read_text().replace(metadata["format"], "acontrol-generation-9"))
    with pytest.raises(UserError, match=f"acontrol-generation-9, not one .*{FORMAT}"):
        read_job(stored / "generated")


def test_new_files_say_their_form_and_unknown_ones_are_refused(stored: Path) -> None:
    for model in (TrainState, AdapterCard, Manifest, Split):
        assert model.model_fields["format"].default.endswith("-1")
    file = stored / "adapter" / "config.json"
    config = json.loads(file.read_text())
    assert "format" not in config["card"]
    config["card"]["format"] = "acontrol-adapter-9"
    file.write_text(json.dumps(config))
    with pytest.raises(UserError, match="acontrol-adapter-1"):
        load_adapter(str(stored / "adapter"))
