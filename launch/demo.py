"""Show the whole chain on built-in data, offline, on a CPU, in a few minutes.

    python -m launch.demo [--out DIR]

Draws a data set, shards it, trains the tiny preset on Ray workers with DeepSpeed, logs to
MLflow, draws new defects, and puts reference, mask, normal image and result into one picture.

The few steps of the demo show training at work. The picture comes from an adapter that ships
with the package: the same training, only longer. --adapter own draws with the demo's own.
"""

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from pydantic import Field, ValidationError

from acontrol.config import RunConfig, Settings
from acontrol.data.settings import ShardConfig
from acontrol.errors import UserError, explain
from acontrol.messages import counted
from acontrol.presets import preset
from acontrol.seeding import derive_seed
from launch.entry import main
from launch.options import parse
from launch.train import train

if TYPE_CHECKING:
    from PIL import Image

PROG = "python -m launch.demo"
MARKER = ".acontrol-demo"
# So small a base follows C' better when both push harder than at full size.
GUIDANCE, SCALE = 6.0, 2.0
# Product, defect, colour, and the product on which the reference shows it. The built-in base
# has seen none of these defects on these products, and spots nowhere.
UNSEEN = (
    ("metal", "stain", "red", "wood"),
    ("metal", "stain", "green", "tile"),
    ("wood", "hole", "", "leather"),
    ("leather", "crack", "", "tile"),
    ("button", "spots", "blue", "fabric"),
    ("tile", "spots", "red", "leather"),
)


class DemoCommand(Settings):
    """Settings of launch.demo."""

    out: Path = Field(Path("runs/demo"), description="Folder for everything the demo makes.")
    steps: int = Field(40, ge=1, description="Training steps.")
    num_defects: int = Field(
        12, ge=12, description="Images of each product and defect; a third is trained on."
    )
    batch_size: int = Field(8, ge=1, description="Samples per training step.")
    adapter: Literal["shipped", "own"] = Field(
        "shipped", description="Which adapter draws: the package's, or the demo's own."
    )
    num_workers: int | None = Field(
        None, ge=1, description="Training processes; by default one per GPU, else two."
    )
    seed: int = Field(0, ge=0, description="Of the data, the training and the drawing.")


def run(args: Sequence[str], prog: str = PROG) -> None:
    """Run every step, and print where each result is."""
    command = parse(DemoCommand, args, prog=prog, description=__doc__)
    out = command.out
    data, shards, run_folder, drawn = (
        out / name for name in ("data", "shards", "run", "generated")
    )
    config = _training(command, shards, run_folder)
    _clear(out)
    from acontrol.data.builtin import write_dataset
    from acontrol.data.shard_folder import shard_folder

    print("1/4  drawing the built-in data set: 6 products, 6 kinds of defect", flush=True)
    write_dataset(
        data,
        seed=command.seed,
        num_good=4,
        num_good_test=1,
        num_defects=command.num_defects,
        name_attributes=False,
    )
    print("2/4  writing WebDataset shards of the training third", flush=True)
    shard_folder(ShardConfig(root=data, out=shards))
    print(
        f"3/4  training the adapter: {counted(config.cluster.num_workers, 'Ray worker')}, "
        "DeepSpeed",
        flush=True,
    )
    train(config)
    print("4/4  drawing new defects", flush=True)
    _draw(data, run_folder if command.adapter == "own" else None, drawn, command.seed)
    picture = out / "demo.png"
    _sheet(data, drawn).save(picture)
    if command.adapter == "shipped":
        print(
            f"\nThe {command.steps} steps above show training at work; the picture is drawn by "
            "the adapter that ships\nwith acontrol, trained for longer. The base "
            "has never seen these defects on\nthese products: kind and colour come from the "
            "reference."
        )
    print(
        f"\n  picture      {picture}"
        f"\n  generated    {drawn}"
        f"\n  adapter      {run_folder / 'adapter'}"
        f"\n  data set     {data}"
        f"\n  shards       {shards}"
    )


def _gpus() -> int:
    """GPUs of this machine."""
    import torch

    return torch.cuda.device_count()


def _workers(gpus: int, batch_size: int) -> int:
    """One per GPU, as far as they share a batch evenly; two processes without any."""
    return max(count for count in range(1, (gpus or 2) + 1) if batch_size % count == 0)


def _training(command: DemoCommand, shards: Path, output: Path) -> RunConfig:
    """The training run: the tiny preset, shorter."""
    values = {
        "data.shards": str(shards),
        "output": str(output),
        "tracking.run_name": f"train {command.out.name}",
        "seed": command.seed,
        "optim.steps": command.steps,
        "optim.batch_size": command.batch_size,
        "optim.schedule": "cosine",
        "cluster.num_workers": command.num_workers or _workers(_gpus(), command.batch_size),
        "checkpoint.every": max(10, command.steps // 10),
        "samples.every": max(20, command.steps // 5),
    }
    try:
        return preset("tiny").with_values(values)
    except ValidationError as error:
        raise UserError(explain(error)) from error


def _clear(out: Path) -> None:
    """Replace an earlier demo, and nothing else."""
    if out.exists() and any(out.iterdir()):
        if not (out / MARKER).exists():
            raise UserError(f"{out} exists and is not an earlier demo: name another --out")
        shutil.rmtree(out)
    out.mkdir(parents=True, exist_ok=True)
    (out / MARKER).touch()


def _draw(data: Path, model: Path | None, drawn: Path, seed: int) -> None:
    """Generate from a requests file: references from another product."""
    from acontrol.data.builtin import ATTRIBUTES
    from acontrol.data.mvtec import open_folder
    from acontrol.generation.run import generate
    from acontrol.generation.settings import GenerationConfig
    from acontrol.networks.locate import built_in_adapter

    folder = open_folder(data)
    lines = []
    for product, defect, attribute, other in UNSEEN:
        # Attributes take turns over the images of a defect.
        place = ATTRIBUTES[defect].index(attribute)
        reference = folder.labelled("train", category=other, defect=defect)[place]
        mask = folder.labelled("train", category=product, defect=defect)[place]
        lines.append(
            {
                "category": product,
                "defect": defect,
                "normal": str(folder.normals(product)[place].relative_to(data)),
                "mask": str(mask.mask.relative_to(data)),
                "reference": reference.key,
                "seed": derive_seed(seed, "demo", product, defect),
            }
        )
    requests = data / "requests.jsonl"
    requests.write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    generate(
        GenerationConfig(
            model=str(model or built_in_adapter()),
            data=data,
            out=drawn,
            requests=requests,
            guidance_scale=GUIDANCE,
            scale=SCALE,
            batch_size=len(lines),
            gate="keep",  # The picture shows each request.
        )
    )


def _sheet(data: Path, drawn: Path) -> "Image.Image":
    """Two results a row, each with its reference, mask and normal image."""
    from PIL import Image

    from acontrol.generation.job import MANIFEST_NAME
    from acontrol.reporting import contact_sheet, tinted

    rows, captions = [], []
    for line in map(json.loads, (drawn / MANIFEST_NAME).read_text().splitlines()):
        normal = Image.open(data / line["normal"])
        mask = Image.open(drawn / line["mask"])
        reference = Image.open(data / line["reference"])
        result = Image.open(drawn / line["image"])
        rows.append([reference, tinted(normal, mask), normal, result])
        captions.append(line["prompt"])
    return contact_sheet(
        [left + right for left, right in zip(rows[::2], rows[1::2], strict=True)],
        ["reference", "where", "normal image", "result"] * 2,
        [
            f"{left} | {right}"
            for left, right in zip(captions[::2], captions[1::2], strict=True)
        ],
    )


if __name__ == "__main__":
    main(run)
