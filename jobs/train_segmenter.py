"""Trains a segmenter on a feed: ``spark-submit jobs/train_segmenter.py --lake URI --feed NAME [--num-proc N]``"""

from __future__ import annotations

import argparse

from _entry import main
from _train import body
from _train import options as shared

JOB = "train_segmenter"


def options() -> argparse.ArgumentParser:
    return shared(JOB, "Trains a U-Net on a feed with masks, on one rank or many (Horovod on Spark).")


if __name__ == "__main__":
    known = options()
    arguments = known.parse_args()
    main(JOB, lambda: body(JOB, "segmentation", arguments, known), arguments.summary)
