"""The crosswalk: what goes in comes out, nothing can be read without the key, repeats change nothing."""

from __future__ import annotations

import io
from pathlib import Path

import pydicom
import pytest

from medspark import config
from medspark.deid.crosswalk import Crosswalk
from medspark.errors import BadRequest
from medspark.keys import Ids
from tests.phantoms import series as phantoms

KEY = bytes(range(32))
IDS = Ids(KEY)


def said(number: int, patient: str = "P1", series: str = "1.2.3") -> dict[str, str]:
    uids = {"SeriesInstanceUID": series, "StudyInstanceUID": "1.2", "FrameOfReferenceUID": "1.9"}
    return {"SOPInstanceUID": f"{series}.{number}", **uids, "PatientID": patient}


def files(where: Path) -> dict[str, bytes]:
    return {str(path.relative_to(where)): path.read_bytes() for path in sorted(where.rglob("*")) if path.is_file()}


def test_batches_add_up_and_repeats_write_the_same_bytes(tmp_path: Path) -> None:
    walk = Crosswalk.beside(tmp_path / "deid.key", KEY)
    walk.add([said(1), said(2), said(1, series="1.2.4")], IDS)
    first = files(tmp_path)
    Crosswalk.beside(tmp_path / "deid.key", KEY).add([said(2), said(1, series="1.2.4"), said(1)], IDS)
    assert files(tmp_path) == first
    walk.add([said(3)], IDS)
    series = walk.of(IDS.uid("1.2.3"))
    assert set(series.uids.values()) == {"1.2.3", "1.2", "1.9", "1.2.3.1", "1.2.3.2", "1.2.3.3"}
    assert all(IDS.uid(original) == pseudonym for pseudonym, original in series.uids.items())
    assert series.patients == {"P1"}
    assert walk.of(IDS.uid("1.2.99")).uids == {}


def test_nothing_can_be_read_without_the_key(tmp_path: Path) -> None:
    Crosswalk.beside(tmp_path / "deid.key", KEY).add([said(1, "Doe 4711")], IDS)
    held = files(tmp_path)
    assert held
    assert not any(b"1.2.3" in data or b"Doe" in data for data in held.values())
    assert all(path.stat().st_mode & 0o077 == 0 for path in tmp_path.rglob("*"))
    with pytest.raises(BadRequest, match="another key"):
        Crosswalk.beside(tmp_path / "deid.key", b"x" * 32).of(IDS.uid("1.2.3"))
    (path,) = (path for path in tmp_path.rglob("*") if path.is_file())
    path.write_bytes(path.read_bytes()[:-1] + b"\0")
    with pytest.raises(BadRequest, match="damaged"):
        Crosswalk.beside(tmp_path / "deid.key", KEY).of(IDS.uid("1.2.3"))


def test_a_missing_or_open_folder_is_refused(tmp_path: Path) -> None:
    walk = Crosswalk.beside(tmp_path / "deid.key", KEY)
    with pytest.raises(BadRequest, match="no such folder"):
        walk.check()
    walk.add([said(1)], IDS)
    walk.folder.chmod(0o755)
    with pytest.raises(BadRequest, match="chmod 700"):
        walk.check()


def test_restore_needs_every_uid_and_one_patient(tmp_path: Path) -> None:
    walk = Crosswalk.beside(tmp_path / "deid.key", KEY)
    ds = phantoms.slice_dataset(PatientID="pseudonym", StudyInstanceUID=IDS.uid("1.2"), FrameOfReferenceUID=IDS.uid("1.9"))
    item = pydicom.Dataset()
    item.ReferencedSOPInstanceUID = IDS.uid("1.2.3.1")
    ds.ReferencedImageSequence = [item]
    out = io.BytesIO()
    ds.save_as(out, enforce_file_format=True)
    walk.add([said(2)], IDS)
    with pytest.raises(BadRequest, match="lacks 1 of the UIDs"):
        walk.restore(out.getvalue(), IDS.uid("1.2.3"))
    walk.add([said(1)], IDS)
    back = pydicom.dcmread(io.BytesIO(walk.restore(out.getvalue(), IDS.uid("1.2.3"))))
    assert (back.PatientID, back.StudyInstanceUID, back.FrameOfReferenceUID) == ("P1", "1.2", "1.9")
    assert back.ReferencedImageSequence[0].ReferencedSOPInstanceUID == "1.2.3.1"
    assert back.SOPInstanceUID == ds.SOPInstanceUID
    walk.add([said(1, "P2")], IDS)
    with pytest.raises(BadRequest, match="name 2 patients"):
        walk.restore(out.getvalue(), IDS.uid("1.2.3"))


def test_headers_carry_originals_only_when_asked(tmp_path: Path) -> None:
    from medspark.series.kind import series_kind

    path = phantoms.write(tmp_path, "a.dcm", phantoms.slice_dataset())
    assert "original" not in series_kind().scan(str(path), f"file://{path}", IDS, config.Config())
    asked = config.load(None, ["deid.crosswalk=true"])
    header = series_kind().scan(str(path), f"file://{path}", IDS, asked)
    root = phantoms.ROOT
    assert header["original"] == {
        "SOPInstanceUID": root + "1.1",
        "SeriesInstanceUID": root + "2",
        "StudyInstanceUID": root + "3",
        "FrameOfReferenceUID": root + "4",
        "PatientID": "P1",
    }
    assert asked.fingerprint("deid") == config.Config().fingerprint("deid")


def test_without_pseudonyms_there_is_nothing_to_keep() -> None:
    with pytest.raises(BadRequest, match="leave one of the two out"):
        config.load(None, ["deid.crosswalk=true", "deid.profile=none"])
