"""Which unit gets which part: quotas by stratum, places by hash. Pure arithmetic; knows neither rows nor Spark.

Units are counted by stratum, the new ones fill the quotas that the old ones leave, and which unit gets which place is decided by the order of a
hash of (seed, unit). So a split is reproducible (the same units, the same parts), stable (a unit that is added moves nobody) and
stratified at once.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from medspark.errors import BadRequest
from medspark.tables.names import plain_name

SHARES_SUM = 1e-6  # shares are given in decimals: their sum may miss 1 by rounding


def quotas(new: Mapping[str, int], held: Mapping[tuple[str, str], int], shares: Mapping[str, float]) -> dict[str, list[tuple[str, int]]]:
    """How many new units of each stratum each part takes.

    new : stratum -> new units;  held : (stratum, part) -> units that the part has already;  shares : part -> share, summing to 1
    Returns stratum -> [(part, units)], in the order of ``shares``, summing to ``new``.
    Of n units in a stratum a part gets between floor(share * n) and ceil(share * n), as far as old units leave room; the places that the
    floors leave go where the whole split is short, so that strata of one unit do not all land in the largest part.
    """
    total = sum(new.values()) + sum(held.values())
    have = {part: sum(count for (_, of), count in held.items() if of == part) for part in shares}
    given: dict[str, dict[str, int]] = {}
    open_places: dict[str, int] = {}
    for stratum in sorted(new):
        n = new[stratum] + sum(held.get((stratum, part), 0) for part in shares)
        left, taken = new[stratum], dict.fromkeys(shares, 0)
        # Where old units overfill a part, the floors of the others may ask for more than there is: the emptiest comes first.
        wanted = {part: max(0, _floor(share * n) - held.get((stratum, part), 0)) for part, share in shares.items()}
        if sum(wanted.values()) <= left:
            taken = wanted
            left -= sum(wanted.values())
        else:
            while left:
                part = max(shares, key=lambda one: wanted[one] - taken[one])
                taken[part] += 1
                left -= 1
        given[stratum], open_places[stratum] = taken, left
        for part, count in taken.items():
            have[part] += count
    for stratum, left in open_places.items():
        taken = given[stratum]
        n = new[stratum] + sum(held.get((stratum, part), 0) for part in shares)
        for _ in range(left):
            room = [part for part, share in shares.items() if held.get((stratum, part), 0) + taken[part] < _ceil(share * n)]
            part = max(room or shares, key=lambda one: shares[one] * total - have[one])
            taken[part] += 1
            have[part] += 1
    return {stratum: [(part, taken[part]) for part in shares] for stratum, taken in given.items()}


def _floor(value: float) -> int:
    return math.floor(value + SHARES_SUM)


def _ceil(value: float) -> int:
    return math.ceil(value - SHARES_SUM)


def places(seed: int, unit_keys: Iterable[str], count: int) -> np.ndarray:
    """(count,) uint64 that units are ordered by: the first 64 bits of SHA-256(seed:unit)."""
    digests = (hashlib.sha256(f"{seed}:{unit}".encode()).digest()[:8] for unit in unit_keys)
    return np.fromiter((int.from_bytes(digest, "big") for digest in digests), np.uint64, count)


def drawn(
    unit_keys: Iterable[str],
    strata: np.ndarray,
    names: Sequence[str],
    held: Mapping[tuple[str, str], int],
    shares: Mapping[str, float],
    seed: int,
) -> np.ndarray:
    """(n,) place in ``shares`` of each new unit's part.

    unit_keys : n keys, ascending (of two equal places the smaller key comes first);  strata : (n,) places in ``names``
    """
    counts = np.bincount(strata, minlength=len(names))
    taken = ranks(quotas({name: int(count) for name, count in zip(names, counts, strict=True)}, held, shares))
    order = np.lexsort((places(seed, unit_keys, len(strata)), strata))
    starts = np.concatenate([[0], np.cumsum(counts)])
    parts, number = np.empty(len(strata), np.int32), {part: place for place, part in enumerate(shares)}
    for place, name in enumerate(names):
        for part, first, end in taken.get(name, ()):
            parts[order[starts[place] + first : starts[place] + end]] = number[part]
    return parts


def ranks(counts: Mapping[str, Sequence[tuple[str, int]]]) -> dict[str, list[tuple[str, int, int]]]:
    """stratum -> [(part, first rank, end rank)]: which of the units, in their order, each part takes."""
    found: dict[str, list[tuple[str, int, int]]] = {}
    for stratum, taken in counts.items():
        first = 0
        for part, count in taken:
            if count:
                found.setdefault(stratum, []).append((part, first, first + count))
            first += count
    return found


def parse_parts(text: str) -> dict[str, float]:
    """``train=0.8,val=0.1,test=0.1``: part -> share; raises `BadRequest`."""
    shares: dict[str, float] = {}
    for entry in text.split(","):
        name, _, share = (piece.strip() for piece in entry.partition("="))
        try:
            value = float(share)
        except ValueError:
            value = -1.0
        if not plain_name(name) or not 0 < value <= 1 or name in shares:
            raise BadRequest(f"--parts {text}: expected name=share,... with shares above 0, each name once; got {entry.strip()!r}")
        shares[name] = value
    if abs(sum(shares.values()) - 1) > SHARES_SUM:
        raise BadRequest(f"--parts {text}: the shares sum to {sum(shares.values()):g}, expected 1")
    return shares
