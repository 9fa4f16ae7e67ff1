"""Measure generated defects: how good they are, and whether they help.

    python -m launch.evaluate quality --real ROOT --synthetic [NAME=]DIR ... --out DIR
    python -m launch.evaluate localization --real ROOT [--synthetic [NAME=]DIR ...] --out DIR
    python -m launch.evaluate classification --real ROOT --synthetic [NAME=]DIR ... --out DIR
    python -m launch.evaluate ablation PRESET --real ROOT --data.shards DIR --out DIR

Each has its own --help. All folders are in MVTec AD's layout. Killed, the same command
continues. Each leaves tables as Markdown, CSV and one HTML page that needs no other file.
"""

import sys
from collections.abc import Sequence

from acontrol.errors import UserError
from acontrol.evaluation.settings import (
    AblationConfig,
    ClassificationConfig,
    LocalizationConfig,
    QualityConfig,
)
from launch.entry import main
from launch.options import named_for, parse
from launch.train import read_config_of

PROG = "python -m launch.evaluate"
QUALITY = """Score generated defects against real ones, in MVTec AD's layout.

    python -m launch.evaluate quality --real ROOT --synthetic [NAME=]DIR ... --out DIR

Inception Score, KID and IC-LPIPS, the latter also of the defects alone; copies of training
defects; how far masks are filled, and how well the surroundings are a normal image's. Real
defects outside the training third are scored beside the generated ones. --features says by
which networks: vlm (the run's own vision tower) needs no download.
"""
LOCALIZATION = """Train a detector on each source of defects, and compare them on real ones.

    python -m launch.evaluate localization --real ROOT --out DIR [--synthetic [NAME=]DIR ...]

ROOT is in MVTec AD's layout, one category or several. A detector is trained for each category,
source and seed, on train/good and the source's defects, and tested on test/good and the defects
outside the training third. Sources: none (normal images alone), real (the training third),
perlin (DRAEM's blobs), cutpaste, each --synthetic NAME, and mixtures such as real+NAME. Each
training is a task on Ray; what is there is not done again.
"""
CLASSIFICATION = """Train a classifier of defects on each source, and compare them on real ones.

    python -m launch.evaluate classification --real ROOT --out DIR [--synthetic [NAME=]DIR ...]

ROOT is in MVTec AD's layout, one category or several. A ResNet-34 is trained for each category,
source and seed to tell the category's defects apart, and tested on the defects outside the
training third. Sources: real (the training third), each --synthetic NAME, and mixtures such as
real+NAME. Categories with a single defect are left out. Each training is a task on Ray; what is
there is not done again.
"""
ABLATION = """Train, draw and measure with each part of the method added in turn (Table 4).

    python -m launch.evaluate ablation PRESET --real ROOT --data.shards DIR --out DIR

Rows: nothing (the base alone, gamma 0), sga (C' from the image alone), csm (image and text),
and t1 to t5 (with so many steps of ASEA). All settings of launch.train are the rows' common
ones. Every row is a training on Ray with a nested MLflow run, then a generated set, then the
scores of launch.evaluate quality and the detectors of launch.evaluate localization. Killed, the
same command continues.
"""


def run(args: Sequence[str], prog: str = PROG) -> None:
    """Hand the rest of the line to the sub-command."""
    name = args[0] if args else ""
    if name in ("-h", "--help"):
        print(named_for(prog, __doc__))
        sys.exit(0)
    if name not in COMMANDS:
        got = f", got {name!r}" if name else ""
        raise UserError(f"say what to measure first, one of: {', '.join(COMMANDS)}{got}")
    rest = args[1:]
    options = [arg.split("=")[0] for arg in rest if arg.startswith("--")]
    for option in options:
        if options.count(option) > 1:
            raise UserError(f"give {option} once, with all its values after it")
    COMMANDS[name](rest, f"{prog} {name}")


def quality(args: Sequence[str], prog: str) -> None:
    """Score generated images."""
    config = parse(QualityConfig, args, prog=prog, description=QUALITY)
    # The networks are imported only once the arguments are known to be good.
    from acontrol.evaluation.quality_run import run_quality

    run_quality(config)


def localization(args: Sequence[str], prog: str) -> None:
    """Compare sources by detectors."""
    config = parse(LocalizationConfig, args, prog=prog, description=LOCALIZATION)
    from acontrol.evaluation.localization import run_localization

    run_localization(config)


def classification(args: Sequence[str], prog: str) -> None:
    """Compare sources by classifiers."""
    config = parse(ClassificationConfig, args, prog=prog, description=CLASSIFICATION)
    from acontrol.evaluation.classification import run_classification

    run_classification(config)


def ablation(args: Sequence[str], prog: str) -> None:
    """Compare the parts of the method."""
    config = read_config_of(AblationConfig, args, prog, ABLATION)
    from acontrol.evaluation.ablation import run_ablation

    run_ablation(config)


COMMANDS = {
    "quality": quality,
    "localization": localization,
    "classification": classification,
    "ablation": ablation,
}

if __name__ == "__main__":
    main(run)
