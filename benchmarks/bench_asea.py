"""How much does ASEA cost? Each solver and T_g against the naive loop, at the real shapes.

The naive loop runs BLIP-2's whole Q-Former under autograd in every step. Its shape is the
published one (12 layers of 768, cross-attention in every other, 32 queries, 257 x 1408 visual
tokens) with random weights; e_v is precomputed, since the vision tower runs once either way.
Timed is C' from e_v: the steps and the final pass.

    python -m benchmarks.bench_asea [--batch 2] [--rounds 5] [--device cpu]

Writes benchmarks/results/DATE_asea_HARDWARE.json and .md.
"""

import argparse
import copy
import statistics
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from transformers import Blip2ForImageTextRetrieval

from acontrol.config import AseaConfig
from acontrol.method import asea
from acontrol.method.anomaly_map import ReferenceText
from acontrol.method.qformer import QFormerPass
from acontrol.networks.shapes import blip2_itm_config
from benchmarks import naive_asea
from benchmarks.report import interleaved, write_report

NUM_TOKENS, GOALS = 12, {"first": 0.35, "first, own part": 0.05, "all": 0.90}


def random_vlm(device: str, dtype: torch.dtype) -> Blip2ForImageTextRetrieval:
    """The Q-Former of the published checkpoints; of the vision tower only a stub."""
    config = blip2_itm_config()
    config.vision_config.num_hidden_layers = 1
    torch.manual_seed(0)
    vlm = Blip2ForImageTextRetrieval(config).eval().requires_grad_(False)
    torch.nn.init.normal_(vlm.query_tokens, std=0.5)
    return vlm.to(device, dtype)


def main() -> None:
    """Time the naive loop and both solvers in turn, for each T_g."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--batch", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--steps", type=int, nargs="+", default=[1, 3, 5])
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    device, dtype = arguments.device, getattr(torch, arguments.dtype)
    vlm = random_vlm(device, dtype)
    genuine = copy.deepcopy(vlm)  # Eager attention, which the naive loop sets, stays there.
    ids = torch.randint(1000, 30000, (arguments.batch, NUM_TOKENS), device=device)
    span = torch.zeros_like(ids, dtype=torch.bool)
    span[:, 7:10] = True
    text = ReferenceText(ids, torch.ones_like(ids), span)
    visual = torch.randn(arguments.batch, 257, 1408, device=device, dtype=dtype)
    region = torch.zeros(arguments.batch, 256, dtype=torch.bool, device=device)
    region[:, 60:100] = True

    @torch.no_grad()
    def naive(settings: AseaConfig) -> Tensor:
        def attention(embedding: Tensor) -> Tensor:
            return naive_asea.attend(genuine, embedding, text, method=settings.map)[1]

        embedding, _ = naive_asea.guide(attention, visual, region, settings)
        return naive_asea.attend(genuine, embedding, text)[0]

    @torch.no_grad()
    def ours(settings: AseaConfig, *, finish: bool = True) -> Tensor:
        first = settings.solver == "first"
        attention = QFormerPass(vlm, len(visual), text, method=settings.map, first=first)
        embedding, _ = asea.guide(attention, visual, region, settings)
        return attention.finish(embedding)[0] if finish else embedding

    rows: list[dict[str, Any]] = []
    for steps in arguments.steps:
        # The other map at one T_g: it costs a layer less.
        for method in ("rollout", "query_mean") if steps == 3 else ("rollout",):
            full = AseaConfig(steps=steps, map=method)
            quick = full.model_copy(update={"solver": "first"})
            drift = (ours(full) - naive(full)).abs().max().item()
            cases: dict[str, Callable[[], object]] = {
                "naive": lambda full=full: naive(full),
                "all": lambda full=full: ours(full),
                "first": lambda quick=quick: ours(quick),
                "first, own part": lambda quick=quick: ours(quick, finish=False),
            }
            times = interleaved(cases, arguments.rounds, device)
            median_s = {name: statistics.median(seconds) for name, seconds in times.items()}
            for name, value in median_s.items():
                rows.append(
                    {
                        "T_g": steps,
                        "map": method,
                        "what": name,
                        "median_ms": round(1000 * value, 1),
                        "ratio": round(value / median_s["naive"], 3),
                        "goal": GOALS.get(name, "") if steps == 3 else "",
                    }
                )
            print(f"T_g {steps} {method}: all and naive differ by {drift:.1e} in C'")
    write_report("asea", rows, vars(arguments), __doc__.splitlines()[0])


if __name__ == "__main__":
    main()
