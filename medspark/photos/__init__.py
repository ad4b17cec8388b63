"""Photos and arrays of images: PNG, JPEG, TIFF, BMP and ``.npz`` become rows of ``photos``, ``pixels`` and ``labels`` (classes).

Why it exists: a photo carries its owner, place and time in segments that no viewer shows, and its rotation in a tag that half of the viewers
ignore. Here the pixels are taken and nothing else, before the first write; a JPEG keeps its own coefficients where it lies upright.

Read in this order: ``jpeg.py`` (a JPEG without its metadata), ``orient.py`` (EXIF's one useful number), ``read.py`` (any photo file -> images),
``arrays.py`` (an ``.npz`` read in place), ``classes.py`` (labels of whole images), ``header.py`` (what the plan needs of a file), ``plan.py``,
``explode.py``, ``kind.py``.

It refuses: to keep EXIF, ICC, XMP, comments or text; to guess the colours of inks (CMYK) and of Lab; to unpickle; to know Spark.
"""
