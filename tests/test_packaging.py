"""What a release holds, and what it says of itself."""

import configparser
import itertools
import re
import shlex
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement

from acontrol import __version__

ROOT = Path(__file__).parents[1]


def setup() -> configparser.ConfigParser:
    parser = configparser.ConfigParser()
    parser.read(ROOT / "setup.cfg")
    return parser


def requirements(text: str) -> list[Requirement]:
    return [Requirement(line) for line in text.split("\n") if line.strip()]


def test_a_requirement_has_a_floor_and_a_ceiling() -> None:
    for requirement in requirements(setup()["options"]["install_requires"]):
        signs = {part.operator for part in requirement.specifier}
        if requirement.name == "fsspec":  # Its versions are dates.
            assert signs == {">="}
        else:
            assert signs == {">=", "<"}, requirement


def test_the_pinned_versions_are_within_the_bounds() -> None:
    pinned = dict(
        line.split("==")
        for line in (ROOT / "constraints.txt").read_text().split("\n")
        if "==" in line and not line.startswith("#")
    )
    parser = setup()
    texts = [parser["options"]["install_requires"], *parser["options.extras_require"].values()]
    found = 0
    for requirement in (one for text in texts for one in requirements(text)):
        if version := pinned.get(requirement.name):
            assert requirement.specifier.contains(version), requirement
            found += 1
    assert found > 10


def test_the_citation_is_of_this_version_and_names_the_paper() -> None:
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert citation["cff-version"] == "1.2.0"
    assert citation["version"] == __version__
    paper = citation["preferred-citation"]
    assert paper["title"].startswith("AnomalyControl: Learning Cross-modal Semantic Features")
    names = [author["family-names"] for author in paper["authors"]]
    assert ", ".join(names) in (ROOT / "README.md").read_text()
    assert "doi" not in paper


@pytest.mark.skipif(not (ROOT / ".git").exists(), reason="not a checkout")
def test_what_the_readme_writes_is_ignored_by_git() -> None:
    text = (ROOT / "README.md").read_text()
    written = set()
    for block in re.findall(r"```bash\n(.*?)```", text, re.S):
        words = shlex.split(block, comments=True)
        for option, value in itertools.pairwise(words):
            if option in ("--out", "--output"):
                written.add(f"{value}/" if "." not in value else value)
    assert {"shards/", "runs/tile/", "base/"} <= written
    for path in written | {"runs/mlflow.db", "base-training/"}:
        asked = subprocess.run(["git", "check-ignore", "-q", path], cwd=ROOT, check=False)
        assert asked.returncode == 0, f"{path} is not in .gitignore"


@pytest.mark.slow
def test_the_archives_hold_everything(tmp_path: Path) -> None:
    """The sdist holds all that git knows, the wheel all that runs."""
    asked = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True)
    if asked.returncode:
        pytest.skip("not a checkout")
    tracked = set(asked.stdout.split("\n")) - {""}
    source = tmp_path / "source"
    for name in tracked:  # Without what lies about in the checkout.
        (source / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(ROOT / name, source / name)
    for kind in ("sdist", "wheel"):
        code = f"from setuptools.build_meta import build_{kind} as b; b({str(tmp_path)!r})"
        subprocess.run(
            [sys.executable, "-c", code], cwd=source, check=True, capture_output=True
        )
    (archive,) = tmp_path.glob("*.tar.gz")
    with tarfile.open(archive) as tar:
        held = {name.partition("/")[2] for name in tar.getnames()}
    assert tracked - held == {".gitignore"}
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as unpacked:
        names = set(unpacked.namelist())
        (metadata,) = (name for name in names if name.endswith("dist-info/METADATA"))
        fields = unpacked.read(metadata).decode().partition("\n\n")[0]
    run = {name for name in tracked if name.split("/")[0] in ("acontrol", "launch", "tune")}
    assert run <= names
    assert not any(name.startswith(("tests/", "benchmarks/", "docs/")) for name in names)
    assert "License: Apache-2.0" in fields
    assert "Project-URL" not in fields  # There is none yet: better none than a wrong one.
