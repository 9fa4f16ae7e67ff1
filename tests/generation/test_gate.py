from pathlib import Path

import pytest
from PIL import Image

from acontrol.config import BaseConfig
from acontrol.data.builtin import write_dataset
from acontrol.data.mvtec import open_folder
from acontrol.generation.gate import ENOUGH, DefectScorer
from acontrol.generation.plan import Planner
from acontrol.generation.request import Request
from acontrol.networks.load import load_base


@pytest.mark.parametrize(("count", "limited"), [(ENOUGH - 1, False), (ENOUGH, True)])
def test_few_defects_give_no_limit(count: int, limited: bool, tmp_path: Path) -> None:
    write_dataset(
        tmp_path,
        num_good=1,
        num_good_test=1,
        num_defects=count,
        categories=("wood",),
        defects=("crack",),
    )
    planner = Planner(open_folder(tmp_path), split="all", masks="same")
    (image,), _ = planner.plan_images([("here", Request(category="wood", defect="crack"))])
    scorer = DefectScorer(load_base(BaseConfig()).vlm, planner.training)
    (scored,) = scorer.distances([image], [Image.open(image.normal).convert("RGB")])
    assert scored is not None
    distance, limit = scored
    assert 0 <= distance <= 2
    assert (limit is not None) == limited
