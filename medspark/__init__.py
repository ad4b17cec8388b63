"""medspark: a big-data engine on Spark for massive medical image data sets.

Read `medspark.tables.catalog` first: every table of the lake, as data. ``import medspark`` needs numpy alone; Spark, pydicom, OpenSlide
and TensorFlow are imported by the packages that need them.
"""

__version__ = "1.0.0.dev0"
