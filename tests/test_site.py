"""The pages of docs/ build as a site without a warning, and need no network."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.mark.slow
def test_the_site_builds_strictly_and_stands_alone(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "sphinx", "-W", "--keep-going", "-q", "docs", str(tmp_path)],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stderr) == (0, "")
    pages = {page.stem for page in (ROOT / "docs").glob("*.md")} | {"index"}
    assert pages <= {file.stem for file in tmp_path.glob("*.html")}
    # Nothing that a browser would load from elsewhere.
    loaded = re.compile(r"<(?:script|img|link|iframe)\b[^>]*(?:src|href)=\"https?:")
    assert [
        file.name for file in tmp_path.glob("*.html") if loaded.search(file.read_text())
    ] == []


def test_every_page_is_in_the_site_s_contents() -> None:
    contents = (ROOT / "docs" / "index.rst").read_text().split()
    assert {page.stem for page in (ROOT / "docs").glob("*.md")} - {*contents} == set()
