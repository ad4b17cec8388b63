"""Small TIFF slides with known truth: every coding and layout that the readers claim to know."""

from __future__ import annotations

import struct
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

APERIO = "Aperio Image Library v12.0.15\r\n{w}x{h} [0,0 {w}x{h}] (64x64) JPEG/RGB Q=70|AppMag = 20|ScannerType = GT450|MPP = 0.499"


def picture(width: int, height: int, seed: int = 7) -> np.ndarray:
    """(height, width, 3) uint8: smooth waves of pink and violet with a little grain, every region different."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[0:height, 0:width].astype(np.float64)
    waves = np.stack([200 + 40 * np.sin(x / 23), 140 + 70 * np.sin(y / 31 + x / 57), 190 + 40 * np.cos((x - y) / 41)], axis=-1)
    return (waves + rng.normal(0, 3, waves.shape)).clip(0, 255).astype(np.uint8)


def pyramid(base: np.ndarray, n: int) -> list[np.ndarray]:
    """Level 0 and n - 1 halvings (2 x 2 means, odd borders dropped)."""
    levels = [base]
    for _ in range(n - 1):
        last = levels[-1][: levels[-1].shape[0] // 2 * 2, : levels[-1].shape[1] // 2 * 2].astype(np.uint16)
        levels.append(((last[::2, ::2] + last[1::2, ::2] + last[::2, 1::2] + last[1::2, 1::2] + 2) >> 2).astype(np.uint8))
    return levels


def by_vips(path: Path, base: np.ndarray, compression: str, **options: Any) -> Path:
    """A pyramid by libvips: JPEGTables and abbreviated YCbCr streams for JPEG.

    Its ``rgbjpeg=True`` is a liar: tagged RGB, the components are subsampled YCbCr (libvips 8.18).
    """
    import pyvips

    image = pyvips.Image.new_from_array(base).copy(interpretation="srgb", xres=2000.0, yres=2500.0)  # pixels per mm
    options = {"tile": True, "tile_width": 64, "tile_height": 64, "pyramid": True, "Q": 75, "resunit": "cm"} | options
    image.tiffsave(str(path), compression=compression, **options)
    return path


def tiles(level: np.ndarray, side: int, encode: Any) -> Iterator[bytes]:
    """Encoded tiles, row-major, edges padded with the border's pixels."""
    rows, cols = -(-level.shape[0] // side), -(-level.shape[1] // side)
    padded = np.pad(level, ((0, rows * side - level.shape[0]), (0, cols * side - level.shape[1]), (0, 0)), "edge")
    for row in range(rows):
        for col in range(cols):
            yield encode(np.ascontiguousarray(padded[row * side : (row + 1) * side, col * side : (col + 1) * side]))


def rgb_to_ycbcr(array: np.ndarray) -> np.ndarray:
    """(rows, cols, 3) uint8, full-range BT.601."""
    r, g, b = (array[..., i].astype(np.float64) for i in range(3))
    y = 0.299 * r + 0.587 * g + 0.114 * b
    return np.stack([y, 128 + (b - y) / 1.772, 128 + (r - y) / 1.402], axis=-1).round().clip(0, 255).astype(np.uint8)


def jp2_encoder(compression: int) -> Any:
    """Lossless JPEG 2000 codestreams as Aperio's 33003 (components Y, Cb, Cr) or 33005 (R, G, B) want them."""
    import imagecodecs

    def encode(tile: np.ndarray) -> bytes:
        tile = rgb_to_ycbcr(tile) if compression == 33003 else tile
        return bytes(imagecodecs.jpeg2k_encode(tile, level=0, reversible=True, mct=False, codecformat="j2k"))

    return encode


def jpeg_rgb_encoder(quality: int = 90, keep_markers: bool = False) -> Any:
    """Complete JPEGs whose components are R, G, B; by default nothing in them says so (no Adobe marker, ids 0, 1, 2: Aperio's streams)."""
    import imagecodecs

    from medspark.slides.splice import SOI, parse_head

    def encode(tile: np.ndarray) -> bytes:
        data = bytes(imagecodecs.jpeg8_encode(tile, level=quality, outcolorspace="rgb"))
        if keep_markers:
            return data
        head = parse_head(data)
        kept = b""
        for marker, body in head.segments:
            if marker == 0xC0:  # frame header: ids at bytes 10, 13, 16
                body = body[:10] + b"\0" + body[11:13] + b"\1" + body[14:16] + b"\2" + body[17:]
            elif marker == 0xDA:  # scan header: ids at bytes 5, 7, 9
                body = body[:5] + b"\0" + body[6:7] + b"\1" + body[8:9] + b"\2" + body[10:]
            elif 0xE0 <= marker <= 0xEF:
                continue
            kept += body
        return SOI + kept + data[head.size :]

    return encode


def abbreviated(encode: Any) -> tuple[Any, bytes]:
    """An encoder whose streams leave out their tables, and those tables (TIFF tag 347): what Aperio's scanners write."""
    from medspark.slides.splice import EOI, SOI, parse_head

    def split(data: bytes) -> tuple[bytes, bytes]:
        head = parse_head(data)
        inside = [b"".join(body for marker, body in head.segments if (marker in (0xDB, 0xC4)) == is_table) for is_table in (True, False)]
        return SOI + inside[0] + EOI, SOI + inside[1] + data[head.size :]

    tables = split(encode(np.zeros((64, 64, 3), np.uint8)))[0]
    return (lambda tile: split(encode(tile))[1]), tables


def aperio(
    path: Path,
    levels: list[np.ndarray],
    compression: int,
    encode: Any,
    side: int = 64,
    bigtiff: bool = False,
    sparse: Any = (),
    tables: bytes = b"",
) -> Path:
    """An Aperio-like file: level 0, striped thumbnail, lower levels, striped label and macro. ``sparse``: (level, tile) to leave out."""
    import tifffile

    height, width = levels[0].shape[:2]
    text = APERIO.format(w=width, h=height)

    def encoded(level: int) -> Iterator[bytes]:
        for place, data in enumerate(tiles(levels[level], side, encode)):
            yield b"" if (level, place) in sparse else data

    with tifffile.TiffWriter(path, bigtiff=bigtiff) as out:

        def page(level: int) -> None:
            shape = levels[level].shape
            common: dict[str, Any] = {"extratags": [(347, 7, len(tables), tables, True)] if tables else []}
            if compression == 7:
                common["compressionargs"] = {"outcolorspace": "rgb"}  # else tifffile turns the tag into YCbCr
            common |= {"tile": (side, side), "photometric": "rgb", "metadata": None, "description": text}
            out.write(encoded(level), shape=shape, dtype=np.uint8, compression=compression, subfiletype=0, **common)

        page(0)
        out.write(levels[-1], photometric="rgb", metadata=None, description=text + "\n thumbnail")
        for level in range(1, len(levels)):
            page(level)
        label = np.full((40, 60, 3), 7, np.uint8)  # the patient's name would be here
        out.write(label, photometric="rgb", metadata=None, description=f"{text.splitlines()[0]}\r\nlabel 60x40", subfiletype=1)
        out.write(label, photometric="rgb", metadata=None, description=f"{text.splitlines()[0]}\r\nmacro 60x40", subfiletype=9)
    return path


def generic(path: Path, levels: list[np.ndarray], compression: str | None, subifds: bool = False, side: int = 64, **options: Any) -> Path:
    """A tiled pyramid by tifffile, lower levels as reduced pages or as SubIFDs of the first."""
    import tifffile

    with tifffile.TiffWriter(path, bigtiff=options.pop("bigtiff", False), byteorder=options.pop("byteorder", "<")) as out:
        place = {"resolution": options.pop("resolution", (40_000, 50_000)), "resolutionunit": options.pop("resolutionunit", "CENTIMETER")}
        common = {"tile": (side, side), "photometric": "rgb", "metadata": None, "compression": compression} | options
        out.write(levels[0], subifds=len(levels) - 1 if subifds else None, **place, **common)
        for level in levels[1:]:
            out.write(level, subfiletype=1, **common)
    return path


FIRST_DIRECTORY = 16  # of `raw_tiff`


def raw_tiff(path: Path, directories: Sequence[Mapping[int, tuple[int, int, bytes]]], following: list[int] | None = None) -> Path:
    """A classic little-endian TIFF written tag by tag, honest or not.

    directories : tag -> (type, count, value bytes: 4 of them stand in the entry, whatever they point to)
    following : index of the next directory for each, -1 for the end; default: one after the other
    """
    sizes = [2 + 12 * len(tags) + 4 for tags in directories]
    starts = [FIRST_DIRECTORY + sum(sizes[:i]) for i in range(len(sizes))]
    following = [*range(1, len(directories)), -1] if following is None else following
    data = struct.pack("<2sHI", b"II", 42, FIRST_DIRECTORY) + struct.pack("<4H", 8, 8, 8, 0)  # behind the head: bits per sample
    for tags, after in zip(directories, following, strict=True):
        data += struct.pack("<H", len(tags))
        for tag, (kind, count, value) in sorted(tags.items()):
            data += struct.pack("<HHI4s", tag, kind, count, value)
        data += struct.pack("<I", 0 if after < 0 else starts[after])
    path.write_bytes(data + bytes(256))
    return path


def honest_tags(**other: tuple[int, int, bytes]) -> dict[int, tuple[int, int, bytes]]:
    """Of `raw_tiff`: 4 x 4 pixels, one uncompressed RGB tile of the same size; keywords ``t256=...`` replace tags."""

    def short(value: int) -> tuple[int, int, bytes]:
        return 3, 1, struct.pack("<HH", value, 0)

    def long(value: int) -> tuple[int, int, bytes]:
        return 4, 1, struct.pack("<I", value)

    tags = {
        256: long(4),
        257: long(4),
        258: (3, 3, struct.pack("<I", 8)),
        259: short(1),
        262: short(2),
        277: short(3),
        322: short(4),
        323: short(4),
    }
    tags |= {324: long(8), 325: long(48)}
    return tags | {int(name[1:]): value for name, value in other.items()}
