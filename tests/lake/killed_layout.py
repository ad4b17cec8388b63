"""A `--cluster` that kills its whole process group at its n-th step: ``killed_layout.py N LAKE``; N < 0 kills nobody and names the steps.

The engine knows nothing of this: `Lake.transact` and `tasks.run` are wrapped from outside, and the bounds are so small that a handful of rows
goes the long way (sample, scatter, gather).
"""

from __future__ import annotations

import os
import signal
import sys

from medspark.lake.upkeep.runs import Bounds

BOUNDS = Bounds(run_bytes=3_000, cell_bytes=2_000, load_bytes=4_000, sample_bytes=100)
FILE_BYTES = 50_000  # the slices of three small batches fill two files, before and after; every other table one


def main() -> None:
    at, uri = int(sys.argv[1]), sys.argv[2]
    from medspark.lake import maintain, session, store
    from medspark.lake.upkeep import layout

    transact, run, names = store.Lake.transact, layout.tasks.run, []

    def reached(name: str) -> None:
        if len(names) == at:
            os.killpg(0, signal.SIGKILL)
        names.append(name)

    def committing(self, table, *given, **named):  # type: ignore[no-untyped-def]
        reached(f"before {table}")
        version = transact(self, table, *given, **named)
        reached(f"after {table}")
        return version

    def running(spark, journal, parts, work, seconds):  # type: ignore[no-untyped-def]
        found = run(spark, journal, parts, work, seconds)
        reached(f"{type(work).__name__} {work.job.table.name}")
        return found

    store.Lake.transact, layout.tasks.run = committing, running  # type: ignore[method-assign]
    layout.BOUNDS, layout.NARROW_FILE_BYTES = BOUNDS, FILE_BYTES
    spark = session.build("killed")
    request = maintain.Request(cluster=True)
    maintain.Maintenance(store.Lake(spark, uri), request, 60.0).run()
    print("\n".join(names), flush=True)


if __name__ == "__main__":
    main()
