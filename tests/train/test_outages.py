"""MLflow away: a real server behind a line that is disturbed."""

import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import mlflow
import pytest
from PIL import Image

from acontrol.config import RunConfig
from acontrol.errors import UserError
from acontrol.runs import outbox
from acontrol.runs.outbox import EventQueue
from acontrol.runs.server import TrackingStore
from acontrol.runs.tracking import Tracker
from acontrol.train.engine import AdapterEngine
from acontrol.train.loop import StepReport, train
from benchmarks.mlflow_proxy import Proxy, Server
from tests.train.ranks import run_ranks
from tests.train.test_loop import Notes, setting, shards  # noqa: F401

LIMIT_S = 60.0
OUTAGES = ("refuse", "hang", "500", "deaf")


@pytest.fixture(scope="module")
def server(tmp_path_factory) -> Iterator[Server]:
    server = Server(tmp_path_factory.mktemp("server")).start()
    yield server
    server.kill()


@pytest.fixture
def proxy(server, monkeypatch) -> Iterator[Proxy]:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    monkeypatch.setattr(outbox, "PAUSES_S", (0.1, 0.2))
    monkeypatch.setattr(outbox, "EVERY_S", 0.1)
    proxy = Proxy(server.port)
    proxy.set("pass")
    yield proxy
    proxy.set("refuse")


def until(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + LIMIT_S
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def waiting(tracker: Tracker) -> int:
    return sum(queue.waiting() for queue in EventQueue.all_in(tracker.folder))


def log_steps(tracker: Tracker, first: int, last: int) -> None:
    for step in range(first, last + 1):
        tracker.log_metrics({"rate": 0.5, "loss": 1 / step}, step)
        if step % 10 == 0:
            tracker.log_image(Image.new("RGB", (9, 9), (step, 0, 0)), "samples", step)
            tracker.set_tag("newest", str(step))


def holds_each_once(server: Server, run_id: str, last: int) -> None:
    """Every step once, in one run, with its values, pictures and newest tag."""
    client = mlflow.MlflowClient(tracking_uri=server.uri)
    run = client.get_run(run_id)
    assert len(client.search_runs([run.info.experiment_id])) == 1
    for name, values in (
        ("rate", [0.5] * last),
        ("loss", [1 / step for step in range(1, last + 1)]),
    ):
        history = client.get_metric_history(run_id, name)
        steps = [
            (metric.step, metric.value)
            for metric in sorted(history, key=lambda metric: metric.step)
        ]
        assert steps == list(enumerate(values, 1))
    assert run.data.tags["newest"] == str(last // 10 * 10)
    pictures = [file.path for file in client.list_artifacts(run_id, "images")]
    assert len(pictures) == 2 * (last // 10)
    assert run.info.status == "FINISHED"


@pytest.mark.parametrize("how", OUTAGES)
def test_nothing_is_lost_and_nobody_waits(
    server, proxy, tmp_path, how, caplog, monkeypatch
) -> None:
    tracker = Tracker.open(
        TrackingStore(proxy.uri), how, "r", None, tmp_path, resolved={"a": {"b": 1}}
    )
    log_steps(tracker, 1, 12)
    until(lambda: not waiting(tracker))
    proxy.set(how)
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "1")
    caplog.clear()
    log_steps(tracker, 13, 23)
    tracker.flush()
    until(lambda: f"events wait in {tracker.folder}" in caplog.text)
    # All of it with the server still away: whoever logs has not waited for it.
    log_steps(tracker, 24, 35)
    assert waiting(tracker) >= 24
    assert proxy.mode == how
    assert how == "refuse" or proxy.seen
    monkeypatch.delenv("MLFLOW_HTTP_REQUEST_TIMEOUT")
    proxy.set("pass")
    assert tracker.finish("FINISHED")
    holds_each_once(server, tracker.run_id, 35)
    assert not list(tracker.folder.glob("files/*")), "pictures stay no longer than they wait"


def trainings(shards: str, port: int, folder: str) -> dict[str, list[list[float]]]:  # noqa: F811
    """The same training with every outage from its second step to its last: losses, twice."""
    os.environ |= {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0", "MLFLOW_HTTP_REQUEST_TIMEOUT": "5"}
    outbox.EVERY_S, results = 0.05, {}
    for how in ("pass", *OUTAGES):
        proxy = Proxy(port)
        proxy.set("pass")
        tracker = Tracker.open(
            TrackingStore(proxy.uri), "trained", how, None, Path(folder, how)
        )

        class Logs(Notes):
            def on_step(self, report: StepReport) -> None:
                super().on_step(report)
                if report.step == 2:
                    proxy.set(how)  # noqa: B023
                tracker.log_metrics({"loss": report.loss}, report.step)  # noqa: B023

        model, stream, _ = setting(shards, validation={"every": 0})
        engine = AdapterEngine(model.adapter, model.config, None)
        notes = Logs()
        train(model, stream.batches(0, 4, 0, 1, 4), engine, model.config, notes)
        proxy.set("pass")
        assert tracker.finish("FINISHED")
        history = tracker.client.get_metric_history(tracker.run_id, "loss")
        held = [metric.value for metric in sorted(history, key=lambda metric: metric.step)]
        results[how] = [[report.loss for report in notes.reports], held]
    return results


@pytest.mark.slow  # A process's imports.
def test_losses_are_the_same_bits_and_all_there(server, shards, tmp_path) -> None:  # noqa: F811
    results = run_ranks(trainings, 1, tmp_path, shards, server.port, str(tmp_path))
    losses, _ = results["pass"]
    assert len(set(losses)) == 4
    for how in ("pass", *OUTAGES):
        assert results[how] == [losses, losses]


def test_a_restart_sends_what_was_left_to_the_same_run(server, proxy, tmp_path, capsys) -> None:
    config = RunConfig(tracking={"uri": proxy.uri, "experiment": "restart", "wait_s": 0.2})
    first = Tracker.start(config, tmp_path, None)
    log_steps(first, 1, 10)
    until(lambda: not waiting(first))
    proxy.set("refuse")
    log_steps(first, 11, 25)
    assert not first.finish("KILLED")
    printed = capsys.readouterr().out
    assert f"cannot be reached: {waiting(first)} events wait in {first.folder}" in printed
    # As if it had been killed between sending and noting that, and in the middle of a line.
    (file,) = first.folder.glob("*.jsonl")
    file.with_suffix(".sent").unlink()
    with file.open("a") as stream:
        stream.write('{"time": 1, "kind": "met')
    # MLflow is still away: a run that it knows starts all the same, a new one does not.
    again = Tracker.start(config, tmp_path, first.run_id)
    with pytest.raises(UserError, match=f"MLflow at {proxy.uri}"):
        Tracker.start(config, tmp_path / "new", None)
    log_steps(again, 21, 32)  # From the last checkpoint on: some steps come again.
    again.wait_s = LIMIT_S
    proxy.set("pass")
    assert again.finish("FINISHED")
    holds_each_once(server, first.run_id, 32)


def test_what_mlflow_refuses_for_good_does_not_hold_up_the_rest(
    server, proxy, tmp_path
) -> None:
    tracker = Tracker.open(TrackingStore(proxy.uri), "refusal", "r", None, tmp_path)
    log_steps(tracker, 1, 3)
    tracker.log_metrics({"a name: of no metric?!": 1.0}, 1)
    log_steps(tracker, 4, 11)
    tracker.event("step 7 skipped")
    assert tracker.finish("FINISHED")
    holds_each_once(server, tracker.run_id, 11)
    tags = mlflow.MlflowClient(tracking_uri=server.uri).get_run(tracker.run_id).data.tags
    assert [value for name, value in tags.items() if name.startswith("event.")] == [
        "step 7 skipped"
    ]
    (refused,) = tracker.folder.glob("*.refused")
    assert refused.read_text().count("of no metric") >= 1


def test_half_lines_and_damaged_lines_are_passed_over(tmp_path: Path, caplog) -> None:
    queue = EventQueue(tmp_path / "a.jsonl")
    queue.append({"n": 1})
    queue.append({"n": 2})
    with queue.file.open("a") as stream:
        stream.write("\0\0\0\n")
    queue.append({"n": 3})
    with queue.file.open("a") as stream:
        stream.write('{"n": 4')
    queue.close()
    read = EventQueue(queue.file)
    assert [event["n"] for event, _ in read.events()] == [1, 2, 3]
    # Half a line is no damage yet: its writer may be about to finish it.
    assert caplog.text.count("damaged before byte") == 1
    (_, _), (_, second), _ = read.events()
    read.acknowledge(second)
    assert read.waiting() == 1
    read.acknowledge(5)  # Somebody who is late.
    assert [event["n"] for event, _ in read.events(read.sent)] == [3]
    with queue.file.open("a") as stream:  # The writer finishes the line.
        stream.write("}\n")
    assert [event["n"] for event, _ in read.events(read.sent)] == [3, 4]


def test_a_full_disk_loses_an_event_and_nothing_else(tmp_path: Path, monkeypatch) -> None:
    queue = EventQueue(tmp_path / "a.jsonl")
    queue.append({"n": 1})
    write, full = outbox.os.write, iter([5, OSError(28, "No space left on device")])

    def short(descriptor: int, line: bytes) -> int:
        how = next(full, len(line))
        if isinstance(how, OSError):
            raise how
        return int(write(descriptor, line[:how]))

    monkeypatch.setattr(outbox.os, "write", short)
    for number in (2, 3, 4):
        queue.append({"n": number})
    queue.close()
    assert [event["n"] for event, _ in EventQueue(queue.file).events()] == [1, 4]


def test_events_are_sent_in_order_and_again_from_the_first_unsent(tmp_path: Path) -> None:
    queue = EventQueue(tmp_path / "a.jsonl")
    for number in range(2 * outbox.BATCH + 3):
        queue.append({"n": number})
    queue.close()
    seen: list[int] = []

    def fails_once(events: list[outbox.Event]) -> None:
        seen.extend(event["n"] for event in events)
        if len(seen) == 2 * outbox.BATCH:
            raise ConnectionError

    assert outbox.Uploader([queue], fails_once).stop(LIMIT_S)
    repeated = list(range(outbox.BATCH, 2 * outbox.BATCH))
    last = list(range(2 * outbox.BATCH, 2 * outbox.BATCH + 3))
    assert seen == [*range(outbox.BATCH), *repeated, *repeated, *last]
