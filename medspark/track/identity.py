"""What makes a run what it is: enough to say whether two runs may be compared, and to repeat one. Never an address, a key or a patient's name."""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import platform
import subprocess
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np

from medspark.config import Config
from medspark.errors import BadRequest
from medspark.feed.card import Card
from medspark.feed.reader import Batch
from medspark.track.tracker import Tracker

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("medspark", "tensorflow", "tensorflow-cpu", "keras", "horovod", "petastorm", "numpy", "pyarrow", "pyspark", "mlflow")
"""What may change a run's numbers."""
LABELS_IN_NAME = 3  # of an experiment; more are counted
WITHIN_SUBJECT = "WITHIN-SUBJECT"  # training and test share subjects: said wherever the run is shown
BATCH_TAG = "batch_hash"
EXPECTED = "MEDSPARK_EXPECT_BATCH"  # environment: what the first batch must be (`medspark rerun`)
PRIVATE_OPTIONS = frozenset({"help", "lake", "conf", "set", "summary", "log_level", "tracking_uri", "resume"})
"""Not logged: addresses, and what changes no number. Settings are logged as values, whatever file they came from."""


@dataclass(frozen=True)
class Code:
    """Where the code stood. commit : full hash, or ``release <version>`` outside a checkout; changes : 12 digits over uncommitted changes, "" for none"""

    commit: str
    changes: str

    @property
    def dirty(self) -> bool:
        return bool(self.changes)

    @property
    def short(self) -> str:
        return (self.commit if self.commit.startswith("release") else self.commit[:12]) + (f"+{self.changes}" if self.dirty else "")


@dataclass(frozen=True)
class Identity:
    """A run's identity.

    card : `card_digest` of the feed
    tables : versions of the lake's tables that the feed was made from
    settings : fingerprint of the config sections that change the run
    """

    job: str
    task: str
    labels: tuple[str, ...]
    feed: str
    feed_version: int
    card: str
    tables: Mapping[str, int]
    split: Mapping[str, Any]
    within_subject: bool
    settings: str
    seed: int
    world: int
    code: Code
    packages: Mapping[str, str]

    @property
    def experiment(self) -> str:
        """Name of the experiment: runs in one are about the same question and may be compared."""
        few = ", ".join(self.labels[:LABELS_IN_NAME]) if len(self.labels) <= LABELS_IN_NAME else f"{len(self.labels)} labels"
        return f"{self.task}: {few}" + (f" ({WITHIN_SUBJECT})" if self.within_subject else "")

    def tags(self) -> dict[str, str]:
        """Short words without dots, so that ``tags.feed = 'x' and tags.dirty = 'no'`` filters in the UI without quotes."""
        yes = lambda value: "yes" if value else "no"
        return {
            "job": self.job,
            "task": self.task,
            "labels": ", ".join(self.labels),
            "feed": self.feed,
            "feed_version": str(self.feed_version),
            "split": str(self.split.get("name", "")),
            "within_subject": WITHIN_SUBJECT if self.within_subject else "no",
            "settings": self.settings,
            "seed": str(self.seed),
            "world": str(self.world),
            "commit": self.code.commit,
            "dirty": yes(self.code.dirty),
        }

    def params(self) -> dict[str, Any]:
        """The same for the comparison of runs, where only differing values are of interest, and what is too long for a tag."""
        return {
            "feed": self.feed,
            "feed_version": self.feed_version,
            "feed_card": self.card,
            "split": json.dumps(dict(self.split), sort_keys=True),
            "settings": self.settings,
            "seed": self.seed,
            "world": self.world,
            "code": self.code.short,
            **{f"table/{name}": version for name, version in sorted(self.tables.items())},
            **{f"package/{name}": version for name, version in sorted(self.packages.items())},
        }


def identity(job: str, card: Card, feed_version: int, settings: Config, sections: Iterable[str], seed: int, world: int) -> Identity:
    """The identity of a run of ``job`` on a feed; ``sections`` are the config sections that change it."""
    return Identity(
        job=job,
        task=card.task,
        labels=card.labels,
        feed=card.name,
        feed_version=feed_version,
        card=card_digest(card),
        tables=card.tables,
        split=card.split,
        within_subject=card.within_subject,
        settings=settings.fingerprint(*sections),
        seed=seed,
        world=world,
        code=code(),
        packages=packages(),
    )


def card_digest(card: Card) -> str:
    """16 digits over what of a card decides a training: every file by its SHA-256, what the labels are, how values were made.

    Not over the card as a whole: a later release may say more of the same feed.
    """
    files = [[file.part, file.sha256, list(file.row_groups)] for file in card.files]
    said = [card.task, list(card.labels), card.exclusive, list(card.mean), list(card.std), dict(card.recipe), files]
    return hashlib.sha256(json.dumps(said, sort_keys=True).encode()).hexdigest()[:16]


def code(root: Path = ROOT) -> Code:
    """State of the checkout that the code runs from."""
    try:
        commit = _git(root, "rev-parse", "HEAD").decode().strip()
        top = _git(root, "rev-parse", "--show-toplevel").decode().strip()
        if Path(top).resolve() != root.resolve():
            raise OSError("installed within another project's checkout")
        status = _git(root, "status", "--porcelain", "--untracked-files=all")
        changed = _git(root, "diff", "HEAD") + status if status else b""
    except (OSError, subprocess.CalledProcessError):
        return Code(f"release {packages(('medspark',)).get('medspark', 'unknown')}", "")
    return Code(commit, hashlib.sha256(changed).hexdigest()[:12] if changed else "")


def _git(root: Path, *words: str) -> bytes:
    return subprocess.run(["git", "-C", str(root), *words], check=True, capture_output=True).stdout


def packages(names: Iterable[str] = PACKAGES) -> dict[str, str]:
    """Versions of those that are installed, and of Python."""
    found = {"python": platform.python_version()}
    for name in names:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def arguments(parser: argparse.ArgumentParser, given: argparse.Namespace) -> list[str]:
    """A job's own options as words, from which the parser makes ``given`` again (but for `PRIVATE_OPTIONS`, which are left out)."""
    words: list[str] = []
    for action in parser._actions:
        value = getattr(given, action.dest, None)
        if action.dest in PRIVATE_OPTIONS or not action.option_strings or value is None or value == action.default:
            continue
        name = action.option_strings[-1]
        if action.nargs == 0:
            words.append(name)
        elif isinstance(action, argparse._AppendAction):
            words += [f"{name}={item}" for item in value]
        elif isinstance(value, (list, tuple)):
            words += [name, *map(str, value)]
        else:
            words.append(f"{name}={value}")
    return words


def batch_hash(batch: Batch) -> str:
    """32 digits over everything that a batch holds: equal batches train equally."""
    digest = hashlib.sha256("\n".join(batch.row_ids).encode())
    for array in (batch.images, batch.masks, batch.known, batch.targets, batch.weights):
        if array is not None:
            digest.update(f"{array.dtype.str} {array.shape}".encode())
            digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()[:32]


def say_batch(batch: Batch, tracker: Tracker) -> None:
    """Logs the hash of a run's first batch; raises `BadRequest` where a repeated run begins with another batch than the one it repeats."""
    found = batch_hash(batch)
    tracker.tags({BATCH_TAG: found})
    expected = os.environ.get(EXPECTED, "")
    if expected and found != expected:
        raise BadRequest(f"the first batch is {found}, the run to be repeated began with {expected}: not the same feed, seed or code")
