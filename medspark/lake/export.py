"""Labels of a query back out as files: which rows, brought together by series, slide or photo, and each parent's files written in a task.

The masks cross the cluster once, packed and sorted by parent; a task holds the packed masks of one parent and whatever its writer
(`medspark.labels.export`) unpacks at a time. Files appear under their names when they are complete. What belongs to the export as a whole (the
COCO document, lists) is put together by the driver from the tasks' parts, line by line.
"""

from __future__ import annotations

import csv
import json
import tempfile
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

from pyarrow import fs as pafs
from pyspark.errors import AnalysisException
from pyspark.sql import Column, DataFrame
from pyspark.sql import functions as fn

from medspark.errors import BadRequest
from medspark.labels.export import coco, geojson, values
from medspark.labels.link_tiles import Tile
from medspark.lake import sql
from medspark.lake.export_files import csv_line, lines_of, replaced
from medspark.lake.export_task import Exporter, Result
from medspark.lake.files import locate
from medspark.lake.session import cores
from medspark.lake.store import Lake

Format = Literal["seg", "coco", "geojson", "nifti", "png"]
KEYS = ("label_row_id", "image_id", "parent_id")
"""What ``--query`` may return; the first that it has counts."""
ROLES: dict[str, tuple[str, ...]] = {
    "seg": values.ROLES,
    "nifti": values.ROLES,
    "png": values.ROLES,
    "coco": coco.ROLES,
    "geojson": geojson.ROLES,
}
VALUES = ("nifti", "png")
"""Formats in which numbers stand for labels."""
BATCH_ROWS = 256  # label rows per Arrow batch into Python: a packed mask of a slice has some KB, of a large photo some MB
PARENTS_PER_TASK = 16  # aimed at; a task should outlast its own start
MAX_TASKS = 4096
STAGE = ".export-"  # a hidden folder in --out for the tasks' parts; gone at the end

_LABEL = (
    "label_row_id image_id parent_id label code code_scheme instance_key role source source_id annotator round rows cols mask_codec".split()
)
_LABEL += ["mask", "threshold", "confidence"]
_SLICE = "series_id dataset k t sop_instance_id frame_number position_mm modality rows cols image_position_mm image_orientation".split()
_SLICE += ["pixel_spacing_mm", "slice_thickness_mm"]
_SERIES = "series_id subject_key study_id series_instance_id frame_of_reference_id n_slices n_volumes rows cols".split()
_SERIES += ["slice_spacing_mm", "affine_lps_mm", "verdict"]
_TILE = [*Tile.__dataclass_fields__, "slide_id", "grid_id", "tile_row", "tile_col"]
_SLIDE = "slide_id dataset width_l0_px height_l0_px file_token folder_token level_instance_ids level_downsamples".split()
SOP_CLASS = "$['00080016'].Value[0]"


@dataclass(frozen=True)
class Request:
    """What ``export_labels`` was asked for."""

    query: str
    format: Format
    out: str
    overwrite: bool = False

    def check(self) -> None:
        """Raises `BadRequest`; needs no session."""
        if self.format not in get_args(Format):
            raise BadRequest(f"--format {self.format}: expected one of {', '.join(get_args(Format))}")
        if not self.query.strip():
            raise BadRequest(f"--query: expected SQL that returns {', '.join(KEYS[:-1])} or {KEYS[-1]}")
        filesystem, root, _ = locate(self.out)
        info = filesystem.get_file_info(root)
        if info.type == pafs.FileType.File:
            raise BadRequest(f"--out {self.out}: a file is there; name a folder")
        listed = filesystem.get_file_info(pafs.FileSelector(root, allow_not_found=True))
        if not self.overwrite and any(not entry.base_name.startswith(".") for entry in listed):
            raise BadRequest(
                f"--out {self.out}: the folder is not empty; name another, or replace files of the same names with --overwrite"
            )


def export(lake: Lake, request: Request, restore: Callable[[bytes, str], bytes] | None = None) -> Result:
    """Writes the files of a query into ``request.out``.

    restore : (segmentation, series_instance_id) -> the same with the original UIDs; called here, in the driver, for every file of ``seg``,
        and none is put in place unless it succeeds for all
    """
    chosen = _chosen(lake, request.query)
    labels, result = _labels(chosen, ROLES[request.format])
    numbered = values.numbers([label for label, _, _ in labels], request.format in VALUES)
    filesystem, root, _ = locate(request.out)
    filesystem.create_dir(root, recursive=True)
    stage = f"{root}/{STAGE}{uuid.uuid4().hex[:12]}"
    filesystem.create_dir(stage)
    try:
        regions = lake.actions("regions") if request.format == "geojson" else []
        work = Exporter(request.format, lake.uri, request.out, stage, numbered, regions, restore is not None)
        rows = chosen.where(_has_pixels() & fn.col("role").isin(*ROLES[request.format])).select(*_LABEL)
        parents = rows.select("parent_id").distinct().count()
        parts = _run(lake, _images(lake, rows, request.format), work, parents)
        for part in parts:
            result.add(part["made"])
        if restore is not None:
            _restore(filesystem, root, stage, parts, restore)
        _lists(filesystem, root, stage, parts, request.format, numbered)
        if request.format == "coco":
            _coco(filesystem, root, parts, labels)
            result.files = 1
    finally:
        filesystem.delete_dir(stage)
    return result


# ---- which rows


def _chosen(lake: Lake, query: str) -> DataFrame:
    """The rows of ``labels`` that the query names."""
    found = sql.query(lake.spark, query)
    key = next((name for name in KEYS if name in found.columns), None)
    if key is None:
        raise BadRequest(f"--query: returns {', '.join(found.columns)}; expected a column {', '.join(KEYS[:-1])} or {KEYS[-1]}")
    try:
        return lake.frame("labels").join(found.select(key).distinct(), key, "left_semi")
    except AnalysisException as error:
        raise BadRequest(f"--query: {str(error).splitlines()[0]}") from None


def _labels(chosen: DataFrame, roles: Sequence[str]) -> tuple[list[tuple[str, str | None, str | None]], Result]:
    """(label, code, code_scheme) of all labels that go out, in a fixed order; and what the format leaves out, counted."""
    rows = (
        chosen.groupBy("label", "role", _has_pixels().alias("pixels"))
        .agg(fn.min(fn.struct("code", "code_scheme")).alias("coded"), fn.count("*").alias("n"))
        .collect()
    )
    result, labels = Result(), dict[str, tuple[str | None, str | None]]()
    for row in rows:
        if not row.pixels:
            result.left_out["without_pixels"] += row.n
        elif row.role not in roles:
            result.left_out[f"role_{row.role}"] += row.n
        else:
            labels[row.label] = max(labels.get(row.label, (None, None)), tuple(row.coded), key=lambda coded: coded[0] is not None)
    return [(label, *labels[label]) for label in sorted(labels)], result


def _has_pixels() -> Column:
    return fn.col("mask").isNotNull() & fn.col("image_id").isNotNull()


def _images(lake: Lake, rows: DataFrame, format: str) -> DataFrame:
    """The label rows, each with its image and its parent; a column is null where they are of another kind."""
    beside = (
        ("slices", _SLICE, "image_id"),
        ("tiles", _TILE, "image_id"),
        ("series", _SERIES, "series_id"),
        ("slides", _SLIDE, "slide_id"),
    )
    for table, columns, key in beside:
        if not lake.exists(table):
            rows = rows.withColumn(table, fn.lit(None).cast("struct<none:int>"))
            continue
        of = lake.frame(table)
        fields = [fn.col(name) for name in columns]
        if table == "slices" and format == "seg":
            fields.append(fn.get_json_object("header_json", SOP_CLASS).alias("sop_class"))
        other = of.select(fn.col(key).alias("_key"), fn.struct(*fields).alias(table))
        rows = rows.join(other, fn.col("image_id" if key == "image_id" else "parent_id") == fn.col("_key"), "left").drop("_key")
    return rows


def _run(lake: Lake, frame: DataFrame, work: Exporter, parents: int) -> list[dict[str, Any]]:
    """The parts that the tasks made, in a fixed order."""
    tasks = max(1, min(parents, MAX_TASKS, max(2 * cores(lake.spark), parents // PARENTS_PER_TASK)))
    name = "spark.sql.execution.arrow.maxRecordsPerBatch"
    before = lake.spark.conf.get(name)
    lake.spark.conf.set(name, str(BATCH_ROWS))
    try:
        said = (
            frame.repartition(tasks, "parent_id")
            .sortWithinPartitions("parent_id", "image_id", "label", "label_row_id")
            .mapInArrow(lambda batches: work(batches), "said string")
            .collect()
        )
    finally:
        lake.spark.conf.set(name, before)
    return sorted((json.loads(row.said) for row in said), key=lambda part: part["first"])


# ---- the whole export


HEADS = {"pairs": ("image", "annotation", "source", "source_id", "annotator", "round"), "rejected": ("parent_id", "code", "reason")}


def _lists(
    filesystem: pafs.FileSystem, root: str, stage: str, parts: Sequence[Mapping[str, Any]], format: str, numbered: Mapping[str, int]
) -> None:
    """``pairs.csv``, ``rejected.csv`` (where there is anything to list) and ``classes.csv`` (where numbers stand for labels)."""
    for name, head in HEADS.items():
        path = f"{root}/{name}.csv"
        if any(name in part["lists"] for part in parts):
            with replaced(filesystem, path) as stream:
                stream.write(csv_line(head).encode())
                for line in lines_of(filesystem, parts, name):
                    stream.write(line)
        elif filesystem.get_file_info(path).type == pafs.FileType.File:
            filesystem.delete_file(path)  # of the export that this one replaces
    if format in VALUES:
        with replaced(filesystem, f"{root}/classes.csv") as stream:
            stream.write(values.classes_csv(numbered).encode())


def _coco(
    filesystem: pafs.FileSystem, root: str, parts: Sequence[Mapping[str, Any]], labels: Sequence[tuple[str, str | None, str | None]]
) -> None:
    with replaced(filesystem, f"{root}/labels.json") as stream, tempfile.TemporaryFile() as spill:
        coco.join(stream, spill, lines_of(filesystem, parts, "coco"), coco.category_list(labels))


def _restore(
    filesystem: pafs.FileSystem, root: str, stage: str, parts: Sequence[Mapping[str, Any]], restore: Callable[[bytes, str], bytes]
) -> None:
    """Segmentations with their original UIDs: all of them in the stage first, then into place."""
    names = []
    for name, series_instance_id in csv.reader(line.decode() for line in lines_of(filesystem, parts, "staged")):
        with filesystem.open_input_stream(f"{stage}/{name}") as stream:
            data = stream.read()
        with replaced(filesystem, f"{stage}/{name}") as out:
            out.write(restore(data, series_instance_id))
        names.append(name)
    for name in names:
        filesystem.move(f"{stage}/{name}", f"{root}/{name}")
