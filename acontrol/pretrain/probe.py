"""A small classifier, trained on real images alone, that says what a drawing shows.

It takes no part in the base: it is there for the metrics.
"""

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

from acontrol.pretrain.pool import DefectType, Pool
from acontrol.runs.stage import StageContext, run_stage

BATCH = 64


class Probe(nn.Module):
    """Reads the product and the anomaly's phrase off an image."""

    def __init__(self, vocabulary: tuple[DefectType, ...]):
        """Build for a vocabulary, with fresh weights."""
        super().__init__()
        self.categories = sorted({kind.category for kind in vocabulary})
        self.phrases = sorted({kind.phrase for kind in vocabulary})
        self.defect_of = {kind.phrase: kind.defect for kind in vocabulary}
        layers: list[nn.Module] = []
        for before, after in ((3, 32), (32, 64), (64, 128)):
            layers += [nn.Conv2d(before, after, 3, stride=2, padding=1)]
            layers += [nn.GroupNorm(8, after), nn.SiLU()]
        self.features = nn.Sequential(*layers)
        self.category = nn.Linear(256, len(self.categories))
        self.phrase = nn.Linear(256, len(self.phrases))

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """Logits (category, phrase) of (B, 3, R, R) images in [-1, 1]."""
        features = self.features(image)
        # A small defect must not drown in the mean, nor a texture in the maximum.
        pooled = torch.cat([features.mean(dim=(2, 3)), features.amax(dim=(2, 3))], dim=1)
        return self.category(pooled), self.phrase(pooled)

    @torch.no_grad()
    def read(self, image: Tensor) -> list[tuple[str, str]]:
        """The (category, phrase) of each image."""
        device = self.category.weight.device
        found: list[tuple[str, str]] = []
        for part in image.split(128):
            category, phrase = (one.argmax(dim=1).tolist() for one in self(part.to(device)))
            found += [
                (self.categories[a], self.phrases[b])
                for a, b in zip(category, phrase, strict=True)
            ]
        return found

    def score(self, image: Tensor, kinds: list[DefectType]) -> dict[str, float]:
        """Shares of images judged right in category, defect type and phrase."""
        read = self.read(image)
        pairs = list(zip(read, kinds, strict=True))
        return {
            "category": float(np.mean([said[0] == kind.category for said, kind in pairs])),
            "defect": float(
                np.mean([self.defect_of[said[1]] == kind.defect for said, kind in pairs])
            ),
            "phrase": float(np.mean([said[1] == kind.phrase for said, kind in pairs])),
        }


def train_probe(pool: Pool, steps: int, context: StageContext) -> Probe:
    """Train on a pool's images."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(context.seed + 1)
        probe = Probe(pool.vocabulary).to(context.device)
    category = torch.tensor([probe.categories.index(one.category) for one in pool.vocabulary])
    phrase = torch.tensor([probe.phrases.index(one.phrase) for one in pool.vocabulary])

    def loss(step: int) -> dict[str, Tensor]:
        chosen = context.chosen("judge", step, BATCH, len(pool))
        kinds = pool.kinds[chosen]
        logits = probe(pool.pixels(chosen).to(context.device))
        return {
            "loss": F.cross_entropy(logits[0], category[kinds].to(context.device))
            + F.cross_entropy(logits[1], phrase[kinds].to(context.device))
        }

    run_stage("judge", probe, loss, context, steps=steps, learning_rate=2e-3)
    return probe.eval().requires_grad_(False)


def as_tensor(images: list[Image.Image]) -> Tensor:
    """PIL images of one size as (B, 3, R, R) in [-1, 1]."""
    levels = torch.from_numpy(np.stack([np.asarray(one.convert("RGB")) for one in images]))
    return levels.permute(0, 3, 1, 2).float() / 127.5 - 1
