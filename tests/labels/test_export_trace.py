"""Masks to outlines, tiles to canvases: laws that hold for any mask."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import shapely
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from medspark.errors import Rejected
from medspark.labels.export import trace as tracing
from medspark.labels.export.rows import Mask, Reader
from medspark.labels.export.stitch import Canvas
from medspark.labels.export.trace import trace
from medspark.labels.raster import polygon_mask
from medspark.pixels.masks import pack

MASKS = arrays.arrays(bool, st.tuples(st.integers(1, 9), st.integers(1, 9)), elements=st.booleans())


def rasterised(polygons: list[tracing.Polygon], rows: int, cols: int) -> np.ndarray:
    """Union; fails where two polygons share a pixel."""
    found = np.zeros((rows, cols), bool)
    for polygon in polygons:
        one = polygon_mask([ring - 0.5 for ring in (polygon.outer, *polygon.holes)], rows, cols)
        assert not (found & one).any()
        found |= one
    return found


@settings(max_examples=400, deadline=None)
@given(mask=MASKS, height=st.integers(1, 9))
def test_outlines_rasterise_to_the_mask_whatever_the_stripes(mask: np.ndarray, height: int) -> None:
    polygons = trace([mask[top : top + height] for top in range(0, len(mask), height)])
    assert (rasterised(polygons, *mask.shape) == mask).all()
    for polygon in polygons:
        assert shapely.Polygon(polygon.outer, polygon.holes).is_valid


def test_an_island_in_a_hole_and_pixels_that_touch_at_a_corner() -> None:
    mask = np.zeros((9, 9), bool)
    mask[1:8, 1:8] = True
    mask[2:7, 2:7] = False
    mask[4, 4] = mask[5, 5] = True
    polygons = sorted(trace([mask]), key=lambda polygon: -len(polygon.holes))
    assert [len(polygon.holes) for polygon in polygons] == [1, 0, 0]
    assert {tuple(point) for point in polygons[0].holes[0]} == {(2, 2), (7, 2), (7, 7), (2, 7)}
    assert (rasterised(polygons, 9, 9) == mask).all()


def test_an_empty_mask_has_no_outline_and_noise_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    assert trace([np.zeros((4, 4), bool)]) == trace([]) == []
    monkeypatch.setattr(tracing, "MAX_CORNERS", 100)
    with pytest.raises(Rejected, match="TOO_LARGE"):
        trace([np.eye(40, dtype=bool)])


def tile_masks(whole: np.ndarray, tile_px: int, overlap_px: int, scale: float, label: str = "a") -> list[Mask]:
    """The mask of a slide as rows of labels on padded tiles; tiles without a pixel have no row."""
    step, found = tile_px - overlap_px, []
    for row, y in enumerate(range(0, whole.shape[0], step)):
        for col, x in enumerate(range(0, whole.shape[1], step)):
            part = whole[y : y + tile_px, x : x + tile_px]
            if not part.any():
                continue
            mask = np.zeros((tile_px, tile_px), bool)
            mask[: part.shape[0], : part.shape[1]] = part
            image: dict[str, Any] = {
                **{"x_l0": x * scale, "y_l0": y * scale, "width_l0": tile_px * scale, "height_l0": tile_px * scale},
                **{"width_px": tile_px, "height_px": tile_px, "valid_width_px": part.shape[1], "valid_height_px": part.shape[0]},
                **{"slide_id": "s", "grid_id": "g", "tile_row": row, "tile_col": col, "image_id": f"{row}-{col}"},
            }
            packed = (tile_px, tile_px, "bits-zstd", pack(mask), None, None, image)
            reader = Reader("annotation", "f", "", 0)
            found.append(Mask(f"{label}{row}-{col}", f"{row}-{col}", label, None, None, None, "positive", reader, *packed))
    return found


@settings(max_examples=100, deadline=None)
@given(
    whole=arrays.arrays(bool, st.tuples(st.integers(1, 30), st.integers(1, 30)), elements=st.booleans()),
    tile_px=st.integers(3, 11),
    overlap_px=st.integers(0, 2),
    scale=st.sampled_from([1.0, 4.0, 3.0000123]),
)
def test_tiles_stitch_back_to_the_whole(whole: np.ndarray, tile_px: int, overlap_px: int, scale: float) -> None:
    found = tile_masks(whole, tile_px, overlap_px, scale)
    if not found:
        return
    slide = {"width_l0_px": whole.shape[1] * scale, "height_l0_px": whole.shape[0] * scale}
    canvas = Canvas.of_grid(slide, found[0].image)
    assert (canvas.rows, canvas.cols) == whole.shape
    stripes = list(canvas.values(found, {"a": 7}, np.uint8))
    assert [top for top, _ in stripes] == np.cumsum([0, *(len(stripe) for _, stripe in stripes)])[:-1].tolist()
    assert (np.concatenate([stripe for _, stripe in stripes]) == np.where(whole, 7, 0)).all()
    row0, col0, parts = canvas.united(found)
    part = np.concatenate(list(parts))
    again = np.zeros_like(whole)
    again[row0 : row0 + part.shape[0], col0 : col0 + part.shape[1]] = part
    assert (again == whole).all()


def test_a_tile_off_the_grid_is_refused() -> None:
    found = tile_masks(np.ones((4, 4), bool), 4, 0, 1.0)
    moved = Mask(**{**found[0].__dict__, "image": {**found[0].image, "x_l0": 0.4}})
    with pytest.raises(Rejected, match="whole pixels"):
        Canvas(4, 4).united([moved])
