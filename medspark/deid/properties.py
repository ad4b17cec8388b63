"""Properties of slide files and header fields of NIfTI files: what of them may be stored.

Both are allow-lists. Slide formats have no confidentiality profile; their makers put user names, dates, bar codes and file names beside the
pixel size, under keys that change with the scanner's software. So a property is kept only when its key is known to be technical *and* its
value looks like a measure or a technical word.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from medspark.deid.text import clean_text, technical_text

_TECHNICAL_KEYS = re.compile(
    r"""
    openslide\.(mpp-[xy]|vendor|objective-power|level-count|bounds-(x|y|width|height)|background-color|icc-size)
    | openslide\.level\[\d+\]\.(width|height|downsample|tile-width|tile-height)
    | openslide\.region\[\d+\]\.(x|y|width|height)
    | aperio\.(MPP|AppMag|StripeWidth|Exposure\sTime|Exposure\sScale|Gamma|Left|Top|LineCameraSkew|LineAreaXOffset|LineAreaYOffset
        |Focus\sOffset|DisplayColor|Display\sColor|OriginalWidth|OriginalHeight|Originalheight|Filtered|ICC\sProfile
        |Parmset|SessonMode|SessionMode|Total\sNumber\sof\sLevels)
    | hamamatsu\.(SourceLens|XOffsetFromSlideCentre|YOffsetFromSlideCentre|ZOffsetFromSlideCentre|SlideCentreOffset|NDPI\.?\w*Size
        |Objective\.Lens\.Magnificant|PhysicalWidth|PhysicalHeight|PhysicalMacroWidth|PhysicalMacroHeight|LayerSpacing|LayerOffset
        |Cam[XY]?Res\w*|XOffset|YOffset|NoLayers|NoFocalPlanes|FocalPlanes|Resolution|SlideFocus|Product|ScannerModel)
    | leica\.(objective|aperture|device-model|illumination-source|numerical-aperture)
    | mirax\.(GENERAL\.(OBJECTIVE_MAGNIFICATION|CAMERA_TYPE|IMAGENUMBER_[XY]|CURRENT_SLIDE_VERSION|SLIDE_QUALITY|OBJECTIVE_NAME)
        |NONHIERLAYER_\d+_SECTION\.(QUALITY|\w*PIXEL\w*)|LAYER_0_LEVEL_\d+_SECTION\.(MICROMETER_PER_PIXEL_[XY]|IMAGE_FORMAT
        |IMAGE_COMPRESSION_FACTOR|DIGITIZER_WIDTH|DIGITIZER_HEIGHT|OVERLAP_[XY]))
    | ventana\.(Magnification|ScanRes|Z-layers|Z-spacing|Focus-Mode|Focus-Quality|ScanWhitePoint|ScannerModel|JPEG\d*-?Quality|JP2FileQuality
        |WebCam\w*|BandWidth)
    | philips\.(DICOM_(PIXEL_SPACING|BITS_ALLOCATED|BITS_STORED|HIGH_BIT|PIXEL_REPRESENTATION|SAMPLES_PER_PIXEL|LOSSY_IMAGE_COMPRESSION
        |LOSSY_IMAGE_COMPRESSION_RATIO|LOSSY_IMAGE_COMPRESSION_METHOD|PHOTOMETRIC_INTERPRETATION|PLANAR_CONFIGURATION|MANUFACTURER
        |MANUFACTURERS_MODEL_NAME|SOFTWARE_VERSIONS))
    | trestle\.(Objective\sPower|OverlapsXY|Background\sColor|White\sBalance)
    | zeiss\.(Information\.Image\.(Size[XYZCSTM]|PixelType|ComponentBitCount)|Information\.Instrument\.Objectives\.\w+(\.\w+)*Magnification
        |Information\.Instrument\.Objectives\.\w+(\.\w+)*LensNA)
    | tiff\.(XResolution|YResolution|ResolutionUnit|Make|Model|Software|ImageWidth|ImageLength|TileWidth|TileLength|Compression
        |PhotometricInterpretation|BitsPerSample|SamplesPerPixel|JPEGQuality)
    | dicom\.(Modality|Manufacturer|ManufacturerModelName|SoftwareVersions|ImageType(\[\d\])?|Rows|Columns|NumberOfFrames
        |PlanarConfiguration|DimensionOrganizationType|TransferSyntaxUID|SOPClassUID|ImageOrientationSlide\[\d\]|VolumetricProperties
        |PhotometricInterpretation|SamplesPerPixel|BitsAllocated
        |BitsStored|HighBit|PixelRepresentation|LossyImageCompression|LossyImageCompressionRatio|LossyImageCompressionMethod|FocusMethod
        |ExtendedDepthOfField|ImagedVolumeWidth|ImagedVolumeHeight|ImagedVolumeDepth|TotalPixelMatrixColumns|TotalPixelMatrixRows
        |OpticalPathSequence\[\d+\]\.(ObjectiveLensPower|ObjectiveLensNumericalAperture|IlluminationWaveLength|CondenserLensPower)
        |SharedFunctionalGroupsSequence\[\d+\]\.PixelMeasuresSequence\[\d+\]\.(PixelSpacing(\[\d\])?|SliceThickness))
    | (quality|compression|mpp|mpp-x|mpp-y|objective-power|scanner-model)
    """,
    re.VERBOSE,
)
"""Keys as OpenSlide writes them (its documentation, "Properties", and the vendors' files); never users, dates, times, bar codes, titles, file
names, image numbers, serial numbers, scanner or host names, comments, or free XML."""

_NIFTI_TEXT = {"descrip"}  # cleaned; every other text field (db_name, aux_file, intent_name, data_type, magic, extensions) is dropped
_NIFTI_DROPPED = {"db_name", "aux_file", "intent_name", "data_type", "extents", "session_error", "extensions", "extension", "magic"}
MAX_NUMBERS = 64  # a NIfTI-1/2 header has no array above 8; more is an extension in disguise


def keep_slide_properties(raw: Mapping[str, str]) -> dict[str, str]:
    """The technical properties among ``raw`` (keys as OpenSlide names them), sorted by key.

    A kept key's value must still pass `medspark.deid.text.technical_text`: no date, e-mail, long number or personal title.
    ``openslide.quickhash-1`` is left out although it is technical: it finds the original file.
    """
    kept: dict[str, str] = {}
    for key in sorted(raw):
        if not _TECHNICAL_KEYS.fullmatch(key):
            continue
        value = str(raw[key]).strip()
        if _is_number(value) or technical_text(value):
            kept[key] = value
    return kept


def nifti_header_json(fields: Mapping[str, Any], profile: str) -> str:
    """A NIfTI header's fields as compact JSON, keys sorted.

    fields : mapping
        Field name -> scalar, array or bytes, as nibabel's ``header.items()``.
    profile : {"basic", "none"}
        ``basic`` keeps the numbers and a cleaned ``descrip``; ``none`` keeps the texts too (never extensions or raw bytes above 256).
    Numbers that JSON cannot write (NaN, infinite) become null.
    """
    out: dict[str, Any] = {}
    for name in sorted(fields):
        value = _plain(fields[name])
        if isinstance(value, str):
            text: str | None = value if profile == "none" and name not in {"extensions", "extension"} else None
            if profile != "none" and name in _NIFTI_TEXT:
                text = clean_text(value)
            if text:
                out[name] = text[:256]
        elif value is not None and (profile == "none" or name not in _NIFTI_DROPPED):
            out[name] = value
    return json.dumps(out, ensure_ascii=False, allow_nan=False, separators=(",", ":"))


def _is_number(value: str) -> bool:
    try:
        return math.isfinite(float(value)) and len(value) <= 24
    except ValueError:
        return False


def _plain(value: Any) -> Any:
    """str, int, float, or a nested list of them; None for anything else."""
    if isinstance(value, np.ndarray):
        if value.dtype.kind in "SU":
            return _plain(value.item()) if value.size == 1 else None
        return _numbers(value.tolist()) if value.dtype.kind in "iufb" and value.size <= MAX_NUMBERS else None
    if isinstance(value, np.generic):
        return _plain(value.item())
    if isinstance(value, bytes):
        return value.split(b"\0")[0].decode("utf-8", "replace").strip()
    if isinstance(value, str):
        return value.split("\0")[0].strip()
    if isinstance(value, (list, tuple)):
        is_numbers = len(value) <= MAX_NUMBERS and all(isinstance(item, (int, float, np.number)) for item in value)
        return _numbers(list(value)) if is_numbers else None
    return _numbers(value) if isinstance(value, (int, float)) else None


def _numbers(value: Any) -> Any:
    if isinstance(value, list):
        return [_numbers(item) for item in value]
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, bool):
        return int(value)
    if isinstance(value, int):
        return value
    return value if isinstance(value, float) and math.isfinite(value) else None
