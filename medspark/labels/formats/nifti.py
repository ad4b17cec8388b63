"""NIfTI label volumes: one plane per slice k and label value, rows = j, columns = i, without flips, with its affine to LPS mm.

The data are read slice after slice (x runs fastest in the file, so slice k is one contiguous piece), inflated no further than needed.
"""

from __future__ import annotations

import gzip
import io
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import IO, Any

import numpy as np

from medspark.errors import Rejected
from medspark.labels.formats.bands import whole_numbers
from medspark.labels.formats.mask import MAX_CLASSES, distinct, name_classes, run_heads
from medspark.labels.regions import MAX_COORDINATE, Context, Item, MaskPlane

HEADER_BYTES = 540  # of NIfTI-2; NIfTI-1 has 348
RAS_TO_LPS = np.diag([-1.0, -1.0, 1.0, 1.0])
_MM_PER_UNIT = {"mm": 1.0, "unknown": 1.0, "meter": 1000.0, "micron": 0.001}


@dataclass(frozen=True)
class Volume:
    """Header of a label volume. affine: (i, j, k, 1) -> LPS mm; None where the file gives neither sform nor qform."""

    rows: int
    cols: int
    slices: int
    dtype: np.dtype
    slope: float
    intercept: float
    offset: int
    affine: np.ndarray | None


def read(path: str, context: Context) -> Iterator[Item]:
    """`MaskPlane` of every slice and value that occurs; two passes (the first finds the values)."""
    volume = header(path)
    context.check_pixels(volume.rows, volume.cols)
    if volume.slices * volume.rows * volume.cols * volume.dtype.itemsize > context.settings.guard.max_file_bytes:
        raise Rejected("TOO_LARGE", "the label volume exceeds guard.max_file_bytes")
    values: set[int] = set()
    for _, array in _slices(path, volume, context):
        values |= distinct(run_heads(array))
        if len(values) > MAX_CLASSES:
            raise Rejected("LABEL_FORMAT", f"more than {MAX_CLASSES} distinct values: not a label volume")
    classes = name_classes(values, context.classes, colour=False)
    images = context.images()
    if not classes and volume.slices == 1:
        empty = np.zeros((volume.rows, volume.cols), bool)
        for entry in context.classes.foreground():
            for image in images:
                yield MaskPlane.of_bits(empty, image, entry.label, role=entry.role, affine=_plane_affine(volume, 0))
    for k, array in _slices(path, volume, context) if classes else ():
        for value, entry in classes.items():
            inside = array == value
            if not inside.any():
                continue
            for image in images:
                yield MaskPlane.of_bits(inside, image, entry.label, role=entry.role, affine=_plane_affine(volume, k))


def is_nifti(head: bytes) -> bool:
    """Whether inflated bytes begin with a NIfTI-1 or NIfTI-2 header of a single file."""
    return (head[:4] in (b"\x5c\x01\0\0", b"\0\0\x01\x5c") and head[344:348] == b"n+1\0") or (
        head[:4] in (b"\x1c\x02\0\0", b"\0\0\x02\x1c") and head[4:8] == b"n+2\0"
    )


@contextmanager
def open_bytes(path: str) -> Iterator[IO[bytes]]:
    """The file, inflated on the fly where it is gzip."""
    with open(path, "rb") as stream:
        packed = stream.read(2) == b"\x1f\x8b"
        stream.seek(0)
        if packed:
            with gzip.GzipFile(fileobj=stream, mode="rb") as inflated:
                yield inflated  # type: ignore[misc]
        else:
            yield stream


def header(path: str) -> Volume:
    """Raises Rejected(LABEL_FORMAT, LABEL_GEOMETRY, TRUNCATED)."""
    import nibabel

    with open_bytes(path) as stream:
        try:
            head = stream.read(HEADER_BYTES)
        except (OSError, EOFError, zlib.error):
            raise Rejected("TRUNCATED", "the NIfTI file ends in its header") from None
    if not is_nifti(head):
        raise Rejected("LABEL_FORMAT", "not a NIfTI file")
    if len(head) < (352 if head[344:348] == b"n+1\0" else HEADER_BYTES):
        raise Rejected("TRUNCATED", "the NIfTI file ends in its header")
    cls = nibabel.Nifti1Header if head[344:348] == b"n+1\0" else nibabel.Nifti2Header
    try:
        said: Any = cls.from_fileobj(io.BytesIO(head), check=False)
        dims, dtype, units = [int(side) for side in said["dim"]], said.get_data_dtype(), said.get_xyzt_units()[0]
        slope, intercept, offset = float(said["scl_slope"]), float(said["scl_inter"]), int(said["vox_offset"])
        affine = said.get_sform() if int(said["sform_code"]) else (said.get_qform() if int(said["qform_code"]) else None)
    except (
        nibabel.spatialimages.HeaderDataError,
        nibabel.wrapstruct.WrapStructError,
        ValueError,
        KeyError,
        np.linalg.LinAlgError,
        OverflowError,
    ):
        raise Rejected("LABEL_FORMAT", "the NIfTI header cannot be parsed") from None
    if not 2 <= dims[0] <= 7 or any(side < 1 for side in dims[1 : dims[0] + 1]) or any(side > 1 for side in dims[4 : dims[0] + 1]):
        raise Rejected("LABEL_SIZE", "a label volume has two or three dimensions")
    if dtype.kind not in "iuf" or offset < 0:
        raise Rejected("LABEL_FORMAT", "the NIfTI file holds no plain numbers")
    if affine is not None:
        affine = RAS_TO_LPS @ affine.astype(np.float64)
        affine[:3] *= _MM_PER_UNIT.get(units, 1.0)
        if not (np.abs(affine) <= MAX_COORDINATE).all() or abs(np.linalg.det(affine[:3, :3])) < 1e-12:
            raise Rejected("LABEL_GEOMETRY", "the NIfTI affine is not finite or not invertible")
    if not np.isfinite([slope, intercept]).all() or slope == 0:  # NIfTI-1: a slope of 0 means none
        slope, intercept = 1.0, 0.0
    # dim[1] runs fastest in the file (i), so a slice read as (j, i) is (rows, cols)
    slices = dims[3] if dims[0] >= 3 else 1
    return Volume(dims[2], dims[1], slices, dtype, slope, intercept, max(offset, 352 if cls is nibabel.Nifti1Header else 544), affine)


def _slices(path: str, volume: Volume, context: Context) -> Iterator[tuple[int, np.ndarray]]:
    """(k, (rows, cols) integers) from the first slice to the last."""
    size = volume.rows * volume.cols * volume.dtype.itemsize
    with open_bytes(path) as stream:
        context.watch("header")
        try:
            stream.seek(volume.offset)
            for k in range(volume.slices):
                if k % 32 == 0:
                    context.watch(f"k {k}")
                raw = stream.read(size)
                if len(raw) != size:
                    raise Rejected("TRUNCATED", "the NIfTI file holds fewer voxels than its header says")
                array = np.frombuffer(raw, volume.dtype).reshape(volume.rows, volume.cols)
                if (volume.slope, volume.intercept) != (1.0, 0.0):
                    array = array * volume.slope + volume.intercept
                yield k, whole_numbers(array)
        except (EOFError, zlib.error, OSError):
            raise Rejected("TRUNCATED", "the NIfTI file cannot be inflated to its end") from None


def _plane_affine(volume: Volume, k: int) -> tuple[float, ...] | None:
    """(col, row, 0, 1) of slice k -> LPS mm, row-major."""
    if volume.affine is None:
        return None
    affine = volume.affine.copy()
    affine[:3, 3] += k * affine[:3, 2]
    return tuple(float(value) for value in affine.ravel())
