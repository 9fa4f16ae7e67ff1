"""Does each part of the method help? On the built-in data and base.

    python -m benchmarks.tiny_ablation [--base BASE] [--out FILE.json]

Every row trains an adapter from the same initial weights on the same images and noise, then
generates the same cases: a reference of another product, a normal image, a mask, a prompt
without colour. A classifier trained on real built-in images alone judges them. The protocol was
fixed before any row was seen; finished rows are kept.
"""

import argparse
import json
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from PIL import Image
from tqdm import tqdm

from acontrol.config import (
    AdapterCard,
    AseaConfig,
    BaseConfig,
    CsmConfig,
    DataConfig,
    OptimConfig,
    RunConfig,
    SgaConfig,
)
from acontrol.data.builtin import ATTRIBUTES, CATEGORIES, DEFECT_TYPES, Specimen, draw
from acontrol.data.features import NAMES, FeatureBatch, Features, joined
from acontrol.data.images import fit, reference_view
from acontrol.data.prompts import target_text
from acontrol.data.stream import Batch
from acontrol.method.encoder import FrozenEncoder
from acontrol.method.model import AnomalyControl
from acontrol.method.sga import SemanticAdapter
from acontrol.networks.load import BaseModels, load_base, quieten
from acontrol.networks.locate import digest
from acontrol.pipelines.anomaly_control import AnomalyControlPipeline
from acontrol.pretrain.pool import built_in_vocabulary, draw_pool
from acontrol.pretrain.probe import Probe, as_tensor, train_probe
from acontrol.pretrain.settings import HELD_OUT
from acontrol.runs.server import TrackingStore
from acontrol.runs.stage import StageContext
from acontrol.runs.tracking import Tracker
from acontrol.seeding import derive_seed

SEEDS = (0, 1, 2)
STEPS, BATCH, RATE = 500, 16, 2e-3
A_KIND = 4  # Training images of each of the 78 defective kinds.
CASES = 216  # A seed: 36 pairs of product and defect, six times.
SAMPLER_STEPS, GUIDANCE = 20, 4.0
OFF, WITH_TEXT = AseaConfig(steps=0), CsmConfig()


@dataclass(frozen=True)
class Row:
    """One line of the table."""

    name: str
    csm: CsmConfig = WITH_TEXT
    asea: AseaConfig = OFF
    scale: float = 1.0


def rows() -> list[Row]:
    """The table's lines, in the paper's order; the text-only line draws with gamma 0."""
    table = [
        Row("text only", scale=0.0),
        Row("SGA (image-only C')", csm=CsmConfig(text=False)),
        Row("+ CSM"),
    ]
    for steps in (1, 3, 5):
        table.append(Row(f"+ ASEA T_g {steps}", asea=AseaConfig(steps=steps, step_size=0.05)))
    for rule, sizes in (("normalized", (0.02, 0.1)), ("gd", (100.0, 1000.0)), ("adam", (0.1,))):
        for size in sizes:
            setting = AseaConfig(steps=3, rule=rule, step_size=size)
            table.append(Row(f"+ ASEA T_g 3, {rule} {size:g}", asea=setting))
    bound = AseaConfig(steps=5, step_size=0.1, bound=0.15)
    table.append(Row("+ ASEA T_g 5, normalized 0.1, bound 0.15", asea=bound))
    return table


def plain(defect: str) -> str:
    """The words of a defect without colour."""
    return "spots" if defect == "spots" else f"a {defect}"


def training_images(seed: int) -> list[Specimen]:
    """A few images of every defective type, including those that the base has not seen."""
    return [
        draw(category, defect, seed=derive_seed(seed, "train", number), attribute=attribute)
        for category in CATEGORIES
        for defect in DEFECT_TYPES
        for attribute in ATTRIBUTES[defect]
        for number in range(A_KIND)
    ]


def seen_once(
    encoder: FrozenEncoder,
    images: list[Specimen],
    view: Literal["image", "region"] = "region",
    shown: Callable[[Specimen, int], np.ndarray] = lambda specimen, _: specimen.image,
) -> Features:
    """Features of every training image: each is its own reference.

    Args:
        encoder: The frozen networks.
        images: The training images.
        view: The reference's; by default its defect is magnified.
        shown: The reference's pixels, of an image and its number.
    """
    parts = []
    for first in range(0, len(images), BATCH):
        chosen = images[first : first + BATCH]
        pairs = [
            (Image.fromarray(image.image), Image.fromarray(image.mask)) for image in chosen
        ]
        whole = [fit(*pair, 64) for pair in pairs]
        views = [
            reference_view(
                Image.fromarray(shown(image, first + number)),
                Image.fromarray(image.mask),
                view,
                encoder.semantics.image_px,
            )
            for number, image in enumerate(chosen)
        ]
        phrases = [plain(image.defect) for image in chosen]
        batch = Batch(
            image=torch.stack([image for image, _ in whole]),
            mask=torch.stack([mask for _, mask in whole]),
            caption=[
                target_text(image.category, phrase)
                for image, phrase in zip(chosen, phrases, strict=True)
            ],
            reference_image=torch.stack([image for image, _ in views]),
            reference_mask=torch.stack([mask for _, mask in views]),
            reference_phrase=phrases,
            positions=[],
            keys=[],
        )
        parts.append(encoder(batch))
    return joined(parts)


def batches(features: Features, seed: int, steps: int) -> Iterator[FeatureBatch]:
    """Training batches, drawn with replacement."""
    count = len(features.tokens)
    for step in range(steps):
        chosen = np.random.default_rng(derive_seed(seed, "batch", step)).integers(
            count, size=BATCH
        )
        rows = {name: getattr(features, name)[torch.from_numpy(chosen)] for name in NAMES}
        positions = list(range(step * BATCH, (step + 1) * BATCH))
        yield FeatureBatch(**rows, positions=positions, keys=[""] * BATCH)


def train(
    base: BaseModels,
    row: Row,
    base_config: BaseConfig,
    seed: int,
    view: Literal["image", "region"] = "region",
    shown: Callable[[Specimen, int], np.ndarray] = lambda specimen, _: specimen.image,
) -> SemanticAdapter:
    """An adapter for one row; where gamma is 0 it is as it starts.

    The last two arguments are those of ``seen_once``.
    """
    config = RunConfig(
        seed=seed,
        base=base_config,
        data=DataConfig(resolution=64, reference_view=view),
        csm=row.csm,
        asea=row.asea,
        optim=OptimConfig(
            loss_weighting="late", mask_weight=8.0, steps=STEPS, batch_size=BATCH
        ),
    )
    card = AdapterCard(
        acontrol_version="0",
        base=base_config,
        base_digest=digest(base_config),
        csm=row.csm,
        asea=row.asea,
        sga=SgaConfig(),
        resolution=64,
        reference_view=view,
        split="all",
        data_digest="0" * 64,
        seed=seed,
        steps=STEPS,
    )
    adapter = SemanticAdapter.from_unet(
        base.unet, base.vlm.config.qformer_config.hidden_size, card=card.model_dump(mode="json")
    )
    model = AnomalyControl(base, adapter, config)
    optimizer = torch.optim.AdamW(adapter.parameters(), lr=RATE, weight_decay=0.01)
    if not row.scale:
        return adapter.eval()
    features = seen_once(model.encoder, training_images(seed), view, shown)
    for batch in tqdm(batches(features, seed, STEPS), row.name, STEPS, disable=None):
        model(batch).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return adapter.eval()


@dataclass(frozen=True)
class Case:
    """What one drawing is asked for."""

    product: str
    reference: Specimen
    normal: Specimen
    mask: Specimen


def cases(seed: int) -> list[Case]:
    """The same for every row: products and defects in turn, references of other products."""
    chosen = []
    for number in range(CASES):
        rng = np.random.default_rng(derive_seed(seed, "case", number))
        product = CATEGORIES[number % 6]
        defect = DEFECT_TYPES[number // 6 % 6]
        attribute = str(rng.choice(ATTRIBUTES[defect]))
        other = str(rng.choice([name for name in CATEGORIES if name != product]))
        seeds = (derive_seed(seed, "case", number, part) for part in range(3))
        chosen.append(
            Case(
                product,
                reference=draw(other, defect, seed=next(seeds), attribute=attribute),
                normal=draw(product, "good", seed=next(seeds)),
                mask=draw(product, defect, seed=next(seeds)),
            )
        )
    return chosen


def judged(
    base: BaseModels, adapter: SemanticAdapter, row: Row, probe: Probe, seed: int
) -> list[dict[str, object]]:
    """Generate every case and classify it: are type and colour right?"""
    pipeline = AnomalyControlPipeline.from_base(base, adapter)
    pipeline.set_progress_bar_config(disable=True)
    results: list[dict[str, object]] = []
    all_cases = cases(seed)
    for first in range(0, len(all_cases), 24):
        part = all_cases[first : first + 24]
        phrases = [plain(case.reference.defect) for case in part]
        images = pipeline(
            [
                target_text(case.product, words)
                for case, words in zip(part, phrases, strict=True)
            ],
            [Image.fromarray(case.reference.image) for case in part],
            [Image.fromarray(case.reference.mask) for case in part],
            phrases,
            [Image.fromarray(case.normal.image) for case in part],
            [Image.fromarray(case.mask.mask) for case in part],
            num_inference_steps=SAMPLER_STEPS,
            guidance_scale=GUIDANCE,
            semantic_scale=row.scale,
            generator=[
                torch.Generator().manual_seed(derive_seed(seed, "noise", first + number))
                for number in range(len(part))
            ],
        ).images
        for case, (_, phrase) in zip(part, probe.read(as_tensor(images)), strict=True):
            wanted, defect = case.reference, case.reference.defect
            pair = f"{case.product}/{defect}"
            results.append(
                {
                    "group": "new type"
                    if defect in HELD_OUT
                    else ("new pair" if pair in HELD_OUT else "seen"),
                    "type": probe.defect_of[phrase] == defect,
                    # Stain and spots come in four colours; a wrong type may still have it.
                    "colour": wanted.attribute in phrase.split()
                    if defect in ("stain", "spots")
                    else None,
                }
            )
    return results


def train_judge(folder: Path) -> Probe:
    """Train the classifier on images that nothing else here uses, and test it."""
    tracker = Tracker.open(
        TrackingStore(f"sqlite:///{folder / 'probe.db'}"), "judge", "judge", None, folder
    )
    context = StageContext(folder, tracker, 99, torch.device("cpu"), 10_000, 10_000)
    probe = train_probe(draw_pool(16_000, derive_seed(99, "judge"), 64), 1_500, context)
    test = draw_pool(1_000, derive_seed(99, "test"), 64)
    shown = [built_in_vocabulary()[place] for place in test.labels.tolist()]
    print("judge on real images:", probe.score(test.pixels(torch.arange(len(test))), shown))
    return probe


def main() -> None:
    """Run the rows that are not done yet; write each at once."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--base", default="tiny")
    parser.add_argument("--out", type=Path, default=Path("runs/tiny_ablation.json"))
    options = parser.parse_args()
    quieten()
    options.out.parent.mkdir(parents=True, exist_ok=True)
    done = json.loads(options.out.read_text()) if options.out.exists() else {}
    base_config = BaseConfig(path=options.base)
    with tempfile.TemporaryDirectory() as scratch:
        probe = train_judge(Path(scratch))
    for seed in SEEDS:
        for row in rows():
            key = f"{row.name}|{seed}"
            if key in done:
                continue
            begun = time.monotonic()
            base = load_base(base_config)
            adapter = train(base, row, base_config, seed)
            results = judged(base, adapter, row, probe, seed)
            done[key] = {"seconds": round(time.monotonic() - begun), "cases": results}
            partial = options.out.with_suffix(".partial")
            partial.write_text(json.dumps(done))
            os.replace(partial, options.out)
            share = np.mean([bool(result["type"]) for result in results])
            print(f"seed {seed}, {row.name}: type {share:.2f}", flush=True)
    print(options.out)


if __name__ == "__main__":
    main()
