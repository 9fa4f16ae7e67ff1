"""Pretraining from images to a base: the stages in turn, then the base card with metrics."""

import dataclasses
import hashlib
import json
import math
import platform
import shutil
import time
from collections.abc import Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from acontrol._version import __version__
from acontrol.config import BaseConfig, TrainedOn
from acontrol.data.lock import only_launch
from acontrol.data.mvtec import MvtecFolder, open_folder
from acontrol.data.overlap import refuse_overlap
from acontrol.data.pieces import training_images
from acontrol.data.publish import WORK, check_new, put_in_place, work_folder
from acontrol.data.split import refuse_mix
from acontrol.errors import UserError, nearest
from acontrol.networks import locate
from acontrol.networks.load import load_base, quieten
from acontrol.networks.locate import BUILT_IN_DATA, CARD
from acontrol.pretrain import networks as net
from acontrol.pretrain.denoiser import generate_images, train_denoiser
from acontrol.pretrain.initial import sizes_of, start_from
from acontrol.pretrain.pool import DefectType, Pool, draw_pool, folder_pools, good_pool
from acontrol.pretrain.probe import Probe, as_tensor, train_probe
from acontrol.pretrain.settings import HELD_OUT, PretrainConfig
from acontrol.pretrain.vae import edges, psnr, train_vae
from acontrol.pretrain.vlm import retrieval, train_vlm
from acontrol.runs import storage
from acontrol.runs.guard import claim
from acontrol.runs.inputs import DataInput
from acontrol.runs.server import tracking_store
from acontrol.runs.stage import StageContext
from acontrol.runs.storage import sha256
from acontrol.runs.tracking import Tracker
from acontrol.seeding import derive_seed

SAMPLES_PER_DEFECT_TYPE = 6
OTHERS_SHARE = 3  # Of the pool's size, its fraction that is added of other products.
REGION_SHARE = 0.3  # Of the vision-language model's images, cropped to their defect.


def pretrain(config: PretrainConfig, root: Path | None, command: str) -> Path:
    """Train a base; the same call continues where an earlier one stopped.

    States, sample grids and MLflow's database are kept in ``<output>-training`` (in
    ``.partial-training`` inside an output that cannot be replaced, such as a mount point); the
    base itself appears complete, at the end.

    Args:
        config: All settings.
        root: Folder in MVTec AD's layout, whose test images are never read; None for the
            built-in data.
        command: Command line, for the card.

    Returns:
        The base's folder.

    Raises:
        UserError: If the output exists, lies in the data, was started with other settings or
            is being trained, or the data is bad.
    """
    quieten()
    also = {f"--also {other}": other for other in config.also or ()}
    refuse_overlap(config.output, "--output", {"ROOT": root, **also})
    check_new(config.output, "--output")
    config = _with_sizes(config)
    with only_launch(_training_folder(config)):
        return _pretrain(config, root, command)


def _pretrain(config: PretrainConfig, root: Path | None, command: str) -> Path:
    folder = None if root is None else open_folder(root, split_file=config.split_file)
    others = [open_folder(other) for other in config.also or ()]
    data = {} if folder is None else {"ROOT": folder.trained_on("train")}
    data |= {f"--also {other.root}": other.trained_on("train") for other in others}
    trained_on = _seen(config, data)
    _claim(config, root, folder, others, data.get("ROOT"))
    context, times = _context(config, folder)
    hold_out = config.hold_out
    if hold_out is None:
        hold_out = HELD_OUT if root is None else ()
    side, scale = config.sizes.resolution, config.squares_scale
    if folder is None:
        pool = draw_pool(config.pool, config.seed, side)
        test = draw_pool(config.test, derive_seed(config.seed, "test"), side)
    else:
        sizes = config.pool, config.test
        pool, test = folder_pools(folder, *sizes, config.seed, side, scale, config.turns)
    _check_held_out(hold_out, pool.vocabulary)
    all_views = pool
    if others:
        all_views = pool.joined(
            good_pool(
                others, config.pool // OTHERS_SHARE, config.seed, side, scale, config.turns
            )
        )
    words = {word for entry in pool.vocabulary for word in entry.caption.lower().split()}
    parts = net.build(
        config.sizes, config.seed, [word for word in sorted(words) if word.isalpha()]
    )
    if config.init is not None:
        print(start_from(parts, config.init), flush=True)
    for network in (parts.vae, parts.text_encoder, parts.unet, parts.vlm):
        network.to(context.device)
    on_gpu = context.device.type == "cuda"

    with times("autoencoder"):
        train_vae(parts.vae, all_views, test, config.vae, context, bfloat16=config.bfloat16)
    with times("denoiser"):
        seen = pool.without(hold_out)
        train_denoiser(
            parts, seen, config.denoiser, context, bfloat16=config.bfloat16 and on_gpu
        )
    with times("vision-language model"):
        magnified = pool.magnified(REGION_SHARE, config.seed)
        train_vlm(parts.vlm, parts.vlm_tokenizer, magnified, config.vlm, context)

    scratch = context.folder / "base"
    shutil.rmtree(scratch, ignore_errors=True)
    net.save(parts, scratch)
    with times("judge"):
        probe = train_probe(pool, config.judge_steps, context)
    with times("metrics"):
        metrics = measure(scratch, probe, test, hold_out, context.device)
    # Without a defect held out, some are of no images.
    metrics = {name: value for name, value in metrics.items() if math.isfinite(value)}
    context.tracker.log_metrics(metrics, 1)
    card = {
        "command": command,
        "config": json.loads(config.model_dump_json(exclude={"output"})),
        "data": BUILT_IN_DATA if root is None else root.resolve().name,
        "trained_on": [part.model_dump(mode="json") for part in trained_on],
        "init": None
        if config.init is None
        else {"base": config.init, "digest": locate.digest(BaseConfig(path=config.init))},
        "held_out_from_denoiser": list(hold_out),
        "metrics": {name: round(value, 4) for name, value in metrics.items()},
        "minutes": times.minutes(),
        "machine": {
            "device": torch.cuda.get_device_name() if on_gpu else platform.machine(),
            "threads": torch.get_num_threads(),
        },
        "versions": {
            "acontrol": __version__,
            "torch": torch.__version__,
            "python": platform.python_version(),
        },
        "sha256": {
            file.relative_to(scratch).as_posix(): sha256(file)
            for file in sorted(scratch.rglob("*.safetensors"))
        },
    }
    (scratch / CARD).write_text(json.dumps(card, indent=1) + "\n")
    put_in_place(scratch, config.output, last=CARD)
    for state in context.folder.glob("*.safetensors"):
        state.unlink()
    context.tracker.finish("FINISHED")
    return config.output


def measure(
    base: Path, probe: Probe, test: Pool, hold_out: tuple[str, ...], device: torch.device
) -> dict[str, float]:
    """Metrics of a finished base, read from its files: autoencoder, retrieval, samples."""
    models = load_base(BaseConfig(path=str(base)), device)
    names = [field.name for field in dataclasses.fields(net.Networks)]
    parts = net.Networks(**{name: getattr(models, name) for name in names})
    metrics = psnr(parts.vae, test, device) | edges(parts.vae, test, device)
    metrics |= retrieval(parts.vlm, parts.vlm_tokenizer, test, device)
    real = test.pixels(torch.arange(len(test)))
    scores = {"judge_on_real": probe.score(real, test.defect_types)}
    for group, held_out in (("seen", False), ("held_out", True)):
        entries = [row for row in test.vocabulary if row.held_out(hold_out) == held_out]
        entries = entries * SAMPLES_PER_DEFECT_TYPE
        if entries:
            images = generate_images(parts, [entry.caption for entry in entries], seed=1_000)
            scores[f"drawn_{group}"] = probe.score(as_tensor(images), entries)
    for group, values in scores.items():
        metrics |= {f"{group}_{name}": value for name, value in values.items()}
    return metrics


class _Times:
    """Minutes of each part, over all reruns, without what was killed."""

    def __init__(self, file: Path):
        self.file = file
        self.seconds: dict[str, float] = json.loads(file.read_text()) if file.exists() else {}

    @contextmanager
    def __call__(self, part: str):  # type: ignore[no-untyped-def]
        started = time.monotonic()
        try:
            yield
        finally:
            self.seconds[part] = self.seconds.get(part, 0) + time.monotonic() - started
            storage.write(self.file, json.dumps(self.seconds).encode())

    def minutes(self) -> dict[str, float]:
        return {part: round(seconds / 60, 1) for part, seconds in self.seconds.items()}


def _training_folder(config: PretrainConfig) -> Path:
    output = config.output.resolve()
    if (work := work_folder(output)).parent == output:
        return work.with_name(f"{WORK}-training")  # Where a rename will reach it.
    return output.with_name(f"{output.name}-training")


def _with_sizes(config: PretrainConfig) -> PretrainConfig:
    """The settings with all sizes in place, some of them the init's.

    Raises:
        UserError: If the init is no small base, or the sizes do not fit together.
    """
    if config.init is None:
        return config.resolved({})
    resolved = config.resolved(sizes_of(config.init))
    try:
        resolved.check()
    except ValueError as error:
        raise UserError(f"--init {config.init}: {error}") from error
    return resolved


def _check_held_out(names: Sequence[str], vocabulary: Sequence[DefectType]) -> None:
    """Check that each name hides something, and that something is left.

    Raises:
        UserError: If not.
    """
    for name in names:
        if not any(entry.held_out([name]) for entry in vocabulary):
            known = sorted({entry.defect for entry in vocabulary})
            raise UserError(f"--hold-out {name}: no such defect; {nearest(name, known)}")
    if all(entry.held_out(names) for entry in vocabulary):
        raise UserError("--hold-out: nothing is left for the U-Net to learn from")


def _seen(config: PretrainConfig, data: Mapping[str, TrainedOn]) -> list[TrainedOn]:
    """What the base will have seen: the init's images, and the data by their options.

    Raises:
        UserError: If they come from different splits of a product.
    """
    before = () if config.init is None else locate.trained_on(BaseConfig(path=config.init))
    owners = {f"--init {config.init}": before, **{name: (own,) for name, own in data.items()}}
    for owner, records in owners.items():
        for name, part in data.items():
            refuse_mix(owner, records, name, part)
    return [*dict.fromkeys((*before, *data.values()))]


def _settings(config: PretrainConfig) -> dict[str, Any]:
    return config.model_dump(
        mode="json",
        exclude={"output", "save_every", "samples_every", "tracking", "split_file"},
    )


def _claim(
    config: PretrainConfig,
    root: Path | None,
    data: MvtecFolder | None,
    others: Sequence[MvtecFolder],
    trained_on: TrainedOn | None,
) -> None:
    """Claim the working folder, which must be new or of the same settings and images.

    Raises:
        UserError: If it is of others.
    """
    folder = _training_folder(config)
    # A run from before splits has seen the test images: this is not the same command.
    record = {} if trained_on is None else {"split_digest": trained_on.split_digest}
    if config.init is not None:
        record["init_digest"] = locate.digest(BaseConfig(path=config.init))
    settings = _settings(config)
    if config.view is None or config.turns == "any":  # As all was before there was a choice.
        del settings["turns"]
    claim(folder / "config.json", {"root": str(root), **settings, **record})
    if data is not None:  # In a file of its own: a run begun without the record continues.
        claim(folder / "images.json", {"training images": _images_digest(data, others)})


def _images_digest(data: MvtecFolder, others: Sequence[MvtecFolder]) -> str:
    """Sha256 over names and sizes in bytes of the files that train, of ``others`` good ones."""
    total = hashlib.sha256()
    for folder in (data, *others):
        for category in folder.categories:
            files = [*folder.normals(category)]
            for row in training_images(folder, category) if folder is data else ():
                files += [row.image, row.mask]
            for file in files:
                size = file.stat().st_size if file.exists() else 0  # Reported when it is read.
                total.update(f"{folder.name_of(category, file)} {size}\n".encode())
    return total.hexdigest()


def _context(config: PretrainConfig, data: MvtecFolder | None) -> tuple[StageContext, _Times]:
    """The working folder's tracker and times, of this launch and earlier ones."""
    folder = _training_folder(config)
    run_file = folder / "mlflow_run"
    known = run_file.read_text().split("\n") if run_file.exists() else []
    store = tracking_store(config.tracking.uri, folder, known[1] if known[1:] else None)
    tracker = Tracker.open(
        store,
        config.tracking.experiment,
        f"base {config.output.resolve().name}",
        known[0] if known else None,
        folder,
        resolved=_settings(config),
        data=None if data is None else DataInput.of_folder(data, "train", "training"),
    )
    if not known:
        storage.write(run_file, f"{tracker.run_id}\n{store.uri}".encode())
    name = config.device
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    context = StageContext(
        folder,
        tracker,
        config.seed,
        torch.device(name),
        config.save_every,
        config.samples_every,
    )
    return context, _Times(folder / "times.json")
