"""Why do made defects cost a detector its precision? A handful's training part, taken apart.

    python -m benchmarks.what_hurts CASE [--set NAME=FOLDER ...] [--seeds 2]

CASE is a folder of `benchmarks.handful` (WORK/ball_screw-choose/two): its data and split file.
The head is trained on the real photographs alone and mixed with each set, and one thing is
changed at a time:

    balanced     the head's own loss: every image's defect counts alike, however small
    by pixel     half of the loss is of defective pixels, whichever image they are in
    plain        cross-entropy of all pixels
    large only   the head's own loss, without the defects, photographed or made, of under LARGE
                 px at the detector's scale
    normals      instead of a set, normal images take half of the real ones' places

Prints pixel AP in per cent by seed: of all test images, of those with a small or a large
defect beside the good ones, and of the images with a defect alone.
"""

import argparse
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor, nn

from acontrol.data.mvtec import LabelledImage, open_folder
from acontrol.evaluation import head
from acontrol.evaluation.budget import HEAD_BUDGETS
from acontrol.evaluation.metrics import Counts, average_precision
from acontrol.evaluation.sources import Mixed, Paired, Source
from acontrol.evaluation.tally import Tally
from acontrol.evaluation.tiles import WholeImages, logit_map
from acontrol.evaluation.trainer import drawn_from, fit, untrained_detector
from acontrol.seeding import derive_seed

TILE, SCALE = 128, 0.5
LARGE = 150  # Pixels at the detector's scale; specks have some 10 to 35.
Loss = Callable[[Tensor, Tensor], Tensor]


def by_pixel(
    logits: Float[Tensor, "batch 2 height width"], mask: Bool[Tensor, "batch height width"]
) -> Float[Tensor, ""]:
    """Cross-entropy, half of it of the batch's defective pixels and half of normal ones."""
    losses = F.cross_entropy(logits, mask.long(), reduction="none")
    normal, defective = (losses[part].sum() / part.sum().clamp_min(1) for part in (~mask, mask))
    return torch.where(mask.any(), (normal + defective) / 2, normal)


def plain(
    logits: Float[Tensor, "batch 2 height width"], mask: Bool[Tensor, "batch height width"]
) -> Float[Tensor, ""]:
    """Cross-entropy of all pixels."""
    return F.cross_entropy(logits, mask.long())


def trained(normals: WholeImages, source: Source, loss: Loss, seed: int) -> nn.Module:
    """A head after its training on crops."""
    budget = HEAD_BUDGETS["paper"].model_copy(update={"augment": True})
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive_seed("detector", seed))
        detector = untrained_detector("head", budget, normals, seed, "cpu")
    draw = drawn_from(normals, source, None, augment=True)
    *_, (detector, _) = fit(
        detector, budget, draw, lambda images, masks: loss(detector(images), masks), seed
    )
    return detector


def precisions(detector: nn.Module, test: WholeImages) -> dict[str, float]:
    """Pixel AP by which test images count, in per cent."""
    areas = {n: int(test.read(n)[1].sum()) for n in np.flatnonzero(test.anomalous).tolist()}
    middle = float(np.median([*areas.values()]))
    tallies = {name: Tally(TILE) for name in ("all", "small", "large", "defective")}
    for index, defect in enumerate(test.defects):
        image, mask = test.read(index)
        logits = logit_map(detector, image, TILE)
        tallies["all"].add(logits, mask, defect)
        size = None if defect == "good" else "small" if areas[index] < middle else "large"
        for name in ("small", "large") if size is None else (size, "defective"):
            tallies[name].add(logits, mask, defect)
    found = {}
    for name, tally in tallies.items():
        defects = {defect for defect in test.defects if defect != "good"}
        counts: Counts = tally.pixels([*defects, *(["good"] if name != "defective" else [])])[0]
        found[name] = round(100 * float(average_precision(counts)), 1)
    return found


def main() -> None:
    """Train and test all variants; a line each as soon as its seeds are done."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("case", type=Path)
    parser.add_argument("--set", action="append", default=[], metavar="NAME=FOLDER")
    parser.add_argument("--seeds", type=int, default=2)
    options = parser.parse_args()
    torch.set_num_threads(1)
    category = "ball_screw"
    folder = open_folder(options.case / category, split_file=options.case / "split.json")

    def images(
        normals: list[Path], labelled: list[LabelledImage], least: int = 0
    ) -> WholeImages:
        large = [row for row in labelled if row.read_mask().sum() * SCALE**2 >= least]
        return WholeImages(normals, large, TILE, SCALE)

    rows = {"": folder.labelled("train", category)}
    for name, _, place in (text.partition("=") for text in options.set):
        made = open_folder(Path(place))
        (own,) = made.categories
        defects = made.defect_types(own)
        rows[name] = [row for kind in defects for row in made.labelled("all", own, kind)]
    normals = images(folder.normals(category), [])
    test = images(folder.normals(category, "test"), folder.labelled("test", category))

    def source(name: str, least: int = 0) -> Source:
        real = Paired(images([], rows[""], least))
        return Mixed([real, Paired(images([], rows[name], least))]) if name else real

    losses: Mapping[str, Loss] = {
        "balanced": head.balanced_loss,
        "by pixel": by_pixel,
        "plain": plain,
    }
    variants: dict[str, tuple[Source, Loss]] = {}
    for name in rows:
        label = f"real + {name}" if name else "real"
        variants |= {f"{label}, {how}": (source(name), loss) for how, loss in losses.items()}
        variants[f"{label}, large only"] = source(name, LARGE), head.balanced_loss
    variants["real + normals, balanced"] = Mixed([source(""), normals]), head.balanced_loss
    print("| trained on | all | small | large | images with a defect |")
    print("| --- | --- | --- | --- | --- |")
    for label, (drawn, loss) in variants.items():
        found = [
            precisions(trained(normals, drawn, loss, seed), test)
            for seed in range(options.seeds)
        ]
        cells = [" ".join(str(row[name]) for row in found) for name in found[0]]
        print(f"| {label} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
