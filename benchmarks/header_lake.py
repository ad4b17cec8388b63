"""A lake of any number of slices, built through plan and commit from a prepared header table with the distributions of a public CT index.

Series sizes, manufacturers, models and subjects come from a sample of the index of the NCI Imaging Data Commons, spacings and the readers'
outlines of nodules from LIDC-IDRI, where they are present beside the project; else they are drawn from numbers like theirs. A file of the
header table ("shard") holds the parsed headers of some hundred series, a row a slice. It enters like every other source: scan, plan, explode,
stage, assembly of series with geometry and verdicts, append, close. There are no pixels, and one ledger row a shard instead of one a slice.
"""

from __future__ import annotations

import json
import os
import time
from collections import defaultdict
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import lru_cache
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from benchmarks.peer import CORES, SHARED_DATA, say
from medspark.config import Config
from medspark.keys import Ids
from medspark.pixels.masks import pack
from medspark.pixels.measure import measures
from medspark.tables.catalog import SLICES
from medspark.tables.rows import Rejection, Rows
from medspark.tables.work import Plan, SourceFile, Unit, Watch

SERIES_PER_SHARD = 500  # some 63,000 slices, 10 MB
READ_ROWS = 16_384  # rows of a shard in memory at a time
LABELLED = 0.1  # of the series have nodules: a screening archive's order of magnitude
ROOT_UID = "1.2.826.0.1.3680043.8.498.78"
CREATED = datetime(2024, 1, 1, tzinfo=UTC)


# ---- what the series are like


@dataclass(frozen=True)
class Index:
    """Columns of the public index, one entry a series."""

    count: np.ndarray
    manufacturer: list[str]
    model: list[str]
    patient: list[str]
    study: list[str]


@lru_cache(maxsize=1)
def index() -> Index:
    path = SHARED_DATA / "idc" / "idc_ct_sample.parquet"
    if path.exists():
        names = ["instanceCount", "Manufacturer", "ManufacturerModelName", "PatientID", "StudyInstanceUID"]
        count, maker, model, patient, study = (pq.read_table(path, columns=names).column(name).to_pylist() for name in names)
        return Index(np.array(count), [text or "unknown" for text in maker], [text or "unknown" for text in model], patient, study)
    generator = np.random.Generator(np.random.PCG64(1))
    count = np.exp(generator.normal(4.6, 0.75, 2000)).clip(1, 900).astype(int)  # median 100, mean 130
    makers = generator.choice(["GE MEDICAL SYSTEMS", "SIEMENS", "Philips", "TOSHIBA"], 2000).tolist()
    numbers = [str(number // 3) for number in range(2000)]
    return Index(count, makers, [f"{maker} {number % 9}" for number, maker in enumerate(makers)], numbers, numbers)


@dataclass(frozen=True)
class Drawn:
    """One reader's outline of one nodule on one slice. ``place``: fraction of the scan along its axis; masks are of 512 x 512 px."""

    nodule: str
    reader: int
    place: float
    mask: bytes
    measured: dict[str, Any]


@lru_cache(maxsize=1)
def scans() -> tuple[tuple[float, float, tuple[Drawn, ...]], ...]:
    """(thickness mm, pixel spacing mm, outlines) of each annotated scan."""
    path = SHARED_DATA / "lidc" / "lidc_annotations_sample.json"
    if not path.exists():
        return _drawn_scans()
    found = []
    for scan in json.loads(path.read_text()):
        positions = sorted(scan["zvals"])
        readers: dict[str, int] = defaultdict(int)
        outlines: list[Drawn] = []
        for annotation in scan["annotations"]:
            nodule = annotation["_nodule_id"]
            for contour in annotation["contours"]:
                place = float(np.searchsorted(positions, contour["image_z_position"])) / len(positions)
                outline = _outline(nodule, readers[nodule], place, np.array(contour["xy"], float))
                outlines += [outline] if outline else []
            readers[nodule] += 1
        found.append((float(scan["slice_thickness"]), float(scan["pixel_spacing"]), tuple(outlines)))
    return tuple(found)


def _outline(nodule: str, reader: int, place: float, xy: np.ndarray) -> Drawn | None:
    """LIDC's outlines are the first pixels outside the nodule; None where nothing is inside."""
    from skimage.draw import polygon, polygon_perimeter

    mask = np.zeros((512, 512), bool)
    mask[polygon(xy[:, 1], xy[:, 0], mask.shape)] = True
    mask[polygon_perimeter(xy[:, 1], xy[:, 0], mask.shape)] = False
    return Drawn(nodule, reader, place, pack(mask), measures(mask)) if mask.any() else None


def _drawn_scans() -> tuple[tuple[float, float, tuple[Drawn, ...]], ...]:
    generator = np.random.Generator(np.random.PCG64(2))
    angle = np.linspace(0, 2 * np.pi, 24)
    found = []
    for thickness in (1.25, 2.5, 3.0):
        outlines: list[Drawn] = []
        for nodule in range(3):
            x, y, radius = generator.uniform((120, 120, 4), (390, 390, 14))
            for reader in range(4):
                own = radius * generator.uniform(0.9, 1.1)
                for step in range(-3, 4):
                    circle = np.column_stack([x + own * (1 - abs(step) / 5) * np.cos(angle), y + own * (1 - abs(step) / 5) * np.sin(angle)])
                    outline = _outline(str(nodule), reader, 0.5 + 0.01 * step, circle)
                    outlines += [outline] if outline else []
        found.append((thickness, 0.7, tuple(outlines)))
    return tuple(found)


# ---- the header table


def header_table(work: Path, n_series: int) -> Path:
    """The folder of shards; made once. Not part of what is timed."""
    folder = work / "phantoms" / f"headers-{n_series}"
    done = folder / "_done"
    if done.exists():
        return folder
    folder.mkdir(parents=True, exist_ok=True)
    firsts = range(0, n_series, SERIES_PER_SHARD)
    with ProcessPoolExecutor(CORES, mp_context=get_context("spawn")) as pool:
        rows = sum(pool.map(_shard, [(str(folder), first, min(first + SERIES_PER_SHARD, n_series)) for first in firsts]))
    done.write_text(str(rows))
    say(f"{folder.name}: {rows:,} headers in {len(firsts)} files")
    return folder


def n_headers(folder: Path) -> int:
    return int((folder / "_done").read_text())


def _shard(given: tuple[str, int, int]) -> int:
    """Writes the headers of the series first <= number < last, a row a slice; returns how many."""
    folder, first, last = given
    generator = np.random.Generator(np.random.PCG64([3, first]))
    drawn_from, annotated = index(), scans()
    kinds = generator.integers(0, len(drawn_from.count), last - first)
    counts = drawn_from.count[kinds]
    n = int(counts.sum())
    of = np.repeat(np.arange(last - first), counts)  # series of each row
    place = np.arange(n) - np.repeat(np.cumsum(counts) - counts, counts)
    thickness_mm = np.array([scan[0] for scan in annotated])[generator.integers(0, len(annotated), last - first)]
    spacing_mm = np.round(generator.uniform(0.5, 0.95, last - first), 6)
    z0 = np.round(generator.uniform(-400, 100, last - first), 1)
    number = pa.array(np.arange(first, last))
    series_uid = pc.binary_join_element_wise(f"{ROOT_UID}.2", pc.cast(number, pa.string()), ".").take(pa.array(of))
    instance = pc.cast(pa.array(place + 1), pa.string())
    sop = pc.binary_join_element_wise(series_uid, instance, ".")
    z = z0[of] + place * thickness_mm[of]
    positions = np.column_stack([np.full(n, -180.0), np.full(n, -175.0), z])
    patients = [drawn_from.patient[kind] + f"-{number % 7}" for kind, number in zip(kinds, range(first, last), strict=True)]
    studies = [drawn_from.study[kind] + f".{number % 7}" for kind, number in zip(kinds, range(first, last), strict=True)]
    attributes = [
        json.dumps({"modality": "CT", "frame_of_reference_id": f"{ROOT_UID}.4.{first + i}", "body_part": "CHEST",
                    "manufacturer": drawn_from.manufacturer[kind], "model_name": drawn_from.model[kind], "kvp": 120.0,
                    "study_date": "2003-05-17"})
        for i, kind in enumerate(kinds.tolist())
    ]  # fmt: skip
    header = pc.binary_join_element_wise(
        '{"00080060":{"vr":"CS","Value":["CT"]},"00180060":{"vr":"DS","Value":[120]},"00181150":{"vr":"IS","Value":[500]},"00201041":{"vr":"DS","Value":[',
        pc.cast(pa.array(np.round(z, 3)), pa.string()),
        ']},"00200013":{"vr":"IS","Value":[',
        instance,
        ']},"00281050":{"vr":"DS","Value":[-600]},"00281051":{"vr":"DS","Value":[1600]}}',
        "",
    )
    mean = generator.normal(-650, 90, n)
    each = lambda values: pa.array(values).dictionary_encode().take(pa.array(of)) if isinstance(values, list) else pa.array(values[of])
    table = pa.table(
        {
            "series_uid": series_uid,
            "sop": sop,
            "number": pa.array(of + first),
            "place": pa.array(place / np.maximum(1, counts[of])),
            "patient": each(patients),
            "study": each(studies),
            "series_attributes": each(attributes),
            "instance_number": pa.array(place + 1, pa.int32()),
            "image_position_mm": _lists(positions),
            "pixel_spacing_mm": _lists(np.column_stack([spacing_mm[of], spacing_mm[of]])),
            "slice_thickness_mm": pa.array(thickness_mm[of]),
            "value_min": pa.array(np.round(generator.normal(-1100, 60, n))),
            "value_max": pa.array(np.round(generator.normal(1600, 500, n))),
            "value_mean": pa.array(mean),
            "value_std": pa.array(generator.uniform(300, 500, n)),
            "pixel_hash": _hex(generator.bytes(16 * n), n),
            "header_json": header,
        }
    )
    path = Path(folder) / f"shard-{first:07d}.parquet"
    pq.write_table(table, path.with_suffix(".part"), row_group_size=READ_ROWS, compression="zstd")
    os.replace(path.with_suffix(".part"), path)
    return n


def _lists(values: np.ndarray) -> pa.Array:
    """(n, m) float64 as an Arrow list column."""
    n, m = values.shape
    return pa.ListArray.from_arrays(pa.array(np.arange(0, n * m + 1, m, dtype=np.int32)), pa.array(values.ravel()))


def _hex(raw: bytes, n: int) -> pa.Array:
    """(n,) strings of 32 hex digits."""
    offsets = np.arange(0, 32 * n + 1, 32, dtype=np.int32)
    return pa.Array.from_buffers(pa.string(), n, [None, pa.py_buffer(offsets), pa.py_buffer(raw.hex().encode())])


# ---- the kind of data


@dataclass(frozen=True)
class HeaderKind:
    """Shards of the header table as the engine sees them. No pixels: what is measured is everything else."""

    job: str = "explode_series"
    source_kind: str = "dicom"
    sections: tuple[str, ...] = ("series", "deid", "verdicts")

    def scan(self, path: str, uri: str, ids: Ids, settings: Config) -> dict[str, Any]:
        patients = pq.read_table(path, columns=["patient"]).column(0)
        return {"kind": "dicom", "rows": len(patients), "patients": pc.unique(patients).to_pylist()}

    def plan(self, files: list[SourceFile], ids: Ids, settings: Config) -> Plan:
        units, subjects, locks = [], set(), {}
        for source in files:
            parent = ids.digest("lock", source.dataset, source.uri)
            locks[source.source_id] = f"series:{parent}"
            units.append(Unit(parent, (source.bare(),), source.header["rows"] * 2e-5, source.header["rows"]))
            subjects |= {ids.subject(source.domain, patient) for patient in source.header["patients"]}
        rows = [
            {"subject_key": key, "dataset": files[0].dataset, "sex": None, "age_years": None, "follow_up_days": None, "event": None, "attributes": {}}
            for key in sorted(subjects)
        ]  # fmt: skip
        return Plan(tuple(units), (Rows.of("subjects", rows),), (), locks)

    def explode(self, unit: Unit, ids: Ids, settings: Config, watch: Watch) -> Iterator[Rows | Rejection]:
        source = unit.sources[0]
        watch(source, "headers")
        for batch in pq.ParquetFile(source.path).iter_batches(batch_size=READ_ROWS):
            rows = _slices(pa.Table.from_batches([batch]), source, ids)
            yield rows
            labels = list(_labels(batch, rows, source, ids))
            if labels:
                yield Rows.of("labels", labels)


def _slices(headers: pa.Table, source: SourceFile, ids: Ids) -> Rows:
    n, dataset = headers.num_rows, source.dataset
    uids, sops = headers.column("series_uid").to_pylist(), headers.column("sop").to_pylist()
    patients, studies = headers.column("patient").to_pylist(), headers.column("study").to_pylist()
    series_id = [ids.series(dataset, uid, "", "axial", "512x512") for uid in uids]
    same = lambda value, kind: pa.repeat(pa.scalar(value, kind), n)
    text = pa.string()
    columns: dict[str, Any] = {
        "image_id": [ids.image(parent, dataset, sop, 1) for parent, sop in zip(series_id, sops, strict=True)],
        "series_id": series_id,
        "t": same(0, pa.int32()),
        "source_id": same(source.source_id, text),
        "dataset": same(dataset, text),
        "subject_key": [ids.subject(source.domain, patient) for patient in patients],
        "study_id": [ids.uid(study) for study in studies],
        "modality": same("CT", text),
        "sop_instance_id": ["2.25." + str(int(ids.digest("uid", sop), 16)) for sop in sops],
        "series_instance_id": [ids.uid(uid) for uid in uids],
        "frame_number": same(1, pa.int32()),
        "rows": same(512, pa.int32()),
        "cols": same(512, pa.int32()),
        "channels": same(1, pa.int32()),
        "is_hu": same(True, pa.bool_()),
        "value_unit": same("HU", text),
        "usable": same(True, pa.bool_()),
        "image_type": same(["ORIGINAL", "PRIMARY", "AXIAL"], SLICES.arrow().field("image_type").type),
        "image_orientation": _lists(np.tile([1.0, 0, 0, 0, 1, 0], (n, 1))),
        "pixel_spacing_source": same("PixelSpacing", text),
        "photometric": same("MONOCHROME2", text),
        "transfer_syntax": same("1.2.840.10008.1.2.1", text),
        "bits_stored": same(16, pa.int32()),
        "high_bit": same(15, pa.int32()),
        "pixel_representation": same(1, pa.int32()),
        "rescale_slope": same(1.0, pa.float64()),
        "rescale_intercept": same(-1024.0, pa.float64()),
        "verdict": same([], SLICES.arrow().field("verdict").type),
    }
    given = ("instance_number", "image_position_mm", "pixel_spacing_mm", "slice_thickness_mm", "value_min", "value_max", "value_mean", "value_std", "pixel_hash", "series_attributes", "header_json")  # fmt: skip
    for name in given:
        column = headers.column(name).combine_chunks()
        columns[name] = column.dictionary_decode() if pa.types.is_dictionary(column.type) else column
    return Rows("slices", columns)


def _labels(batch: pa.RecordBatch, slices: Rows, source: SourceFile, ids: Ids) -> Iterator[dict[str, Any]]:
    """Readers' outlines on the series that have nodules, at the same fraction of the scan as in the scan they were drawn on."""
    annotated = scans()
    numbers = batch.column("number").to_numpy()
    place = batch.column("place").to_numpy()
    spacing = batch.column("pixel_spacing_mm").flatten().to_numpy()[::2]
    for number in np.unique(numbers).tolist():
        generator = np.random.Generator(np.random.PCG64([5, number]))
        if generator.random() >= LABELLED:
            continue
        rows = np.flatnonzero(numbers == number)
        _, _, outlines = annotated[int(generator.integers(len(annotated)))]
        met: dict[tuple[str, int, int], Drawn] = {}
        for outline in outlines:  # a batch holds a piece of a series: what lies on it
            row = int(np.searchsorted(place[rows], outline.place))
            if 0 < row < len(rows) or (row == 0 and outline.place == place[rows][0]):
                met[outline.nodule, outline.reader, int(rows[row])] = outline
        for (nodule, reader, row), outline in met.items():
            image_id, area = slices.columns["image_id"][row], outline.measured["area_px"]
            yield {
                "label_row_id": ids.digest("label", image_id, nodule, reader),
                "target": "image",
                "target_id": image_id,
                "image_id": image_id,
                "parent_id": slices.columns["series_id"][row],
                "dataset": source.dataset,
                "subject_key": slices.columns["subject_key"][row],
                "label": "nodule",
                "instance_key": nodule,
                "role": "positive",
                "source": "reader",
                "annotator": ids.annotator(str(reader)),
                "round": 0,
                "mask_codec": "bits-zstd",
                "rows": 512,
                "cols": 512,
                "mask": outline.mask,
                "area_mm2": area * float(spacing[row]) ** 2,
                "fraction": area / 512**2,
                "source_id": source.source_id,
                "created_at": CREATED,
                **outline.measured,
            }


def build(spark: Any, lake: Path, folder: Path, shards_a_batch: int) -> tuple[Any, float]:
    """The lake of a header table, through the engine; (summary, seconds of the whole run)."""
    import dataclasses

    from benchmarks.peer import KEY
    from medspark.keys import Ids
    from medspark.lake import ingest as engine
    from medspark.lake.store import Lake

    opened = Lake(spark, str(lake))
    opened.ensure(["labels"])
    settings = dataclasses.replace(Config(), ingest=dataclasses.replace(Config().ingest, batch_sources=shards_a_batch))
    started = time.monotonic()
    request = engine.Request((str(folder),), dataset="bench")
    summary = engine.Ingest(opened, HeaderKind(), Ids(KEY), settings, request, progress=say).run()
    if summary.rejected:
        raise RuntimeError(f"{summary.rejected} rejections: {opened.read('rejected', ['code', 'message']).slice(0, 3).to_pylist()}")
    return summary, time.monotonic() - started
