"""A job that kills its whole process group at its n-th step: ``killed.py N JOB LAKE INPUT...``; step 2i is before the i-th commit, 2i+1 after.

The engine itself knows nothing of this: `Lake.transact` is wrapped from outside, and `trim`, which ends a log's past, counts like a commit. N < 0
counts the steps and kills nobody. JOB ``forget`` takes a subject_key in place of the inputs.
"""

from __future__ import annotations

import os
import signal
import sys


def main() -> None:
    at, kind_name, lake_uri, inputs = int(sys.argv[1]), sys.argv[2], sys.argv[3], sys.argv[4:]
    from medspark.labels.kind import labels_kind
    from medspark.lake import session, store
    from medspark.lake.upkeep import forget
    from medspark.photos.kind import photos_kind
    from medspark.series.kind import series_kind
    from medspark.slides.kind import slides_kind
    from tests.lake import harness, patients

    step = 0

    def reached() -> None:
        nonlocal step
        if step == at:
            os.killpg(0, signal.SIGKILL)
        step += 1

    def counted(original):  # type: ignore[no-untyped-def]
        def called(*given, **named):  # type: ignore[no-untyped-def]
            reached()
            result = original(*given, **named)
            reached()
            return result

        return called

    store.Lake.transact = counted(store.Lake.transact)  # type: ignore[method-assign]
    forget.trim = counted(forget.trim)  # type: ignore[attr-defined]
    kinds = {"series": series_kind, "labels": labels_kind, "slides": slides_kind, "photos": lambda: photos_kind("folder")}
    spark = session.build("killed")
    from pathlib import Path

    if kind_name == "forget":
        patients.upkeep(spark, Path(lake_uri), forget=inputs[0])
    else:
        harness.run(spark, Path(lake_uri), [Path(path) for path in inputs], kinds[kind_name]())
    print("steps:", step, flush=True)


if __name__ == "__main__":
    main()
