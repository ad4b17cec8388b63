"""Small photos with known pixels, and with secrets wherever a format has room for them."""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import tifffile
from PIL import Image, PngImagePlugin

from medspark.config import Config
from medspark.errors import Rejected, SkippedSource
from medspark.keys import Ids
from medspark.photos.kind import PhotosKind
from medspark.tables.rows import Rejection, Rows
from medspark.tables.work import SourceFile, Unit

SECRET = b"Jane Doe 52.2297N 21.0122E"
"""An owner and a place, as a camera's and an editor's software write them."""
IDS = Ids(b"k" * 32)


def picture(rows: int = 20, cols: int = 28, channels: int = 3, dtype: type = np.uint8, seed: int = 3) -> np.ndarray:
    """Smooth enough for JPEG, different in every direction."""
    y, x = np.mgrid[0:rows, 0:cols]
    planes = [np.sin(x / 7 + i) * np.cos(y / 5 - i * seed) for i in range(channels)]
    full = float(np.iinfo(dtype).max)
    array = np.stack([(plane + 1) / 2 * full for plane in planes], axis=-1).astype(dtype)
    return array[..., 0] if channels == 1 else array


def exif(orientation: int | None = None) -> bytes:
    """A TIFF structure with the secret as owner, and an orientation."""
    entries = [struct.pack("<HHII", 0x9C9D, 1, len(SECRET), 8 + 2 + 2 * 12 + 4)]
    if orientation is not None:
        entries.insert(0, struct.pack("<HHIHH", 0x0112, 3, 1, orientation, 0))
    else:
        entries.insert(0, struct.pack("<HHII", 0x0100, 4, 1, 5))
    return b"Exif\0\0II*\0\x08\0\0\0" + struct.pack("<H", len(entries)) + b"".join(entries) + b"\0\0\0\0" + SECRET


def _segment(marker: int, body: bytes) -> bytes:
    return bytes([0xFF, marker]) + struct.pack(">H", len(body) + 2) + body


def jpeg(array: np.ndarray, orientation: int | None = None, secrets: bool = True, **options: Any) -> bytes:
    """A JPEG by Pillow with the secret in EXIF, XMP, ICC, Photoshop's segment, a comment, the JFIF thumbnail's place and behind the end."""
    stream = io.BytesIO()
    Image.fromarray(array).save(stream, "JPEG", **{"quality": 90, **options})
    data = stream.getvalue()
    if not secrets:
        return data
    extra = [
        _segment(0xE1, exif(orientation)),
        _segment(0xE1, b"http://ns.adobe.com/xap/1.0/\0<x:xmpmeta>" + SECRET + b"</x:xmpmeta>"),
        _segment(0xE2, b"ICC_PROFILE\0\x01\x01" + SECRET),
        _segment(0xED, b"Photoshop 3.0\08BIM" + SECRET),
        _segment(0xFE, SECRET),
        _segment(0xE0, b"JFXX\0\x10" + SECRET),
        _segment(0xEC, SECRET),
    ]
    head = 2 + 2 + int.from_bytes(data[4:6], "big") if data[2:4] == b"\xff\xe0" else 2
    return data[:head] + b"".join(extra) + data[head:] + SECRET


def png(array: np.ndarray, mode: str | None = None, **options: Any) -> bytes:
    """A PNG with the secret in tEXt, zTXt, iTXt, eXIf, an unknown chunk and behind the end."""
    said = PngImagePlugin.PngInfo()
    said.add_text("Author", SECRET.decode())
    said.add_text("Comment", SECRET.decode(), zip=True)
    said.add_itxt("XML:com.adobe.xmp", SECRET.decode())
    stream = io.BytesIO()
    image = Image.fromarray(array)
    if mode:
        image = image.convert(mode)
    image.save(stream, "PNG", pnginfo=said, **options)
    data = stream.getvalue()
    end = len(data) - 12
    return data[:end] + chunk(b"eXIf", exif().removeprefix(b"Exif\0\0")) + chunk(b"prVt", SECRET) + data[end:] + SECRET


def chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def tiff(path: Path, array: np.ndarray, **options: Any) -> Path:
    """A TIFF with the secret in ImageDescription, Artist, Copyright, Software, an ICC profile and a private tag."""
    tags = [(315, "s", 0, SECRET.decode(), True), (33432, "s", 0, SECRET.decode(), True), (65000, "s", 0, SECRET.decode(), True)]
    tifffile.imwrite(
        path, array, description=SECRET.decode(), software=SECRET.decode(), extratags=tags, iccprofile=SECRET, metadata=None, **options
    )
    return path


def bmp(array: np.ndarray) -> bytes:
    """A BMP with the secret behind its pixels."""
    stream = io.BytesIO()
    Image.fromarray(array).save(stream, "BMP")
    return stream.getvalue() + SECRET


def medmnist(path: Path, compressed: bool = True, counts: tuple[int, int, int] = (7, 3, 2)) -> tuple[Path, dict[str, np.ndarray]]:
    """Three parts of 6 x 5 grey images with a class each."""
    rng = np.random.default_rng(11)
    arrays: dict[str, np.ndarray] = {}
    for part, count in zip(("train", "val", "test"), counts, strict=True):
        arrays[f"{part}_images"] = rng.integers(0, 256, (count, 6, 5), np.uint8)
        arrays[f"{part}_labels"] = rng.integers(0, 2, (count, 1), np.uint8)
    (np.savez_compressed if compressed else np.savez)(path, **arrays)
    return path, arrays


def ingest(
    files: Iterable[Path], kind: PhotosKind | None = None, settings: Config | None = None, known: Iterable[str] = ()
) -> tuple[dict[str, list[dict[str, Any]]], list[Rejection], list[str]]:
    """Scan, plan and explode without the engine: rows by table (through the tables' schemas), rejections, hints of what was skipped."""
    kind, settings = kind or PhotosKind(), settings or Config()
    sources, rejections, hints = [], [], []
    for path in files:
        source = SourceFile(IDS.digest("source", path.name), f"file://{path}", str(path), path.stat().st_size, "phantom")
        try:
            header = kind.scan(str(path), source.uri, IDS, settings)
        except Rejected as error:
            rejections.append(Rejection(source.source_id, source.uri, "scan", error.code, error.reason))
        except SkippedSource as error:
            hints.append(error.hint)
        else:
            sources.append(SourceFile(**{**source.__dict__, "header": header}))
    plan = kind.plan(sources, IDS, settings)
    rows: dict[str, list[dict[str, Any]]] = {}
    for item in plan.rows:
        rows.setdefault(item.table, []).extend(item.to_arrow("run", "batch").to_pylist())
    for unit in plan.units:
        work = {**unit.work, "known": list(known)} if known else unit.work
        for made in kind.explode(
            Unit(unit.parent_id, unit.sources, unit.cost, unit.images, work), IDS, settings, lambda source, what="": None
        ):
            if isinstance(made, Rejection):
                rejections.append(made)
            else:
                rows.setdefault(made.table, []).extend(_complete(made).to_arrow("run", "batch").to_pylist())
    return rows, rejections, hints


def _complete(made: Rows) -> Rows:
    if made.table != "pixels":
        return made
    count = len(made)
    sizes = [len(data) for data in made.columns["bytes"]]
    return Rows("pixels", {**made.columns, "crc32c": [0] * count, "n_bytes": sizes})
