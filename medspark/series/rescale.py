"""What a stored value means: rescale, modality LUT, Hounsfield rule, padding, SUV, and the statistics of a slice."""

from __future__ import annotations

import math
import struct
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

LUMINANCE = np.array([0.299, 0.587, 0.114])  # ITU-R BT.601, as PS3.3 C.7.6.3.1.2 uses for YBR_FULL
PARAMETRIC_MAP = "1.2.840.10008.5.1.4.1.1.30"  # SOP class whose values are a computed quantity whatever the modality says
MAP_TYPES = frozenset({"CBF", "CBV", "MTT", "TTP", "TMAX", "RCBF", "RCBV", "PERFUSION", "PARAMETRIC", "PARAMETRIC MAP", "Z_EFF"})
"""Values of ImageType that mark a computed map among CT images (PS3.3 C.8.15.2, vendors' perfusion maps)."""
EXACT_BITS = 16  # squares of 16-bit values are below 2^32: float64 sums of 2 Mpx of them are exact
BLOCK = 1 << 15  # values converted at a time: 256 KB of float64 stay in the second-level cache


def is_hu(modality: str, image_type: Sequence[str], sop_class: str, slope: float | None, intercept: float | None, unit: str | None) -> bool:
    """Whether rescaled values are Hounsfield units: CT, neither localiser nor parametric map, slope and intercept, type HU or absent."""
    if modality != "CT" or slope is None or intercept is None or sop_class == PARAMETRIC_MAP:
        return False
    kinds = {value.upper() for value in image_type}
    return "LOCALIZER" not in kinds and not kinds & MAP_TYPES and (unit or "HU").upper() == "HU"


def signed_value(raw: int, representation: int, bits_allocated: int = 16) -> int:
    """A padding value read with the sign of the pixels, whatever VR it was written with (PS3.3 C.7.5.1.1.2; VR is US or SS)."""
    raw &= (1 << bits_allocated) - 1
    return raw - (1 << bits_allocated) if representation and raw >> (bits_allocated - 1) else raw


def padding_doubtful(value: int, limit: int | None, bits_stored: int, representation: int) -> bool:
    """Whether the padding cannot occur among the stored values (so that, masked to BitsStored, it is mixed up with real ones)."""
    low, high = (-(1 << (bits_stored - 1)), (1 << (bits_stored - 1)) - 1) if representation else (0, (1 << bits_stored) - 1)
    return any(not low <= item <= high for item in (value, limit) if item is not None)


def to_values(
    stored: np.ndarray, slope: float | None = None, intercept: float | None = None, lut: np.ndarray | None = None, lut_first: int = 0
) -> np.ndarray:
    """Values from stored ones: float64, ``slope * stored + intercept``, or the modality LUT where there is one (PS3.3 C.11.1).

    lut : (n,) first entry belongs to stored value ``lut_first``; values below and above take the first and last entry
    """
    if lut is not None:
        return lut[np.clip(stored.astype(np.int64) - lut_first, 0, len(lut) - 1)].astype(np.float64)
    values = stored.astype(np.float64)
    return values * (1.0 if slope is None else slope) + (0.0 if intercept is None else intercept)


def pack_lut(entries: np.ndarray, first: int) -> bytes:
    """``slices.modality_lut``: first mapped stored value as little-endian int32, then the entries as little-endian uint16."""
    return struct.pack("<i", first) + np.ascontiguousarray(entries, "<u2").tobytes()


def unpack_lut(data: bytes) -> tuple[np.ndarray, int]:
    """(entries uint16, first mapped stored value), the inverse of `pack_lut`."""
    return np.frombuffer(data, "<u2", offset=4), struct.unpack_from("<i", data)[0]


@dataclass(frozen=True)
class Stats:
    value_min: float
    value_max: float
    value_mean: float
    value_std: float


def statistics(
    stored: np.ndarray,
    slope: float | None = None,
    intercept: float | None = None,
    padding: tuple[int, int] | None = None,
    lut: np.ndarray | None = None,
    lut_first: int = 0,
) -> Stats:
    """Smallest, largest, mean and standard deviation (n, not n - 1) after rescale or modality LUT, padding left out.

    stored : (rows, cols) or (rows, cols, 3); colour is measured as luminance
    padding : (value, limit), inclusive on both sides, in either order
    All padding, or nothing finite: the statistics of everything (zero where nothing is finite), since columns are never null.
    """
    colour = stored.ndim == 3
    if colour:
        stored = stored @ LUMINANCE
    elif lut is not None:
        padded = _inside(stored, padding)
        stored = to_values(stored, lut=lut, lut_first=lut_first)
        slope = intercept = padding = None
        if padded is not None:
            stored = stored[~padded] if not padded.all() else stored
    if stored.dtype.kind == "f" and not np.isfinite(stored).all():
        stored = stored[np.isfinite(stored)]
        if stored.size == 0:
            return Stats(0.0, 0.0, 0.0, 0.0)
    if stored.dtype.kind in "iu" and stored.dtype.itemsize * 8 <= EXACT_BITS and stored.ndim == 2:
        found = _exact(stored, padding)
    else:
        padded = None if colour else _inside(stored, padding)
        found = _moments(stored if padded is None or padded.all() else stored[~padded])
    low, high, mean, variance = found
    a, b = (1.0 if slope is None else slope), (0.0 if intercept is None else intercept)
    first, last = a * low + b, a * high + b
    return Stats(min(first, last), max(first, last), a * mean + b, abs(a) * math.sqrt(variance))


def _moments(values: np.ndarray) -> tuple[float, float, float, float]:
    """(min, max, mean, variance) in two passes."""
    flat = values.astype(np.float64).ravel()
    low, high, mean = float(flat.min()), float(flat.max()), float(flat.mean())
    flat -= mean
    return low, high, mean, float(np.einsum("i,i->", flat, flat)) / flat.size


def _exact(stored: np.ndarray, padding: tuple[int, int] | None) -> tuple[float, float, float, float]:
    """(min, max, mean, variance) of integers of up to 16 bits, in blocks that stay in the cache: 0.1 to 0.2 ms for 512 x 512.

    All sums are whole numbers below 2^53 for images of up to 2 Mpx (and good to 1e-12 above), so padding can be counted and taken off.
    """
    flat = stored.ravel()
    low, high = int(flat.min()), int(flat.max())
    if padding is not None and (min(padding) > high or max(padding) < low):
        padding = None
    found = _sums(flat, padding, low)
    if found[0] == 0:  # nothing but padding
        found = _sums(flat, None, low)
        padding = None
    count, total, squares, *ends = found
    if padding is not None:
        low, high = int(ends[0]), int(ends[1])
    mean = total / count
    return float(low), float(high), mean, max(squares / count - mean * mean, 0.0)


def _sums(flat: np.ndarray, padding: tuple[int, int] | None, lowest: int) -> tuple[int, float, float, float, float]:
    """(count, sum, sum of squares, min, max) of the values that are no padding; min and max only where there is a padding.

    lowest : smallest of all values. Padding that is one value and the lowest (as nearly always) is counted and taken off the sums, and
    subtraction modulo 2^bits sends it to the top, so that a plain minimum finds the lowest other value.
    """
    simple = padding is not None and padding[0] == padding[1] == lowest
    one, unsigned = flat.dtype.type(1), f"u{flat.dtype.itemsize}"
    buffer = np.empty(min(BLOCK, flat.size))
    count, total, squares, low, high = flat.size, 0.0, 0.0, math.inf, -math.inf
    for start in range(0, flat.size, BLOCK):
        block = flat[start : start + BLOCK]
        part = buffer[: block.size]
        part[:] = block  # dots by einsum, not @: BLAS would start threads of its own beside Spark's tasks
        if padding is not None:
            padded = _inside(block, padding)
            if padded is not None:
                taken = int(np.count_nonzero(padded))
                count -= taken
                if taken == block.size:
                    continue
                if simple:
                    others = (block - flat.dtype.type(lowest) - one).view(unsigned)
                    low, high = min(low, float(int(others.min()) + lowest + 1)), max(high, float(block.max()))
                    total += float(part.sum()) - float(taken * lowest)
                    squares += float(np.einsum("i,i->", part, part)) - float(taken * lowest * lowest)
                    continue
                np.copyto(part, math.inf, where=padded)
                low = min(low, float(part.min()))
                np.copyto(part, -math.inf, where=padded)
                high = max(high, float(part.max()))
                np.copyto(part, 0.0, where=padded)
            else:
                low, high = min(low, float(block.min())), max(high, float(block.max()))
        total += float(part.sum())
        squares += float(np.einsum("i,i->", part, part))
    return count, total, squares, low, high


def _inside(stored: np.ndarray, padding: tuple[int, int] | None) -> np.ndarray | None:
    if padding is None:
        return None
    low, high = min(padding), max(padding)
    if stored.dtype.kind in "iu":
        info = np.iinfo(stored.dtype)
        if high < info.min or low > info.max:
            return None
        low, high = max(low, int(info.min)), min(high, int(info.max))
    inside = stored == low if low == high else (stored >= low) & (stored <= high)
    return inside if inside.any() else None


@dataclass(frozen=True)
class Injection:
    """What a PET header says about activity; times in seconds of day, ``decay`` as DecayCorrection (START or ADMIN)."""

    units: str | None
    corrections: frozenset[str]
    decay: str | None
    weight_kg: float | None
    dose_bq: float | None
    half_life_s: float | None
    injected_s: float | None
    series_s: float | None
    acquired_s: float | None
    philips_suv: float | None = None


DAY_S = 86_400.0


def suv_bw_factor(pet: Injection) -> float | None:
    """Factor from stored units (after rescale) to SUV by body weight, g/ml; None where the header does not allow it.

    Follows the QIBA vendor-neutral pseudo-code (QIBA wiki, "Standardized Uptake Value"): BQML with attenuation and decay correction, the decay
    counted from injection to the series' start (DecayCorrection START) or not at all (ADMIN); CNTS by Philips's own factor; GML is 1.
    A series that starts after its own images (post-processed) has no dependable scan time: None.
    """
    if pet.units == "GML":
        return 1.0
    if not {"ATTN", "DECY"} <= pet.corrections:
        return None
    if pet.units == "CNTS":
        return pet.philips_suv if pet.philips_suv else None
    if pet.units != "BQML" or not pet.weight_kg or not pet.dose_bq or pet.weight_kg < 0 or pet.dose_bq < 0:
        return None
    if pet.decay == "ADMIN":
        return pet.weight_kg * 1000.0 / pet.dose_bq
    if pet.decay != "START" or not pet.half_life_s or pet.injected_s is None or pet.series_s is None:
        return None
    if pet.acquired_s is not None and pet.series_s > pet.acquired_s:
        return None
    elapsed = pet.series_s - pet.injected_s
    if elapsed < 0:  # injected before midnight, scanned after
        elapsed += DAY_S
    return pet.weight_kg * 1000.0 / (pet.dose_bq * 2.0 ** (-elapsed / pet.half_life_s))
