"""Payload codecs and packed masks: numpy in, bytes out.

Read ``codecs.py`` (what ``pixels.bytes`` holds), then ``masks.py`` (what ``labels.mask`` holds), then ``measure.py`` and ``tile_measure.py``. Knows nothing of
slides, series or Spark; every codec imports its library on first use.
"""

from medspark.pixels.codecs import decode, encode

__all__ = ["decode", "encode"]
