import json
import shutil
from pathlib import Path

import pytest

from acontrol.config import BaseConfig, TrainedOn
from acontrol.data.builtin import write_dataset
from acontrol.data.mvtec import image_names, open_folder
from acontrol.data.split import Split
from acontrol.errors import UserError
from acontrol.evaluation.caveats import of_vision_tower
from acontrol.networks.load import load_base
from acontrol.networks.locate import (
    PARTS,
    built_in_base,
    digest,
    has_small_vlm,
    squares_note,
    trained_on,
    unseen_note,
)
from acontrol.pretrain import run
from acontrol.pretrain.settings import PretrainConfig, Sizes
from acontrol.runs import storage
from launch import pretrain
from launch.options import parse

SMALL = [
    *("--pool", "16", "--test", "8", "--judge-steps", "2", "--save-every", "2"),
    *("--sizes.resolution", "32", "--sizes.vae-channels", "8", "16"),
    *("--sizes.unet-channels", "16", "32", "--sizes.vision-layers", "1"),
    *("--sizes.width", "32", "--sizes.qformer-layers", "2", "--sizes.vision-width", "32"),
    *("--vae.steps", "2", "--vae.decoder-steps", "2", "--denoiser.steps", "2"),
    *("--denoiser.batch-size", "4", "--vlm.vision-steps", "2", "--vlm.steps", "2"),
    *("--vlm.batch-size", "4", "--samples-every", "100", "--hold-out", "stain"),
]


def test_a_folder_becomes_a_base(
    built_in_data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    base = tmp_path / "base"
    pretrain.run([str(built_in_data), "--output", str(base), *SMALL])
    printed = capsys.readouterr().out
    assert printed.splitlines()[-1] == f"Base: {base}"
    models = load_base(BaseConfig(path=str(base)))
    assert models.vae.config.scaling_factor != 0.18215, "fitted to these latents"
    card = json.loads((base / "card.json").read_text())
    assert card["command"].startswith("python -m launch.pretrain ")
    assert card["held_out_from_denoiser"] == ["stain"]
    assert {"psnr_db", "retrieval", "drawn_seen_defect"} <= card["metrics"].keys()
    seen = TrainedOn(categories=("button", "wood"), split="train")
    assert trained_on(BaseConfig(path=str(base))) == (seen,)
    training = tmp_path / "base-training"
    assert (training / "denoiser-000002.png").is_file()
    assert not list(training.glob("*.safetensors")), "states are cleared away"
    with pytest.raises(UserError, match="exists and is not empty"):
        pretrain.run([str(built_in_data), "--output", str(base), *SMALL])


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["scuff"], "--hold-out scuff: no such defect"),
        (["good", "crack", "stain", "spots"], "nothing is left for the U-Net"),
    ],
)
def test_what_is_held_out_exists_and_leaves_something(
    names: list[str], message: str, built_in_data: Path, tmp_path: Path
) -> None:
    args = [*SMALL[: SMALL.index("--hold-out") + 1], *names]
    with pytest.raises(UserError, match=message):
        pretrain.run([str(built_in_data), "--output", str(tmp_path / "base"), *args])


def without(args: list[str], group: str) -> list[str]:
    """Options without those of a group, and their values."""
    kept: list[str] = []
    for arg in args:
        if arg.startswith("--"):
            keep = not arg.startswith(f"--{group}")
        if keep:
            kept.append(arg)
    return kept


@pytest.mark.slow
def test_a_base_starts_from_another_and_resumes(
    built_in_data: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """From the built-in one, on squares, with another product's good images; then from that."""
    tile = tmp_path / "tile"
    write_dataset(tile, num_good=3, num_good_test=1, num_defects=0, categories=("tile",))
    options = without(SMALL, "sizes")
    options += ["--view", "32", "--scale", "0.5", "1", "--vae.crop", "32", "--also", str(tile)]
    options += ["--vae.critic-weight", "0.05"]
    args = [str(built_in_data), "--init", "tiny", *options]
    bases = [tmp_path / "whole", tmp_path / "resumed"]
    pretrain.run([*args, "--output", str(bases[0])])
    with monkeypatch.context() as stopping:
        stopping.setattr(run, "train_denoiser", interrupt)
        with pytest.raises(KeyboardInterrupt):
            pretrain.run([*args, "--output", str(bases[1])])
    assert not bases[1].exists()
    pretrain.run([*args, "--output", str(bases[1])])
    assert "Init tiny: 615 of 615 weights taken" in capsys.readouterr().out
    cards = [json.loads((base / "card.json").read_text()) for base in bases]
    assert cards[0]["sha256"] == cards[1]["sha256"], "the same bytes"
    assert cards[0]["init"] == {"base": "tiny", "digest": digest(BaseConfig())}
    sizes = Sizes(resolution=32).model_dump(mode="json")
    assert cards[0]["config"]["sizes"] == sizes, "the init's and the view's"
    assert cards[0]["metrics"]["psnr_db"] > 0
    models = load_base(BaseConfig(path=str(bases[0])))
    assert "</w>" in " ".join(models.tokenizer.get_vocab())
    first = [
        TrainedOn(categories=("button", "wood"), split="train"),
        TrainedOn(categories=("tile",), split="train"),
    ]
    assert [*trained_on(BaseConfig(path=str(bases[0])))] == first

    split = tmp_path / "split.json"
    names = image_names(open_folder(built_in_data))
    split.write_text(Split(train=tuple(names[::2]), test=tuple(names[1::2])).model_dump_json())
    mixed = [str(built_in_data), "--init", str(bases[0]), "--split-file", str(split)]
    with pytest.raises(UserError, match="comes from the first third"):
        pretrain.run([*mixed, *options, "--output", str(tmp_path / "mixed")])
    own = PretrainConfig(output=tmp_path / "next", init=str(bases[0]))
    data = {"ROOT": TrainedOn(categories=("nut",), split="train")}
    assert run._seen(own, data) == [*first, data["ROOT"]], "what the init has seen too"


def interrupt(*_: object, **__: object) -> None:
    """As Ctrl-C."""
    raise KeyboardInterrupt


def test_a_run_that_began_with_all_images_is_not_continued(
    built_in_data: Path, tmp_path: Path
) -> None:
    """Its state comes from test images, which the finished base's card would deny."""
    config = parse(PretrainConfig, ["--output", str(tmp_path / "base"), *SMALL], prog="")
    before = config.model_dump(
        mode="json",
        exclude={"output", "save_every", "samples_every", "tracking", "split_file"},
    )
    (tmp_path / "base-training").mkdir()
    record = json.dumps({"root": str(built_in_data), **before})
    (tmp_path / "base-training" / "config.json").write_text(record)
    with pytest.raises(UserError, match="split_digest: None -> third"):
        pretrain.run([str(built_in_data), "--output", str(tmp_path / "base"), *SMALL])


def test_a_run_from_before_turns_had_any(built_in_data: Path, tmp_path: Path) -> None:
    options = ["--output", str(tmp_path / "base"), "--view", "32", *SMALL]
    config = parse(PretrainConfig, options, prog="")
    left_out = {"output", "save_every", "samples_every", "tracking", "split_file", "turns"}
    before = config.model_dump(mode="json", exclude=left_out) | {"seed": 5}
    (tmp_path / "base-training").mkdir()
    record = {"root": str(built_in_data), **before, "split_digest": "third"}
    (tmp_path / "base-training" / "config.json").write_text(json.dumps(record))
    with pytest.raises(UserError, match="turns: None -> auto"):
        pretrain.run([str(built_in_data), *options])
    with pytest.raises(UserError, match=r"\(seed: 5 -> 0\)"):
        pretrain.run([str(built_in_data), *options, "--turns", "any"])


def test_a_run_is_not_continued_on_changed_training_images(
    built_in_data: Path, tmp_path: Path
) -> None:
    """Good images and masks count too; test images, which are never read, do not."""
    data = shutil.copytree(built_in_data, tmp_path / "data")
    args = ["--output", str(tmp_path / "base"), *SMALL]
    config = run._with_sizes(parse(PretrainConfig, args, prog=""))

    def begin() -> None:
        folder = open_folder(data)
        run._claim(config, data, folder, [], folder.trained_on("train"))

    begin()
    with (data / "wood/test/crack/002.png").open("ab") as test_image:
        test_image.write(b" ")
    begin()
    for name in ("wood/train/good/000.png", "wood/ground_truth/crack/000_mask.png"):
        file = data / name
        before = file.read_bytes()
        file.write_bytes(before + b" ")
        with pytest.raises(UserError, match=r"settings \(training images: "):
            pretrain.run([str(data), *args])
        file.write_bytes(before)
    (tmp_path / "base-training" / "images.json").unlink()
    begin()  # Begun by a version that had no such record.


def test_times_outlive_a_kill_while_they_are_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    times = run._Times(tmp_path / "times.json")
    with times("first"):
        pass
    monkeypatch.setattr(storage.os, "replace", interrupt)
    with pytest.raises(KeyboardInterrupt), times("second"):
        pass
    assert [*run._Times(tmp_path / "times.json").seconds] == ["first"]


def test_products_that_a_small_base_has_not_learnt_are_noted(tmp_path: Path) -> None:
    built_in, crack = BaseConfig(), ("wood", "crack")
    assert unseen_note(built_in, [crack, ("tile", "good")]) is None
    note = unseen_note(built_in, [crack, ("nut", "bent")])
    assert note == (
        "the built-in base has not seen this product (nut): pictures check the chain; see "
        "docs/recipes.md"
    )
    # MVTec AD has a tile too, with other defects.
    note = unseen_note(built_in, [("tile", "crack"), ("tile", "glue_strip"), ("nut", "bent")])
    assert "these products (nut, tile)" in (note or "")
    base = tmp_path / "base"
    base.mkdir()
    for part in (*PARTS, "vlm"):
        (base / part).symlink_to(built_in_base() / part)
    own = BaseConfig(path=str(base))
    assert unseen_note(own, [("nut", "bent")]) is None, "no base of launch.pretrain"
    assert has_small_vlm(built_in) and not has_small_vlm(own)
    assert has_small_vlm(BaseConfig(path=str(base), vlm_path=str(built_in_base() / "vlm")))
    (toy,), (tower,) = of_vision_tower(built_in), of_vision_tower(own)
    assert toy.startswith("toy features: vlm is the small vision tower of the built-in base,")
    assert tower.startswith("features of a vision tower: vlm is not the published Inception")
    record = {"categories": ["nut"], "split": "train"}
    card = {"data": "nuts", "held_out_from_denoiser": [], "trained_on": [record]}
    (base / "card.json").write_text(json.dumps(card))
    assert has_small_vlm(own)
    assert unseen_note(own, [("nut", "bent")]) is None
    assert f"the base {base} has not seen" in (unseen_note(own, [crack]) or "")
    (base / "card.json").write_text(json.dumps(card | {"trained_on": [{"split": "all"}]}))
    assert unseen_note(own, [crack]) is None, "unknown products"


def test_training_at_another_scale_than_a_bases_is_noted(tmp_path: Path) -> None:
    assert squares_note(BaseConfig(), 0, None) is None
    for part in (*PARTS, "vlm"):
        (tmp_path / part).symlink_to(built_in_base() / part)
    own, file = BaseConfig(path=str(tmp_path)), tmp_path / "card.json"
    card = {"data": "nuts", "held_out_from_denoiser": []}
    assert squares_note(own, 0, None) is None, "no base of launch.pretrain"
    for config in ({}, {"view": None, "scale": None}):
        file.write_text(json.dumps(card | {"config": config}))
        assert squares_note(own, 0, None) is None
    file.write_text(json.dumps(card | {"config": {"view": 64, "scale": [0.33, 0.5]}}))
    whole, larger = squares_note(own, 0, None) or "", squares_note(own, 4, 200) or ""
    assert whole.startswith(f"the base {tmp_path} was taught on squares of 128 to 194 px, and")
    assert "is on whole images: --data.target-view region --data.target-px 128" in whole
    assert "squares of any side" in (squares_note(own, 4, None) or "")
    assert "squares of up to 200 px" in larger
    assert squares_note(own, 4, 128) is squares_note(own, 4, 194) is None
    file.write_text(json.dumps(card | {"config": {"view": 64, "scale": None}}))
    assert "squares of 64 px" in (squares_note(own, 0, None) or "")
    file.write_text(json.dumps(card | {"config": {"view": 64, "scale": [0]}}))
    with pytest.raises(UserError, match="is damaged"):
        squares_note(own, 0, None)


def test_a_card_says_what_a_base_has_seen(tmp_path: Path) -> None:
    base = tmp_path / "base"
    base.mkdir()
    for part in (*PARTS, "vlm"):
        (base / part).symlink_to(built_in_base() / part)
    config = BaseConfig(path=str(base))
    assert trained_on(BaseConfig()) == trained_on(config) == ()
    card = {"data": "tiles", "held_out_from_denoiser": []}
    (base / "card.json").write_text(json.dumps(card))
    assert trained_on(config) == (TrainedOn(split="all"),), "from before splits"
    both = BaseConfig(vlm_path=str(base / "vlm"))
    assert trained_on(both) == (TrainedOn(split="all"),), "another base's BLIP-2"
    record = {"categories": ["tile"], "split": "train", "split_digest": "a" * 64}
    (base / "card.json").write_text(json.dumps(card | {"trained_on": [record]}))
    assert trained_on(config) == (TrainedOn.model_validate(record),)
    (base / "card.json").write_text(json.dumps(card | {"trained_on": [{"split": "some"}]}))
    with pytest.raises(UserError, match=r"card\.json: is damaged"):
        trained_on(config)
    (base / "card.json").write_text("{}")
    assert trained_on(config) == (), "not of launch.pretrain"


def test_other_settings_do_not_continue_a_run(tmp_path: Path) -> None:
    (tmp_path / "base-training").mkdir()
    (tmp_path / "base-training" / "config.json").write_text("{}")
    with pytest.raises(UserError, match="other settings"):
        pretrain.run(["--output", str(tmp_path / "base"), *SMALL])


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["/nowhere", "--output", "b"], "/nowhere: no such folder"),
        (["--output", "b", "--split-file", "s.json"], "--split-file is for a folder"),
        (["--output", "b", "--sizes.resolution", "50"], "multiple of 32"),
        (["--output", "b", "--sizes.patch", "12"], "multiple of"),
        (["--output", "b", "--vae.stepz", "3"], "--vae.stepz"),
        (["--output", "b", "--view", "64"], "--view is for a folder: name ROOT"),
        (["--output", "b", "--also", "c"], "--also is for a folder: name ROOT"),
        ([".", "--output", "b", "--view", "50"], "--view: Input should be a multiple of 32"),
        ([".", "--output", "b", "--scale", "0.5"], "--scale is of the squares of --view"),
        ([".", "--output", "b", "--turns", "any"], "--turns is of the squares of --view"),
        ([".", "--output", "b", "--view", "64", "--scale", "0"], "scale must be over 0"),
        ([".", "--output", "b", "--view", "64", "--scale", "1", "9"], "at most 4"),
        (
            [".", "--output", "b", "--view", "64", "--sizes.resolution", "128"],
            "--view 64 is the side of the networks' images",
        ),
        ([".", "--output", "b", "--view", "32", "--sizes.patch", "12"], "multiple of"),
        (["--output", "b", "--vae.crop", "96"], "vae.crop 96 is larger than the images"),
        (["--output", "b", "--init", "/nowhere"], "/nowhere: no such folder"),
        (
            ["--output", "b", "--init", "tiny", "--sizes.patch", "12"],
            "--init tiny: sizes.resolution 64 must be a multiple of 8",
        ),
    ],
)
def test_bad_arguments_are_one_line(
    args: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError) as error:
        pretrain.run(args)
    assert message in str(error.value)
    assert "\n" not in str(error.value)
    assert not list(tmp_path.iterdir()), "nothing is written"
