"""Trains a classifier on a feed: ``spark-submit jobs/train_classifier.py --lake URI --feed NAME [--num-proc N]``"""

from __future__ import annotations

import argparse

from _entry import main
from _train import body
from _train import options as shared

JOB = "train_classifier"


def options() -> argparse.ArgumentParser:
    return shared(JOB, "Trains a compact residual network on a feed with image-level labels, on one rank or many (Horovod on Spark).")


if __name__ == "__main__":
    known = options()
    arguments = known.parse_args()
    main(JOB, lambda: body(JOB, "classification", arguments, known), arguments.summary)
