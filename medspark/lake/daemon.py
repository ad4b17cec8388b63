"""The process that Spark's Python workers are forked from. It has imported what tasks need, so that no worker imports it again.

Spark starts it once per session, as ``python -m medspark.lake.daemon``, and forks a worker for every core out of it
(``spark.python.daemon.module``, set by `medspark.lake.session`). Two things make its workers ready sooner than those of pyspark's own:

- pyspark comes from the installed package. Spark puts ``pyspark.zip`` first on the path; its modules hold no compiled code, so that every
  session compiles them again (0.4 s).
- The engine and the libraries that nearly every task needs are imported before the fork, and shared by all workers.

Threads do not survive a fork. OpenBLAS, numexpr (through pandas) and Arrow's allocator start some on import and know how to start them anew
in a child; whatever else starts threads on import must not be preloaded.
"""

from __future__ import annotations

import contextlib
import gc
import importlib
import os
import sys
from importlib.machinery import PathFinder

PRELOADED = (
    "numpy",
    "pyarrow.parquet",
    "google_crc32c",
    "PIL.Image",
    "simplejpeg",
    "pydicom",
    "blosc2",
    "medspark.lake.explode",
    "medspark.slides.kind",
    "medspark.slides.explode",
    "medspark.slides.reader",
    "medspark.slides.tiff",
    "medspark.series.kind",
    "medspark.series.explode",
    "medspark.labels.kind",
)


def prefer_installed() -> None:
    """Takes Spark's archives off the path where they are those of the installed pyspark."""
    archives = [entry for entry in sys.path if os.path.basename(entry).startswith(("pyspark.zip", "py4j-")) and entry.endswith(".zip")]
    rest = [entry for entry in sys.path if entry not in archives]
    spec = PathFinder.find_spec("pyspark", rest)
    if spec is None or spec.origin is None:
        return
    home = os.path.realpath(os.path.dirname(spec.origin))
    if all(os.path.realpath(entry).startswith(home + os.sep) for entry in archives) and PathFinder.find_spec("py4j", rest) is not None:
        sys.path[:] = rest


def preload() -> None:
    """Imports `PRELOADED`; what is not installed is left to the task that needs it."""
    for name in PRELOADED:
        with contextlib.suppress(ImportError):
            importlib.import_module(name)


def main() -> None:
    prefer_installed()
    with contextlib.redirect_stdout(sys.stderr):  # Spark reads the port from standard output
        preload()
    from pyspark import daemon

    # Workers collect garbage after every task: what was imported is neither looked at again nor copied on the way.
    gc.collect()
    gc.freeze()
    daemon.manager()


if __name__ == "__main__":
    main()
