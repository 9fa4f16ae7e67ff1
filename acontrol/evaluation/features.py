"""Feature networks of the generation metrics: their interface, weights and distances."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from jaxtyping import Float, UInt8
from safetensors.torch import load_file
from torch import Tensor, nn

from acontrol.errors import UserError, one_line

Images = UInt8[Tensor, "n 3 side side"]
BATCH = 16
_COUNTER = "num_batches_tracked"  # Of batch normalization; not used in inference.


@dataclass(frozen=True)
class Backend:
    """A feature network for images in [0, 255]. Outputs that it lacks are None.

    Attributes:
        name: Name of the network.
        digest: Digest of its weights.
        layers: Feature maps (n, C, h, w). The squared distance of two images' maps, averaged
            over positions and summed over maps, is a perceptual distance.
        embed: Vectors of images, (n, d).
        logits: Class logits of `embed`'s vectors, (n, classes).
        caveats: What its figures cannot show.
    """

    name: str
    digest: str
    layers: Callable[[Images], Sequence[Tensor]] | None = None
    embed: Callable[[Images], Tensor] | None = None
    logits: Callable[[Tensor], Tensor] | None = None
    caveats: Sequence[str] = ()

    @property
    def label(self) -> str:
        """Name and digest, for tables."""
        return f"{self.name} {self.digest[:8]}"


def read_weights(network: nn.Module, file: Path, name: str, source: str) -> None:
    """Load a backend's weights from safetensors; batch counters may be missing.

    Raises:
        UserError: If the file is missing or holds other weights.
    """
    if not file.is_file():
        raise UserError(
            f"{file}: does not exist; --features {name} needs the weights of {source} there, "
            f"made once by examples/convert_{name.split('-')[0]}.py (docs/evaluation.md)"
        )
    try:
        counters = {
            key: value for key, value in network.state_dict().items() if key.endswith(_COUNTER)
        }
        network.load_state_dict(counters | load_file(file))
    except Exception as error:
        reason = one_line(error, 200)
        raise UserError(f"{file}: not the weights of {source} ({reason})") from error


def in_batches(embed: Callable[[Images], Tensor], images: Images) -> Float[Tensor, "n width"]:
    """Vectors of many images, in double precision, on the CPU."""
    return torch.cat([embed(batch).double().cpu() for batch in images.split(BATCH)])


@torch.no_grad()
def distances(
    layers: Callable[[Images], Sequence[Tensor]],
    images: Images,
    others: UInt8[Tensor, "m 3 side side"],
) -> Float[Tensor, "n m"]:
    """Perceptual distances between two sets of images, as `Backend.layers` defines them."""
    columns = [layers(batch) for batch in others.split(BATCH)]
    rows = []
    for batch in images.split(BATCH):
        maps = layers(batch)
        rows.append(torch.cat([_map_distances(maps, column) for column in columns], dim=1))
    return torch.cat(rows)


def _map_distances(maps: Sequence[Tensor], others: Sequence[Tensor]) -> Tensor:
    # Neither by a matrix product nor by cdist: both lose digits over millions of entries.
    total = torch.zeros(len(maps[0]), len(others[0]), dtype=torch.float64)
    for layer, other in zip(maps, others, strict=True):
        for row, image in enumerate(layer):
            squares = (other - image).square().flatten(1).sum(dim=1)
            total[row] += squares.double().cpu() / image[0].numel()
    return total
