"""The feature networks of launch.evaluate quality, by name."""

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from acontrol.config import BaseConfig, Precision
from acontrol.evaluation import caveats, lite0
from acontrol.evaluation.features import Backend, Images
from acontrol.evaluation.inception import Inception
from acontrol.evaluation.perceptual import LpipsVgg
from acontrol.evaluation.settings import FeatureName
from acontrol.method.csm import embed_patches
from acontrol.networks import locate
from acontrol.networks.load import load_base
from acontrol.pipelines.loading import load_pipeline
from acontrol.runs.storage import sha256


def load_backend(
    name: FeatureName, weights: Path, model: str | None, precision: Precision = "float32"
) -> Backend:
    """Load a network, onto the GPU if available.

    "vlm" is the vision tower of a model's base, by default the built-in one; "lite0" has its
    weights from a pip package, the others from the folder ``weights``. ``precision`` is that
    of "vlm".

    Raises:
        UserError: If the weights are missing or wrong.
    """
    device = "cuda" if torch.cuda.is_available() else "cpu"
    torch.backends.cudnn.allow_tf32 = False  # It costs published networks three digits.
    if name == "vlm":
        if model is None:
            config = BaseConfig()
            vlm = load_base(config, device, getattr(torch, precision)).vlm
        else:
            pipeline = load_pipeline(model, None, device, precision)
            config, vlm = pipeline.card.base, pipeline.vlm
        digest = locate.digest(config)
        if precision != "float32":  # Its values are others.
            digest = hashlib.sha256(f"{digest} {precision}".encode()).hexdigest()
        return vision_tower(vlm, digest, caveats.of_vision_tower(config))
    if name == "lite0":
        lite0.require("--features lite0")
        network = lite0.Lite0(device)
        digest = lite0.record()["sha256"]
        return Backend(
            name, digest, network.unit_stages, network.embed, caveats=caveats.of_lite0()
        )
    file = weights / f"{name}.safetensors"
    if name == "inception":
        inception = Inception.load(file).to(device)
        return Backend(name, sha256(file), embed=inception.embed, logits=inception.logits)
    vgg = LpipsVgg.load(file).to(device)
    return Backend(name, sha256(file), layers=vgg)


def vision_tower(vlm: Any, digest: str, about: Sequence[str] = ()) -> Backend:
    """BLIP-2's vision tower: normalized patches as feature maps, their mean as the vector.

    ``about`` are its caveats.
    """
    side = vlm.config.vision_config.image_size

    def patches(images: Images) -> Tensor:
        pixels = images.float() / 127.5 - 1
        if pixels.shape[-1] != side:
            pixels = F.interpolate(pixels, (side, side), mode="bilinear", antialias=True)
        return embed_patches(vlm, pixels.clamp(-1, 1)).float()[:, 1:]

    @torch.no_grad()
    def layers(images: Images) -> list[Tensor]:
        return [F.normalize(patches(images), dim=2).mT[..., None]]

    @torch.no_grad()
    def embed(images: Images) -> Tensor:
        mean = F.normalize(patches(images).mean(dim=1), dim=1)
        return mean * mean.shape[1] ** 0.5  # KID's kernel divides by the width.

    return Backend("vlm", digest, layers=layers, embed=embed, caveats=about)
