"""A slide of a few thousand pixels out of the real histology picture that scikit-image ships, with outlines of its brown stain.

The picture (colon, immunohistochemistry, 512 x 512 px, ``skimage/data/ihc.png``) is mirrored edge to edge inside the outline of a piece of
tissue on white, and written as a pyramid as Aperio's scanners do: tiled JPEG, Aperio's description. Its true pixel size is not stated by
scikit-image; 0.5 µm is assumed. The outlines are colour thresholds, not a diagnosis.
"""

from __future__ import annotations

import json
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

NAME = "histology"
MPP_UM = 0.5
WIDTH, HEIGHT = 3072, 2560
TILE = 256
QUALITY = 85
GLASS = 243  # grey of empty glass: scanners keep white just below saturation
REDUCE = 4  # outlines are traced at a quarter of the size: cells merge to glands
DAB_THRESHOLD = 0.025  # diaminobenzidine in skimage's HED: stroma lies at 0.003, glands at 0.09 (chosen by eye on their rims)
MIN_AREA_PX = 6000.0  # at level 0; smaller islands and holes are noise of the threshold
SIMPLIFY_PX = 3.0


def write(folder: Path) -> tuple[Path, Path]:
    """(``histology.svs``, ``histology.geojson``) in ``folder``; written once."""
    slide, outlines = folder / f"{NAME}.svs", folder / f"{NAME}.geojson"
    if not (slide.exists() and outlines.exists()):
        folder.mkdir(parents=True, exist_ok=True)
        base = picture()
        _write_svs(slide, base)
        outlines.write_text(json.dumps(_outlines(base)))
    return slide, outlines


def picture() -> np.ndarray:
    """(HEIGHT, WIDTH, 3) uint8."""
    from skimage.io import imread

    spec = find_spec("skimage")
    assert spec is not None
    assert spec.origin is not None
    real = imread(Path(spec.origin).parent / "data" / "ihc.png")[..., :3]
    pair = np.concatenate([real, real[:, ::-1]], axis=1)
    square = np.concatenate([pair, pair[::-1]], axis=0)
    rows, cols = -(-HEIGHT // square.shape[0]), -(-WIDTH // square.shape[1])
    tissue = np.tile(square, (rows, cols, 1))[:HEIGHT, :WIDTH].astype(np.float32)
    weight = _silhouette()[..., None]
    return (tissue * weight + GLASS * (1 - weight)).round().astype(np.uint8)


def _silhouette() -> np.ndarray:
    """(HEIGHT, WIDTH) float32 in 0..1: a lobed outline with a soft rim of about 8 px."""
    y, x = np.mgrid[0:HEIGHT, 0:WIDTH].astype(np.float32)
    dx, dy = (x - 0.5 * WIDTH) / (0.43 * WIDTH), (y - 0.5 * HEIGHT) / (0.42 * HEIGHT)
    angle = np.arctan2(dy, dx)
    rim = 0.86 + 0.09 * np.sin(3 * angle + 0.6) + 0.05 * np.sin(5 * angle + 2.1) + 0.02 * np.sin(17 * angle) + 0.008 * np.sin(41 * angle)
    inside = (rim - np.hypot(dx, dy)) * 0.42 * HEIGHT  # about the distance to the rim, px
    return np.clip(inside / 8 + 0.5, 0, 1)


def _write_svs(path: Path, base: np.ndarray) -> None:
    import tifffile

    about = (
        f"Aperio Image Library v12.0.15\r\n{WIDTH}x{HEIGHT} [0,0 {WIDTH}x{HEIGHT}] ({TILE}x{TILE}) JPEG/RGB Q={QUALITY}"
        f"|AppMag = 20|MPP = {MPP_UM}"
    )
    options: dict[str, Any] = {
        "photometric": "rgb",
        "tile": (TILE, TILE),
        "compression": "jpeg",
        "compressionargs": {"level": QUALITY},
        "metadata": None,
        "software": False,
    }
    with tifffile.TiffWriter(path) as writer:
        writer.write(base, description=about, **options)
        level = base
        while min(level.shape[:2]) > 2 * TILE:
            level = _halved(level)
            size = f"{level.shape[1]}x{level.shape[0]}"
            text = f"Aperio Image Library v12.0.15\r\n{WIDTH}x{HEIGHT} ({TILE}x{TILE}) -> {size} JPEG/RGB Q={QUALITY}"
            writer.write(level, description=text, subfiletype=1, **options)


def _halved(level: np.ndarray) -> np.ndarray:
    even = level[: level.shape[0] // 2 * 2, : level.shape[1] // 2 * 2].astype(np.uint16)
    return ((even[::2, ::2] + even[1::2, ::2] + even[::2, 1::2] + even[1::2, 1::2] + 2) >> 2).astype(np.uint8)


def _outlines(base: np.ndarray) -> dict[str, Any]:
    """QuPath's GeoJSON: glands that take the brown stain, and the tissue between them."""
    from skimage.color import rgb2hed
    from skimage.filters import gaussian

    small = base[: HEIGHT // REDUCE * REDUCE, : WIDTH // REDUCE * REDUCE].reshape(HEIGHT // REDUCE, REDUCE, WIDTH // REDUCE, REDUCE, 3)
    mean = small.mean(axis=(1, 3)).round().astype(np.uint8)
    tissue = _silhouette()[REDUCE // 2 :: REDUCE, REDUCE // 2 :: REDUCE] > 0.5
    density = gaussian(rgb2hed(mean)[..., 2], sigma=2)
    brown = (density > DAB_THRESHOLD) & tissue
    pale = gaussian(mean.mean(axis=-1) / 255, sigma=2) > 0.88  # lumina and tears
    between = tissue & ~brown & ~pale
    features = []
    for label, colour, mask in (("DAB-positive gland", (170, 90, 30), brown), ("stroma", (60, 90, 190), between)):
        for polygon in _polygons(mask):
            rings = [[[round(x, 1), round(y, 1)] for x, y in ring.coords] for ring in (polygon.exterior, *polygon.interiors)]
            features.append(
                {
                    "type": "Feature",
                    "geometry": {"type": "Polygon", "coordinates": rings},
                    "properties": {"objectType": "annotation", "classification": {"name": label, "color": list(colour)}},
                }
            )
    return {"type": "FeatureCollection", "features": features}


def _polygons(mask: np.ndarray) -> list[Any]:
    """Outlines with holes of a mask on the reduced grid, in level-0 pixels ((0, 0) is the corner of the first pixel)."""
    from shapely.geometry import Polygon
    from skimage.measure import find_contours

    rings = [
        Polygon((contour[:, ::-1] - 0.5) * REDUCE)  # padded by 1 and centres at +0.5
        for contour in find_contours(np.pad(mask, 1).astype(np.float32), 0.5)
        if len(contour) > 3
    ]
    rings = [ring.buffer(0) for ring in rings if ring.area >= MIN_AREA_PX]
    rings.sort(key=lambda ring: -ring.area)
    outer: list[Any] = []
    for ring in rings:  # even depth is outside, odd depth a hole; every hole lies in the ring before it
        depth = sum(other is not ring and other.area > ring.area and other.contains(ring.representative_point()) for other in rings)
        if depth % 2 == 0:
            outer.append(ring)
        else:
            outer = [one.difference(ring) if one.contains(ring.representative_point()) else one for one in outer]
    simple = [one.simplify(SIMPLIFY_PX).buffer(0) for one in outer]
    parts = [part for one in simple for part in getattr(one, "geoms", [one])]
    return [part for part in parts if part.geom_type == "Polygon" and part.area >= MIN_AREA_PX]
