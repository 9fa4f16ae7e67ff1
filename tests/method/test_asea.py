import math
from typing import Any

import pytest
import torch
import torch._dynamo.testing
from torch import Tensor

from acontrol.config import AseaConfig
from acontrol.method.anomaly_map import energy
from acontrol.method.asea import AseaFunction, guide

# Small attention whose gradient can be written by hand: patch p is token p + 1, and
# a_p = exp(<v_{p+1}, w_p>). Token 0 stands for the class token, which no patch reads.
BATCH, PATCHES, DIM = 3, 5, 4


def directions() -> Tensor:
    return torch.randn(PATCHES, DIM, generator=torch.Generator().manual_seed(3)).double()


def attend(visual: Tensor) -> Tensor:
    weights = directions().to(visual.dtype)
    return torch.einsum("bpd,pd->bp", visual[:, 1:], weights).exp()


class Toy:
    """A ``GuidedAttention``: the above for solver all, one softmax layer for solver first."""

    def __init__(self, count: int = BATCH) -> None:
        generator = torch.Generator().manual_seed(5)
        self.key_query = torch.randn(BATCH, 6, DIM, generator=generator).double()[:count]
        self.query_weight = torch.rand(BATCH, 6, generator=generator).double()[:count]

    def forward(self, embedding: Tensor) -> tuple[Tensor, Tensor]:
        seen = attend(embedding)
        return seen, seen

    def backward(self, trace: Tensor, grad: Tensor) -> Tensor:
        rows = (grad * trace)[:, :, None] * directions().to(grad.dtype)
        return torch.nn.functional.pad(rows, (0, 0, 1, 0))

    def first(self, embedding: Tensor) -> Tensor:
        probs = (self.key_query @ embedding.mT).softmax(dim=-1)
        return torch.einsum("br,brp->bp", self.query_weight, probs)[:, 1:]


def steps_of(
    visual: Tensor, region: Tensor, toy: Any = None, **settings: Any
) -> tuple[Tensor, Tensor]:
    return guide(toy or Toy(len(visual)), visual, region, AseaConfig(**settings))


RULES = [
    {"rule": "gd"},
    {"rule": "token"},
    {"rule": "normalized"},
    {"rule": "adam"},
    {"rule": "gd", "solver": "first"},
    {"rule": "token", "solver": "first"},
    {"rule": "normalized", "solver": "first"},
]
NAMES = [" ".join(rule.values()) for rule in RULES]


@pytest.fixture
def visual() -> Tensor:
    return torch.randn(
        BATCH, PATCHES + 1, DIM, generator=torch.Generator().manual_seed(4)
    ).double()


@pytest.fixture
def region() -> Tensor:
    return torch.tensor([[1, 0, 0, 0, 0], [0, 1, 0.25, 0, 0], [1, 0, 0.5, 1, 0]]).double()


def written_out_gradient(visual: Tensor, region: Tensor) -> tuple[Tensor, list[float]]:
    """dE/dv of the attention above with E = (1 - I / S)^2, entry by entry."""
    weights = directions()
    gradient, energies = torch.zeros_like(visual), []
    for sample in range(len(visual)):
        a = [
            math.exp(sum(float(visual[sample, p + 1, d] * weights[p, d]) for d in range(DIM)))
            for p in range(PATCHES)
        ]
        total = sum(a)
        inside = sum(a[p] * float(region[sample, p]) for p in range(PATCHES))
        energies.append((1 - inside / total) ** 2)
        for p in range(PATCHES):
            ratio_by_a = (float(region[sample, p]) * total - inside) / total**2
            for d in range(DIM):
                gradient[sample, p + 1, d] = (
                    2 * (1 - inside / total) * -ratio_by_a * a[p] * weights[p, d]
                )
    return gradient, energies


@pytest.mark.parametrize("steps", [1, 2, 5])
def test_guide_gd_is_eq_4(visual: Tensor, region: Tensor, steps: int) -> None:
    alpha = 0.7
    offset = torch.zeros_like(visual)
    expected_energies = []
    for _ in range(steps):
        gradient, energies = written_out_gradient(visual + offset, region)
        expected_energies.append(energies)
        offset = offset - alpha * gradient
    result, found_energies = steps_of(visual, region, steps=steps, step_size=alpha, rule="gd")
    torch.testing.assert_close(result, visual + offset, rtol=0, atol=1e-12)
    torch.testing.assert_close(
        found_energies,
        torch.tensor(expected_energies, dtype=torch.float64).T,
        rtol=0,
        atol=1e-12,
    )
    assert found_energies.shape == (BATCH, steps)


def test_normalized_steps_go_down_the_gradient_by_alpha_of_the_embeddings_norm(
    visual: Tensor, region: Tensor
) -> None:
    alpha, steps = 0.03, 4
    before = visual
    for count in range(1, steps + 1):
        after, _ = steps_of(visual, region, steps=count, step_size=alpha, rule="normalized")
        moved = after - before
        gradient, _ = written_out_gradient(before, region)
        for sample in range(BATCH):
            # The length stays a share of |e_v|, not of |e_v + e_g|.
            length = alpha * visual[sample].norm()
            assert moved[sample].norm().item() == pytest.approx(length.item(), abs=1e-12)
            direction = -gradient[sample] / gradient[sample].norm()
            torch.testing.assert_close(moved[sample], length * direction, rtol=0, atol=1e-12)
        before = after


def test_the_token_that_moves_most_moves_by_alpha_of_its_own_length(
    visual: Tensor, region: Tensor
) -> None:
    after, _ = steps_of(visual, region, steps=1, step_size=0.1, rule="token")
    moved = after - visual
    share = moved.norm(dim=2) / visual.norm(dim=2)
    torch.testing.assert_close(share.amax(dim=1), torch.full((BATCH,), 0.1).double())
    gradient, _ = written_out_gradient(visual, region)
    cosine = torch.cosine_similarity(moved.flatten(1), -gradient.flatten(1))
    torch.testing.assert_close(cosine, torch.ones(BATCH).double())


class Finer(Toy):
    """Five more patches, far from the mask, at which nothing looks."""

    def forward(self, embedding: Tensor) -> tuple[Tensor, Tensor]:
        seen = attend(embedding[:, : PATCHES + 1])
        return torch.nn.functional.pad(seen, (0, 5)), seen

    def backward(self, trace: Tensor, grad: Tensor) -> Tensor:
        rows = super().backward(trace, grad[:, :PATCHES])
        return torch.nn.functional.pad(rows, (0, 0, 0, 5))


@pytest.mark.parametrize("solver", ["all", "first"])
def test_a_token_steps_as_far_on_a_finer_grid(
    visual: Tensor, region: Tensor, solver: str
) -> None:
    coarse, fine = Toy(), Finer()
    coarse.key_query = fine.key_query = fine.key_query.abs() + 1
    more = torch.cat([visual, torch.full((BATCH, 5, DIM), -50.0).double()], dim=1)
    wider = torch.nn.functional.pad(region, (0, 5))
    moved = {}
    for rule in ("token", "normalized"):
        settings = {"rule": rule, "steps": 1, "step_size": 0.1, "solver": solver}
        before, _ = steps_of(visual, region, coarse, **settings)
        after, _ = steps_of(more, wider, fine, **settings)
        moved[rule] = (after[:, : PATCHES + 1] - before).norm(dim=(1, 2))
    assert moved["token"].max() < 1e-12
    # The rule that takes its length from all tokens goes further.
    assert moved["normalized"].min() > 1


def test_lengths_differ_between_samples(visual: Tensor, region: Tensor) -> None:
    scaled = visual * torch.tensor([1.0, 2.0, 0.5])[:, None, None]
    after, _ = steps_of(scaled, region, steps=1, step_size=0.1, rule="normalized")
    result = (after - scaled).flatten(1).norm(dim=1)
    torch.testing.assert_close(result, 0.1 * scaled.flatten(1).norm(dim=1))


@pytest.mark.parametrize("rule", ["gd", "token", "normalized"])
@pytest.mark.parametrize("bound", [None, 0.15])
def test_first_in_closed_form_is_autograd_on_the_embedding(
    visual: Tensor, region: Tensor, rule: str, bound: float | None
) -> None:
    settings = {"rule": rule, "step_size": 0.6 if rule == "gd" else 0.1, "bound": bound}
    toy, offset, energies = Toy(), torch.zeros_like(visual), []
    length = visual.norm(dim=2, keepdim=True)
    whole = length.norm(dim=1, keepdim=True)
    for _ in range(3):
        offset = offset.detach().requires_grad_(True)
        value = energy(toy.first(visual + offset), region)
        energies.append(value.detach())
        (grad,) = torch.autograd.grad(value.sum(), offset)
        if rule == "normalized":
            grad = grad * whole / grad.flatten(1).norm(dim=1)[:, None, None]
        if rule == "token":
            grad = grad / (grad.norm(dim=2, keepdim=True) / length).amax(dim=1, keepdim=True)
        offset = offset.detach() - settings["step_size"] * grad
        if bound is not None:
            norm = offset.norm(dim=2, keepdim=True)
            offset = torch.where(norm > bound * length, offset * bound * length / norm, offset)
    result, found_energies = steps_of(visual, region, steps=3, solver="first", **settings)
    torch.testing.assert_close(result, visual + offset, rtol=0, atol=1e-12)
    torch.testing.assert_close(found_energies, torch.stack(energies, dim=1), rtol=0, atol=1e-12)


def test_adam_is_pytorchs(visual: Tensor, region: Tensor) -> None:
    offset = torch.zeros_like(visual)
    optimizer = torch.optim.Adam([offset], lr=0.1)
    for _ in range(4):
        offset.grad, _ = written_out_gradient(visual + offset, region)
        optimizer.step()
    result, _ = steps_of(visual, region, steps=4, step_size=0.1, rule="adam")
    torch.testing.assert_close(result, visual + offset, rtol=0, atol=1e-12)


@pytest.mark.parametrize("settings", RULES, ids=NAMES)
def test_a_sample_does_not_feel_the_batch_around_it(
    visual: Tensor, region: Tensor, settings: dict
) -> None:
    whole, _ = steps_of(visual, region, steps=3, step_size=0.2, **settings)
    for one in range(BATCH):
        toy, rows = Toy(), slice(one, one + 1)
        toy.key_query, toy.query_weight = toy.key_query[rows], toy.query_weight[rows]
        alone, _ = steps_of(visual[rows], region[rows], toy, steps=3, step_size=0.2, **settings)
        torch.testing.assert_close(whole[one], alone[0], rtol=0, atol=1e-12)


@pytest.mark.parametrize("settings", RULES, ids=NAMES)
def test_no_steps_are_the_identity(visual: Tensor, region: Tensor, settings: dict) -> None:
    result, energies = steps_of(visual, region, steps=0, **settings)
    assert torch.equal(result, visual)
    assert energies.shape == (BATCH, 0)


@pytest.mark.parametrize("settings", RULES, ids=NAMES)
def test_without_a_gradient_the_offset_stays(
    visual: Tensor, region: Tensor, settings: dict
) -> None:
    region[1] = 0  # E is 1 there whatever the attention, and its gradient zero.
    result, energies = steps_of(visual, region, steps=3, step_size=0.5, **settings)
    assert torch.equal(result[1], visual[1])
    assert torch.equal(energies[1], torch.ones(3).double())
    assert not torch.equal(result[0], visual[0])


@pytest.mark.parametrize("settings", RULES, ids=NAMES)
@pytest.mark.parametrize("steps", [0, 2])
def test_the_gradient_goes_straight_through(
    visual: Tensor, region: Tensor, settings: dict, steps: int
) -> None:
    visual.requires_grad_(True)
    result, energies = steps_of(visual, region, steps=steps, step_size=0.5, **settings)
    assert not energies.requires_grad
    given = torch.randn(visual.shape, generator=torch.Generator().manual_seed(9)).double()
    result.backward(given)
    assert visual.grad is not None
    assert torch.equal(visual.grad, given)


@pytest.mark.parametrize("settings", RULES, ids=NAMES)
def test_nothing_needs_autograd(visual: Tensor, region: Tensor, settings: dict) -> None:
    on, _ = steps_of(visual, region, steps=2, step_size=0.5, **settings)
    with torch.no_grad():
        off, _ = steps_of(visual, region, steps=2, step_size=0.5, **settings)
    with torch.inference_mode():
        inside, _ = steps_of(visual * 1, region, steps=2, step_size=0.5, **settings)
    assert torch.equal(on, off)
    assert torch.equal(on, inside)


@pytest.mark.parametrize("settings", RULES, ids=NAMES)
def test_energy_falls(visual: Tensor, region: Tensor, settings: dict) -> None:
    _, energies = steps_of(visual, region, steps=6, step_size=0.02, **settings)
    assert (energies[:, 1:] < energies[:, :-1]).all()


@pytest.mark.parametrize("settings", RULES, ids=NAMES)
def test_a_sample_stops_below_its_energy(
    visual: Tensor, region: Tensor, settings: dict
) -> None:
    free, energies = steps_of(visual, region, steps=6, step_size=0.1, **settings)
    stop = energies[:, -1].max().item() - 1e-9  # One sample stays above.
    result, held = steps_of(
        visual, region, steps=6, step_size=0.1, stop_energy=stop, **settings
    )
    counts = [(row >= stop).sum().item() for row in energies]
    assert sorted(counts)[1] < 6
    assert max(counts) == 6
    for sample, count in enumerate(counts):
        # As many steps as it took to get there, and no more; the others go on.
        few, _ = steps_of(visual, region, steps=count, step_size=0.1, **settings)
        torch.testing.assert_close(result[sample], few[sample], rtol=0, atol=1e-12)
        last = min(count, 5)
        assert (held[sample, last:] == held[sample, last]).all()
        assert torch.equal(result[sample], free[sample]) == (count == 6)


@pytest.mark.parametrize("settings", RULES, ids=NAMES)
def test_the_bound_holds_the_offset(visual: Tensor, region: Tensor, settings: dict) -> None:
    bound, length = 0.2, visual.norm(dim=2)
    free, _ = steps_of(visual, region, steps=5, step_size=0.9, **settings)
    far = (free - visual).norm(dim=2) / length
    held, _ = steps_of(visual, region, steps=5, step_size=0.9, bound=bound, **settings)
    result = (held - visual).norm(dim=2) / length
    assert far.max() > bound
    assert result.max() <= bound + 1e-12
    loose, _ = steps_of(visual, region, steps=5, step_size=0.9, bound=99, **settings)
    assert torch.equal(loose, free)


@pytest.mark.parametrize("settings", RULES, ids=NAMES)
def test_half_precision_steps_in_single(visual: Tensor, region: Tensor, settings: dict) -> None:
    half, toy = visual.bfloat16(), Toy()
    exact, energies = steps_of(half.double(), region, steps=3, step_size=0.05, **settings)
    toy.key_query, toy.query_weight = toy.key_query.float(), toy.query_weight.float()
    found, found_energies = steps_of(
        half, region.float(), toy, steps=3, step_size=0.05, **settings
    )
    assert found.dtype == torch.bfloat16
    assert found_energies.dtype == torch.float32
    # Only the result is rounded, to 8 bits.
    torch.testing.assert_close(found.double(), exact, rtol=2**-8, atol=1e-6)
    torch.testing.assert_close(found_energies.double(), energies, rtol=0, atol=1e-5)


def test_steps_do_not_recompile_their_surroundings(visual: Tensor, region: Tensor) -> None:
    counter = torch._dynamo.testing.CompileCounter()
    settings, toy = AseaConfig(steps=3), Toy()

    def around(embedding: Tensor) -> Tensor:
        return guide(toy, embedding * 2, region, settings)[0].sin()

    compiled = torch.compile(around, backend=counter)
    first = compiled(visual)
    frames = counter.frame_count
    assert torch.equal(first, around(visual))
    assert frames == 2  # Before the steps, and after them.
    for turn in range(3):
        compiled(visual + turn)
    assert counter.frame_count == frames


def test_the_steps_are_one_node(visual: Tensor, region: Tensor) -> None:
    visual.requires_grad_(True)
    result, _ = steps_of(visual, region, steps=3)
    node = result.grad_fn
    assert node is not None
    assert node.name() == f"{AseaFunction.__name__}Backward"
    assert [type(before).__name__ for before, _ in node.next_functions if before] == [
        "AccumulateGrad"
    ]
