"""medspark: a big-data engine on Spark for massive medical image data sets.

Read `medspark.tables.catalog` first: every table of the lake, as data. ``import medspark`` needs numpy alone; Spark, pydicom, OpenSlide
and TensorFlow are imported by the packages that need them. `medspark.open_lake` reads a lake without Spark.
"""

from importlib import import_module

__version__ = "1.0.0.dev0"
__all__ = ["open_lake"]


def __getattr__(name: str) -> object:
    if name == "open_lake":  # on first use: it brings Arrow, which ``import medspark`` does without
        return import_module("medspark.lake.open").open_lake
    raise AttributeError(f"module 'medspark' has no attribute {name!r}")
