"""A watched folder: what may be taken when, and real receivers, slow writers and kills around the job."""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import threading
import time
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pydicom
import pytest

from medspark import config
from medspark.errors import BadRequest
from medspark.keys import Ids
from medspark.lake import ingest, scan
from medspark.lake.arrivals import Arrivals
from medspark.lake.scan import Found, Scanned, reader
from medspark.lake.store import Lake
from medspark.lake.watch import Watch, check
from medspark.series.dicomweb import Access
from medspark.series.kind import series_kind
from tests.lake import harness
from tests.lake.test_dicomweb import real_files
from tests.phantoms import series as phantoms

SEED = int(os.environ.get("MEDSPARK_KILL_SEED", "20261127"))
EARLY = 1_000_000  # a modification time long ago, microseconds


def file(name: str, size: int = 10, modified_us: int = EARLY) -> Found:
    return Found(f"file:///in/{name}", size, modified_us)


def scanned(found: Found) -> Scanned:
    return Scanned(found, "ab", header={"kind": "dicom"})


# ---- what may be taken when (no Spark, no clock)


def test_two_looks_settle_a_file() -> None:
    arrivals, a = Arrivals(30, 0), file("a")
    assert arrivals.look([a], 0, 1e6) == []
    assert arrivals.look([a], 29, 1e6) == []
    assert arrivals.look([a], 30, 1e6) == [a]
    assert arrivals.look([a], 31, 1e6) == [a], "it is shown until it is held"
    arrivals.hold([scanned(a)], {})
    assert arrivals.look([a], 32, 1e6) == []


def test_a_file_that_changes_starts_anew_even_after_it_was_scanned() -> None:
    arrivals, short, grown = Arrivals(30, 600), file("a", 10), file("a", 20)
    arrivals.look([short], 0, 1e6)
    assert arrivals.look([short], 30, 1e6) == [short]
    arrivals.hold([scanned(short)], {short.uri: "series:1"})
    assert arrivals.look([grown], 40, 1e6) == []
    assert arrivals.quiet(1e5) == []
    assert arrivals.look([grown], 70, 1e6) == [grown]


def test_a_young_file_waits_by_its_own_time_and_a_fast_server_clock_delays_none() -> None:
    arrivals, young, future = Arrivals(30, 0), file("y", modified_us=10**12 - 5_000_000), file("f", modified_us=10**12 + 3600 * 10**6)
    arrivals.look([young, future], 0, 1e6)
    assert arrivals.look([young, future], 30, 1e6) == [future]
    assert arrivals.look([young, future], 60, 1e6 + 60) == [young, future]


def test_a_series_waits_until_nothing_of_it_has_come() -> None:
    arrivals, a, b, other = Arrivals(0, 600), file("a"), file("b"), file("o")
    arrivals.look([], 0, 1e6)
    arrivals.look([a, other], 10, 1e6)
    arrivals.hold([scanned(a), scanned(other)], {a.uri: "series:1", other.uri: "series:2"})
    assert arrivals.quiet(500) == []
    arrivals.look([a, b, other], 500, 1e6)
    arrivals.hold([scanned(b)], {b.uri: "series:1"})
    assert [[one.found for one in group] for group in arrivals.quiet(611)] == [[other]]
    assert [[one.found for one in group] for group in arrivals.quiet(1100)] == [[a, b]]
    assert len(arrivals) == 0


def test_what_lay_there_before_the_first_look_is_as_old_as_it_says() -> None:
    arrivals, old, recent = Arrivals(0, 600), file("old"), file("recent", modified_us=round((1e6 - 100) * 1e6))
    arrivals.look([old, recent], 0, 1e6)
    arrivals.hold([scanned(old), scanned(recent)], {old.uri: "series:1", recent.uri: "series:2"})
    assert [[one.found for one in group] for group in arrivals.quiet(0)] == [[old]]
    assert [[one.found for one in group] for group in arrivals.quiet(500)] == [[recent]]


def test_what_has_no_parent_waits_for_nobody_and_what_goes_is_forgotten() -> None:
    arrivals, broken, gone = Arrivals(0, 600), file("broken"), file("gone")
    arrivals.look([], 0, 1e6)
    arrivals.look([broken, gone], 1, 1e6)
    arrivals.look([broken], 2, 1e6)
    arrivals.hold([Scanned(broken, "", code="TRUNCATED", message="x")], {})
    assert [[one.found for one in group] for group in arrivals.quiet(2)] == [[broken]]
    assert len(arrivals) == 0


def test_a_file_that_cannot_be_read_is_tried_ever_more_rarely() -> None:
    arrivals, locked, tried = Arrivals(10, 0), file("locked"), []
    for now in range(400):
        if arrivals.look([locked], now, 1e6):
            tried.append(now)
            arrivals.put_back(locked, now)
    assert tried == [10, 20, 40, 80, 160, 320]
    assert arrivals.unread == 1
    opened = file("locked", 11)
    arrivals.look([opened], 400, 1e6)
    assert arrivals.look([opened], 410, 1e6) == [opened]
    assert arrivals.unread == 0


def test_waiting_files_are_bounded_and_all_come() -> None:
    arrivals, files, taken = Arrivals(10, 600, most=7), [file(f"{n:03d}") for n in range(50)], []
    for turn in range(20):
        left = [one for one in files if one not in taken]
        settled = arrivals.look(left, turn * 10, 1e6)
        assert len(arrivals) <= 7
        arrivals.hold(map(scanned, settled), {one.uri: "series:" + one.uri for one in settled})
        taken += [one.found for group in arrivals.quiet(turn * 10) for one in group]
    assert sorted(taken, key=lambda one: one.uri) == files


@pytest.mark.parametrize("seed", range(5))
def test_no_order_of_looks_loses_or_doubles_a_file(seed: int) -> None:
    """Files appear and grow at random; each is taken once per size, and its last size is taken."""
    chance, arrivals = random.Random(seed), Arrivals(5, 20, most=30)
    there: dict[str, int] = {}
    taken: list[Found] = []
    for now in range(400):
        if now < 200 and chance.random() < 0.5:
            name = f"{chance.randrange(40)}"
            there[name] = there.get(name, 0) + 1
        left = [one for one in (file(name, size) for name, size in there.items()) if one not in taken]
        settled = arrivals.look(left, now, 1e6)
        arrivals.hold(map(scanned, settled), {one.uri: f"series:{one.uri[-1]}" for one in settled})
        taken += [one.found for group in arrivals.quiet(now) for one in group]
    assert len(taken) == len(set(taken))
    assert {file(name, size) for name, size in there.items()} <= set(taken)


def test_requests_that_are_refused() -> None:
    for folder, once, retry, dry, said in (
        ("dicomweb+https://h/w", False, False, False, "--input"),
        (__file__, False, False, False, "no such folder"),
        (".", False, True, False, "add --once"),
        (".", True, False, True, "exclude each other"),
    ):
        with pytest.raises(BadRequest, match=said):
            check(folder, once, retry, dry)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--input", ".", "--watch", "."], "not allowed with argument"),
        ([], "one of the arguments --input --watch is required"),
        (["--input", ".", "--once"], "--once belongs to --watch"),
        (["--watch", "/nowhere"], "--watch /nowhere: no such folder"),
        (["--watch", ".", "--set", "watch.settle=3"], "did you mean 'settle_s'"),
    ],
)
def test_bad_requests_of_the_job(tmp_path: Path, arguments: list[str], said: str) -> None:
    process = harness.job("explode_series", "--lake", tmp_path / "lake", *arguments)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 2 and said in err and out == "", err
    assert len(err.strip().splitlines()) == 1


def test_a_file_that_cannot_be_read_is_absent_and_not_rejected(tmp_path: Path) -> None:
    """Gone since it was listed, or (a folder in its place) in the way of every reader: the ledger must not hold it against the file."""
    (tmp_path / "folder").mkdir()
    (tmp_path / "text.txt").write_text("no image")
    read = reader(series_kind(), Ids(harness.KEY), config.Config(), "test", Access())
    found = [Found(f"file://{tmp_path}/{name}", 8, EARLY) for name in ("gone", "folder", "text.txt")]
    results = list(read(found, lambda source, what="": None, 0))  # type: ignore[arg-type]
    assert [(one.absent, one.code) for one in results] == [(True, ""), (True, ""), (False, "")]
    assert [one.message for one in results[:2]] == [
        f"a file could not be read ({kind})" for kind in ("FileNotFoundError", "IsADirectoryError")
    ]


# ---- with Spark


def watching(spark: Any, lake: Path, folder: Path, *settings: str, once: bool = True) -> Watch:
    given = config.load(None, ["watch.settle_s=0.4", "watch.poll_s=0.3", "series.quiet_s=2", *settings])
    asked = ingest.Request((str(folder),), dataset="test")
    return Watch(ingest.Ingest(Lake(spark, str(lake)), series_kind(), Ids(harness.KEY), given, asked), once)


@pytest.mark.spark
@pytest.mark.slow
def test_a_ledger_that_is_kept_sees_what_others_bring(spark: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scan, "RECENT", 3)  # one source beside the sorted ones, then two, then all sorted together
    folder, lake = tmp_path / "in", tmp_path / "lake"
    phantoms.write_series(folder / "0", [0])
    harness.run(spark, lake, [folder])
    watch = watching(spark, lake, folder)
    ledger = watch.ingest.ledger()
    for turn in range(1, 5):
        phantoms.write_series(folder / str(turn), [0], SeriesInstanceUID=f"{phantoms.ROOT}5{turn}", SOPInstanceUID=(f"6.{turn}",))
        found = list(scan.walk([f"file://{folder}"], [], Access()))
        assert [ledger.knows("test", one) for one in found] == [True] * turn + [False]
        assert not ledger.knows("other", found[0])
        harness.run(spark, lake, [folder])
        ledger.refresh()
        assert all(ledger.knows("test", one) for one in found)


@pytest.mark.spark
@pytest.mark.slow
def test_once_takes_what_stands_still_and_each_file_once(spark: Any, tmp_path: Path) -> None:
    folder = phantoms.write_series(tmp_path / "in", [0, 2, 4])
    lake = tmp_path / "lake"
    growing = folder / "growing.dcm"
    whole = phantoms.write_series(tmp_path / "later", [6], SOPInstanceUID=("7.1",)) / "IM0000.dcm"
    stop = threading.Event()

    def grow() -> None:
        with growing.open("wb") as stream:
            stream.write(whole.read_bytes()[:600])
            while not stop.wait(0.02):
                stream.write(b"\0")
                stream.flush()

    writer = threading.Thread(target=grow)
    writer.start()
    try:
        watch = watching(spark, lake, folder)
        watch.arrivals.most = 2  # not all that is there may wait at once
        first = watch.run()
    finally:
        stop.set()
        writer.join()
    assert (first.written["slices"], first.rejected, first.extra["waiting"]) == (3, 0, 1)
    assert {Path(row["uri"]).name for row in harness.rows(lake, "sources")} == {"IM0000.dcm", "IM0001.dcm", "IM0002.dcm"}

    time.sleep(0.5)  # the copy has stalled: a short file that looks finished
    growing.write_bytes(whole.read_bytes()[:-10])
    time.sleep(0.5)
    stalled = watching(spark, lake, folder).run()
    assert (stalled.written["slices"], stalled.rejected) == (0, 1)
    growing.write_bytes(whole.read_bytes())
    mended = watching(spark, lake, folder).run()
    assert (mended.written["slices"], mended.rejected) == (1, 0)
    again = watching(spark, lake, folder).run()
    assert again.written["slices"] == again.new_sources == 0
    assert harness.rows(lake, "series")[0]["n_slices"] == 4
    harness.keys_unique(lake)
    shutil.copy2(growing, whole)
    harness.run(spark, tmp_path / "plain", [folder])
    assert harness.content(lake, ("slices", "series", "pixels")) == harness.content(tmp_path / "plain", ("slices", "series", "pixels"))


@pytest.mark.spark
@pytest.mark.slow
def test_a_zip_is_opened_up_as_for_input(spark: Any, tmp_path: Path) -> None:
    """Members of two series, a bad one among them, beside a file of one of the series; the zip is still being copied at the first looks."""
    one = phantoms.write_series(tmp_path / "one", [0, 2, 4])
    two = phantoms.write_series(tmp_path / "two", [0, 3], SeriesInstanceUID=phantoms.ROOT + "22", SOPInstanceUID=("8.1", "8.2"))
    whole = tmp_path / "case.zip"
    with zipfile.ZipFile(whole, "w") as made:
        for path in [*sorted(one.iterdir())[:2], *sorted(two.iterdir())]:
            made.write(path, f"{path.parent.name}/{path.name}")
        made.writestr("../outside.dcm", b"x")
        made.writestr("inner.zip", b"x")
    folder, lake = tmp_path / "in", tmp_path / "lake"
    folder.mkdir()
    shutil.copy2(sorted(one.iterdir())[2], folder)
    watch = watching(spark, lake, folder, "watch.settle_s=1.5", once=False)
    data, seen = whole.read_bytes(), []

    def copy() -> None:
        with (folder / "case.zip").open("wb") as stream:
            for start in range(0, len(data), len(data) // 6):
                stream.write(data[start : start + len(data) // 6])
                stream.flush()
                time.sleep(0.25)
                seen.append(watch.ingest.summary.rejected)
        deadline = time.monotonic() + 60
        while watch.ingest.summary.written["slices"] < 5 and time.monotonic() < deadline:
            time.sleep(0.1)
        watch.stop.set()

    writer = threading.Thread(target=copy)
    writer.start()
    summary = watch.run()
    writer.join()
    assert not any(seen), "a zip that is still being copied is not rejected"
    assert (summary.written["slices"], summary.rejected) == (5, 2)
    assert {row["code"] for row in harness.rows(lake, "rejected")} == {"ARCHIVE_MEMBER"}
    again = watching(spark, lake, folder)
    assert again.run().new_sources == 0 and len(again._exhausted) == 1, "its directory is not read at every look"
    harness.run(spark, tmp_path / "plain", [folder])
    tables = ("slices", "series", "pixels", "rejected", "sources")
    assert harness.content(lake, tables) == harness.content(tmp_path / "plain", tables)


@pytest.mark.spark
@pytest.mark.slow
def test_a_series_is_taken_when_it_is_quiet(spark: Any, tmp_path: Path) -> None:
    source = sorted(phantoms.write_series(tmp_path / "source", [0, 2, 4, 6]).glob("*.dcm"))
    folder, lake = tmp_path / "in", tmp_path / "lake"
    folder.mkdir()
    watch = watching(spark, lake, folder, "series.quiet_s=3", once=False)
    came: list[float] = []

    def send() -> None:
        for path in source:
            time.sleep(1.0)
            shutil.copyfile(path, folder / path.name)
            came.append(time.monotonic())
        deadline = time.monotonic() + 60
        while watch.ingest.summary.written["slices"] < 4 and time.monotonic() < deadline:
            time.sleep(0.1)
        came.append(time.monotonic())
        watch.stop.set()

    sender = threading.Thread(target=send)
    sender.start()
    summary = watch.run()
    sender.join()
    assert summary.written["slices"] == 4
    assert len({row["batch_id"] for row in harness.rows(lake, "slices")}) == 1, "one batch: none was taken before the series was whole"
    assert came[-1] - came[-2] >= 3


# ---- a real receiver, a real sender, a job that is killed


@contextmanager
def receiver(folder: Path) -> Iterator[int]:
    """A storage receiver (C-STORE SCP) that writes each object under its final name, slowly, as careless ones do; yields its port."""
    from pynetdicom import AE, StoragePresentationContexts, evt
    from pynetdicom.sop_class import CTImageStorage  # type: ignore[attr-defined]

    def store(event: Any) -> int:
        data_set = event.dataset
        data_set.file_meta = event.file_meta
        name = folder / f"{data_set.SOPInstanceUID}.dcm"
        whole = folder.parent / "received.tmp"
        data_set.save_as(whole, enforce_file_format=True)
        data = whole.read_bytes()
        with name.open("wb") as stream:
            for start in range(0, len(data), len(data) // 4):
                stream.write(data[start : start + len(data) // 4])
                stream.flush()
                time.sleep(0.04)
        return 0

    entity = AE(ae_title="WATCHED")
    entity.supported_contexts = StoragePresentationContexts
    assert CTImageStorage
    server = entity.start_server(("127.0.0.1", 0), block=False, evt_handlers=[(evt.EVT_C_STORE, store)])
    try:
        yield server.server_address[1]
    finally:
        server.shutdown()


def send(port: int, files: list[Path]) -> None:
    """C-STORE of every file, uncompressed."""
    from pynetdicom import AE
    from pynetdicom.presentation import build_context

    sent = [pydicom.dcmread(path) for path in files]
    entity = AE(ae_title="SENDER")
    classes = sorted({(ds.SOPClassUID, ds.file_meta.TransferSyntaxUID) for ds in sent})
    entity.requested_contexts = [build_context(*pair) for pair in classes]
    association = entity.associate("127.0.0.1", port)
    assert association.is_established
    try:
        for ds in sent:
            assert association.send_c_store(ds).Status == 0
    finally:
        association.release()


@pytest.mark.spark
@pytest.mark.slow
def test_a_receiver_writes_while_the_job_watches_and_is_killed(spark: Any, tmp_path: Path) -> None:
    files = real_files()
    folder, lake = tmp_path / "in", tmp_path / "lake"
    folder.mkdir()
    options = ["--lake", lake, "--dataset", "test", "--watch", folder]
    for setting in ("watch.settle_s=0.5", "watch.poll_s=0.3", "series.quiet_s=1", "ingest.lease_s=5"):
        options += ["--set", setting]
    key = tmp_path / "key"
    options += ["--set", f"deid.key_file={key}"]
    chance = random.Random(SEED)
    with receiver(folder) as port:
        half = len(files) // 2
        sending = threading.Thread(target=lambda: (send(port, files[:half]), time.sleep(1), send(port, files[half:])))
        job = harness.job("explode_series", *options)
        try:
            wait_for(lambda: (lake / "_medspark" / "watch").exists(), job)
            sending.start()
            wait_for(lambda: bool(list((lake / "claims").glob("claim-*.parquet"))), job)
            time.sleep(chance.uniform(0.0, 1.5))
        finally:
            os.killpg(job.pid, signal.SIGKILL)
            job.communicate()
        job = harness.job("explode_series", *options)
        try:
            sending.join(60)
            assert not sending.is_alive()
            wait_for(lambda: len(harness.rows(lake, "sources")) == len(files), job)
            job.send_signal(signal.SIGTERM)
            summary = harness.ended(job)
        finally:
            if job.poll() is None:
                os.killpg(job.pid, signal.SIGKILL)
                job.communicate()
    assert summary["rejected"] == 0
    assert harness.rows(lake, "rejected") == harness.rows(lake, "claims") == []
    assert len(list(folder.glob("*.dcm"))) == len(files) == len(harness.rows(lake, "slices"))
    harness.keys_unique(lake)
    plain = harness.job(
        "explode_series", "--lake", tmp_path / "plain", "--dataset", "test", "--input", folder, "--set", f"deid.key_file={key}"
    )
    harness.ended(plain)
    assert harness.content(lake, ("slices", "series", "pixels")) == harness.content(tmp_path / "plain", ("slices", "series", "pixels"))


@pytest.mark.spark
@pytest.mark.slow
def test_one_watch_a_folder_and_a_signal_to_all_of_its_processes(tmp_path: Path) -> None:
    folder, lake = phantoms.write_series(tmp_path / "in", [0, 2]), tmp_path / "lake"
    options = ["--lake", lake, "--watch", folder, "--set", "watch.settle_s=0.2", "--set", "watch.poll_s=0.3", "--set", "series.quiet_s=0.5"]
    first = harness.job("explode_series", *options)
    second = None
    try:
        wait_for(lambda: len(harness.rows(lake, "sources")) == 2, first)
        second = harness.job("explode_series", *options)
        wait_for(lambda: first.poll() is not None or second.poll() is not None, second, running=False)
        loser, winner = (first, second) if first.poll() is not None else (second, first)
        _, err = loser.communicate(timeout=60)
        assert loser.returncode == 2 and "another job watches this folder" in err, err[-3000:]
        os.killpg(winner.pid, signal.SIGTERM)
        _, err = winner.communicate(timeout=60)
        assert winner.returncode == 130 and "run it again and it goes on where it stopped" in err, err[-3000:]
    finally:
        for job in filter(None, (first, second)):
            if job.poll() is None:
                os.killpg(job.pid, signal.SIGKILL)
                job.communicate()


def wait_for(condition: Any, job: subprocess.Popen[str], seconds: float = 150.0, running: bool = True) -> None:
    """``running`` : fails when the job ends before the condition holds."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert not running or job.poll() is None, f"the job ended with {job.returncode}: {job.stderr.read()[-3000:]}"  # type: ignore[union-attr]
        assert time.monotonic() < deadline, "it takes too long"
        time.sleep(0.2)
