"""Slides: files of gigapixels become tiles without decoding what need not be decoded.

Why it exists: most scanners store JPEG tiles; where a grid matches them they are copied without decoding, and no pixel is compressed twice.
Everything else is decoded once per source tile.

Read in this order: ``slide.py`` (what an open slide is: the seam), ``reader.py`` (who opens what), ``stored.py`` (regions out of stored tiles)
with ``codings.py`` and ``splice.py`` (one tile), ``tiff.py`` and ``dicom.py`` with ``dicom_frames.py`` (where the tiles lie); then
``frames.py`` and ``grid.py`` (planes of coordinates), ``resample.py``, ``tissue.py``, ``header.py``, ``plan.py``, ``explode.py``, ``kind.py``;
``array.py`` is a slide in memory.

It refuses: to know Spark or the lake; to read labels, overviews or macros (they show the patient's name); to guess a resolution; to correct
colours (a doubt is a verdict); to load a file whole.
"""
