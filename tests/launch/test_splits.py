"""A split travels from shards and bases to generated sets, and two are never mixed."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from acontrol.config import AdapterCard, BaseConfig, TrainedOn
from acontrol.data.mvtec import image_names, open_folder
from acontrol.data.split import Split, read_split
from acontrol.errors import UserError
from acontrol.masks.inversion_run import claim
from acontrol.masks.settings import MaskCard, MasksConfig
from acontrol.masks.store import read_learned
from acontrol.method.sga import SemanticAdapter
from acontrol.networks.load import BaseModels
from acontrol.networks.locate import PARTS, built_in_adapter, built_in_base, digest
from acontrol.presets import preset
from acontrol.runs.record import Launch
from acontrol.train.checkpoint import AdapterState, TrainState, write_checkpoint
from acontrol.train.plan import RunInputs, RunPlan, seen_before
from acontrol.train.worker import new_adapter
from launch import evaluate, generate, shard
from tests.launch.test_errors import error_of

SMALLEST = ("--budget", "smallest", "--seeds", "1", "--dry-run")


@pytest.fixture(scope="module")
def split_file(wood: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The last image of each defect trains, and good images as by default."""
    names = image_names(open_folder(wood))
    train = {name for name in names if name.endswith("/004.png") or "/train/" in name}
    rest = tuple(sorted({*names} - train))
    file = tmp_path_factory.mktemp("split") / "split.json"
    file.write_text(Split(train=tuple(sorted(train)), test=rest).model_dump_json())
    return file


@pytest.fixture
def record(split_file: Path) -> TrainedOn:
    return TrainedOn(
        categories=("wood",), split="train", split_digest=read_split(split_file).digest
    )


@pytest.fixture
def model(
    adapter: SemanticAdapter, card: Callable[..., AdapterCard], tmp_path: Path
) -> Callable[..., Path]:
    """Save an adapter on the built-in base that comes from these images."""

    def save(*trained_on: TrainedOn) -> Path:
        made = card(base_digest=digest(BaseConfig()), trained_on=trained_on)
        adapter.register_to_config(card=made.model_dump(mode="json"))
        adapter.save_pretrained(tmp_path / "model")
        return tmp_path / "model"

    return save


def base_of(tmp_path: Path, **card: object) -> Path:
    """The built-in base with another card."""
    base = tmp_path / "base"
    base.mkdir()
    for part in (*PARTS, "vlm"):
        (base / part).symlink_to(built_in_base() / part)
    whole = {"data": "real", "held_out_from_denoiser": [], **card}
    (base / "card.json").write_text(json.dumps(whole))
    return base


def drawn(out: Path, data: Path, model: Path, *more: object) -> dict[str, object]:
    args = ["--model", model, "--data", data, "--out", out, "--count", 1, "--steps", 1]
    generate.run([str(arg) for arg in [*args, "--gate", "off", "--asea-steps", 0, *more]])
    job: dict[str, object] = json.loads((out / "job.json").read_text())
    return job


def test_a_base_of_another_split_is_refused_with_shards(
    wood: Path, split_file: Path, record: TrainedOn, tmp_path: Path
) -> None:
    shards = {}
    for name, more in (("third", ()), ("file", ("--split-file", str(split_file)))):
        shards[name] = tmp_path / name
        shard.run([str(wood), "--out", str(shards[name]), *more])
    base = base_of(tmp_path, trained_on=[record.model_dump(mode="json")])

    def resolve(name: str) -> RunInputs:
        values = {"data.shards": str(shards[name]), "base.path": str(base), "output": "x"}
        return RunInputs.resolve(preset("tiny").with_values(values))

    assert resolve("file").reader.index.trained_on == record
    with pytest.raises(UserError) as error:
        resolve("third")
    message = str(error.value)
    assert f"the base {base} comes from the split file of digest" in message
    assert f"the shards {shards['third']} from the first third of each defect" in message
    assert "give --split-file the same file everywhere, or nowhere" in message


def test_initial_weights_of_another_split_are_refused(
    wood: Path, record: TrainedOn, model: Callable[..., Path], tmp_path: Path
) -> None:
    shard.run([str(wood), "--out", str(tmp_path / "shards")])
    own = TrainedOn(categories=("wood",), split="train")
    for first, refused in ((own, False), (record, True)):
        values = {"data.shards": str(tmp_path / "shards"), "init": str(model(first))}
        config = preset("tiny").with_values(values)
        if not refused:
            assert [*seen_before(RunInputs.resolve(config).config).values()] == [(), (own,)]
            continue
        with pytest.raises(UserError, match=r"init .*model comes from the split file"):
            RunInputs.resolve(config)


def test_a_resume_keeps_what_the_initial_weights_had_seen(
    wood: Path,
    record: TrainedOn,
    model: Callable[..., Path],
    tiny_base: BaseModels,
    tmp_path: Path,
) -> None:
    """Without --init, with one that is gone, and with one that a new run may not have."""
    shard.run([str(wood), "--out", str(tmp_path / "shards")])
    run, nut = tmp_path / "run", TrainedOn(categories=("nut",), split="train")
    values = {"data.shards": str(tmp_path / "shards"), "output": str(run)}
    started = preset("tiny").with_values({**values, "init": str(model(nut))})
    with RunPlan.locked(started) as plan:
        launch = Launch(plan.config, run / "launches" / "a", "", "", plan.base_digest, False)
        first = new_adapter(tiny_base, launch, plan.reader, None)
        weights = {name: value + 1 for name, value in first.state_dict().items()}
        first.load_state_dict(weights)
        state = TrainState(
            step=1,
            position=16,
            data_digest=plan.reader.index.digest,
            base_digest=plan.base_digest,
            config=plan.config,
        )
        write_checkpoint(launch.folder, first, AdapterState(weights, {}, 1), state)
    seen = [nut, TrainedOn(categories=("wood",), split="train")]
    for init in (None, str(tmp_path / "gone"), str(model(record))):
        with RunPlan.locked(preset("tiny").with_values({**values, "init": init})) as plan:
            launch = Launch(
                plan.config, run / "launches" / "b", "", "", plan.base_digest, False
            )
            assert plan.config.init == started.init, "the run's record stays true"
            resumed = new_adapter(tiny_base, launch, plan.reader, plan.checkpoint)
        assert [*AdapterCard.model_validate(resumed.config["card"]).seen] == seen


def test_good_images_come_from_the_files_training_side(
    wood: Path, record: TrainedOn, tmp_path: Path
) -> None:
    folder = open_folder(wood)
    names = image_names(folder)
    train = tuple(n for n in names if "/004." in n or n == "wood/test/good/001.png")
    split = Split(train=train, test=tuple({*names} - {*train}))
    file = tmp_path / "split.json"
    file.write_text(split.model_dump_json())
    for name, more in (("a", ()), ("b", ("--normal", wood))):
        out = tmp_path / name
        drawn(out, wood, built_in_adapter(), "--split-file", file, *more)
        lines = [json.loads(line) for line in (out / "manifest.jsonl").read_text().splitlines()]
        assert {line["normal"] for line in lines} == {"wood/test/good/001.png"}


def test_references_come_from_the_file_and_its_digest_travels(
    wood: Path, split_file: Path, record: TrainedOn, model: Callable[..., Path], tmp_path: Path
) -> None:
    out, options = tmp_path / "g", ("--split-file", split_file)
    job = drawn(out, wood, model(record), *options)
    assert job["trained_on"] == [record.model_dump(mode="json")]
    lines = [json.loads(line) for line in (out / "manifest.jsonl").read_text().splitlines()]
    assert {Path(line["reference"]).name for line in lines} == {"004.png"}
    synthetic = ("--real", wood, "--synthetic", f"own={out}")
    evaluate.run([str(arg) for arg in ["localization", *synthetic, *SMALLEST, *options]])
    message = error_of(evaluate.run, "localization", *synthetic, *SMALLEST)
    assert "--synthetic own comes from the split file of digest" in message
    message = error_of(
        evaluate.run, "quality", "--real", wood, "--synthetic", out, "--out", tmp_path / "q"
    )
    assert "comes from the split file of digest" in message
    assert not (tmp_path / "q").exists()
    again = ("--model", model(record), "--data", wood, "--out", tmp_path / "r")
    message = error_of(generate.run, *again, "--replay", out)
    assert "the model" in message and "comes from the split file" in message


def test_a_model_of_another_split_is_refused(
    wood: Path, split_file: Path, record: TrainedOn, model: Callable[..., Path], tmp_path: Path
) -> None:
    out = tmp_path / "g"
    options = ("--data", wood, "--out", out)
    message = error_of(generate.run, "--model", model(record), *options)
    assert "model comes from the split file of digest" in message
    third = model(TrainedOn(categories=("wood",), split="train"))
    message = error_of(generate.run, "--model", third, *options, "--split-file", split_file)
    assert (
        "comes from the first third of each defect (no --split-file), and the data" in message
    )
    assert not out.exists()
    other = TrainedOn(categories=("tile",), split="train")
    job = drawn(out, wood, model(other), "--split-file", split_file)
    assert job["trained_on"] == [part.model_dump(mode="json") for part in (other, record)]


def test_the_built_in_adapter_has_seen_no_photograph(
    wood: Path, split_file: Path, record: TrainedOn, tmp_path: Path
) -> None:
    job = drawn(tmp_path / "g", wood, built_in_adapter(), "--split-file", split_file)
    assert job["trained_on"] == [record.model_dump(mode="json")]


@pytest.mark.parametrize(
    ("job", "words"),
    [
        ({"split": "train"}, None),
        ({"split": "all"}, "comes from every image of wood"),
        (
            {"split": "train", "trained_on": [{"split": "all"}, {"split": "train"}]},
            "comes from every image of its data",
        ),
        ({"split": "train", "trained_on": [{"split": "all", "categories": ["tile"]}]}, None),
        ({"split": "train", "trained_on": 3}, "job.json: is damaged"),
        ([], "job.json: is damaged"),
    ],
)
def test_a_generated_set_that_saw_the_test_images_is_refused(
    wood: Path, other_wood: Path, tmp_path: Path, job: object, words: str | None
) -> None:
    made = Path(shutil.copytree(other_wood, tmp_path / "made"))
    (made / "job.json").write_text(json.dumps(job))
    for folder in (made, made / "wood"):
        args = ("localization", "--real", wood, "--synthetic", f"own={folder}", *SMALLEST)
        if words is None:
            evaluate.run([str(arg) for arg in args])
        else:
            assert words in error_of(evaluate.run, *args)


def test_a_base_that_saw_the_test_images_is_refused(
    wood: Path,
    other_wood: Path,
    adapter: SemanticAdapter,
    card: Callable[..., AdapterCard],
    tmp_path: Path,
) -> None:
    """Its card from before splits has no record: it was trained on every image."""
    base = base_of(tmp_path)
    config = BaseConfig(path=str(base))
    made = card(base=config, base_digest=digest(config))
    adapter.register_to_config(card=made.model_dump(mode="json"))
    adapter.save_pretrained(tmp_path / "model")
    job = drawn(tmp_path / "g", wood, tmp_path / "model")
    assert {"categories": None, "split": "all", "split_digest": "third"} in job["trained_on"]  # type: ignore[operator]
    out = ("--out", tmp_path / "out")
    args = ("localization", "--real", wood, "--synthetic", tmp_path / "g", *SMALLEST)
    message = error_of(evaluate.run, *args)
    assert "comes from every image of its data, so a test on them proves nothing" in message
    quality = ("quality", "--real", wood, "--synthetic", other_wood, *out)
    message = error_of(evaluate.run, *quality, "--model", tmp_path / "model")
    assert "the base of --model" in message and "every image" in message
    shard.run([str(wood), "--out", str(tmp_path / "shards")])
    ablation = ("ablation", "tiny", "--real", wood, "--data.shards", tmp_path / "shards")
    message = error_of(evaluate.run, *ablation, "--base.path", base, *out)
    assert f"the base {base} comes from every image" in message
    assert not (tmp_path / "out").exists()


def test_an_ablation_takes_shards_of_its_own_split(
    wood: Path, split_file: Path, tmp_path: Path
) -> None:
    shard.run([str(wood), "--out", str(tmp_path / "shards")])
    ablation = ("ablation", "tiny", "--real", wood, "--data.shards", tmp_path / "shards")
    message = error_of(
        evaluate.run, *ablation, "--out", tmp_path / "out", "--split-file", split_file
    )
    assert "shards comes from the first third" in message
    assert not (tmp_path / "out").exists()


def test_detectors_are_tested_on_the_files_test_images(
    wood: Path, split_file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    args = ["localization", "--real", str(wood), "--sources", "real", *SMALLEST]
    evaluate.run([*args, "--split-file", str(split_file)])
    broken = json.loads(split_file.read_text())
    broken["test"] = [name for name in broken["test"] if "stain" not in name]
    split_file.with_name("broken.json").write_text(json.dumps(broken))
    file = split_file.with_name("broken.json")
    message = error_of(evaluate.run, *args, "--split-file", file)
    assert "broken.json: does not name wood/test/stain/000.png (and 3 more)" in message


def test_masks_of_another_split_are_refused(record: TrainedOn, tmp_path: Path) -> None:
    own = MaskCard(
        acontrol_version="0",
        category="wood",
        defect="crack",
        base=BaseConfig(),
        base_digest="0" * 64,
        split="train",
        training=("000",),
        template="a",
        resolution=64,
        seed=0,
        inversion={},  # type: ignore[arg-type]
        drawn=1,
        kept=1,
        rejected={},
    )
    folder = tmp_path / "wood" / "crack"
    folder.mkdir(parents=True)
    text = own.model_dump_json(exclude={"split_digest"})  # As cards were before.
    (folder / "learned.json").write_text(text)
    with pytest.raises(UserError, match="comes from the first third of each defect"):
        read_learned(
            tmp_path,
            "wood",
            "crack",
            base_digest=None,
            split="train",
            split_digest=record.split_digest,
        )


def test_masks_are_not_continued_on_another_split(record: TrainedOn, tmp_path: Path) -> None:
    config = MasksConfig(output=tmp_path / "masks")
    claim(config, tmp_path, "0" * 64)
    (config.output / "training").mkdir()
    run = config.output / "run.json"
    before = json.loads(run.read_text())
    del before["settings"]["split_digest"]  # As it was before.
    run.write_text(json.dumps(before))
    claim(config, tmp_path, "0" * 64)
    with pytest.raises(UserError, match="split_digest: third -> "):
        claim(config, tmp_path, "0" * 64, record.split_digest)
