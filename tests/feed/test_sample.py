"""Recipes, crops, neighbours, truth: laws over small arrays, and values that a hand can check."""

from __future__ import annotations

import json
import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from medspark.errors import BadRequest
from medspark.feed.choose import Chooser
from medspark.feed.rows import unpack_masks
from medspark.feed.sample import Recipe, covered, cut, depths, grid, neighbours, resized, resized_mask
from medspark.feed.truth import Truth, inside
from medspark.pixels import masks
from medspark.series import display, rescale

SIDE = st.integers(1, 30)
SIZE = st.tuples(SIDE, SIDE)


@given(SIZE, SIZE, SIZE)
def test_crops_cover_every_pixel_and_lie_on_the_image(size: tuple[int, int], crop: tuple[int, int], stride: tuple[int, int]) -> None:
    step = (min(stride[0], crop[0]), min(stride[1], crop[1]))
    seen = np.zeros(size, int)
    corners = grid(size, crop, step)
    assert len(set(corners)) == len(corners)
    for row0, col0 in corners:
        assert 0 <= row0 <= max(0, size[0] - crop[0]) and 0 <= col0 <= max(0, size[1] - crop[1])
        seen[row0 : row0 + crop[0], col0 : col0 + crop[1]] += 1
    assert seen.all()


@given(SIZE, SIZE, st.integers(-20, 40), st.integers(-20, 40))
def test_a_crop_repeats_the_edge_and_says_where_it_did(size: tuple[int, int], crop: tuple[int, int], row0: int, col0: int) -> None:
    image = np.arange(size[0] * size[1]).reshape(size)
    got, there = cut(image, row0, col0, crop), covered(size, row0, col0, crop)
    assert got.shape == there.shape == crop
    for (row, col), value in np.ndenumerate(got):
        on = 0 <= row0 + row < size[0] and 0 <= col0 + col < size[1]
        assert there[row, col] == on
        assert value == image[min(max(row0 + row, 0), size[0] - 1), min(max(col0 + col, 0), size[1] - 1)]
    assert (cut(np.stack([image, image]), row0, col0, crop, axis=1)[1] == got).all()


def test_neighbours_repeat_the_edge_and_cross_no_gap() -> None:
    ks = [0, 1, 2, 5, 6]
    assert [neighbours(place, 2, ks) for place in range(5)] == [
        [0, 0, 0, 1, 2],
        [0, 0, 1, 2, 2],
        [0, 1, 2, 2, 2],
        [3, 3, 3, 4, 4],
        [3, 3, 4, 4, 4],
    ]
    assert neighbours(1, 0, ks) == [1]


@given(st.integers(1, 40), st.integers(1, 40))
def test_planes_of_a_volume(count: int, depth: int) -> None:
    places = depths(count, depth)
    there = [place for place in places if place >= 0]
    assert len(places) == depth and there == sorted(set(there)) and places[: len(there)] == there
    assert set(there) == set(range(count)) if count <= depth else len(there) == depth


def test_resampling_keeps_means_edges_and_types() -> None:
    image = np.arange(64, dtype=np.uint8).reshape(8, 8)
    assert resized(image, (4, 4)).dtype == np.uint8 and resized(image.astype(np.float32), (16, 8)).dtype == np.float32
    half = resized(image.astype(np.float32), (4, 4))
    assert abs(float(half.mean()) - float(image.mean())) < 1e-3 and (np.diff(half, axis=0) > 0).all()
    mask = np.zeros((8, 8), bool)
    mask[:, 4:] = True
    assert (resized_mask(mask, (4, 4)) == mask[::2, ::2]).all() and resized_mask(mask, (8, 8)) is mask
    assert Recipe(spacing_mm=(1.0, 1.0)).sized(10, 20, [0.5, 0.25]) == (5, 5)
    with pytest.raises(BadRequest, match="no pixel spacing"):
        Recipe(spacing_mm=(1.0, 1.0)).sized(10, 20, None)


ROW = {
    "rescale_slope": 2.0,
    "rescale_intercept": -1000.0,
    "photometric": "MONOCHROME2",
    "value_min": -1000.0,
    "value_max": 1000.0,
    "window_center": [40.0],
    "window_width": [400.0],
}
STORED = np.arange(12, dtype=np.int16).reshape(3, 4) * 90


def test_values_by_mode() -> None:
    hu = Recipe(mode="values", dtype="int16").values([STORED], [ROW])
    assert hu.shape == (3, 4, 1) and hu.dtype == np.int16 and (hu[..., 0] == STORED * 2 - 1000).all()
    window = Recipe(mode="window", window=(40.0, 400.0)).values([STORED], [ROW])[..., 0]
    assert (window == np.rint(np.clip((STORED * 2 - 1000 - 40) / 400 + 0.5, 0, 1) * 255)).all()
    inverted = Recipe(mode="window", window=(40.0, 400.0)).values([STORED], [{**ROW, "photometric": "MONOCHROME1"}])[..., 0]
    assert (inverted == 255 - window).all()
    shown = Recipe(mode="display").values([STORED], [ROW])[..., 0]
    assert (np.abs(shown - display.picture(STORED, ROW) * 255) <= 0.5001).all() and shown.dtype == np.uint8
    context = Recipe(kind="context", context=1, mode="values", dtype="int16").values([STORED, STORED + 1, STORED + 2], [ROW] * 3)
    assert context.shape == (3, 4, 3) and (np.diff(context, axis=-1) == 2).all()
    volume = Recipe(kind="volume", depth=2, mode="values", dtype="float32", size=(6, 8)).values([STORED, STORED], [ROW] * 2)
    assert volume.shape == (2, 6, 8, 1) and volume.dtype == np.float32
    lut = {**ROW, "modality_lut": rescale.pack_lut(np.array([7, 9], np.uint16), 0)}
    assert set(np.unique(Recipe(mode="values", dtype="int16").values([STORED], [lut]))) == {7, 9}
    rgb = np.zeros((5, 6, 3), np.uint8)
    assert Recipe(channels=3).values([rgb], [{}]).shape == (5, 6, 3)


def test_a_recipe_travels_as_json_and_a_newer_one_is_refused() -> None:
    recipe = Recipe("context", "window", "uint8", (40.0, 400.0), (12, 14), None, 2, 0, 1)
    assert Recipe.parse(json.loads(json.dumps(recipe.to_dict()))) == recipe
    assert recipe.planes == 5 and recipe.channel_names == ("k-2", "k-1", "k", "k+1", "k+2")
    with pytest.raises(BadRequest, match="newer"):
        Recipe.parse({"kind": "image", "moon": 1})


def label(
    name: str, mask: np.ndarray | None = None, role: str = "positive", area: int | None = None, fraction: bool = False
) -> dict[str, Any]:
    row: dict[str, Any] = {
        "label": name,
        "role": role,
        "area_px": area,
        "mask": None,
        "mask_codec": None,
        "rows": None,
        "cols": None,
        "threshold": None,
    }
    if mask is None:
        return row
    packed = masks.pack_u8(mask) if fraction else masks.pack(mask)
    codec, size = ("u8-zstd" if fraction else "bits-zstd"), mask.shape
    return {**row, "area_px": int(mask.astype(bool).sum()), "mask": packed, "mask_codec": codec, "rows": size[0], "cols": size[1]}


def box(size: tuple[int, int], rows: slice, cols: slice) -> np.ndarray:
    mask = np.zeros(size, bool)
    mask[rows, cols] = True
    return mask


SIZE2 = (6, 8)
A, B = box(SIZE2, slice(0, 3), slice(0, 4)), box(SIZE2, slice(2, 5), slice(3, 8))


def test_what_is_known_of_an_image() -> None:
    truth = Truth(("a", "b"), {"old": "a", "other": ""})
    both = truth.planes([label("a", A), label("b", B)], SIZE2, False)
    assert both is not None and (both[0] == np.stack([A, B])).all() and both[1].all()
    renamed = truth.planes([label("old", B), label("a", A)], SIZE2, False)
    assert renamed is not None and (renamed[0][0] == (A | B)).all(), "two masks of one class are united"
    extent = truth.planes([label("a", A), label("examined", B, "extent")], SIZE2, True)
    assert extent is not None and (extent[1] == (A | B)).all(), "outside an extent nothing is known, but what was drawn is"
    assert truth.planes([], SIZE2, True) is None, "the slide has extents, and none is here"
    examined = truth.planes([label("examined", B, "extent")], SIZE2, True)
    assert examined is not None and not examined[0].any() and (examined[1] == B).all()
    ignored = truth.planes([label("a", A), label("blur", B, "ignore")], SIZE2, False)
    assert ignored is not None and (ignored[1] == ~B).all()
    absent = truth.planes([label("a", np.zeros(SIZE2, bool))], SIZE2, False)
    assert absent is not None and not absent[0].any() and absent[1].all(), "a mask without pixels says: known to be absent"
    assert truth.planes([label("unrelated", A)], SIZE2, False) is None
    assert truth.planes([], SIZE2, False) is None
    assert truth.planes([label("a")], SIZE2, False) is None, "somewhere on the image is nowhere in particular"
    nowhere = truth.planes([label("a", role="negative")], SIZE2, False)
    assert nowhere is not None and not nowhere[0].any() and nowhere[1].all()
    stated = Truth(("a",), unlabelled="negative").planes([], SIZE2, False)
    assert stated is not None and not stated[0].any() and stated[1].all()
    background = truth.planes([label("other", A)], SIZE2, False)
    assert background is not None and not background[0].any() and background[1].all()
    fractions = np.where(A, 200, 100).astype(np.uint8)
    assert (inside(label("a", fractions, fraction=True), SIZE2) == A).all()
    assert inside({**label("a", fractions, fraction=True), "threshold": 0.3}, SIZE2).all()
    with pytest.raises(ValueError, match="on an image of"):
        inside(label("a", A), (7, 8))


@pytest.mark.parametrize(
    ("truth", "rows", "expected"),
    [
        (Truth(("a", "b")), [label("a")], [1, None]),
        (Truth(("a", "b"), exclusive=True), [label("a")], [1, 0]),
        (Truth(("a", "b"), unlabelled="negative"), [label("a")], [1, 0]),
        (Truth(("a", "b")), [label("a", role="negative"), label("b")], [0, 1]),
        (Truth(("a",), {"well": ""}), [label("well")], [0]),
        (Truth(("a",)), [label("well")], None),
        (Truth(("a",)), [label("a", A)], [1]),
        (Truth(("a",)), [label("a", np.zeros(SIZE2, bool))], [0]),
        (Truth(("a",)), [label("a"), label("a", role="negative")], [1]),
    ],
)
def test_classes_of_an_image(truth: Truth, rows: list[dict[str, Any]], expected: list[int | None] | None) -> None:
    got = truth.targets(rows)
    if expected is None or got is None:
        assert got is expected
    else:
        assert [None if math.isnan(value) else value for value in got] == expected


def image(k: int, truth: list[dict[str, Any]], wants: bool = True, **rest: Any) -> dict[str, Any]:
    want = [{"part": "train", "row0": None, "col0": None, "weight": None}]
    place = {"image_id": f"i{k}", "parent_id": "p", "dataset": "d", "subject_key": "s", "t": 0, "k": k, "rows": 6, "cols": 8}
    return {
        **place,
        "meta": "{}",
        "file": 0,
        "grp": k,
        "row": 1,
        "wants": want if wants else None,
        "truth": truth,
        "extents": False,
        **rest,
    }


def test_samples_of_crops_that_know_nothing_are_left_out() -> None:
    chooser = Chooser(Recipe(), Truth(("a",)), True, (3, 4), None, "r")
    found = list(chooser.samples([image(0, [label("a", A), label("e", A, "extent")], extents=True)]))
    assert [(one["row0"], one["col0"]) for one in found] == [(0, 0)]
    drawn, known = unpack_masks(found[0]["mask"], 1, (3, 4))
    assert drawn.all() and known.all() and found[0]["target"] == [1.0] and found[0]["positive_px"] == [12]
    given = image(1, [label("a", A)], wants=True)
    given["wants"] = [{"part": "test", "row0": -1, "col0": 6, "weight": 2.0}]
    (one,) = chooser.samples([given])
    _, known = unpack_masks(one["mask"], 1, (3, 4))
    assert (known == covered(SIZE2, -1, 6, (3, 4))).all() and one["weight"] == 2.0 and one["part"] == "test"
    assert one["row_id"] != found[0]["row_id"]


def test_context_takes_neighbours_that_the_query_did_not_ask_for() -> None:
    chooser = Chooser(Recipe(kind="context", context=1), Truth(("a",)), True, None, None, "r")
    volume = [image(k, [label("a", A)], wants=k == 1) for k in range(3)]
    (one,) = chooser.samples(volume)
    assert [plane[1] for plane in json.loads(one["planes"])] == [0, 1, 2] and one["k"] == 1 and one["home_grp"] == 1
