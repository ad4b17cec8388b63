"""One DICOM instance -> one row of ``slices`` per frame, without what needs pixels: functional groups, spacing, rescale, verdicts."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

import numpy as np
import pydicom

from medspark.config import Config
from medspark.deid import echoes
from medspark.deid.text import harmless_code
from medspark.series import geometry, nuclear, rescale
from medspark.series.files import FOREIGN_ERRORS
from medspark.series.header import Head, frame_count, sop_class

SHARED, PER_FRAME = 0x52009229, 0x52009230
CM_UNITS = 3  # PhysicalUnitsXDirection: centimetres (PS3.3 C.8.5.5.1.15)
SPATIAL_2D = 1  # RegionSpatialFormat: a two-dimensional image, no trace or spectrum
SPACING_EQUAL = 1e-6  # relative: PixelSpacing written as a copy of ImagerPixelSpacing is the detector's (PS3.3 10.7.1.1)
SECONDARY_CLASSES = "1.2.840.10008.5.1.4.1.1.7"  # Secondary Capture and its multi-frame variants (7.1 to 7.4)
SCREEN_TYPES = frozenset({"SCREEN SAVE", "SCREENSAVE", "SCREEN CAPTURE", "SCREEN", "CAPTURE", "SECONDARY CAPTURE"})
MOSAIC = "MOSAIC"  # in ImageType: Siemens tiles the slices of one volume into one image
HEAD_PARTS = frozenset({"HEADNECK", "HEAD_NECK", "HEADANDNECK", "IAC", "JAW", "TMJ", "MAXILLA", "MANDIBLE", "WHOLEBODY", "WHOLE BODY"})
HEAD_WORDS = re.compile(
    r"\b(head|brain|skull|cranial|cranium|neuro|face|facial|orbits?|sinus(es)?|kopf|sch(ae|ä)del|cerebral|crane)\b", re.IGNORECASE
)
VIEWS = {
    code: view
    for view, codes in {
        "AP": "399348003 R-10206",
        "PA": "272479007 R-40888 R-10214",
        "LL": "399173006 R-10236",
        "RL": "399198007 R-10232",
        "CC": "399162004 R-10242",
        "MLO": "399368009 R-10226",
        "ML": "399260004 R-10224",
        "LM": "399352003 R-10228",
        "LMO": "399099002 R-10230",
        "XCCL": "399192008 R-1024A",
        "XCCM": "399101009 R-1024B",
        "FB": "399196006 R-10244",
        "SIO": "399188001 R-102D0",
        "ISO": "441555000 R-40AAA",
    }.items()
    for code in codes.split()
}
"""ViewPosition for the codes of a view in SCT and SRT."""
CODES = ("laterality", "view_position", "voi_lut_function", "value_unit")
NOT_SPLIT = 86_400_000 / 2  # an acquisition more than half a day "before" its series started after midnight


@dataclass(frozen=True)
class Frame:
    """What differs between the frames of an instance: columns of ``slices``, the padding and LUT that measure it, its verdicts."""

    columns: dict[str, Any]
    orientation: tuple[float, ...] | None
    padding: tuple[int, int] | None
    lut: np.ndarray | None
    lut_first: int
    verdict: tuple[str, ...]


def frames(head: Head, settings: Config) -> list[Frame]:
    """The frames of an instance in file order, frame_number from 1."""
    common, verdict = _common(head), _verdicts(head)
    count = frame_count(head)
    shared, each = head.item(SHARED), head.items(PER_FRAME)
    if not each and shared is None:
        return [_coded(frame, settings, head) for frame in _plain_frames(head, common, verdict, count)]
    if len(each) < count:  # fewer groups than frames: the last ones have only what is shared
        each += [Head(pydicom.Dataset())] * (count - len(each))
    found = []
    for number, own in enumerate(each[:count], 1):
        columns = {**common, **_functional(head, shared, own), "frame_number": number}
        found.append(_coded(_finish(head, columns, verdict), settings, head))
    return found


def _coded(frame: Frame, settings: Config, head: Head) -> Frame:
    """Code strings that do not look like codes are dropped when the profile says so; rules (localiser, HU) have seen them before."""
    if settings.deid.profile == "basic":
        columns, echo = frame.columns, echoes(head.dataset)

        def harmless(text: str) -> bool:
            return harmless_code(text) and (echo is None or not echo.search(text))

        for name in CODES:
            value = columns[name]
            if value is not None and not harmless(value):
                columns[name] = None
        columns["image_type"] = [part for part in columns["image_type"] if harmless(part)]
        for name in ("modality", "photometric"):
            if not harmless(columns[name]):
                columns[name] = "OT" if name == "modality" else "MONOCHROME2"
    return frame


def _plain_frames(head: Head, common: dict[str, Any], verdict: tuple[str, ...], count: int) -> list[Frame]:
    columns = {
        **common,
        **_spacing(head),
        **_rescale(head),
        "frame_number": 1,
        "image_type": [part for part in head.texts(0x00080008)],
        "image_position_mm": head.floats(0x00200032),
        "image_orientation": head.floats(0x00200037),
        "slice_thickness_mm": positive(head.real(0x00180050)),
        "time_ms": _time_ms(head),
        "echo_time_ms": head.real(0x00180081),
        "b_value": _b_value(head),
        "cardiac_phase_pct": head.double(0x00209241),
        "temporal_position": head.real(0x00200100),
        "acquisition_number": head.whole(0x00200012),
        "laterality": head.text(0x00200062) or head.text(0x00200060),
        "window_center": head.floats(0x00281050),
        "window_width": head.floats(0x00281051),
        "voi_lut_function": head.text(0x00281056),
    }
    first = _finish(head, columns, verdict)
    own = nuclear.frame_columns(head, count) if common["modality"] == "NM" else None
    if count == 1 and own is None:
        return [first]
    offsets, times = head.floats(0x3004000C), _frame_times_ms(head, count)
    found = []
    for index in range(count):
        moved = {**columns, "frame_number": index + 1}
        if count > 1:
            moved["image_position_mm"] = None
        origin = first.columns["image_position_mm"]
        if offsets is not None and len(offsets) == count and first.orientation is not None and origin is not None:
            axis = geometry.normal(first.orientation)  # RT dose: planes along the normal (PS3.3 C.8.8.3.2)
            moved["image_position_mm"] = [origin[place] + axis[place] * (offsets[index] - offsets[0]) for place in range(3)]
        if times is not None:
            moved["time_ms"] = times[index]
        if own is not None:
            moved.update(own[index])
        found.append(_finish(head, moved, verdict))
    return found


def _frame_times_ms(head: Head, count: int) -> list[float] | None:
    """When the frames of a loop began: by FrameTimeVector (from frame to frame, the first is 0), else by FrameTime (PS3.3 C.7.6.5)."""
    if count == 1:
        return None
    steps = head.floats(0x00181065)
    if steps is not None and len(steps) == count:
        return [float(value) for value in np.cumsum([0.0, *steps[1:]])]
    step = head.real(0x00181063)
    return None if step is None else [step * index for index in range(count)]


def _finish(head: Head, columns: dict[str, Any], verdict: tuple[str, ...]) -> Frame:
    """Checks the geometry, derives position, unit and verdicts; ``image_position_mm`` stays null without an orientation's normal."""
    modality = columns["modality"]
    orientation = geometry.unit_orientation(columns["image_orientation"])
    image_position = columns["image_position_mm"]
    if image_position is not None and len(image_position) != 3:
        image_position = columns["image_position_mm"] = None
    if orientation is None:
        columns["image_orientation"] = None
    codes = list(verdict)
    columns["position_mm"] = None
    if orientation is not None and image_position is not None:
        columns["position_mm"] = geometry.position_mm(image_position, orientation)
    elif modality in ("CT", "MR"):
        codes.append("NO_POSITION")
    lut, lut_first = _modality_lut(head)
    if lut is not None:
        columns["modality_lut"] = rescale.pack_lut(lut, lut_first)
    else:
        columns["modality_lut"] = None
    slope, intercept, unit = columns["rescale_slope"], columns["rescale_intercept"], columns["value_unit"]
    grey = columns["photometric"].startswith("MONOCHROME")  # a scanner's report is a colour picture of modality CT
    columns["is_hu"] = grey and rescale.is_hu(modality, columns["image_type"], sop_class(head), slope, intercept, unit)
    if columns["is_hu"]:
        columns["value_unit"] = "HU"
    elif unit is None and modality == "PT":
        columns["value_unit"] = head.text(0x00541001)
    if modality == "CT" and (slope is None or intercept is None) and lut is None:
        codes.append("NO_RESCALE")
    padding = None
    if columns["padding_value"] is not None:
        limit = columns["padding_range_limit"]
        padding = (columns["padding_value"], columns["padding_value"] if limit is None else limit)
        if rescale.padding_doubtful(columns["padding_value"], limit, columns["bits_stored"], columns["pixel_representation"]):
            codes.append("PADDING_DOUBT")
    return Frame(columns, orientation, padding, lut, lut_first, tuple(codes))


def _view(head: Head) -> str | None:
    """ViewPosition, else the defined term for the code of ViewCodeSequence (PS3.3 C.8.11.5, C.8.11.7; PS3.16 CID 4010, 4014)."""
    said = head.text(0x00185101)
    if said:
        return said
    coded = head.item(0x00540220)
    return VIEWS.get(coded.text(0x00080100) or "") if coded is not None else None


def _common(head: Head) -> dict[str, Any]:
    """Columns that all frames share."""
    bits = head.short(0x00280100) or 8
    stored = head.short(0x00280101) or bits
    high = head.short(0x00280102)
    signed = 1 if head.short(0x00280103) == 1 else 0
    padding, limit = head.short(0x00280120), head.short(0x00280121)
    return {
        **dict.fromkeys(nuclear.COLUMNS),
        "modality": head.text(0x00080060) or "OT",
        "rows": head.short(0x00280010) or 0,
        "cols": head.short(0x00280011) or 0,
        "instance_number": head.whole(0x00200013),
        "photometric": head.text(0x00280004) or "MONOCHROME2",
        "bits_stored": stored,
        "high_bit": stored - 1 if high is None else high,
        "pixel_representation": signed,
        "padding_value": None if padding is None else rescale.signed_value(padding, signed, 16 if padding < 1 << 16 else 32),
        "padding_range_limit": None
        if limit is None or padding is None
        else rescale.signed_value(limit, signed, 16 if limit < 1 << 16 else 32),
        "view_position": _view(head),
    }


def _functional(head: Head, shared: Head | None, own: Head) -> dict[str, Any]:
    """Columns from a frame's functional groups: its own ones before the shared, the top level last (PS3.3 C.7.6.16)."""

    def group(tag: int) -> Head | None:
        return own.item(tag) or (shared.item(tag) if shared is not None else None)

    measures, plane, turn = group(0x00289110), group(0x00209113), group(0x00209116)
    content, cardiac, voi = group(0x00209111), group(0x00189118), group(0x00289132)
    echo, diffusion, temporal = group(0x00189114), group(0x00189117), group(0x00209310)
    kind = group(0x00189226) or group(0x00189329) or group(0x00189751)
    anatomy, transform = group(0x00209071), group(0x00289145)
    seconds = temporal.double(0x0020930D) if temporal else None
    delay = cardiac.double(0x00209153) if cardiac else None
    return {
        **_spacing(measures or head),
        **_rescale(transform or head),
        "image_type": (kind.texts(0x00080008) or kind.texts(0x00089007)) if kind else head.texts(0x00080008),
        "image_position_mm": plane.floats(0x00200032) if plane else None,
        "image_orientation": turn.floats(0x00200037) if turn else None,
        "slice_thickness_mm": positive((measures or head).real(0x00180050)),
        "time_ms": delay if delay is not None else seconds * 1000.0 if seconds is not None else None,
        "echo_time_ms": echo.double(0x00189082) if echo else head.real(0x00180081),
        "b_value": diffusion.double(0x00189087) if diffusion else None,
        "cardiac_phase_pct": cardiac.double(0x00209241) if cardiac else None,
        "temporal_position": _float(content.short(0x00209128)) if content else None,
        "acquisition_number": content.short(0x00209156) if content else head.whole(0x00200012),
        "laterality": (anatomy.text(0x00209072) if anatomy else None) or head.text(0x00200062) or head.text(0x00200060),
        "window_center": (voi or head).floats(0x00281050),
        "window_width": (voi or head).floats(0x00281051),
        "voi_lut_function": (voi or head).text(0x00281056),
    }


def _spacing(head: Head) -> dict[str, Any]:
    """Pixel spacing with where it comes from; a PixelSpacing that merely repeats the detector's or the film's is that one (PS3.3 10.7.1.1)."""
    image, calibrated = _pair(head.floats(0x00280030)), head.text(0x00280A02)
    others = {"ImagerPixelSpacing": _pair(head.floats(0x00181164)), "NominalScannedPixelSpacing": _pair(head.floats(0x00182010))}
    for source, other in others.items():
        copied = image is not None and other is not None and all(abs(a - b) <= SPACING_EQUAL * b for a, b in zip(image, other, strict=True))
        if other is not None and (image is None or (copied and not calibrated)):
            return {"pixel_spacing_mm": other if image is None else image, "pixel_spacing_source": source}
    if image is not None:
        return {"pixel_spacing_mm": image, "pixel_spacing_source": "PixelSpacing"}
    found: set[tuple[float, float] | None] = set()
    for region in head.items(0x00186011):
        if region.short(0x00186012) != SPATIAL_2D:
            continue
        down, right = region.double(0x0018602E), region.double(0x0018602C)
        if region.short(0x00186024) != CM_UNITS or region.short(0x00186026) != CM_UNITS or not down or not right:
            found.add(None)
            continue
        size = (abs(down) * 10.0, abs(right) * 10.0)
        near = [known for known in found if known and all(abs(a - b) <= SPACING_EQUAL * b for a, b in zip(size, known, strict=True))]
        found.add(near[0] if near else size)
    scale = found.pop() if len(found) == 1 else None  # several regions of different scale have no one spacing
    if scale is not None:
        return {"pixel_spacing_mm": list(scale), "pixel_spacing_source": "us_region"}
    return {"pixel_spacing_mm": None, "pixel_spacing_source": None}


def _pair(values: list[float] | None) -> list[float] | None:
    return values if values is not None and len(values) == 2 and values[0] > 0 and values[1] > 0 else None


def positive(value: float | None) -> float | None:
    """A size or a dose: 0 and less mean not told."""
    return value if value is not None and value > 0 else None


def _float(value: int | None) -> float | None:
    return None if value is None else float(value)


def _rescale(head: Head) -> dict[str, Any]:
    slope = head.real(0x00281053) or None  # a slope of 0 would make every value the same: not told
    return {"rescale_slope": slope, "rescale_intercept": head.real(0x00281052), "value_unit": head.text(0x00281054)}


def _modality_lut(head: Head) -> tuple[np.ndarray | None, int]:
    """(entries, first mapped stored value) of the Modality LUT Sequence (PS3.3 C.11.1), or (None, 0)."""
    if 0x00283000 not in head.elements:
        return None, 0
    item = head.item(0x00283000)
    if item is None:
        return None, 0
    try:
        descriptor = item.dataset[0x00283002].value
        data = item.dataset[0x00283006].value
        count, first, bits = (int(number) for number in descriptor)
    except FOREIGN_ERRORS:
        return None, 0
    count = count & 0xFFFF or 1 << 16  # 0 stands for 65,536
    if isinstance(data, bytes):
        entries = np.frombuffer(data, "<u2" if bits > 8 or len(data) >= 2 * count else "u1").astype(np.uint16)
    else:
        entries = np.asarray(data, np.int64).astype(np.uint16)
    if len(entries) < count:
        return None, 0
    signed = head.short(0x00280103) == 1
    return entries[:count], rescale.signed_value(first, int(signed))


def _b_value(head: Head) -> float | None:
    """DiffusionBValue, else the vendors' private elements."""
    value = head.double(0x00189087)
    if value is None and (head.text(0x00190010) or "").startswith("SIEMENS MR HEADER"):
        value = head.real(0x0019100C)
    if value is None and (head.text(0x00430010) or "") == "GEMS_PARM_01":
        value = head.real(0x00431039)
        value = None if value is None else value % 1e9  # GE adds 10^9 to multi-direction values
    if value is None and (head.text(0x20010010) or "") == "Philips Imaging DD 001":
        value = head.real(0x20011003)
    return value


def seconds_of_day(text: str | None) -> float | None:
    """A TM value (HHMMSS.FFFFFF, shortened on the right) or the time part of a DT, as seconds."""
    if not text:
        return None
    text = text.replace(":", "")
    match = re.fullmatch(r"(\d{2})(\d{2})?(\d{2})?(\.\d+)?", text)
    if not match:
        return None
    return int(match[1]) * 3600.0 + int(match[2] or 0) * 60.0 + int(match[3] or 0) + float(match[4] or 0)


def _time_ms(head: Head) -> float | None:
    """Trigger time, else the frame reference time, else the acquisition's time since the series' start."""
    for tag in (0x00181060, 0x00541300):
        value = head.real(tag)
        if value is not None:
            return value
    acquired, started = seconds_of_day(head.text(0x00080032)), seconds_of_day(head.text(0x00080031))
    if acquired is None or started is None:
        return None
    since = round((acquired - started) * 1000.0, 3)
    return since + 2 * NOT_SPLIT if since < -NOT_SPLIT else since


def _verdicts(head: Head) -> tuple[str, ...]:
    """Verdicts that need only the instance's header."""
    codes = []
    modality, said = head.text(0x00080060) or "", (head.text(0x00280301) or "").upper()
    kinds = {value.upper() for value in head.texts(0x00080008)}
    if said == "YES":
        codes.append("BURNED_IN")
    elif said != "NO":
        what = sop_class(head)
        captured = what == SECONDARY_CLASSES or what.startswith(SECONDARY_CLASSES + ".") or bool(kinds & SCREEN_TYPES)
        if modality in ("US", "IVUS", "SC") or captured or head.text(0x00080064) is not None:
            codes.append("BURNED_IN_POSSIBLE")
    if MOSAIC in kinds:
        codes.append("MOSAIC")
    recognisable = (head.text(0x00280302) or "").upper()
    if modality in ("CT", "MR") and recognisable != "NO" and (recognisable == "YES" or _is_head(head)):
        codes.append("FACE_RECOGNISABLE")
    return tuple(codes)


def _is_head(head: Head) -> bool:
    part = (head.text(0x00180015) or "").upper()
    if part:
        return part in HEAD_PARTS or HEAD_WORDS.search(part) is not None
    return any(HEAD_WORDS.search(head.text(tag) or "") for tag in (0x0008103E, 0x00081030, 0x00181030))
