"""The built-in base with a finer vision tower: 16 x 16 tokens, for ``two_defects.py``.

    python -m benchmarks.fine_base BASE

The other networks are the shipped base's. Its BLIP-2 is trained as ``launch.pretrain`` trains
one, with patches of 4 pixels and a third of the steps: the shipped base's had 1,800 and 3,000.
"""

import argparse
from pathlib import Path

import torch

from acontrol.config import BaseConfig
from acontrol.networks.load import load_base, quieten
from acontrol.pretrain import networks as net
from acontrol.pretrain.pool import draw_pool
from acontrol.pretrain.run import REGION_SHARE
from acontrol.pretrain.settings import Sizes, VlmStage
from acontrol.pretrain.vlm import retrieval, train_vlm
from acontrol.runs.server import TrackingStore
from acontrol.runs.stage import StageContext
from acontrol.runs.tracking import Tracker
from acontrol.seeding import derive_seed


def main() -> None:
    """Train the BLIP-2 and write the base; the same command continues."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("base", type=Path)
    output: Path = parser.parse_args().base
    quieten()
    torch.set_num_threads(1)
    folder = output.with_name(f"{output.name}-training")
    folder.mkdir(parents=True, exist_ok=True)
    tracker = Tracker.open(
        TrackingStore(f"sqlite:///{folder / 'mlflow.db'}"), "fine", "fine", None, folder
    )
    context = StageContext(folder, tracker, 0, torch.device("cpu"), 100, 100_000)
    pool = draw_pool(8_000, 0, 64)
    words = {word for entry in pool.vocabulary for word in entry.caption.lower().split()}
    parts = net.build(Sizes(patch=4), 0, [word for word in sorted(words) if word.isalpha()])
    stage = VlmStage(vision_steps=600, steps=1_000)
    train_vlm(parts.vlm, parts.vlm_tokenizer, pool.magnified(REGION_SHARE, 0), stage, context)
    test = draw_pool(512, derive_seed(0, "test"), 64)
    print(retrieval(parts.vlm, parts.vlm_tokenizer, test, torch.device("cpu")))
    shipped = load_base(BaseConfig(path="tiny"))
    for name in ("vae", "text_encoder", "tokenizer", "unet", "scheduler"):
        setattr(parts, name, getattr(shipped, name))
    assert shipped.vlm_tokenizer.get_vocab() == parts.vlm_tokenizer.get_vocab()
    net.save(parts, output)


if __name__ == "__main__":
    main()
