"""Rows of slides, tiles, slices, regions and planes with known truth, for the tests of linking."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from medspark.keys import Ids
from medspark.pixels.masks import pack
from medspark.tables.catalog import TABLES
from medspark.tables.work import SourceFile

IDS = Ids(None)
SOURCE = SourceFile("a" * 32, "file:/labels/one", "/labels/one", 1, "phantom")


def table(name: str, records: Sequence[dict[str, Any]]) -> pa.Table:
    """A table of the catalog from dictionaries; columns that they leave out are null."""
    schema = TABLES[name].arrow()
    columns = {field.name: pa.array([record.get(field.name) for record in records], field.type) for field in schema}
    return pa.table(columns, schema=schema)


def slide(width: int, height: int, levels: Sequence[tuple[int, int]] = ()) -> dict[str, Any]:
    sizes = [(width, height), *levels]
    return {
        "slide_id": "5" * 32,
        "dataset": "phantom",
        "subject_key": "s" * 32,
        "width_l0_px": width,
        "height_l0_px": height,
        "level_sizes_px": [{"width": w, "height": h} for w, h in sizes],
        "mpp_x_um": 0.5,
        "mpp_y_um": 0.5,
    }


def tiles(of: dict[str, Any], tile_px: int = 256, scale: float = 1.0, overlap_px: int = 0, mpp_um: float | None = 0.5) -> pa.Table:
    """A grid that covers the slide, edge ``pad``; ``scale`` is level-0 px per tile px."""
    width, height = round(of["width_l0_px"] / scale), round(of["height_l0_px"] / scale)
    step, records = tile_px - overlap_px, []
    for row, y in enumerate(range(0, height, step)):
        for col, x in enumerate(range(0, width, step)):
            records.append(
                {
                    "image_id": of["slide_id"][:16] + f"{row:08x}{col:08x}",
                    "slide_id": of["slide_id"],
                    "grid_id": "g",
                    "dataset": of["dataset"],
                    "subject_key": of["subject_key"],
                    "level": 0,
                    "tile_row": row,
                    "tile_col": col,
                    "x_l0": x * scale,
                    "y_l0": y * scale,
                    "width_l0": tile_px * scale,
                    "height_l0": tile_px * scale,
                    "width_px": tile_px,
                    "height_px": tile_px,
                    "valid_width_px": min(tile_px, width - x),
                    "valid_height_px": min(tile_px, height - y),
                    "mpp_um": None if mpp_um is None else mpp_um * scale,
                    "focal_plane": 0,
                    "optical_path": "0",
                    "tissue_fraction": 1.0,
                    "pixel_source": "passthrough",
                }
            )
    return table("tiles", records)


def region(label: str, *rings: Any, geometry: str = "polygon", ref: str = "name:x", **rest: Any) -> dict[str, Any]:
    """A row of ``regions``; rings of (x, y) or (x, y, z)."""
    points = [[{"x": float(p[0]), "y": float(p[1]), "z": float(p[2]) if len(p) > 2 else None} for p in ring] for ring in rings]
    row = {"region_id": "r", "source_id": SOURCE.source_id, "ref_image": ref, "label": label, "role": "positive", "geometry": geometry}
    properties = list(rest.pop("properties", {}).items())
    return {**row, "rings": points, "properties": properties, **rest}


def plane(label: str, mask: np.ndarray, ref: str = "name:x", affine: np.ndarray | None = None, **rest: Any) -> dict[str, Any]:
    """A row of ``planes`` from a bool mask."""
    row = {"plane_id": "p", "source_id": SOURCE.source_id, "ref_image": ref, "label": label, "role": "positive"}
    return {
        **row,
        "affine": None if affine is None else np.asarray(affine, float).ravel().tolist(),
        "rows": mask.shape[0],
        "cols": mask.shape[1],
        "mask_codec": "bits-zstd",
        "mask": pack(mask),
        **rest,
    }


def regions(*rows: dict[str, Any]) -> pa.Table:
    return table("regions", rows)


def planes(*rows: dict[str, Any]) -> Iterator[pa.Table]:
    """One table per plane."""
    return iter([table("planes", [row]) for row in rows])


def slices(
    count: int,
    rows: int,
    cols: int,
    spacing: tuple[float, float] = (0.5, 0.5),
    gaps: Sequence[float] | None = None,
    orientation: Sequence[float] = (1, 0, 0, 0, 1, 0),
    origin: Sequence[float] = (-10.0, -20.0, 30.0),
    **rest: Any,
) -> pa.Table:
    """``count`` slices along their normal; k is their order."""
    normal = np.cross(orientation[:3], orientation[3:])
    along = np.concatenate([[0.0], np.cumsum(gaps if gaps is not None else [2.0] * (count - 1))])
    return table(
        "slices",
        [
            {
                "image_id": f"{'e' * 16}{k:016x}",
                "series_id": "e" * 32,
                "k": k,
                "t": 0,
                "source_id": "d" * 32,
                "dataset": "phantom",
                "subject_key": "s" * 32,
                "sop_instance_id": f"1.2.{k}",
                "frame_number": 1,
                "rows": rows,
                "cols": cols,
                "image_position_mm": (np.array(origin) + along[k] * normal).tolist(),
                "image_orientation": list(map(float, orientation)),
                "pixel_spacing_mm": list(spacing),
                "pixel_spacing_source": "PixelSpacing",
                "file_token": f"file{k}",
                **rest,
            }
            for k in range(count)
        ],
    )


def affine_of(of: pa.Table, at: int) -> np.ndarray:
    """(col, row, 0, 1) of a slice to LPS mm."""
    row = of.slice(at, 1).to_pylist()[0]
    affine, cosines = np.eye(4), np.array(row["image_orientation"])
    affine[:3, 0], affine[:3, 1] = cosines[:3] * row["pixel_spacing_mm"][1], cosines[3:] * row["pixel_spacing_mm"][0]
    affine[:3, 2], affine[:3, 3] = np.cross(cosines[:3], cosines[3:]), row["image_position_mm"]
    return affine


def dicom_slices(folder: Path, ids: Ids = IDS) -> pa.Table:
    """Rows of ``slices`` of a folder of single-frame DICOM files, by file name, as far as linking needs them."""
    import pydicom

    records = []
    for number, path in enumerate(sorted(folder.glob("*.dcm"))):
        head = pydicom.dcmread(path, stop_before_pixels=True)
        records.append(
            {
                "image_id": f"{'c' * 16}{number:016x}",
                "series_id": "c" * 32,
                "k": None,
                "t": 0,
                "source_id": "d" * 32,
                "dataset": "phantom",
                "subject_key": "s" * 32,
                "sop_instance_id": ids.uid(str(head.SOPInstanceUID)),
                "frame_number": 1,
                "rows": int(head.Rows),
                "cols": int(head.Columns),
                "image_position_mm": [float(v) for v in head.ImagePositionPatient],
                "image_orientation": [float(v) for v in head.ImageOrientationPatient],
                "pixel_spacing_mm": [float(v) for v in head.PixelSpacing],
                "pixel_spacing_source": "PixelSpacing",
                "slice_thickness_mm": float(head.SliceThickness),  # every real series used here has it
                "rescale_slope": float(head.RescaleSlope),
                "rescale_intercept": float(head.RescaleIntercept),
            }
        )
    return table("slices", records)


def read(path: Path) -> tuple[pa.Table, list[pa.Table]]:
    """(regions, planes) that the label readers make of a file."""
    from medspark.config import from_tree
    from medspark.labels.kind import LABELS
    from medspark.tables.rows import Rows

    settings = from_tree({})
    header = LABELS.scan(str(path), str(path), IDS, settings)
    source = SourceFile(SOURCE.source_id, SOURCE.uri, str(path), path.stat().st_size, "phantom", header)
    found: dict[str, list[pa.Table]] = {"regions": [regions()], "planes": []}
    for unit in LABELS.plan([source], IDS, settings).units:
        for item in LABELS.explode(unit, IDS, settings, lambda source, what="": None):
            assert isinstance(item, Rows)
            found[item.table].append(pa.Table.from_batches([item.to_arrow("run", "batch")]))
    return pa.concat_tables(found["regions"]), found["planes"]
