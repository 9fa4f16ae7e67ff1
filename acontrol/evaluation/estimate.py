"""Estimated duration of a training here, from a timed step and forward pass."""

import time
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from acontrol.evaluation.budget import (
    BankBudget,
    Budget,
    DetectorBudget,
    DetectorName,
    Schedule,
)
from acontrol.evaluation.classifier import Classifier
from acontrol.evaluation.lite0 import Lite0
from acontrol.evaluation.trainer import channels_last, loss_of, untrained

_REPEATS = 3  # The first one warms up.
_COMPARING = 2  # A head's step or a bank's search takes about as long as the features.
_IMAGES = 2  # In the timed batch: full batches are heavy at the paper's size.


def seconds_a_detector(
    name: DetectorName, budget: Budget, test_images: int, rounds: int
) -> float:
    """Seconds to train a detector of the image alone and score test images ``rounds`` times."""
    detector = untrained(name, budget.width, _device())
    loss = loss_of(name, detector)

    def step(images: Tensor) -> Tensor:
        seen = torch.cat([images, 1 - images], dim=1) if name == "draem" else images
        return loss(seen, images[:, 0] > 0.9)

    return _seconds(budget, detector, step, rounds * test_images)


def seconds_on_features(budget: DetectorBudget, test_images: int) -> float:
    """Seconds at most of a detector on frozen features, whose cache saves some of them."""
    features = Lite0(_device())
    image = torch.randint(0, 256, (3, budget.size, budget.size), dtype=torch.uint8)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        each = min(_timed(features.forward, image) for _ in range(_REPEATS))
    finally:
        torch.set_num_threads(threads)
    if isinstance(budget, BankBudget):
        return _COMPARING * each * (budget.images + test_images)
    return _COMPARING * each * (budget.steps * budget.batch_size + test_images)


def _timed(network: Callable[[Tensor], Any], image: Tensor) -> float:
    started = time.perf_counter()
    network(image)
    return time.perf_counter() - started


def seconds_a_classifier(schedule: Schedule, classifier: Classifier, test_images: int) -> float:
    """Seconds to train a classifier and score the test images once."""
    classifier = channels_last(classifier.to(_device()))
    labels = torch.zeros(_IMAGES, dtype=torch.long, device=_device())
    return _seconds(
        schedule,
        classifier,
        lambda images: F.cross_entropy(classifier(images), labels),
        test_images,
    )


def _device() -> str:
    return "cuda" if torch.cuda.is_available() else "cpu"


def _seconds(
    schedule: Schedule,
    network: Callable[[Tensor], Tensor],
    loss_of: Callable[[Tensor], Tensor],
    scored_images: int,
) -> float:
    images = torch.rand(_IMAGES, 3, schedule.size, schedule.size, device=_device())
    images = images.contiguous(memory_format=torch.channels_last)

    def seconds(train: bool) -> float:
        started = time.perf_counter()
        with torch.set_grad_enabled(train):
            if train:
                loss_of(images).backward()
            else:
                network(images)
        if images.is_cuda:
            torch.cuda.synchronize()
        return time.perf_counter() - started

    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # As a task on Ray has.
    try:
        step, score = (min(seconds(train) for _ in range(_REPEATS)) for train in (True, False))
    finally:
        torch.set_num_threads(threads)
    return (schedule.steps * schedule.batch_size * step + scored_images * score) / _IMAGES
