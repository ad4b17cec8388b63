"""Archives: the same members as Python's zipfile reads, each refused alone where it is bad, none on a disk; DICOMDIRs; both through the engine."""

from __future__ import annotations

import io
import os
import random
import shutil
import struct
import warnings
import zipfile
import zlib
from pathlib import Path
from typing import Any

import pytest

from medspark import config
from medspark.config import Guard
from medspark.errors import Rejected
from medspark.labels.kind import labels_kind
from medspark.lake import archive
from medspark.photos.kind import photos_kind
from medspark.slides.kind import slides_kind
from tests.lake import harness
from tests.phantoms import photos as photo_phantoms
from tests.phantoms import series as phantoms
from tests.real import shared_data

GUARD = Guard()


def written(path: Path, members: dict[str, bytes], method: int = zipfile.ZIP_DEFLATED, **options: Any) -> Path:
    with zipfile.ZipFile(path, "w", method, **options) as made:
        for name, data in members.items():
            made.writestr(name, data)
    return path


def contents(path: Path, guard: Guard = GUARD) -> dict[str, bytes | str]:
    """Name -> bytes, or why it is refused."""
    found: dict[str, bytes | str] = {}
    for entry in archive.entries(str(path), guard):
        if entry.member is None:
            found[entry.name] = entry.reason
            continue
        try:
            with archive.in_memory(entry.member) as memory:
                assert memory.startswith("/proc/self/fd/")
                found[entry.name] = Path(memory).read_bytes()
        except Rejected as error:
            found[entry.name] = error.reason if error.code == "ARCHIVE_MEMBER" else error.code
    return found


@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
@pytest.mark.parametrize("seed", range(3))
def test_members_are_those_of_zipfile(tmp_path: Path, method: int, seed: int) -> None:
    rng = random.Random(seed)
    given = {f"a/{n}.dcm": rng.randbytes(size) + bytes(rng.randrange(3 << 20)) for n, size in enumerate((0, 1, 4096, 2 << 20, 70_000))}
    given |= {"ä/µ.png": b"x", "empty.txt": b""}
    path = written(tmp_path / "a.zip", given, method)
    assert contents(path) == given
    prefixed = tmp_path / "prefixed.zip"
    prefixed.write_bytes(b"#!/bin/sh\n" * 100 + path.read_bytes())  # an archive that unpacks itself
    assert contents(prefixed) == given


def test_zip64_comments_and_streamed_members(tmp_path: Path) -> None:
    given = {"a.dcm": bytes(1000), "b.dcm": b"b" * 77}
    with zipfile.ZipFile(tmp_path / "a.zip", "w", zipfile.ZIP_DEFLATED) as made:
        made.comment = b"PK\x05\x06 is no directory here " * 20
        for name, data in given.items():
            with made.open(name, "w", force_zip64=True) as member:
                member.write(data)
    assert contents(tmp_path / "a.zip") == given

    class Pipe(io.BytesIO):
        def seekable(self) -> bool:
            return False

        def seek(self, *_: Any) -> int:
            raise OSError

    stream = Pipe()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as made:  # sizes stand behind the data (bit 3)
        for name, data in given.items():
            made.writestr(name, data)
    (tmp_path / "b.zip").write_bytes(stream.getvalue())
    assert contents(tmp_path / "b.zip") == given


def test_zip64_directory(tmp_path: Path) -> None:
    """Offsets that only the zip64 fields hold: every 32-bit number of the directory is full."""
    data, name = b"pixels" * 50, b"deep.dcm"
    local = struct.pack("<4s5H3L2H", b"PK\x03\x04", 45, 0, 0, 0, 0, zlib.crc32(data), len(data), len(data), len(name), 0) + name + data
    extra = struct.pack("<2H3Q", 1, 24, len(data), len(data), 0)
    entry = struct.pack(
        "<4s6H3L5H2L",
        b"PK\x01\x02",
        45,
        45,
        0,
        0,
        0,
        0,
        zlib.crc32(data),
        0xFFFFFFFF,
        0xFFFFFFFF,
        len(name),
        len(extra),
        0,
        0,
        0,
        0,
        0xFFFFFFFF,
    )
    directory = entry + name + extra
    record = struct.pack("<4sQ2H2L4Q", b"PK\x06\x06", 44, 45, 45, 0, 0, 1, 1, len(directory), len(local))
    locator = struct.pack("<4sLQL", b"PK\x06\x07", 0, len(local) + len(directory), 1)
    end = struct.pack("<4s4H2LH", b"PK\x05\x06", 0, 0, 0xFFFF, 0xFFFF, 0xFFFFFFFF, 0xFFFFFFFF, 0)
    path = tmp_path / "a.zip"
    path.write_bytes(local + directory + record + locator + end)
    with zipfile.ZipFile(path) as oracle:
        assert oracle.read("deep.dcm") == data
    assert contents(path) == {"deep.dcm": data}


def test_bad_members_are_refused_alone(tmp_path: Path) -> None:
    names = [
        "good.dcm",
        "../up.dcm",
        "/etc/passwd",
        "a/../../b.dcm",
        "C:\\x.dcm",
        "\\\\host\\x.dcm",
        "inner.zip",
        "broken.dcm",
        "secret.dcm",
    ]
    path = written(tmp_path / "a.zip", {name: name.encode() * 40 for name in names}, zipfile.ZIP_STORED)
    with warnings.catch_warnings(), zipfile.ZipFile(path, "a", zipfile.ZIP_LZMA) as made:
        warnings.simplefilter("ignore")
        made.writestr("lzma.dcm", bytes(100))
        made.writestr("good.dcm", b"another of this name", zipfile.ZIP_STORED)
        made.writestr("__MACOSX/._good.dcm", b"hidden", zipfile.ZIP_STORED)
    data = bytearray(path.read_bytes())
    data[data.index(b"broken.dcm" * 40) + 100] ^= 1
    at = data.rindex(b"PK\x01\x02", 0, data.rindex(b"secret.dcm"))
    data[at + 8] |= 1  # says that it is encrypted
    path.write_bytes(data)
    found = archive.entries(str(path), GUARD)
    refused = {entry.name: entry.reason for entry in found if entry.reason}
    assert [entry.name for entry in found if not entry.reason] == ["good.dcm", "broken.dcm"]
    assert sorted(entry.name for entry in found) == sorted([*names, "lzma.dcm", "good.dcm"])
    assert "encrypted" in refused["secret.dcm"]
    assert "archive within" in refused["inner.zip"]
    assert "stored or deflated" in refused["lzma.dcm"]
    assert "second member" in refused["good.dcm"]
    assert sum("outside" in reason for reason in refused.values()) == 5
    assert contents(path)["broken.dcm"] == "the member's checksum is wrong"


def test_bombs(tmp_path: Path) -> None:
    bomb = written(tmp_path / "bomb.zip", {"zeros.dcm": bytes(80 << 20), "good.dcm": b"good"})
    found = {entry.name: entry.reason for entry in archive.entries(str(bomb), GUARD)}
    assert "inflates more than" in found["zeros.dcm"] and not found["good.dcm"]
    found = {entry.name: entry.reason for entry in archive.entries(str(bomb), Guard(max_file_bytes=1 << 20))}
    assert "guard.max_file_bytes" in found["zeros.dcm"]
    # A member that says less than it holds is stopped at what it says, and one that says more is not believed.
    data = bytearray(written(tmp_path / "liar.zip", {"zeros.dcm": bytes(30 << 20)}).read_bytes())
    at = data.index(b"PK\x01\x02")
    for said, reason in ((1000, "beyond the size"), (31 << 20, "ends early")):
        data[at + 24 : at + 28] = struct.pack("<L", said)
        (tmp_path / "liar.zip").write_bytes(data)
        assert reason in str(contents(tmp_path / "liar.zip")["zeros.dcm"])


def test_members_that_lie_over_each_other(tmp_path: Path) -> None:
    """A kilobyte that a thousand entries point at would be a thousand kilobytes (D. Fifield, A better zip bomb, 2019)."""
    path = written(tmp_path / "a.zip", {f"{n}.dcm": bytes(1000) for n in range(3)}, zipfile.ZIP_STORED)
    data = bytearray(path.read_bytes())
    second = data.index(b"PK\x01\x02", data.index(b"PK\x01\x02") + 1)
    data[second + 42 : second + 46] = struct.pack("<L", 100)  # begins within the first
    path.write_bytes(data)
    found = contents(path)
    assert "lies over another" in str(found["0.dcm"])
    assert isinstance(found["1.dcm"], str)
    assert found["2.dcm"] == bytes(1000)


def test_archives_that_are_none(tmp_path: Path) -> None:
    whole = written(tmp_path / "a.zip", {f"{n}.dcm": bytes(100) for n in range(20)}).read_bytes()
    for data, code in ((b"", "EMPTY_FILE"), (whole[:-40], "TRUNCATED"), (b"PK\x03\x04" + bytes(99), "TRUNCATED"), (b"no zip", "TRUNCATED")):
        (tmp_path / "b.zip").write_bytes(data)
        with pytest.raises(Rejected) as refused:
            archive.entries(str(tmp_path / "b.zip"), GUARD)
        assert refused.value.code == code
    rng, codes = random.Random(4), set()
    for _ in range(400):  # whatever is damaged, the answer is members, reasons or a refusal
        broken = bytearray(whole)
        for _ in range(rng.randrange(1, 6)):
            broken[rng.randrange(len(broken))] = rng.randrange(256)
        (tmp_path / "b.zip").write_bytes(broken)
        try:
            contents(tmp_path / "b.zip")
        except Rejected as error:
            codes.add(error.code)
    assert codes <= {"TRUNCATED", "TOO_LARGE"}


def test_nothing_reaches_a_disk_and_nothing_stays_open(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = written(tmp_path / "a.zip", {"a.dcm": bytes(1 << 20)})
    monkeypatch.setenv("TMPDIR", str(tmp_path / "no such folder"))
    before = set(os.listdir("/proc/self/fd"))
    (entry,) = archive.entries(str(path), GUARD)
    assert entry.member is not None
    with archive.in_memory(entry.member) as memory:
        assert "memfd:" in os.readlink(memory)
    assert set(os.listdir("/proc/self/fd")) == before
    assert sorted(item.name for item in tmp_path.iterdir()) == ["a.zip"]


# ---- through the engine


def zipped(path: Path, folder: Path, under: str = "") -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as made:
        for file in sorted(folder.rglob("*")):
            if file.is_file():
                made.write(file, under + str(file.relative_to(folder.parent)))
    return path


def said(lake: Path, table: str, *leave_out: str) -> list[dict[str, Any]]:
    rows = [{key: value for key, value in row.items() if key not in (*harness.BY_CHANCE, *leave_out)} for row in harness.rows(lake, table)]
    return sorted(rows, key=lambda row: str(row.get("image_id") or row.get("series_id") or row.get("subject_key")))


@pytest.mark.spark
def test_a_zipped_series_is_the_series(spark: Any, tmp_path: Path) -> None:
    folder = phantoms.write_series(tmp_path / "in" / "ct", [0, 2, 4, 6])
    (folder / "notes.txt").write_text("no image")
    packed = zipped(tmp_path / "ct.zip", folder)
    with zipfile.ZipFile(packed, "a") as made:
        made.writestr("../escape.dcm", b"x")
        made.writestr("ct/empty.dcm", b"")
        made.writestr("ct/cut.dcm", (folder / "IM0000.dcm").read_bytes()[:-10])  # ends within its pixels
    plain, lake = tmp_path / "plain", tmp_path / "lake"
    harness.run(spark, plain, [folder])
    summary = harness.run(spark, lake, [packed])
    assert (summary.written["slices"], summary.written["sources"], summary.rejected) == (4, 9, 3)
    for table in ("series", "slices", "pixels", "subjects"):
        assert said(lake, table, "source_id") == said(plain, table, "source_id")
    sources = {row["uri"]: row for row in harness.rows(lake, "sources")}
    assert sources[f"file://{packed}"]["kind"] == "archive" and sources[f"file://{packed}"]["status"] == "ok"
    assert sources[f"file://{packed}!ct/IM0002.dcm"]["status"] == "ok"
    rejected = {row["uri"].split("!")[1]: row["code"] for row in harness.rows(lake, "rejected")}
    assert rejected == {"../escape.dcm": "ARCHIVE_MEMBER", "ct/empty.dcm": "EMPTY_FILE", "ct/cut.dcm": "TRUNCATED"}
    again = harness.run(spark, lake, [packed])
    assert (again.written.total(), again.skipped) == (0, 9)
    harness.keys_unique(lake)
    assert harness.run(spark, lake, [packed], slides_kind()).written["slides"] == 0  # skipped with a hint: slides are read at any place


@pytest.mark.spark
def test_a_real_series_zipped(spark: Any, tmp_path: Path) -> None:
    folder = shared_data("ct/ge_head_tilt")
    packed = zipped(tmp_path / "head.zip", folder)
    plain, lake = tmp_path / "plain", tmp_path / "lake"
    harness.run(spark, plain, [folder])
    small = config.load(None, ["ingest.batch_sources=10"])  # the members come in several batches
    assert harness.run(spark, lake, [packed], settings=small).written["slices"] == 28
    for table in ("series", "slices", "pixels", "subjects"):
        assert said(lake, table, "source_id") == said(plain, table, "source_id")


@pytest.mark.spark
def test_an_archive_that_is_cut_off_and_comes_again(spark: Any, tmp_path: Path) -> None:
    packed = zipped(tmp_path / "in" / "ct.zip", phantoms.write_series(tmp_path / "in" / "ct", [0, 2]))
    shutil.rmtree(tmp_path / "in" / "ct")
    data = packed.read_bytes()
    packed.write_bytes(data[:-30])
    lake = tmp_path / "lake"
    summary = harness.run(spark, lake, [tmp_path / "in"])
    assert (summary.written["slices"], summary.rejected) == (0, 1)
    assert [(row["code"], row["uri"]) for row in harness.rows(lake, "rejected")] == [("TRUNCATED", f"file://{packed}")]
    packed.write_bytes(data)
    assert harness.run(spark, lake, [tmp_path / "in"]).written["slices"] == 2


@pytest.mark.spark
def test_photos_and_masks_in_archives(spark: Any, tmp_path: Path) -> None:
    picture = photo_phantoms.picture()
    packed = written(tmp_path / "photos.zip", {"cats/a.jpg": photo_phantoms.jpeg(picture), "dogs/b.png": photo_phantoms.png(picture)})
    lake = tmp_path / "lake"
    summary = harness.run(spark, lake, [packed], photos_kind("folder"))
    assert (summary.written["photos"], summary.rejected) == (2, 0)
    assert sorted(row["label"] for row in harness.rows(lake, "labels")) == ["cats", "dogs"]
    mask = photo_phantoms.png((picture[..., 0] > 127).astype("uint8"))
    masks = written(tmp_path / "masks.zip", {"b_mask.png": mask})
    assert harness.run(spark, lake, [masks], labels_kind("auto", None, None, explicit_dataset=False)).written["labels"] == 1
    row = next(row for row in harness.rows(lake, "labels") if row["label"] == "class_1")
    assert row["area_px"] == int((picture[..., 0] > 127).sum())


@pytest.mark.spark
def test_a_dicomdir_lists_its_files_once(spark: Any, tmp_path: Path) -> None:
    folder = tmp_path / "cd"
    shutil.copytree(shared_data("dicomdir/pydicom"), folder)
    walked, named, both = tmp_path / "walked", tmp_path / "named", tmp_path / "both"
    total = harness.run(spark, walked, [folder])
    assert (total.written["slices"], total.rejected) == (31, 0)
    harness.run(spark, named, [folder / "DICOMDIR"])
    harness.same(walked, named)
    again = harness.run(spark, named, [folder])
    assert (again.written.total(), again.skipped) == (0, 32)
    (folder / "98892003" / "MR1" / "4919").unlink()
    (folder / "77654033").rename(folder / "elsewhere")
    summary = harness.run(spark, both, [folder / "DICOMDIR", folder])
    assert summary.written["slices"] == 30  # those that were moved are found by the walk
    codes = {row["uri"].removeprefix(f"file://{folder}/"): row["code"] for row in harness.rows(both, "rejected")}
    assert codes["98892003/MR1/4919"] == "ARCHIVE_MEMBER" and set(codes.values()) == {"ARCHIVE_MEMBER"}
    assert len(codes) == 8 and sum(name.startswith("77654033/") for name in codes) == 7
    harness.keys_unique(both)
