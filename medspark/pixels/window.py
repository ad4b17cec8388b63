"""Values through a VOI window, as fractions and as 8-bit grey. Pure numpy.  DICOM PS3.3 C.11.2.1.2, C.11.2.1.3"""

from __future__ import annotations

import numpy as np

WHITE = 255  # of the 8-bit picture


def voi(values: np.ndarray, centre: float, width: float, function: str = "LINEAR") -> np.ndarray:
    """Values in a window: float64 in 0..1, same shape; NaN stays NaN.

    values, centre, width : in one unit                  stored values with a stored window, HU with a window in HU
    function : "LINEAR" | "LINEAR_EXACT" | "SIGMOID"     VOILUTFunction; LINEAR is the standard's default, with its half steps: width 1 is a
        threshold at ``centre - 0.5``
    Raises ValueError for a width that the function does not allow (LINEAR from 1, the others above 0) and for an unknown function.
    """
    if function not in ("LINEAR", "LINEAR_EXACT", "SIGMOID"):
        raise ValueError(f"unknown VOI LUT function {function!r}")
    if not (width >= 1 if function == "LINEAR" else width > 0):
        least = "at least 1" if function == "LINEAR" else "more than 0"
        raise ValueError(f"a window of width {width:g} is not wide enough; {function} needs {least}")
    x = np.asarray(values, np.float64)
    if function == "SIGMOID":
        with np.errstate(over="ignore"):  # far below the window the exponential is infinite and the value 0, as it should be
            return 1.0 / (1.0 + np.exp(-4.0 * (x - centre) / width))
    if function == "LINEAR_EXACT":
        return np.clip((x - centre) / width + 0.5, 0.0, 1.0)
    if width == 1:
        return (x > centre - 0.5).astype(np.float64)
    return np.clip((x - (centre - 0.5)) / (width - 1) + 0.5, 0.0, 1.0)


def windowed(values: np.ndarray, centre: float, width: float, function: str = "LINEAR_EXACT") -> np.ndarray:
    """`voi` as grey: (rows, cols) uint8, 0 below the window and 255 above it, rounded to the nearest; NaN is black."""
    return np.rint(np.nan_to_num(voi(values, centre, width, function), nan=0.0) * WHITE).astype(np.uint8)
