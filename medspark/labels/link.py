"""Linking: rows of ``regions`` and ``planes`` plus the images they belong to become rows of ``labels``.

`link_tiles` for slides, `link_slices` for series, `link_photos` for photos. All are pure generators of `Rows` of ``labels`` and
`Rejection`s of stage ``link``; they know neither files nor Spark.
"""

from medspark.labels.link_photos import link_photos
from medspark.labels.link_slices import link_slices
from medspark.labels.link_tiles import link_tiles

__all__ = ["link_photos", "link_slices", "link_tiles"]
