"""IP-Adapter files: as what training starts from, and what launch.export writes."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from acontrol.errors import UserError
from acontrol.interop.begin import check_init, load_init
from acontrol.interop.ip_adapter import export, load_into, read
from acontrol.method.sga import SemanticAdapter
from launch import export as command

WIDTHS = [48, 48, 48, 96]  # In the order of attn_processors.
Parts = dict[str, dict[str, torch.Tensor]]


@pytest.fixture
def parts() -> Parts:
    """A file's content as IP-Adapter's trainer writes it, for the tiny U-Net."""
    generator = torch.Generator().manual_seed(4)

    def random(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator)

    return {
        "image_proj": {
            "proj.weight": random(4 * 64, 1024),
            "proj.bias": random(4 * 64),
            "norm.weight": random(64),
            "norm.bias": random(64),
        },
        "ip_adapter": {
            f"{2 * layer + 1}.to_{kind}_ip.weight": random(width, 64)
            for layer, width in enumerate(WIDTHS)
            for kind in "kv"
        },
    }


def write(parts: Parts, path: Path) -> Path:
    if path.suffix == ".bin":
        torch.save(parts, path)
    else:
        flat = {
            f"{part}.{name}": value
            for part, values in parts.items()
            for name, value in values.items()
        }
        save_file(flat, path)
    return path


@pytest.mark.parametrize("suffix", [".safetensors", ".bin"])
def test_training_starts_from_a_file(
    make_adapter: Callable[..., Any], parts: Parts, tmp_path: Path, mode: str, suffix: str
) -> None:
    file = write(parts, tmp_path / f"ip{suffix}")
    check_init(str(file))
    adapter: SemanticAdapter = make_adapter(mode)
    load_init(adapter, str(file))
    for layer, (key, value) in enumerate(adapter.matrices()):
        assert torch.equal(key, parts["ip_adapter"][f"{2 * layer + 1}.to_k_ip.weight"])
        assert torch.equal(value, parts["ip_adapter"][f"{2 * layer + 1}.to_v_ip.weight"])
    if adapter.pool is not None:
        projection = parts["image_proj"]
        assert torch.equal(adapter.pool.tokens.weight, projection["proj.weight"])
        assert torch.equal(adapter.pool.tokens.bias, projection["proj.bias"])
        assert torch.equal(adapter.pool.norm.weight, projection["norm.weight"])
    assert adapter.proj.weight.requires_grad


@pytest.mark.parametrize("mode", ["pooled"], indirect=True)
def test_an_exported_file_is_a_beginning_too(
    make_adapter: Callable[..., Any], tmp_path: Path, mode: str
) -> None:
    before, after = make_adapter(mode), make_adapter(mode)
    export(before, tmp_path / "ours.safetensors")
    weights = load_file(tmp_path / "ours.safetensors")
    assert weights["image_proj.proj.weight"].shape == (256, 64)  # Two layers in one.
    assert weights["ip_adapter.7.to_v_ip.weight"].shape == (96, 64)
    assert len(weights) == 4 + 8
    for layer in (after.proj, after.pool.hidden, after.pool.tokens):
        torch.nn.init.normal_(layer.weight)
    load_into(after, tmp_path / "ours.safetensors")
    tokens = torch.randn(2, 5, 64)
    torch.testing.assert_close(after(tokens), before(tokens), rtol=1e-4, atol=1e-5)


def spoil(parts: Parts, how: str) -> Parts:
    pairs, projection = parts["ip_adapter"], parts["image_proj"]
    if how == "shape":
        pairs["3.to_k_ip.weight"] = torch.zeros(320, 768)
    elif how == "missing":
        del pairs["5.to_v_ip.weight"]
    elif how == "extra":
        pairs["0.to_q_lora.down.weight"] = torch.zeros(4, 4)
    elif how == "empty":
        pairs.clear()
    elif how == "own":
        parts["unet"] = {"down": torch.zeros(1)}
    elif how == "plus":
        projection["latents"] = projection.pop("proj.weight")
    return parts


@pytest.mark.parametrize("mode", ["pooled"], indirect=True)
@pytest.mark.parametrize(
    ("how", "words"),
    [
        ("shape", r"3.to_k_ip.weight is (320, 768), and this U-Net needs (48, 64)"),
        ("missing", "5.to_v_ip.weight is missing"),
        ("extra", "holds 0.to_q_lora.down.weight"),
        ("empty", "its part ip_adapter is empty"),
        ("own", "holds 'unet' besides image_proj and ip_adapter"),
        ("plus", "image_proj.proj.weight is missing"),
    ],
)
def test_another_file_is_refused_and_changes_nothing(
    make_adapter: Callable[..., Any],
    parts: Parts,
    tmp_path: Path,
    mode: str,
    how: str,
    words: str,
) -> None:
    adapter = make_adapter(mode)
    before = adapter.proj.weight.clone()
    suffix = ".bin" if how == "empty" else ".safetensors"  # safetensors has no empty dicts.
    file = write(spoil(parts, how), tmp_path / f"ip{suffix}")
    with pytest.raises(UserError) as caught:
        load_init(adapter, str(file))
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)
    if how != "plus":
        assert torch.equal(adapter.proj.weight, before)


def test_a_pickle_that_would_run_code_is_refused(tmp_path: Path) -> None:
    class Harm:
        def __reduce__(self) -> tuple[Any, ...]:
            return print, ("run!",)

    torch.save({"image_proj": Harm(), "ip_adapter": {}}, tmp_path / "ip.bin")
    with pytest.raises(UserError, match="is refused") as caught:
        check_init(str(tmp_path / "ip.bin"))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["ip.safetensors", "ip.bin"])
def test_a_damaged_file_is_one_line(parts: Parts, tmp_path: Path, name: str) -> None:
    file = write(parts, tmp_path / name)
    file.write_bytes(file.read_bytes()[:100])
    with pytest.raises(UserError, match="ip") as caught:
        read(file)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["no.safetensors", "folder", "run.txt"])
def test_a_missing_path_is_one_line(tmp_path: Path, name: str) -> None:
    with pytest.raises(UserError, match="neither an adapter folder"):
        check_init(str(tmp_path / name))


def test_a_run_or_a_folder_of_runs_as_init_is_told_where_its_adapter_is(tmp_path) -> None:
    adapter = tmp_path / "runs" / "a" / "adapter"
    adapter.mkdir(parents=True)
    (adapter / "config.json").write_text("{}")
    with pytest.raises(UserError, match=f"it is a run: give {adapter}$"):
        check_init(str(adapter.parent))
    with pytest.raises(UserError, match=f"give one of them: {adapter.parent}$"):
        check_init(str(tmp_path / "runs"))


def test_a_folder_of_another_mode_is_refused(
    make_adapter: Callable[..., Any], tmp_path: Path
) -> None:
    make_adapter("pooled").save_pretrained(tmp_path)
    check_init(str(tmp_path))
    with pytest.raises(UserError, match="its mode is"):
        load_init(make_adapter("queries"), str(tmp_path))
    whole = make_adapter("pooled")
    torch.nn.init.zeros_(whole.proj.weight)
    load_init(whole, str(tmp_path))
    assert torch.equal(whole.proj.weight, make_adapter("pooled").proj.weight)


def test_the_command_exports(
    make_adapter: Callable[..., Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    make_adapter("pooled").save_pretrained(tmp_path / "run" / "adapter")
    run = str(tmp_path / "run")
    out = tmp_path / "new" / "ours.safetensors"
    command.run([run, "--out", str(out)])
    assert capsys.readouterr().out == f"IP-Adapter file: {out}\n"
    assert len(load_file(out)) == 12
    with pytest.raises(UserError, match=r"ends in \.safetensors"):
        command.run([run, "--out", str(tmp_path / "ours.bin")])
    with pytest.raises(UserError, match="--out FILE"):
        command.run([run])
