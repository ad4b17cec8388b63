"""Augmented samples: truth moves with the image, numbers are functions of names, and each kind does what it says."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from medspark.errors import BadRequest
from medspark.feed.augment import Augmentation
from medspark.feed.open import open_feed
from medspark.keys import rng
from tests.phantoms.feeds import write_feed

ALL = Augmentation(0.5, 0.5, 0.5, 20, 0.2, 0.1, 2, 0.2, 10, 0.1, 8)
MOVES = replace(ALL, gain=0, offset=0, stain=0, noise=0)


def ball(shape: tuple[int, ...], dtype: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """A bright disc off the centre, exactly its mask; all known."""
    rows, cols = shape[-3:-1]
    row, col = np.mgrid[:rows, :cols]
    disc = (row - rows * 0.4) ** 2 + (col - cols * 0.55) ** 2 < (rows / 5) ** 2
    plane = np.broadcast_to(disc[..., None], shape)
    masks = np.ascontiguousarray(plane[..., :1]).astype(np.uint8)
    return np.where(plane, 200, 50).astype(dtype), masks, np.ones_like(masks)


def changed(how: Augmentation, shape: tuple[int, ...], dtype: str, *names: object) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    image, masks, known = ball(shape, dtype)
    how.apply(image, masks, known, rng(1, *names))
    return image, masks, known


@settings(max_examples=60, deadline=None)
@given(
    st.sampled_from([((64, 64, 3), "uint8"), ((48, 48, 3), "int16"), ((3, 40, 40, 1), "int16"), ((40, 40, 1), "float32")]),
    st.integers(0, 10**6),
)
def test_masks_follow_the_image(what: tuple[tuple[int, ...], str], name: int) -> None:
    image, masks, known = changed(MOVES, *what, name)
    assert set(np.unique(masks)) <= {0, 1} and set(np.unique(known)) <= {0, 1}
    seen = image.astype(float).mean(-1, keepdims=True) > 125
    assert (seen != masks.astype(bool))[known > 0].mean() < 0.03  # bilinear and nearest differ by less than a pixel along the edge
    if len(what[0]) == 4:
        assert all(np.array_equal(masks[0], masks[k]) and np.array_equal(image[0], image[k]) for k in range(3))


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 10**6))
def test_flips_and_turns_lose_nothing(name: int) -> None:
    how = Augmentation(flip_rows=0.5, flip_cols=0.5, turn=0.5)
    image, masks, known = changed(how, (32, 32, 3), "uint8", name)
    before = ball((32, 32, 3), "uint8")
    assert known.all() and masks.sum() == before[1].sum() and np.array_equal(np.bincount(image.ravel()), np.bincount(before[0].ravel()))
    assert np.array_equal(image[..., 0] == 200, masks[..., 0] == 1)


def test_the_same_names_change_in_the_same_way() -> None:
    one, again, other = (changed(ALL, (64, 64, 3), "uint8", name) for name in ("a", "a", "b"))
    assert all(map(np.array_equal, one, again)) and not np.array_equal(one[0], other[0])


def test_switching_one_kind_on_does_not_move_the_others() -> None:
    moved = changed(MOVES, (64, 64, 3), "uint8", "a")
    noisy = changed(ALL, (64, 64, 3), "uint8", "a")
    assert np.array_equal(moved[1], noisy[1]) and np.array_equal(moved[2], noisy[2]) and not np.array_equal(moved[0], noisy[0])


def test_nothing_asked_nothing_changed() -> None:
    assert all(map(np.array_equal, changed(Augmentation(), (64, 64, 3), "uint8", "a"), ball((64, 64, 3), "uint8")))


def test_a_shift_is_known_where_the_frame_was() -> None:
    for name in range(8):
        image, masks, known = changed(Augmentation(translate=0.25), (40, 40, 1), "int16", name)
        share = known.mean()
        assert 0.55 < share <= 1 and (image[known == 0] == 50).all()  # the edge is repeated, its truth unknown
        assert known[..., 0].any(0).mean() * known[..., 0].any(1).mean() == pytest.approx(share)  # a rectangle
        assert masks.sum() <= ball((40, 40, 1), "int16")[1].sum()


def test_rotation_is_anticlockwise_about_the_centre() -> None:
    how, seen = Augmentation(rotate_deg=90), False
    for name in range(40):
        angle = rng(1, name)
        angle.random(3), angle.integers(1, 4)
        degrees = angle.uniform(-1, 1, 6)[0] * 90
        image, masks, _ = ball((65, 65, 1), "float32")
        how.apply(image, masks, None, rng(1, name))
        row, col = (axis.mean() - 32 for axis in np.nonzero(masks[..., 0]))
        before = [axis.mean() - 32 for axis in np.nonzero(ball((65, 65, 1), "float32")[1][..., 0])]
        turn = np.deg2rad(degrees)
        assert (row, col) == pytest.approx(
            (np.cos(turn) * before[0] - np.sin(turn) * before[1], np.sin(turn) * before[0] + np.cos(turn) * before[1]), abs=0.3
        )
        seen |= abs(degrees) > 45
    assert seen


def test_intensity_stain_and_noise_are_bounded() -> None:
    for name in range(10):
        grey = np.full((64, 64, 1), 100, np.int16)
        Augmentation(offset=30).apply(grey, None, None, rng(1, name))
        assert 70 <= grey.min() == grey.max() <= 130
        _, masks, known = changed(Augmentation(gain=0.5, stain=0.2), (64, 64, 3), "uint8", name)
        assert masks.sum() == ball((64, 64, 3), "uint8")[1].sum() and known.all()
        noise = np.zeros((64, 64, 1), np.int16)
        Augmentation(noise=20).apply(noise, None, None, rng(1, name))
        assert noise.std() <= 21 and abs(noise.mean()) < 2


def test_stain_changes_colour_and_keeps_white_nearly_white() -> None:
    tissue = np.broadcast_to(np.array([180, 100, 170], np.uint8), (16, 16, 3)).copy()
    white = np.full((16, 16, 3), 255, np.uint8)
    Augmentation(stain=0.05).apply(tissue, None, None, rng(1, "a"))
    Augmentation(stain=0.05).apply(white, None, None, rng(1, "a"))
    assert 1 <= abs(tissue[0, 0].astype(int) - [180, 100, 170]).max() <= 40 and white.min() > 225


def test_readers_augment_training_alone_and_by_names(tmp_path: Path) -> None:
    made = write_feed(tmp_path)
    feed = open_feed(str(tmp_path), "phantom")
    one, many = (feed.reader("train", 8, seed=5, augment=ALL, workers=workers) for workers in (1, 3))
    for batch, again in zip(one.epoch(1), many.epoch(1), strict=True):
        assert np.array_equal(batch.images, again.images) and np.array_equal(batch.masks, again.masks)
        assert not np.array_equal(batch.images[0], made.truth[batch.row_ids[0]].image)
    assert np.array_equal(next(one.once()).images[0], made.truth[made.order["train"][0]].image)
    one.close()
    many.close()


def test_what_cannot_be_done_is_refused(tmp_path: Path) -> None:
    write_feed(tmp_path, kind="slices")
    feed = open_feed(str(tmp_path), "phantom")
    with pytest.raises(BadRequest, match="8-bit R G B"):
        feed.reader("train", 8, augment=Augmentation(stain=0.1))
    with pytest.raises(BadRequest, match="at most 1"):
        feed.reader("train", 8, augment=Augmentation(flip_rows=2))
    wide = replace(feed.card, image=replace(feed.card.image, shape=(40, 48, 3)))
    with pytest.raises(BadRequest, match="square"):
        Augmentation(turn=0.5).check(wide)
