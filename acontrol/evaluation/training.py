"""Training a detector on normal images and one source of defects."""

from collections.abc import Iterator

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.utils import convert_conv2d_weight_memory_format

from acontrol.config import derive_seed
from acontrol.evaluation.budget import Budget
from acontrol.evaluation.detector import DetectorUNet, focal_loss
from acontrol.evaluation.pictures import Pictures
from acontrol.evaluation.sources import Sample, Source

_BATCH = 32  # Of inference, whose results do not depend on it.
_FALLS = (0.8, 0.9)  # Shares of the training after which the rate falls.
_FALL = 0.2


def train(
    budget: Budget, normals: Pictures, source: Source | None, seed: int, device: str
) -> Iterator[tuple[DetectorUNet, float]]:
    """Train a detector; half of each batch is normal, half from the source.

    Args:
        budget: Size, width, length.
        normals: Normal images for training.
        source: Of images with a defect; without one, all are normal.
        seed: Weights and samples follow from it.
        device: Torch's name of where.

    Yields:
        After each epoch the detector, in evaluation mode, and the epoch's mean loss.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive_seed("detector", seed))
        detector = channels_last(DetectorUNet(budget.width).to(device))
    optimizer = torch.optim.Adam(detector.parameters(), budget.learning_rate)
    marks = [int(share * budget.steps) for share in _FALLS]
    schedule = torch.optim.lr_scheduler.MultiStepLR(optimizer, marks, _FALL)
    for epoch in range(budget.epochs):
        detector.train()
        total = 0.0
        for step in range(epoch * budget.epoch_steps, (epoch + 1) * budget.epoch_steps):
            samples = [
                _sample(normals, source if place % 2 else None, (seed, step, place))
                for place in range(budget.batch_size)
            ]
            images = torch.stack([image for image, _ in samples]).to(
                device, memory_format=torch.channels_last
            )
            masks = torch.stack([mask for _, mask in samples]).to(device)
            loss = focal_loss(detector(images.float() / 255), masks)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            total += float(loss.detach())
        yield detector.eval(), total / budget.epoch_steps


def channels_last(detector: DetectorUNet) -> DetectorUNet:
    """The layout that convolutions are fastest in, on CPUs and GPUs."""
    convert_conv2d_weight_memory_format(detector, torch.channels_last)
    return detector


@torch.no_grad()
def anomaly_maps(detector: DetectorUNet, pictures: Pictures) -> Float[Tensor, "n side side"]:
    """The probability of a defect at each pixel."""
    device = next(detector.parameters()).device
    parts = [
        detector(part.to(device).float() / 255).softmax(dim=1)[:, 1].cpu()
        for part in pictures.images.split(_BATCH)
    ]
    return torch.cat(parts)


def _sample(normals: Pictures, source: Source | None, key: tuple[int, int, int]) -> Sample:
    """One training image, a function of its key alone."""
    rng = np.random.default_rng(derive_seed("sample", *key))
    if source is not None:
        return source.sample(rng)
    place = int(rng.integers(len(normals)))
    return normals.images[place], normals.masks[place]
