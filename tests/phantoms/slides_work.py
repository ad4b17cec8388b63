"""Slides with known truth: stained ellipses on glass, as arrays and as tiled TIFF files with JPEG tiles."""

from __future__ import annotations

from pathlib import Path

import numpy as np

GLASS = (243, 242, 244)
HE = (176, 92, 156)


def stained(width: int, height: int, boxes: list[tuple[int, int, int, int]] | None = None, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """(height, width, 3) uint8 slide and (height, width) bool truth: an ellipse of tissue in each box (x0, y0, x1, y1)."""
    generator = np.random.Generator(np.random.PCG64(seed))
    boxes = [(width // 4, height // 4, 3 * width // 4, 3 * height // 4)] if boxes is None else boxes
    y, x = np.mgrid[0:height, 0:width] + 0.5
    truth = np.zeros((height, width), bool)
    for x0, y0, x1, y1 in boxes:
        truth |= ((x - (x0 + x1) / 2) / ((x1 - x0) / 2)) ** 2 + ((y - (y0 + y1) / 2) / ((y1 - y0) / 2)) ** 2 <= 1
    image = np.where(truth[..., None], HE, GLASS).astype(np.int16)
    image += generator.integers(-3, 4, (height, width, 1), np.int16)
    texture = generator.integers(-25, 26, (height // 8 + 1, width // 8 + 1, 1), np.int16).repeat(8, 0).repeat(8, 1)[:height, :width]
    image += texture * truth[..., None]
    return image.clip(0, 255).astype(np.uint8), truth


def halved(image: np.ndarray, levels: int) -> list[np.ndarray]:
    """A pyramid whose levels are 2 x 2 means (an odd last row or column is cut, as scanners do)."""
    pyramid = [image]
    for _ in range(levels - 1):
        last = pyramid[-1][: pyramid[-1].shape[0] // 2 * 2, : pyramid[-1].shape[1] // 2 * 2].astype(np.uint16)
        pyramid.append(((last[0::2, 0::2] + last[1::2, 0::2] + last[0::2, 1::2] + last[1::2, 1::2] + 2) // 4).astype(np.uint8))
    return pyramid


def jpeg_tiles(array: np.ndarray, tile_px: int, quality: int) -> list[bytes]:
    """Row by row; incomplete tiles are filled by repeating their last pixels, as scanners do."""
    from medspark.pixels import encode

    rows, cols = (-side % tile_px for side in array.shape[:2])
    padded = np.pad(array, ((0, rows), (0, cols), (0, 0)), mode="edge")
    places = [(y, x) for y in range(0, padded.shape[0], tile_px) for x in range(0, padded.shape[1], tile_px)]
    return [encode(padded[y : y + tile_px, x : x + tile_px], "jpeg", {"quality": str(quality)}) for y, x in places]


def write_svs(path: Path, pyramid: list[np.ndarray], tile_px: int = 256, mpp_um: float | None = 0.5, quality: int = 90) -> Path:
    """A BigTIFF that readers take for an Aperio slide: YCbCr JPEG tiles, one page per level."""
    levels = [(array.shape[:2], jpeg_tiles(array, tile_px, quality)) for array in pyramid]
    return _write(path, levels, tile_px, mpp_um)


def write_repeated(path: Path, n_rows: int, n_cols: int, jpeg: bytes, tile_px: int = 256, mpp_um: float = 0.5, n_levels: int = 1) -> Path:
    """A slide of n_rows x n_cols times the same JPEG tile, and levels of a quarter of them, for measuring speed."""
    counts = [(max(1, n_rows >> 2 * level), max(1, n_cols >> 2 * level)) for level in range(n_levels)]
    return _write(path, [((rows * tile_px, cols * tile_px), [jpeg] * (rows * cols)) for rows, cols in counts], tile_px, mpp_um)


def write_jp2(path: Path, array: np.ndarray, tile_px: int, ycbcr: bool) -> Path:
    """One level of lossless JPEG 2000 tiles as Aperio stores them: 33005 (RGB), or 33003 with Y, Cb, Cr as the codestream's own components."""
    import imagecodecs

    levels = []
    for y in range(0, array.shape[0], tile_px):
        for x in range(0, array.shape[1], tile_px):
            tile = np.ascontiguousarray(array[y : y + tile_px, x : x + tile_px])
            levels.append(bytes(imagecodecs.jpeg2k_encode(tile, reversible=True, mct=not ycbcr, codecformat="j2k")))
    return _write(path, [(array.shape[:2], levels)], tile_px, 0.5, 33003 if ycbcr else 33005)


def _write(path: Path, levels: list[tuple[tuple[int, ...], list[bytes]]], tile_px: int, mpp_um: float | None, compression: int = 7) -> Path:
    import tifffile

    height, width = levels[0][0]
    what = f"Aperio Image Library v11.2.1 \r\n{width}x{height}" + (f"|AppMag = 20|MPP = {mpp_um}" if mpp_um is not None else "")
    with tifffile.TiffWriter(path, bigtiff=True) as tiff:
        for shape, tiles in levels:
            tiff.write(
                iter(tiles),
                shape=(*shape, 3),
                dtype=np.uint8,
                tile=(tile_px, tile_px),
                photometric="ycbcr" if compression == 7 else "rgb",
                subsampling=(2, 2) if compression == 7 else None,
                compression=compression,
                description=what,
                metadata=None,
            )
    return path
