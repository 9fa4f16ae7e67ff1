"""Training and inference of the detectors and classifiers."""

import functools
from collections.abc import Callable, Iterator, Mapping
from typing import TypeVar

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.utils import convert_conv2d_weight_memory_format

from acontrol.evaluation.bank import memory_bank
from acontrol.evaluation.budget import (
    ON_FEATURES,
    BankBudget,
    Budget,
    DetectorBudget,
    DetectorName,
    Schedule,
)
from acontrol.evaluation.detector import DetectorUNet, focal_loss
from acontrol.evaluation.draem import DraemDetector, draem_loss
from acontrol.evaluation.head import balanced_loss, head_detector
from acontrol.evaluation.images import ImageSet
from acontrol.evaluation.sources import Images, Sample, Source, augmented, pair_of
from acontrol.seeding import derive_seed

_BATCH = 32  # Of inference, without effect on its results.
_MILESTONES = (0.8, 0.9)  # Shares of the training after which the learning rate drops.
_GAMMA = 0.2
_STANDARDISED_BY = 64  # Normal images that give the features' means and deviations.

Network = TypeVar("Network", bound=nn.Module)


def fit(
    network: Network,
    schedule: Schedule,
    draw: Callable[[int, np.random.Generator], tuple[Tensor, Tensor]],
    loss_of: Callable[[Tensor, Tensor], Tensor],
    seed: int,
) -> Iterator[tuple[Network, float]]:
    """Train with Adam on samples that have a random generator each.

    ``draw`` takes the position in the batch and a generator, and returns an image (3, S, S) in
    [0, 255] and its target; ``loss_of`` takes images in [0, 1] and their targets.

    Yields:
        After each epoch the network in evaluation mode, and the epoch's mean loss.
    """
    device = next(network.parameters()).device
    optimizer = torch.optim.Adam(network.parameters(), schedule.learning_rate)
    milestones = [int(share * schedule.steps) for share in _MILESTONES]
    scheduler = torch.optim.lr_scheduler.MultiStepLR(optimizer, milestones, _GAMMA)
    for epoch in range(schedule.epochs):
        network.train()
        total = 0.0
        for step in range(epoch * schedule.epoch_steps, (epoch + 1) * schedule.epoch_steps):
            samples = [
                draw(index, np.random.default_rng(derive_seed("sample", seed, step, index)))
                for index in range(schedule.batch_size)
            ]
            images = torch.stack([image for image, _ in samples]).to(
                device, memory_format=torch.channels_last
            )
            targets = torch.stack([target for _, target in samples]).to(device)
            loss = loss_of(images.float() / 255, targets)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            scheduler.step()
            total += float(loss.detach())
        yield network.eval(), total / schedule.epoch_steps


def channels_last(network: Network) -> Network:
    """Convert to the memory format in which convolutions are fastest, on CPU and GPU."""
    convert_conv2d_weight_memory_format(network, torch.channels_last)
    return network


def train_detector(
    budget: DetectorBudget,
    normals: Images,
    source: Source | None,
    seed: int,
    device: str,
    name: DetectorName = "unet",
    clean: Images | None = None,
) -> Iterator[tuple[nn.Module, float]]:
    """Train a detector as `fit` does, on batches half normal and half from the source.

    Half of the normal ones are ``clean``, if given, whatever their masks. A memory bank takes
    normal images alone; its loss is the unit of its distances.
    """
    if isinstance(budget, BankBudget):
        number = min(len(normals), budget.images)
        drawn = _normals(normals, number, "bank", seed, augment=budget.augment)
        bank = memory_bank(drawn, number, budget.patches, seed, device)
        yield bank.eval(), float(bank.unit)
        return
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive_seed("detector", seed))
        detector = untrained_detector(name, budget, normals, seed, device)
    draw = drawn_from(normals, source, clean, augment=budget.augment, originals=name == "draem")
    yield from fit(detector, budget, draw, loss_of(name, detector), seed)


def loss_of(
    name: DetectorName, detector: nn.Module
) -> Callable[[Tensor, Tensor], Float[Tensor, ""]]:
    """What a detector is trained by: the loss of images in [0, 1] and their masks."""
    if isinstance(detector, DraemDetector):
        return functools.partial(draem_loss, detector)
    objective = balanced_loss if name == "head" else focal_loss
    return lambda images, masks: objective(detector(images), masks)


def drawn_from(
    normals: Images,
    source: Source | None,
    clean: Images | None,
    *,
    augment: bool,
    originals: bool = False,
) -> Callable[[int, np.random.Generator], Sample]:
    """What `fit` draws for a detector: normal images and the source's in turn.

    With ``originals`` an image has six channels, the last three as it was before its defect.
    """

    def draw(index: int, rng: np.random.Generator) -> Sample:
        if source is not None and index % 2:
            image, mask, original = pair_of(source, rng)
        else:
            if clean is not None and rng.random() < 0.5:
                image, mask = clean.sample(rng)
                mask = torch.zeros_like(mask)
            else:
                image, mask = normals.sample(rng)
            original = image
        sample = (torch.cat([image, original]) if originals else image), mask
        return augmented(sample, rng) if augment else sample

    return draw


def untrained_detector(
    name: DetectorName, budget: Budget, normals: Images, seed: int, device: str
) -> nn.Module:
    """A detector before its training."""
    if name not in ON_FEATURES:
        return untrained(name, budget.width, device)
    number = min(len(normals), _STANDARDISED_BY)
    seen = [*_normals(normals, number, "standardised", seed, augment=budget.augment)]
    return head_detector(budget.width, torch.stack(seen), device)


def untrained(name: DetectorName, width: int, device: str) -> nn.Module:
    """A detector of the image alone, with random weights."""
    made = DraemDetector(width) if name == "draem" else DetectorUNet(width)
    return channels_last(made.to(device))


def restored(
    name: DetectorName, budget: Budget, weights: Mapping[str, Tensor], device: str
) -> nn.Module:
    """A trained detector from its ``state_dict``; not a memory bank."""
    if name in ON_FEATURES:
        blank = torch.zeros(2, 3, 32, 32, dtype=torch.uint8)
        detector: nn.Module = head_detector(budget.width, blank, device)
    else:
        detector = untrained(name, budget.width, device)
    detector.load_state_dict(dict(weights))
    return detector.eval()


def _normals(
    normals: Images, number: int, use: str, seed: int, *, augment: bool
) -> Iterator[Tensor]:
    """So many different normal images, or a part of each."""
    order = np.random.default_rng(derive_seed(use, seed)).permutation(len(normals))
    for index in order[:number].tolist():
        rng = np.random.default_rng(derive_seed(use, seed, index))
        sample = normals.at(index, rng)
        yield (augmented(sample, rng) if augment else sample)[0]


@torch.no_grad()
def predict(network: nn.Module, images: ImageSet, output: Callable[[Tensor], Tensor]) -> Tensor:
    """Outputs for all images, computed from the logits of a batch."""
    device = next(network.parameters()).device
    batches = images.images.split(_BATCH)
    return torch.cat([output(network(part.to(device).float() / 255)).cpu() for part in batches])


def anomaly_maps(detector: nn.Module, images: ImageSet) -> Float[Tensor, "n side side"]:
    """The probability of a defect at each pixel."""
    return predict(detector, images, lambda logits: logits.softmax(dim=1)[:, 1])
