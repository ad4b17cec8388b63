"""Our own reader of tiled TIFF slides: Aperio and generic pyramids, classic and BigTIFF. TIFF 6.0, TIFF Technical Note 2, BigTIFF.

Everything is bounded: directories are counted and never visited twice, arrays must lie inside the file, and of the tile arrays only as many
entries are read as the level has tiles. Which pages are levels: Aperio's tiled pages; elsewhere the first page, then pages flagged as reduced
or its SubIFDs. A page of another shape than level 0 is never one (labels and overviews show the patient's name).
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np

from medspark.config import Guard
from medspark.errors import Rejected
from medspark.slides.codings import Coding, Jp2Coding, JpegCoding, RawCoding
from medspark.slides.slide import Level, NotOurs, downsamples
from medspark.slides.splice import Splicer, parse_head
from medspark.slides.stored import StoredSlide, TileTable, checked_extents

MAX_DIRECTORIES = 1000  # the largest pyramids with z-stacks have a few hundred pages
MAX_ENTRIES = 4096  # tags of one directory; real ones have about 30
MAX_TEXT_BYTES = 1 << 20  # ImageDescription, Software ...; OME-XML can be large, beyond this we only look at its beginning
MAX_ICC_BYTES = 16 << 20
MAX_TABLES_BYTES = 1 << 16  # DQT and DHT of one level: a few hundred bytes
SHAPE_TOLERANCE = 0.05  # a level's aspect ratio differs from level 0 by rounding only ...
SHAPE_TOLERANCE_PX = 2.0  # ... which is up to this many pixels on small levels
CLASSIC_BYTES = 1 << 32  # offsets of a classic TIFF end here; larger ones are NDPI's private extension

_WIDTH, _LENGTH, _BITS, _COMPRESSION, _PHOTOMETRIC, _DESCRIPTION = 256, 257, 258, 259, 262, 270
_MAKE, _MODEL, _SAMPLES, _XRES, _YRES, _PLANAR, _UNIT, _SOFTWARE = 271, 272, 277, 282, 283, 284, 296, 305
_SUBFILE, _PREDICTOR, _TILE_W, _TILE_H, _OFFSETS, _COUNTS, _SUBIFDS = 254, 317, 322, 323, 324, 325, 330
_FORMAT, _TABLES, _XMP, _ICC, _NDPI = 339, 347, 700, 34675, 65420

_SIZES = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8, 13: 4, 16: 8, 17: 8, 18: 8}
_UNSIGNED = {1: "u1", 3: "u2", 4: "u4", 13: "u4", 16: "u8", 18: "u8", 7: "u1"}
_COMPRESSION_NAMES = {1: "none", 5: "lzw", 8: "deflate", 32946: "deflate"}
_COLOURLESS = (0, 1, 4)  # PhotometricInterpretation: white is zero, black is zero, transparency mask
_UNITS_UM = {2: 25_400.0, 3: 10_000.0}  # ResolutionUnit: inch, centimetre


@dataclass(frozen=True)
class Directory:
    """One IFD: tag -> (type, count, offset of its bytes in the file)."""

    file: TiffFile
    tags: Mapping[int, tuple[int, int, int]]

    def __contains__(self, tag: int) -> bool:
        return tag in self.tags

    def raw(self, tag: int, most: int) -> bytes:
        """At most ``most`` bytes of a tag's value; b"" where it is absent."""
        if tag not in self.tags:
            return b""
        kind, count, offset = self.tags[tag]
        return self.file.bytes_at(offset, min(count * _SIZES[kind], most))

    def text(self, tag: int) -> str:
        return self.raw(tag, MAX_TEXT_BYTES).split(b"\0", 1)[0].decode("utf-8", "replace")

    def array(self, tag: int, n: int) -> np.ndarray:
        """(n,) unsigned; raises Rejected where the tag is absent, of another type or shorter."""
        kind, count, offset = self.tags.get(tag, (0, 0, 0))
        if kind not in _UNSIGNED or count < n:
            raise Rejected("SLIDE_UNREADABLE", f"TIFF tag {tag} has not the number or type of values that the image needs")
        dtype = np.dtype(self.file.order + _UNSIGNED[kind])
        return np.frombuffer(self.file.bytes_at(offset, n * dtype.itemsize), dtype)

    def number(self, tag: int, default: int) -> int:
        """The first value of a tag."""
        return int(self.array(tag, 1)[0]) if tag in self.tags else default

    def ratio(self, tag: int) -> float | None:
        """A RATIONAL's value; None where absent or not positive."""
        if self.tags.get(tag, (0, 0, 0))[0] != 5:
            return None
        top, bottom = np.frombuffer(self.raw(tag, 8), np.dtype(self.file.order + "u4")).tolist()
        return top / bottom if top > 0 and bottom > 0 else None

    @property
    def size(self) -> tuple[int, int]:
        return self.number(_WIDTH, 0), self.number(_LENGTH, 0)


class TiffFile:
    """Final. Bounded access to the directories of one TIFF."""

    def __init__(self, file: int) -> None:
        self.descriptor = file
        self.n_bytes = os.fstat(file).st_size
        head = os.pread(file, 16, 0)
        self.order = {b"II": "<", b"MM": ">"}.get(head[:2], "")
        version = self._int(head[2:4]) if self.order else 0
        if version not in (42, 43) or (version == 43 and (len(head) < 16 or self._int(head[4:6]) != 8)):
            raise NotOurs("not a TIFF", known=True)
        self.big = version == 43
        self.first = self._int(head[8:16] if self.big else head[4:8])
        self._seen: set[int] = set()

    def _int(self, data: bytes) -> int:
        return int.from_bytes(data, "little" if self.order == "<" else "big")

    def bytes_at(self, offset: int, n: int) -> bytes:
        if n > self.n_bytes or offset > self.n_bytes - n:
            raise Rejected("SLIDE_UNREADABLE", "the TIFF points outside itself")
        data = os.pread(self.descriptor, n, offset)
        if len(data) != n:
            raise Rejected("SLIDE_UNREADABLE", "the file ended while it was read")
        return data

    def directory(self, offset: int) -> tuple[Directory, int]:
        """The IFD at ``offset`` and the offset of the next, 0 for none; raises Rejected on cycles and on values outside the file."""
        if offset in self._seen:
            raise Rejected("SLIDE_UNREADABLE", "the TIFF's directories form a cycle")
        self._seen.add(offset)
        if len(self._seen) > MAX_DIRECTORIES:
            raise Rejected("SLIDE_UNREADABLE", f"the TIFF has more than {MAX_DIRECTORIES} directories")
        count_bytes, entry, word = (8, 20, 8) if self.big else (2, 12, 4)
        n = self._int(self.bytes_at(offset, count_bytes))
        if not 0 < n <= MAX_ENTRIES:
            raise Rejected("SLIDE_UNREADABLE", "a TIFF directory without tags, or with too many")
        table = self.bytes_at(offset + count_bytes, n * entry + word)
        tags: dict[int, tuple[int, int, int]] = {}
        for i in range(n):
            at = i * entry
            tag, kind = self._int(table[at : at + 2]), self._int(table[at + 2 : at + 4])
            count = self._int(table[at + 4 : at + 4 + word])
            if kind not in _SIZES:
                continue  # TIFF 6.0 §2: readers skip types they do not know
            n_bytes = count * _SIZES[kind]
            inline = offset + count_bytes + at + 4 + word
            place = inline if n_bytes <= word else self._int(table[at + 4 + word : at + entry])
            if n_bytes > self.n_bytes or place > self.n_bytes - n_bytes:
                raise Rejected("SLIDE_UNREADABLE", f"TIFF tag {tag} lies outside the file")
            tags.setdefault(tag, (kind, count, place))
        return Directory(self, tags), self._int(table[n * entry :])

    def pages(self) -> list[Directory]:
        pages, following = [], self.first
        while following:
            page, following = self.directory(following)
            pages.append(page)
        return pages

    def sub_directories(self, page: Directory) -> list[Directory]:
        if _SUBIFDS not in page:
            return []
        n = min(page.tags[_SUBIFDS][1], MAX_DIRECTORIES)
        return [self.directory(int(offset))[0] for offset in page.array(_SUBIFDS, n)]


def open_tiff(path: str, guard: Guard) -> StoredSlide:
    """The slide in a tiled TIFF.

    Raises NotOurs where OpenSlide knows better (NDPI, Leica, Philips, Ventana, Trestle; other sample layouts and compressions) or the file is
    no tiled TIFF; Rejected SLIDE_UNREADABLE for a broken one, NOT_A_SLIDE for a single channel, TOO_LARGE for tiles above ``guard.max_pixels``.
    """
    file = os.open(path, os.O_RDONLY | getattr(os, "O_CLOEXEC", 0))
    try:
        return _open(TiffFile(file), guard)
    except BaseException:
        os.close(file)
        raise


def _open(tiff: TiffFile, guard: Guard) -> StoredSlide:
    if not tiff.big and tiff.n_bytes > CLASSIC_BYTES:
        raise NotOurs("a classic TIFF of more than 4 GiB", known=True)
    first = tiff.directory(tiff.first)[0]
    vendor = _vendor(first)
    tiff._seen.clear()
    pages = tiff.pages()
    tiled = [page for page in pages if _is_tiled(page)]
    if pages[0].number(_SAMPLES, 1) == 1 and len(pages) == len([p for p in pages if p.number(_SAMPLES, 1) == 1]):
        raise Rejected("NOT_A_SLIDE", "a TIFF of one channel: a mask or a single fluorescence channel")
    if pages[0].number(_PHOTOMETRIC, 2) in _COLOURLESS:  # OpenSlide would show the first of its channels as grey
        raise Rejected("NOT_A_SLIDE", "a TIFF whose channels are no colours: a mask, or fluorescence")
    if not tiled:
        raise NotOurs("the TIFF is not tiled")
    level_pages = _levels(tiff, vendor, pages, tiled)
    sizes = [page.size for page in level_pages]
    levels, tables = [], []
    for page, down in zip(level_pages, downsamples(sizes), strict=True):
        level, table = _level(tiff, page, down, guard)
        levels.append(level)
        tables.append(table)
    if vendor == "aperio":
        tables = _missing_downwards(tables)
    base = level_pages[0]
    properties = _properties(vendor, base)
    mpp = _mpp(vendor, base, properties)
    if mpp is not None:
        properties |= {"openslide.mpp-x": repr(mpp[0]), "openslide.mpp-y": repr(mpp[1])}
    icc = base.tags[_ICC][1] if _ICC in base else 0
    return StoredSlide(
        vendor=vendor,
        levels=tuple(levels),
        tables=tuple(tables),
        max_pixels=guard.max_pixels,
        mpp_um=mpp,
        objective_power=_float(properties.get("aperio.AppMag")),
        icc_profile=base.raw(_ICC, MAX_ICC_BYTES) if 0 < icc <= MAX_ICC_BYTES else None,
        properties=properties,
        verdict=("COLOUR_DOUBT",) if _colour_doubt(base, tables[0]) else (),
        facts={"scanner_model": properties.get("aperio.ScannerType") or properties.get("tiff.Model")},
        borrow_missing=vendor == "aperio",
    )


def _vendor(page: Directory) -> str:
    """ "aperio" or "generic-tiff"; raises NotOurs for formats with rules of their own, which OpenSlide knows."""
    description, software = page.text(_DESCRIPTION), page.text(_SOFTWARE)
    if _NDPI in page:
        raise NotOurs("Hamamatsu NDPI", known=True)
    if "leica-microsystems.com/scn" in description:
        raise NotOurs("Leica SCN", known=True)
    if software.startswith("Philips"):
        raise NotOurs("Philips TIFF", known=True)
    if software.startswith("MedScan"):
        raise NotOurs("Trestle TIFF", known=True)
    if b"iScan" in page.raw(_XMP, MAX_TEXT_BYTES):
        raise NotOurs("Ventana BIF", known=True)
    return "aperio" if description.startswith("Aperio") and _is_tiled(page) else "generic-tiff"


def _is_tiled(page: Directory) -> bool:
    return all(tag in page for tag in (_TILE_W, _TILE_H, _OFFSETS, _COUNTS, _WIDTH, _LENGTH))


def _levels(tiff: TiffFile, vendor: str, pages: list[Directory], tiled: list[Directory]) -> list[Directory]:
    """The pages that are pyramid levels, largest first."""
    if vendor == "aperio":
        base, rest = pages[0], [page for page in tiled if page is not pages[0] and not _is_associated(page)]
    else:
        base = pages[0]
        if not _is_tiled(base):
            raise NotOurs("the TIFF's first page is not tiled")
        rest = [page for page in tiled if page is not base and page.number(_SUBFILE, 0) == 1]  # reduced; 4 = mask, 8 = macro
        rest += [page for page in tiff.sub_directories(base) if _is_tiled(page)]
    if min(base.size) < 1:
        raise Rejected("SLIDE_UNREADABLE", "a TIFF image without a size")
    found = {base.size: base}
    for page in rest:
        if page.size not in found and min(page.size) > 0 and _same_shape(base.size, page.size):
            found[page.size] = page  # of planes of a focus stack the first
    return sorted(found.values(), key=lambda page: page.size, reverse=True)


def _is_associated(page: Directory) -> bool:
    """Whether an Aperio page is a label or macro: its description's second line begins so; or its NewSubfileType says macro (9)."""
    lines = page.text(_DESCRIPTION).split("\n")
    return page.number(_SUBFILE, 0) & 8 != 0 or (len(lines) > 1 and lines[1].strip().startswith(("label", "macro")))


def _same_shape(base: tuple[int, int], other: tuple[int, int]) -> bool:
    """Whether ``other`` is ``base`` made smaller: the height that its width implies, within rounding."""
    if other[0] > base[0] or other[1] > base[1]:
        return False
    scale = base[0] / other[0]
    slack = max(SHAPE_TOLERANCE * other[1], SHAPE_TOLERANCE_PX)
    return abs(base[1] / scale - other[1]) <= slack


def _level(tiff: TiffFile, page: Directory, downsample: float, guard: Guard) -> tuple[Level, TileTable]:
    width, height = page.size
    tile_w, tile_h = page.number(_TILE_W, 0), page.number(_TILE_H, 0)
    if min(width, height, tile_w, tile_h) < 1 or max(width, height) >= 1 << 31:
        raise Rejected("SLIDE_UNREADABLE", "a TIFF level or its tiles have no possible size")
    if tile_w * tile_h > guard.max_pixels:
        raise Rejected("TOO_LARGE", f"tiles of {tile_w} x {tile_h} pixels are above guard.max_pixels")
    grid_cols, grid_rows = -(-width // tile_w), -(-height // tile_h)
    samples = page.number(_SAMPLES, 1)
    if samples == 1:
        raise Rejected("NOT_A_SLIDE", "a TIFF of one channel: a mask or a single fluorescence channel")
    depths = set(page.array(_BITS, samples).tolist()) if _BITS in page and samples <= 8 else {0}
    if samples != 3 or depths != {8} or page.number(_PLANAR, 1) != 1 or page.number(_FORMAT, 1) != 1:
        raise NotOurs("the TIFF's samples are not three interleaved 8-bit ones")
    n = grid_rows * grid_cols
    offsets, counts = checked_extents(page.array(_OFFSETS, n), page.array(_COUNTS, n), tiff.n_bytes, tile_w * tile_h)
    coding = _coding(tiff, page, tile_h, tile_w, offsets, counts)
    level = Level(width, height, tile_w, tile_h, downsample, coding.compression)
    return level, TileTable(tiff.descriptor, grid_rows, grid_cols, offsets, counts, coding)


def _missing_downwards(tables: list[TileTable]) -> list[TileTable]:
    """Aperio's encoder drops tiles, and what it made of them in the lower levels is no picture either: there they count as missing too, and are
    made from the level above. OpenSlide's rule, its rounding included."""
    found = tables[:1]
    for table in tables[1:]:
        above = found[-1]
        rows, cols = np.nonzero(above.counts.reshape(above.grid_rows, above.grid_cols) == 0)
        rows //= max(1, round(above.grid_rows / table.grid_rows))
        cols //= max(1, round(above.grid_cols / table.grid_cols))
        counts = table.counts.copy()
        counts[np.minimum(rows, table.grid_rows - 1) * table.grid_cols + np.minimum(cols, table.grid_cols - 1)] = 0
        found.append(replace(table, counts=counts))
    return found


def _coding(tiff: TiffFile, page: Directory, rows: int, cols: int, offsets: np.ndarray, counts: np.ndarray) -> Coding:
    compression, photometric = page.number(_COMPRESSION, 1), page.number(_PHOTOMETRIC, 2)
    if photometric not in (2, 6):
        raise NotOurs("the TIFF is neither RGB nor YCbCr")
    ycbcr = photometric == 6
    if compression == 7:
        tables = page.raw(_TABLES, MAX_TABLES_BYTES)
        try:
            # The tag decides, as in libtiff and OpenSlide: markers in the stream are for others.
            return JpegCoding(Splicer(tables, "ycbcr" if ycbcr else "rgb", rows, cols))
        except ValueError:
            raise Rejected("SLIDE_UNREADABLE", "the TIFF's JPEGTables are broken") from None
    if compression in (33003, 33005, 34712):
        ycbcr = compression == 33003 or (compression == 34712 and ycbcr)
        name = {33003: "jp2-ycbcr", 33005: "jp2-rgb", 34712: "jp2"}[compression]
        return Jp2Coding(rows, cols, ycbcr, name)
    if compression in _COMPRESSION_NAMES and not ycbcr and page.number(_PREDICTOR, 1) in (1, 2):
        return RawCoding(rows, cols, method=_COMPRESSION_NAMES[compression], differenced=page.number(_PREDICTOR, 1) == 2)
    raise NotOurs(f"TIFF compression {compression}")


def _colour_doubt(page: Directory, table: TileTable) -> bool:
    """Whether the first tile's JPEG says otherwise than the tag: tagged RGB, but JFIF, a transforming Adobe marker or subsampled chroma (libvips
    writes such files under ``rgbjpeg``); tagged YCbCr, but Adobe's transform 0. The tag is followed all the same, as OpenSlide does."""
    stored = np.flatnonzero(table.counts)
    if not isinstance(table.coding, JpegCoding) or not len(stored):
        return False
    try:
        head = parse_head(os.pread(table.file, int(table.counts[stored[0]]), int(table.offsets[stored[0]])))
    except ValueError:
        return False  # `read` will say that the tile is broken
    if page.number(_PHOTOMETRIC, 2) == 6:
        return head.adobe == 0 and not head.jfif
    return head.jfif or bool(head.adobe) or head.subsampled


def _properties(vendor: str, page: Directory) -> dict[str, str]:
    """Raw properties under the names that OpenSlide gives them."""
    found = {"openslide.vendor": vendor}
    description = page.text(_DESCRIPTION)
    if description:
        found |= {"openslide.comment": description, "tiff.ImageDescription": description}
    for tag, name in ((_MAKE, "Make"), (_MODEL, "Model"), (_SOFTWARE, "Software")):
        if page.text(tag):
            found[f"tiff.{name}"] = page.text(tag)
    for tag, name in ((_XRES, "XResolution"), (_YRES, "YResolution")):
        ratio = page.ratio(tag)
        if ratio is not None:
            found[f"tiff.{name}"] = repr(ratio)
    found["tiff.ResolutionUnit"] = {1: "none", 2: "inch", 3: "centimeter"}.get(page.number(_UNIT, 2), "unknown")
    if vendor == "aperio":
        for part in description.split("|")[1:]:
            name, equals, value = part.partition("=")
            if equals:
                found[f"aperio.{name.strip()}"] = value.strip()
        if "aperio.AppMag" in found:
            found["openslide.objective-power"] = found["aperio.AppMag"]
    return found


def _mpp(vendor: str, page: Directory, properties: Mapping[str, str]) -> tuple[float, float] | None:
    """Micrometres per pixel (x, y): Aperio's MPP; else the TIFF's resolution, an unstated unit being the inch (TIFF 6.0)."""
    if vendor == "aperio":
        mpp = _float(properties.get("aperio.MPP"))
        return None if mpp is None else (mpp, mpp)
    unit_um, x, y = _UNITS_UM.get(page.number(_UNIT, 2)), page.ratio(_XRES), page.ratio(_YRES)
    return None if unit_um is None or x is None or y is None else (unit_um / x, unit_um / y)


def _float(text: str | None) -> float | None:
    """A positive finite number, or None; a decimal comma (European scanners) is a point."""
    try:
        value = float((text or "").replace(",", "."))
    except ValueError:
        return None
    return value if 0 < value < float("inf") else None
