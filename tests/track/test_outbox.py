"""What a run says arrives once, in order, whatever the server does meanwhile."""

from __future__ import annotations

import threading
import time
from pathlib import Path

import pytest

from medspark.track import outbox
from medspark.track.outbox import Entry, Outbox, Refused, kept


class Server:
    """Takes entries while it is up; ``bad`` ones it refuses, ``poison`` it fails at."""

    def __init__(self) -> None:
        self.up = threading.Event()
        self.points: list[tuple[str, int]] = []
        self.words: dict[str, str] = {}
        self.files: dict[str, str] = {}
        self.calls = 0

    def send(self, entry: Entry, folder: Path) -> None:
        self.calls += 1
        if not self.up.is_set():
            raise ConnectionError
        if entry.kind == "metrics":
            self.points += [(name, step) for name, _, _, step in entry.content]
        elif entry.kind == "file":
            self.files[entry.content["folder"]] = (folder / entry.content["name"]).read_text()
        elif "poison" in entry.content:
            raise ZeroDivisionError
        elif "bad" in entry.content:
            raise Refused("no")
        else:
            self.words |= entry.content


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Server:
    monkeypatch.setattr(outbox, "PAUSE_S", 0.02)
    monkeypatch.setattr(outbox, "LONGEST_PAUSE_S", 0.04)
    monkeypatch.setattr(outbox, "FLUSH_S", 0.05)
    return Server()


def box(server: Server, folder: Path) -> Outbox:
    return Outbox(server.send, server.up.is_set, folder / "box")


def metric(step: int) -> Entry:
    return Entry("metrics", [["loss", 1.0, 0, step]])


def test_a_server_that_is_away_delays_and_loses_nothing(server: Server, tmp_path: Path) -> None:
    sender = box(server, tmp_path)
    started = time.perf_counter()
    for step in range(3000):
        sender.put(metric(step))
    picture = tmp_path / "picture.txt"
    picture.write_text("first")
    sender.put_file(picture, "pictures")
    picture.write_text("changed afterwards")
    assert time.perf_counter() - started < 1.0, "a call waits for no server"
    time.sleep(0.1)
    assert not server.points and server.calls
    server.up.set()
    sender.put(Entry("tags", {"a": "b"}))
    assert sender.close(10)
    assert server.points == [("loss", step) for step in range(3000)]
    assert server.files == {"pictures": "first"} and server.words == {"a": "b"}
    assert not sender.folder.exists()


def test_metrics_go_in_batches(server: Server, tmp_path: Path) -> None:
    server.up.set()
    sender = box(server, tmp_path)
    for step in range(2500):
        sender.put(metric(step))
    assert sender.flush(5) and sender.close(5)
    assert len(server.points) == 2500 and server.calls < 50


def test_what_is_refused_or_hopeless_does_not_hold_up_the_rest(server: Server, tmp_path: Path) -> None:
    server.up.set()
    sender = box(server, tmp_path)
    sender.put(Entry("tags", {"bad": "x"}))
    sender.put(Entry("tags", {"poison": "x"}))
    sender.put(Entry("tags", {"good": "x"}))
    assert sender.close(10)
    assert server.words == {"good": "x"} and sender.refused == 2


def test_what_cannot_be_sent_is_kept(server: Server, tmp_path: Path) -> None:
    sender = box(server, tmp_path)
    (tmp_path / "f").write_text("x")
    sender.put_file(tmp_path / "f", "folder")
    sender.put(metric(1))
    assert not sender.close(0.2)
    left = kept(sender.folder)
    assert [entry.kind for entry in left] == ["file", "metrics"] and left[1] == metric(1)
    server.up.set()
    for entry in left:
        server.send(entry, sender.folder)
    assert server.files == {"folder": "x"} and server.points == [("loss", 1)]


def test_a_closed_box_takes_no_more_and_closes_again(server: Server, tmp_path: Path) -> None:
    server.up.set()
    sender = box(server, tmp_path)
    sender.put(metric(1))
    assert sender.close(5) and sender.close(5)
    sender.put(metric(2))
    assert sender.close(5) and server.points == [("loss", 1)]


def test_memory_is_bounded(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(outbox, "MOST_POINTS", 100)
    sender = box(server, tmp_path)
    for step in range(150):
        sender.put(metric(step))
    server.up.set()
    assert sender.close(5)
    assert len(server.points) == 100 and sender.lost == 50
