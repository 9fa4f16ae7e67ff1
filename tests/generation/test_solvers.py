"""Other solvers than DDIM: about the same drawing in fewer steps."""

import json
from pathlib import Path

import numpy as np
import pytest

import acontrol
from acontrol.data.images import read_image
from acontrol.networks.locate import built_in_adapter
from acontrol.pipelines.anomaly_control import AnomalyControlPipeline
from launch import generate

WORDS = {"reference_phrase": "a crack", "product": "wood"}


@pytest.mark.parametrize("solver", ["dpm++", "unipc"])
def test_fifteen_steps_are_as_near_the_limit_as_thirty_of_ddims(
    pipe: AnomalyControlPipeline, crack: dict[str, Path], solver: str
) -> None:
    def drawn(solver: str, steps: int, seed: int) -> np.ndarray:
        image = acontrol.draw_defect(
            pipe, **crack, **WORDS, steps=steps, solver=solver, seed=seed
        )
        return np.asarray(image).astype(float)

    far: dict[str, list[float]] = {"ddim": [], solver: []}
    for seed in range(3):
        limit = drawn("ddim", 200, seed)
        for name, steps in (("ddim", 30), (solver, 15)):
            far[name].append(((drawn(name, steps, seed) - limit) ** 2).mean())
    assert np.mean(far[solver]) < np.mean(far["ddim"]), far


def test_a_solver_starts_anew_with_each_drawing(
    pipe: AnomalyControlPipeline, crack: dict[str, Path]
) -> None:
    """It remembers its last steps, but not those of another image."""
    first, again = (
        np.asarray(acontrol.draw_defect(pipe, **crack, **WORDS, steps=4, solver="unipc"))
        for _ in range(2)
    )
    assert np.array_equal(first, again)
    plain = np.asarray(acontrol.draw_defect(pipe, **crack, **WORDS, steps=4))
    assert not np.array_equal(first, plain)


@pytest.mark.parametrize("method", ["acontrol", "reference-only"])
def test_every_method_on_the_base_takes_it_from_command_and_request(
    built_in_data: Path, tmp_path: Path, method: str
) -> None:
    request = {"category": "wood", "defect": "crack", "seed": 3, "masks": "same"}
    lines = [request, request | {"solver": "ddim"}]
    (tmp_path / "r.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    args = ["--model", built_in_adapter(), "--data", built_in_data, "--split", "all"]
    args += ["--out", tmp_path / "out", "--steps", 3, "--gate", "off", "--method", method]
    args += ["--solver", "unipc", "--requests", tmp_path / "r.jsonl"]
    generate.run([str(arg) for arg in args])
    text = (tmp_path / "out" / "manifest.jsonl").read_text()
    own = [json.loads(line) for line in text.splitlines()]
    assert [line["sampling"]["solver"] for line in own] == ["unipc", "ddim"]
    first, second = (read_image(tmp_path / "out" / line["image"]) for line in own)
    assert own[0]["seed"] == own[1]["seed"] and not np.array_equal(first, second)
