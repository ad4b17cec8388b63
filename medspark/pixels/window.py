"""From values to grey: the window of DICOM PS3.3 C.11.2.1.2, as 8 bits. Pure numpy."""

from __future__ import annotations

import numpy as np

WHITE = 255  # of the 8-bit picture


def windowed(values: np.ndarray, centre: float, width: float, function: str = "LINEAR_EXACT") -> np.ndarray:
    """Values in a window as grey: (rows, cols) uint8, 0 below the window and 255 above it, rounded to the nearest.

    values, centre, width : in one unit                  stored values with a stored window, HU with a window in HU
    function : "LINEAR" | "LINEAR_EXACT" | "SIGMOID"     VOILUTFunction; LINEAR is DICOM's default and half a unit off the exact one
    Raises ValueError for a width that the function does not allow (LINEAR from 1, the others above 0) and for an unknown function.
    """
    if function not in ("LINEAR", "LINEAR_EXACT", "SIGMOID"):
        raise ValueError(f"unknown VOI LUT function {function!r}")
    least = 1.0 if function == "LINEAR" else 0.0
    if not (width > least or (function == "LINEAR" and width == least)):
        raise ValueError(f"a window of width {width:g}; {function} needs {'at least 1' if least else 'more than 0'}")
    values = np.asarray(values, np.float64)
    if function == "SIGMOID":
        with np.errstate(over="ignore"):  # exp overflows to infinity far below the window, which is black
            part = 1.0 / (1.0 + np.exp(-4.0 * (values - centre) / width))
    elif function == "LINEAR" and width > 1.0:
        part = (values - (centre - 0.5)) / (width - 1.0) + 0.5
    elif function == "LINEAR":  # a width of 1 is a threshold
        part = (values > centre - 0.5).astype(np.float64)
    else:
        part = (values - centre) / width + 0.5
    return np.rint(np.clip(np.nan_to_num(part, nan=0.0), 0.0, 1.0) * WHITE).astype(np.uint8)
