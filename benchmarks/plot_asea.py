"""What do ASEA's rules, maps and solvers do? Energy against T_g, and where the text attends.

Every defect image of the built-in data, and of each --data folder, is guided under every rule;
the energy is the solver's own. Where the text attends is the share of the rollout's attention
over all layers inside the true mask, before and after, for any rule and map of the steps.

    python -m benchmarks.plot_asea [--base PATH] [--data ROOT ...] [--steps 5]

Writes benchmarks/results/DATE_asea-rules_HARDWARE.json, .md and .png.
"""

import argparse
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import torch
from PIL import Image
from torch import Tensor

from acontrol.config import AseaConfig, BaseConfig, CsmConfig
from acontrol.data.builtin import write_dataset
from acontrol.data.images import fit, read_image, read_mask
from acontrol.data.mvtec import open_folder
from acontrol.method import anomaly_map, asea
from acontrol.method.csm import CrossModalEncoder
from acontrol.method.qformer import QFormerPass
from acontrol.networks.load import load_base
from benchmarks.report import write_report

matplotlib.use("Agg")
from matplotlib import pyplot as plt

BATCH = 32
RULES: list[dict[str, Any]] = [
    {"rule": "gd", "step_size": 1.0},
    {"rule": "gd", "step_size": 1000.0},
    {"rule": "normalized", "step_size": 0.05},
    {"rule": "normalized", "step_size": 0.1},
    {"rule": "normalized", "step_size": 0.05, "bound": 0.1},
    {"rule": "adam", "step_size": 0.1},
]
CASES = [
    AseaConfig(steps=1, solver=solver, map=method, **rule)
    for solver in ("all", "first")
    for method in ("rollout", "query_mean")
    for rule in RULES
    if (solver, rule["rule"]) != ("first", "adam")
]


def name_of(case: AseaConfig) -> str:
    """A rule in a few words."""
    bound = "" if case.bound is None else f", bound {case.bound:g}"
    return f"{case.rule} {case.step_size:g}{bound}"


def batches(root: Path, size: int) -> Iterator[tuple[Tensor, list[str], Tensor]]:
    """Images, phrases and masks of all defects under a folder, as CSM takes them."""
    samples = open_folder(root).labelled("all")
    for start in range(0, len(samples), BATCH):
        part = samples[start : start + BATCH]
        fitted = []
        for sample in part:
            image = Image.fromarray(read_image(sample.image))
            mask = Image.fromarray(read_mask(sample.mask, image.size).astype(np.uint8) * 255)
            fitted.append(fit(image, mask, size))
        yield (
            torch.stack([image for image, _ in fitted]),
            [sample.phrase for sample in part],
            torch.stack([mask for _, mask in fitted]),
        )


@torch.inference_mode()
def guided(
    encoder: CrossModalEncoder, root: Path, cases: list[AseaConfig], steps: int
) -> tuple[list[dict[str, Tensor]], int]:
    """For each case energies (image, step), shares before and after, and C' kept; cells."""
    collected: list[list[dict[str, Tensor]]] = [[] for _ in cases]
    fewest = 10**9
    for image, phrases, mask in batches(root, encoder.image_px):
        words = encoder.read(phrases)
        region = anomaly_map.region_on_grid(mask, encoder.grid)
        fewest = min(fewest, int(region.sum(dim=1).min()))
        visual = encoder.embed_image(image)

        rollout = QFormerPass(encoder.vlm, len(image), words, method="rollout", first=False)
        tokens, seen = rollout.finish(visual)
        for case, rows in zip(cases, collected, strict=True):
            first = case.solver == "first"
            attention = QFormerPass(
                encoder.vlm, len(image), words, method=case.map, first=first
            )
            # One step more, for the energy after the last; its e_g is not used.
            more = case.model_copy(update={"steps": steps + 1})
            _, energies = asea.guide(attention, visual, region, more)
            embedding, _ = asea.guide(
                attention, visual, region, case.model_copy(update={"steps": steps})
            )
            moved, after = rollout.finish(embedding)
            rows.append(
                {
                    "energies": energies,
                    "before": (seen * region).sum(1) / seen.sum(1),
                    "after": (after * region).sum(1) / after.sum(1),
                    "kept": torch.cosine_similarity(tokens.flatten(1), moved.flatten(1)),
                }
            )
    whole = [
        {key: torch.cat([row[key] for row in rows]).float() for key in rows[0]}
        for rows in collected
    ]
    return whole, fewest


def row_of(
    data: str, case: AseaConfig, values: dict[str, Tensor], steps: int
) -> dict[str, Any]:
    """A row of the table."""
    energies = values["energies"]
    fall = 1 - energies[:, -1] / energies[:, 0]
    # Above rounding: float32 has 7 digits.
    rose = (energies[:, 1:] > energies[:, :-1] + 1e-6).any(dim=1)
    means = [f"{value:.3f}" for value in energies.mean(dim=0).tolist()]
    return {
        "data": data,
        "images": len(energies),
        "solver": case.solver,
        "map": case.map,
        "rule": name_of(case),
        f"E at T_g 0 to {steps}": " ".join(means),
        "median relative fall": f"{fall.median().item():.3f}",
        "images where a step raised E": f"{rose.float().mean().item():.3f}",
        "in mask before": f"{values['before'].mean().item():.3f}",
        "in mask after": f"{values['after'].mean().item():.3f}",
        "cos(C', without)": f"{values['kept'].mean().item():.3f}",
    }


def main() -> None:
    """Guide every image under every rule; write table and plot."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--base", default=BaseConfig().path)
    parser.add_argument("--data", type=Path, nargs="*", default=[])
    parser.add_argument("--steps", type=int, default=5)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    base = load_base(BaseConfig(path=arguments.base))
    encoder = CrossModalEncoder(base.vlm, base.vlm_tokenizer, CsmConfig(), AseaConfig())
    rows, curves = [], {}
    with tempfile.TemporaryDirectory() as scratch:
        built_in = Path(scratch, "built-in")
        write_dataset(built_in, num_good=1, num_good_test=1, num_defects=6)
        for root in [built_in, *arguments.data]:
            results, fewest = guided(encoder, root, CASES, arguments.steps)
            print(f"{root.name}: the smallest mask keeps {fewest} cells of {encoder.grid**2}")
            for case, values in zip(CASES, results, strict=True):
                rows.append(row_of(root.name, case, values, arguments.steps))
                key = (root.name, case.solver, case.map)
                curves.setdefault(key, {})[name_of(case)] = values["energies"].mean(dim=0)
    circumstances = {**vars(arguments), "data": [root.name for root in arguments.data]}
    report = write_report("asea-rules", rows, circumstances, __doc__.splitlines()[0])
    places = list(dict.fromkeys(key[1:] for key in curves))
    names = list(dict.fromkeys(key[0] for key in curves))
    figure, axes = plt.subplots(
        len(names), len(places), figsize=(3.2 * len(places), 2.6 * len(names)), squeeze=False
    )
    for line, name in enumerate(names):
        for column, place in enumerate(places):
            axis = axes[line][column]
            for label, curve in curves[(name, *place)].items():
                axis.plot(range(len(curve)), curve.tolist(), marker=".", label=label)
            axis.set(title=f"{name}: {place[0]}, {place[1]}", xlabel="T_g", ylim=(0, 1))
            axis.title.set_fontsize(8)
    axes[0][0].set_ylabel("mean E")
    axes[0][0].legend(fontsize=6)
    figure.tight_layout()
    figure.savefig(report.with_suffix(".png"), dpi=90)


if __name__ == "__main__":
    main()
