"""Linking: laws on phantoms, then the real files."""

from __future__ import annotations

import json
import tracemalloc
from collections.abc import Iterable
from datetime import UTC, datetime
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from medspark.config import from_tree
from medspark.labels.label_rows import Groups
from medspark.labels.link import link_photos, link_slices, link_tiles
from medspark.labels.mask_bands import mask_scale
from medspark.labels.raster import polygon_mask
from medspark.labels.shapes import expand_boxes
from medspark.labels.slice_geometry import SlicePlanes, Volume
from medspark.labels.slice_images import Images, Structures
from medspark.labels.slice_masks import SliceMasks
from medspark.pixels.masks import pack_u8, unpack, unpack_u8
from medspark.tables.rows import Rejection, Rows
from tests.phantoms import labels as phantom
from tests.real import shared_data

NOW = datetime(2026, 1, 2, tzinfo=UTC)
DEFAULT = from_tree({})


def none(image_ids: list[str]) -> dict[str, np.ndarray]:
    return {}


def split(items: Iterable[Rows | Rejection]) -> tuple[list[dict[str, Any]], list[Rejection]]:
    """Rows as dictionaries, having passed the table's schema; keys are unique."""
    rows: list[dict[str, Any]] = []
    rejections = []
    for item in items:
        if isinstance(item, Rejection):
            rejections.append(item)
        else:
            assert item.table == "labels"
            rows += item.to_arrow("run", "batch").to_pylist()
    assert len({row["label_row_id"] for row in rows}) == len(rows)
    assert all(item.stage == "link" and item.source_id == phantom.SOURCE.source_id for item in rejections)
    return rows, rejections


def on_tiles(
    slide: dict[str, Any], tiles: pa.Table, regions: pa.Table | None = None, planes: Any = (), values: Any = none, **settings: Any
) -> Any:
    regions = phantom.regions() if regions is None else regions
    config = from_tree({"labels": settings})
    return split(link_tiles(slide, {}, tiles, regions, iter(planes), values, phantom.SOURCE, phantom.IDS, config, NOW))


def on_slices(
    slices: pa.Table, regions: pa.Table | None = None, planes: Any = (), values: Any = none, only: Any = None, **settings: Any
) -> Any:
    regions = phantom.regions() if regions is None else regions
    config = from_tree({"labels": settings})
    series = {"series_id": "e" * 32, "orientation": None}
    return split(link_slices(series, slices, only, regions, iter(planes), values, phantom.SOURCE, phantom.IDS, config, NOW))


def mask_of(row: dict[str, Any]) -> np.ndarray:
    return unpack(row["mask"], row["rows"], row["cols"])


def area(rows: list[dict[str, Any]], label: str) -> int:
    return sum(row["area_px"] for row in rows if row["label"] == label)


def blobs(seed: int, count: int, side: float, radius: float) -> list[np.ndarray]:
    rng = np.random.default_rng(seed)
    found = []
    for _ in range(count):
        angle = np.sort(rng.random(14)) * 2 * np.pi
        reach = radius * (0.5 + 0.5 * rng.random(14))
        found.append(rng.random(2) * side + np.stack([reach * np.cos(angle), reach * np.sin(angle)], axis=1))
    return found


# --- tiles -----------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("tile_px", "scale"), [(64, 1.0), (100, 1.0), (33, 2.0), (50, 2.37)])
def test_tiles_sum_to_the_rasterised_whole(tile_px: int, scale: float) -> None:
    slide = phantom.slide(711, 503)
    shapes = [np.round(shape, 1) for shape in blobs(7, 12, 650, 90)]
    regions = phantom.regions(*(phantom.region("a" if i % 2 else "b", shape) for i, shape in enumerate(shapes)))
    tiles = phantom.tiles(slide, tile_px, scale)
    rows, rejections = on_tiles(slide, tiles, regions)
    assert not rejections
    width, height = round(711 / scale), round(503 / scale)
    for label, of in (("a", shapes[1::2]), ("b", shapes[::2])):
        whole = np.any([polygon_mask([shape / scale - 0.5], height, width) for shape in of], axis=0)
        assert abs(area(rows, label) - whole.sum()) <= (0 if scale in (1.0, 2.0) else 2)
    ids = {row["image_id"] for row in rows}
    assert len(rows) == len({(row["image_id"], row["label"]) for row in rows})
    assert all(row["parent_id"] == slide["slide_id"] and row["target"] == "image" and row["area_px"] > 0 for row in rows)
    assert ids <= set(tiles.column("image_id").to_pylist())


def test_what_a_row_says() -> None:
    slide = phantom.slide(100, 90)
    tiles = phantom.tiles(slide, 64)
    rng = np.random.default_rng(1)
    arrays = {name: rng.integers(0, 256, (64, 64, 3), np.uint8) for name in tiles.column("image_id").to_pylist()}
    square = [(70, 70), (90, 70), (90, 85), (70, 85)]
    regions = phantom.regions(phantom.region("a", square, code="1", code_scheme="SCT", annotator="me", instance_key="n1"))
    (row,), _ = on_tiles(slide, tiles, regions, values=lambda ids: {name: arrays[name] for name in ids})
    assert (row["rows"], row["cols"], row["area_px"], row["n_components"]) == (64, 64, 300, 1)
    assert row["fraction"] == 300 / (36 * 26)
    assert row["area_mm2"] == pytest.approx(300 * 0.5e-3**2)
    assert row["bbox"] == {"row0": 6, "col0": 6, "row1": 21, "col1": 26}
    assert (row["centroid_row"], row["centroid_col"]) == (13.0, 15.5)
    light = arrays[row["image_id"]][6:21, 6:26].astype(float) @ [0.299, 0.587, 0.114]
    assert (row["value_mean"], row["value_std"]) == pytest.approx((light.mean(), light.std()))
    assert (row["code"], row["code_scheme"], row["annotator"], row["instance_key"], row["source"]) == ("1", "SCT", "me", "n1", "annotation")
    assert (row["role"], row["round"], row["source_id"], row["created_at"]) == ("positive", 0, phantom.SOURCE.source_id, NOW)
    expected = phantom.IDS.digest("label_row", row["target_id"], "a", "n1", "annotation", "me", 0, phantom.SOURCE.source_id)
    assert row["label_row_id"] == expected


def test_nothing_is_labelled_beyond_the_slide() -> None:
    slide = phantom.slide(100, 90)
    tiles = phantom.tiles(slide, 64, mpp_um=None)
    rows, _ = on_tiles(slide, tiles, phantom.regions(phantom.region("a", [(-50, -50), (500, -50), (500, 500), (-50, 500)])))
    assert area(rows, "a") == 9000 and {row["fraction"] for row in rows} == {1.0} and {row["area_mm2"] for row in rows} == {None}


def test_overlapping_tiles_agree() -> None:
    slide = phantom.slide(300, 200)
    shape = blobs(3, 1, 100, 90)[0] + 60
    tiles = phantom.tiles(slide, 64, overlap_px=16)
    places = {row["image_id"]: row for row in tiles.to_pylist()}
    whole = polygon_mask([shape - 0.5], 200, 300)
    rows, _ = on_tiles(slide, tiles, phantom.regions(phantom.region("a", shape)))
    for row in rows:
        tile = places[row["image_id"]]
        x, y, w, h = int(tile["x_l0"]), int(tile["y_l0"]), tile["valid_width_px"], tile["valid_height_px"]
        assert np.array_equal(mask_of(row)[:h, :w], whole[y : y + h, x : x + w])


def test_points_lines_and_boxes() -> None:
    slide = phantom.slide(128, 128)
    regions = phantom.regions(
        phantom.region("point", [(63.99, 10.0), (64.0, 10.0)], geometry="point"),
        phantom.region("line", [(10, 100.5), (120, 100.5)], geometry="line"),
        phantom.region("box", [(5, 6), (70, 80)], geometry="box"),
    )
    rows, _ = on_tiles(slide, phantom.tiles(slide, 64), regions)
    assert area(rows, "point") == 2 and sum(row["label"] == "point" for row in rows) == 2
    assert area(rows, "line") == 111 and area(rows, "box") == 65 * 74


def test_boxes_of_two_corners_are_expanded_and_the_cells_beside_them_left_alone() -> None:
    cells = [phantom.region(f"c{n}", [(n, 0), (n + 5, 0), (n, 5)]) for n in range(50)]
    four = phantom.region("four", [(0, 0), (9, 0), (9, 9), (0, 9)], geometry="box")
    two = phantom.region("two", [(1, 2), (7, 5)], geometry="box")
    table = phantom.regions(*cells, two, four, *cells, phantom.region("none", geometry="box"), two)
    assert expand_boxes(table.filter(pa.array([True] * 50 + [False] + [True] * 52 + [False]))).num_rows == 102
    rings = expand_boxes(table).column("rings").to_pylist()
    wanted = [[{"x": x, "y": y, "z": None} for x, y in ((1.0, 2.0), (7.0, 2.0), (7.0, 5.0), (1.0, 5.0))]]
    assert rings[50] == rings[103] == wanted
    assert rings[:50] + rings[51:103] == [row for place, row in enumerate(table.column("rings").to_pylist()) if place not in (50, 103)]
    pieces = pa.concat_tables([table.slice(0, 51), table.slice(51)])
    assert expand_boxes(pieces).column("rings").to_pylist() == rings
    many = pa.concat_tables([phantom.regions(*cells, four)] * 400)
    tracemalloc.start()
    try:
        expand_boxes(many)
        assert tracemalloc.get_traced_memory()[1] < 20_400 * 200  # 20,400 shapes as Python objects are a hundred times as large
    finally:
        tracemalloc.stop()


def test_a_label_without_pixels_is_the_slides() -> None:
    slide = phantom.slide(128, 128)
    regions = phantom.regions(*[phantom.region("grade", properties={"class_value": "3"})] * 2)
    (row,), _ = on_tiles(slide, phantom.tiles(slide, 64), regions)
    assert (row["target"], row["target_id"], row["class_value"], row["mask"], row["rows"]) == ("slide", slide["slide_id"], "3", None, None)
    assert row["image_id"] is None and row["area_px"] is None


SQUARES = (
    phantom.region("a", [(10, 10), (50, 10), (50, 50), (10, 50)]),
    phantom.region("b", [(30, 30), (60, 30), (60, 60), (30, 60)]),
)


@pytest.mark.parametrize(("overlap", "areas"), [("keep", (1600, 900)), ("first", (1600, 500)), ("last", (1200, 900))])
def test_overlap_between_labels(overlap: str, areas: tuple[int, int]) -> None:
    slide = phantom.slide(64, 64)
    rows, _ = on_tiles(slide, phantom.tiles(slide, 64), phantom.regions(*SQUARES), overlap=overlap)
    assert (area(rows, "a"), area(rows, "b")) == areas
    same = [{**SQUARES[0], "instance_key": "1"}, {**SQUARES[1], "label": "a", "instance_key": "2"}]
    rows, _ = on_tiles(slide, phantom.tiles(slide, 64), phantom.regions(*same), overlap=overlap)
    assert sorted(row["area_px"] for row in rows) == [900, 1600]  # objects of one label do not yield


def test_exclusion_is_subtracted_and_gives_no_row() -> None:
    slide = phantom.slide(64, 64)
    excluded = {**SQUARES[1], "properties": [("exclude", "true")]}
    rows, _ = on_tiles(slide, phantom.tiles(slide, 32), phantom.regions(SQUARES[0], excluded))
    assert area(rows, "a") == 1200 and {row["label"] for row in rows} == {"a"}


def test_roles_make_rows_of_their_own() -> None:
    slide = phantom.slide(64, 64)
    rows, _ = on_tiles(slide, phantom.tiles(slide, 64), phantom.regions(SQUARES[0], {**SQUARES[0], "role": "ignore"}))
    assert sorted(row["role"] for row in rows) == ["ignore", "positive"]


def bands(label: str, mask: np.ndarray, step: int, **rest: Any) -> list[pa.Table]:
    return [
        phantom.table("planes", [phantom.plane(label, mask[y : y + step], row0=y, ref_rows=mask.shape[0], ref_cols=mask.shape[1], **rest)])
        for y in range(0, len(mask), step)
    ]


@pytest.mark.parametrize("factor", [1, 2, 4])
def test_masks_of_slides_by_bands(factor: int) -> None:
    slide = phantom.slide(512, 384)
    mask = np.random.default_rng(2).random((384 // factor, 512 // factor)) < 0.3
    full = np.kron(mask, np.ones((factor, factor), bool))
    tiles = phantom.tiles(slide, 100)
    places = {row["image_id"]: row for row in tiles.to_pylist()}
    rows, rejections = on_tiles(slide, tiles, planes=bands("m", mask, 37))
    assert not rejections and area(rows, "m") == full.sum()
    for row in rows:
        tile = places[row["image_id"]]
        x, y, w, h = int(tile["x_l0"]), int(tile["y_l0"]), tile["valid_width_px"], tile["valid_height_px"]
        assert np.array_equal(mask_of(row)[:h, :w], full[y : y + h, x : x + w])


@pytest.mark.parametrize("scale", [1.0, 3.0])
def test_masks_of_many_classes_are_held_as_bits(scale: float) -> None:
    slide = phantom.slide(4_003, 600)
    classes = np.random.default_rng(3).integers(0, 100, (600 // 100, 4_100 // 100)).repeat(100, 0).repeat(100, 1)[:, :4_003]
    given = (
        phantom.table("planes", [phantom.plane(f"c{number}", classes[:, 5:] == number, row0=0, col0=5, ref_rows=600, ref_cols=4_003)])
        for number in range(1, 100)
    )
    tiles = phantom.tiles(slide, 256, scale)
    tracemalloc.start()
    try:
        rows, rejections = on_tiles(slide, tiles, planes=given, resample="nearest")
        assert tracemalloc.get_traced_memory()[1] < 99 * 600 * 4_003 / 2  # as bytes they would be twice that
    finally:
        tracemalloc.stop()
    assert not rejections
    for row in rows[::37]:
        tile = next(item for item in tiles.to_pylist() if item["image_id"] == row["image_id"])
        at = (np.arange(256) + 0.5) * scale
        y, x = np.floor(tile["y_l0"] + at).astype(int), np.floor(tile["x_l0"] + at).astype(int)
        inside = (y < 600)[:, None] & ((x >= 5) & (x < 4_003))[None, :]
        wanted = (classes[np.minimum(y, 599)[:, None], np.minimum(x, 4_002)[None, :]] == int(row["label"][1:])) & inside
        assert np.array_equal(mask_of(row), wanted)


def test_tiled_planes_and_regions_of_one_label_unite() -> None:
    slide = phantom.slide(64, 64)
    part = phantom.plane("a", np.ones((10, 12), bool), row0=5, col0=40, ref_rows=64, ref_cols=64)
    (row,), _ = on_tiles(slide, phantom.tiles(slide, 64), phantom.regions(SQUARES[0]), planes=phantom.planes(part))
    expected = np.zeros((64, 64), bool)
    expected[10:50, 10:50] = expected[5:15, 40:52] = True
    assert np.array_equal(mask_of(row), expected)


def test_masks_that_are_no_scaled_slide() -> None:
    slide = phantom.slide(512, 384)
    tiles = phantom.tiles(slide, 128)
    wrong = np.ones((384, 500), bool)
    odd = np.ones((256, 341), bool)  # a scale of 1.5: neither the tiles' pixels nor a multiple
    rows, (rejection,) = on_tiles(slide, tiles, planes=bands("m", wrong, 100))
    assert not rows and rejection.code == "LABEL_SIZE"
    rows, (rejection,) = on_tiles(slide, tiles, planes=bands("m", odd, 100))
    assert not rows and rejection.code == "LABEL_SIZE"
    rows, rejections = on_tiles(slide, tiles, planes=bands("m", odd, 100), resample="nearest")
    assert not rejections and area(rows, "m") == 512 * 384
    rows, (rejection,) = on_tiles(slide, tiles, planes=phantom.planes(phantom.plane("m", wrong, affine=np.eye(4))))
    assert not rows and rejection.code == "LABEL_GEOMETRY"


def test_fractional_masks_of_slides() -> None:
    slide = phantom.slide(64, 64)
    fractions = np.random.default_rng(4).integers(0, 256, (64, 64), np.uint8)
    rest = {"mask_codec": "u8-zstd", "mask": pack_u8(fractions), "threshold": 127.5}
    (row,), _ = on_tiles(slide, phantom.tiles(slide, 64), planes=phantom.planes({**phantom.plane("m", fractions > 0), **rest}))
    assert row["area_px"] == (fractions >= 127.5).sum() and row["threshold"] == 0.5
    assert row["mask_codec"] == "u8-zstd" and np.array_equal(unpack_u8(row["mask"], 64, 64), fractions)


def test_planes_out_of_order_are_a_bug() -> None:
    slide = phantom.slide(128, 128)
    with pytest.raises(ValueError, match="order"):
        on_tiles(slide, phantom.tiles(slide, 32), planes=bands("m", np.ones((128, 128), bool), 32)[::-1])


def test_mask_scales() -> None:
    levels = [(2220, 2967), (555, 741)]
    assert mask_scale(2220, 2967, levels, 2220, 2967) == (1.0, 1.0)
    assert mask_scale(2220, 2967, levels, 555, 741) == (4.0, 2967 / 741)
    assert mask_scale(2220, 2967, levels, 138, 185) == (16.0, 16.0)
    assert mask_scale(2220, 2967, levels, 139, 186) == (16.0, 16.0)
    assert mask_scale(2220, 2967, levels, 1000, 1000) is None


# --- slices ----------------------------------------------------------------------------------------------------------------------------

TILTED = (1, 0, 0, 0, 0.9483237, -0.3173047)


def contour_on(slices: pa.Table, at: int, ring: np.ndarray, off_mm: float = 0.0) -> list[tuple[float, ...]]:
    """A ring of (col, row) on a slice, moved along its normal, as LPS mm."""
    affine = phantom.affine_of(slices, at)
    return [tuple((affine @ (c, r, off_mm, 1))[:3]) for c, r in ring]


RING = np.array([(3.2, 4.1), (20.3, 5.0), (18.7, 25.6), (6.1, 22.2)])


@pytest.mark.parametrize("orientation", [(1, 0, 0, 0, 1, 0), TILTED, (0, 1, 0, 0, 0, -1), (-0.6, 0.8, 0, 0, 0, 1)])
def test_contours_by_reference_and_by_geometry(orientation: tuple[float, ...]) -> None:
    slices = phantom.slices(5, 40, 30, (0.5, 0.7), [4.0, 1.08, 7.0, 7.0], orientation)
    expected = polygon_mask([RING], 40, 30)
    for ref in ("sop:1.2.2#0", "sop:1.2.2#1", "plane:1.2", "folder:f"):
        for off in (0.0, 0.5, -0.5):
            region = phantom.region("a", contour_on(slices, 2, RING, off), geometry="contour", ref=ref)
            (row,), rejections = on_slices(slices, phantom.regions(region))
            assert not rejections and row["image_id"] == slices.column("image_id")[2].as_py()
            assert np.array_equal(mask_of(row), expected) and row["area_mm2"] == pytest.approx(expected.sum() * 0.35)
            assert row["fraction"] == expected.sum() / 1200


@pytest.mark.parametrize(("off", "fine"), [(3.4, True), (3.6, False), (-0.5, True), (-0.6, False)])
def test_half_the_local_gap_on_either_side(off: float, fine: bool) -> None:
    slices = phantom.slices(4, 40, 30, gaps=[4.0, 1.08, 7.0])
    rows, rejections = on_slices(
        slices, phantom.regions(phantom.region("a", contour_on(slices, 2, RING, off), geometry="contour", ref="sop:1.2.2#0"))
    )
    assert (len(rows), len(rejections)) == ((1, 0) if fine else (0, 1))
    if not fine:
        assert rejections[0].code == "LABEL_GEOMETRY" and f"{abs(off):.2f} mm" in rejections[0].message


@pytest.mark.parametrize("orientation", [(1, 0, 0, 0, 1, 0), (1, 0, 0, 0, -1, 0)])
def test_a_contour_half_way_between_two_slices_counts_once(orientation: tuple[float, ...]) -> None:
    slices = phantom.slices(3, 20, 20, orientation=orientation)
    for shift, at in ((0.9995, 0), (1.0, 0), (1.0005, 0), (1.01, 1)):  # of 2 mm; the third within what headers round
        affine = phantom.affine_of(slices, 0)
        affine[:3, 3] += shift * np.cross(orientation[:3], orientation[3:])
        corners = np.array([(4, 5, 0, 1), (12, 5, 0, 1), (12, 9, 0, 1), (4, 9, 0, 1)], float) @ affine.T
        rows, rejections = on_slices(
            slices, phantom.regions(phantom.region("a", corners[:, :3].tolist(), geometry="contour", ref="plane:1"))
        )
        assert [row["image_id"][-1] for row in rows] == [str(at)] and not rejections and rows[0]["area_px"] == 9 * 5


def test_half_truths_are_no_truth() -> None:
    slices = phantom.slices(4, 40, 30)
    regions = phantom.regions(
        *(phantom.region("bad", contour_on(slices, k, RING, 1.5 * (k == 3)), geometry="contour", ref=f"sop:1.2.{k}#0") for k in range(4)),
        phantom.region("good", contour_on(slices, 1, RING), geometry="contour", ref="sop:1.2.1#0"),
        phantom.region("gone", contour_on(slices, 1, RING), geometry="contour", ref="sop:9.9#0"),
        phantom.region("thin", contour_on(slices, 1, RING[:2]), geometry="contour", ref="sop:1.2.1#0"),
    )
    rows, rejections = on_slices(slices, regions)
    assert [row["label"] for row in rows] == ["good"]
    assert [(item.code, "1 of 4" in item.message) for item in rejections] == [("LABEL_GEOMETRY", True), ("LABEL_GEOMETRY", False)]
    rows, rejections = on_slices(slices, regions, only={slices.column("image_id")[3].as_py()})
    assert not rows and len(rejections) == 2


def test_a_single_slice_reaches_half_its_thickness() -> None:
    for thickness, reach in ((5.0, 2.5), (None, 1.0)):
        slices = phantom.slices(1, 40, 30, slice_thickness_mm=thickness)
        for off in (reach - 0.1, reach + 0.1):
            region = phantom.region("a", contour_on(slices, 0, RING, off), geometry="contour", ref="plane:1.2")
            assert len(on_slices(slices, phantom.regions(region))[0]) == (off < reach)


def test_nested_contours() -> None:
    slices = phantom.slices(3, 40, 30)
    outer, inner = np.array([(2, 2), (22, 2), (22, 30), (2, 30)]) + 0.5, np.array([(8, 8), (14, 8), (14, 20), (8, 20)]) + 0.5

    def rings(kind: str) -> pa.Table:
        return phantom.regions(
            *(
                phantom.region(
                    "a", contour_on(slices, 1, ring), geometry="contour", ref="plane:1", properties={"contour_geometric_type": kind}
                )
                for ring in (outer, inner)
            )
        )

    assert on_slices(slices, rings("CLOSED_PLANAR"))[0][0]["area_px"] == 20 * 28
    assert on_slices(slices, rings("CLOSEDPLANAR_XOR"))[0][0]["area_px"] == 20 * 28 - 6 * 12
    assert on_slices(slices, rings("CLOSED_PLANAR"), rtstruct_nested="xor")[0][0]["area_px"] == 20 * 28 - 6 * 12


def test_points_on_the_contour_are_inside() -> None:
    slices = phantom.slices(3, 40, 30, orientation=TILTED)
    region = phantom.region("a", contour_on(slices, 1, np.array([(2, 1), (5, 1), (5, 3), (2, 3)])), geometry="contour", ref="plane:1")
    assert on_slices(slices, phantom.regions(region))[0][0]["area_px"] == 12


def test_shapes_in_pixels_have_their_corner_at_the_origin() -> None:
    slices = phantom.slices(2, 40, 30)
    region = phantom.region("a", [(2, 1), (6, 1), (6, 4), (2, 4)], ref="sop:1.2.1#1")
    (row,), _ = on_slices(slices, phantom.regions(region))
    assert row["bbox"] == {"row0": 1, "col0": 2, "row1": 4, "col1": 6} and row["area_px"] == 12
    rows, (rejection,) = on_slices(slices, phantom.regions({**region, "ref_image": "folder:x"}))
    assert not rows and rejection.code == "LABEL_GEOMETRY"


def volume(shape: tuple[int, int, int]) -> np.ndarray:
    return np.random.default_rng(5).random(shape) < 0.2


def full_affine(slices: pa.Table) -> np.ndarray:
    affine = phantom.affine_of(slices, 0)
    affine[:3, 2] *= 2.0
    return affine


@pytest.mark.parametrize("axes", [(0, 1, 2), (0, 2, 1), (1, 0, 2), (1, 2, 0), (2, 0, 1), (2, 1, 0)])
@pytest.mark.parametrize("flips", [(1, 1, 1), (-1, 1, -1), (-1, -1, -1)])
def test_label_volumes_cut_along_any_axis(axes: tuple[int, int, int], flips: tuple[int, int, int]) -> None:
    """The same voxels written with their axes permuted and flipped, and an affine that says so, give the same slices."""
    truth = volume((5, 12, 9))  # k, row, col
    slices = phantom.slices(5, 12, 9, (0.5, 0.7), orientation=TILTED)
    turned = truth.transpose(axes)[:: flips[0], :: flips[1], :: flips[2]]
    to_voxel = np.zeros((4, 4))  # (plane col, plane row, plane number, 1) -> (col, row, k, 1)
    to_voxel[3, 3] = 1
    for place, (axis, flip) in enumerate(zip(axes, flips, strict=True)):
        to_voxel[2 - axis, 2 - place] = flip
        if flip < 0:
            to_voxel[2 - axis, 3] = truth.shape[axis] - 1
    affine = full_affine(slices) @ to_voxel
    rows_of = []
    for number, mask in enumerate(turned):
        own = affine.copy()
        own[:3, 3] += number * affine[:3, 2]
        rows_of.append(phantom.plane("a", np.ascontiguousarray(mask), "name:x", own))
    rows, rejections = on_slices(slices, planes=phantom.planes(*rows_of))
    assert not rejections
    found = {row["image_id"]: mask_of(row) for row in rows}
    assert np.array_equal(np.stack([found[name] for name in slices.column("image_id").to_pylist()]), truth)


def test_label_volumes_on_other_grids_are_refused() -> None:
    slices = phantom.slices(5, 12, 9)
    mask = np.ones((12, 9), bool)
    for shift, code in ((0.05, "LABEL_GEOMETRY"), (0.0, None)):
        affine = phantom.affine_of(slices, 2)
        affine[0, 3] += shift
        rows, rejections = on_slices(slices, planes=phantom.planes(phantom.plane("a", mask, "name:x", affine)))
        assert [item.code for item in rejections] == ([code] if code else []) and bool(rows) == (code is None)
    affine = phantom.affine_of(slices, 2)
    rows, (rejection,) = on_slices(slices, planes=phantom.planes(phantom.plane("a", np.ones((24, 9), bool), "name:x", affine)))
    assert not rows and rejection.code == "LABEL_SIZE"
    uneven = phantom.slices(5, 12, 9, gaps=[2, 2, 3, 2])
    assert Volume.of(SlicePlanes.of(uneven), "e" * 32) is None and Volume.of(SlicePlanes.of(slices), "e" * 32) is not None


def test_planes_that_name_their_slice() -> None:
    slices = phantom.slices(4, 12, 9, gaps=[2, 2, 2])
    mask = volume((1, 12, 9))[0]
    cases: list[tuple[float, float, str | None]] = [
        (0.0, 0.0, None),
        (0.2, 0.0, None),  # 0.4 px
        (0.0, 0.9, None),
        (0.3, 0.0, "LABEL_GEOMETRY"),  # 0.6 px
        (0.0, 1.1, "LABEL_GEOMETRY"),
    ]
    for sideways, along, code in cases:
        affine = phantom.affine_of(slices, 2)
        affine[:3, 3] += (sideways, 0, along)
        rows, rejections = on_slices(slices, planes=phantom.planes(phantom.plane("a", mask, "sop:1.2.2#1", affine)))
        assert [item.code for item in rejections] == ([code] if code else [])
        assert all(f"by up to {max(sideways, along):.2f} mm" in item.message for item in rejections)
        if code is None:
            assert np.array_equal(mask_of(rows[0]), mask)
    (row,), _ = on_slices(slices, planes=phantom.planes(phantom.plane("a", mask, "sop:1.2.2#1")))
    assert np.array_equal(mask_of(row), mask)
    rows, (rejection,) = on_slices(slices, planes=phantom.planes(phantom.plane("a", mask[:5], "sop:1.2.2#1")))
    assert not rows and rejection.code == "LABEL_SIZE"
    flipped = phantom.affine_of(slices, 2)
    flipped[:3, 3] += 8 * flipped[:3, 0]
    flipped[:3, 0] *= -1
    (row,), _ = on_slices(slices, planes=phantom.planes(phantom.plane("a", mask[:, ::-1], "sop:1.2.2#1", flipped)))
    assert np.array_equal(mask_of(row), mask)


def test_planes_of_many_organs_are_held_as_they_are_stored() -> None:
    slices, (left, right) = phantom.slices(20, 256, 256), (np.zeros((256, 256), bool) for _ in range(2))
    left[40:200, 30:100], right[40:200, 80:120] = True, True
    every = [(f"{name}", side, at) for name in range(40) for side in (left, right) for at in range(20)]
    parts = (phantom.plane(name, mask, f"sop:1.2.{at}#1", phantom.affine_of(slices, at)) for name, mask, at in every)
    masks = SliceMasks(Groups(), Images(slices), SlicePlanes.of(slices), Structures())
    tracemalloc.start()
    try:
        masks.read(phantom.table("planes", [row]) for row in parts)
        assert tracemalloc.get_traced_memory()[0] < 800 * 256 * 256 // 8 // 4  # of 800 masks as bits
    finally:
        tracemalloc.stop()
    piece = masks.piece(7, 3)
    assert piece is not None and np.array_equal(piece.on(256, 256), left | right)
    assert piece.mask.base is None and piece.mask.shape == (160, 90)  # nor is the whole image's mask


def test_empty_masks() -> None:
    empty = np.zeros((12, 9), bool)
    (row,), _ = on_slices(phantom.slices(1, 12, 9), planes=phantom.planes(phantom.plane("a", empty, "name:file0")))
    assert row["area_px"] == 0 and row["bbox"] is None and row["n_components"] == 0 and not mask_of(row).any()
    rows, rejections = on_slices(phantom.slices(2, 12, 9), planes=phantom.planes(phantom.plane("a", empty, "name:file0")))
    assert not rows and not rejections


def test_photos_take_masks_in_bands() -> None:
    photo = {
        "image_id": "f" * 32,
        "source_id": "d" * 32,
        "dataset": "p",
        "subject_key": "s",
        "rows": 40,
        "cols": 30,
        "channels": 3,
        "file_token": "x",
    }
    photos = phantom.table("photos", [photo])
    mask = np.random.default_rng(0).random((40, 30)) < 0.5
    items = link_slices(None, photos, None, phantom.regions(), iter(bands("m", mask, 16)), none, phantom.SOURCE, phantom.IDS, DEFAULT, NOW)
    (row,), rejections = split(items)
    assert not rejections and np.array_equal(mask_of(row), mask) and row["parent_id"] == "d" * 32 and row["area_mm2"] is None


def test_each_photo_takes_what_names_it() -> None:
    """By name (all of that name), by path, by id; what lies in a patient belongs to a series of the same name; an array's image by its own id."""

    def photo(source: str, index: int = 0, folder: str = "f") -> dict[str, Any]:
        known = {"dataset": "p", "subject_key": "s", "rows": 12, "cols": 9, "channels": 1, "file_token": "x", "folder_token": folder}
        return {"image_id": source * 16 + f"{index:016d}", "source_id": source * 32, **known}

    photos = phantom.table("photos", [photo("a"), photo("b", folder="g"), photo("c", 0, "h"), photo("c", 1, "h")])
    mask = volume((1, 12, 9))[0]
    planes = [
        phantom.plane("by path", mask, "path:g/x"),
        phantom.plane("by id", mask, "image:" + "c" * 16 + f"{1:016d}"),
        phantom.plane("elsewhere", mask, "name:y"),
        phantom.plane("in a patient", mask, "name:x", affine=np.eye(4)),
    ]
    drawn = phantom.regions(phantom.region("whole", ref="name:x"))
    table = phantom.table("planes", planes)
    rows, rejections = split(link_photos(photos, drawn, table, none, phantom.SOURCE, phantom.IDS, DEFAULT, NOW))
    assert not rejections
    found = sorted((row["label"], row["image_id"][0], row["image_id"][-1], row["parent_id"][0]) for row in rows)
    whole = [("whole", "a", "0", "a"), ("whole", "b", "0", "b"), ("whole", "c", "0", "c"), ("whole", "c", "1", "c")]
    assert found == [("by id", "c", "1", "c"), ("by path", "b", "0", "b"), *whole]


def test_values_are_rescaled() -> None:
    from medspark.series.rescale import pack_lut

    stored = np.arange(12 * 9, dtype=np.int16).reshape(12, 9)
    mask = volume((1, 12, 9))[0]
    planes = [phantom.plane("a", mask, "sop:1.2.0#1")]
    slices = phantom.slices(2, 12, 9, rescale_slope=2.0, rescale_intercept=-1000.0)
    (row,), _ = on_slices(slices, planes=phantom.planes(*planes), values=lambda ids: dict.fromkeys(ids, stored))
    assert (row["value_mean"], row["value_max"]) == (pytest.approx(2.0 * stored[mask].mean() - 1000), 2.0 * stored[mask].max() - 1000)
    lut = np.arange(200, 0, -1)
    slices = phantom.slices(2, 12, 9, modality_lut=pack_lut(lut, 0))
    (row,), _ = on_slices(slices, planes=phantom.planes(*planes), values=lambda ids: dict.fromkeys(ids, stored))
    assert row["value_mean"] == pytest.approx(lut[stored[mask]].mean())


def test_spacing_of_the_detector_gives_no_area() -> None:
    slices = phantom.slices(1, 12, 9, pixel_spacing_source="ImagerPixelSpacing")
    (row,), _ = on_slices(slices, planes=phantom.planes(phantom.plane("a", np.ones((12, 9), bool), "name:file0")))
    assert row["area_mm2"] is None and row["area_px"] == 108


def test_labels_without_pixels() -> None:
    slices = phantom.slices(3, 12, 9)
    names = slices.column("image_id").to_pylist()

    def targets(ref: str, only: set[str] | None = None) -> list[tuple[str, str]]:
        rows, _ = on_slices(slices, phantom.regions(phantom.region("c", ref=ref, properties={"class_value": "1"})), only=only)
        return [(row["target"], row["target_id"]) for row in rows]

    assert targets("sop:1.2.1#1") == targets("name:file1") == targets(f"image:{names[1]}") == [("image", names[1])]
    assert targets("folder:x") == targets("image:" + "e" * 32) == [("series", "e" * 32)]
    assert targets("folder:x", {names[2]}) == [] and targets("folder:x", set(names)) == [("series", "e" * 32)]


def test_only_late_slices_are_written() -> None:
    slices = phantom.slices(4, 12, 9)
    planes = [phantom.plane("a", np.ones((12, 9), bool), f"sop:1.2.{k}#1") for k in range(4)]
    late = {slices.column("image_id")[3].as_py()}
    rows, _ = on_slices(slices, planes=phantom.planes(*planes), only=late)
    assert {row["image_id"] for row in rows} == late


# --- real files ------------------------------------------------------------------------------------------------------------------------


def test_asap_geojson_and_mask_of_one_slide_agree() -> None:
    folder = shared_data("wsi/annotations")
    slide = phantom.slide(2220, 2967)
    tiles = phantom.tiles(slide, 256)
    (asap, none_off), (geojson, _), (tif, _) = (
        on_tiles(slide, tiles, *phantom.read(folder / f"CMU-1-Small-Region.{name}")) for name in ("asap.xml", "qupath.geojson", "mask.tif")
    )
    from skimage.io import imread

    image = imread(folder / "CMU-1-Small-Region.mask.png")
    assert not none_off and {row["label"] for row in asap} == {"TissueA", "TissueB"}
    for label, value in (("TissueA", 1), ("TissueB", 2)):
        assert area(tif, f"class_{value}") == (image == value).sum()
        assert area(asap, label) == pytest.approx(area(geojson, label), rel=5e-4)
        assert area(asap, label) == pytest.approx(area(tif, f"class_{value}"), rel=1e-2)


DERIVED = "ct/ge_head_tilt_labels_derived"


def head() -> tuple[pa.Table, dict[str, list[int]]]:
    counts = json.loads(shared_data("ct/ge_head_tilt_labels_derived/pixel_counts.json").read_text())
    return phantom.dicom_slices(shared_data("ct/ge_head_tilt")), counts


def counted(rows: list[dict[str, Any]], slices: pa.Table, label: str) -> list[int]:
    areas = {row["image_id"]: row["area_px"] for row in rows if row["label"] == label}
    return [areas.get(name, 0) for name in slices.column("image_id").to_pylist()]


def test_seg_of_a_tilted_head() -> None:
    slices, counts = head()
    rows, rejections = on_slices(slices, *phantom.read(shared_data(f"{DERIVED}/seg_bone_soft.dcm")))
    assert not rejections
    for label in ("bone_gt400HU", "soft_tissue_0_80HU"):
        assert counted(rows, slices, label) == counts[label]


@pytest.mark.parametrize("by_geometry", [False, True])
def test_xor_contours_of_a_tilted_head_equal_its_seg(by_geometry: bool) -> None:
    slices, counts = head()
    regions, _ = phantom.read(shared_data(f"{DERIVED}/rtstruct_bone_xor.dcm"))
    if by_geometry:
        place = regions.schema.get_field_index("ref_image")
        regions = regions.set_column(place, regions.schema.field(place), pa.array(["plane:1.2.3"] * regions.num_rows))
    rows, rejections = on_slices(slices, regions)
    assert not rejections and counted(rows, slices, "bone_gt400HU") == counts["bone_gt400HU"]
    seg, _ = on_slices(slices, *phantom.read(shared_data(f"{DERIVED}/seg_bone_soft.dcm")))
    bone = {row["image_id"]: row["mask"] for row in seg if row["label"] == "bone_gt400HU"}
    assert {row["image_id"]: row["mask"] for row in rows} == bone


def test_misplaced_contours_of_a_tilted_head_are_never_truth() -> None:
    slices, _ = head()
    rows, (rejection,) = on_slices(slices, *phantom.read(shared_data(f"{DERIVED}/rtstruct_bone_misplaced.dcm")))
    assert not rows and rejection.code == "LABEL_GEOMETRY" and "of 156" in rejection.message and "21.6" in rejection.message


def test_label_volume_of_a_brain() -> None:
    import nibabel

    folder = shared_data("nifti/BraTS2021_00006")
    image = nibabel.load(folder / "BraTS2021_00006_flair.nii.gz")
    affine = np.diag([-1.0, -1.0, 1.0, 1.0]) @ image.affine  # RAS to LPS
    cosines = np.concatenate([affine[:3, 0] / np.linalg.norm(affine[:3, 0]), affine[:3, 1] / np.linalg.norm(affine[:3, 1])])
    cols, rows, count = image.shape
    slices = phantom.slices(count, rows, cols, (1.0, 1.0), [1.0] * (count - 1), cosines, affine[:3, 3])
    found, rejections = on_slices(slices, *phantom.read(folder / "BraTS2021_00006_seg.nii.gz"))
    assert not rejections
    assert {label: area(found, label) for label in ("class_1", "class_2", "class_4")} == {
        "class_1": 25506,
        "class_2": 85957,
        "class_4": 26448,
    }
    truth = np.asarray(nibabel.load(folder / "BraTS2021_00006_seg.nii.gz").dataobj)
    for row in found[::20]:
        k = slices.column("image_id").to_pylist().index(row["image_id"])
        assert np.array_equal(mask_of(row), int(row["label"][-1]) == truth[:, :, k].T)


@pytest.mark.parametrize("tile_px", [7, 10, 64])
def test_segmentation_of_a_dicom_slide(tile_px: int) -> None:
    regions, planes = phantom.read(shared_data("highdicom/seg_image_sm_control.dcm"))
    slide = phantom.slide(50, 50)
    rows, rejections = on_tiles(slide, phantom.tiles(slide, tile_px), regions, planes)
    assert not rejections and sum(row["area_px"] for row in rows) == 523


def test_liver_and_fractional_segmentations() -> None:
    slices = phantom.dicom_slices(shared_data("ct/dcmqi_liver/ct-3slice"))
    rows, rejections = on_slices(slices, *phantom.read(shared_data("ct/dcmqi_liver/liver.dcm")))
    assert not rejections and area(rows, "Liver") == 107098
    rows, rejections = on_slices(slices, *phantom.read(shared_data("ct/dcmqi_liver/partial_overlaps.dcm")))
    assert not rejections and sum(row["area_px"] for row in rows) == 43639


@pytest.mark.parametrize("ref", ["sop:1.2.2#1", "name:x"])
@pytest.mark.parametrize("broken", [np.full((4, 4), np.nan), np.zeros((4, 4)), np.diag([1e300, 1e300, 1, 1])])
def test_broken_affines_are_refused(ref: str, broken: np.ndarray) -> None:
    slices = phantom.slices(4, 12, 9)
    rows, (rejection,) = on_slices(slices, planes=phantom.planes(phantom.plane("a", np.ones((12, 9), bool), ref, broken)))
    assert not rows and rejection.code == "LABEL_GEOMETRY"


def test_shapes_that_are_not_finite_are_refused() -> None:
    slide, bad = phantom.slide(64, 64), [(1.0, 2.0), (float("nan"), 3.0), (5.0, 9.0)]
    rows, (rejection,) = on_tiles(slide, phantom.tiles(slide, 64), phantom.regions(phantom.region("a", bad), SQUARES[0]))
    assert area(rows, "a") == 1600 and rejection.code == "LABEL_GEOMETRY"
    lost = [(x, y, 1.0) for x, y in bad]
    rows, (rejection,) = on_slices(phantom.slices(3, 12, 9), phantom.regions(phantom.region("a", lost, geometry="contour", ref="plane:1")))
    assert not rows and rejection.code == "LABEL_GEOMETRY"


def test_images_without_a_place_take_no_contours() -> None:
    slices = phantom.slices(1, 40, 30)
    at = slices.schema.get_field_index("image_position_mm")
    lost = slices.set_column(at, slices.schema.field(at), pa.nulls(1, slices.schema.field(at).type))
    region = phantom.region("a", contour_on(slices, 0, RING), geometry="contour", ref="sop:1.2.0#0")
    rows, (rejection,) = on_slices(lost, phantom.regions(region))
    assert not rows and rejection.code == "LABEL_GEOMETRY"
