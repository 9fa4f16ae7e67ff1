"""Do drawn defects help a detector on real surfaces? The protocol, and its stages as commands.

    python -m benchmarks.real_surfaces DATA WORK --stage base|adapters|draw|choose|sets|test
    python -m benchmarks.real_surfaces DATA WORK --stage improve
    python -m benchmarks.real_surfaces DATA WORK --stage test --print
    python -m benchmarks.real_surfaces DATA WORK --round 2 --stage draw|choose|sets|test

DATA holds ball_screw and magnetic_tile, in MVTec AD's layout. Each stage runs acontrol's own
commands in WORK, which continue where they were stopped; --print only shows them.

    split      ball_screw: the first third of the defects, which is one of position (folds are
               of positions too, `positions_of_screws`); magnetic_tile: by pieces
    base       from the built-in base, squares of 64 px of the training part alone
    adapters   two, seeds 0 and 1, on squares of four times the defect
    draw       CANDIDATES, 60 images a defect, for the choice
    choose     cross-validation within the training part: 3 folds, 1 seed, the head on frozen
               features; of the candidates the one with the highest mean pixel AP of real+NAME
               is "ours"; nothing else is chosen
    sets       of the chosen way: 100 images a defect and adapter, with ASEA and at T_g 0; of
               copy-paste and reference-only the same normals, masks and seeds; clean: our base
               at gamma 0 with words for a good surface, no gate
    test       once, the head, 5 seeds: perlin, cutpaste and each set alone and with the real
               third; the controls clean-as-defect and real+ours+clean-as-normal. And the memory
               bank, which sees good images alone (it has been tested on magnetic_tile before
               this protocol: pixel AP 16.2, one opening)
    improve    `acontrol improve` with adapter 0, one round of 24 drawings a plan, one seed,
               against its two controls on the folds; then the test part, once. Ball screw's
               folds were seen before this line, no test figure was. The loop is worth its
               complexity if the misses' plan beats uniform and copy-paste in pixel AP of the
               test, both intervals above 0, on one product and is below neither on the other

Every source has the same steps, batches and augmentation. Figures: strict protocol, pixel AP
first, then pixel AUROC, AUPRO and image AUROC; paired differences to real with 95 % intervals
over test images, seeds and adapters.

Success, said before any test image was read: real+ours above real and above real+copy-paste in
pixel AP, the interval of each paired difference above 0, on at least one data set, and neither
interval below 0 on the other. Anything else is reported as what it is. If it fails, one more
round is declared here, after looking at pictures and folds of the training part alone.

The second round, declared while the first test of ball_screw ran and before any figure of it
was seen. On the folds real+drawn lost 8 points of pixel AP; a fresh pair of eyes knew 36 of 40
crops of tiles, as the drawn ones lack grain and are blacker than real defects. So drawings
start from the reference, keep its detail, and follow the text less: CANDIDATES of round 2,
chosen between as before. Then one set of each adapter, and the test of the same detectors,
seeds and figures: real, ours and copy-paste, alone and with the real third. Success is said as
above. It is the second opening of the same test images, and is reported as that.

Found after the first test: preset tiny takes no ASEA steps, so ours and ours-T0 are the same
files, and ASEA was not tested. Magnetic_tile, whose test was closed then, leaves ours-T0 out.
"""

import argparse
import csv
import itertools
import json
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

STAGES = ("base", "adapters", "draw", "choose", "sets", "test", "improve")
# Where a drawing starts.
CANDIDATES = {
    "noise": ("--start", "noise"),
    "reference-30": ("--start", "reference", "--strength", "0.3"),
    "reference-60": ("--start", "reference", "--strength", "0.6"),
}
# The second round's.
DETAIL = ("--detail", "--guidance-scale", "2", "--solver", "dpm++", "--steps", "15")
DETAILED = {
    f"detail-{percent}": ("--start", "reference", "--strength", f"0.{percent}", *DETAIL)
    for percent in (40, 70)
}
RIVALS = ("copy-paste", "reference-only")
CONTROLS = ("perlin", "cutpaste")
# Where on the ball screw its training images were taken: at each position from here on. Of the
# pits by the place of their masks, which grow in runs; of the good images by their texture,
# whose correlation with the image before falls from .8 to .3 there.
POSITIONS = {"test/pitting": (0, 11, 21, 39, 48, 60), "train/good": (0, 44, 88, 130, 174, 219)}
# The same of the test images; their good ones are in the seven runs of most alike textures.
TEST_POSITIONS = {
    "test/pitting": (60, 85, 86, 102, 124, 144, 164, 180),
    "test/good": (0, 9, 21, 45, 48, 53, 64, 90),
}
ADAPTERS: tuple[int | None, ...] = (0, 1)
ONE: tuple[int | None, ...] = (None,)  # A set without an adapter of its own.


@dataclass(frozen=True)
class Product:
    """A data set and what depends on it.

    Attributes:
        name: Of its folder.
        scale: Bounds of ``--scale``, so that most defects take a third of a square.
        reading: How detectors read whole images.
        words: Of a good surface, for the clean control.
    """

    name: str
    scale: tuple[str, str]
    reading: tuple[str, ...]
    words: str


PRODUCTS = (
    Product(
        "ball_screw", ("0.25", "0.5"), ("--tile", "128", "--tile-scale", "0.5"), "a good thread"
    ),
    Product("magnetic_tile", ("0.33", "0.67"), (), "a good surface"),
)
BASE = (
    *("--init", "tiny", "--view", "64", "--pool", "3000", "--test", "128"),
    *("--vae.crop", "32", "--vae.batch-size", "16", "--vae.steps", "3000"),
    *("--vae.decoder-steps", "2000", "--vae.critic-weight", "0.05"),
    *("--denoiser.steps", "2500", "--denoiser.batch-size", "8"),
    *("--vlm.vision-steps", "150", "--vlm.steps", "300", "--judge-steps", "100"),
)
TRAINING = (
    *("--optim.steps", "400", "--optim.batch-size", "16", "--checkpoint.every", "100"),
    *(
        "--samples.every",
        "0",
        "--data.target-view",
        "region",
        "--data.reference-view",
        "region",
    ),
)


class Study:
    """The commands of every stage of a product."""

    def __init__(self, product: Product, data: Path, work: Path, number: int = 1):
        """Set where its data is and its results go; ``number`` is the round's."""
        self.product = product
        self.candidates = CANDIDATES if number == 1 else DETAILED
        self.second = number > 1
        self.root, self.work = data / product.name, work / product.name
        # Under the product's name, which is the category's.
        self.good_words = self.work / "good-words" / product.name
        self.split = [] if product.name == "ball_screw" else ["--split-file", self._at("split")]

    def _at(self, name: str) -> str:
        endings = {"split": ".json", "positions": ".csv"}
        return str(self.work / f"{name}{endings.get(name, '')}")

    def commands(self, stage: str) -> list[list[str]]:
        """Arguments of ``acontrol``, in order; whose output exists has been run."""
        root = str(self.root)
        if stage == "base":
            split = [["split", root, "--by", "pieces", "--out", self._at("split")]]
            scale = ["--scale", *self.product.scale]
            base = ["pretrain", root, "--output", self._at("base"), *scale, *BASE, *self.split]
            return (split if self.split else []) + [base]
        if stage == "adapters":
            whole = ["--resolution", "None"]
            shard = ["shard", root, "--out", self._at("shards"), *whole, *self.split]
            return [shard, *(self._training(seed) for seed in ADAPTERS)]
        if stage == "draw":
            return [
                self._drawing(f"try-{name}", 0, 60, *how)
                for name, how in self.candidates.items()
            ]
        groups = [] if self.split else ["--groups", self._at("positions")]
        if stage == "improve":
            return [self._improvement(groups)]
        if stage == "choose":
            tried = {f"try-{name}": ONE for name in self.candidates}
            sources = ["real", *(f"real+{name}" for name in tried)]
            more = ["--cross-validate", "3", *groups]
            return [self._test(self._named("choose"), tried, 1, sources, more)]
        how = self.candidates[self._chosen()]
        if self.second:
            sets = {"detailed": ADAPTERS, "copy-paste": ONE}
            if stage == "sets":
                return [self._drawing(f"detailed-{seed}", seed, 100, *how) for seed in ADAPTERS]
            sources = ["real", *(name for own in sets for name in (own, f"real+{own}"))]
            return [self._test(self._named("test"), sets, 5, sources, [])]
        turns: dict[str, tuple[str, ...]] = {"ours": ()}
        if self.product.name == "ball_screw":
            turns["ours-T0"] = ("--asea-steps", "0")
        if stage == "sets":
            commands = [
                self._drawing(f"{name}-{seed}", seed, 100, *how, *more)
                for name, more in turns.items()
                for seed in ADAPTERS
            ]
            commands += [self._drawing(name, 0, 100, "--method", name) for name in RIVALS]
            clean = ("--scale", "0", "--gate", "off", "--data", str(self.good_words))
            return [*commands, self._drawing("clean", 0, 100, *clean)]
        sets = {**dict.fromkeys(turns, ADAPTERS), **dict.fromkeys(RIVALS, ONE)}
        sources = [name for own in (*CONTROLS, *sets) for name in (own, f"real+{own}")]
        sources = ["real", *sources, "clean-as-defect", "real+ours+clean-as-normal"]
        return [self._test("test", sets, 5, sources, ["--clean", self._at("clean")])]

    def _named(self, name: str) -> str:
        return f"{name}-2" if self.second else name

    def _training(self, seed: int) -> list[str]:
        output = self._at(f"adapter-{seed}")
        where = ["--base.path", self._at("base"), "--data.shards", self._at("shards")]
        return ["train", "tiny", *where, "--output", output, "--seed", str(seed), *TRAINING]

    def _drawing(self, out: str, seed: int, count: int, *how: str) -> list[str]:
        model = ["--model", self._at(f"adapter-{seed}")]
        data = [] if "--data" in how else ["--data", str(self.root)]
        size = ["--count", str(count), "--batch-size", "16", "--seed", str(seed)]
        return ["generate", *model, *data, "--out", self._at(out), *size, *self.split, *how]

    def _improvement(self, groups: list[str]) -> list[str]:
        return [
            *("improve", str(self.root), "--model", self._at("adapter-0")),
            *("--out", self._at("improve"), "--rounds", "1", "--images", "24", "--seeds", "1"),
            *("--plan", "misses", "--tile", "128", "--tile-scale", "0.5", "--final"),
            *("--num-workers", "1", "--yes", *self.split, *groups),
        ]

    def _test(
        self,
        out: str,
        sets: dict[str, tuple[int | None, ...]],
        seeds: int,
        sources: list[str],
        more: list[str],
    ) -> list[str]:
        def folders(name: str, seeds: tuple[int | None, ...]) -> str:
            if seeds == ONE:
                return self._at(name)
            return ",".join(self._at(f"{name}-{seed}") for seed in seeds)

        synthetic = [f"{name}={folders(name, own)}" for name, own in sets.items()]
        return [
            *("evaluate", "localization", "--real", str(self.root), "--out", self._at(out)),
            *("--detector", "head,bank", "--protocol", "strict", "--budget", "paper"),
            *(
                "--sources",
                ",".join(sources),
                "--augment",
                "--seeds",
                str(seeds),
                "--num-workers",
                "2",
                "--yes",
            ),
            *("--synthetic", *synthetic, *self.product.reading, *self.split, *more),
        ]

    def _chosen(self) -> str:
        """The candidate with the highest cross-validated pixel AP of real and drawn.

        Raises:
            FileNotFoundError: If nothing was chosen yet.
        """
        with (self.work / self._named("choose") / "results.csv").open(newline="") as file:
            rows = [
                row
                for row in csv.DictReader(file)
                if (row["category"], row["metric"], row["detector"])
                == ("mean", "pixel_ap", "head")
            ]
        found = {row["source"]: float(row["value"]) for row in rows}
        return max(self.candidates, key=lambda name: found[f"real+try-{name}"])


def positions_of_screws(positions: Mapping[str, Sequence[int]]) -> dict[str, str]:
    """Position of each training or test image of ball_screw, the pits before the good ones."""
    return {
        f"ball_screw/{folder}/{number:03}.jpg": str(position)
        for folder, starts in positions.items()
        for position, (start, end) in enumerate(itertools.pairwise(starts))
        for number in range(start, end)
    }


def good_words(study: Study) -> None:
    """A copy of the data whose words for each defect are those of a good surface."""
    place = study.good_words
    if place.exists():
        return
    shutil.copytree(study.root, place)
    (place / "prompt").mkdir(exist_ok=True)
    defects = sorted(path.name for path in (place / "test").iterdir() if path.name != "good")
    words = {defect: study.product.words for defect in defects}
    (place / "prompt" / "phrases.json").write_text(json.dumps(words))


def parser_of(about: str | None, stages: Iterable[str]) -> argparse.ArgumentParser:
    """The options of a study's stages."""
    parser = argparse.ArgumentParser(
        description=about, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("data", type=Path, help="folder of ball_screw and magnetic_tile")
    parser.add_argument("work", type=Path, help="folder for all results")
    parser.add_argument("--stage", choices=stages, required=True)
    names = [product.name for product in PRODUCTS]
    parser.add_argument("--product", choices=names, help="only this one")
    parser.add_argument("--print", action="store_true", help="only show the commands")
    return parser


def carry_out(commands: Iterable[Sequence[str]], *, show: bool) -> None:
    """Print acontrol's commands, and unless they are only to be shown run each."""
    for arguments in commands:
        print("acontrol", shlex.join(arguments), flush=True)
        if not show:
            subprocess.run([sys.executable, "-m", "acontrol", *arguments], check=True)


def main() -> None:
    """Run, or print, a stage of both products."""
    parser = parser_of(__doc__, STAGES)
    parser.add_argument("--round", type=int, choices=(1, 2), default=1, help="by default 1")
    options = parser.parse_args()
    for product in PRODUCTS:
        if options.product not in (None, product.name):
            continue
        study = Study(product, options.data, options.work, options.round)
        if not options.print:
            study.work.mkdir(parents=True, exist_ok=True)
            if product.name == "ball_screw":
                with (study.work / "positions.csv").open("w", newline="") as file:
                    csv.writer(file).writerows(positions_of_screws(POSITIONS).items())
            if (options.stage, options.round) == ("sets", 1):
                good_words(study)
        carry_out(study.commands(options.stage), show=options.print)


if __name__ == "__main__":
    main()
