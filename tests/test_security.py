"""Nothing that is read is executed; commands in the docs and versions are no way in either."""

import ast
import configparser
import gzip
import hashlib
import io
import json
import pickle
import re
import tarfile
import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import webdataset
from packaging.requirements import Requirement
from PIL import EpsImagePlugin, Image

from acontrol.data import reader
from acontrol.data.images import read_image
from acontrol.data.index import INDEX_NAME
from acontrol.data.mvtec import open_folder
from acontrol.data.reader import ShardReader
from acontrol.data.shards import write_shards
from acontrol.errors import UserError
from launch import shard, train
from tests.data.damaging import EPS

ROOT = Path(__file__).parents[1]
PYTHON = sorted(
    file
    for folder in ("acontrol", "launch", "tune", "examples", "benchmarks", "deploy")
    for file in (ROOT / folder).rglob("*.py")
)
TEXTS = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])

MODULES = {"pickle", "_pickle", "dill", "cloudpickle", "joblib", "shelve", "marshal"}
CALLS = {
    *("eval", "exec", "compile", "__import__", "execfile"),
    *("os.system", "os.popen", "subprocess.getoutput", "subprocess.getstatusoutput"),
    *("torch.load", "torch.save", "torch.jit.load", "torch.hub.load", "torch.package"),
    *("yaml.unsafe_load", "yaml.full_load", "yaml.load_all", "pandas.read_pickle"),
    *("mlflow.pyfunc.load_model", "shutil.unpack_archive", "runpy.run_path"),
    *("webdataset.WebDataset", "webdataset.autodecode.basichandlers"),
}
METHODS = {"extractall", "to_pickle"}
OPTIONS = {"shell", "trust_remote_code", "custom_pipeline", "allow_pickle"}
COMMANDS = r"pipe:|(trust_remote_code|custom_pipeline|allow_pickle)$"


def offences(source: str) -> Iterator[str]:
    """Uses of what executes data or commands, under whatever name it was imported."""
    tree = ast.parse(source)
    names: dict[str, str] = {}
    safe_loaders = {"yaml.SafeLoader"}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                names[alias.asname or alias.name.split(".")[0]] = (
                    alias.name if alias.asname else alias.name.split(".")[0]
                )
                if alias.name.split(".")[0] in MODULES:
                    yield alias.name
        elif isinstance(node, ast.ImportFrom):
            if (node.module or "").split(".")[0] in MODULES:
                yield node.module or ""
            for alias in node.names:
                names[alias.asname or alias.name] = f"{node.module}.{alias.name}"
        elif isinstance(node, ast.ClassDef):
            if [ast.unparse(base) for base in node.bases] == ["yaml.SafeLoader"]:
                safe_loaders.add(node.name)
        elif isinstance(node, ast.Constant) and re.match(COMMANDS, str(node.value)):
            yield str(node.value)
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call):
            continue
        first, dot, rest = ast.unparse(node.func).partition(".")
        called = names.get(first, first) + dot + rest
        options = {
            keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords if keyword.arg
        }
        if (
            called in CALLS
            or called.rpartition(".")[2] in METHODS
            or called.startswith("os.exec")
        ):
            yield called
        yield from OPTIONS & options.keys()
        if options.get("weights_only", "True") != "True":
            yield "weights_only"
        if called == "yaml.load" and options.get("Loader") not in safe_loaders:
            yield called
        if called.endswith(".from_pretrained"):
            is_weights = not re.search(r"(Tokenizer|Config|Scheduler)\.from", called)
            if is_weights and options.get("use_safetensors") != "True":
                yield f"{called} without use_safetensors"


@pytest.mark.parametrize("file", PYTHON, ids=lambda file: file.relative_to(ROOT).as_posix())
def test_nothing_that_executes_data_is_used(file: Path) -> None:
    result = list(offences(file.read_text()))
    if file.name in ("ip_adapter.py", "convert_lpips.py", "convert_inception.py", "lite0.py"):
        # What others publish as pickles is read for weights alone.
        loads = re.findall(r"torch\.load\((.*)\)", file.read_text())
        assert loads and all(args.endswith("weights_only=True") for args in loads)
        result = [name for name in result if name != "torch.load"]
    assert result == []


@pytest.mark.parametrize(
    "source",
    [
        "import pickle",
        "import cloudpickle as c",
        "from pickle import loads",
        "import torch\ntorch.load('x')",
        "import torch as t\nt.load('x', weights_only=True)",
        "from torch import load as get\nget('x')",
        "from torch import save\nsave(1, 'x')",
        "f(x, weights_only=False)",
        "f(x, weights_only=flag)",
        "import tarfile\ntarfile.open('x').extractall()",
        "import numpy as np\nnp.load('x', allow_pickle=True)",
        "kind.from_pretrained('x')",
        "kind.from_pretrained('x', use_safetensors=True, trust_remote_code=True)",
        "kind.from_pretrained('x', use_safetensors=True, **{'trust_remote_code': True})",
        "Pipeline.from_pretrained('x', use_safetensors=True, custom_pipeline='x')",
        "import subprocess\nsubprocess.run('x', shell=True)",
        "import os\nos.system('x')",
        "from os import system\nsystem('x')",
        "import os\nos.execv('x', [])",
        "eval('1')",
        "exec('1')",
        "import yaml\nyaml.load('x', Loader=yaml.Loader)",
        "import mlflow\nmlflow.pyfunc.load_model('x')",
        "import webdataset as wds\nwds.WebDataset('x')",
        "url = 'pipe:cat x'",
    ],
)
def test_the_check_sees_it(source: str) -> None:
    assert list(offences(source))


class Payload:
    """What executes when it is unpickled."""

    def __init__(self, proof: Path) -> None:
        self.proof = proof

    def __reduce__(self) -> tuple[object, tuple[str, str]]:
        return open, (str(self.proof), "w")


def payloads(proof: Path) -> dict[str, bytes]:
    """A member of each kind that webdataset's own decoders execute."""
    plain = pickle.dumps(Payload(proof))
    weights = io.BytesIO()
    torch.save({"weight": Payload(proof)}, weights)
    return {
        **dict.fromkeys(("pkl", "pyd", "pickle"), plain),
        "pth": weights.getvalue(),
        "pkl.gz": gzip.compress(plain),
    }


@pytest.mark.parametrize("kind", ["pkl", "pyd", "pickle", "pth", "pkl.gz"])
def test_webdatasets_decoders_execute_a_member_and_ours_do_not(
    tmp_path: Path, kind: str
) -> None:
    proof = tmp_path / "executed"
    content = payloads(proof)[kind]
    stock = webdataset.autodecode.Decoder([webdataset.autodecode.imagehandler("pil")])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)  # It leaves the file open.
        stock({"__key__": "a", kind: content})
    assert proof.exists(), "the payload is dead, so this proves nothing"
    proof.unlink()
    assert reader._decoder()({"__key__": "a", kind: content})[kind] == content
    assert not proof.exists()


@pytest.fixture
def folder(built_in_data: Path, tmp_path: Path) -> Path:
    images = open_folder(built_in_data).labelled("train")
    write_shards(images, tmp_path / "s", split="train")
    return tmp_path / "s"


@pytest.mark.parametrize("place", ["appended", "instead"])
def test_a_planted_member_is_never_executed(folder: Path, tmp_path: Path, place: str) -> None:
    """Also where whoever planted it made the checksums fit."""
    proof = tmp_path / "executed"
    index = json.loads((folder / INDEX_NAME).read_text())
    (entry,) = index["shards"]
    tar, sample = folder / entry["name"], entry["samples"][0]
    with tarfile.open(tar, "a") as archive:
        for kind, content in payloads(proof).items():
            info = tarfile.TarInfo(f"{sample['key']}.{kind}")
            info.size = len(content)
            where = archive.offset + tarfile.BLOCKSIZE
            archive.addfile(info, io.BytesIO(content))
            if place == "instead" and kind == "pkl":
                digest = hashlib.sha256(content).hexdigest()
                sample["members"][2] |= {"offset": where, "size": info.size, "sha256": digest}
    entry |= {
        "size": tar.stat().st_size,
        "sha256": hashlib.sha256(tar.read_bytes()).hexdigest(),
    }
    (folder / INDEX_NAME).write_text(json.dumps(index))
    reader = ShardReader(str(folder))
    if place == "appended":
        assert len([reader.read(number) for number in range(len(reader))]) == 6
    else:
        with pytest.raises(UserError, match=re.escape(f"{sample['key']}.png at offset")):
            reader.read(0)
    assert not proof.exists()


@pytest.mark.parametrize("target", ["/etc/passwd", "../outside"])
@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE])
def test_a_link_in_a_tar_is_never_followed(
    folder: Path, tmp_path: Path, kind: bytes, target: str
) -> None:
    index = json.loads((folder / INDEX_NAME).read_text())
    (entry,) = index["shards"]
    member = entry["samples"][0]["members"][0]
    tar = folder / entry["name"]
    content = bytearray(tar.read_bytes())
    info = tarfile.TarInfo(member["name"])
    info.type, info.linkname, info.size = kind, target, member["size"]
    content[member["offset"] - 512 : member["offset"]] = info.tobuf(tarfile.USTAR_FORMAT)
    tar.write_bytes(content)
    entry["sha256"] = hashlib.sha256(content).hexdigest()
    (folder / INDEX_NAME).write_text(json.dumps(index))
    before = sorted(tmp_path.rglob("*"))
    ShardReader(str(folder)).read(0)  # The bytes at the offset, whatever the header says.
    assert sorted(tmp_path.rglob("*")) == before


def test_no_image_starts_ghostscript(
    built_in_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    started: list[object] = []

    def ghostscript(*args: object, **kwargs: object) -> object:
        started.append(args)
        return Image.new("RGB", (4, 4)).im

    monkeypatch.setattr(EpsImagePlugin, "Ghostscript", ghostscript)
    path = tmp_path / "x.png"
    path.write_bytes(EPS)
    with Image.open(path) as image:
        image.load()
    assert len(started) == 1, "the picture is dead, so this proves nothing"
    with pytest.raises(UserError, match="is not a PNG"):
        read_image(path)
    with pytest.raises(webdataset.autodecode.DecodingError):
        reader._decoder()({"png": EPS})
    assert len(started) == 1


@pytest.mark.parametrize(
    "place",
    ["pipe:touch x", "PIPE:touch x", "pipe://touch x", "simplecache::file://x", "zip://x::y"],
)
def test_shards_come_from_plain_storage_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    monkeypatch.chdir(tmp_path)
    for call in (
        lambda: ShardReader(place),
        lambda: train.run(["tiny", "--data.shards", place, "--output", "run"]),
    ):
        with pytest.raises(UserError, match="a storage URI") as caught:
            call()
        assert place in str(caught.value) and "\n" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_with_a_colon_has_a_way_in(folder: Path, monkeypatch) -> None:
    folder.rename(folder.with_name("v1:final"))
    monkeypatch.chdir(folder.parent)
    assert len(ShardReader("./v1:final")) == len(ShardReader(str(folder.with_name("v1:final"))))


def test_shards_on_storage_without_its_package_are_one_line() -> None:
    with pytest.raises(UserError, match=r"shards smb://x/y: ") as caught:
        ShardReader("smb://x/y")
    assert "\n" not in str(caught.value)


def test_a_name_cannot_lead_out_of_the_shards(built_in_data: Path, tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "wood").symlink_to(built_in_data / "wood")
    shard.run([str(tmp_path / "data"), "--out", str(tmp_path / "s")])
    for file in (tmp_path / "s").glob("*.tar"):
        with tarfile.open(file) as archive:
            for info in archive:
                assert info.isreg() and not info.name.startswith(("/", "."))
                assert ".." not in info.name.split("/")


RAY = re.compile(r"^\s*(?:\S+=\S+ )*ray (?:start|job)\b", re.MULTILINE)


def blocks(text: str) -> list[str]:
    return re.findall(r"^```[a-z]*\n(.*?)^```", text, re.MULTILINE | re.DOTALL)


def test_every_ray_command_in_the_docs_has_a_token() -> None:
    result = [
        (file.name, block)
        for file in TEXTS
        for block in blocks(file.read_text())
        if RAY.search(block)
    ]
    assert len(result) >= 3
    for name, block in result:
        first = RAY.search(block).start()
        assert "RAY_AUTH_MODE=token" in block[: first + 60], f"{name}: {block}"
    assert RAY.search("RAY_X=60 ray start --head") and not RAY.search("see `ray start`")


def test_no_command_in_the_docs_listens_to_everyone() -> None:
    for file in TEXTS:
        for block in blocks(file.read_text()):
            assert "0.0.0.0" not in block, f"{file.name}: {block}"


def test_every_ray_cluster_that_is_deployed_has_a_token() -> None:
    for file in (ROOT / "deploy").rglob("*.y*ml"):
        if re.search(r"kind: Ray(Cluster|Job|Service)", file.read_text()):
            assert re.search(r"authOptions:\s+mode: token", file.read_text()), file


# What is known of each release below; the floor is the first without any of it.
VULNERABLE = [
    ("ray", "2.53.0", "CVE-2026-27482, deletes without authentication"),
    ("ray", "2.51.0", "CVE-2023-48022, no authentication at all"),
    ("mlflow", "3.16.1", "CVE-2026-116690, reads files"),
    ("mlflow", "3.17.1", "CVE-2026-53995, the file store"),
    ("mlflow", "3.7.0", "CVE-2026-2033, runs code"),
    ("torch", "2.5.1", "CVE-2025-32434, weights_only runs code"),
    ("torch", "2.9.1", "CVE-2026-24747, weights_only runs code"),
    ("diffusers", "0.37.1", "CVE-2026-44513, around trust_remote_code"),
]


def requirements() -> dict[str, Requirement]:
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg")
    lines = setup["options"]["install_requires"].split("\n")
    parsed = [Requirement(line) for line in lines if line.strip()]
    return {requirement.name: requirement for requirement in parsed}


@pytest.mark.parametrize(("package", "version", "why"), VULNERABLE)
def test_floors_exclude_vulnerable_releases(package: str, version: str, why: str) -> None:
    assert not requirements()[package].specifier.contains(version), why


def test_pinned_versions_meet_the_floors() -> None:
    pins = re.findall(
        r"^([\w-]+)==(\S+)$", (ROOT / "constraints.txt").read_text(), re.MULTILINE
    )
    needed = requirements()
    checked = [(name, pin) for name, pin in pins if name in needed]
    assert {"ray", "mlflow", "torch", "diffusers", "webdataset"} <= {
        name for name, _ in checked
    }
    for name, pin in checked:
        assert needed[name].specifier.contains(pin), f"{name}=={pin}"
