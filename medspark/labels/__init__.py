"""Labels: annotation files of nine formats become regions and planes, and those become rows of ``labels`` on tiles, slices and photos.

Read ``regions.py`` (what every format becomes), ``formats/`` (one file per format), ``kind.py`` (how the engine calls them), then
``raster.py`` and ``link.py`` (how truth reaches the images). ``pairs.py`` says which image a file belongs to, ``codebook.py`` what a value
means. Refuses to repair a shape, to guess a class, to keep a name that a person typed, and to know Spark.
"""
