"""The coordinate planes of a slide, and the only conversions between them.

Every variable that holds a position or a size in pixels says its plane by its prefix (or suffix, in the names of table columns):

======  =================================================================================
l0_     pixels of pyramid level 0, the plane of annotations and of ``x_l0``, ``y_l0``
l_      pixels of one pyramid level, what a reader reads
t_      pixels of the grid: what a stored tile holds; equals l_ where nothing is resampled
um_     micrometres from the upper left corner of level 0
======  =================================================================================

In all of them (0, 0) is the *corner* of the first pixel (DICOM PS3.3 C.18.6), so that a conversion is one factor per axis and no offset.
A level's factor is the ratio of the sizes, axis by axis: a scanner that cuts the last incomplete pixel of a level moves a position by less
than one pixel of that level, and every level-0 pixel belongs to exactly one pixel of the level.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeVar

import numpy as np

MPP_DIGITS = 9  # decimals: far below any scanner's accuracy, and a wish of 2 µm reads 2.0

Number = TypeVar("Number", float, np.ndarray)
Pair = tuple[float, float]


@dataclass(frozen=True)
class Frames:
    """The four planes of one slide under one grid.

    l_scale : (x, y) level-0 px per level px
    t_scale : (x, y) level-0 px per grid px
    mpp_um : (x, y) µm per level-0 px, None where the slide does not say it
    """

    l_scale: Pair
    t_scale: Pair
    mpp_um: Pair | None

    def l0_from_t(self, t_x: Number, t_y: Number) -> tuple[Number, Number]:
        return t_x * self.t_scale[0], t_y * self.t_scale[1]

    def t_from_l0(self, l0_x: Number, l0_y: Number) -> tuple[Number, Number]:
        return l0_x / self.t_scale[0], l0_y / self.t_scale[1]

    def l_from_t(self, t_x: Number, t_y: Number) -> tuple[Number, Number]:
        return t_x * self.t_in_l[0], t_y * self.t_in_l[1]

    def um_from_l0(self, l0_x: Number, l0_y: Number) -> tuple[Number, Number]:
        """µm; raises ValueError for a slide without a pixel size."""
        if self.mpp_um is None:
            raise ValueError("the slide's pixel size is unknown")
        return l0_x * self.mpp_um[0], l0_y * self.mpp_um[1]

    @property
    def t_in_l(self) -> Pair:
        """(x, y) level px per grid px; exactly (1.0, 1.0) where nothing is resampled."""
        if self.t_scale == self.l_scale:
            return 1.0, 1.0
        return self.t_scale[0] / self.l_scale[0], self.t_scale[1] / self.l_scale[1]

    @property
    def t_mpp_um(self) -> float | None:
        """µm per grid px; where pixels are not square, the side of a square of the same area, so that areas come out right."""
        if self.mpp_um is None:
            return None
        return round(float(np.sqrt(self.mpp_um[0] * self.t_scale[0] * self.mpp_um[1] * self.t_scale[1])), MPP_DIGITS)
