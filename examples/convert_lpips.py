"""Convert the published weights of LPIPS to lpips-vgg.safetensors, for launch.evaluate quality.

    python examples/convert_lpips.py vgg16-397923af.pth vgg.pth lpips-vgg.safetensors

The first file is torchvision's VGG-16, the second LPIPS's heads for it (weights version 0.1),
which torchmetrics ships as torchmetrics/functional/image/lpips_models/vgg.pth.
"""

import sys

import torch
from safetensors.torch import save_file


def main(network: str, heads: str, out: str) -> None:
    """Keep the convolutions and the heads."""
    features = torch.load(network, map_location="cpu", weights_only=True)
    weights = {name: value for name, value in features.items() if name.startswith("features.")}
    weights |= torch.load(heads, map_location="cpu", weights_only=True)
    save_file({name: value.float().contiguous() for name, value in weights.items()}, out)
    print(f"Weights: {out}")


if __name__ == "__main__":
    main(*sys.argv[1:])
