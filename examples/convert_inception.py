"""Convert the published Inception-v3 to inception.safetensors, for launch.evaluate quality.

    python examples/convert_inception.py weights-inception-2015-12-05-6726825d.pth \
        inception.safetensors

The file is torch-fidelity's (its release v0.2.0) or pytorch-fid's of the same date: the
Inception-v3 of TensorFlow that the Inception Score, FID and KID are computed with.
"""

import sys

import torch
from safetensors.torch import save_file


def main(network: str, out: str) -> None:
    """Keep everything but the batch counters."""
    weights = torch.load(network, map_location="cpu", weights_only=True)
    kept = {name: value for name, value in weights.items() if "num_batches" not in name}
    save_file({name: value.float().contiguous() for name, value in kept.items()}, out)
    print(f"Weights: {out}")


if __name__ == "__main__":
    main(*sys.argv[1:])
