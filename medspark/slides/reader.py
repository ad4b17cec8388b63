"""Opening a slide: our own readers where they can address the file's tiles, OpenSlide for everything else."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from medspark.config import Guard
from medspark.errors import Rejected
from medspark.slides.slide import WHITE, Level, NotOurs, Slide, checked_region

__all__ = ["Level", "OpenSlideSlide", "Slide", "open_slide"]

BLOCK_PX = 4096  # side of the pieces asked of OpenSlide: its RGBA picture is 64 MB at most
DICM_OFFSET = 128  # PS3.10 7.1: preamble, then "DICM"
_MODELS = (  # where vendors name the scanner
    "hamamatsu.Product",
    "leica.device-model",
    "mirax.NONHIERLAYER_1_SECTION.SCANNER_HARDWARE_VERSION",
    "philips.DICOM_MANUFACTURERS_MODEL_NAME",
    "ventana.ScannerModel",
    "tiff.Model",
)


def open_slide(paths: Sequence[str], guard: Guard) -> Slide:
    """The slide in one file, or in several DICOM files that are its levels.

    Raises Rejected: EMPTY_FILE; SLIDE_UNSUPPORTED (no format that we know, or one that nobody reads); SLIDE_UNREADABLE (broken); NOT_A_SLIDE
    (a single channel); TOO_LARGE. Raises SkippedSource for DICOM objects that are no slide level (labels, overviews, annotations).
    """
    if not paths:
        raise ValueError("no file")
    head = b""
    for path in paths:
        with open(path, "rb") as stream:
            head = stream.read(DICM_OFFSET + 4)
        if not head:
            raise Rejected("EMPTY_FILE", "the file has no bytes")
    if head[DICM_OFFSET:] == b"DICM":
        from medspark.slides.dicom import open_dicom

        try:
            return open_dicom(paths, guard)
        except NotOurs as why:
            return OpenSlideSlide.open(paths[0], guard, why)
    if len(paths) > 1:
        raise Rejected("SLIDE_UNSUPPORTED", "several files that are not DICOM do not make a slide")
    from medspark.slides.tiff import open_tiff

    try:
        return open_tiff(paths[0], guard)
    except NotOurs as why:
        return OpenSlideSlide.open(paths[0], guard, why)


@dataclass
class OpenSlideSlide:
    """Final. Whatever OpenSlide reads; no stored tiles, every pixel decoded and composited on white.

    A handle that raised once is dead: it is dropped, and the next read opens a new one.
    """

    path: str
    max_pixels: int
    vendor: str
    levels: tuple[Level, ...]
    mpp_um: tuple[float, float] | None
    objective_power: float | None
    bounds_l0: tuple[int, int, int, int] | None
    icc_profile: bytes | None
    properties: Mapping[str, str]
    verdict: tuple[str, ...] = ()
    facts: Mapping[str, Any] = field(default_factory=dict)
    _handle: Any = field(default=None, repr=False)

    @classmethod
    def open(cls, path: str, guard: Guard, why: NotOurs | None = None) -> OpenSlideSlide:
        """``why``: our own reader stood back, for the message when OpenSlide refuses too."""
        handle = _open_handle(path, why)
        properties = dict(handle.properties)
        return cls(
            path=path,
            max_pixels=guard.max_pixels,
            vendor=properties.get("openslide.vendor", "unknown"),
            levels=tuple(_level(handle, properties, level) for level in range(handle.level_count)),
            mpp_um=_pair(properties.get("openslide.mpp-x"), properties.get("openslide.mpp-y")),
            objective_power=_positive(properties.get("openslide.objective-power")),
            bounds_l0=_bounds(properties),
            icc_profile=_icc(handle),
            properties=properties,
            facts={"scanner_model": next((properties[name] for name in _MODELS if properties.get(name)), None)},
            _handle=handle,
        )

    def stored_jpeg(self, level: int, tile_row: int, tile_col: int) -> bytes | None:
        return None

    def stored_jpegs(self, level: int, tile_row: int, col0: int, col1: int) -> list[bytes | None]:
        return [None] * (col1 - col0)

    def stored_jp2(self, level: int, tile_row: int, tile_col: int) -> bytes | None:
        return None

    def read(self, level: int, x: int, y: int, width: int, height: int) -> np.ndarray:
        it = checked_region(self, level, width, height, self.max_pixels)
        out = np.full((height, width, 3), WHITE, np.uint8)
        x0, y0, x1, y1 = max(x, 0), max(y, 0), min(x + width, it.width_px), min(y + height, it.height_px)
        for top in range(y0, y1, BLOCK_PX):
            for left in range(x0, x1, BLOCK_PX):
                w, h = min(BLOCK_PX, x1 - left), min(BLOCK_PX, y1 - top)
                out[top - y : top - y + h, left - x : left - x + w] = self._block(level, it.downsample, left, top, w, h)
        return out

    def _block(self, level: int, downsample: float, x: int, y: int, width: int, height: int) -> np.ndarray:
        import openslide

        if self._handle is None:
            self._handle = _open_handle(self.path, None)
        try:
            # OpenSlide takes the corner in level 0: below it a ratio that is no integer shifts the picture by a fraction of a pixel.
            picture = self._handle.read_region((round(x * downsample), round(y * downsample)), level, (width, height))
        except openslide.OpenSlideError as error:
            self._handle.close()
            self._handle = None
            raise Rejected("SLIDE_UNREADABLE", f"OpenSlide cannot read a region of level {level} ({type(error).__name__})") from None
        return on_white(np.asarray(picture))

    def close(self) -> None:
        if self._handle is not None:
            self._handle.close()
            self._handle = None


def on_white(rgba: np.ndarray) -> np.ndarray:
    """(rows, cols, 3) uint8: straight-alpha (rows, cols, 4) uint8 over white, rounded."""
    alpha = rgba[..., 3:]
    if bool((alpha == 255).all()):
        return rgba[..., :3]
    weight = alpha.astype(np.uint32)
    return ((rgba[..., :3] * weight + WHITE * (255 - weight) + 127) // 255).astype(np.uint8)


def _open_handle(path: str, why: NotOurs | None) -> Any:
    import openslide

    said = f": {why.reason}" if why is not None else ""
    try:
        return openslide.OpenSlide(path)
    except openslide.OpenSlideUnsupportedFormatError:
        raise Rejected("SLIDE_UNSUPPORTED", f"no slide format that medspark or OpenSlide reads{said}") from None
    except openslide.OpenSlideError:
        if why is not None and not why.known:
            raise Rejected("SLIDE_UNSUPPORTED", f"neither medspark nor OpenSlide reads it{said}") from None
        raise Rejected("SLIDE_UNREADABLE", f"OpenSlide cannot open it{said}") from None


def _level(handle: Any, properties: Mapping[str, str], level: int) -> Level:
    width, height = handle.level_dimensions[level]
    tile = [properties.get(f"openslide.level[{level}].tile-{side}") for side in ("width", "height")]
    tile_w, tile_h = (int(side) if side else None for side in tile)
    return Level(width, height, tile_w, tile_h, float(handle.level_downsamples[level]), "other")


def _positive(text: str | None) -> float | None:
    try:
        value = float(text or "")
    except ValueError:
        return None
    return value if 0 < value < float("inf") else None


def _pair(x: str | None, y: str | None) -> tuple[float, float] | None:
    across, down = _positive(x), _positive(y)
    return None if across is None or down is None else (across, down)


def _bounds(properties: Mapping[str, str]) -> tuple[int, int, int, int] | None:
    values = [properties.get(f"openslide.bounds-{side}") for side in ("x", "y", "width", "height")]
    try:
        x, y, width, height = (int(value) for value in values if value is not None)
    except ValueError:
        return None
    return x, y, width, height


def _icc(handle: Any) -> bytes | None:
    profile = handle.color_profile
    return None if profile is None else profile.tobytes()
