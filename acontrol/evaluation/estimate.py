"""How long a training would take here, from a few of its steps."""

import time

import torch

from acontrol.evaluation.budget import Budget
from acontrol.evaluation.detector import DetectorUNet, focal_loss
from acontrol.evaluation.training import channels_last

_IMAGES = 2  # Of a batch that is timed: full ones are heavy at the paper's size.


def seconds_a_training(budget: Budget, test_images: int, looks: int) -> float:
    """Time one step and one look, and count.

    Args:
        budget: Of the training.
        test_images: How many are looked at.
        looks: How often.
    """
    device = "cuda" if torch.cuda.is_available() else "cpu"
    detector = channels_last(DetectorUNet(budget.width).to(device))
    images = torch.rand(_IMAGES, 3, budget.size, budget.size, device=device)
    images = images.contiguous(memory_format=torch.channels_last)
    masks = images[:, 0] > 0.9

    def seconds(train: bool) -> float:
        started = time.perf_counter()
        with torch.set_grad_enabled(train):
            logits = detector(images)
            if train:
                focal_loss(logits, masks).backward()
        if device == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter() - started

    seconds(True)  # The first one sets things up.
    step = seconds(True) * budget.batch_size / _IMAGES
    look = seconds(False) * test_images / _IMAGES
    return budget.steps * step + looks * look
