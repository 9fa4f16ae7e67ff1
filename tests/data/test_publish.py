import os
from pathlib import Path

import pytest

from acontrol.data.publish import check_new, put_in_place, work_folder
from acontrol.errors import UserError


def written(work: Path) -> Path:
    (work / "images").mkdir(parents=True)
    (work / "images" / "000.png").write_bytes(b"pixels")
    (work / "job.json").write_text("{}")
    return work


def tree(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*"))


@pytest.mark.parametrize("exists", [False, True])
def test_a_new_folder_appears_at_once(tmp_path: Path, exists: bool) -> None:
    out = tmp_path / "out"
    if exists:
        out.mkdir()
    check_new(out)
    work = work_folder(out)
    assert work == tmp_path / ".out.partial"
    put_in_place(written(work), out, last="job.json")
    assert tree(tmp_path) == ["out", "out/images", "out/images/000.png", "out/job.json"]


@pytest.mark.parametrize("out", [".", "..", "inner/.."])
def test_the_current_directory_is_filled(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, out: str
) -> None:
    (tmp_path / "inner").mkdir()
    monkeypatch.chdir(tmp_path / "inner" if out == ".." else tmp_path)
    if out != "..":
        (tmp_path / "inner").rmdir() if out == "." else None
    place = Path(out).resolve()
    work = work_folder(Path(out))
    assert work == place / ".partial"
    put_in_place(written(work), Path(out), last="job.json")
    assert {"images", "job.json"} <= {path.name for path in place.iterdir()}
    assert not work.exists()


def test_a_mount_point_is_filled() -> None:
    assert os.path.ismount("/proc")
    assert work_folder(Path("/proc")) == Path("/proc/.partial")


def test_the_mark_of_completeness_comes_last_and_a_move_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    work = written(work_folder(Path()))
    (work / "zebra").write_text("last by name")
    (tmp_path / "zebra").mkdir()  # A file does not replace a folder.
    with pytest.raises(OSError, match="zebra"):
        put_in_place(work, Path(), last="job.json")
    assert tree(work) == ["job.json", "zebra"]
    assert tree(tmp_path / "images") == ["000.png"]
    (tmp_path / "zebra").rmdir()
    assert work_folder(Path()) == work
    put_in_place(work, Path(), last="job.json")
    assert tree(tmp_path) == ["images", "images/000.png", "job.json", "zebra"]


def test_work_beside_is_found_from_inside(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    work = written(work_folder(out))
    out.mkdir()
    monkeypatch.chdir(out)
    assert work_folder(Path()) == work
    put_in_place(work, Path(), last="job.json")
    assert tree(out) == ["images", "images/000.png", "job.json"]


def test_another_folder_or_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    written(tmp_path / "full")
    for name in ("file", "full"):
        with pytest.raises(UserError, match="is not empty: name another --output"):
            check_new(tmp_path / name, "--output")
    with pytest.raises(UserError, match="is a file: name another"):
        check_new(tmp_path / "file" / "below")
    (tmp_path / ".partial").mkdir()
    (tmp_path / "only").mkdir()
    (tmp_path / "only" / ".partial").mkdir()
    check_new(tmp_path / "only")


@pytest.mark.skipif(os.getuid() == 0, reason="root may write everywhere")
def test_a_place_that_cannot_be_written_to_is_refused(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(UserError, match="cannot be written to"):
        check_new(tmp_path / "out")
    tmp_path.chmod(0o700)
