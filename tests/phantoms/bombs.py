"""Files that are small on disk and would not be in memory."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path


def deflated(path: Path, sop_class: str, n_bytes: int, instance: str = "1.2.3") -> Path:
    """A DICOM file in Deflated Explicit VR Little Endian whose PixelData are ``n_bytes`` zeros.

    instance : MediaStorageSOPInstanceUID, as long as one likes: the transfer syntax stands behind it
    """

    def element(group: int, number: int, kind: bytes, value: bytes) -> bytes:
        value += b"\0" * (len(value) % 2)
        return struct.pack("<HH2sH", group, number, kind, len(value)) + value

    meta = element(2, 2, b"UI", sop_class.encode()) + element(2, 3, b"UI", instance.encode())
    meta += element(2, 0x10, b"UI", b"1.2.840.10008.1.2.1.99")
    body = element(8, 0x16, b"UI", sop_class.encode()) + element(8, 0x18, b"UI", b"1.2.3") + element(8, 0x60, b"CS", b"SM")
    packer = zlib.compressobj(9, zlib.DEFLATED, -zlib.MAX_WBITS)
    packed = packer.compress(body + struct.pack("<HH2sHI", 0x7FE0, 0x10, b"OB", 0, n_bytes) + bytes(n_bytes)) + packer.flush()
    path.write_bytes(bytes(128) + b"DICM" + element(2, 0, b"UL", struct.pack("<I", len(meta))) + meta + packed)
    return path
