"""A patch critic: it tells real grain from decoded, so that the decoder learns to draw grain.

Isola et al., "Image-to-Image Translation with Conditional Adversarial Networks", with the hinge
loss of VQGAN (Esser et al., "Taming Transformers").
"""

import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call


class Critic(nn.Module):
    """Scores overlapping patches of 16 px, larger for real ones."""

    def __init__(self, width: int = 32):
        """Build with fresh weights."""
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(3, width, 4, stride=2, padding=1),
            nn.LeakyReLU(0.2),
            nn.Conv2d(width, 2 * width, 4, stride=2, padding=1),
            nn.LeakyReLU(0.2),
            nn.Conv2d(2 * width, 1, 3, padding=1),
        )

    def forward(self, image: Tensor) -> Tensor:
        """Scores (B, 1, R / 4, R / 4) of (B, 3, R, R) images."""
        scores: Tensor = self.layers(image)
        return scores

    def terms(self, image: Tensor, decoded: Tensor) -> tuple[Tensor, Tensor]:
        """The decoder's loss and the critic's own, each with gradients for one of them alone.

        So both train in one step of one optimizer.
        """
        fixed = {name: value.detach() for name, value in self.named_parameters()}
        fooling = -functional_call(self, fixed, (decoded,)).mean()
        judging = F.relu(1 - self(image)).mean() + F.relu(1 + self(decoded.detach())).mean()
        return fooling, judging
