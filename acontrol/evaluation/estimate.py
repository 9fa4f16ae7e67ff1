"""How long a training would take here, from a few of its steps; scoring comes on top."""

import time
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from acontrol.evaluation.budget import Budget, Schedule
from acontrol.evaluation.classifier import Classifier
from acontrol.evaluation.detector import DetectorUNet, focal_loss
from acontrol.evaluation.trainer import channels_last

_REPEATS = 3  # The first one sets things up.
_IMAGES = 2  # Of a batch that is timed: full ones are heavy at the paper's size.


def seconds_a_detector(budget: Budget, test_images: int, looks: int) -> float:
    """Time one step and one look of a detector, and count.

    Args:
        budget: Of the training.
        test_images: How many are looked at.
        looks: How often.
    """
    detector = channels_last(DetectorUNet(budget.width).to(_device()))
    return _seconds(
        budget,
        detector,
        lambda images: focal_loss(detector(images), images[:, 0] > 0.9),
        looks * test_images,
    )


def seconds_a_classifier(schedule: Schedule, classifier: Classifier, test_images: int) -> float:
    """Time one step and one look of a classifier, and count.

    Args:
        schedule: Of the training.
        classifier: Which, with two defects or more.
        test_images: How many are looked at, once.
    """
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
    looked_at: int,
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
    torch.set_num_threads(1)  # As many as a task on Ray has.
    try:
        step, look = (min(seconds(train) for _ in range(_REPEATS)) for train in (True, False))
    finally:
        torch.set_num_threads(threads)
    return (schedule.steps * schedule.batch_size * step + looked_at * look) / _IMAGES
