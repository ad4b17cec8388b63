"""The pixel-centre rule: laws, and shapely and scikit-image as foreign oracles."""

from __future__ import annotations

import numpy as np
import shapely
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from skimage.draw import polygon2mask

from medspark.labels.raster import Edges, canvas, concat, fill, lines, on_contour, points, polygon_mask, ring_edges

ROWS, COLS = 23, 31
coordinate = st.integers(-8 * 512, 40 * 512).map(lambda value: value / 512)
ring = st.lists(st.tuples(coordinate, coordinate), min_size=3, max_size=12).map(lambda points: np.array(points, np.float64))
on_grid = st.lists(st.tuples(st.integers(-6, 50), st.integers(-6, 50)), min_size=3, max_size=9).map(lambda p: np.array(p, np.float64) / 2)


def star(rng: np.random.Generator, x: float, y: float, radius: float, corners: int) -> np.ndarray:
    """A simple polygon around (x, y)."""
    angle = np.sort(rng.random(corners)) * 2 * np.pi
    reach = radius * (0.4 + 0.6 * rng.random(corners))
    return np.stack([x + reach * np.cos(angle), y + reach * np.sin(angle)], axis=1)


def inside(shape: shapely.Geometry, rows: int, cols: int) -> tuple[np.ndarray, np.ndarray]:
    """(contains, far from the border) at each pixel centre."""
    y, x = np.mgrid[:rows, :cols].astype(float)
    centres = shapely.points(x, y)
    return shapely.contains(shape, centres), shapely.distance(shape.boundary, centres) > 1e-9


@given(st.integers(0, 2**32 - 1), st.integers(3, 40))
@settings(max_examples=120, deadline=None)
def test_simple_polygons_agree_with_shapely(seed: int, corners: int) -> None:
    rng = np.random.default_rng(seed)
    outer = star(rng, *(rng.random(2) * 25), 5 + 15 * rng.random(), corners)
    shape = shapely.Polygon(outer)
    assume(shape.is_valid)
    expected, clear = inside(shape, ROWS, COLS)
    found = polygon_mask([outer], ROWS, COLS)
    assert (found == expected)[clear].all()
    assert (polygon_mask([outer], ROWS, COLS, closed=True) == expected)[clear & (shapely_distance(shape) > 2e-3)].all()


def shapely_distance(shape: shapely.Geometry) -> np.ndarray:
    y, x = np.mgrid[:ROWS, :COLS].astype(float)
    return shapely.distance(shape.boundary, shapely.points(x, y))


@given(st.integers(0, 2**32 - 1), st.integers(3, 30))
@settings(max_examples=60, deadline=None)
def test_agrees_with_scikit_image(seed: int, corners: int) -> None:
    rng = np.random.default_rng(seed)
    outer = star(rng, 15, 11, 10, corners)
    assert np.array_equal(polygon_mask([outer], ROWS, COLS), polygon2mask((ROWS, COLS), outer[:, ::-1]))


@given(st.lists(ring, min_size=1, max_size=3), st.integers(0, 30), st.integers(0, 22))
@settings(max_examples=100, deadline=None)
def test_windows_agree_with_the_whole(rings: list[np.ndarray], cut_x: int, cut_y: int) -> None:
    edges, xs, ys = ring_edges(rings), np.arange(COLS) + 0.5, np.arange(ROWS) + 0.5
    whole = canvas(fill(edges, xs, ys), ROWS, COLS)
    left = [canvas(fill(edges, xs[:cut_x], part), len(part), cut_x) for part in (ys[:cut_y], ys[cut_y:])]
    right = [canvas(fill(edges, xs[cut_x:], part), len(part), COLS - cut_x) for part in (ys[:cut_y], ys[cut_y:])]
    assert np.array_equal(whole, np.block([[left[0], right[0]], [left[1], right[1]]]))


@given(st.lists(on_grid, min_size=1, max_size=3))
@settings(max_examples=150, deadline=None)
def test_the_direction_of_rings_does_not_matter(rings: list[np.ndarray]) -> None:
    turned = [np.roll(ring[::-1], 1, axis=0) for ring in rings]
    assert np.array_equal(polygon_mask(rings, 30, 30), polygon_mask(turned, 30, 30))


@given(st.lists(st.tuples(st.integers(0, 20), st.integers(0, 20)), min_size=1, max_size=1), st.integers(0, 2**32 - 1))
@settings(max_examples=80, deadline=None)
def test_neighbours_share_no_pixel_and_leave_none(centre: list[tuple[int, int]], seed: int) -> None:
    """A square cut into triangles at a point of the grid: half-open ties give each pixel to exactly one."""
    x, y = centre[0]
    corners = [(0, 0), (20, 0), (20, 20), (0, 20)]
    parts = [polygon_mask([np.array([corners[i], corners[(i + 1) % 4], (x, y)], float)], 22, 22).astype(int) for i in range(4)]
    whole = np.zeros((22, 22), int)
    whole[:20, :20] = 1
    assert np.array_equal(sum(parts), whole)


def test_holes_and_keyholes() -> None:
    outer, hole = np.array([(0, 0), (10, 0), (10, 10), (0, 10)], float) - 0.5, np.array([(3, 3), (6, 3), (6, 6), (3, 6)], float) - 0.5
    keyhole = np.concatenate([outer, outer[:1], hole, hole[:1]])
    expected = np.ones((10, 10), bool)
    expected[3:6, 3:6] = False
    assert np.array_equal(polygon_mask([outer, hole], 10, 10), expected)
    assert np.array_equal(polygon_mask([keyhole], 10, 10), expected)


@given(on_grid)
@settings(max_examples=100, deadline=None)
def test_closed_adds_exactly_the_centres_on_the_contour(outer: np.ndarray) -> None:
    y, x = np.mgrid[:25, :25].astype(float)
    on = shapely.distance(shapely.LinearRing(outer), shapely.points(x, y)) < 1e-6
    assert np.array_equal(polygon_mask([outer], 25, 25, closed=True), polygon_mask([outer], 25, 25) | on)


def test_closed_square_of_pixel_centres() -> None:
    """rt-utils draws through the centres of border pixels: 3 x 4 pixels come back as 3 x 4, not 2 x 3."""
    outer = np.array([(2, 1), (5, 1), (5, 3), (2, 3)], float)
    assert polygon_mask([outer], 8, 8, closed=True).sum() == 12
    assert polygon_mask([outer], 8, 8).sum() == 6
    assert polygon_mask([outer + 1e-4], 8, 8, closed=True).sum() == 12


def test_many_owners_are_united_and_each_is_even_odd() -> None:
    rng = np.random.default_rng(0)
    shapes = [star(rng, *(rng.random(2) * 60), 6, 9) for _ in range(80)]
    parts = [ring_edges([shape], owner) for owner, shape in enumerate(shapes)]
    edges = Edges(*(np.concatenate([getattr(part, name) for part in parts]) for name in ("owner", "x1", "y1", "x2", "y2")))
    expected = np.any([polygon_mask([shape], 60, 60) for shape in shapes], axis=0)
    assert np.array_equal(canvas(fill(edges, np.arange(60.0), np.arange(60.0)), 60, 60), expected)


@given(st.tuples(coordinate, coordinate), st.tuples(coordinate, coordinate))
@settings(max_examples=100, deadline=None)
def test_lines_are_connected_near_and_one_wide(a: tuple[float, float], b: tuple[float, float]) -> None:
    from scipy import ndimage

    edge = Edges(*(np.array([value], float) for value in (0, a[0], a[1], b[0], b[1])))
    edge = Edges(edge.owner.astype(int), edge.x1, edge.y1, edge.x2, edge.y2)
    mask = canvas(lines(edge, 60, 60), 60, 60)
    row, col = np.nonzero(mask)
    if len(row):
        assert ndimage.label(mask, np.ones((3, 3)))[1] == 1
        assert (shapely.distance(shapely.LineString([a, b]), shapely.points(col, row)) <= 0.7072).all()
    for x, y in (a, b):
        if 0 <= np.floor(x + 0.5) < 60 and 0 <= np.floor(y + 0.5) < 60:
            assert mask[int(np.floor(y + 0.5)), int(np.floor(x + 0.5))]


def test_points_label_their_pixel() -> None:
    spans = points(np.zeros(4, int), np.array([0.49, 0.5, -0.5, -0.51]), np.array([2.0, 2.0, 0.0, 0.0]), 4, 4)
    assert sorted(zip(spans.row.tolist(), spans.col0.tolist(), strict=True)) == [(0, 0), (2, 0), (2, 1)]


def test_nothing_gives_nothing() -> None:
    far = ring_edges([np.array([(100, 100), (120, 100), (110, 130)], float)])
    empty = fill(far, np.arange(8.0), np.arange(8.0))
    assert len(empty) == 0 and not canvas(empty, 8, 8).any()
    assert len(concat([empty, on_contour(far, 8, 8), lines(far, 8, 8)])) == 0
