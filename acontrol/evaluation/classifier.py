"""A classifier of defects: a ResNet of transformers, by default ResNet-34."""

import hashlib
import json
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor, nn
from transformers import ResNetConfig, ResNetForImageClassification
from transformers.image_utils import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD

from acontrol.config import UserError

_WIDTHS, _DEPTHS = [64, 128, 256, 512], [3, 4, 6, 3]  # ResNet-34.
_READ = (".safetensors", ".json")


class Classifier(nn.Module):
    """Logits of defects, for images in [0, 1]."""

    def __init__(self, count: int, network: Path | None):
        """Build it with random weights, or read all but the last layer.

        Args:
            count: Defects to tell apart.
            network: Folder of a ResNet as transformers saves it.

        Raises:
            UserError: If the folder holds none.
        """
        super().__init__()
        mean, std = IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
        if network is None:
            config = ResNetConfig(
                depths=_DEPTHS, hidden_sizes=_WIDTHS, layer_type="basic", num_labels=count
            )
            self.resnet = ResNetForImageClassification(config)
        else:
            try:
                self.resnet = ResNetForImageClassification.from_pretrained(
                    network,
                    num_labels=count,
                    ignore_mismatched_sizes=True,
                    use_safetensors=True,
                    local_files_only=True,
                )
                said = network / "preprocessor_config.json"
                if said.is_file():
                    found = json.loads(said.read_text())
                    mean, std = found["image_mean"], found["image_std"]
            except Exception as error:
                reason = " ".join(str(error).split())[:200]
                raise UserError(
                    f"--network {network}: not a ResNet as transformers saves it ({reason})"
                ) from error
        self.register_buffer("mean", torch.tensor(mean)[:, None, None])
        self.register_buffer("std", torch.tensor(std)[:, None, None])

    def forward(self, images: Float[Tensor, "n 3 side side"]) -> Float[Tensor, "n defects"]:
        """Look."""
        mean, std = self.get_buffer("mean"), self.get_buffer("std")
        return self.resnet((images - mean) / std).logits


def weights_digest(network: Path | None) -> str:
    """Of a folder's files that a classifier begins with, or "random" without one.

    Raises:
        UserError: If the folder holds no network.
    """
    if network is None:
        return "random"
    Classifier(2, network)
    whole = hashlib.sha256()
    for file in sorted(one for one in network.iterdir() if one.suffix in _READ):
        whole.update(file.name.encode() + hashlib.sha256(file.read_bytes()).digest())
    return whole.hexdigest()
