"""What a feature network is to the metrics: callables with a name and a digest."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from jaxtyping import Float, UInt8
from safetensors.torch import load_file
from torch import Tensor, nn

from acontrol.errors import UserError

Images = UInt8[Tensor, "n 3 side side"]
BATCH = 16
_COUNTER = "num_batches_tracked"  # Of batch normalization; says nothing to inference.


@dataclass(frozen=True)
class Backend:
    """A network that looks at images in [0, 255]. What it cannot do is None.

    Attributes:
        name: Of the network.
        digest: Of its weights.
        layers: Maps (n, C, h, w) such that the squared distance of two images' maps, mean over
            places and added up over maps, is a perceptual distance.
        embed: One vector an image, (n, d).
        logits: Of classes, (n, classes), given `embed`'s vectors.
    """

    name: str
    digest: str
    layers: Callable[[Images], Sequence[Tensor]] | None = None
    embed: Callable[[Images], Tensor] | None = None
    logits: Callable[[Tensor], Tensor] | None = None

    @property
    def label(self) -> str:
        """Name and digest, for a table."""
        return f"{self.name} {self.digest[:8]}"


def read_weights(network: nn.Module, file: Path, name: str, what: str) -> None:
    """Fill a network from safetensors.

    Args:
        network: Whose parameters' names the file has; batch counters may be missing.
        file: The weights.
        name: Of the backend.
        what: What the weights are, for messages.

    Raises:
        UserError: If there are none, or others.
    """
    if not file.is_file():
        raise UserError(
            f"{file}: does not exist; --features {name} needs the weights of {what} there, "
            f"made once by examples/convert_{name.split('-')[0]}.py (docs/evaluation.md)"
        )
    try:
        found = load_file(file)
        counters = {
            key: one for key, one in network.state_dict().items() if key.endswith(_COUNTER)
        }
        network.load_state_dict(counters | found)
    except Exception as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"{file}: not the weights of {what} ({reason})") from error


def in_batches(look: Callable[[Images], Tensor], images: Images) -> Float[Tensor, "n width"]:
    """Vectors of many images, in double precision, on the CPU."""
    return torch.cat([look(part).double().cpu() for part in images.split(BATCH)])


@torch.no_grad()
def distances(
    look: Callable[[Images], Sequence[Tensor]],
    one: Images,
    other: UInt8[Tensor, "m 3 side side"],
) -> Float[Tensor, "n m"]:
    """Perceptual distances of every image to every other, as `Backend.layers` defines them."""
    known = [look(part) for part in other.split(BATCH)]
    rows = []
    for part in one.split(BATCH):
        own = look(part)
        rows.append(torch.cat([_between(own, maps) for maps in known], dim=1))
    return torch.cat(rows)


def _between(one: Sequence[Tensor], other: Sequence[Tensor]) -> Tensor:
    # Neither by a matrix product nor by cdist: both lose digits over millions of entries.
    total = torch.zeros(len(one[0]), len(other[0]), dtype=torch.float64)
    for a, b in zip(one, other, strict=True):
        for row, single in enumerate(a):
            gaps = (b - single).square().flatten(1).sum(dim=1)
            total[row] += gaps.double().cpu() / single[0].numel()
    return total
