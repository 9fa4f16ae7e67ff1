import torch

from acontrol.pretrain.critic import Critic
from acontrol.pretrain.vae import cropped, gradient_energies


def test_gradient_energies_against_known_reconstructions() -> None:
    image = torch.rand(2, 3, 9, 7, generator=torch.Generator().manual_seed(0))
    mask = torch.zeros(2, 1, 9, 7, dtype=torch.bool)
    mask[:, :, 2:6, 1:5] = True
    real, drawn, wrong = gradient_energies(image, image, mask)
    assert drawn == real > 0 and wrong == 0
    flat = gradient_energies(image, torch.full_like(image, 0.5), mask)
    torch.testing.assert_close(flat, torch.stack([real, torch.tensor(0.0), real]))
    half = gradient_energies(image, 0.5 * image + 0.2, mask)
    torch.testing.assert_close(half, torch.stack([real, real / 4, real / 4]))
    torn = image.clone()
    torn[:, :, 7:] = 0
    assert torch.equal(gradient_energies(image, torn, mask)[1:], torch.stack([real, wrong]))
    assert float(real) < float(gradient_energies(image, image, torch.ones_like(mask))[0])


def test_crops_are_of_the_images_own_pixels_with_their_masks() -> None:
    count, side = 200, 8
    grid = torch.arange(32 * 32).reshape(1, 1, 32, 32).float()
    masks = torch.zeros(count, 1, 32, 32, dtype=torch.bool)
    masks[:100, :, 30:, :2] = True  # A corner that few crops meet by chance.
    images, own = cropped(
        grid.expand(count, 3, 32, 32), masks, side, torch.Generator().manual_seed(0)
    )
    assert images.shape == (count, 3, side, side) and own.shape == (count, 1, side, side)
    for index in range(count):
        y, x = divmod(int(images[index, 0, 0, 0]), 32)
        window = (slice(y, y + side), slice(x, x + side))
        assert torch.equal(images[index], grid[0, :, *window].expand(3, side, side))
        assert torch.equal(own[index], masks[index, :, *window])
    holding = own.flatten(1).any(dim=1)
    assert 30 < int(holding[:100].sum()) < 70, "half of the defective ones"
    assert not holding[100:].any()


def test_decoder_and_critic_each_have_their_own_gradients() -> None:
    generator = torch.Generator().manual_seed(0)
    critic = Critic(width=8)
    image = torch.randn(2, 3, 16, 16, generator=generator)
    decoded = torch.randn(2, 3, 16, 16, generator=generator, requires_grad=True)
    fooling, judging = critic.terms(image, decoded)
    fooling.backward(retain_graph=True)
    assert decoded.grad is not None and bool(decoded.grad.any())
    assert all(value.grad is None for value in critic.parameters())
    decoded.grad = None
    judging.backward()
    assert decoded.grad is None
    assert all(value.grad is not None for value in critic.parameters())


def test_a_critic_learns_grain_from_blur() -> None:
    generator = torch.Generator().manual_seed(0)
    torch.manual_seed(0)
    critic = Critic(width=8)
    optimizer = torch.optim.AdamW(critic.parameters(), lr=5e-3)

    def pair() -> tuple[torch.Tensor, torch.Tensor]:
        grain = torch.randn(8, 3, 16, 16, generator=generator)
        return grain, torch.nn.functional.avg_pool2d(grain, 3, stride=1, padding=1)

    for _ in range(60):
        _, judging = critic.terms(*pair())
        optimizer.zero_grad()
        judging.backward()
        optimizer.step()
    with torch.no_grad():
        real, drawn = (float(critic(image).mean()) for image in pair())
    assert real > 0.5 > -0.5 > drawn
