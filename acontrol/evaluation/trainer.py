"""Training a network on samples that are made one by one."""

from collections.abc import Callable, Iterator
from typing import TypeVar

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.utils import convert_conv2d_weight_memory_format

from acontrol.evaluation.budget import Budget, Schedule
from acontrol.evaluation.detector import DetectorUNet, focal_loss
from acontrol.evaluation.images import ImageSet
from acontrol.evaluation.sources import Sample, Source
from acontrol.seeding import derive_seed

_BATCH = 32  # Of inference, whose results do not depend on it.
_FALLS = (0.8, 0.9)  # Shares of the training after which the rate falls.
_FALL = 0.2

Network = TypeVar("Network", bound=nn.Module)


def fit(
    network: Network,
    schedule: Schedule,
    draw: Callable[[int, np.random.Generator], tuple[Tensor, Tensor]],
    loss_of: Callable[[Tensor, Tensor], Tensor],
    seed: int,
) -> Iterator[tuple[Network, float]]:
    """Train with Adam.

    Args:
        network: Which, on its device.
        schedule: Batches, length and rate.
        draw: Makes an image of (3, S, S) in [0, 255] and its target, given its place in the
            batch and what decides which.
        loss_of: Loss of a batch of images in [0, 1] and its targets.
        seed: Samples follow from it, each from its own key alone.

    Yields:
        After each epoch the network, in evaluation mode, and the epoch's mean loss.
    """
    device = next(network.parameters()).device
    optimizer = torch.optim.Adam(network.parameters(), schedule.learning_rate)
    marks = [int(share * schedule.steps) for share in _FALLS]
    falling = torch.optim.lr_scheduler.MultiStepLR(optimizer, marks, _FALL)
    for epoch in range(schedule.epochs):
        network.train()
        total = 0.0
        for step in range(epoch * schedule.epoch_steps, (epoch + 1) * schedule.epoch_steps):
            samples = [
                draw(place, np.random.default_rng(derive_seed("sample", seed, step, place)))
                for place in range(schedule.batch_size)
            ]
            images = torch.stack([image for image, _ in samples]).to(
                device, memory_format=torch.channels_last
            )
            targets = torch.stack([target for _, target in samples]).to(device)
            loss = loss_of(images.float() / 255, targets)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            falling.step()
            total += float(loss.detach())
        yield network.eval(), total / schedule.epoch_steps


def channels_last(network: Network) -> Network:
    """The layout that convolutions are fastest in, on CPUs and GPUs."""
    convert_conv2d_weight_memory_format(network, torch.channels_last)
    return network


def train_detector(
    budget: Budget, normals: ImageSet, source: Source | None, seed: int, device: str
) -> Iterator[tuple[DetectorUNet, float]]:
    """Train a detector; half of each batch is normal, half from the source.

    Args:
        budget: Size, width, length.
        normals: Normal images for training.
        source: Of images with a defect; without one, all are normal.
        seed: Weights and samples follow from it.
        device: Torch's name of where.

    Yields:
        As `fit`.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive_seed("detector", seed))
        detector = channels_last(DetectorUNet(budget.width).to(device))

    def draw(place: int, rng: np.random.Generator) -> Sample:
        if source is not None and place % 2:
            return source.sample(rng)
        normal = int(rng.integers(len(normals)))
        return normals.images[normal], normals.masks[normal]

    return fit(
        detector,
        budget,
        draw,
        lambda images, masks: focal_loss(detector(images), masks),
        seed,
    )


@torch.no_grad()
def anomaly_maps(detector: DetectorUNet, pictures: ImageSet) -> Float[Tensor, "n side side"]:
    """The probability of a defect at each pixel."""
    device = next(detector.parameters()).device
    parts = [
        detector(part.to(device).float() / 255).softmax(dim=1)[:, 1].cpu()
        for part in pictures.images.split(_BATCH)
    ]
    return torch.cat(parts)
