"""What a stored value means: rescale, modality LUT, Hounsfield rule, padding, SUV, and the statistics of a slice."""

from __future__ import annotations

import math
import struct
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from medspark.pixels import native

LUMINANCE = np.array([0.299, 0.587, 0.114])  # ITU-R BT.601, as PS3.3 C.7.6.3.1.2 uses for YBR_FULL
PARAMETRIC_MAP = "1.2.840.10008.5.1.4.1.1.30"  # SOP class whose values are a computed quantity whatever the modality says
MAP_TYPES = frozenset({"CBF", "CBV", "MTT", "TTP", "TMAX", "RCBF", "RCBV", "PERFUSION", "PARAMETRIC", "PARAMETRIC MAP", "Z_EFF"})
"""Values of ImageType that mark a computed map among CT images (PS3.3 C.8.15.2, vendors' perfusion maps)."""
EXACT_BITS = 16  # squares of 16-bit values are below 2^32: float64 sums of 2 Mpx of them are exact
BLOCK = (
    1 << 13
)  # values converted at a time: 64 KB of float64 stay in the cache, and BLAS starts threads (beside Spark's tasks) from 10,001
_ONES = np.ones(BLOCK)


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
    """(min, max, mean, variance) of integers of up to 16 bits, for 512 x 512 in 0.04 ms where kernels.c is compiled, else in blocks that
    stay in the cache in 0.1 to 0.2 ms.

    All sums are whole numbers below 2^53 for images of up to 2 Mpx (and good to 1e-12 above), so padding can be counted and taken off.
    """
    sums = native.short_sums()
    if sums is not None and stored.dtype.itemsize == 2 and stored.dtype.isnative:
        whole = sums(stored, padding)
        count, least, most, added, squared = whole if whole[0] else sums(stored, None)  # everything is padding: all of it is measured
        return float(least), float(most), added / count, (squared * count - added * added) / (count * count)
    flat = stored.ravel()
    low, high = int(flat.min()), int(flat.max())
    if padding is not None and (min(padding) > high or max(padding) < low or low == high):
        padding = None  # nothing is padding, or everything
    if padding is None:
        count, total, squares = flat.size, *_sums(flat)
    elif padding[0] == padding[1] == low:  # as nearly always: counted, and taken off the sums
        total, squares = _sums(flat)
        padded = int(np.count_nonzero(flat == low))
        count, total, squares = flat.size - padded, total - float(padded * low), squares - float(padded * low * low)
        # Modulo 2^bits the lowest value goes to the top, so that a plain minimum finds the lowest other one.
        above = flat - flat.dtype.type(low + 1)
        low = int(above.view(f"u{flat.dtype.itemsize}").min()) + low + 1
    else:
        inside = _inside(flat, padding)
        kept = flat if inside is None or inside.all() else flat[~inside]
        count, low, high = kept.size, int(kept.min()), int(kept.max())
        total, squares = _sums(kept)
    mean = total / count
    return float(low), float(high), mean, max(squares / count - mean * mean, 0.0)


def _sums(flat: np.ndarray) -> tuple[float, float]:
    """(sum, sum of squares) of integers of up to 16 bits."""
    buffer = np.empty(BLOCK)
    total = squares = 0.0
    for start in range(0, flat.size, BLOCK):
        block = flat[start : start + BLOCK]
        part = buffer[: block.size]
        part[:] = block
        total += float(part @ _ONES[: block.size])  # a product with ones: BLAS adds in two thirds of numpy's time
        squares += float(part @ part)
    return total, squares


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


DAY_S = 86_400.0
UNDATED_HALF_LIFE_S = (
    12 * 3600.0
)  # a tracer that lives longer (Cu-64, Zr-89) is imaged on later days too: a time of day alone does not tell
MOST_HALF_LIVES = 10.0  # after more than this a thousandth is left: a wrong date or time, no scan
LEAST_DOSE_BQ = 1e5  # less than any dose for a patient: megabecquerels written in becquerels' place


@dataclass(frozen=True)
class Injection:
    """What a PET header says about activity; times in seconds of day, ``decay`` as DecayCorrection (START or ADMIN).

    days : from the date of the injection to the series' date; None where either is not told
    suv_type : SUVType of values that are SUV already (GML); absent means by body weight (PS3.3 C.8.9.1)
    """

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
    days: int | None = None
    suv_type: str | None = None


def suv_bw_factor(pet: Injection) -> float | None:
    """Factor from stored units (after rescale) to SUV by body weight, g/ml; None where the header does not allow it.

    Follows the QIBA vendor-neutral pseudo-code (QIBA wiki, "Standardized Uptake Value"): BQML with attenuation and decay correction, the decay
    counted from injection to the series' start (DecayCorrection START) or not at all (ADMIN); CNTS by Philips's own factor; GML is 1.
    A series that starts after its own images (post-processed) has no dependable scan time: None.
    """
    if pet.units == "GML":
        return 1.0 if pet.suv_type in (None, "BW") else None
    if not {"ATTN", "DECY"} <= pet.corrections:
        return None
    if pet.units == "CNTS":
        return pet.philips_suv if pet.philips_suv else None
    if pet.units != "BQML" or not pet.weight_kg or not pet.dose_bq or pet.weight_kg < 0 or pet.dose_bq < LEAST_DOSE_BQ:
        return None
    if pet.decay == "ADMIN":
        return pet.weight_kg * 1000.0 / pet.dose_bq
    if pet.decay != "START" or not pet.half_life_s or pet.half_life_s < 0:
        return None
    elapsed = _elapsed_s(pet)
    if elapsed is None or not 0 <= elapsed <= MOST_HALF_LIVES * pet.half_life_s:
        return None
    return pet.weight_kg * 1000.0 / (pet.dose_bq * 2.0 ** (-elapsed / pet.half_life_s))


def _elapsed_s(pet: Injection) -> float | None:
    """From the injection to the series' start."""
    if pet.injected_s is None or pet.series_s is None or (pet.acquired_s is not None and pet.series_s > pet.acquired_s):
        return None
    since = pet.series_s - pet.injected_s
    if pet.days is not None:
        return since + pet.days * DAY_S
    if pet.half_life_s is None or pet.half_life_s > UNDATED_HALF_LIFE_S:
        return None
    return since + DAY_S if since < 0 else since  # injected before midnight, scanned after
