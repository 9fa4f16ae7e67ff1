"""The shipped base and adapter do what their cards say."""

import hashlib
import json
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from acontrol.config import AseaConfig, CsmConfig
from acontrol.data.builtin import CATEGORIES, PAINTS, Specimen, draw
from acontrol.data.images import fit
from acontrol.data.prompts import target_text
from acontrol.method.csm import CrossModalEncoder
from acontrol.networks.load import BaseModels
from acontrol.networks.locate import built_in_adapter, built_in_base
from acontrol.pipelines.anomaly_control import AnomalyControlPipeline
from acontrol.pipelines.loading import load_pipeline
from acontrol.pretrain.pool import draw_pool
from acontrol.pretrain.vae import psnr
from acontrol.pretrain.vlm import retrieval
from acontrol.seeding import derive_seed

CASES = 120
MEGABYTES = 10


@pytest.fixture(scope="module")
def base_card() -> dict:
    """The built-in base's card."""
    return json.loads((built_in_base() / "card.json").read_text())


def test_the_files_are_those_of_the_card(base_card: dict) -> None:
    files = {
        file.relative_to(built_in_base()).as_posix(): file.read_bytes()
        for file in built_in_base().rglob("*.safetensors")
    }
    digests = {name: hashlib.sha256(content).hexdigest() for name, content in files.items()}
    assert digests == base_card["sha256"]
    size = sum(file.stat().st_size for file in built_in_base().rglob("*") if file.is_file())
    assert size <= MEGABYTES * 1e6


def test_the_card_promises_enough(base_card: dict) -> None:
    metrics = base_card["metrics"]
    assert metrics["psnr_db"] >= 30
    assert metrics["psnr_in_masks_db"] >= 24.5
    assert metrics["drawn_seen_category"] >= 0.9
    assert metrics["drawn_seen_defect"] >= 0.9
    assert metrics["retrieval"] >= 0.84
    assert metrics["vocabulary"] == 84


def test_autoencoder_and_retrieval_match_the_card(base_card: dict, base: BaseModels) -> None:
    config = base_card["config"]
    test = draw_pool(config["test"], derive_seed(config["seed"], "test"), 64)
    cpu = torch.device("cpu")
    metrics = psnr(base.vae, test, cpu) | retrieval(base.vlm, base.vlm_tokenizer, test, cpu)
    for name, value in metrics.items():
        # Processors round differently: one image in 512 may change sides.
        assert value == pytest.approx(base_card["metrics"][name], abs=0.01), name


@pytest.mark.parametrize("steps", [1, 3])
def test_asea_lowers_the_energy(base: BaseModels, steps: int) -> None:
    settings = AseaConfig(steps=steps)
    encoder = CrossModalEncoder(base.vlm, base.vlm_tokenizer, CsmConfig(), settings)
    specimens = [specimen(number) for number in range(CASES)]
    pairs = [fit(Image.fromarray(s.image), Image.fromarray(s.mask), 64) for s in specimens]
    features = encoder(
        torch.stack([image for image, _ in pairs]),
        [s.phrase for s in specimens],
        torch.stack([mask for _, mask in pairs]),
    )
    fell = features.energy_after < features.energy_before
    assert fell.float().mean() >= 0.95


def test_the_shipped_adapter_carries_the_references_colour() -> None:
    assert_colour_is_carried(built_in_adapter())


@pytest.mark.slow
def test_a_newly_trained_adapter_carries_it_too(tmp_path: Path) -> None:
    """By the command that made the shipped adapter, from its card."""
    from launch import demo

    command = json.loads((built_in_adapter() / "made.json").read_text())["command"]
    arguments = command.removeprefix("python -m launch.demo ").split()
    demo.run([*arguments, "--out", str(tmp_path / "demo")])
    assert_colour_is_carried(tmp_path / "demo" / "run" / "adapter")


def specimen(number: int, category: str | None = None) -> Specimen:
    """A stain or spots in one of the paints, on products in turn."""
    return draw(
        category or CATEGORIES[number % 6],
        ("stain", "spots")[number // 6 % 2],
        seed=derive_seed(31, "shipped", number),
        attribute=list(PAINTS)[number // 12 % 4],
    )


def assert_colour_is_carried(adapter: Path) -> None:
    """With a prompt without colour, the reference's appears more often than at scale 0."""
    pipeline = load_pipeline(str(adapter))
    pipeline.set_progress_bar_config(disable=True)
    references = [specimen(number) for number in range(CASES)]
    # Another product, mask and normal image; the mask is of the same defect type.
    targets = [
        specimen(1_000 + number, CATEGORIES[(number + 1) % 6]) for number in range(CASES)
    ]
    right = {}
    for scale in (0.0, 1.0):
        images = generate_all(pipeline, references, targets, scale)
        for image, target in zip(images, targets, strict=True):
            changed = (np.asarray(image) != target.normal).any(axis=2)
            assert not (changed & ~target.mask).any()
        right[scale] = np.array(
            [
                nearest_paint(image, target) == reference.attribute
                for image, target, reference in zip(images, targets, references, strict=True)
            ],
            dtype=float,
        )
    gain = right[1.0] - right[0.0]
    error = gain.std(ddof=1) / CASES**0.5
    assert gain.mean() > 3 * error, f"{right[0.0].mean()} to {right[1.0].mean()}, +- {error}"


def generate_all(
    pipeline: AnomalyControlPipeline,
    references: Sequence[Specimen],
    targets: Sequence[Specimen],
    scale: float,
) -> list[Image.Image]:
    """The references' defects on the targets' normal images, in their masks."""
    phrases = ["spots" if s.defect == "spots" else "a stain" for s in references]
    to_pil: Callable[[np.ndarray], Image.Image] = Image.fromarray
    return pipeline(
        [
            target_text(target.category, phrase)
            for target, phrase in zip(targets, phrases, strict=True)
        ],
        [to_pil(s.image) for s in references],
        [to_pil(s.mask) for s in references],
        phrases,
        [to_pil(s.normal) for s in targets],
        [to_pil(s.mask) for s in targets],
        num_inference_steps=10,
        guidance_scale=4.0,
        semantic_scale=scale,
        generator=[torch.Generator().manual_seed(number) for number in range(len(targets))],
    ).images


def nearest_paint(image: Image.Image, target: Specimen) -> str:
    """The paint closest to the median colour in the mask."""
    colour = np.median(np.asarray(image)[target.mask], axis=0)
    return min(PAINTS, key=lambda name: float(np.abs(colour - PAINTS[name]).sum()))
