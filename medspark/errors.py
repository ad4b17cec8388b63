"""The one error tree.

Three kinds, treated differently (see ``ARCHITECTURE.md``): a *bad request* stops a job before Spark starts (exit status 2, one sentence);
a *bad datum* becomes a row in ``rejected`` and the job goes on; everything else is a *bug* and rises.
"""

from __future__ import annotations

import os
import traceback

REJECTION_CODES = frozenset(
    {
        "NOT_DICOM",
        "EMPTY_FILE",
        "TRUNCATED",
        "DECODER_CRASHED",
        "DECODER_TIMEOUT",
        "NO_IMAGE",
        "MISSING_ATTRIBUTE",
        "UNSUPPORTED_SYNTAX",
        "DECODE_FAILED",
        "PIXEL_LENGTH",
        "SOP_CONFLICT",
        "BURNED_IN",
        "SLIDE_UNREADABLE",
        "SLIDE_UNSUPPORTED",
        "NOT_A_SLIDE",
        "UNKNOWN_MPP",
        "ARCHIVE_MEMBER",
        "NIFTI_UNREADABLE",
        "PHOTO_UNREADABLE",
        "LABEL_GEOMETRY",
        "LABEL_SIZE",
        "LABEL_FORMAT",
        "UNKNOWN_KIND",
        "TOO_LARGE",
        "DUPLICATE",
        "ORPHAN_LABEL",
    }
)
"""Stable codes of the table ``rejected``."""

UNCOUNTED_CODES = frozenset({"DUPLICATE", "ORPHAN_LABEL"})
"""Listed in ``rejected`` but not counted as rejections: nothing is wrong with the file."""


class MedsparkError(Exception):
    """Base of every error that medspark raises on purpose."""


class BadRequest(MedsparkError):
    """An option, a config key or a path that cannot be served; the message is one sentence with the way out."""


class Rejected(MedsparkError):
    """A bad datum. ``code`` is one of `REJECTION_CODES`; ``reason`` names what is wrong and never quotes a header value."""

    def __init__(self, code: str, reason: str) -> None:
        if code not in REJECTION_CODES:
            raise ValueError(f"unknown rejection code {code!r}")
        super().__init__(f"{code}: {reason}")
        self.code = code
        self.reason = reason

    def __reduce__(self) -> tuple[type[Rejected], tuple[str, str]]:
        return (Rejected, (self.code, self.reason))


class SkippedSource(MedsparkError):
    """A file that this job is not meant for (an annotation met by an image job, a text file); counted in ``skipped`` with its hint."""

    def __init__(self, hint: str) -> None:
        super().__init__(hint)
        self.hint = hint

    def __reduce__(self) -> tuple[type[SkippedSource], tuple[str]]:
        return (SkippedSource, (self.hint,))


class Unavailable(MedsparkError):
    """A source that could not be brought now: a network, a server, a file that has gone. Nothing of it is written, so that the next run tries again."""


def unexpected(error: Exception) -> str:
    """One sentence on an error that no part foresaw: its kind and place, never its text (which may quote the file)."""
    frames = traceback.extract_tb(error.__traceback__)
    place = f" at {os.path.basename(frames[-1].filename)}:{frames[-1].lineno}" if frames else ""
    return f"unexpected {type(error).__name__}{place} while reading it"
