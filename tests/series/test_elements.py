"""The walk over raw elements: pydicom's data set, or None."""

from __future__ import annotations

import io
import warnings
from pathlib import Path
from typing import Any

import pydicom
import pydicom.data
import pytest
from pydicom.dataelem import RawDataElement

from medspark.errors import Rejected
from medspark.series import decode, elements, files
from tests.real import shared_data

OWN = sorted(path for path in Path(pydicom.data.__file__).parent.rglob("*.dcm") if path.stat().st_size < 2_000_000)


def _plain(ds: pydicom.Dataset) -> list[tuple[int, Any]]:
    """Elements as they lie in the data set; pydicom has converted the character set and some of the file meta, so those go by their values."""
    return [(int(tag), tuple(ds._dict[tag]) if isinstance(ds._dict[tag], RawDataElement) else repr(ds[tag])) for tag in ds._dict]


def _equal(data: bytes, header_only: bool) -> bool:
    """Whether the walk has read it; what it has read is what pydicom reads."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            found = elements.walk(io.BytesIO(data), len(data), header_only)
        except decode.PARSE_ERRORS:
            return False
        if found is None:
            return False
        truth = pydicom.dcmread(io.BytesIO(data), stop_before_pixels=header_only, force=True)
        assert [tag for tag, _ in _plain(found)] == [tag for tag, _ in _plain(truth)]
        assert found.original_encoding == truth.original_encoding
        assert found.original_character_set == truth.original_character_set
        for mine, other in ((found, truth), (found.file_meta, truth.file_meta)):
            for tag in other._dict:
                if not isinstance(other._dict[tag], RawDataElement):
                    mine[tag]  # converts it, as pydicom has done
            assert _plain(mine) == _plain(other)
    return True


@pytest.mark.parametrize("header_only", [False, True])
def test_the_walk_reads_what_pydicom_reads(header_only: bool) -> None:
    read = [_equal(path.read_bytes(), header_only) for path in OWN]
    assert sum(read) > len(read) / 2


def test_the_walk_reads_real_series_without_pydicom() -> None:
    paths = sorted(shared_data("ct/ge_head_tilt").glob("*.dcm"))
    assert all(_equal(path.read_bytes(), header_only) for path in paths[:4] for header_only in (False, True))


@pytest.mark.parametrize("block", [140, 200, 1000])
def test_the_size_of_the_block_does_not_matter(block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    data = Path(pydicom.data.get_testdata_file("CT_small.dcm")).read_bytes()
    monkeypatch.setattr(elements, "BLOCK", block)
    assert _equal(data, True) and _equal(data, False)


def test_a_file_that_ends_early_is_left_to_pydicom_and_refused() -> None:
    data = Path(pydicom.data.get_testdata_file("CT_small.dcm")).read_bytes()
    for end in range(400, len(data) - 8, 997):
        assert elements.walk(io.BytesIO(data[:end]), end) is None or not _has_pixels(data[:end])
        with pytest.raises(Rejected):
            list(decode.read_frames(decode.read_dicom(data[:end])))


def _has_pixels(data: bytes) -> bool:
    ds = elements.walk(io.BytesIO(data), len(data))
    return ds is not None and any(tag in ds for tag in files.PIXEL_TAGS)


def test_a_length_beyond_the_file_takes_no_memory() -> None:
    data = bytearray(Path(pydicom.data.get_testdata_file("CT_small.dcm")).read_bytes())
    place = data.index(b"\xe0\x7f\x10\x00OW")
    data[place + 8 : place + 12] = (0xFFFFFFF0).to_bytes(4, "little")
    assert elements.walk(io.BytesIO(bytes(data)), len(data)) is None
