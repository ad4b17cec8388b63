"""The lake's own card: which key it was written with."""

from __future__ import annotations

import json

from pyarrow import fs as pafs

from medspark.errors import BadRequest
from medspark.keys import Ids
from medspark.lake.files import PRIVATE, locate
from medspark.tables.catalog import SCHEMA_VERSION

CARD = f"{PRIVATE}/lake.json"


def key_of(uri: str) -> str | None:
    """Fingerprint of the key that a lake was written with; None for a lake that is not there yet. Needs no session."""
    filesystem, root, _ = locate(uri)
    path = f"{root}/{CARD}"
    if filesystem.get_file_info(path).type == pafs.FileType.NotFound:
        return None
    with filesystem.open_input_stream(path) as stream:
        return str(json.loads(stream.read())["key"])


def check_key(uri: str, ids: Ids, create: bool) -> None:
    """The lake remembers the fingerprint of its key; another key is a `BadRequest`, before any Spark work."""
    there = key_of(uri)
    if there is None:
        if create:
            filesystem, root, _ = locate(uri)
            filesystem.create_dir(f"{root}/{PRIVATE}", recursive=True)
            with filesystem.open_output_stream(f"{root}/{CARD}") as stream:
                stream.write(json.dumps({"key": ids.fingerprint, "schema": SCHEMA_VERSION}).encode())
    elif there != ids.fingerprint:
        raise BadRequest(
            f"this lake was written with {'no key' if there == 'none' else 'another de-identification key'}; "
            "give the same deid.profile and deid.key_file as before"
        )


def must_exist(uri: str) -> str:
    """The fingerprint of a lake's key; `BadRequest` where there is no lake."""
    there = key_of(uri)
    if there is None:
        raise BadRequest(f"--lake {uri}: no lake there")
    return there
