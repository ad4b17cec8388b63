"""Laws of the packed masks."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from medspark.pixels import masks

SIDES = st.integers(1, 40)
MASKS = st.tuples(SIDES, SIDES).flatmap(lambda shape: hnp.arrays(bool, shape))
GREYS = st.tuples(SIDES, SIDES).flatmap(lambda shape: hnp.arrays(np.uint8, shape))


@given(MASKS)
@settings(deadline=None)
def test_unpack_undoes_pack(mask: np.ndarray) -> None:
    back = masks.unpack(masks.pack(mask), *mask.shape)
    assert back.dtype == bool
    assert np.array_equal(back, mask)


@given(GREYS)
@settings(deadline=None)
def test_unpack_u8_undoes_pack_u8(mask: np.ndarray) -> None:
    back = masks.unpack_u8(masks.pack_u8(mask), *mask.shape)
    assert back.dtype == np.uint8
    assert np.array_equal(back, mask)


@given(MASKS)
@settings(deadline=None)
def test_equal_masks_give_equal_bytes_whatever_their_memory_layout(mask: np.ndarray) -> None:
    assert masks.pack(mask) == masks.pack(np.asfortranarray(mask)) == masks.pack(mask.astype(np.uint8) * 7)


@given(MASKS, st.integers(8, 64))
@settings(deadline=None)
def test_another_size_is_refused(mask: np.ndarray, more: int) -> None:
    rows, cols = mask.shape
    with pytest.raises(ValueError, match="mask"):
        masks.unpack(masks.pack(mask), rows, cols + more)
    with pytest.raises(ValueError, match="mask"):
        masks.unpack_u8(masks.pack_u8(mask), rows + 1, cols)


def test_the_bit_order_is_the_contract() -> None:
    """Row-major, most significant bit first."""
    import zstandard

    mask = np.zeros((2, 5), bool)
    mask[0, 0] = mask[1, 4] = True
    assert zstandard.ZstdDecompressor().decompress(masks.pack(mask)) == bytes([0b10000000, 0b01000000])


def test_broken_bytes_are_refused() -> None:
    with pytest.raises(ValueError, match="zstd"):
        masks.unpack(b"nothing of the kind", 4, 4)


def test_a_bomb_is_not_inflated() -> None:
    import zstandard

    bomb = zstandard.ZstdCompressor().compress(bytes(1 << 26))
    with pytest.raises(ValueError, match=r"mask|zstd"):
        masks.unpack(bomb, 8, 8)


def test_a_packed_mask_holds_no_more_memory_than_its_bytes() -> None:
    mask = np.zeros((1000, 1000), bool)
    masks.pack(mask), masks.pack_u8(mask)  # their contexts are made once
    tracemalloc.start()
    try:
        kept = [masks.pack(mask) for _ in range(20)] + [masks.pack_u8(mask) for _ in range(20)]
        assert tracemalloc.get_traced_memory()[0] < 2 * sum(map(len, kept)) + 40 * 100
    finally:
        tracemalloc.stop()
