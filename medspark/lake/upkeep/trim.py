"""Cuts a table's past off its log: a checkpoint of the present, then everything older goes.

Each entry of a log keeps the smallest and largest value of every file's columns, for files that are long gone, too: a subject's key among
them. Forgetting ends the past. Time travel to before is over, and so is every pin on it.
"""

from __future__ import annotations

import re
import uuid

from pyarrow import fs as pafs

from medspark.lake.batch import app
from medspark.lake.store import Lake

_VERSIONED = re.compile(r"\.?(\d{20})\.")  # also Hadoop's checksum files, which begin with a dot


def trim(lake: Lake, table: str) -> int:
    """Removes the log before a new, empty commit; returns its version. Killed in between, running it again completes it."""
    version = lake.transact(table, [], app(f"trim-{uuid.uuid4().hex}"), lake.user_metadata(trimmed=True))
    assert version is not None
    logs = lake.spark._jvm.org.apache.spark.sql.delta.DeltaLog
    logs.clearCache()
    log = logs.forTable(lake.spark._jsparkSession, lake.path(table))
    log.checkpoint()
    entries = lake.filesystem.get_file_info(pafs.FileSelector(lake.folder(table, "_delta_log"), recursive=True))
    checkpoints = [_version(info) for info in entries if ".checkpoint." in info.base_name and not info.base_name.startswith(".")]
    if not checkpoints or max(checkpoints) < version:
        raise RuntimeError(f"{table}: Delta wrote no checkpoint of version {version}; its log was left as it is")
    for info in entries:
        if info.type == pafs.FileType.File and 0 <= _version(info) < version:
            lake.filesystem.delete_file(info.path)
    logs.clearCache()
    return version


def _version(info: pafs.FileInfo) -> int:
    """The version in a log file's name; -1 where there is none."""
    found = _VERSIONED.match(info.base_name)
    return int(found[1]) if found else -1
