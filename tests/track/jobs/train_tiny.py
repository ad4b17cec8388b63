"""A training job as small as can be: one weight, full of logging, started by spark-submit as the real ones are. Needs no Spark session."""

from __future__ import annotations

import argparse
import json
import time
from dataclasses import asdict
from pathlib import Path

import numpy as np

from medspark import config
from medspark.feed.open import open_feed
from medspark.feed.reader import Batch
from medspark.keys import rng
from medspark.track import identity, runs


def options() -> argparse.ArgumentParser:
    given = argparse.ArgumentParser()
    for name in ("lake", "feed", "tracking-uri", "summary"):
        given.add_argument(f"--{name}")
    given.add_argument("--set", action="append", default=[])
    given.add_argument("--seed", type=int, default=0)
    given.add_argument("--drift", action="store_true", help="a job that does not repeat: its numbers hang on the clock")
    return given


def main() -> None:
    given = options().parse_args()
    settings = config.load(None, given.set)
    feed = open_feed(given.lake, given.feed)
    uri = runs.where(given.tracking_uri, given.lake)
    who = identity.identity("train_tiny", feed.card, feed.version, settings, ("guard",), given.seed, 1)
    run_id = runs.begin(uri, who, identity.arguments(options(), given), asdict(settings))
    with runs.running(runs.MlflowTracker(uri, run_id)) as tracker:
        random = rng(given.seed, "tiny", settings.guard.max_pixels)
        images = random.integers(0, 255, (4, 8, 8, 1), np.uint8)
        batch = Batch(images, None, None, np.zeros((4, 1), np.float32), np.ones(4, np.float32), tuple("abcd"))
        identity.say_batch(batch, tracker)
        weight = time.time() % 1 if given.drift else 0.5
        for step in range(20):
            weight -= 0.1 * (weight - images.mean() / 255)
            tracker.metrics({"loss": float(weight**2)}, step)
        tracker.metrics({"epoch/loss": float(weight**2)}, 0)
    Path(given.summary).write_text(json.dumps({"run_id": run_id}))


if __name__ == "__main__":
    main()
