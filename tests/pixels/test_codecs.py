"""Laws of the payload codecs, and of the DICOM codestreams made by foreign encoders."""

from __future__ import annotations

import contextlib
from collections.abc import Callable

import imagecodecs
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from medspark.errors import Rejected
from medspark.pixels import codecs, decode, encode
from medspark.pixels.codestream import SYNTAXES, decode_frame
from medspark.pixels.samples import Layout, native_samples, significant

SIDES = st.integers(1, 33)
DTYPES = st.sampled_from(["u1", "i1", "<u2", "<i2", "<i4", "<f4", "<f8"])
SHAPES = st.one_of(st.tuples(SIDES, SIDES), st.tuples(SIDES, SIDES, st.just(3)))
ARRAYS = st.tuples(DTYPES, SHAPES).flatmap(lambda both: hnp.arrays(both[0], both[1]))
ROOT = "1.2.840.10008.1.2"


@given(ARRAYS)
@settings(deadline=None, max_examples=60)
def test_blosc2_decode_undoes_encode(array: np.ndarray) -> None:
    back = decode(encode(array, "blosc2"), "blosc2", array.dtype.str, array.shape)
    assert back.dtype == array.dtype
    assert back.tobytes() == array.tobytes()  # NaN and negative zero too


@given(st.tuples(st.sampled_from(["u1", "<u2"]), SHAPES).flatmap(lambda both: hnp.arrays(both[0], both[1])))
@settings(deadline=None, max_examples=40)
def test_png_and_jp2_decode_undo_encode(array: np.ndarray) -> None:
    for codec in ("png", "jp2"):
        assert np.array_equal(decode(encode(array, codec), codec, array.dtype.str, array.shape), array), codec


@given(ARRAYS)
@settings(deadline=None, max_examples=30)
def test_equal_arrays_give_equal_bytes_whatever_their_memory_layout(array: np.ndarray) -> None:
    assert encode(array, "blosc2") == encode(np.asfortranarray(array), "blosc2") == encode(array.copy(), "blosc2")


@given(hnp.arrays("<i2", st.tuples(SIDES, SIDES)))
@settings(deadline=None, max_examples=20)
def test_another_shape_or_dtype_is_refused(array: np.ndarray) -> None:
    data = encode(array, "blosc2")
    with pytest.raises(ValueError, match="payload"):
        decode(data, "blosc2", "<i2", (array.shape[0] + 1, array.shape[1]))
    with pytest.raises(ValueError, match=r"payload|buffer size"):
        decode(data, "blosc2", "<i4", array.shape)


def test_jpeg_has_the_size_and_nearly_the_colours() -> None:
    rows, cols = np.mgrid[:60, :100]
    array = np.stack([rows * 4, cols * 2, 255 - rows * 2], axis=-1).astype(np.uint8)
    data = encode(array, "jpeg", {"quality": "95"})
    assert data == encode(array, "jpeg", {"quality": "95"})
    assert np.abs(decode(data, "jpeg", "u1", array.shape).astype(int) - array).mean() < 3  # levels of 255, 4:2:0 chroma
    grey = array[..., 0]
    assert np.abs(decode(encode(grey, "jpeg"), "jpeg", "u1", grey.shape).astype(int) - grey).max() <= 8
    with pytest.raises(ValueError, match="the row says"):
        decode(data, "jpeg", "u1", (60, 101, 3))


def test_what_a_codec_cannot_hold_is_refused() -> None:
    with pytest.raises(ValueError, match="uint8"):
        encode(np.zeros((4, 4), np.uint16), "jpeg")
    with pytest.raises(ValueError, match="uint16"):
        encode(np.zeros((4, 4), np.float32), "png")
    with pytest.raises(ValueError, match="unknown codec"):
        encode(np.zeros((4, 4), np.uint8), "gif")
    with pytest.raises(ValueError, match="unknown codec"):
        decode(b"", "gif", "u1", (4, 4))


@given(hnp.arrays(np.uint8, st.tuples(SIDES, SIDES, st.just(3))))
@settings(deadline=None, max_examples=30)
def test_ycbcr_agrees_with_the_formula_of_jfif(array: np.ndarray) -> None:
    y, cb, cr = (array[..., place].astype(float) for place in range(3))
    wanted = np.stack([y + 1.402 * (cr - 128), y - 0.344136 * (cb - 128) - 0.714136 * (cr - 128), y + 1.772 * (cb - 128)], -1).clip(0, 255)
    assert np.abs(codecs.ycbcr_to_rgb(array) - wanted).max() <= 0.51


# --- DICOM codestreams ------------------------------------------------------------------------------------------------------------


def _rle(array: np.ndarray) -> bytes:
    """PS3.5 annex G: rows packed one by one, segments padded to an even length."""
    samples = array.reshape(*array.shape[:2], -1).astype(array.dtype.newbyteorder(">"))
    planes = np.ascontiguousarray(samples).view(np.uint8).reshape(*array.shape[:2], -1)  # most significant byte of each sample first
    segments = [b"".join(imagecodecs.packbits_encode(row.tobytes()) for row in planes[..., plane]) for plane in range(planes.shape[2])]
    segments = [segment + b"\0" * (len(segment) % 2) for segment in segments]
    starts = 64 + np.cumsum([0, *map(len, segments)])[:-1]
    return np.array([len(segments), *starts, *[0] * (15 - len(segments))], "<u4").tobytes() + b"".join(segments)


def _unsigned(array: np.ndarray) -> np.ndarray:
    return array.view(array.dtype.str.replace("i", "u"))


ENCODERS: dict[str, Callable[[np.ndarray], bytes]] = {
    f"{ROOT}.4.70": lambda array: imagecodecs.jpeg8_encode(
        _unsigned(array), lossless=True, predictor=1, bitspersample=8 * array.dtype.itemsize
    ),
    f"{ROOT}.4.80": lambda array: imagecodecs.jpegls_encode(_unsigned(array)),
    f"{ROOT}.4.90": lambda array: imagecodecs.jpeg2k_encode(array, reversible=True, codecformat="j2k"),
    f"{ROOT}.4.201": lambda array: imagecodecs.htj2k_encode(array),
    f"{ROOT}.4.110": lambda array: imagecodecs.jpegxl_encode(_unsigned(array), lossless=True),
    f"{ROOT}.5": _rle,
}


@pytest.mark.parametrize("uid", ENCODERS)
@given(data=st.data())
@settings(deadline=None, max_examples=15)
def test_lossless_frames_come_back_bit_by_bit(uid: str, data: st.DataObject) -> None:
    dtype = data.draw(st.sampled_from(["u1", "<u2", "<i2"]))
    array = data.draw(hnp.arrays(dtype, st.tuples(st.integers(8, 33), st.integers(8, 33))))
    frame = ENCODERS[uid](array)
    back = decode(frame, f"dicom:{uid}", dtype, array.shape)
    assert back.dtype == array.dtype
    assert np.array_equal(back, array)


@pytest.mark.parametrize("uid", [uid for uid in ENCODERS if not uid.endswith(".201")])
def test_colour_frames_come_back_bit_by_bit(uid: str) -> None:
    array = np.random.default_rng(7).integers(0, 256, (20, 24, 3), np.uint8)
    frame = (
        imagecodecs.jpeg8_encode(array, lossless=True, predictor=1, colorspace="rgb", outcolorspace="rgb")
        if uid.endswith(".70")
        else ENCODERS[uid](array)
    )
    assert np.array_equal(decode_frame(frame, uid, "u1", array.shape, {"photometric": "RGB"}), array)


@pytest.mark.parametrize("uid", ENCODERS)
def test_broken_frames_are_rejected_not_guessed(uid: str) -> None:
    rng = np.random.default_rng(3)
    array = rng.integers(0, 4096, (64, 64)).astype("<u2")
    frame = ENCODERS[uid](array)
    for broken in (b"", frame[:40], frame[: len(frame) // 2], rng.bytes(500)):
        with pytest.raises(Rejected) as caught:
            decode_frame(broken, uid, "<u2", array.shape, {})
        assert caught.value.code in ("DECODE_FAILED", "TRUNCATED", "PIXEL_LENGTH")


@pytest.mark.parametrize("uid", ENCODERS)
@pytest.mark.parametrize("shape", [(64, 63), (63, 64), (64, 64, 3)])
def test_a_frame_of_another_size_is_rejected(uid: str, shape: tuple[int, ...]) -> None:
    frame = ENCODERS[uid](np.arange(64 * 64, dtype="<u2").reshape(64, 64))
    with pytest.raises(Rejected) as caught:
        decode_frame(frame, uid, "<u2", shape, {})
    assert caught.value.code in ("DECODE_FAILED", "PIXEL_LENGTH")


def test_a_stream_that_claims_to_be_huge_is_refused_before_it_is_decoded(monkeypatch: pytest.MonkeyPatch) -> None:
    """65,535 x 65,535 in 2 KB: nothing may be allocated for it."""
    jpeg = bytearray(imagecodecs.jpeg8_encode(np.zeros((16, 16), np.uint8)))
    place = jpeg.index(b"\xff\xc0")
    jpeg[place + 5 : place + 9] = b"\xff\xff\xff\xff"
    j2k = bytearray(imagecodecs.jpeg2k_encode(np.zeros((16, 16), np.uint8), reversible=True, codecformat="j2k"))
    place = j2k.index(b"\xff\x51")
    j2k[place + 6 : place + 14] = b"\x00\x00\xff\xff" * 2
    monkeypatch.setattr(imagecodecs, "jpeg8_decode", lambda *_, **__: pytest.fail("decoded"))
    monkeypatch.setattr(imagecodecs, "jpeg2k_decode", lambda *_, **__: pytest.fail("decoded"))
    for uid, frame in ((f"{ROOT}.4.50", jpeg), (f"{ROOT}.4.90", j2k)):
        with pytest.raises(Rejected) as caught:
            decode_frame(bytes(frame), uid, "u1", (16, 16), {})
        assert caught.value.code == "PIXEL_LENGTH"


def test_damaged_run_length_headers_do_not_end_the_process() -> None:
    """imagecodecs.dicomrle_decode trusts the offsets and died (SIGSEGV) on damaged copies of pydicom's SC_rgb_rle.dcm."""
    rng = np.random.default_rng(9)
    array = rng.integers(0, 9, (30, 20, 3)).astype("<u2")
    good = _rle(array)
    for _ in range(500):
        frame = bytearray(good)
        for place in rng.integers(0, 64, 4):
            frame[place] = rng.integers(256)
        with contextlib.suppress(Rejected):  # damage to an unused offset changes nothing
            decode_frame(bytes(frame), f"{ROOT}.5", "<u2", array.shape, {"photometric": "RGB"})


@pytest.mark.parametrize("dtype", ["u1", "<i2"])
def test_frames_deflated_or_wrapped_only(dtype: str) -> None:
    """PS3.5 A.4.13 and A.4.11."""
    import zlib

    array = np.random.default_rng(2).integers(0, 100, (9, 7)).astype(dtype)
    packer = zlib.compressobj(wbits=-15)
    packed = packer.compress(array.tobytes()) + packer.flush()
    assert np.array_equal(decode_frame(packed + b"\0", f"{ROOT}.8.1", dtype, array.shape, {}), array)
    assert np.array_equal(decode_frame(array.tobytes() + b"\0", f"{ROOT}.1.98", dtype, array.shape, {}), array)
    bits = (array & 1).astype("u1")
    packer = zlib.compressobj(wbits=-15)
    packed = packer.compress(np.packbits(bits, bitorder="little").tobytes()) + packer.flush()
    assert np.array_equal(
        decode_frame(packed, f"{ROOT}.8.1", "u1", bits.shape, {"bits_allocated": "1", "bits_stored": "1", "high_bit": "0"}), bits
    )
    for broken in (packed[: len(packed) // 2], b"", b"\xff" * 40):
        with pytest.raises(Rejected):
            decode_frame(broken, f"{ROOT}.8.1", dtype, array.shape, {})


def test_twelve_bits_signed_are_sign_extended() -> None:
    array = np.random.default_rng(1).integers(-2048, 2048, (32, 32)).astype("<i2")
    frame = imagecodecs.jpegls_encode((array & 0x0FFF).view("<u2"))
    params = {"bits_allocated": "16", "bits_stored": "12", "high_bit": "11", "pixel_representation": "1"}
    assert np.array_equal(decode_frame(frame, f"{ROOT}.4.80", "<i2", array.shape, params), array)


def test_video_private_and_uncompressed_syntaxes_are_refused() -> None:
    for uid in (f"{ROOT}.4.100", f"{ROOT}.4.102", f"{ROOT}.4.107", "1.2.3.4", f"{ROOT}.4.94", f"{ROOT}.1"):
        with pytest.raises(Rejected) as caught:
            decode_frame(b"\0" * 64, uid, "u1", (8, 8), {})
        assert caught.value.code == "UNSUPPORTED_SYNTAX", uid


def test_the_table_knows_every_pixel_syntax_of_the_standard() -> None:
    from pydicom.uid import AllTransferSyntaxes

    strange = {"1.2.840.10008.1.20"}  # Papyrus 3, retired and private
    assert {str(uid) for uid in AllTransferSyntaxes} - set(SYNTAXES) - strange == set()


# --- samples ----------------------------------------------------------------------------------------------------------------------


@given(st.integers(1, 16), st.booleans(), st.integers(0, 15), st.data())
@settings(deadline=None)
def test_bits_outside_the_stored_ones_change_nothing(stored: int, signed: bool, shift: int, data: st.DataObject) -> None:
    high_bit = min(stored - 1 + shift, 15)
    low = high_bit + 1 - stored
    first = -(1 << (stored - 1)) if signed else 0
    value = data.draw(hnp.arrays(np.int64, (5, 6), elements=st.integers(first, first + (1 << stored) - 1)))
    noise = data.draw(hnp.arrays(np.int64, (5, 6), elements=st.integers(0, 0xFFFF)))
    mask = ((1 << stored) - 1) << low
    container = (((value << low) & mask) | (noise & ~mask & 0xFFFF)).astype("<u2").view("<i2" if signed else "<u2")
    assert np.array_equal(significant(container, stored, high_bit), value)


def test_params_carry_the_whole_layout() -> None:
    layout = Layout(5, 7, 3, 8, 8, 7, 0, "YBR_FULL_422", 1)
    assert Layout.from_params(layout.shape, layout.dtype.str, layout.params()) == layout
    grey = Layout(5, 7, 1, 16, 12, 11, 1, "MONOCHROME1", 0)
    assert Layout.from_params(grey.shape, grey.dtype.str, grey.params()) == grey


def test_planes_and_big_endian_words_are_put_in_order() -> None:
    array = np.arange(2 * 3 * 3, dtype="<u2").reshape(2, 3, 3) + 258
    layout = Layout(2, 3, 3, 16, 16, 15, 0, "RGB")
    planes = np.ascontiguousarray(array.transpose(2, 0, 1))
    assert np.array_equal(native_samples(planes.tobytes(), layout, 1), array)
    assert np.array_equal(native_samples(array.astype(">u2").tobytes(), layout, 0, little_endian=False), array)
    with pytest.raises(Rejected):
        native_samples(array.tobytes()[:-1], layout, 0)
