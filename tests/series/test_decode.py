"""Frames of DICOM files: laws on written data sets, pydicom and its test files as the foreign oracle, then the real collection."""

from __future__ import annotations

import io
import tracemalloc
import warnings
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pydicom
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydicom.dataset import Dataset, FileDataset, FileMetaDataset
from pydicom.encaps import encapsulate, encapsulate_extended
from pydicom.pixels.processing import apply_color_lut
from pydicom.uid import UID, ExplicitVRLittleEndian

from medspark.config import Guard
from medspark.errors import Rejected
from medspark.pixels import decode as decode_payload
from medspark.series import decode
from tests.phantoms import bombs
from tests.real import shared_data

PYDICOM_FILES = Path(pydicom.__file__).parent / "data" / "test_files"
ROOT = "1.2.840.10008.1.2"


def data_set(array: np.ndarray, syntax: str = ExplicitVRLittleEndian, **attributes: object) -> FileDataset:
    """A minimal image whose (frames, rows, cols[, 3]) samples lie uncompressed in PixelData."""
    meta = FileMetaDataset()
    meta.TransferSyntaxUID = UID(syntax)
    meta.MediaStorageSOPClassUID = UID("1.2.840.10008.5.1.4.1.1.7")
    meta.MediaStorageSOPInstanceUID = UID("1.2.3")
    ds = FileDataset("", {}, file_meta=meta, preamble=b"\0" * 128)
    ds.SOPClassUID, ds.SOPInstanceUID = meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID
    bits = 8 * array.dtype.itemsize
    ds.NumberOfFrames, ds.Rows, ds.Columns = array.shape[:3]
    ds.SamplesPerPixel = array.shape[3] if array.ndim == 4 else 1
    ds.PhotometricInterpretation = "RGB" if array.ndim == 4 else "MONOCHROME2"
    if array.ndim == 4:
        ds.PlanarConfiguration = 0
    ds.BitsAllocated, ds.BitsStored, ds.HighBit = bits, bits, bits - 1
    ds.PixelRepresentation = int(array.dtype.kind == "i")
    data = array.tobytes()
    ds.add_new(0x7FE00010, "OB" if bits == 8 else "OW", data + b"\0" * (len(data) % 2))
    for name, value in attributes.items():
        setattr(ds, name, value)
    ds._read_implicit, ds._read_little = False, True
    return ds


def written(ds: FileDataset) -> bytes:
    stream = io.BytesIO()
    pydicom.dcmwrite(stream, ds, enforce_file_format=True)
    return stream.getvalue()


def frames(ds: Dataset, **options: object) -> np.ndarray:
    return np.stack(list(decode.read_frames(ds, **options)))  # type: ignore[arg-type]


def code_of(ds: Dataset, **options: object) -> str:
    with pytest.raises(Rejected) as caught:
        list(decode.read_frames(ds, **options))  # type: ignore[arg-type]
    return caught.value.code


def some(shape: tuple[int, ...], dtype: str = "<i2", seed: int = 0) -> np.ndarray:
    info = np.iinfo(dtype)
    return np.random.default_rng(seed).integers(info.min, int(info.max) + 1, shape).astype(dtype)


# --- laws -------------------------------------------------------------------------------------------------------------------------

SHAPES = st.tuples(st.integers(1, 3), st.integers(1, 9), st.integers(1, 9))


@given(SHAPES, st.sampled_from(["u1", "<u2", "<i2", "<u4", "<i4"]), st.booleans(), st.booleans())
@settings(deadline=None, max_examples=40)
def test_uncompressed_frames_come_back_in_either_byte_order(shape: tuple[int, ...], dtype: str, colour: bool, big: bool) -> None:
    array = some((*shape, 3) if colour else shape, dtype)
    ds = data_set(array)
    if big:
        ds = data_set(array, f"{ROOT}.2")
        ds._read_little = False
        body = array.astype(array.dtype.newbyteorder(">")).tobytes()
        ds["PixelData"]._value = body + b"\0" * (len(body) % 2)
    back = frames(decode.read_dicom(written(ds)))
    assert back.dtype == array.dtype
    assert np.array_equal(back, array)


@given(SHAPES)
@settings(deadline=None, max_examples=30)
def test_single_bits_run_on_from_frame_to_frame(shape: tuple[int, ...]) -> None:
    array = some(shape, "u1") & 1
    packed = np.packbits(array.ravel(), bitorder="little").tobytes()
    ds = data_set(array, BitsAllocated=1, BitsStored=1, HighBit=0)
    ds["PixelData"]._value = packed + b"\0" * (len(packed) % 2)
    assert np.array_equal(frames(ds), array)


def test_planes_are_interleaved() -> None:
    array = some((2, 5, 7, 3), "u1")
    planar = data_set(array, PlanarConfiguration=1)
    planar["PixelData"]._value = np.ascontiguousarray(array.transpose(0, 3, 1, 2)).tobytes()
    assert np.array_equal(frames(planar), array)


def test_an_overlay_above_the_high_bit_is_dropped_and_the_sign_is_extended() -> None:
    array = np.random.default_rng(0).integers(-2048, 2048, (1, 8, 8)).astype("<i2")
    overlay = some((1, 8, 8), "<u2") & 0xF000
    stored = ((array.view("<u2") & 0x0FFF) | overlay).view("<i2")
    assert np.array_equal(frames(data_set(stored, BitsStored=12, HighBit=11)), array)
    assert np.array_equal(frames(data_set(array.view("<u2") << 4, BitsStored=12, HighBit=15, PixelRepresentation=1)), array)


def test_float_pixels() -> None:
    for keyword, dtype in (("FloatPixelData", "<f4"), ("DoubleFloatPixelData", "<f8")):
        array = np.random.default_rng(0).normal(size=(2, 4, 6)).astype(dtype)
        ds = data_set(
            some((2, 4, 6)),
            BitsAllocated=8 * array.dtype.itemsize,
            BitsStored=8 * array.dtype.itemsize,
            HighBit=8 * array.dtype.itemsize - 1,
        )
        del ds.PixelData
        setattr(ds, keyword, array.tobytes())
        back = frames(ds)
        assert back.dtype == array.dtype and np.array_equal(back, array)


def test_palette_values_outside_the_table_take_its_ends() -> None:
    array = np.arange(12, dtype="u1").reshape(1, 3, 4)
    ds = data_set(array, PhotometricInterpretation="PALETTE COLOR")
    table = np.array([10, 20, 30, 40], "<u2") * 256
    for colour, factor in (("Red", 1), ("Green", 2), ("Blue", 3)):
        setattr(ds, f"{colour}PaletteColorLookupTableDescriptor", [4, 3, 16])
        setattr(ds, f"{colour}PaletteColorLookupTableData", (table * factor).tobytes())
    back = frames(ds)
    index = np.clip(array.astype(int) - 3, 0, 3)
    assert back.dtype == np.uint16
    assert np.array_equal(back, np.stack([table[index] * factor for factor in (1, 2, 3)], -1))
    del ds.GreenPaletteColorLookupTableData
    assert code_of(ds) == "DECODE_FAILED"


def _compressed(array: np.ndarray, how: str) -> FileDataset:
    import imagecodecs

    coded = [bytes(imagecodecs.jpegls_encode(frame)) for frame in array]
    ds = data_set(array, f"{ROOT}.4.80")
    if how == "extended":
        data, ds.ExtendedOffsetTable, ds.ExtendedOffsetTableLengths = encapsulate_extended(coded)
    else:
        data = encapsulate(coded, fragments_per_frame=3 if how.startswith("fragmented") else 1, has_bot=not how.endswith("bare"))
    ds["PixelData"]._value = data
    ds["PixelData"].VR = "OB"
    ds["PixelData"].is_undefined_length = True
    return ds


@pytest.mark.parametrize("how", ["table", "bare", "fragmented", "fragmented bare", "extended"])
def test_encapsulated_frames_with_and_without_offset_tables(how: str) -> None:
    array = some((3, 16, 12), "<u2")
    ds = decode.read_dicom(written(_compressed(array, how)))
    seen: list[int] = []
    assert np.array_equal(frames(ds, watch_frame=seen.append), array)
    assert seen == [0, 1, 2]
    layout = decode.layout_of(ds)
    for index, raw in enumerate(decode.raw_frames(ds)):
        kept = decode_payload(raw, f"dicom:{ROOT}.4.80", "<u2", layout.shape, layout.params())
        assert np.array_equal(kept, array[index])


def test_the_hash_knows_values_dtype_and_shape_only() -> None:
    array = some((5, 6))
    assert decode.pixel_hash(array) == decode.pixel_hash(array.astype(">i2")) == decode.pixel_hash(np.asfortranarray(array))
    others = [array.reshape(6, 5), array.view("<u2"), array.astype("<i4"), array + 1]
    assert len({decode.pixel_hash(other) for other in [array, *others]}) == 5
    assert len(decode.pixel_hash(array)) == 32


# --- refusals ---------------------------------------------------------------------------------------------------------------------


def test_headers_that_lie_are_refused_before_memory_is_taken() -> None:
    tracemalloc.start()
    assert code_of(data_set(some((1, 8, 8)), Rows=65535, Columns=65535)) == "TOO_LARGE"
    assert code_of(data_set(some((1, 8, 8)), Rows=16000, Columns=16000)) == "PIXEL_LENGTH"
    assert code_of(data_set(some((1, 8, 8)), NumberOfFrames=2_000_000_000)) == "PIXEL_LENGTH"
    assert code_of(data_set(some((1, 8, 8)), Rows=9), guard=Guard(max_pixels=71)) == "TOO_LARGE"
    lying = _compressed(some((2, 8, 8), "<u2"), "table")
    lying.NumberOfFrames = 3
    assert code_of(lying) == "PIXEL_LENGTH"
    lying.NumberOfFrames = 2_000_000_000
    assert code_of(lying) == "PIXEL_LENGTH"
    assert tracemalloc.get_traced_memory()[1] < 4 << 20  # bytes
    tracemalloc.stop()


def test_what_is_missing_or_contradictory_has_its_code() -> None:
    for keyword in ("Rows", "Columns", "BitsAllocated"):
        ds = data_set(some((1, 8, 8)))
        delattr(ds, keyword)
        assert code_of(ds) == "MISSING_ATTRIBUTE", keyword
    assert code_of(data_set(some((1, 8, 8)), BitsStored=17)) == "DECODE_FAILED"
    assert code_of(data_set(some((1, 8, 8)), BitsAllocated=12, BitsStored=12, HighBit=11)) == "DECODE_FAILED"
    assert code_of(data_set(some((1, 8, 8)), Rows=0)) == "NO_IMAGE"
    assert code_of(data_set(some((1, 8, 8, 3), "u1"), PhotometricInterpretation="HSV")) == "DECODE_FAILED"
    ds = data_set(some((1, 8, 8)))
    del ds.PixelData
    assert code_of(ds) == "NO_IMAGE"
    for uid in (f"{ROOT}.4.102", f"{ROOT}.4.94", "1.2.3.4.5"):
        assert code_of(data_set(some((1, 8, 8)), uid)) == "UNSUPPORTED_SYNTAX"


def test_files_that_are_none() -> None:
    good = written(data_set(some((1, 32, 32))))
    for data, code in ((b"", "EMPTY_FILE"), (b"hello world" * 99, "NOT_DICOM"), (good[:-99], "TRUNCATED"), (good[:140], "TRUNCATED")):
        with pytest.raises(Rejected) as caught:
            decode.read_dicom(data)
        assert caught.value.code == code
    with pytest.raises(Rejected) as caught:
        decode.read_dicom(good, Guard(max_file_bytes=1000))
    assert caught.value.code == "TOO_LARGE"
    rng = np.random.default_rng(5)
    for _ in range(200):  # whatever is overwritten, the answer is frames or a rejection
        broken = bytearray(good)
        for place in rng.integers(132, 700, 3):
            broken[place] = rng.integers(256)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                list(decode.read_frames(decode.read_dicom(bytes(broken))))
        except Rejected:
            pass


def test_a_deflated_file_is_inflated_within_bounds(tmp_path: Path) -> None:
    array = some((1, 64, 64)) & 0x0F0F  # compressible, so that deflate does not store it as it is
    ds = data_set(array, f"{ROOT}.1.99")
    data = written(ds)
    path = tmp_path / "deflated.dcm"
    path.write_bytes(data)
    for source in (data, path):
        back = decode.read_dicom(source)
        assert back.file_meta.TransferSyntaxUID == f"{ROOT}.1.99"
        assert np.array_equal(frames(back), array)
    bomb = written(data_set(np.zeros((1, 4000, 4000), "<u2"), f"{ROOT}.1.99"))
    assert len(bomb) < 64 << 10
    with pytest.raises(Rejected) as caught:
        decode.read_dicom(bomb, Guard(max_file_bytes=1 << 20))
    assert caught.value.code == "TOO_LARGE"
    hidden = bombs.deflated(tmp_path / "hidden.dcm", str(ds.SOPClassUID), 64 << 20, instance="1.2." + "3" * 2000)
    with pytest.raises(Rejected) as caught:
        decode.read_dicom(hidden, Guard(max_file_bytes=1 << 20))  # its transfer syntax stands where one does not look for it
    assert caught.value.code == "NOT_DICOM"
    for broken in (data[: len(data) // 2], data[:600] + bytes(60) + data[660:]):
        with pytest.raises(Rejected) as caught:
            decode.read_dicom(broken)
        assert caught.value.code in ("TRUNCATED", "DECODE_FAILED")


@pytest.mark.filterwarnings("ignore:End of file reached")
@pytest.mark.parametrize("how", ["bare", "fragmented", "extended"])
def test_an_encapsulated_file_cut_anywhere_gives_no_wrong_frame(how: str) -> None:
    array = some((3, 16, 12), "<u2")
    good = written(_compressed(array, how))
    for end in range(500, len(good) - 16, 37):
        with pytest.raises(Rejected) as caught:
            list(decode.read_frames(decode.read_dicom(good[:end])))
        assert caught.value.code in ("TRUNCATED", "NO_IMAGE")
        if end > good.index(decode.ENCAPSULATED_PIXELS) + 12:
            assert caught.value.code == "TRUNCATED"


def test_lossy_is_what_header_or_syntax_say() -> None:
    array = some((1, 8, 8))
    assert not decode.is_lossy(data_set(array))
    assert decode.is_lossy(data_set(array, LossyImageCompression="01"))
    assert decode.is_lossy(data_set(array, f"{ROOT}.4.50", LossyImageCompression="00"))
    assert decode.is_lossy(data_set(array, f"{ROOT}.4.91"))
    assert not decode.is_lossy(data_set(array, f"{ROOT}.4.91", LossyImageCompression="00"))


# --- pydicom as the oracle ----------------------------------------------------------------------------------------------------------


def _oracle(path: Path) -> np.ndarray | None:
    """(frames, rows, cols[, 3]) by pydicom, None where it cannot."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            ds = pydicom.dcmread(path, force=True)
            array = ds.pixel_array
        except Exception:
            return None
    if ds.PhotometricInterpretation == "PALETTE COLOR":
        array = apply_color_lut(array, ds)
    channels = () if array.ndim == 2 or (array.ndim == 3 and array.shape[-1] != 3) else array.shape[-1:]
    return array.reshape(-1, ds.Rows, ds.Columns, *channels)


def _agree(path: Path) -> str:
    """How read_frames compares with pydicom: "equal", "ours only", or the code of the rejection."""
    wanted = _oracle(path)
    try:
        ds = decode.read_dicom(path)
        found = frames(ds)
    except Rejected as error:
        if wanted is not None:
            pytest.fail(f"{path.name}: pydicom decodes what we reject ({error})")
        return error.code
    if decode.keeps_as_received(ds):
        raw, layout = next(decode.raw_frames(ds)), decode.layout_of(ds)
        kept = decode_payload(raw, f"dicom:{decode.syntax_of(ds).uid}", found.dtype.str, found.shape[1:], layout.params())
        assert np.array_equal(kept, found[0]), path.name
    if wanted is None:
        return "ours only"
    assert found.shape == wanted.shape, path.name
    assert found.dtype == wanted.dtype.newbyteorder("<"), path.name
    # pydicom converts YBR in floating point, libjpeg in integers: 1 level apart in a few pixels
    limit = 1 if ds.get("SamplesPerPixel") == 3 else 0
    assert np.abs(found.astype(np.int64) - wanted).max() <= limit, path.name
    return "equal"


def _files(folder: Path) -> Iterator[Path]:
    return (path for path in sorted(folder.rglob("*")) if path.is_file())


@pytest.mark.filterwarnings("ignore")
def test_pydicoms_own_files() -> None:
    answers = {path.name: _agree(path) for path in _files(PYDICOM_FILES) if path.suffix == ".dcm" and "dicomdirtests" not in path.parts}
    assert sum(answer == "equal" for answer in answers.values()) >= 55
    assert {name for name, answer in answers.items() if answer == "ours only"} == {"JPEG-lossy.dcm", "JPGExtended.dcm"}  # 12-bit JPEG
    assert answers["MR_truncated.dcm"] == "TRUNCATED"
    assert answers["badVR.dcm"] == "MISSING_ATTRIBUTE"
    assert answers["JPEG2000-embedded-sequence-delimiter.dcm"] == "PIXEL_LENGTH"
    assert answers["rtplan.dcm"] == "NO_IMAGE"


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("folder", "at_least"),
    [("us", 2), ("cxr", 1), ("ct", 60), ("mr", 36), ("enhanced", 2), ("dicomdir", 24), ("highdicom", 9), ("broken", 3)],
)
def test_the_real_collection_agrees_with_pydicom(folder: str, at_least: int) -> None:
    answers = [_agree(path) for path in _files(shared_data(folder)) if path.suffix not in (".svs", ".csv", ".json", ".xml", ".png")]
    assert answers.count("equal") >= at_least


def test_one_slice_in_all_syntaxes() -> None:
    """ct/one_slice_all_syntaxes: nine lossless variants are one image; .51, .53, .55 agree within the loss; fragments without a table."""
    folder = shared_data("ct/one_slice_all_syntaxes")
    hashes, twelve_bits = {}, []
    for path in _files(folder):
        ds = decode.read_dicom(path)
        found = frames(ds)
        if path.name.startswith("CT0012"):
            assert found.shape == (2, 512, 512)
            assert not np.array_equal(found[0], found[1])
        elif ds.file_meta.TransferSyntaxUID[-3:] in (".51", ".53", ".55"):
            twelve_bits.append(found[0].astype(int))
        elif not decode.is_lossy(ds):
            hashes[path.name] = decode.pixel_hash(found[0])
    assert len(hashes) == 9
    assert len(set(hashes.values())) == 1
    assert len(twelve_bits) == 3
    assert np.array_equal(twelve_bits[0], twelve_bits[1]) and np.array_equal(twelve_bits[1], twelve_bits[2])


def test_one_volume_in_four_syntaxes() -> None:
    folder = shared_data("mr/same_volume_four_syntaxes")
    hashes = [{decode.pixel_hash(frames(decode.read_dicom(path))[0]) for path in _files(part)} for part in sorted(folder.iterdir())]
    assert len(hashes) == 4 and len(hashes[0]) == 4
    assert all(found == hashes[0] for found in hashes)
