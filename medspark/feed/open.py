"""A feed of a lake, opened at one version without Spark: its card, its files, its readers."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Literal

from pyarrow import fs as pafs

from medspark.errors import BadRequest
from medspark.feed.card import Card, PartFile, parse
from medspark.feed.decode import Decoder
from medspark.lake.files import locate, sha256_of, storage_options
from medspark.lake.upkeep.feeds import CARD

if TYPE_CHECKING:
    from medspark.feed.augment import Augmentation
    from medspark.feed.cache import Cache
    from medspark.feed.reader import Reader
    from medspark.feed.stream import Source

NAME = re.compile(r"([A-Za-z0-9][A-Za-z0-9_.-]*)(?:@(\d+))?")


@dataclass(frozen=True)
class Feed:
    """A feed at a version. Light and picklable: ranks get it by closure and open their own files.

    uri : the table's folder, as the lake was named
    """

    lake: str
    name: str
    version: int
    card: Card

    @property
    def uri(self) -> str:
        return f"{self.lake.rstrip('/')}/feeds/{self.name}"

    def store(self) -> tuple[pafs.FileSystem, str]:
        """(Arrow file system, the table's folder on it)."""
        filesystem, root, _ = locate(self.uri)
        return filesystem, root

    def paths(self, part: str) -> tuple[str, ...]:
        """Absolute paths of a part's files on `store`'s file system, in the feed's order."""
        _, root = self.store()
        return tuple(f"{root}/{file.path}" for file in self.card.files_of(part))

    def reader(
        self,
        part: str,
        batch_size: int,
        rank: int = 0,
        ranks: int = 1,
        seed: int = 0,
        kind: Literal["arrow", "petastorm"] = "arrow",
        augment: Augmentation | None = None,
        cache: Cache | None = None,
        workers: int | None = None,
        bad_rows: Literal["stop", "skip"] = "stop",
        store: tuple[pafs.FileSystem, str] | None = None,
    ) -> Reader:
        """Rank ``rank``'s share of a part in batches.

        workers : threads that decode; None: the cores that this process may use
        bad_rows : what happens at a row that cannot be decoded: "stop" raises `reader.BadRow`, "skip" blanks it in its batch and names it in ``bad``
        store : where the feed's folder lies, if not where it was opened (a mirror, a mount)
        Raises `BadRequest` for an unknown part, and for an augmentation that the images do not allow.
        """
        from medspark.feed.stream import FeedReader, shares

        if augment is not None:
            augment.check(self.card)
        plan = shares(self.card, part, batch_size, rank, ranks, seed)
        filesystem, root = store or self.store()
        source: Source
        if kind == "petastorm":
            from medspark.feed.petastorm import PetastormSource

            if cache is not None:
                raise BadRequest("kind petastorm reads whole files by itself: the cache holds row groups; use kind arrow")
            source = PetastormSource(self.card, part, filesystem, root)
        elif cache is None and isinstance(filesystem, pafs.LocalFileSystem):
            from medspark.feed.disk import DiskSource

            source = DiskSource(self.card, part, root)
        else:
            from medspark.feed.arrow import ArrowSource

            source = ArrowSource(self.card, part, filesystem, root, None if cache is None else partial(cache.follow, plan))
        return FeedReader(self.card, part, plan, source, Decoder(self.card, workers, augment, seed, bad_rows))


def parse_name(text: str) -> tuple[str, int | None]:
    """``NAME[@VERSION]`` -> (name, version or None for the latest); raises `BadRequest`."""
    match = NAME.fullmatch(text)
    if match is None:
        raise BadRequest(f"--feed {text}: expected NAME or NAME@VERSION, e.g. lungs@0")
    return match[1], int(match[2]) if match[2] is not None else None


def names(lake: str) -> list[str]:
    """Feeds of a lake; none where it can't be listed."""
    filesystem, root, _ = locate(f"{lake.rstrip('/')}/feeds")
    try:
        found = filesystem.get_file_info(pafs.FileSelector(root, allow_not_found=True))
    except OSError:
        return []
    return sorted(info.base_name for info in found if info.type == pafs.FileType.Directory)


def open_feed(lake: str, name: str, version: int | None = None, verify: bool = False) -> Feed:
    """The feed ``name`` of a lake; ``name`` may carry its version (``lungs@3``).

    verify : also compare every file's sha256 with the card (reads all bytes once)
    Raises `BadRequest` where there is no such feed or version, or where its files are not those that its card lists.
    """
    import deltalake

    plain, said = parse_name(name)
    version = version if version is not None else said
    uri = f"{lake.rstrip('/')}/feeds/{plain}"
    filesystem, root, location = locate(uri)
    try:
        table = deltalake.DeltaTable(location, version=version, storage_options=storage_options(lake))
    except Exception as error:  # deltalake has one class for every trouble with a log
        at, has = "" if version is None else f" at version {version}", ", ".join(names(lake)) or "none"
        why = str(error).splitlines()[0][:160]
        raise BadRequest(f"feed {plain}{at}: not in lake {lake}, it has {has} ({why}); build it with build_feed") from None
    features = set(table.protocol().reader_features or ())
    if features & {"deletionVectors", "columnMapping"}:
        raise BadRequest(
            f"feed {plain}: its table uses {', '.join(sorted(features))}, which a reader of its files cannot honour; rebuild it"
        )
    text = table.metadata().configuration.get(CARD)
    if text is None:
        raise BadRequest(f"{uri} is a table without a card: not a feed; build it with build_feed")
    card = parse(text)
    actions = table.get_add_actions(flatten=True)
    live = dict(zip(actions.column("path").to_pylist(), actions.column("size_bytes").to_pylist()))
    _same_files(plain, card.files, live)
    feed = Feed(lake, plain, int(table.version()), card)
    if verify:
        for file in card.files:
            try:
                found = sha256_of(filesystem, f"{root}/{file.path}")
            except FileNotFoundError:
                raise BadRequest(f"{root}/{file.path}: listed by the feed's card and not there") from None
            if found != file.sha256:
                raise BadRequest(f"feed {plain}: {file.path} does not hold the bytes that the card lists; rebuild the feed")
    return feed


def _same_files(name: str, listed: Sequence[PartFile], live: dict[str, int]) -> None:
    said = {file.path: file.bytes for file in listed}
    if said != live:
        lost, new = sorted(said.keys() - live.keys()), sorted(live.keys() - said.keys())
        what = f"{len(lost)} files are gone, {len(new)} are new" if lost or new else "sizes differ"
        raise BadRequest(f"feed {name}: was changed after it was built ({what}); rebuild it, a feed is never optimised or written to")
