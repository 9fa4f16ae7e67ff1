"""The written-out Q-Former against transformers' own under autograd, in float64."""

import itertools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import Blip2Config, Blip2ForImageTextRetrieval

from acontrol.config import AseaConfig
from acontrol.method import anomaly_map, asea
from acontrol.method.anomaly_map import ReferenceText
from acontrol.method.qformer import QFormerPass
from acontrol.pretrain.networks import vlm_config
from acontrol.pretrain.settings import Sizes
from benchmarks import naive_asea

BATCH, PATCHES = 3, 64
EXACT = 1e-10
MAPS = list(itertools.product([True, False], ["rollout", "query_mean"], ["all", "first"]))
RULES = {"gd": 500.0, "token": 0.1, "normalized": 0.05, "adam": 0.1}


def model_of(num_layers: int = 6, frequency: int = 2) -> Blip2ForImageTextRetrieval:
    """A tiny BLIP-2 whose attention is far from uniform, as a trained one's is."""
    config: Blip2Config = vlm_config(Sizes(), vocab_size=50)
    config.qformer_config.num_hidden_layers = num_layers
    config.qformer_config.cross_attention_frequency = frequency
    config.vision_config.num_hidden_layers = 1
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(6)
        vlm = Blip2ForImageTextRetrieval(config)
        for name, parameter in vlm.named_parameters():
            # Also biases and norms, which start at 0 and 1 and would hide a wrong one.
            scale = 0.3 if "query.weight" in name else 0.1
            torch.nn.init.normal_(parameter, std=scale)
            if "LayerNorm.weight" in name or "layernorm.weight" in name:
                parameter.data += 1
        torch.nn.init.normal_(vlm.query_tokens, std=0.5)
    return vlm.double().eval().requires_grad_(False)


@pytest.fixture(scope="module")
def vlm() -> Blip2ForImageTextRetrieval:
    return model_of()


@pytest.fixture
def words() -> ReferenceText:
    ids = torch.randint(5, 50, (BATCH, 7), generator=torch.Generator().manual_seed(1))
    lengths = torch.tensor([7, 5, 6])[:, None]
    place = torch.arange(7)
    span = (place >= torch.tensor([3, 2, 4])[:, None]) & (place < lengths - 1)
    return ReferenceText(ids, (place < lengths).long(), span)


@pytest.fixture
def visual() -> Tensor:
    generator = torch.Generator().manual_seed(2)
    return torch.randn(BATCH, PATCHES + 1, 96, generator=generator).double()


@pytest.fixture
def region() -> Tensor:
    region = torch.zeros(BATCH, PATCHES).double()
    for row in range(BATCH):
        region[row, 5 * row : 20 + 9 * row] = 1
        region[row, 20 + 9 * row : 25 + 9 * row] = 0.3
    return region


def both(
    vlm: Any,
    words: ReferenceText | None,
    method: str,
    solver: str,
    values: Tensor | None = None,
) -> tuple[QFormerPass, Callable[[Tensor], tuple[Tensor, Tensor]]]:
    ours = QFormerPass(vlm, BATCH, words, method=method, first=solver == "first", values=values)
    return ours, lambda embedding: naive_asea.attend(
        vlm, embedding, words, method=method, solver=solver, values=values
    )


def difference(result: Tensor, expected: Tensor) -> float:
    assert result.dtype == expected.dtype == torch.float64
    assert result.shape == expected.shape
    return (result - expected).abs().max().item()


@pytest.mark.parametrize(("text", "method", "solver"), MAPS)
@pytest.mark.parametrize("target", ["both", "keys"])
@pytest.mark.parametrize("rule", RULES)
def test_steps_and_energies_are_autograds(
    vlm: Any,
    words: ReferenceText,
    visual: Tensor,
    region: Tensor,
    text: bool,
    method: str,
    solver: str,
    rule: str,
    target: str,
) -> None:
    if (solver, rule) == ("first", "adam"):
        return  # Refused by the config.
    settings = AseaConfig(
        steps=3, step_size=RULES[rule], rule=rule, solver=solver, map=method, bound=0.12
    )
    read = words if text else None
    values = visual if target == "keys" else None
    ours, theirs = both(vlm, read, method, solver, values)
    expected, energies = naive_asea.guide(lambda e: theirs(e)[1], visual, region, settings)
    assert (energies[:, 0] - energies[:, 2]).min() > 1e-3
    with torch.inference_mode():
        result, found_energies = asea.guide(ours, visual, region, settings)
        tokens, attention = ours.finish(result)
    with torch.no_grad():
        expected_tokens, expected_attention = theirs(expected)
    assert difference(found_energies, energies) < EXACT
    assert difference(result, expected) < EXACT
    assert difference(tokens, expected_tokens) < EXACT
    assert difference(attention, expected_attention) < EXACT


@pytest.mark.parametrize(("text", "method"), [case[:2] for case in MAPS if case[2] == "all"])
@pytest.mark.parametrize("target", ["both", "keys"])
@pytest.mark.parametrize(("layers", "frequency"), [(6, 2), (5, 2), (4, 1), (5, 3), (2, 2)])
def test_the_energys_gradient_is_autograds(
    words: ReferenceText,
    visual: Tensor,
    region: Tensor,
    text: bool,
    method: str,
    layers: int,
    frequency: int,
    target: str,
) -> None:
    vlm = model_of(layers, frequency)
    values = visual if target == "keys" else None
    ours, theirs = both(vlm, words if text else None, method, "all", values)
    embedding = visual.clone().requires_grad_(True)
    value = anomaly_map.energy(theirs(embedding)[1], region)
    (expected,) = torch.autograd.grad(value.sum(), embedding)
    seen, trace = ours.forward(visual)
    result = ours.backward(trace, anomaly_map.energy_grad(seen, region))
    assert expected.abs().max() > 1e-5
    assert difference(result, expected) < EXACT * expected.abs().max().item()


def test_rollout_without_a_layer_to_read_is_refused(words: ReferenceText) -> None:
    with pytest.raises(ValueError, match="another layer follows"):
        both(model_of(1), words, "rollout", "all")
    ours, _ = both(model_of(1), words, "rollout", "first")
    assert ours.last == 0


def test_another_activation_is_refused(words: ReferenceText) -> None:
    vlm = model_of(2)
    vlm.config.qformer_config.hidden_act = "relu"
    with pytest.raises(ValueError, match="'relu', not 'gelu'"):
        both(vlm, words, "rollout", "all")


@pytest.mark.parametrize("solver", ["all", "first"])
def test_autocast_changes_nothing(
    vlm: Any, words: ReferenceText, visual: Tensor, region: Tensor, solver: str
) -> None:
    settings = AseaConfig(steps=2, solver=solver)

    def run() -> tuple[Tensor, Tensor]:
        ours, _ = both(vlm, words, "rollout", solver)
        return ours.finish(asea.guide(ours, visual, region, settings)[0])

    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = run()
    for one, other in zip(inside, run(), strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("solver", ["all", "first"])
@pytest.mark.parametrize("method", ["rollout", "query_mean"])
def test_bfloat16_weights_go_the_same_way(
    words: ReferenceText, visual: Tensor, region: Tensor, solver: str, method: str
) -> None:
    settings, result = AseaConfig(steps=2, solver=solver, map=method), []
    for dtype in (torch.bfloat16, torch.float64):
        # The same rounded weights and embedding, so that only the arithmetic differs.
        ours, _ = both(model_of().bfloat16().to(dtype), words, method, solver)
        start = visual.bfloat16().to(dtype)
        guided, energies = asea.guide(ours, start, region, settings)
        tokens, _ = ours.finish(guided)
        assert tokens.dtype == guided.dtype == dtype
        assert energies.dtype == (torch.float32 if dtype == torch.bfloat16 else dtype)
        result.append((guided.double() - start.double(), energies.double(), tokens.double()))
    (offset, energies, tokens), (offset64, energies64, tokens64) = result
    # 8 bits of mantissa, six layers, two steps; E is in [0, 1].
    torch.testing.assert_close(energies, energies64, rtol=0, atol=0.01)
    assert torch.cosine_similarity(tokens.flatten(1), tokens64.flatten(1)).min() > 0.999
    assert torch.cosine_similarity(offset.flatten(1), offset64.flatten(1)).min() > 0.95


def test_a_pass_keeps_nothing_between_steps(
    vlm: Any, words: ReferenceText, visual: Tensor, region: Tensor
) -> None:
    ours, _ = both(vlm, words, "rollout", "all")
    before = {name: id(value) for name, value in vars(ours).items()}
    asea.guide(ours, visual, region, AseaConfig(steps=2))
    assert {name: id(value) for name, value in vars(ours).items()} == before
    assert all(parameter.grad is None for parameter in vlm.parameters())
