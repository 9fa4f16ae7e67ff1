"""The metric that ranks trials which differ in their dropout rates."""

from pathlib import Path

import pytest
import torch
from PIL import Image, ImageDraw

from acontrol.config import BaseConfig, DataConfig
from acontrol.data.mvtec import open_folder
from acontrol.data.reader import ShardReader
from acontrol.data.shards import write_shards
from acontrol.data.stream import TrainingStream, held_out
from acontrol.method.sga import SemanticAdapter
from acontrol.networks.defect_features import defect_features
from acontrol.networks.load import BaseModels, load_base
from acontrol.networks.locate import built_in_adapter
from acontrol.presets import preset
from acontrol.train.sampling import guided_agreement, sample_grid


@pytest.fixture(scope="module")
def trained() -> BaseModels:
    return load_base(BaseConfig())


@pytest.fixture(scope="module")
def held(built_in_data: Path, tmp_path_factory: pytest.TempPathFactory) -> TrainingStream:
    out = tmp_path_factory.mktemp("agreement") / "s"
    write_shards(open_folder(built_in_data).labelled("all"), out, split="all")
    reader = ShardReader(str(out))
    held = held_out(reader.index, 0.5)
    return TrainingStream(reader, DataConfig(resolution=64), seed=0, reference_px=64, used=held)


def test_what_carries_the_reference_agrees_more(
    trained: BaseModels, held: TrainingStream
) -> None:
    tiny = preset("tiny")
    config = tiny.model_copy(
        update={
            "validation": tiny.validation.model_copy(update={"drawings": 6}),
            "samples": tiny.samples.model_copy(update={"steps": 10}),
        }
    )
    adapter = SemanticAdapter.from_pretrained(built_in_adapter())
    weights = {name: weight.clone() for name, weight in adapter.state_dict().items()}
    noise = torch.Generator().manual_seed(0)
    nonsense = {
        name: torch.randn(weight.shape, generator=noise) for name, weight in weights.items()
    }
    shipped = guided_agreement(trained, adapter, weights, held, config)
    assert shipped == guided_agreement(trained, adapter, weights, held, config)
    assert -1 <= guided_agreement(trained, adapter, nonsense, held, config) < shipped <= 1
    # The adapter that is training is left as it was.
    for name, weight in adapter.state_dict().items():
        assert torch.equal(weight, weights[name])


def test_only_what_is_in_the_mask_counts_most(
    trained: BaseModels, held: TrainingStream
) -> None:
    samples = [held.reader.read(held.pair(place)[0]) for place in range(2)]
    images, masks = [sample.image for sample in samples], [sample.mask for sample in samples]
    features = defect_features(trained.vlm, images, masks)
    assert features.shape == (2, trained.vlm.config.vision_config.hidden_size)
    assert torch.equal(features, defect_features(trained.vlm, images, masks))
    assert not torch.allclose(features, defect_features(trained.vlm, images, masks[::-1]))


@pytest.mark.parametrize("view", ["image", "region"])
def test_a_grid_is_drawn_from_references_larger_than_the_vision_tower_sees(
    trained: BaseModels, tmp_path: Path, view: str
) -> None:
    folder = tmp_path / "tile"
    for part in ("train/good", "test/crack", "ground_truth/crack"):
        (folder / part).mkdir(parents=True)
    Image.new("L", (300, 300), 90).save(folder / "train" / "good" / "0.png")
    Image.new("L", (300, 300), 90).save(folder / "test" / "crack" / "0.png")
    mask = Image.new("L", (300, 300))
    ImageDraw.Draw(mask).line((20, 20, 250, 170), fill=255, width=7)
    mask.save(folder / "ground_truth" / "crack" / "0_mask.png")
    write_shards(open_folder(folder).labelled("all"), tmp_path / "s", split="all")
    tiny = preset("tiny")
    config = tiny.model_copy(
        update={
            "data": tiny.data.model_copy(update={"reference_view": view}),
            "samples": tiny.samples.model_copy(update={"steps": 1}),
        }
    )
    stream = TrainingStream(
        ShardReader(str(tmp_path / "s")), config.data, seed=0, reference_px=64
    )
    adapter = SemanticAdapter.from_pretrained(built_in_adapter())
    grid = sample_grid(trained, adapter, adapter.state_dict(), stream, config)
    assert grid.width > 3 * 160
