"""Measure generated defects: how good they are, and whether they help.

    python -m launch.evaluate quality --real ROOT --synthetic [NAME=]DIR ... --out DIR
    python -m launch.evaluate localization --real ROOT [--synthetic [NAME=]DIR ...] --out DIR
    python -m launch.evaluate classification --real ROOT --synthetic [NAME=]DIR ... --out DIR
    python -m launch.evaluate ablation PRESET --real ROOT --data.shards DIR --out DIR

Each has its own --help. All folders are in MVTec AD's layout. The same command resumes after a
kill. Each writes tables as Markdown and CSV, and one self-contained HTML page.
"""

import sys
from collections.abc import Sequence

from acontrol.errors import UserError, nearest
from acontrol.evaluation.settings import (
    AblationConfig,
    ClassificationConfig,
    LocalizationConfig,
    QualityConfig,
)
from launch.entry import loading, main
from launch.options import named_for, parse
from launch.train import read_config_of

PROG = "python -m launch.evaluate"
QUALITY = """Score generated defects against real ones, in MVTec AD's layout.

    python -m launch.evaluate quality --real ROOT --synthetic [NAME=]DIR ... --out DIR

Inception Score, KID and IC-LPIPS, the latter also of the defects alone; copies of training
defects; how far masks are filled, and how well the surroundings match a normal image. Real
defects outside the training third are scored next to the generated ones. --features names the
networks: vlm (the run's own vision tower) needs no download.
"""
LOCALIZATION = """Train a detector on each source of defects, and compare them on real ones.

    python -m launch.evaluate localization --real ROOT --out DIR [--synthetic [NAME=]DIR ...]

ROOT is in MVTec AD's layout, one category or several. A detector is trained for each category,
source and seed, on train/good and the source's defects, and tested on test/good and the defects
outside the training third. Sources: none (normal images only), real (the training third),
perlin (DRAEM's blobs), cutpaste, each --synthetic NAME, and mixtures such as real+NAME. Each
training is a task on Ray; finished ones are kept. About how long they take is printed first; on
a terminal, more than an hour is asked about (--yes: not).
"""
CLASSIFICATION = """Train a classifier of defects on each source, and compare them on real ones.

    python -m launch.evaluate classification --real ROOT --out DIR [--synthetic [NAME=]DIR ...]

ROOT is in MVTec AD's layout, one category or several. A ResNet-34 is trained for each category,
source and seed to tell the category's defects apart, and tested on the defects outside the
training third. Sources: real (the training third), each --synthetic NAME, and mixtures such as
real+NAME. Categories with a single defect are left out. Each training is a task on Ray;
finished ones are kept. About how long they take is printed first; on a terminal, more than an
hour is asked about (--yes: not).
"""
ABLATION = """Train, draw and measure with each part of the method added in turn (Table 4).

    python -m launch.evaluate ablation PRESET --real ROOT --data.shards DIR --out DIR

Rows: nothing (the base alone, gamma 0), sga (C' from the image alone), csm (image and text),
and t1 to t5 (that many steps of ASEA). The rows share all settings of acontrol train. Each row
is a training on Ray with a nested MLflow run, then a generated set, then the scores of
acontrol evaluate quality and the detectors of acontrol evaluate localization. The same command
resumes after a kill. About how long the detectors take is printed first; on a terminal, more
than an hour is asked about (--yes: not).
"""


def run(args: Sequence[str], prog: str = PROG) -> None:
    """Run the sub-command that the first argument names."""
    name = args[0] if args else ""
    if name in ("-h", "--help"):
        print(named_for(prog, __doc__))
        sys.exit(0)
    if not name:
        raise UserError(f"name what to measure first, one of: {', '.join(COMMANDS)}")
    if name not in COMMANDS:
        raise UserError(f"no measurement {name!r}; {nearest(name, COMMANDS)}")
    rest = args[1:]
    options = [arg.split("=")[0] for arg in rest if arg.startswith("--")]
    for option in options:
        if options.count(option) > 1:
            raise UserError(f"give {option} once, with all its values after it")
    COMMANDS[name](rest, f"{prog} {name}")


def quality(args: Sequence[str], prog: str) -> None:
    """Score generated images."""
    config = parse(QualityConfig, args, prog=prog, description=QUALITY)
    # The networks are imported only once the settings are valid.
    with loading():
        from acontrol.evaluation.quality_run import run_quality

    run_quality(config)


def localization(args: Sequence[str], prog: str) -> None:
    """Compare sources by detectors."""
    config = parse(LocalizationConfig, args, prog=prog, description=LOCALIZATION)
    with loading():
        from acontrol.evaluation.localization_run import run_localization

    run_localization(config)


def classification(args: Sequence[str], prog: str) -> None:
    """Compare sources by classifiers."""
    config = parse(ClassificationConfig, args, prog=prog, description=CLASSIFICATION)
    with loading():
        from acontrol.evaluation.classification import run_classification

    run_classification(config)


def ablation(args: Sequence[str], prog: str) -> None:
    """Compare the parts of the method."""
    config = read_config_of(AblationConfig, args, prog, ABLATION, required=("data.shards",))
    with loading():
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
