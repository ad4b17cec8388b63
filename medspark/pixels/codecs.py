"""The codecs of the table ``pixels`` (contract.md §4). ``decode(encode(a)) == a`` for the lossless ones, bit by bit and byte by byte."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any

import numpy as np

BLOSC2_MAX_BYTES = (1 << 31) - 33  # a blosc2 chunk's own limit (BLOSC2_MAX_BUFFERSIZE)
TURBO_MAX_SIDE = 65_500  # JPEG's own limit is 65,535; libjpeg refuses more than JPEG_MAX_DIMENSION


def encode(array: np.ndarray, codec: str, params: Mapping[str, str] | None = None) -> bytes:
    """The payload of one image.

    array : (rows, cols) or (rows, cols, channels)    uint8 for jpeg; uint8 or uint16 for png; any for blosc2
    codec : "jpeg" | "blosc2" | "png" | "jp2"
    params : jpeg takes {"quality": "1".."100"} (80)
    Raises ValueError for an unknown codec or a dtype that the codec cannot hold.
    """
    params = params or {}
    if codec == "blosc2":
        return _blosc2_encode(np.ascontiguousarray(array))
    if codec == "jpeg":
        import simplejpeg

        if array.dtype != np.uint8:
            raise ValueError(f"jpeg holds uint8, not {array.dtype}")
        quality = int(params.get("quality", 80))
        if array.ndim == 2:
            return simplejpeg.encode_jpeg(np.ascontiguousarray(array[..., None]), quality, "GRAY")
        return simplejpeg.encode_jpeg(np.ascontiguousarray(array), quality, "RGB", "420")
    if codec == "png":
        import imagecodecs

        if array.dtype not in (np.uint8, np.uint16):
            raise ValueError(f"png holds uint8 or uint16, not {array.dtype}")
        return bytes(imagecodecs.png_encode(np.ascontiguousarray(array), level=1))
    if codec == "jp2":
        import imagecodecs

        return bytes(imagecodecs.jpeg2k_encode(np.ascontiguousarray(array), reversible=True, codecformat="j2k"))
    raise ValueError(f"unknown codec {codec!r}")


def decode(data: bytes, codec: str, dtype: str, shape: Sequence[int], params: Mapping[str, str] | None = None) -> np.ndarray:
    """The array that a row of ``pixels`` holds; raises ValueError when the bytes do not give exactly ``dtype`` and ``shape``.

    Returns (rows, cols) or (rows, cols, 3), stored values: before rescale, MONOCHROME1 not inverted, colour as RGB.
    """
    wanted = tuple(int(side) for side in shape)
    if codec == "blosc2":
        import blosc2

        array = np.frombuffer(blosc2.decompress(data), np.dtype(dtype))
        if array.size != int(np.prod(wanted)):
            raise ValueError(f"payload holds {array.size} values, shape {wanted} needs {int(np.prod(wanted))}")
        return array.reshape(wanted)
    if codec == "jpeg":
        array = decode_jpeg(data, gray=len(wanted) == 2)
    elif codec == "png":
        import imagecodecs

        array = imagecodecs.png_decode(data)
    elif codec == "jp2":
        import imagecodecs

        array = imagecodecs.jpeg2k_decode(data)
        if (params or {}).get("colour") == "ycbcr":  # Aperio 33003: the codestream's components are Y, Cb, Cr
            array = ycbcr_to_rgb(array)
    elif codec.startswith("dicom:"):
        from medspark.pixels.codestream import decode_frame

        array = decode_frame(data, codec.removeprefix("dicom:"), dtype, wanted, params or {})
    else:
        raise ValueError(f"unknown codec {codec!r}")
    if array.shape != wanted or array.dtype != np.dtype(dtype):
        raise ValueError(f"payload decodes to {array.dtype}{array.shape}, the row says {dtype}{wanted}")
    return array


def decode_jpeg(data: bytes, gray: bool = False) -> np.ndarray:
    """(rows, cols, 3) or, ``gray``, (rows, cols) uint8 by libjpeg-turbo's exact integer DCT; ValueError when the stream is broken."""
    import simplejpeg

    array = simplejpeg.decode_jpeg(data, "GRAY" if gray else "RGB", fastdct=False, fastupsample=False)
    return array[..., 0] if gray else array


def ycbcr_to_rgb(array: np.ndarray) -> np.ndarray:
    """(rows, cols, 3) uint8, full-range BT.601 (JFIF 1.02; DICOM PS3.3 C.7.6.3.1.2 YBR_FULL), rounded half up as libjpeg does."""
    y, cb, cr = (array[..., place].astype(np.int32) for place in range(3))
    cb, cr = cb - 128, cr - 128
    half = 1 << 15
    red = y + ((91881 * cr + half) >> 16)
    green = y + ((-22554 * cb - 46802 * cr + half) >> 16)
    blue = y + ((116130 * cb + half) >> 16)
    return np.stack([red, green, blue], axis=-1).clip(0, 255).astype(np.uint8)


@lru_cache(maxsize=16)
def _cparams(typesize: int) -> dict[str, Any]:
    import blosc2

    # One thread: several would split the buffer by the number of cores and give other bytes on another machine.
    return {"codec": blosc2.Codec.ZSTD, "clevel": 1, "filters": [blosc2.Filter.SHUFFLE], "typesize": typesize, "nthreads": 1}


def _blosc2_encode(array: np.ndarray) -> bytes:
    import blosc2

    if array.nbytes > BLOSC2_MAX_BYTES:
        raise ValueError(f"one image of {array.nbytes} bytes exceeds blosc2's chunk limit")
    return bytes(blosc2.compress2(array, **_cparams(array.dtype.itemsize)))
