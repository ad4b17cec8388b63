"""Headers -> units of work: contiguous runs of one series, each worth a few seconds of one core. Pure; pointers travel, never pixels."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from typing import Any

from medspark.config import Config
from medspark.keys import Ids
from medspark.series import nifti
from medspark.series.header import folder_uri, series_instance_id, subject_of
from medspark.tables.rows import Rows
from medspark.tables.work import Plan, SourceFile, Unit

UNIT_S = 3.0  # seconds of work in one unit: small enough to balance, large enough that starting it costs nothing
UNIT_BYTES = 192 << 20  # decoded bytes of one unit (384 CT slices): bounds what a lost task has to do again
BASE_S = 4e-4  # opening a file and reading its header
FRAME_S = 2e-4  # a row of slices
BYTE_S = 2.6e-9  # hash, statistics and blosc2 of one decoded byte: 1.4 ms for a CT slice of 512 KB
DECODE_S = {  # seconds per decoded byte on one core, over the uncompressed rate (facts.md §3: JPEG-LS 235 slices/s of 514 KB)
    "1.2.840.10008.1.2.4.80": 8e-9,
    "1.2.840.10008.1.2.4.81": 8e-9,
    "1.2.840.10008.1.2.4.90": 3e-8,
    "1.2.840.10008.1.2.4.91": 3e-8,
    "1.2.840.10008.1.2.4.57": 1e-8,
    "1.2.840.10008.1.2.4.70": 1e-8,
    "1.2.840.10008.1.2.4.50": 4e-9,
    "1.2.840.10008.1.2.4.51": 8e-9,
    "1.2.840.10008.1.2.5": 4e-9,
}

CARRIED = ("kind", "frames", "content", "modality")
"""Keys of a header that travel to the task (``content`` is a NIfTI file's)."""


def cost_s(header: dict[str, Any]) -> float:
    """Seconds on one core to explode a file, roughly."""
    size = header["frames"] * header["frame_bytes"]
    return BASE_S + FRAME_S * header["frames"] + size * (BYTE_S + DECODE_S.get(header["syntax"], 0.0))


def plan(files: list[SourceFile], ids: Ids, settings: Config) -> Plan:
    """Units, subjects and locks of a batch; independent of the order of ``files``.

    Files of one instance (equal SOPInstanceUID) stay in one unit, in the order of their uris, so that the smallest uri wins; a multi-frame
    file is never cut. Every series is locked as a whole: two batches must not assemble it at the same time.
    """
    series: dict[str, list[SourceFile]] = defaultdict(list)
    locks: dict[str, str] = {}
    subjects: dict[str, dict[str, Any]] = {}
    units: list[Unit] = []
    for source in sorted(files, key=lambda item: (item.uri, item.source_id)):
        header = dict(source.header)
        if header["kind"] == "nifti":
            key = "series:" + ids.digest("lock", source.dataset, "nifti", header["content"])
        else:
            key = "series:" + ids.digest("lock", source.dataset, header["uid"] or folder_uri(source.uri))
        locks[source.source_id] = key
        series[key].append(source)
        _meet(subjects, source, header, ids)
    for key in sorted(series):
        members = series[key]
        if members[0].header["kind"] == "nifti":
            parent = nifti.series_instance_id(members[0].dataset, members[0].header["content"], ids)
        else:
            uid = members[0].header["uid"]  # a pseudonym already, where there is one
            parent = uid or series_instance_id(ids, members[0].dataset, "", folder_uri(members[0].uri))
        units += _cut(parent, members)
    rows = (Rows.of("subjects", [subjects[name] for name in sorted(subjects)]),) if subjects else ()
    return Plan(tuple(units), rows, (), locks)


def _cut(parent: str, members: list[SourceFile]) -> Iterable[Unit]:
    """A series' files as units: sorted by part and position, cut at `UNIT_S` seconds or `UNIT_BYTES`, instances held together."""
    instances: dict[str, list[SourceFile]] = defaultdict(list)
    for source in members:
        instances[source.header.get("sop") or source.header.get("content") or source.source_id].append(source)

    def place(group: list[SourceFile]) -> tuple[Any, ...]:
        header = group[0].header
        position = header.get("position_mm")
        return (header.get("part", ""), position is None, position or 0.0, group[0].uri, group[0].source_id)

    run: list[SourceFile] = []
    spent, size = 0.0, 0
    for group in sorted(instances.values(), key=place):
        cost = sum(cost_s(dict(source.header)) for source in group)
        group_bytes = sum(source.header["frames"] * source.header["frame_bytes"] for source in group)
        if run and (spent + cost > UNIT_S or size + group_bytes > UNIT_BYTES):
            yield _unit(parent, run, spent)
            run, spent, size = [], 0.0, 0
        run += group
        spent, size = spent + cost, size + group_bytes
    if run:
        yield _unit(parent, run, spent)


def _unit(parent: str, run: list[SourceFile], cost: float) -> Unit:
    """Sources without their headers; ``work["headers"]`` keeps what `explode` needs of them."""
    kept = {source.source_id: {name: source.header[name] for name in CARRIED if name in source.header} for source in run}
    images = sum(source.header["frames"] for source in run)
    return Unit(parent, tuple(source.bare() for source in run), cost, images, {"headers": kept})


def _meet(subjects: dict[str, dict[str, Any]], source: SourceFile, header: dict[str, Any], ids: Ids) -> None:
    """Adds the file's subject; sex by the first file that tells it, age at the earliest study."""
    by_folder = folder_uri(source.uri) if header["kind"] == "dicom" and not header["uid"] else ""
    key, _ = subject_of(header.get("patient_id"), header.get("issuer"), header.get("study"), by_folder, source, ids)
    row = subjects.setdefault(
        key,
        {
            "subject_key": key,
            "dataset": source.dataset,
            "sex": None,
            "age_years": None,
            "follow_up_days": None,
            "event": None,
            "attributes": {},
        },
    )
    row["sex"] = row["sex"] or header.get("sex")
    ages = [age for age in (row["age_years"], header.get("age_years")) if age is not None]
    row["age_years"] = min(ages) if ages else None
