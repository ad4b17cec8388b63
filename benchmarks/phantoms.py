"""Phantoms of any size: slides whose tiles look like tissue, CT series whose slices look like a head. Made once, kept in the work folder."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from benchmarks.peer import SHARED_DATA, say

TILE_PX = 256
QUALITY = 80  # gives JPEG tiles of 9 KB on average (the real slide's glass included), what scanners write
LEVELS = (1, 4, 16, 32)  # downsamples of an Aperio slide scanned at 40x
MPP_UM = 0.25
CT_PER_SERIES = 250


def jpeg_tiles() -> list[bytes]:
    """Some 350 different JPEG tiles of 256 px: cut from a real slide where one is present, turned and mirrored, else drawn."""
    import simplejpeg

    path = SHARED_DATA / "wsi" / "CMU-1-Small-Region.svs"
    image = _real(path) if path.exists() else _drawn()
    tiles = []
    step = TILE_PX
    for y in range(0, image.shape[0] - step + 1, step):
        for x in range(0, image.shape[1] - step + 1, step):
            tile = image[y : y + step, x : x + step]
            for turned in (tile, tile[::-1], tile[:, ::-1], np.rot90(tile)):
                tiles.append(simplejpeg.encode_jpeg(np.ascontiguousarray(turned), QUALITY, "RGB", "420"))
    return tiles


def _real(path: Path) -> np.ndarray:
    import openslide

    slide = openslide.OpenSlide(str(path))
    return np.asarray(slide.read_region((0, 0), 0, slide.dimensions).convert("RGB"))


def _drawn() -> np.ndarray:
    """(2048, 2048, 3) uint8: nuclei on stroma, with the grain of a camera."""
    generator = np.random.Generator(np.random.PCG64(1))
    side = 2048
    y, x = np.mgrid[0:side, 0:side]
    image = np.empty((side, side, 3), np.float32)
    image[:] = (214, 150, 190)
    image += 14 * np.sin(x / 23 + 3 * np.sin(y / 61))[..., None]
    for cx, cy, radius in generator.uniform((0, 0, 4), (side, side, 10), (6000, 3)):
        x0, x1, y0, y1 = (
            int(value) for value in (max(cx - radius, 0), min(cx + radius, side), max(cy - radius, 0), min(cy + radius, side))
        )
        inside = (x[y0:y1, x0:x1] - cx) ** 2 + (y[y0:y1, x0:x1] - cy) ** 2 < radius**2
        image[y0:y1, x0:x1][inside] = (96, 60, 130)
    image += generator.normal(0, 7, image.shape).astype(np.float32)
    return image.clip(0, 255).astype(np.uint8)


def slide(work: Path, n_rows: int, n_cols: int, number: int = 0) -> Path:
    """A pyramid of n_rows x n_cols JPEG tiles of 256 px at level 0, as an Aperio BigTIFF; every level is filled with tiles at random."""
    import tifffile

    path = work / "phantoms" / f"slide-{n_rows}x{n_cols}-{number}.svs"
    if path.exists():
        return path
    path.parent.mkdir(parents=True, exist_ok=True)
    tiles = jpeg_tiles()
    generator = np.random.Generator(np.random.PCG64([n_rows, n_cols, number]))

    def picked(count: int) -> Iterator[bytes]:
        for place in generator.integers(0, len(tiles), count).tolist():
            yield tiles[place]

    width, height = n_cols * TILE_PX, n_rows * TILE_PX
    what = f"Aperio Image Library v11.2.1 \r\n{width}x{height}|AppMag = 40|MPP = {MPP_UM}"
    partial = path.with_suffix(".part")
    with tifffile.TiffWriter(partial, bigtiff=True) as tiff:
        for downsample in LEVELS:
            rows, cols = max(1, height // downsample), max(1, width // downsample)
            count = -(-rows // TILE_PX) * -(-cols // TILE_PX)
            tiff.write(
                picked(count),
                shape=(rows, cols, 3),
                dtype=np.uint8,
                tile=(TILE_PX, TILE_PX),
                photometric="ycbcr",
                subsampling=(2, 2),
                compression=7,
                description=what,
                metadata=None,
            )
    os.replace(partial, path)
    say(f"{path.name}: {path.stat().st_size / 1e6:,.0f} MB")
    return path


def slides(work: Path, count: int, side: int) -> list[Path]:
    """``count`` different slides of side x side tiles."""
    return [slide(work, side, side, number) for number in range(count)]


def ct(work: Path, n_slices: int) -> Path:
    """A folder of CT series, 512 x 512 int16, explicit little endian, about 90 attributes a slice: a real head's slices under new UIDs.

    The pictures are rolled by some rows, which keeps their noise (and so what a codec makes of them) and makes every slice another one.
    """
    import pydicom

    folder = work / "phantoms" / f"ct-{n_slices}"
    done = folder / ".done"
    if done.exists():
        return folder
    templates = [pydicom.dcmread(path) for path in sorted((SHARED_DATA / "ct" / "ge_head_tilt").glob("*.dcm"))] or _drawn_ct()
    arrays = [template.pixel_array for template in templates]
    root = "1.2.826.0.1.3680043.8.498.77"
    for number in range(n_slices):
        series, place = divmod(number, CT_PER_SERIES)
        ds, array = templates[number % len(templates)], arrays[number % len(templates)]
        ds.SOPInstanceUID = ds.file_meta.MediaStorageSOPInstanceUID = f"{root}.1.{number + 1}"
        ds.SeriesInstanceUID, ds.StudyInstanceUID = f"{root}.2.{series + 1}", f"{root}.3.{series + 1}"
        ds.FrameOfReferenceUID, ds.PatientID = f"{root}.4.{series + 1}", f"P{series + 1:04d}"
        ds.InstanceNumber, ds.ImagePositionPatient = place + 1, [-125.0, -123.5, round(place * 1.25, 3)]
        ds.ImageOrientationPatient = [1, 0, 0, 0, 1, 0]
        ds.PixelData = np.roll(array, number % 61, axis=0).tobytes()
        path = folder / f"series{series:03d}" / f"{place:04d}.dcm"
        path.parent.mkdir(parents=True, exist_ok=True)
        ds.save_as(path, enforce_file_format=True)
    done.touch()
    say(f"{folder.name}: {n_slices} slices of {arrays[0].nbytes / 1e3:.0f} kB")
    return folder


def _drawn_ct() -> list[object]:
    """Some slices of an ellipse of water in bone, with noise, under pydicom's CT_small header grown to 512 x 512."""
    import pydicom
    from pydicom.data import get_testdata_file

    generator = np.random.Generator(np.random.PCG64(2))
    y, x = np.mgrid[-1:1:512j, -1:1:512j]
    drawn = []
    for place in range(28):
        ds = pydicom.dcmread(get_testdata_file("CT_small.dcm"))
        radius = (x / 0.7) ** 2 + (y / (0.9 - place * 0.01)) ** 2
        image = np.where(radius < 0.85, 40, np.where(radius < 1, 900, -1000)) + generator.normal(0, 12, x.shape) * (radius < 1)
        ds.Rows = ds.Columns = 512
        ds.PixelSpacing, ds.RescaleIntercept, ds.RescaleSlope = [0.5, 0.5], 0, 1
        ds.BitsStored, ds.HighBit, ds.PixelRepresentation = 16, 15, 1
        ds.PixelData = image.astype("<i2").tobytes()
        drawn.append(ds)
    return drawn
