"""The lake for one job: no other batch is open, and none opens until it is done."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from medspark.errors import BadRequest
from medspark.lake.batch import Batch, gone, open_batches, recover_dead
from medspark.lake.store import Lake

JOB = "maintain_lake"


class Busy(BadRequest):
    """Another job does the same thing at the moment."""


def refuse_beside_others(lake: Lake, what: str) -> None:
    """Raises `BadRequest` while a batch is open that nobody but its owner may end. Reads one small table; needs no session."""
    for batch_id, entry in open_batches(lake).items():
        if not gone(entry):
            raise BadRequest(
                f"{what} needs the lake to itself and batch {batch_id} is open; wait until its job has ended (see: medspark status)"
            )
        if entry["state"] == "closed":
            raise BadRequest(
                f"{what} needs the lake to itself and batch {batch_id} of a dead job is not finished; start any ingest job once, it finishes it"
            )


@contextlib.contextmanager
def alone(lake: Lake, what: str, run_id: str, lease_s: float) -> Iterator[Batch]:
    """Holds the whole lake. Batches of dead jobs are rolled back first; `BadRequest` where a live one is open."""
    lake.ensure(["claims", "sources"])
    refuse_beside_others(lake, what)
    recover_dead(lake)
    batch = Batch(lake, run_id, JOB, "alone", lease_s)
    others = batch.claim_alone()
    if others:
        refuse_beside_others(lake, what)
        raise BadRequest(f"{what} needs the lake to itself and batch {others[0]} has just opened; try again when its job has ended")
    try:
        yield batch
    finally:
        batch.release()


@contextlib.contextmanager
def beside(lake: Lake, what: str, run_id: str, lease_s: float) -> Iterator[Batch]:
    """Works beside ingest jobs; a second job that does the same thing is refused, and a vacuum sees that work is open.

    Batches of dead jobs are rolled back first: one that died at this very thing would be taken for a second job else.
    """
    lake.ensure(["claims", "sources"])
    recover_dead(lake)
    batch = Batch(lake, run_id, JOB, what, lease_s)
    if not batch.claim([what], {}, done=lambda claimed: set()):
        raise Busy(f"another job is at {what} of this lake; try again when it has ended (see: medspark status)")
    try:
        yield batch
    finally:
        batch.release()
