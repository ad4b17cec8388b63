"""NIfTI-1 and NIfTI-2 volumes, slice by slice: the same rows as DICOM gives.

A slice of row ``slices`` is one (t, k) plane of the file, ``array[j, i] = data[i, j, k, t]``: rows run along j, columns along i, without
flips. The voxel axes become row and column cosines, RAS becomes LPS, so that positions mean what ImagePositionPatient means: the centre of
the first pixel. The file is read as a stream (inflated no further than its own header declares), one plane in memory at a time.

NIfTI-1: https://nifti.nimh.nih.gov/pub/dist/src/niftilib/nifti1.h
"""

from __future__ import annotations

import gzip
import hashlib
import math
import os
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import IO, Any

import numpy as np

from medspark.config import Config
from medspark.errors import Rejected
from medspark.keys import Ids
from medspark.pixels.codecs import BLOSC2_MAX_BYTES, encode
from medspark.pixels.equal import pixel_hash
from medspark.series import geometry, rescale
from medspark.series.header import subject_of
from medspark.tables.names import file_token, folder_token
from medspark.tables.rows import Rejection, Rows
from medspark.tables.verdicts import usable
from medspark.tables.work import SourceFile, Watch

HEADER_BYTES = 540  # of NIfTI-2; NIfTI-1 has 348
DEFLATE_RATIO = 1032  # deflate cannot pack tighter, so a .gz that declares more than this times its size cannot hold it
TRAILING_BYTES = 1 << 20  # what may follow the voxels; more is no NIfTI file (or a bomb)
CHUNK_BYTES = 32 << 20  # of encoded payload per `Rows`
READ_BYTES = 1 << 20
SHORTEST_AXIS = 1e-9  # a form with a shorter voxel axis (all zeros, mostly) maps nothing anywhere: it counts as absent
RAS_TO_LPS = np.diag([-1.0, -1.0, 1.0, 1.0])
MM_PER_UNIT = {"meter": 1000.0, "mm": 1.0, "micron": 1e-3, "unknown": 1.0}
MS_PER_UNIT = {"sec": 1000.0, "msec": 1.0, "usec": 1e-3}
RGB24 = 128  # datatype code of three unsigned bytes per voxel


@dataclass(frozen=True)
class Grid:
    """What a header says about the voxels.

    affine_lps_mm : (4, 4) float64 or None    (i, j, k, 1) to LPS mm: sform, else qform, else None
    spacing_mm : along i, j, k, always > 0
    step_ms : time between volumes, None where it is not known
    """

    shape: tuple[int, int, int]
    volumes: int
    dtype: np.dtype
    channels: int
    offset: int
    affine_lps_mm: np.ndarray | None
    spacing_mm: tuple[float, float, float]
    step_ms: float | None
    slope: float | None
    intercept: float | None

    @property
    def plane_bytes(self) -> int:
        return self.shape[0] * self.shape[1] * self.channels * self.dtype.itemsize

    @property
    def planes(self) -> int:
        return self.shape[2] * self.volumes

    @property
    def end(self) -> int:
        """Length of the decompressed file, without what may follow the voxels."""
        return self.offset + self.planes * self.plane_bytes

    @property
    def stored(self) -> np.dtype:
        """Of the stored planes: the file's integers in little endian, float32 for every float."""
        return np.dtype("<f4") if self.dtype.kind == "f" else self.dtype.newbyteorder("<")


# --- the header -------------------------------------------------------------------------------------------------------------------


def read_header(raw: bytes) -> tuple[Grid, dict[str, Any]]:
    """(grid, the header's fields) from the first `HEADER_BYTES` of a decompressed file; raises Rejected(NIFTI_UNREADABLE)."""
    from nibabel.nifti1 import Nifti1Header
    from nibabel.nifti2 import Nifti2Header
    from nibabel.spatialimages import HeaderDataError

    lengths = {int.from_bytes(raw[:4], order) for order in ("little", "big")}
    cls, size = (Nifti1Header, 348) if 348 in lengths else (Nifti2Header, 540) if 540 in lengths else (None, 0)
    if cls is None or len(raw) < size:
        raise Rejected("NIFTI_UNREADABLE", "the file does not begin with a NIfTI header")
    try:
        header = cls(raw[:size], check=False)
        return _grid(header, size), dict(header.items())
    except (HeaderDataError, ValueError, KeyError, OverflowError, np.linalg.LinAlgError) as error:
        raise Rejected("NIFTI_UNREADABLE", f"the header cannot be read ({type(error).__name__})") from None


def _grid(header: Any, size: int) -> Grid:
    magic = bytes(header["magic"].tobytes())[:3]
    if magic not in (b"n+1", b"n+2"):
        raise Rejected("NIFTI_UNREADABLE", "only single-file NIfTI is read (.nii, .nii.gz), not a header beside its image, nor Analyze")
    dims = [int(length) for length in header["dim"]]
    sides = dims[1 : 1 + dims[0]] if 1 <= dims[0] <= 7 else []
    if len(sides) < 2 or min(sides) < 1:
        raise Rejected("NIFTI_UNREADABLE", "the dimensions are not 2 to 7 positive numbers")
    sides += [1, 1]
    dtype, channels = _dtype(header)
    offset = float(header["vox_offset"])
    if not 0 <= offset < 1 << 40:
        raise Rejected("NIFTI_UNREADABLE", "the voxels' offset is no place in the file")
    affine, unit = _affine(header)
    pixdim = [abs(float(length)) for length in header["pixdim"]]
    spacing = [length * unit if math.isfinite(length) and length > 0 else unit for length in pixdim[1:4]]
    if affine is not None:
        spacing = [float(length) for length in np.linalg.norm(affine[:3, :3], axis=0)]
    slope, intercept = (None, None) if channels == 3 else header.get_slope_inter()
    return Grid(
        shape=(sides[0], sides[1], sides[2]),
        volumes=math.prod(sides[3:]),
        dtype=dtype,
        channels=channels,
        offset=max(int(offset), size + 4),  # four bytes say whether extensions follow the header
        affine_lps_mm=affine,
        spacing_mm=(spacing[0], spacing[1], spacing[2]),
        step_ms=_step_ms(header, pixdim[4]),
        slope=None if slope is None else float(slope),
        intercept=None if slope is None else float(intercept or 0.0),
    )


def _dtype(header: Any) -> tuple[np.dtype, int]:
    if int(header["datatype"]) == RGB24:
        return np.dtype("u1"), 3
    dtype = header.get_data_dtype()
    if dtype.fields is not None or dtype.kind not in "iuf" or dtype.itemsize > 8:
        raise Rejected("NIFTI_UNREADABLE", "voxels that are complex, RGBA or longer than 64 bits are not read")
    return dtype, 1


def _affine(header: Any) -> tuple[np.ndarray | None, float]:
    """((i, j, k, 1) to LPS mm or None, mm per unit of the file)."""
    try:
        unit = MM_PER_UNIT.get(header.get_xyzt_units()[0], 1.0)
    except KeyError:  # a code that the standard does not know
        unit = 1.0
    for form in (header.get_sform, header.get_qform):
        ras = form(coded=True)[0]
        if ras is None:
            continue
        lps = RAS_TO_LPS @ (np.diag([unit, unit, unit, 1.0]) @ np.asarray(ras, np.float64))
        if np.isfinite(lps).all() and (np.linalg.norm(lps[:3, :3], axis=0) > SHORTEST_AXIS).all():
            return lps + 0.0, unit  # + 0.0: no negative zeros
    return None, unit


def _step_ms(header: Any, step: float) -> float | None:
    try:
        unit = MS_PER_UNIT.get(header.get_xyzt_units()[1])
    except KeyError:
        return None
    return step * unit if unit is not None and math.isfinite(step) and step > 0 else None


# --- scan -------------------------------------------------------------------------------------------------------------------------


def scan(path: str, uri: str, ids: Ids, settings: Config) -> dict[str, Any]:
    """What the plan needs to know of one file; the same keys as a DICOM file's header, and ``content``.

    content : SHA-256 of the decompressed file, by which its images are known (contract.md section 2)
    Raises Rejected: NIFTI_UNREADABLE, TRUNCATED, TOO_LARGE, EMPTY_FILE.
    """
    grid, content = _examine(path, settings)
    return {
        "kind": "nifti",
        "uid": "",
        "sop": "",
        "part": content[:16],
        "study": "",
        "patient_id": None,
        "issuer": None,
        "sex": None,
        "age_years": None,
        "position_mm": None,
        "rows": grid.shape[1],
        "cols": grid.shape[0],
        "frames": grid.planes,
        "frame_bytes": grid.plane_bytes,
        "modality": "OT",
        "syntax": "",
        "assumed": False,
        "content": content,
    }


def _examine(path: str, settings: Config) -> tuple[Grid, str]:
    """(grid, SHA-256 of the decompressed file), reading no further than the header declares."""
    size = os.path.getsize(path)
    if size == 0:
        raise Rejected("EMPTY_FILE", "the file is empty")
    with _opened(path) as stream:
        raw = _exactly(stream, HEADER_BYTES, short_is_fine=True)
        grid, _ = read_header(raw)
        _check_size(grid, size, isinstance(stream, gzip.GzipFile), settings)
        digest, length = hashlib.sha256(raw), len(raw)
        while piece := _read(stream, READ_BYTES):
            length += len(piece)
            if length > grid.end + TRAILING_BYTES:
                raise Rejected("TOO_LARGE", "the file goes on long after the voxels that its header declares")
            digest.update(piece)
    if length < grid.end:
        raise Rejected("TRUNCATED", "the file ends before the voxels that its header declares")
    return grid, digest.hexdigest()


def _check_size(grid: Grid, size: int, compressed: bool, settings: Config) -> None:
    plane = grid.shape[0] * grid.shape[1]
    if plane > settings.guard.max_pixels or plane * grid.channels * grid.stored.itemsize > BLOSC2_MAX_BYTES:
        raise Rejected("TOO_LARGE", "a slice has more pixels than guard.max_pixels")
    if grid.end > (size * DEFLATE_RATIO if compressed else size):
        raise Rejected("TRUNCATED", "the file is too short for the voxels that its header declares")


def _opened(path: str) -> IO[bytes]:
    stream = open(path, "rb")  # noqa: SIM115 - returned open; the caller closes it
    magic = stream.read(2)
    stream.seek(0)
    if magic != b"\x1f\x8b":
        return stream
    return _Inflated(stream)  # type: ignore[return-value]


class _Inflated(gzip.GzipFile):
    """A gzip stream that closes the file below it as well."""

    def __init__(self, stream: IO[bytes]) -> None:
        super().__init__(fileobj=stream, mode="rb")
        self._below = stream

    def close(self) -> None:
        try:
            super().close()
        finally:
            self._below.close()


def _read(stream: IO[bytes], size: int) -> bytes:
    try:
        return stream.read(size)
    except EOFError:
        raise Rejected("TRUNCATED", "the compressed file ends early") from None
    except (gzip.BadGzipFile, zlib.error):
        raise Rejected("NIFTI_UNREADABLE", "the compressed file is broken") from None


def _exactly(stream: IO[bytes], size: int, short_is_fine: bool = False) -> bytes:
    parts, left = [], size
    while left > 0 and (piece := _read(stream, left)):
        parts.append(piece)
        left -= len(piece)
    if left and not short_is_fine:
        raise Rejected("TRUNCATED", "the file ends before the voxels that its header declares")
    return parts[0] if len(parts) == 1 else b"".join(parts)


# --- explode ----------------------------------------------------------------------------------------------------------------------


def series_id(dataset: str, content: str, ids: Ids) -> str:
    """A NIfTI file is one series."""
    return ids.series(dataset, "nifti:" + content, "", "", "")


def series_instance_id(dataset: str, content: str, ids: Ids) -> str:
    return "nifti." + ids.digest("nifti", dataset, content)


def explode_file(source: SourceFile, header: Mapping[str, Any], ids: Ids, settings: Config, watch: Watch) -> Iterator[Rows | Rejection]:
    """Rows of ``slices`` and ``pixels`` (codec blosc2), in the file's order, in bounded chunks.

    header : what `scan` returned (``content`` and ``modality`` are used; without them the file is examined again, modality OT)
    ``frame_number - 1`` is t * planes + the file's own k; column ``k`` counts along row x column cosines as in DICOM, so it runs against
    the file's k where the voxel axes are left-handed in LPS. Without sform and qform, positions are distances from the first slice.
    A file that breaks off midway gives the slices before it and a `Rejection` with the number of the lost ones.
    """
    chunk = _Chunk()
    done = planes = 0
    try:
        with source.opened() as path:
            content = header.get("content") or _examine(path, settings)[1]
            with _opened(path) as stream:
                raw = _exactly(stream, HEADER_BYTES, short_is_fine=True)
                grid, fields = read_header(raw)
                planes = grid.planes
                _check_size(grid, os.path.getsize(path), isinstance(stream, gzip.GzipFile), settings)
                common = _common(source, str(content), str(header.get("modality") or "OT"), grid, fields, ids, settings)
                head = raw[grid.offset :]  # the voxels of a small NIfTI-1 file begin within what was read as header
                _exactly(stream, max(grid.offset - len(raw), 0))
                for place in range(planes):
                    t, k = divmod(place, grid.shape[2])
                    watch(source, f"t {t} k {k}")
                    take = min(len(head), grid.plane_bytes)
                    data = head[:take] + _exactly(stream, grid.plane_bytes - take)
                    head = head[take:]
                    chunk.add(_slice(data, t, k, grid, common, str(content), ids))
                    done += 1
                    if chunk.n_bytes >= CHUNK_BYTES:
                        yield from chunk.flush()
    except Rejected as error:
        yield from chunk.flush()
        yield Rejection(source.source_id, source.uri, "explode", error.code, error.reason, planes - done)
        return
    yield from chunk.flush()


def _common(
    source: SourceFile, content: str, modality: str, grid: Grid, fields: Mapping[str, Any], ids: Ids, settings: Config
) -> dict[str, Any]:
    """The columns that all slices of the file share."""
    from medspark.deid import nifti_header_json

    subject_key, nameless = subject_of(None, None, None, "", source, ids)
    verdict = ["NO_SUBJECT"] if nameless else []
    if grid.affine_lps_mm is None and modality in ("CT", "MR"):
        verdict.append("NO_POSITION")
    orientation = None if grid.affine_lps_mm is None else geometry.unit_orientation(_cosines(grid.affine_lps_mm))
    return {
        "series_id": series_id(source.dataset, content, ids),
        "series_instance_id": series_instance_id(source.dataset, content, ids),
        "source_id": source.source_id,
        "dataset": source.dataset,
        "subject_key": subject_key,
        "study_id": ids.digest("study", source.dataset, subject_key),
        "modality": modality,
        "image_type": [],
        "rows": grid.shape[1],
        "cols": grid.shape[0],
        "channels": grid.channels,
        "pixel_spacing_mm": [grid.spacing_mm[1], grid.spacing_mm[0]],
        "pixel_spacing_source": "nifti",
        "slice_thickness_mm": grid.spacing_mm[2],
        "image_orientation": None if orientation is None else list(orientation),
        "photometric": "RGB" if grid.channels == 3 else "MONOCHROME2",
        "bits_stored": 8 * grid.stored.itemsize,
        "high_bit": 8 * grid.stored.itemsize - 1,
        "pixel_representation": int(grid.stored.kind != "u"),
        "rescale_slope": grid.slope,
        "rescale_intercept": grid.intercept,
        "is_hu": False,
        "file_token": file_token(ids, source.uri),
        "folder_token": folder_token(ids, source.uri),
        "verdict": verdict,
        "usable": usable(verdict, settings.verdicts),
        "header_json": nifti_header_json(fields, settings.deid.profile),
    }


def _cosines(affine: np.ndarray) -> list[float]:
    """Directions of growing i (along a row) and growing j (down a column), at unit length."""
    axes = affine[:3, :2] / np.linalg.norm(affine[:3, :2], axis=0)
    return [float(value) for value in axes.T.ravel()]


def _slice(
    data: bytes, t: int, k: int, grid: Grid, common: Mapping[str, Any], content: str, ids: Ids
) -> tuple[dict[str, Any], dict[str, Any]]:
    """(row of ``slices``, row of ``pixels``) of one plane, whose bytes are given in the file's order (i fastest)."""
    shape = (grid.shape[1], grid.shape[0]) if grid.channels == 1 else (grid.shape[1], grid.shape[0], grid.channels)
    with np.errstate(over="ignore"):  # a float64 beyond float32 becomes infinite
        array = np.frombuffer(data, grid.dtype).astype(grid.stored, copy=False).reshape(shape)
    image_id = ids.image(common["series_id"], common["dataset"], "nifti:" + content, t, k)
    stats = rescale.statistics(array, grid.slope, grid.intercept)
    last = grid.shape[2] - 1
    origin, position, along = None, k * grid.spacing_mm[2], k
    if grid.affine_lps_mm is not None:
        origin = [float(value) for value in grid.affine_lps_mm[:3, 3] + k * grid.affine_lps_mm[:3, 2]]
        if common["image_orientation"] is not None:
            position = geometry.position_mm(origin, common["image_orientation"])
            against = float(np.dot(geometry.normal(common["image_orientation"]), grid.affine_lps_mm[:3, 2])) < 0
            along = last - k if against else k
    row = {
        **common,
        "image_id": image_id,
        "frame_number": t * grid.shape[2] + k + 1,
        "t": t,
        "k": along,
        "position_mm": position,
        "image_position_mm": origin,
        "time_ms": t * grid.step_ms if grid.step_ms is not None and grid.volumes > 1 else None,
        "temporal_position": float(t) if grid.volumes > 1 else None,
        "value_min": stats.value_min,
        "value_max": stats.value_max,
        "value_mean": stats.value_mean,
        "value_std": stats.value_std,
        "pixel_hash": pixel_hash(array),
    }
    payload = {
        "image_id": image_id,
        "dataset": common["dataset"],
        "parent_id": common["series_id"],
        "codec": "blosc2",
        "dtype": grid.stored.name,
        "shape": list(shape),
        "params": {},
        "bytes": encode(array, "blosc2"),
    }
    return row, payload


class _Chunk:
    """Rows gathered until their payload is worth yielding; payload first, as children are committed before parents."""

    def __init__(self) -> None:
        self.slices: list[dict[str, Any]] = []
        self.pixels: list[dict[str, Any]] = []
        self.n_bytes = 0

    def add(self, pair: tuple[dict[str, Any], dict[str, Any]]) -> None:
        self.slices.append(pair[0])
        self.pixels.append(pair[1])
        self.n_bytes += len(pair[1]["bytes"])

    def flush(self) -> Iterator[Rows]:
        if self.slices:
            yield Rows.of("pixels", [{**row, "params": list(row["params"].items())} for row in self.pixels])
            yield Rows.of("slices", self.slices)
        self.slices, self.pixels, self.n_bytes = [], [], 0
