"""Laws of tile grids, then the numbers of one real slide."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from medspark.config import Tiling
from medspark.errors import Rejected
from medspark.slides.grid import LevelShape, choose, coincides

CMU1 = [LevelShape(2220, 2967, 240, 240)]
MPP = (0.499, 0.499)
NO_OVERLAP = st.just(0)


@st.composite
def grids(draw, edge="clip", overlap=NO_OVERLAP):
    width, height = draw(st.integers(1, 900)), draw(st.integers(1, 900))
    down = draw(st.sampled_from([1, 2, 3, 4]))
    levels = [LevelShape(max(1, width // down**n), max(1, height // down**n)) for n in range(3)]
    tile = draw(st.integers(16, 300))
    tiling = Tiling(tile_px=tile, overlap_px=min(draw(overlap), tile - 1), edge=edge)
    if draw(st.booleans()):
        return choose(replace(tiling, mpp_um=draw(st.floats(0.2, 5.0))), levels, draw(st.sampled_from([(0.5, 0.5), (0.25, 0.4)])))
    return choose(replace(tiling, level=draw(st.integers(0, 2))), levels, None)


def cover(grid, n, axis):
    """How many tiles hold each of the n level-0 pixels (by its centre) along one axis."""
    tiles = grid.table()
    place, start, size = (("tile_col", "x_l0", "width_l0"), ("tile_row", "y_l0", "height_l0"))[axis]
    _, first = np.unique(tiles[place], return_index=True)
    centres = np.arange(n) + 0.5
    low, high = tiles[start][first], (tiles[start] + tiles[size])[first]
    return ((centres >= low[:, None]) & (centres < high[:, None])).sum(axis=0)


@pytest.mark.parametrize("edge", ["pad", "clip"])
@given(data=st.data())
@settings(max_examples=40, deadline=None)
def test_every_level0_pixel_lies_in_exactly_one_tile(edge, data):
    grid = data.draw(grids(edge=edge))
    assert (cover(grid, grid.l0_width, 0) == 1).all()
    assert (cover(grid, grid.l0_height, 1) == 1).all()


@given(grid=grids(edge="pad"))
@settings(max_examples=40, deadline=None)
def test_valid_sizes_sum_to_the_slide(grid):
    tiles = grid.table()
    assert tiles["valid_width_px"][tiles["tile_row"] == 0].sum() == grid.t_width
    assert tiles["valid_height_px"][tiles["tile_col"] == 0].sum() == grid.t_height
    assert (tiles["valid_width_px"] * tiles["valid_height_px"]).sum() == grid.t_width * grid.t_height
    assert tiles["valid_width_px"].min() >= 1 and tiles["valid_height_px"].min() >= 1
    assert grid.t_width - 1 < grid.l0_width / grid.frames.t_scale[0] <= grid.t_width + 1e-5 or grid.t_width == 1


@given(data=st.data())
@settings(max_examples=40, deadline=None)
def test_drop_is_the_whole_tiles_of_clip(data):
    clip = data.draw(grids(edge="clip", overlap=st.integers(0, 60)))
    drop = replace(clip, edge="drop")
    kept, all_tiles = drop.table(), clip.table()
    assert len(kept["t_x"]) == drop.n_tiles
    places = set(zip(all_tiles["t_x"].tolist(), all_tiles["t_y"].tolist(), strict=True))
    assert set(zip(kept["t_x"].tolist(), kept["t_y"].tolist(), strict=True)) <= places
    if drop.n_tiles:
        assert (kept["valid_width_px"] == drop.tile_width_px).all() and (kept["valid_height_px"] == drop.tile_height_px).all()
        assert (kept["x_l0"] + kept["width_l0"]).max() <= drop.l0_width + 1e-3
        x_end, y_end = (drop.n_cols * drop.stride_px[0] + drop.tile_width_px, drop.n_rows * drop.stride_px[1] + drop.tile_height_px)
        assert x_end * drop.frames.t_scale[0] > drop.l0_width - 1e-3 and y_end * drop.frames.t_scale[1] > drop.l0_height - 1e-3


@given(grid=grids(edge="pad", overlap=st.integers(0, 100)))
@settings(max_examples=40, deadline=None)
def test_overlapping_tiles_leave_nothing_out_and_none_is_superfluous(grid):
    assert (cover(grid, grid.l0_width, 0) >= 1).all() and (cover(grid, grid.l0_height, 1) >= 1).all()
    if grid.n_cols > 1:  # without its last column, the grid would not reach the edge
        assert (grid.n_cols - 2) * grid.stride_px[0] + grid.tile_width_px < grid.t_width


@given(grid=grids(edge="clip"), cut=st.integers(0, 20))
@settings(max_examples=30, deadline=None)
def test_bands_put_together_are_the_grid(grid, cut):
    whole, upper, lower = grid.table(), grid.table(0, min(cut, grid.n_rows)), grid.table(min(cut, grid.n_rows))
    for name, values in whole.items():
        assert np.array_equal(values, np.concatenate([upper[name], lower[name]]))


@given(wish=st.floats(0.1, 8.0), mpp=st.tuples(st.floats(0.1, 1.0), st.floats(0.1, 1.0)))
@settings(max_examples=60, deadline=None)
def test_a_grid_by_micrometres_has_the_wished_pixel_size(wish, mpp):
    levels = [LevelShape(8000 >> n, 6000 >> n) for n in range(4)]
    grid = choose(Tiling(mpp_um=wish), levels, mpp)
    for axis in (0, 1):
        assert abs(mpp[axis] * grid.frames.t_scale[axis] / wish - 1) <= 0.005
        if grid.level:  # never from a level coarser than the wish (1 %)
            assert grid.frames.l_scale[axis] * mpp[axis] <= wish * 1.0101
    if grid.level < 3:  # and the next level would have been too coarse
        coarser = (8000 / (8000 >> grid.level + 1), 6000 / (6000 >> grid.level + 1))
        assert any(coarser[axis] * mpp[axis] > wish * 1.0049 for axis in (0, 1)) or not grid.resamples


@given(x=st.floats(0, 1e6), y=st.floats(0, 1e6))
def test_planes_convert_back_and_forth(x, y):
    frames = choose(Tiling(mpp_um=1.0), [LevelShape(1000, 800), LevelShape(500, 400)], (0.31, 0.29)).frames
    assert frames.l0_from_t(*frames.t_from_l0(x, y)) == pytest.approx((x, y))
    t_x, t_y = frames.t_from_l0(x, y)
    l_x, l_y = frames.l_from_t(t_x, t_y)
    assert (l_x * frames.l_scale[0], l_y * frames.l_scale[1]) == pytest.approx((x, y))
    assert frames.um_from_l0(x, y) == pytest.approx((t_x * 1.0, t_y * 1.0))


def test_cmu1_in_256_px_tiles_is_108_tiles_and_none_is_the_files_own():
    grid = choose(Tiling(), CMU1, MPP)
    assert (grid.n_cols, grid.n_rows, grid.n_tiles) == (9, 12, 108)
    assert not coincides(grid, CMU1[0])


def test_cmu1_in_native_tiles_is_130_tiles_of_which_108_lie_wholly_on_the_slide():
    grid = choose(Tiling(tile_px="native"), CMU1, MPP)
    assert (grid.n_cols, grid.n_rows, grid.n_tiles) == (10, 13, 130)
    assert coincides(grid, CMU1[0])
    tiles = grid.table()
    assert ((tiles["valid_width_px"] == 240) & (tiles["valid_height_px"] == 240)).sum() == 108
    assert not coincides(choose(Tiling(tile_px="native", overlap_px=8), CMU1, MPP), CMU1[0])
    assert not coincides(choose(Tiling(tile_px="native", mpp_um=1.0), CMU1, MPP), CMU1[0])
    assert coincides(choose(Tiling(tile_px="native", mpp_um=0.5), CMU1, MPP), CMU1[0])  # 0.499 is 0.5


def test_native_tiles_need_not_be_square_and_fall_back_without_tiles():
    grid = choose(Tiling(tile_px="native"), [LevelShape(1000, 700, 512, 128)], None)
    assert (grid.tile_width_px, grid.tile_height_px, grid.n_cols, grid.n_rows) == (512, 128, 2, 6)
    assert choose(Tiling(tile_px="native"), [LevelShape(1000, 700)], None).tile_width_px == 256
    restart = choose(Tiling(tile_px="native"), [LevelShape(1000, 700, 2048, 8)], None)  # what OpenSlide calls the tiles of an NDPI
    assert (restart.tile_width_px, restart.tile_height_px) == (256, 256)


def test_what_cannot_be_planned_is_rejected_with_its_code():
    with pytest.raises(Rejected, match="UNKNOWN_MPP"):
        choose(Tiling(mpp_um=1.0), CMU1, None)
    with pytest.raises(Rejected, match="SLIDE_UNSUPPORTED"):
        choose(Tiling(level=1), CMU1, MPP)
    with pytest.raises(Rejected, match="SLIDE_UNSUPPORTED"):
        choose(Tiling(tile_px="native", overlap_px=240), CMU1, MPP)
