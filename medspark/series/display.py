"""Stored values -> a picture: modality transformation, VOI window, inversion where asked. Pure numpy; nothing in the lake is inverted.

PS3.3 C.11.1 (modality), C.11.2 (VOI), C.7.6.3.1.2 (MONOCHROME1: the smallest value is white).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import numpy as np

from medspark.series import rescale

Function = Literal["LINEAR", "LINEAR_EXACT", "SIGMOID"]


def voi(values: np.ndarray, center: float, width: float, function: Function = "LINEAR") -> np.ndarray:
    """Values through a VOI window: float64 in 0..1, same shape.

    values : any dtype, after rescale
    LINEAR is the standard's default, with its half steps: width 1 is a threshold at ``center - 0.5``. Raises ValueError where the width is
    too small for the function (1 for LINEAR, above 0 for the others).  PS3.3 C.11.2.1.2, C.11.2.1.3
    """
    x = np.asarray(values, np.float64)
    if width < 1 if function == "LINEAR" else width <= 0:
        raise ValueError(f"a {function} window cannot be {width:g} wide")
    if function == "LINEAR":
        if width == 1:
            return (x > center - 0.5).astype(np.float64)
        return np.clip((x - (center - 0.5)) / (width - 1) + 0.5, 0.0, 1.0)
    if function == "LINEAR_EXACT":
        return np.clip((x - center) / width + 0.5, 0.0, 1.0)
    if function == "SIGMOID":
        with np.errstate(over="ignore"):  # far below the window the exponential is infinite and the value 0, as it should be
            return 1.0 / (1.0 + np.exp(-4.0 * (x - center) / width))
    raise ValueError("the VOI function is LINEAR, LINEAR_EXACT or SIGMOID")


def picture(
    stored: np.ndarray, row: Mapping[str, Any], window: tuple[float, float] | None = None, invert: bool | None = None
) -> np.ndarray:
    """A slice as it is meant to be looked at: float64 in 0..1, 0 black and 1 white.

    stored : (rows, cols) or (rows, cols, 3)      the decoded payload; colour is only scaled to its type's range
    row : of ``slices``                           rescale_slope, rescale_intercept, modality_lut, window_center, window_width,
                                                  voi_lut_function, photometric, value_min, value_max are read
    window : (center, width) in rescaled units    None: the file's first one, else all that lies between value_min and value_max
    invert : None inverts MONOCHROME1, after the window; True and False decide themselves
    """
    if stored.ndim == 3:
        return stored / float(np.iinfo(stored.dtype).max)
    lut, first = rescale.unpack_lut(row["modality_lut"]) if row.get("modality_lut") else (None, 0)
    values = rescale.to_values(stored, row.get("rescale_slope"), row.get("rescale_intercept"), lut, first)
    shown = _window(values, row) if window is None else voi(values, *window, _function(row))
    inverted = row.get("photometric") == "MONOCHROME1" if invert is None else invert
    return 1.0 - shown if inverted else shown


def _window(values: np.ndarray, row: Mapping[str, Any]) -> np.ndarray:
    centers, widths = row.get("window_center") or (), row.get("window_width") or ()
    function = _function(row)
    if centers and widths and (widths[0] >= 1 or (function != "LINEAR" and widths[0] > 0)):
        return voi(values, float(centers[0]), float(widths[0]), function)
    low, high = float(row["value_min"]), float(row["value_max"])
    return voi(values, (low + high) / 2, high - low, "LINEAR_EXACT") if high > low else np.zeros(values.shape)


def _function(row: Mapping[str, Any]) -> Function:
    """The file's VOI LUT function; LINEAR where it names none or an unknown one."""
    named = row.get("voi_lut_function")
    return named if named in ("LINEAR_EXACT", "SIGMOID") else "LINEAR"
