"""Photos: pixels as a foreign decoder sees them, nothing of what was said about them, and a refusal before any allocation."""

from __future__ import annotations

import io
import struct
import zlib
from pathlib import Path
from typing import Any

import imagecodecs
import numpy as np
import pytest
import tifffile
from PIL import Image, ImageOps

from medspark import config, pixels
from medspark.errors import Rejected
from medspark.photos import jpeg, read
from medspark.photos.kind import PhotosKind
from medspark.photos.orient import orientation, upright
from tests.phantoms import photos as phantom
from tests.real import shared_data


def decoded(row: dict[str, Any]) -> np.ndarray:
    return pixels.decode(row["bytes"], row["codec"], row["dtype"], row["shape"], dict(row["params"]))


def one(path: Path, kind: PhotosKind | None = None) -> tuple[np.ndarray, dict[str, Any], dict[str, Any]]:
    """(array, row of photos, row of pixels) of a file with one image."""
    rows, rejections, hints = phantom.ingest([path], kind)
    assert (rejections, hints) == ([], [])
    (photo,), (stored,) = rows["photos"], rows["pixels"]
    array = decoded(stored)
    assert (photo["rows"], photo["cols"]) == array.shape[:2]
    assert photo["channels"] == (1 if array.ndim == 2 else 3)
    assert photo["mean"] == pytest.approx(np.atleast_1d(array.mean(axis=(0, 1))).tolist(), rel=1e-5)
    assert photo["pixel_hash"] == pixels.equal.pixel_hash(array)
    return array, photo, stored


def file(folder: Path, name: str, data: bytes) -> Path:
    path = folder / name
    path.write_bytes(data)
    return path


def code(path: Path, settings: config.Config | None = None) -> str:
    rows, rejections, _ = phantom.ingest([path], settings=settings)
    assert not rows.get("photos"), "a rejected photo has left a row"
    assert len(rejections) == 1
    assert "Doe" not in rejections[0].message
    return rejections[0].code


# ---- nothing but pixels


@pytest.mark.parametrize("progressive", [False, True])
@pytest.mark.parametrize("turned", [1, 6])
def test_nothing_said_about_a_jpeg_is_kept(tmp_path: Path, progressive: bool, turned: int) -> None:
    data = phantom.jpeg(phantom.picture(), turned, progressive=progressive)
    assert data.count(phantom.SECRET) == 8
    array, _, stored = one(file(tmp_path, "a.jpg", data))
    assert phantom.SECRET not in stored["bytes"]
    assert stored["codec"] == ("jpeg" if not progressive and turned == 1 else "png")
    with Image.open(io.BytesIO(data)) as image:
        wanted = np.asarray(ImageOps.exif_transpose(image).convert("RGB"))
    assert array.shape == wanted.shape
    assert np.abs(array.astype(int) - wanted).max() <= 3  # two builds of libjpeg: upsampling of the chroma may differ in the last bits


def test_a_plain_jpeg_keeps_its_coefficients(tmp_path: Path) -> None:
    data = phantom.jpeg(phantom.picture(), secrets=False)
    array, photo, stored = one(file(tmp_path, "a.jpg", data))
    scan = data[data.index(b"\xff\xda") :]
    assert stored["bytes"].endswith(scan)
    assert len(stored["bytes"]) <= len(data)
    assert photo["bits"] == 8
    assert (array == pixels.codecs.decode_jpeg(data)).all()


@pytest.mark.parametrize("value", range(1, 9))
def test_turning_is_pillows(value: int) -> None:
    array = phantom.picture(5, 7)
    image = Image.fromarray(array)
    image.getexif()[274] = value
    wanted = np.asarray(ImageOps.exif_transpose(image))
    assert (upright(array, value) == wanted).all()
    assert orientation(phantom.exif(value)) == value


@pytest.mark.parametrize("broken", [b"", b"Exif\0\0", b"II*\0", b"II*\0\xff\xff\xff\xff", b"Exif\0\0MM\0*\0\0\0\x08\xff\xff"])
def test_a_broken_exif_says_nothing(broken: bytes) -> None:
    assert orientation(broken) == 1


@pytest.mark.parametrize(
    ("adobe", "jfif", "ids"),
    [
        (0, False, (1, 2, 3)),
        (None, False, (0x52, 0x47, 0x42)),
        (1, False, (1, 2, 3)),
        (None, True, (0x52, 0x47, 0x42)),
        (None, False, (1, 2, 3)),
    ],
)
def test_colours_by_libjpegs_order_of_evidence(adobe: int | None, jfif: bool, ids: tuple[int, int, int]) -> None:
    """Whatever said which colours a JPEG has, the stored one says it so that every decoder agrees with libjpeg on the original."""
    stream = io.BytesIO()
    Image.fromarray(phantom.picture()).save(stream, "JPEG", quality=95, subsampling=0)
    data = stream.getvalue()
    body = data[2 + 2 + int.from_bytes(data[4:6], "big") :]  # without Pillow's JFIF
    frame = body.index(b"\xff\xc0")
    scan = body.index(b"\xff\xda")
    body = bytearray(body)
    for place, component in enumerate(ids):
        body[frame + 10 + 3 * place] = component
        body[scan + 5 + 2 * place] = component
    head = (jpeg.JFIF if jfif else b"") + (b"" if adobe is None else jpeg.ADOBE_RGB[:-1] + bytes([adobe]))
    received = jpeg.SOI + head + bytes(body)
    said = jpeg.parse(received)
    assert said.as_received
    wanted = pixels.codecs.decode_jpeg(received)
    assert (pixels.codecs.decode_jpeg(said.bare) == wanted).all()
    with Image.open(io.BytesIO(said.bare)) as image:
        assert np.abs(np.asarray(image.convert("RGB")).astype(int) - wanted).max() <= 2


def test_metadata_between_scans_goes_too() -> None:
    """A progressive JPEG has several scans; a comment may stand between any two."""
    data = phantom.jpeg(phantom.picture(), secrets=False, progressive=True)
    second = data.index(b"\xff\xda", data.index(b"\xff\xda") + 2)
    planted = data[:second] + b"\xff\xfe" + struct.pack(">H", len(phantom.SECRET) + 2) + phantom.SECRET + data[second:]
    said = jpeg.parse(planted)
    assert phantom.SECRET not in said.bare
    assert said.bare == jpeg.parse(data).bare


@pytest.mark.parametrize("mode", ["1", "L", "P", "RGB", "RGBA", "LA"])
def test_png_of_every_colour_type(tmp_path: Path, mode: str) -> None:
    data = phantom.png(phantom.picture(), mode)
    assert phantom.SECRET in data
    array, _, stored = one(file(tmp_path, "a.png", data))
    with Image.open(io.BytesIO(data)) as image:
        wanted = np.asarray(image.convert({"1": "L", "P": "RGB", "RGBA": "RGB", "LA": "L"}.get(mode, mode)))
    assert (array == wanted).all()
    assert phantom.SECRET not in stored["bytes"]
    assert not {b"tEXt", b"zTXt", b"iTXt", b"eXIf", b"prVt"} & {stored["bytes"][i : i + 4] for i in range(len(stored["bytes"]))}


@pytest.mark.parametrize("channels", [1, 3])
def test_sixteen_bits_stay_sixteen(tmp_path: Path, channels: int) -> None:
    array = phantom.picture(channels=channels, dtype=np.uint16)
    found, photo, _ = one(file(tmp_path, "a.png", bytes(imagecodecs.png_encode(array))))
    assert (found == array).all() and photo["bits"] == 16
    found, photo, _ = one(phantom.tiff(tmp_path / "b.tif", array, compression="zlib"))
    assert (found == array).all() and photo["bits"] == 16


def test_what_is_fully_transparent_is_not_kept(tmp_path: Path) -> None:
    array = np.dstack([phantom.picture(), np.full((20, 28), 255, np.uint8)])
    array[:4, :, 3] = 0
    found, _, _ = one(file(tmp_path, "a.png", phantom.png(array)))
    assert not found[:4].any()
    assert (found[4:] == array[4:, :, :3]).all()


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"compression": "lzw", "predictor": True},
        {"compression": "zlib", "tile": (16, 16)},
        {"byteorder": ">"},
        {"compression": "jpeg", "compressionargs": {"level": 95}, "tile": (16, 16)},
        {"bigtiff": True},
        {"planarconfig": "separate"},
    ],
)
def test_tiff_of_every_layout(tmp_path: Path, options: dict[str, Any]) -> None:
    array = phantom.picture()
    given = np.moveaxis(array, -1, 0) if "planarconfig" in options else array
    path = phantom.tiff(tmp_path / "a.tif", given, photometric="rgb", **options)
    found, _, stored = one(path)
    lossy = options.get("compression") == "jpeg"
    off = np.abs(found.astype(int) - array)
    assert off.mean() <= 8 if lossy else not off.any()  # colours of another model would be off by 50
    assert phantom.SECRET in path.read_bytes() and phantom.SECRET not in stored["bytes"]


def test_tiff_greys_palettes_pages_and_turns(tmp_path: Path) -> None:
    grey = phantom.picture(channels=1)
    found, _, _ = one(phantom.tiff(tmp_path / "white.tif", 255 - grey, photometric="miniswhite"))
    assert (found == grey).all()
    palette = np.stack([np.arange(256)] * 3).astype(np.uint16) * 257
    palette[1] = palette[1][::-1]
    found, _, _ = one(phantom.tiff(tmp_path / "palette.tif", grey, photometric="palette", colormap=palette))
    assert (found == np.dstack([grey, 255 - grey, grey])).all()
    path = tmp_path / "turned.tif"
    Image.fromarray(grey).save(path, tiffinfo={274: 6})
    found, _, _ = one(path)
    assert (found == np.rot90(grey, -1)).all()
    nibbles = grey.reshape(-1, 2) >> 4
    packed = (nibbles[:, 0] << 4 | nibbles[:, 1]).astype(np.uint8).tobytes()
    tags = [(256, 28), (257, 20), (258, 4), (259, 1), (262, 1), (273, 8 + 2 + 9 * 12 + 4), (277, 1), (278, 20), (279, len(packed))]
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags)
    few = b"II*\0" + struct.pack("<IH", 8, len(tags)) + entries + bytes(4) + packed
    found, photo, _ = one(file(tmp_path, "few.tif", few))
    assert (found == grey // 16 * 17).all() and photo["bits"] == 8
    bilevel = grey > 127
    path = tmp_path / "bilevel.tif"
    Image.fromarray(bilevel).save(path)
    found, _, _ = one(path)
    assert (found == bilevel * np.uint8(255)).all()
    with tifffile.TiffWriter(tmp_path / "pages.tif") as writer:
        for seed in (1, 2, 3):
            writer.write(phantom.picture(seed=seed), photometric="rgb", metadata=None)
        writer.write(phantom.picture(10, 14), photometric="rgb", subfiletype=1, metadata=None)  # a reduced copy is no picture of its own
    rows, rejections, _ = phantom.ingest([tmp_path / "pages.tif"])
    assert not rejections
    assert len(rows["photos"]) == 3 and len(rows["subjects"]) == 1
    for row, seed in zip(rows["pixels"], (1, 2, 3), strict=True):
        assert (decoded(row) == phantom.picture(seed=seed)).all()


def test_floating_point_tiff_is_kept_exactly(tmp_path: Path) -> None:
    array = phantom.picture(channels=1, dtype=np.uint16).astype(np.float32) / 7
    found, photo, stored = one(phantom.tiff(tmp_path / "a.tif", array))
    assert (found == array).all()
    assert (stored["codec"], stored["dtype"], photo["bits"]) == ("blosc2", "float32", 32)


@pytest.mark.parametrize("mode", ["1", "L", "P", "RGB"])
def test_bmp(tmp_path: Path, mode: str) -> None:
    image = Image.fromarray(phantom.picture()).convert(mode)
    stream = io.BytesIO()
    image.save(stream, "BMP")
    found, _, stored = one(file(tmp_path, "a.bmp", stream.getvalue() + phantom.SECRET))
    wanted = np.asarray(image.convert("RGB" if mode == "P" else "L" if mode == "1" else mode))
    assert (found == wanted).all()
    assert phantom.SECRET not in stored["bytes"]


# ---- refusals


def test_inks_are_refused_with_the_way_out(tmp_path: Path) -> None:
    stream = io.BytesIO()
    Image.fromarray(phantom.picture()).convert("CMYK").save(stream, "JPEG")
    rows, (rejection,), _ = phantom.ingest([file(tmp_path, "a.jpg", stream.getvalue())])
    assert not rows.get("photos")
    assert rejection.code == "PHOTO_UNREADABLE" and "convert it to RGB" in rejection.message
    assert code(phantom.tiff(tmp_path / "a.tif", np.zeros((4, 4, 4), np.uint8), photometric="separated")) == "PHOTO_UNREADABLE"


def bomb_png(rows: int, cols: int) -> bytes:
    return read.PNG_SIGNATURE + b"".join(
        phantom.chunk(kind, body)
        for kind, body in (
            (b"IHDR", struct.pack(">IIBBBBB", cols, rows, 8, 2, 0, 0, 0)),
            (b"IDAT", zlib.compress(bytes(1 << 16))),
            (b"IEND", b""),
        )
    )


def test_bombs_are_refused_by_their_headers(tmp_path: Path) -> None:
    assert code(file(tmp_path, "a.png", bomb_png(1 << 20, 1 << 20))) == "TOO_LARGE"
    data = bytearray(phantom.jpeg(phantom.picture(), secrets=False))
    frame = data.index(b"\xff\xc0")
    data[frame + 5 : frame + 9] = b"\xff\xff\xff\xff"
    assert code(file(tmp_path, "a.jpg", bytes(data))) == "TOO_LARGE"
    data = bytearray(phantom.bmp(phantom.picture()))
    data[18:26] = struct.pack("<ii", 1 << 20, 1 << 20)
    assert code(file(tmp_path, "a.bmp", bytes(data))) == "TOO_LARGE"
    path = phantom.tiff(tmp_path / "a.tif", phantom.picture())
    assert code(path, config.load(None, ["guard.max_pixels=500"])) == "TOO_LARGE"
    assert code(file(tmp_path, "b.jpg", phantom.jpeg(phantom.picture())), config.load(None, ["guard.max_file_bytes=500"])) == "TOO_LARGE"


def test_a_compressed_text_is_never_inflated(tmp_path: Path) -> None:
    """A PNG of 28 pixels a side whose zTXt would fill a gigabyte."""
    inflater = zlib.compressobj(9)
    body = b"".join(inflater.compress(bytes(1 << 20)) for _ in range(1024)) + inflater.flush()
    data = phantom.png(phantom.picture())
    end = data.rindex(b"IEND") - 4
    path = file(tmp_path, "a.png", data[:end] + phantom.chunk(b"zTXt", b"Comment\0\0" + body) + data[end:])
    array, _, _ = one(path)
    assert (array == phantom.picture()).all()


def test_what_ends_early_is_refused(tmp_path: Path) -> None:
    array = phantom.picture(40, 40)
    whole = {"jpg": phantom.jpeg(array, secrets=False), "bmp": phantom.bmp(array)[: -len(phantom.SECRET)], "png": phantom.png(array)}
    tifffile.imwrite(tmp_path / "whole.tif", array, metadata=None)
    whole["tif"] = (tmp_path / "whole.tif").read_bytes()
    for form, data in whole.items():
        expected = ("TRUNCATED",) if form in ("jpg", "png") else ("DECODE_FAILED", "PHOTO_UNREADABLE")
        assert code(file(tmp_path, f"a.{form}", data[: len(data) * 2 // 3])) in expected
    scan = whole["jpg"].index(b"\xff\xda")
    cut = whole["jpg"][: (scan + len(whole["jpg"])) // 2] + jpeg.EOI  # its pixels end early, its segments do not
    assert code(file(tmp_path, "b.jpg", cut)) == "DECODE_FAILED"
    body = whole["png"].index(b"IDAT")
    length = int.from_bytes(whole["png"][body - 4 : body], "big")
    short = phantom.chunk(b"IDAT", zlib.compress(bytes(99)))
    assert code(file(tmp_path, "b.png", whole["png"][: body - 4] + short + whole["png"][body + 8 + length :])) == "DECODE_FAILED"


def test_every_cut_and_flipped_byte_is_answered(tmp_path: Path) -> None:
    """No damage may raise anything but `Rejected`: a fuzz of each format's head."""
    rng = np.random.default_rng(5)
    samples = {
        "jpeg": phantom.jpeg(phantom.picture(), 3),
        "png": phantom.png(phantom.picture()),
        "bmp": phantom.bmp(phantom.picture()),
        "tiff": phantom.tiff(tmp_path / "a.tif", phantom.picture(), compression="zlib").read_bytes(),
    }
    guard = config.Guard(max_pixels=1 << 16)
    for form, data in samples.items():
        for _ in range(150):
            broken = bytearray(data[: rng.integers(4, len(data))] if rng.random() < 0.4 else data)
            for place in rng.integers(2, min(len(broken), 400), 3):
                broken[place] = rng.integers(0, 256)
            path = file(tmp_path, "broken", bytes(broken))
            try:
                read.sizes(str(path), form, guard)  # type: ignore[arg-type]
                list(read.photos(str(path), form, guard))  # type: ignore[arg-type]
            except Rejected:
                pass


def test_files_of_other_jobs_are_skipped_with_a_hint(tmp_path: Path) -> None:
    file(tmp_path, "scan.dcm", bytes(128) + b"DICM" + bytes(8))
    file(tmp_path, "lesion_mask.png", phantom.png(phantom.picture()))
    file(tmp_path, "slide.svs", b"II*\0")
    file(tmp_path, "notes.txt", b"BMI 23, nothing to be seen")
    file(tmp_path, "other.zip", b"PK\x03\x04")
    rows, rejections, hints = phantom.ingest(sorted(tmp_path.iterdir()))
    assert (rows, rejections) == ({}, [])
    assert len(hints) == 5 and sum("import_labels" in hint for hint in hints) == 1
    assert code(file(tmp_path, "text.jpg", b"this is no picture at all")) == "PHOTO_UNREADABLE"
    assert code(file(tmp_path, "empty.jpg", b"")) == "EMPTY_FILE"
    rows, _, _ = phantom.ingest([tmp_path / "lesion_mask.png"], PhotosKind(exclude=""))
    assert len(rows["photos"]) == 1


# ---- real files


@pytest.mark.parametrize(
    ("folder", "images", "jpegs"), [("retina", 4, 2), ("dermoscopy", 4, 4), ("cxr", 6, 4), ("histology_patches/nct_crc", 9, 0)]
)
def test_real_photos_as_pillow_sees_them(folder: str, images: int, jpegs: int) -> None:
    root = shared_data(folder)
    for path in sorted(root.rglob("*")):
        if path.suffix not in (".jpg", ".png", ".tif") or "mask" in path.name:
            continue
        array, _, stored = one(path)
        images -= 1
        jpegs -= stored["codec"] == "jpeg"
        with Image.open(path) as image:
            wanted = np.asarray(image)
        assert array.shape == wanted.shape
        assert np.abs(array.astype(int) - wanted).max() <= (3 if stored["codec"] == "jpeg" else 0)
    assert (images, jpegs) == (0, 0)
