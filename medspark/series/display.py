"""Stored values -> a picture: modality transformation, VOI window, inversion where asked. Pure numpy; nothing in the lake is inverted.

PS3.3 C.11.1 (modality), C.11.2 (VOI), C.7.6.3.1.2 (MONOCHROME1: the smallest value is white).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import numpy as np

from medspark.pixels.window import voi
from medspark.series import rescale

Function = Literal["LINEAR", "LINEAR_EXACT", "SIGMOID"]


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
