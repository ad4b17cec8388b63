"""NIfTI label volumes: one value per label on the series' own grid, or a volume per label where labels overlap.

Indices are (i, j, k) = (column, row, k); the affine goes to RAS mm. A NIfTI file has one step between its slices: a series whose gaps are
uneven has none that would be true, and is refused.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from medspark.errors import Rejected
from medspark.labels.export.rows import Mask
from medspark.labels.export.values import by_label, overlaps, value_type

LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])
VOXELS_AT = 352  # bytes: header and the four that say that no extension follows
SCANNER = 1  # NIFTI_XFORM_SCANNER_ANAT
SQUARE = 1e-6  # cosines between axes below this are right angles: only then a qform (no shear) says the same as the sform


@dataclass(frozen=True)
class Volume:
    """One label volume.

    t : which volume of the series;  label : None for all labels in one
    """

    t: int
    label: str | None
    data: bytes
    label_rows: int


def check(series: Mapping[str, Any]) -> np.ndarray:
    """(4, 4) RAS mm affine of (col, row, k); raises Rejected(LABEL_GEOMETRY) where the series has none, with the reason."""
    if series["affine_lps_mm"] is None:
        gap = series["slice_spacing_mm"]
        if series["n_slices"] < 2 or gap is None:
            raise Rejected("LABEL_GEOMETRY", "a series without two positions has no step between slices; use seg, coco or png")
        verdicts = [code for code in series["verdict"] if code in ("IRREGULAR_SPACING", "MISSING_SLICES", "DUPLICATE_POSITIONS")]
        said = f" ({', '.join(verdicts)})" if verdicts else ""
        raise Rejected(
            "LABEL_GEOMETRY",
            f"its slices are unevenly spaced{said}, the median gap is {gap:.2f} mm, and NIfTI has one step; use seg, coco or png",
        )
    affine: np.ndarray = LPS_TO_RAS @ np.array(series["affine_lps_mm"], np.float64).reshape(4, 4)
    return affine


def write(series: Mapping[str, Any], masks: Sequence[Mask], values: Mapping[str, int]) -> Iterator[Volume]:
    """The volumes of one reader's masks on one series, gzipped; holds one volume at a time.

    series : row of ``series``;  masks : ``image`` is their row of ``slices``
    values : label -> value;  raises Rejected(LABEL_GEOMETRY)
    """
    affine = check(series)
    depth, off = divmod(series["n_slices"], max(series["n_volumes"], 1))
    places = {(mask.image["t"], mask.image["k"]) for mask in masks}
    if off or any(k is None or not 0 <= k < depth for _, k in places):
        raise Rejected("LABEL_GEOMETRY", "its volumes are not complete, so that its slices have no place in one; use seg, coco or png")
    by_t: dict[int, list[Mask]] = {}
    for mask in masks:
        by_t.setdefault(mask.image["t"], []).append(mask)
    for t, of in sorted(by_t.items()):
        images: dict[str, list[Mask]] = {}
        for mask in of:
            images.setdefault(mask.image_id, []).append(mask)
        if any(overlaps(one) for one in images.values()):
            for label, mine in by_label(of).items():
                yield Volume(t, label, _pack(series, depth, mine, values, affine), len(mine))
        else:
            yield Volume(t, None, _pack(series, depth, of, values, affine), len(of))


def _pack(series: Mapping[str, Any], depth: int, masks: Sequence[Mask], values: Mapping[str, int], affine: np.ndarray) -> bytes:
    """A gzipped NIfTI-1 file, made slice after slice: in the file i runs fastest, so that a slice is its (rows, cols) array as it is."""
    import gzip
    import io

    import nibabel

    dtype = np.dtype(value_type(values)).newbyteorder("<")
    head = nibabel.Nifti1Header(endianness="<")
    head.set_data_shape((series["cols"], series["rows"], depth))
    head.set_data_dtype(dtype)
    head.set_sform(affine, SCANNER)
    axes = affine[:3, :3] / np.linalg.norm(affine[:3, :3], axis=0)
    square = np.abs(axes.T @ axes - np.eye(3)).max() < SQUARE  # a tilted gantry shears; a qform cannot say that
    head.set_qform(affine, SCANNER if square else 0)
    head.set_xyzt_units("mm")
    head["magic"], head["vox_offset"] = b"n+1", VOXELS_AT
    by_k: dict[int, list[Mask]] = {}
    for mask in masks:
        by_k.setdefault(mask.image["k"], []).append(mask)
    out = io.BytesIO()
    with gzip.GzipFile(filename="", mode="wb", compresslevel=6, fileobj=out, mtime=0) as stream:
        stream.write(head.binaryblock + bytes(VOXELS_AT - len(head.binaryblock)))
        for k in range(depth):
            plane = np.zeros((series["rows"], series["cols"]), dtype)
            for mask in by_k.get(k, ()):
                plane[mask.inside()] = values[mask.label]
            stream.write(plane.tobytes())
    return out.getvalue()
