"""A job that kills its whole process group at its n-th step: ``killed.py N JOB LAKE INPUT...``; step 2i is before the i-th commit, 2i+1 after.

The engine itself knows nothing of this: `Lake.transact` is wrapped from outside. N < 0 counts the steps and kills nobody.
"""

from __future__ import annotations

import os
import signal
import sys


def main() -> None:
    at, kind_name, lake_uri, inputs = int(sys.argv[1]), sys.argv[2], sys.argv[3], sys.argv[4:]
    from medspark.labels.kind import labels_kind
    from medspark.lake import session, store
    from medspark.photos.kind import photos_kind
    from medspark.series.kind import series_kind
    from medspark.slides.kind import slides_kind
    from tests.lake import harness

    original, step = store.Lake.transact, 0

    def reached() -> None:
        nonlocal step
        if step == at:
            os.killpg(0, signal.SIGKILL)
        step += 1

    def transact(self, *given, **named):  # type: ignore[no-untyped-def]
        reached()
        version = original(self, *given, **named)
        reached()
        return version

    store.Lake.transact = transact  # type: ignore[method-assign]
    kinds = {"series": series_kind, "labels": labels_kind, "slides": slides_kind, "photos": lambda: photos_kind("folder")}
    spark = session.build("killed")
    from pathlib import Path

    harness.run(spark, Path(lake_uri), [Path(path) for path in inputs], kinds[kind_name]())
    print("steps:", step, flush=True)


if __name__ == "__main__":
    main()
