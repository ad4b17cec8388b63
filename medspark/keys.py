"""Deterministic identity: ids, keyed pseudonyms and named randomness.

Every id is a function of what the object *is* (contract.md §2), never of order, partitioning or time, so that a retried task, a second run
or another cluster gives the same rows. With a key the ids are HMAC-SHA256 pseudonyms: without the key nobody can test a guess.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

ID_DIGITS = 32  # 128 bits: the chance of one collision among 10^9 ids is below 10^-20
PARENT_DIGITS = 16  # an image_id begins with these of its parent's id, so that min/max file statistics prune by image too


def _canonical(parts: tuple[object, ...]) -> bytes:
    """Length-prefixed, so that ("ab", "c") and ("a", "bc") differ."""
    pieces = []
    for part in parts:
        raw = part if isinstance(part, bytes) else str(part).encode("utf-8", "surrogateescape")
        pieces.append(b"%d:" % len(raw))
        pieces.append(raw)
    return b"".join(pieces)


@lru_cache(maxsize=1 << 12)
def _remembered(key: bytes | None, kind: str, *texts: str) -> str:
    """`Ids.digest` of what recurs (the subject, series and folder of a slice), remembered: a digest costs 4 µs."""
    return Ids(key).digest(kind, *texts)


@lru_cache(maxsize=16)
def _hmac_contexts(key: bytes) -> tuple[hashlib._Hash, hashlib._Hash]:
    """SHA-256 over the inner and the outer pad of HMAC (RFC 2104), made once a key: a digest then costs a quarter of ``hmac.digest``."""
    block = (key if len(key) <= 64 else hashlib.sha256(key).digest()).ljust(64, b"\0")
    return hashlib.sha256(bytes(byte ^ 0x36 for byte in block)), hashlib.sha256(bytes(byte ^ 0x5C for byte in block))


@dataclass(frozen=True)
class Ids:
    """The lake's identity scheme.

    key : bytes or None
        The lake's de-identification key; None (``deid.profile = none``) gives plain SHA-256 and leaves UIDs as they are.
    """

    key: bytes | None

    def digest(self, kind: str, *parts: object) -> str:
        """32 lower-case hex digits that identify ``parts`` among all objects of ``kind``."""
        message = _canonical((kind, *parts))
        if self.key is None:
            return hashlib.sha256(message).hexdigest()[:ID_DIGITS]
        inner, outer = (context.copy() for context in _hmac_contexts(self.key))
        inner.update(message)
        outer.update(inner.digest())
        return outer.hexdigest()[:ID_DIGITS]

    def uid(self, uid: str) -> str:
        """A DICOM UID's pseudonym ``2.25.<128-bit integer>`` (PS3.5 B.2), or the UID itself without a key. Equal in every dataset."""
        if self.key is None:
            return uid
        return "2.25." + str(int(_remembered(self.key, "uid", uid.strip(" \0")), 16))

    def source(self, dataset: str, uri: str, sha256: str) -> str:
        return self.digest("source", dataset, uri, sha256)

    def slide(self, dataset: str, what: str) -> str:
        """``what``: SeriesInstanceUID of a DICOM slide, else the source_id of its file."""
        return self.digest("slide", dataset, what)

    def grid(self, slide_id: str, *parameters: object) -> str:
        return self.digest("grid", slide_id, *parameters)

    def series(self, dataset: str, series_instance_uid: str, frame_of_reference: str, orientation: str, size: str) -> str:
        return _remembered(self.key, "series", dataset, series_instance_uid, frame_of_reference, orientation, size)

    def image(self, parent_id: str, *parts: object) -> str:
        """An image's id: 16 digits of the parent, 16 of (parts): (dataset, SOPInstanceUID, frame), (grid_id, row, col), ..."""
        return parent_id[:PARENT_DIGITS] + self.digest("image", *parts)[:PARENT_DIGITS]

    def subject(self, domain: str, patient_id: str) -> str:
        return _remembered(self.key, "subject", domain, patient_id)

    def label_row(
        self,
        target_id: str,
        label: str,
        instance_key: str | None,
        source: str,
        annotator: str | None,
        number: int,
        source_id: str,
        role: str = "positive",
    ) -> str:
        """Key of a row of ``labels``. ``number``: its round.

        A label that is drawn both as positive and as another role on one image makes two rows: only then must the role tell them apart.
        """
        identity = (target_id, label, instance_key or "", source, annotator or "", number, source_id)
        return self.digest("label_row", *identity, *(() if role == "positive" else (role,)))

    def annotator(self, name: str) -> str:
        return self.digest("annotator", name)

    def token(self, text: str) -> str:
        """Keyed stand-in of a file or folder name, so that names can be matched in tables that must not hold addresses."""
        return _remembered(self.key, "token", text)

    def day_shift(self, subject_key: str) -> int:
        """Whole days (-3650 .. -1) by which every date of the subject moves (PS3.15 E.3.6, option 113107); 0 without a key."""
        if self.key is None:
            return 0
        return -1 - int(_remembered(self.key, "day_shift", subject_key), 16) % 3650

    @property
    def fingerprint(self) -> str:
        """What the lake stores to recognise its key; reveals nothing of it. ``none`` without a key."""
        return "none" if self.key is None else self.digest("key", "fingerprint")


def rng(seed: int, *names: object) -> np.random.Generator:
    """A random generator that is a pure function of its names: ``rng(seed, "augment", epoch, image_id)``."""
    raw = hashlib.sha256(_canonical((seed, *names))).digest()
    return np.random.Generator(np.random.PCG64(int.from_bytes(raw[:16], "little")))
