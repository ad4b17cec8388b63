"""The leak check: nobody is in two parts, and images that are equal are named. A gate of `build_feed` and of every training job."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import pyarrow.parquet as pq
from pyarrow import fs as pafs

from medspark.errors import BadRequest
from medspark.feed.card import Card

SHOWN = 20  # keys in the sentence that stops a run
MOST_DOUBLES = 10_000  # groups of equal images that a card lists; the summary counts all

TORN = f"SELECT subject_key FROM {{rows}} GROUP BY subject_key HAVING count(DISTINCT part) > 1 ORDER BY subject_key LIMIT {SHOWN}"
"""Subjects with images in two parts. ``rows``: a view with subject_key and part."""
_EQUAL = (
    "SELECT pixel_hash, array_sort(collect_set(image_id)) AS images FROM {rows} WHERE pixel_hash IS NOT NULL GROUP BY pixel_hash"
    " HAVING count(DISTINCT image_id) > 1 AND (count(DISTINCT subject_key) > 1 OR count(DISTINCT part) > 1)"
)
DOUBLES = f"SELECT images FROM ({_EQUAL}) ORDER BY images LIMIT {MOST_DOUBLES + 1}"
"""Images of equal ``pixel_hash`` under different subjects or parts, smallest id first."""
COUNT_DOUBLES = f"SELECT count(*) AS n FROM ({_EQUAL})"


def refusal(torn: Iterable[str], split: str = "") -> str:
    """The sentence that stops a run."""
    keys = ", ".join(torn)
    what = f"split {split} divides images, not subjects" if split else f"subjects in two parts: {keys}"
    return f"{what}; what is learnt from a subject must not be tested on it. For a study within subjects say --within-subject"


def torn(subjects: Mapping[str, Iterable[str]]) -> list[str]:
    """Subjects that are in two parts, sorted. ``subjects``: part -> its subjects."""
    first: dict[str, str] = {}
    found = set()
    for part, keys in subjects.items():
        for key in set(keys):
            if first.setdefault(key, part) != part:
                found.add(key)
    return sorted(found)


def gate(card: Card, filesystem: pafs.FileSystem, folder: str) -> None:
    """Reads who is in which part of a feed, from its own rows; raises `BadRequest` with the keys where the feed is not marked WITHIN-SUBJECT.

    folder : the feed's, on ``filesystem``.  Only the column subject_key is read.
    """
    if card.within_subject:
        return
    subjects: dict[str, set[str]] = {}
    for file in card.files:
        with filesystem.open_input_file(f"{folder}/{file.path}") as stream:
            keys = pq.ParquetFile(stream).read(columns=["subject_key"]).column(0).unique().to_pylist()
        subjects.setdefault(file.part, set()).update(keys)
    found = torn(subjects)
    if found:
        raise BadRequest(f"feed {card.name}: {refusal(found[:SHOWN])}")
