"""The lake's de-identification key: 32 random bytes as 64 hex digits in a file that only its owner reads.

Whoever holds it can test guesses of names and dates against the lake; whoever loses it can never add to the lake again. So it is created
once, atomically, and never replaced, and a file that others can read is refused rather than repaired.
"""

from __future__ import annotations

import contextlib
import os
import re
import secrets
import stat
from pathlib import Path

from medspark.errors import BadRequest

KEY_BYTES = 32  # HMAC-SHA256 gains nothing from more (RFC 2104, section 3)
_HEX_KEY = re.compile(rb"[0-9a-fA-F]{%d}\s*" % (2 * KEY_BYTES))


def load_key(path: Path, create: bool) -> bytes:
    """The 32 bytes of the key file; with ``create`` a missing file is made first (0600, its folder 0700).

    Jobs that create at the same time agree: each writes its own file, and hard-links it into place; the first link wins and all read that.
    Raises BadRequest when the file is missing (and ``create`` is False), malformed, or open to group or others.
    """
    path = Path(path)
    try:
        return _read(path)
    except FileNotFoundError:
        if not create:
            raise BadRequest(
                f"deid.key_file {path}: no such file; point deid.key_file at the lake's key, or start a new lake to have one made"
            ) from None
    except OSError as error:
        raise BadRequest(f"deid.key_file {path}: cannot be read ({error.strerror})") from None
    try:
        _create(path)
        return _read(path)
    except OSError as error:
        raise BadRequest(f"deid.key_file {path}: cannot be created ({error.strerror}); name a writable place") from None


def _read(path: Path) -> bytes:
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    with os.fdopen(descriptor, "rb") as stream:
        status = os.fstat(stream.fileno())
        if not stat.S_ISREG(status.st_mode):
            raise BadRequest(f"deid.key_file {path}: not a regular file")
        if status.st_mode & (stat.S_IRWXG | stat.S_IRWXO):
            raise BadRequest(
                f"deid.key_file {path}: others may read or change it (mode {status.st_mode & 0o777:04o}); run: chmod 600 {path}"
            )
        raw = stream.read(4 * KEY_BYTES)
    if not _HEX_KEY.fullmatch(raw):
        raise BadRequest(f"deid.key_file {path}: expected {2 * KEY_BYTES} hexadecimal digits; restore the file from where the key is kept")
    return bytes.fromhex(raw.decode("ascii").strip())


def _create(path: Path) -> None:
    """Put a complete key file at ``path`` unless one is there; never a partial one, never over another."""
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    draft = path.with_name(f".{path.name}.{os.getpid()}.{secrets.token_hex(8)}")
    descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        with os.fdopen(descriptor, "wb") as stream:
            stream.write(secrets.token_hex(KEY_BYTES).encode("ascii") + b"\n")
            stream.flush()
            os.fsync(stream.fileno())
        with contextlib.suppress(FileExistsError):  # another job was first; its key is the key
            os.link(draft, path)
        folder = os.open(path.parent, os.O_RDONLY | os.O_CLOEXEC)
        try:
            os.fsync(folder)  # a key that a power cut takes back would orphan every row written with it
        finally:
            os.close(folder)
    finally:
        os.unlink(draft)
