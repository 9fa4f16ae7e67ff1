"""The plan of a generated set."""

from pathlib import Path

import pytest

from acontrol.data.mvtec import open_folder
from acontrol.generation.plan import Planner
from acontrol.generation.request import Request
from acontrol.generation.run import ignored_by_replay
from acontrol.generation.settings import GenerationConfig
from launch.options import parse


@pytest.mark.parametrize(("counts", "last"), [((1000,), "999"), ((600, 401), "1000")])
def test_sorted_names_keep_the_plans_order(
    built_in_data: Path, counts: tuple[int, ...], last: str
) -> None:
    planner = Planner(open_folder(built_in_data), split="all", masks="same")
    requests = [
        (f"x:{line}", Request(category="wood", defect="crack", count=count))
        for line, count in enumerate(counts)
    ]
    images, left_out = planner.plan_images(requests)
    names = [image.name[2] for image in images]
    assert left_out == [] and names == sorted(set(names)) and names[-1] == last


def test_settings_that_a_replay_does_not_use_are_known() -> None:
    args = ["--model", "m", "--data", "d", "--out", "o", "--replay", "r", "--batch", "1"]
    quiet = parse(GenerationConfig, [*args, "--num-workers", "2"], prog="generate")
    assert ignored_by_replay(quiet) == []
    loud = parse(GenerationConfig, [*args, "--batch-size", "4", "--seed", "0"], prog="generate")
    assert ignored_by_replay(loud) == ["batch_size", "seed"]
