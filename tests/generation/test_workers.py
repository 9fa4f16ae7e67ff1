"""What a user sees of a worker's mistake, without starting Ray."""

import pytest
import ray

from acontrol.errors import UserError
from acontrol.generation import workers
from acontrol.generation.settings import Gate, OutputSettings
from acontrol.runs.cluster import without_rays_traceback


def test_what_a_worker_cannot_build_is_one_line(tmp_path, monkeypatch) -> None:
    """In the constructor it would be an actor that died, with a traceback."""
    monkeypatch.setattr(workers.torch, "set_num_threads", lambda _: None)
    spec = workers.GeneratorSpec(
        method="acontrol",
        model=str(tmp_path / "gone"),
        base_path=None,
        precision="float32",
        split="train",
        gate=Gate(),
        output=OutputSettings(),
        split_file=None,
        roots={"data": tmp_path, "normal": tmp_path},
        threads=1,
    )
    worker = workers._Worker(spec, [[]])
    with pytest.raises(UserError) as raised:
        worker.draw(0)
    # As Ray hands it over: an error of both classes, whose text is the traceback.
    error = ray.exceptions.RayTaskError("draw", "Traceback ...", raised.value)
    with pytest.raises(UserError) as shown, without_rays_traceback():
        raise error.as_instanceof_cause()
    assert shown.value is raised.value
    bug = ray.exceptions.RayTaskError("draw", "Traceback ...", KeyError("x"))
    with pytest.raises(ray.exceptions.RayTaskError), without_rays_traceback():
        raise bug
