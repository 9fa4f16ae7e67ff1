import io
import json
import shutil
from pathlib import Path

import pytest
from PIL import Image

from acontrol.data.images import encode_png
from acontrol.errors import UserError
from acontrol.generation.job import FORMAT
from acontrol.generation.run import generate
from acontrol.generation.settings import GenerationConfig
from acontrol.networks.locate import built_in_adapter
from acontrol.studio.drawing import FairQueue
from acontrol.studio.keeping import Kept
from tests.studio.conftest import Browser, Serve, drawing, open_studio


def files(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


def refused(answer: tuple[int, object], status: int = 400) -> str:
    """The one line of a refusal."""
    got, body = answer
    assert got == status, body
    assert isinstance(body, dict)
    text = str(body["error"])
    assert text
    assert "\n" not in text
    return text


def bomb(side: int) -> bytes:
    """A small file of a huge picture."""
    return encode_png(Image.new("1", (side, side), 1))


def test_a_folder_of_an_earlier_version_goes_on(tmp_path: Path) -> None:
    Kept(tmp_path, {"model": "a"})
    for file in tmp_path.rglob("job.json"):
        file.write_text(file.read_text().replace(FORMAT, "acontrol-generation-2"))
    Kept(tmp_path, {"model": "a"})
    with pytest.raises(UserError, match=r"other settings \(model: a -> b\)"):
        Kept(tmp_path, {"model": "b"})


def test_users_take_turns() -> None:
    queue = FairQueue(99)
    queue.put("a", ["a1", "a2", "a3"])
    queue.put("b", ["b1"])
    queue.put("c", ["c1", "c2"])
    assert [queue.place(name) for name in ("a1", "b1", "c1", "a2", "c2", "a3")] == [*range(6)]
    taken = [queue.take() for _ in range(6)]
    assert taken == ["a1", "b1", "c1", "a2", "c2", "a3"]


def test_more_than_fit_are_refused() -> None:
    queue = FairQueue(2)
    queue.put("a", ["a1"])
    queue.refuse_more(1)
    with pytest.raises(UserError, match="1 drawings wait already"):
        queue.refuse_more(2)


def test_what_must_not_be_is_refused_and_writes_nothing(
    built_in_data: Path, tmp_path: Path, serve: Serve
) -> None:
    studio = open_studio(built_in_data, tmp_path / "kept")
    browser = serve(studio)
    good = drawing(browser)
    before = files(tmp_path)
    names = ("../../etc/passwd", "/etc/passwd", "..", "upload:../../x", "upload:" + "f" * 32)
    for name in names:
        refused(browser.ask("/api/draw", good | {"normal": name}))
        refused(browser.ask("/api/draw", good | {"mask": name}))
        refused(browser.ask("/api/draw", good | {"reference": name}))
        refused(browser.ask("/api/draw", good | {"category": name}))
    assert browser.ask("/api/thumbnail/wood/..%2F..%2F..%2Fetc%2Fpasswd")[0] in (400, 404)
    assert browser.ask("/page/..%2Fsettings.py")[0] == 404
    assert browser.ask("/api/drawing/..%2F..%2Fjob/image")[0] in (400, 404)
    assert "too large" in refused(
        browser.ask("/api/mask", b"x", {"Content-Length": str(10**12)}), 413
    )
    assert "over" in refused(browser.ask("/api/upload", bomb(10_000)))
    assert "over" in refused(browser.ask("/api/mask", bomb(10_000)))
    assert "1 to 16" in refused(browser.ask("/api/draw", good | {"count": 10_000}))
    refused(browser.ask("/api/draw", good | {"steps": 900}))
    refused(browser.ask("/api/draw", good | {"steps": "2"}))
    refused(browser.ask("/api/draw", good | {"out": "/tmp/x"}))
    refused(browser.ask("/api/draw", b"[" * 10**5))
    assert files(tmp_path) == before


def test_a_link_out_of_the_data_is_refused(
    built_in_data: Path, tmp_path: Path, serve: Serve
) -> None:
    data = tmp_path / "data"
    shutil.copytree(built_in_data, data)
    secret = tmp_path / "secret.png"
    link = next((data / "wood" / "train" / "good").iterdir())
    link.rename(secret)
    link.symlink_to(secret)
    browser = serve(open_studio(data, tmp_path / "kept"))
    text = refused(browser.ask("/api/draw", drawing(browser, normal=link.name)))
    assert "leads out of" in text


def test_strangers_are_refused(built_in_data: Path, tmp_path: Path, serve: Serve) -> None:
    studio = open_studio(built_in_data, tmp_path / "kept")
    local = serve(studio)
    assert "127.0.0.1 only" in refused(local.ask("/", headers={"Host": "evil.example"}), 403)
    crossed = local.ask("/api/export/coco", b"", {"Origin": "http://evil.example"})
    assert "another site" in refused(crossed, 403)
    guarded = serve(studio, "s3cret")
    assert "token is needed" in refused(guarded.ask("/api/state"), 401)
    assert "token is needed" in refused(guarded.ask("/api/state?token=guess"), 401)
    assert guarded.ask("/?token=s3cret")[0] == 200
    assert guarded.ask("/api/state")[0] == 200  # By the cookie.


def test_accepted_drawings_survive_a_kill_and_replay_to_the_same_bytes(
    built_in_data: Path, tmp_path: Path, serve: Serve
) -> None:
    out = tmp_path / "kept"
    studio = open_studio(built_in_data, out)
    browser = serve(studio)
    ids = browser.get("/api/draw", drawing(browser, count=4))["ids"]
    for name in ids[:3]:
        studio._draw(name)
    for name in ids[:2]:
        browser.get(f"/api/drawing/{name}/keep", b"")
    browser.get(f"/api/drawing/{ids[2]}/reject", b"")
    wood = [path for path in files(out) if path.startswith("wood")]
    accepted = {path: (out / path).read_bytes() for path in wood}
    assert len(accepted) == 4
    # As after a kill between the decision and the data set: only the decision is there.
    for path in ("manifest.jsonl", "job.json", *accepted):
        (out / path).unlink()
    again = open_studio(built_in_data, out)
    assert {path: (out / path).read_bytes() for path in accepted} == accepted
    states = [again.kept.get(name).state for name in ids]
    assert states == ["kept", "kept", "rejected", "waiting"]
    assert again.queue.take() == ids[3]
    config = GenerationConfig(
        model=str(built_in_adapter()), data=built_in_data, out=tmp_path / "new", replay=out
    )
    generate(config)
    for path, content in accepted.items():
        assert (tmp_path / "new" / path).read_bytes() == content


def test_pictures_show_the_place_close_up_and_whole(
    built_in_data: Path, tmp_path: Path, serve: Serve
) -> None:
    studio = open_studio(built_in_data, tmp_path / "kept")
    browser = serve(studio)
    (name,) = browser.get("/api/draw", drawing(browser))["ids"]
    studio._draw(name)
    with Image.open(str(studio.kept.get(name).request.mask)) as painted:
        left, top, right, bottom = painted.getbbox() or (0, 0, 0, 0)
    side = 3 * max(right - left, bottom - top)
    for kind in ("image", "normal", "mask", "difference"):
        whole = Image.open(io.BytesIO(browser.get(f"/api/drawing/{name}/{kind}")))
        near = Image.open(io.BytesIO(browser.get(f"/api/drawing/{name}/{kind}?near")))
        assert whole.size == (64, 64)
        assert near.size == (min(64, side + 1), min(64, side + 1)) != whole.size
        assert near.convert("RGB").tobytes() in tiles(whole.convert("RGB"), near.size)


def tiles(picture: Image.Image, size: tuple[int, int]) -> list[bytes]:
    """Every part of that size."""
    width, height = size
    return [
        picture.crop((x, y, x + width, y + height)).tobytes()
        for x in range(picture.width - width + 1)
        for y in range(picture.height - height + 1)
    ]


def test_a_deleted_one_comes_back(built_in_data: Path, tmp_path: Path, serve: Serve) -> None:
    out = tmp_path / "kept"
    studio = open_studio(built_in_data, out)
    browser = serve(studio)
    (name,) = browser.get("/api/draw", drawing(browser))["ids"]
    studio._draw(name)
    browser.get(f"/api/drawing/{name}/keep", b"")
    before = {path: (out / path).read_bytes() for path in files(out) if ".studio" not in path}
    browser.get(f"/api/drawing/{name}/delete", b"")
    assert [path for path in files(out) if path.startswith("wood")] == []
    assert (out / "manifest.jsonl").read_text() == ""
    browser.get(f"/api/drawing/{name}/keep", b"")
    after = {path: (out / path).read_bytes() for path in files(out) if ".studio" not in path}
    assert after == before


def test_what_is_accepted_is_exported(
    built_in_data: Path, tmp_path: Path, serve: Serve
) -> None:
    out = tmp_path / "kept"
    studio = open_studio(built_in_data, out)
    browser = serve(studio)
    assert "nothing is accepted" in refused(browser.ask("/api/export/coco", b""))
    (name,) = browser.get("/api/draw", drawing(browser))["ids"]
    studio._draw(name)
    browser.get(f"/api/drawing/{name}/keep", b"")
    for _ in range(2):  # Also over an earlier one.
        browser.get("/api/export/coco", b"")
        browser.get("/api/export/shards", b"")
    content = json.loads(
        (out / "coco" / "wood" / "annotations" / "instances_default.json").read_text()
    )
    assert [row["area"] for row in content["annotations"]] == [16 * 16]
    assert list((out / "shards").glob("*.tar"))


def test_a_drawing_is_cancelled_while_it_is_drawn(
    built_in_data: Path, tmp_path: Path, serve: Serve
) -> None:
    studio = open_studio(built_in_data, tmp_path / "kept")
    browser = serve(studio)
    (name,) = browser.get("/api/draw", drawing(browser, steps=8))["ids"]
    seen = []
    watch = studio.method.watch
    assert watch is not None

    def cancel(step: int, steps: int, latents: object) -> None:
        seen.append(step)
        if step == 3:
            assert browser.ask(f"/api/drawing/{name}/preview")[0] == 200
            studio.act(name, "cancel")
        watch(step, steps, latents)

    studio.method.watch = cancel
    studio._draw(name)
    assert seen == [1, 2, 3]
    assert studio.kept.get(name).state == "cancelled"


def test_browsers_see_their_own_drawings(
    built_in_data: Path, tmp_path: Path, serve: Serve
) -> None:
    studio = open_studio(built_in_data, tmp_path / "kept")
    one = serve(studio)
    other = Browser(one.address)
    mine = one.get("/api/draw", drawing(one, count=2))["ids"]
    theirs = other.get("/api/draw", drawing(other, seed=8))["ids"]
    assert {row["id"] for row in one.get("/api/drawings")["drawings"]} == {*mine}
    assert {row["id"] for row in other.get("/api/drawings")["drawings"]} == {*theirs}
    assert [studio.queue.take() for _ in range(3)] == [mine[0], theirs[0], mine[1]]


def test_runs_and_registered_models_are_listed(
    built_in_data: Path, tmp_path: Path, serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    from acontrol.runs.mlflow_client import client_of

    uri = f"sqlite:///{tmp_path / 'mlflow.db'}"
    client = client_of(uri)
    run = client.create_run(client.create_experiment("tiles"), run_name="first")
    client.log_param(run.info.run_id, "output", str(tmp_path / "gone"))
    client.create_registered_model("tile-defects")
    client.create_model_version("tile-defects", str(tmp_path), run.info.run_id)
    client.set_registered_model_alias("tile-defects", "champion", "1")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    found = serve(open_studio(built_in_data, tmp_path / "kept")).get("/api/runs")
    assert found["models"] == [
        {
            "name": "tile-defects",
            "version": "1",
            "aliases": ["champion"],
            "uri": "models:/tile-defects/1",
        }
    ]
    assert [(row["name"], row["experiment"], row["output"]) for row in found["runs"]] == [
        ("first", "tiles", None)
    ]


def test_asea_lowers_the_energy_that_is_shown(
    built_in_data: Path, tmp_path: Path, serve: Serve
) -> None:
    browser = serve(open_studio(built_in_data, tmp_path / "kept"))
    key = browser.get("/api/category/wood")["references"][0]["key"]
    still = browser.get(f"/api/understand?reference={key}&steps=0")
    assert still["before"] == still["after"]
    assert len(still["energies"]) == 1
    moved = browser.get(f"/api/understand?reference={key}&steps=5")
    assert moved["before"] != moved["after"]
    assert len(moved["energies"]) == 6
    assert moved["energies"][0] == still["energies"][0] > moved["energies"][-1]
    assert "whole number" in refused(browser.ask(f"/api/understand?reference={key}&steps=99"))
