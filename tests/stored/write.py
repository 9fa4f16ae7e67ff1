"""Write the files of this version's forms, once for each release that changes one.

python -m tests.stored.write tests/stored/VERSION
"""

import json
import shutil
import sys
from pathlib import Path

from PIL import Image

from acontrol.config import AdapterCard, BaseConfig, RunConfig
from acontrol.data.builtin import write_dataset
from acontrol.method.sga import SemanticAdapter
from acontrol.networks import locate
from acontrol.presets import preset
from acontrol.registry.card import CONFIG, ModelCard
from acontrol.registry.package import package
from acontrol.runs.storage import sha256
from acontrol.train.checkpoint import AdapterState, TrainState, write_checkpoint
from launch import generate, shard, split


def main(out: Path) -> None:
    """Write shards, a checkpoint, an adapter, a registered model and a generated image."""
    out.mkdir(parents=True)
    data = out / "data"
    write_dataset(
        data,
        num_good=1,
        num_good_test=1,
        num_defects=3,
        categories=("wood",),
        defects=("crack",),
    )
    split.run([str(data), "--by", "third", "--out", str(out / "split.json")])
    shard.run([str(data), "--out", str(out / "shards"), "--resolution", "16"])
    config = RunConfig.model_validate(preset("tiny").model_dump())
    card = AdapterCard(
        acontrol_version="0.1.0",
        base=BaseConfig(),
        base_digest=locate.digest(BaseConfig()),
        csm=config.csm,
        asea=config.asea,
        sga=config.sga,
        resolution=64,
        reference_view="image",
        split="train",
        data_digest="1" * 64,
        seed=0,
        steps=3,
    )
    adapter = SemanticAdapter([["one", 3], ["two", 5]], 4, card=card.model_dump(mode="json"))
    for value in adapter.state_dict().values():
        value.fill_(0.5)
    weights = {name: value.clone() for name, value in adapter.state_dict().items()}
    moments = {
        f"{moment}.{name}": value.clone()
        for moment in ("exp_avg", "exp_avg_sq")
        for name, value in weights.items()
    }
    state = TrainState(step=3, position=24, data_digest="d", base_digest="b", config=config)
    run = out / "run" / "launches" / "a"
    bundle = write_checkpoint(run, adapter, AdapterState(weights, moments, 3), state)
    shutil.copytree(bundle / "adapter", out / "adapter")
    model = out / "model"
    model.mkdir()
    registered = ModelCard(
        name="stored",
        adapter=card,
        weights_sha256=sha256(out / "adapter" / Path("diffusion_pytorch_model.safetensors")),
        run="r",
        metrics={"loss": 0.5},
        licences=["none"],
    )
    grid = out / "grid.png"
    Image.new("RGB", (8, 8)).save(grid)
    package(model, out / "adapter", registered, grid)
    grid.unlink()
    assert (model / CONFIG).is_file()
    shipped = str(locate.built_in_adapter())
    args = ["--model", shipped, "--data", str(data), "--out", str(out / "generated")]
    generate.run([*args, "--count", "1", "--steps", "2", "--gate", "off"])
    shutil.rmtree(out / "generated" / "report", ignore_errors=True)
    (line,) = map(json.loads, (out / "generated" / "manifest.jsonl").read_text().splitlines())
    used = {str(data / line[name]) for name in ("normal", "reference", "reference_mask")}
    for file in data.rglob("*"):
        if file.is_file() and str(file) not in used and "mask" not in file.name:
            file.unlink()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
