"""Train, draw and measure with each part of the method added in turn (the paper's Table 4).

    python -m launch.evaluate ablation PRESET --real ROOT --data.shards DIR --out DIR

Rows: nothing (the base alone, gamma 0), sga (C' from the image alone), csm (image and text),
and t1 to t5 (with so many steps of ASEA). All settings of launch.train are the rows' common
ones. Every row is a training on Ray with a nested MLflow run, then a generated set, then the
scores of launch.evaluate quality and the detectors of launch.evaluate localization. Killed, the
same command continues.
"""

from collections.abc import Sequence

from acontrol.evaluation.comparison import AblationConfig
from launch.train import read_config_of

PROG = "python -m launch.evaluate ablation"


def run(args: Sequence[str], prog: str = PROG) -> None:
    """Train, draw, measure, and write the table."""
    command = read_config_of(AblationConfig, args, prog, __doc__)
    from acontrol.evaluation.ablation import run_ablation

    run_ablation(command)
