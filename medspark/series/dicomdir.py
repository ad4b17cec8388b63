"""DICOMDIR: which files a medium says that it holds (PS3.3 annex F, PS3.10 section 8). What they are is read from themselves."""

from __future__ import annotations

from medspark.config import Config
from medspark.series.header import open_head

NAME = "dicomdir"
_RECORDS, _FILE_ID = 0x00041220, 0x00041500


def listed(path: str, settings: Config) -> list[tuple[str, ...]]:
    """Components of the Referenced File IDs, in the order of the records, each once; relative to the DICOMDIR's folder.

    Raises Rejected as `open_head`.
    """
    head = open_head(path, settings, header_only=True)
    found = (tuple(record.texts(_FILE_ID)) for record in head.items(_RECORDS))
    return list(dict.fromkeys(parts for parts in found if parts and all(parts)))
