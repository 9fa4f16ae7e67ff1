"""The defect classifier: a ResNet of transformers, by default ResNet-34."""

import hashlib
import json
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor, nn
from transformers import ResNetConfig, ResNetForImageClassification
from transformers.image_utils import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from transformers.utils import logging

from acontrol.errors import UserError, one_line

_WIDTHS, _DEPTHS = [64, 128, 256, 512], [3, 4, 6, 3]  # ResNet-34.
_READ = (".safetensors", ".json")


class Classifier(nn.Module):
    """Defect logits of images in [0, 1]."""

    def __init__(self, count: int, network: Path | None):
        """Build with random weights, or load all but the last layer.

        Args:
            count: Number of defects.
            network: Folder of a ResNet saved by transformers.

        Raises:
            UserError: If the folder holds no ResNet.
        """
        super().__init__()
        mean, std = IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
        if network is None:
            config = ResNetConfig(
                depths=_DEPTHS, hidden_sizes=_WIDTHS, layer_type="basic", num_labels=count
            )
            self.resnet = ResNetForImageClassification(config)
        else:
            self.resnet = _read(network, count)
            mean, std = _normalization(network) or (mean, std)
        self.register_buffer("mean", torch.tensor(mean)[:, None, None])
        self.register_buffer("std", torch.tensor(std)[:, None, None])

    def forward(self, images: Float[Tensor, "n 3 side side"]) -> Float[Tensor, "n defects"]:
        """Normalize and classify."""
        mean, std = self.get_buffer("mean"), self.get_buffer("std")
        return self.resnet((images - mean) / std).logits

    @property
    def architecture(self) -> str:
        """Name of the architecture, for tables."""
        config = self.resnet.config
        if config.layer_type == "basic" and config.depths == _DEPTHS:
            return "ResNet-34"
        return f"ResNet of {'-'.join(map(str, config.depths))} {config.layer_type} blocks"


def weights_digest(network: Path) -> str:
    """Digest of the files that a classifier is loaded from."""
    total = hashlib.sha256()
    for file in sorted(network.iterdir()):
        if file.suffix in _READ and file.name[0] != ".":
            total.update(file.name.encode() + hashlib.sha256(file.read_bytes()).digest())
    return total.hexdigest()


def _read(network: Path, count: int) -> ResNetForImageClassification:
    """Load all but the last layer from a folder, which must hold exactly these weights."""
    option = f"--network {network}"
    if not (network / "config.json").is_file():
        raise UserError(
            f"{option}: has no config.json; give a folder written by transformers' "
            "save_pretrained"
        )
    verbosity, progress_bar = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity(logging.CRITICAL)  # It would warn that the last layer is new.
    logging.disable_progress_bar()
    try:
        model_type = json.loads((network / "config.json").read_text()).get("model_type")
        if model_type != "resnet":
            raise ValueError(f"its config.json has model_type {model_type!r}")
        resnet, report = ResNetForImageClassification.from_pretrained(
            network,
            num_labels=count,
            ignore_mismatched_sizes=True,
            use_safetensors=True,
            local_files_only=True,
            output_loading_info=True,
        )
    except Exception as error:
        reason = one_line(error, 200)
        raise UserError(f"{option}: not a ResNet saved by transformers ({reason})") from error
    finally:
        logging.set_verbosity(verbosity)
        if progress_bar:
            logging.enable_progress_bar()
    wrong = [
        *(f"{name} is missing" for name in sorted(report["missing_keys"])),
        *(f"{name} is unknown" for name in sorted(report["unexpected_keys"])),
        *(f"{name} has another shape" for name, *_ in report["mismatched_keys"]),
    ]
    wrong = [problem for problem in wrong if not problem.startswith("classifier.")]
    if wrong:
        raise UserError(
            f"{option}: its weights are not those of its config.json ({wrong[0]}, "
            f"{len(wrong)} in all)"
        )
    return resnet


def _normalization(network: Path) -> tuple[list[float], list[float]] | None:
    """Mean and standard deviation of a folder's preprocessor, if it has one."""
    file = network / "preprocessor_config.json"
    if not file.is_file():
        return None
    try:
        config = json.loads(file.read_text())
        return config["image_mean"], config["image_std"]
    except (ValueError, KeyError) as error:
        raise UserError(f"{file}: has no image_mean and image_std ({error})") from error
