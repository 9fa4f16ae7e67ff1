"""A small classifier, trained on real images alone, that recognizes what an image shows.

It is not part of the base: the card's metrics of generated images come from it.
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
    """Classifies product and anomaly phrase."""

    def __init__(self, vocabulary: tuple[DefectType, ...]):
        """Build with fresh weights."""
        super().__init__()
        self.categories = sorted({entry.category for entry in vocabulary})
        self.phrases = sorted({entry.phrase for entry in vocabulary})
        self.defect_of = {entry.phrase: entry.defect for entry in vocabulary}
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
        predictions: list[tuple[str, str]] = []
        for part in image.split(128):
            labels = (logits.argmax(dim=1).tolist() for logits in self(part.to(device)))
            predictions += [
                (self.categories[category], self.phrases[phrase])
                for category, phrase in zip(*labels, strict=True)
            ]
        return predictions

    def score(self, image: Tensor, defect_types: list[DefectType]) -> dict[str, float]:
        """Accuracy of category, defect type and phrase."""
        right = [
            (
                category == truth.category,
                self.defect_of[phrase] == truth.defect,
                phrase == truth.phrase,
            )
            for (category, phrase), truth in zip(self.read(image), defect_types, strict=True)
        ]
        shares = np.mean(right, axis=0).tolist()
        return dict(zip(("category", "defect", "phrase"), shares, strict=True))


def train_probe(pool: Pool, steps: int, context: StageContext) -> Probe:
    """Train a probe on a pool's images."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(context.seed + 1)
        probe = Probe(pool.vocabulary).to(context.device)
    category = torch.tensor([probe.categories.index(row.category) for row in pool.vocabulary])
    phrase = torch.tensor([probe.phrases.index(row.phrase) for row in pool.vocabulary])

    def loss(step: int) -> dict[str, Tensor]:
        chosen = context.chosen("judge", step, BATCH, len(pool))
        labels = pool.labels[chosen]
        logits = probe(pool.pixels(chosen).to(context.device))
        return {
            "loss": F.cross_entropy(logits[0], category[labels].to(context.device))
            + F.cross_entropy(logits[1], phrase[labels].to(context.device))
        }

    run_stage("judge", probe, loss, context, steps=steps, learning_rate=2e-3)
    return probe.eval().requires_grad_(False)


def as_tensor(images: list[Image.Image]) -> Tensor:
    """PIL images of one size as (B, 3, R, R) in [-1, 1]."""
    levels = torch.from_numpy(np.stack([np.asarray(image.convert("RGB")) for image in images]))
    return levels.permute(0, 3, 1, 2).float() / 127.5 - 1
