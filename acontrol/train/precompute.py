"""Precomputed features of all samples, by plain Ray tasks."""

from collections import deque
from functools import lru_cache
from pathlib import Path

import ray
import torch

from acontrol.config import RunConfig
from acontrol.data.features import CHUNK, FeatureFolder, feature_folder, joined
from acontrol.data.lock import only_launch
from acontrol.data.reader import ShardReader
from acontrol.data.stream import Batch, TrainingStream, collate
from acontrol.errors import UserError
from acontrol.method.encoder import FrozenEncoder
from acontrol.networks.load import load_base, quieten
from acontrol.progress import progress
from acontrol.runs.cluster import (
    joined_cluster,
    uses_gpus,
    without_rays_traceback,
    worker_environment,
    worker_resources,
)
from acontrol.train.plan import RunInputs


def precompute(config: RunConfig) -> Path:
    """Write the features of a run's samples into ``data.features``, skipping finished chunks.

    Returns:
        The set's folder.

    Raises:
        UserError: If the user must mend something: an option, the data, the base.
    """
    quieten()
    if config.data.shards is None or config.data.features is None:
        raise UserError("--data.shards DIR and --data.features DIR are needed")
    inputs = RunInputs.resolve(config)
    folder = inputs.features()
    with only_launch(folder.path):
        if missing := folder.missing():
            with joined_cluster(inputs.config.cluster):
                _run_tasks(inputs, folder, missing)
        folder.finish()
    return folder.path


def _run_tasks(inputs: RunInputs, folder: FeatureFolder, missing: list[int]) -> None:
    """One task per chunk, as many at a time as the config has workers."""
    config = inputs.config
    on_gpus = uses_gpus(config.cluster)
    share = worker_resources(config.cluster, on_gpus)
    task = ray.remote(write_chunk).options(
        num_cpus=share.pop("CPU"),
        num_gpus=share.pop("GPU", 0),
        memory=share.pop("memory", None),
        resources=share,
        scheduling_strategy="DEFAULT",  # In a trial too, beyond the trial's own reservation.
        runtime_env={"env_vars": worker_environment(on_gpus)},
    )
    waiting, running = deque(missing), set[ray.ObjectRef]()
    total = len(folder.keys)
    done = total - sum(min(CHUNK, total - first) for first in missing)
    with progress("features", total, "sample", initial=done) as bar:
        while waiting or running:
            while waiting and len(running) < config.cluster.num_workers:
                running.add(task.remote(config, inputs.base_digest, waiting.popleft()))
            ready, rest = ray.wait(list(running))
            running = set(rest)
            with without_rays_traceback():
                bar.update(sum(ray.get(ready)))


def write_chunk(config: RunConfig, base_digest: str, first: int) -> int:
    """Compute and write the chunk from sample ``first`` on; returns its number of samples."""
    encoder, stream = _opened(config.model_dump_json())
    numbers = range(first, min(first + CHUNK, len(stream.reader)))
    size = config.micro_batch_size
    parts = []
    for start in range(0, len(numbers), size):
        # Each sample is its own reference: in training C' comes from the reference's features.
        rows = [stream.paired(n, n, position=n) for n in numbers[start : start + size]]
        parts.append(encoder(collate(rows, Batch)))
    feature_folder(config, stream.reader, base_digest).write(first, joined(parts))
    return len(numbers)


@lru_cache(maxsize=1)
def _opened(config_json: str) -> tuple[FrozenEncoder, TrainingStream]:
    """Networks and samples, loaded once per process."""
    quieten()
    config = RunConfig.model_validate_json(config_json)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    precision = getattr(torch, config.runtime.precision)
    base = load_base(config.base, device, precision)
    encoder = FrozenEncoder(base, config.csm, config.asea)
    reader = ShardReader(config.data.shards or "", config.data.cache_dir)
    alone = config.data.model_copy(update={"reference": "self", "features": None})
    stream = TrainingStream(
        reader, alone, seed=config.seed, reference_px=encoder.semantics.image_px
    )
    return encoder, stream
