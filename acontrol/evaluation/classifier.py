"""A classifier of defects: a ResNet of transformers, by default ResNet-34."""

import hashlib
import json
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor, nn
from transformers import ResNetConfig, ResNetForImageClassification
from transformers.image_utils import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from transformers.utils import logging

from acontrol.errors import UserError

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
            self.resnet = _read(network, count)
            mean, std = _normalization(network) or (mean, std)
        self.register_buffer("mean", torch.tensor(mean)[:, None, None])
        self.register_buffer("std", torch.tensor(std)[:, None, None])

    def forward(self, images: Float[Tensor, "n 3 side side"]) -> Float[Tensor, "n defects"]:
        """Look."""
        mean, std = self.get_buffer("mean"), self.get_buffer("std")
        return self.resnet((images - mean) / std).logits

    @property
    def architecture(self) -> str:
        """Its name, for a table."""
        config = self.resnet.config
        depths = "-".join(str(one) for one in config.depths)
        known = config.layer_type == "basic" and config.depths == _DEPTHS
        return "ResNet-34" if known else f"ResNet of {depths} {config.layer_type} blocks"


def weights_digest(network: Path) -> str:
    """Of the files that a classifier begins with."""
    whole = hashlib.sha256()
    for file in sorted(one for one in network.iterdir() if one.suffix in _READ):
        whole.update(file.name.encode() + hashlib.sha256(file.read_bytes()).digest())
    return whole.hexdigest()


def _read(network: Path, count: int) -> ResNetForImageClassification:
    """All but the last layer from a folder, which has to hold all of that and nothing else."""
    where = f"--network {network}"
    if not (network / "config.json").is_file():
        raise UserError(
            f"{where}: has no config.json; give a folder as transformers' save_pretrained "
            "writes it"
        )
    said, shown = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity(logging.CRITICAL)  # Of the last layer, which is new, it would say so.
    logging.disable_progress_bar()
    try:
        kind = json.loads((network / "config.json").read_text()).get("model_type")
        if kind != "resnet":
            raise ValueError(f"its config.json says model_type {kind!r}")
        resnet, report = ResNetForImageClassification.from_pretrained(
            network,
            num_labels=count,
            ignore_mismatched_sizes=True,
            use_safetensors=True,
            local_files_only=True,
            output_loading_info=True,
        )
    except Exception as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"{where}: not a ResNet as transformers saves it ({reason})") from error
    finally:
        logging.set_verbosity(said)
        if shown:
            logging.enable_progress_bar()
    wrong = [
        f"{name} is {how}"
        for how, key in (("missing", "missing_keys"), ("unknown", "unexpected_keys"))
        for name in sorted(report[key])
    ] + [f"{one[0]} has another shape" for one in report["mismatched_keys"]]
    wrong = [one for one in wrong if not one.startswith("classifier.")]
    if wrong:
        raise UserError(
            f"{where}: its weights are not those of its config.json ({wrong[0]}, "
            f"{len(wrong)} in all)"
        )
    return resnet


def _normalization(network: Path) -> tuple[list[float], list[float]] | None:
    """Mean and deviation of a folder's preprocessor, if it has one."""
    file = network / "preprocessor_config.json"
    if not file.is_file():
        return None
    try:
        found = json.loads(file.read_text())
        return found["image_mean"], found["image_std"]
    except (ValueError, KeyError) as error:
        raise UserError(f"{file}: has no image_mean and image_std ({error})") from error
