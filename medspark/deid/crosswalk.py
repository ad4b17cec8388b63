"""The way back: pseudonym -> original UID, encrypted, in files beside the key, so that labels can return to the PACS.

Only with ``deid.crosswalk = true``, only outside the lake, only in the driver. One file per series and batch; its name and its bytes are a
function of what it says (AES-SIV, RFC 5297), so that a batch that is done again, or by two jobs at once, writes the same file again.
Decision: docs/decisions/0018-crosswalk.md.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import secrets
import stat
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from medspark.errors import BadRequest
from medspark.keys import Ids

if TYPE_CHECKING:
    from pydicom import Dataset

ENDING = ".crosswalk"  # added to the key file's name
PURPOSE = b"medspark crosswalk 1"  # HKDF's info: this key opens nothing else, and the lake's pseudonyms need another (RFC 5869, 3.2)
SIV_KEY_BYTES = 64  # two AES-256 keys
NAME_DIGITS = 32
UIDS = ("SOPInstanceUID", "SeriesInstanceUID", "StudyInstanceUID", "FrameOfReferenceUID")


@dataclass(frozen=True)
class Series:
    """What is known of one series. ``uids``: pseudonym -> original;  ``patients``: PatientIDs that its files gave (one, in sound data)."""

    uids: dict[str, str] = field(default_factory=dict)
    patients: set[str] = field(default_factory=set)


@dataclass(frozen=True)
class Crosswalk:
    """The files of one key. Build it with `beside`."""

    folder: Path
    key: bytes

    @classmethod
    def beside(cls, key_path: Path, key: bytes) -> Crosswalk:
        """The crosswalk of the key in the file ``key_path``."""
        from cryptography.hazmat.primitives.hashes import SHA256
        from cryptography.hazmat.primitives.kdf.hkdf import HKDF

        derived = HKDF(algorithm=SHA256(), length=SIV_KEY_BYTES, salt=None, info=PURPOSE).derive(key)
        return cls(key_path.with_name(key_path.name + ENDING), derived)

    def add(self, originals: Iterable[Mapping[str, str]], ids: Ids) -> None:
        """Keeps what the headers said: mappings with the names of `UIDS` and PatientID. Files without a series are left out."""
        found: dict[str, Series] = {}
        for said in originals:
            if not said["SeriesInstanceUID"]:
                continue
            series = found.setdefault(ids.uid(said["SeriesInstanceUID"]), Series())
            series.uids.update({ids.uid(said[name]): said[name] for name in UIDS if said[name]})
            series.patients.add(said["PatientID"])
        for pseudonym, series in found.items():
            self._write(pseudonym, series)

    def of(self, pseudonym: str) -> Series:
        """All that was kept of the series with this ``series_instance_id``; empty where nothing was."""
        self.check()
        series = Series()
        name = _name(pseudonym)
        for path in sorted((self.folder / name[:2]).glob(f"{name}-*")):
            said = json.loads(self._open(path, pseudonym))
            series.uids.update(said["uids"])
            series.patients.update(said["patients"])
        return series

    def check(self) -> None:
        """Raises `BadRequest` where there is no crosswalk, or others may look into its folder."""
        try:
            mode = self.folder.stat().st_mode
        except FileNotFoundError:
            raise BadRequest(f"{self.folder}: no such folder, so the original UIDs are unknown; {REMEDY}") from None
        if mode & (stat.S_IRWXG | stat.S_IRWXO):
            raise BadRequest(f"{self.folder}: others may read or change it (mode {mode & 0o777:04o}); run: chmod 700 {self.folder}")

    def _write(self, pseudonym: str, series: Series) -> None:
        from cryptography.hazmat.primitives.ciphers.aead import AESSIV

        plain = json.dumps({"uids": series.uids, "patients": sorted(series.patients)}, sort_keys=True).encode()
        sealed = AESSIV(self.key).encrypt(plain, [pseudonym.encode()])
        name = _name(pseudonym)
        path = self.folder / name[:2] / f"{name}-{hashlib.sha256(sealed).hexdigest()[:16]}"
        if path.exists():
            return
        for folder in (self.folder, path.parent):
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        draft = path.with_name(f".{secrets.token_hex(8)}")
        descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            with os.fdopen(descriptor, "wb") as stream:
                stream.write(sealed)
                stream.flush()
                os.fsync(stream.fileno())  # what a power cut takes back would be missing for ever: the source is not read again
            os.replace(draft, path)
        except BaseException:
            draft.unlink(missing_ok=True)
            raise

    def _open(self, path: Path, pseudonym: str) -> bytes:
        from cryptography.exceptions import InvalidTag
        from cryptography.hazmat.primitives.ciphers.aead import AESSIV

        try:
            return AESSIV(self.key).decrypt(path.read_bytes(), [pseudonym.encode()])
        except InvalidTag:
            raise BadRequest(f"{path}: damaged, or written with another key; restore the folder from where the key is kept") from None

    def restore(self, data: bytes, pseudonym: str) -> bytes:
        """A DICOM object that refers to one series by pseudonyms, with the original UIDs and PatientID.

        Raises `BadRequest` where one of them was not kept.
        """
        import pydicom

        series = self.of(pseudonym)
        ds = pydicom.dcmread(io.BytesIO(data))
        missing = _referred(ds) - series.uids.keys()
        if missing:
            raise BadRequest(f"the crosswalk lacks {len(missing)} of the UIDs that series {pseudonym} refers to; {REMEDY}")
        if len(series.patients) != 1:
            raise BadRequest(f"the files of series {pseudonym} name {len(series.patients)} patients, so its labels cannot go back to one")
        _rename(ds, series.uids)
        ds.PatientID = next(iter(series.patients))
        out = io.BytesIO()
        ds.save_as(out)
        return out.getvalue()


REMEDY = "ingest the originals once more, into this or any other lake, with the same key and deid.crosswalk = true"


def kept_of(key_path: Path, pseudonyms: Iterable[str]) -> list[Path]:
    """Files beside a key that keep the originals of these series. Needs no key: the names follow from the pseudonyms."""
    folder = key_path.with_name(key_path.name + ENDING)
    names = sorted(map(_name, pseudonyms))
    return [path for name in names for path in sorted((folder / name[:2]).glob(f"{name}-*"))]


def _name(pseudonym: str) -> str:
    return hashlib.sha256(pseudonym.encode()).hexdigest()[:NAME_DIGITS]


def _referred(ds: Dataset) -> set[str]:
    """The UIDs by which an object hangs on others: its study and frame of reference, the series and instances that it refers to."""
    found = {str(ds.get(name)) for name in ("StudyInstanceUID", "FrameOfReferenceUID") if ds.get(name)}

    def walk(inner: Any) -> None:
        for element in inner:
            if element.VR == "SQ":
                for item in element.value:
                    walk(item)
            elif element.keyword == "ReferencedSOPInstanceUID" or (element.keyword == "SeriesInstanceUID" and inner is not ds):
                found.add(str(element.value))

    walk(ds)
    return found


def _rename(ds: Any, uids: Mapping[str, str]) -> None:
    for element in ds:
        if element.VR == "SQ":
            for item in element.value:
                _rename(item, uids)
        elif element.VR == "UI" and isinstance(element.value, str) and element.value in uids:
            element.value = uids[element.value]
