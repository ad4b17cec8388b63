"""Row groups of a feed on a mounted disk, read as bytes (`pages`): payloads stay in their files until they are decoded.

What a row group needs in memory, then, is small, and is kept for the next epoch as far as a bound allows.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache, partial

from pyarrow import fs as pafs

from medspark.feed import pages
from medspark.feed.arrow import ArrowSource
from medspark.feed.card import Card
from medspark.feed.decode import Rows
from medspark.feed.plan import Piece
from medspark.feed.reader import MissingRows
from medspark.feed.rows import BATCHED, PAYLOADS
from medspark.feed.stream import checked, targets_of

OPEN_FILES = 128  # of a rank; a file that was closed is opened again in microseconds
ROWS_KEPT = 100_000  # of the last row groups: some 400 bytes each
GROUPS_KEPT = 16  # at least: two windows


class DiskSource:
    """Row groups of one part's files under ``root`` on a local or mounted disk."""

    threads = ArrowSource.threads

    def __init__(self, card: Card, part: str, root: str) -> None:
        self._labels = len(card.labels)
        self._masked = card.task == "segmentation"  # else the column holds nothing
        self._files = card.files_of(part)
        self._paths = [f"{root}/{file.path}" for file in self._files]
        self._arrow = ArrowSource(card, part, pafs.LocalFileSystem(), root)
        self._opened = lru_cache(OPEN_FILES)(pages.OpenedFile)
        self._plain = lru_cache(None)(self._places)
        longest = max((rows for file in self._files for rows in file.row_groups), default=1)
        self._rows = lru_cache(max(GROUPS_KEPT, ROWS_KEPT // longest))(self._read)

    def load(self, piece: Piece, epoch: int | None) -> Rows:
        places = self._plain(piece.file)
        if places is None:
            return self._arrow.load(piece, epoch)
        for name in PAYLOADS if self._masked else PAYLOADS[1:]:  # decoders will ask for them
            self._opened(self._paths[piece.file]).soon(*pages.extent(self._arrow.footer(piece.file), piece.group, places[name]))
        rows = self._rows(piece.file, piece.group)
        return checked(rows, piece, self._files[piece.file].row_groups[piece.group], self._files[piece.file].path)

    def _places(self, file: int) -> Mapping[str, int] | None:
        """Leaves of the file's columns; None where they do not lie as `pages` reads them."""
        metadata = self._arrow.footer(file)
        leaves = pages.leaves(metadata)
        return leaves if all(name in leaves and pages.plain(metadata, leaves[name]) for name in BATCHED) else None

    def _read(self, file: int, group: int) -> Rows:
        path, metadata = self._paths[file], self._arrow.footer(file)
        count = metadata.row_group(group).num_rows
        opened = self._opened(path)
        stored = partial(pages.Stored, self._opened, path)
        at = {name: pages.extent(metadata, group, leaf) for name, leaf in (self._plain(file) or {}).items() if name in BATCHED}
        try:
            return Rows(
                pages.strings(opened, *at["row_id"], count),
                targets_of(pages.floats(opened, *at["target"], count * self._labels, lists=True), self._labels, count),
                pages.floats(opened, *at["weight"], count),
                [stored(*place) for place in pages.places(opened, *at["mask"], count)] if self._masked else [b""] * count,
                [stored(*place) for place in pages.places(opened, *at["image"], count)],
            )
        except ValueError as error:
            raise MissingRows(f"{path}: row group {group} is damaged ({error}): build the feed again") from None

    def metrics(self) -> Mapping[str, float]:
        return {}

    def close(self) -> None:
        self._arrow.close()
