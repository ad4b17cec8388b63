"""Readers over a feed, as a training run asks for them. Travels to the ranks, so it must live where every worker can import it (not beside the jobs)."""

from __future__ import annotations

import dataclasses
import os
from dataclasses import dataclass

from medspark.config import Augment, Train
from medspark.feed.augment import Augmentation
from medspark.feed.cache import Cache
from medspark.feed.open import Feed
from medspark.feed.reader import Reader


@dataclass(frozen=True)
class FeedReaders:
    """`medspark.train.feeding.Readers` over a feed; pickles."""

    feed: Feed
    train: Train
    changes: Augment

    def __call__(self, part: str, batch_size: int, rank: int, ranks: int, seed: int, augment: bool) -> Reader:
        train = self.train
        threads = train.workers or max(1, len(os.sched_getaffinity(0)) // int(os.environ.get("HOROVOD_LOCAL_SIZE", "1")))
        return self.feed.reader(
            part,
            batch_size,
            rank,
            ranks,
            seed,
            kind=train.reader,
            augment=Augmentation(**dataclasses.asdict(self.changes)) if augment else None,
            cache=Cache(str(train.cache_path()), int(train.cache_gib * 2**30)) if train.cache_gib else None,
            workers=threads,
            bad_rows=train.bad_rows,
        )
