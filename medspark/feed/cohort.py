"""Which images a feed is made of, where their pixels lie, and what labels say of them: SQL over the pinned versions of the lake's tables.

Rows stay in Spark, in order of their parents, and end in one frame (`images`) that `choose` reads batch by batch. The cohort is staged first: a query
with a LIMIT or a random number is asked once.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from medspark.errors import BadRequest
from medspark.feed import leaks
from medspark.feed.request import PARENTS, Request
from medspark.feed.truth import BACKGROUND
from medspark.lake import sql
from medspark.lake.files import PRIVATE, locate
from medspark.lake.store import Lake
from medspark.tables.catalog import TABLES
from medspark.tables.names import plain_name

IMAGES = ("slices", "tiles", "photos")
TRUTH = "image_id, parent_id, label_row_id, label, role, rows, cols, area_px, mask_codec, threshold, mask"
"""What of a row of ``labels`` matters to `truth`."""
ALWAYS = ("pixels", "labels", "splits", *IMAGES, "series")
"""Tables that every feed reads, beside those that its query names."""
ENGINE = ("claims", "kpi")  # change with every job and belong to no cohort
OPTIONAL: dict[str, str] = {"row0": "INT", "col0": "INT", "weight": "DOUBLE"}
"""Columns beside image_id and part that a query may return."""
MOST_FACTS = 200  # kinds of stored images that are looked at one by one
MOST_LABELS = 256
POINTERS = "image_id string, file int, grp int, row int, codec string, dtype string, channels int"

# What `Recipe.values` reads of a row of slices, beside the pixels.
_META = "rescale_slope rescale_intercept voi_lut_function photometric value_min value_max pixel_spacing_mm value_unit is_hu".split()


def opened(spark: Any, uri: str, request: Request) -> tuple[Lake, dict[str, int]]:
    """(the lake with the tables' views, table -> version) at the current versions of what the feed is made from: the tables that it always reads and
    those whose names the request's SQL holds. Raises `BadRequest` where there is no lake."""
    named = sql.named(f"{request.query} {request.label_where}")
    wanted = [name for name in TABLES if name in ALWAYS or name in named]
    lake = sql.opened(spark, uri)
    versions = {name: int(lake.snapshot(name).version()) for name in wanted if lake.exists(name)}
    sql.register(spark, uri, wanted, versions)
    return lake, {name: version for name, version in versions.items() if name not in ENGINE}


@dataclass
class Cohort:
    """Views of one build, made in this order: `ask`, `parts`, `gate`, `locate_pixels`, `images`.

    lake : its tables' views show the versions ``tables`` (`sql.register`)
    stage : private folder of this build
    """

    lake: Lake
    request: Request
    tables: Mapping[str, int]
    stage: str
    skipped: dict[str, int] = field(default_factory=dict)
    doubles: tuple[tuple[str, ...], ...] = ()
    doubles_total: int = 0
    within_subject: bool = False
    split: dict[str, Any] = field(default_factory=dict)
    part_given: bool = False

    def _run(self, text: str) -> Any:
        return self.lake.spark.sql(text)

    def _view(self, name: str, text: str) -> None:
        self._run(text).createOrReplaceTempView(name)

    def folder(self, *names: str) -> str:
        """An address for Spark below the build's private folder."""
        return "/".join([self.lake.path(PRIVATE), self.stage, *names])

    def staged(self, name: str, text: str) -> None:
        """A view of rows that were computed once."""
        path = self.folder(name)
        self._run(text).write.mode("overwrite").parquet(path)
        self.lake.spark.read.parquet(path).createOrReplaceTempView(f"_{name}")

    # ---- who belongs to it

    def ask(self) -> None:
        """``_wants``: image_id, part, row0, col0, weight as the query returns them, each row once. Nothing is computed yet."""
        found = sql.query(self.lake.spark, self.request.query)
        columns = {name.lower() for name in found.columns}
        if "image_id" not in columns:
            raise BadRequest(f"--query: returns {', '.join(found.columns)}; expected a column image_id")
        part = self.request.part_by
        self.part_given = part.lower() in columns
        if not self.part_given and (part != "part" or not self.request.split):
            raise BadRequest(f"--part-by {part}: the query returns {', '.join(found.columns)}; give that column, or --split")
        if ("row0" in columns) != ("col0" in columns):
            raise BadRequest("--query: returns one of row0 and col0; a crop's corner needs both")
        if "row0" in columns and self.request.crop is None:
            raise BadRequest("--query: returns row0 and col0; --crop says how large the crops there are")
        found.createOrReplaceTempView("_query")
        said = [f"CAST(`{part}` AS STRING) AS part" if self.part_given else "CAST(NULL AS STRING) AS part"]
        said += [f"CAST({name if name in columns else 'NULL'} AS {kind}) AS {name}" for name, kind in OPTIONAL.items()]
        self._view("_wants", f"SELECT DISTINCT image_id, {', '.join(said)} FROM _query WHERE image_id IS NOT NULL")
        self._view("_all_images", " UNION ALL ".join(_IMAGES_SQL[name] for name in IMAGES if self.lake.exists(name)) or _NONE)

    def parts(self) -> None:
        """``_parted``: the wanted rows with their part, the query's own before the split's, computed once (a LIMIT or a random number is asked
        once); images without a part are counted and left out."""
        join, given = "", "w.part"
        if self.request.split:
            unit, seed = self._split()
            self.split = {"name": self.request.split, "unit": unit, "seed": seed}
            self.within_subject = unit == "image"
            key = "i.image_id" if unit == "image" else "i.subject_key"
            join = f"LEFT JOIN (SELECT unit_key, part FROM splits WHERE split_name = '{self.request.split}') s ON s.unit_key = {key}"
            given = "coalesce(w.part, s.part)"
        else:
            self.split = {"query": self.request.part_by}
        self.staged(
            "wanted",
            f"SELECT w.image_id AS wanted_id, i.*, {given} AS part, w.row0, w.col0, w.weight"
            f" FROM _wants w LEFT JOIN _all_images i ON i.image_id = w.image_id {join}",
        )
        self._view("_parted", "SELECT * FROM _wanted WHERE image_id IS NOT NULL AND part IS NOT NULL")
        counted = self._run(
            "SELECT count(DISTINCT wanted_id) AS wanted, count(DISTINCT CASE WHEN part IS NOT NULL THEN image_id END) AS parted,"
            " count(DISTINCT CASE WHEN image_id IS NULL THEN wanted_id END) AS strange, collect_set(part) AS parts FROM _wanted"
        ).collect()[0]
        if not counted.wanted:
            raise BadRequest("--query: returns no image")
        if not counted.parted:
            raise BadRequest(
                f"none of the {counted.wanted} images of --query has a part in split {self.request.split or '(none)'}; run assign_splits again"
            )
        self.skipped = {"not_in_the_lake": counted.strange, "without_part": counted.wanted - counted.parted - counted.strange}
        for part in counted.parts:
            if not plain_name(part):
                raise BadRequest(f"part {part[:40]!r}: a part's name is letters, digits, '.', '_' and '-'")

    def _split(self) -> tuple[str, int]:
        """(unit, seed) of the split."""
        where = pc.field("split_name") == self.request.split
        for batch in self.lake.scan("splits", ["unit", "seed"], where):
            if batch.num_rows:
                row = batch.slice(0, 1).to_pylist()[0]
                return row["unit"], row["seed"]
        raise BadRequest(f"--split {self.request.split}: the lake has no such split; make it with assign_splits")

    def gate(self) -> None:
        """The leak check: raises `BadRequest` where a subject is in two parts, unless WITHIN-SUBJECT was asked for. Lists equal images."""
        torn = [row.subject_key for row in self._run(leaks.TORN.format(rows="_parted")).collect()]
        if (torn or self.within_subject) and not self.request.within_subject:
            raise BadRequest(leaks.refusal(torn, self.request.split if self.within_subject else ""))
        self.within_subject = self.within_subject or bool(torn)
        groups = self._run(leaks.DOUBLES.format(rows="_parted")).collect()
        self.doubles = tuple(tuple(row.images) for row in groups[: leaks.MOST_DOUBLES])
        self.doubles_total = len(groups)
        if len(groups) > leaks.MOST_DOUBLES:
            self.doubles_total = int(self._run(leaks.COUNT_DOUBLES.format(rows="_parted")).collect()[0].n)

    # ---- their pixels and labels

    def locate_pixels(self) -> None:
        """``_pointers``: image_id -> (file number, row group, row) in the pinned version of ``pixels``; ids are read in tasks."""
        files = self.files()
        numbered = self.lake.spark.createDataFrame(list(enumerate(files)), "file int, path string")
        read = _Pointers(self.lake.uri)
        pointers = numbered.repartition(max(1, min(len(files), 512)), "file").mapInArrow(lambda batches: read(batches), POINTERS)
        pointers.createOrReplaceTempView("_all_pointers")
        self._view("_volumes", "SELECT DISTINCT parent_id, t FROM _parted WHERE kind = 'slice'")
        wanted = "SELECT image_id FROM _parted"
        if self.request.context or self.request.volume:
            wanted += " UNION SELECT i.image_id FROM _all_images i JOIN _volumes v ON v.parent_id = i.parent_id AND v.t = i.t"
        self.staged(
            "pointers",
            f"SELECT p.* FROM _all_pointers p LEFT SEMI JOIN ({wanted}) w ON w.image_id = p.image_id",
        )
        without = self._run(
            "SELECT count(DISTINCT image_id) AS n FROM (SELECT image_id FROM _parted) LEFT ANTI JOIN _pointers USING (image_id)"
        )
        self.skipped["without_pixels"] = without.collect()[0].n

    def files(self) -> list[str]:
        """Payload files of the pinned version, in a fixed order: a pointer's file number counts here."""
        return sorted(self.lake.files("pixels", self.tables["pixels"]))

    def facts(self) -> list[dict[str, Any]]:
        """The kinds of stored images in the cohort: kind, channels, dtype, codec, whether HU, unit, whether values are whole 16-bit numbers."""
        rows = self._run(
            "SELECT i.kind, p.channels, p.dtype, p.codec, i.is_hu, i.value_unit, i.whole, min(i.spacing) AS spacing_min, max(i.spacing) AS spacing_max,"
            " min(i.mpp_um) AS mpp_min, max(i.mpp_um) AS mpp_max, count(i.spacing) AS n_spacing, count(*) AS n"
            " FROM (SELECT DISTINCT image_id, kind, is_hu, value_unit, whole, spacing, mpp_um FROM _parted) i"
            f" LEFT JOIN _pointers p ON p.image_id = i.image_id GROUP BY 1, 2, 3, 4, 5, 6, 7 LIMIT {MOST_FACTS}"
        ).collect()
        found = [row.asDict(recursive=True) for row in rows]
        self.skipped["without_pixels"] = sum(row["n"] for row in found if row["codec"] is None)
        stored = [row for row in found if row["codec"] is not None]
        if not stored:
            raise BadRequest("no image of --query has stored pixels")
        return sorted(stored, key=lambda row: json.dumps(row, default=str))

    def truth_rows(self) -> None:
        """``_truth``: rows of ``labels`` on images that count, before classes are chosen."""
        self._counting().createOrReplaceTempView("_counting")
        own = f"SELECT {TRUTH} FROM _counting WHERE image_id IS NOT NULL"
        if self.request.inherit:
            shared = ", ".join(f"{'i' if name in ('image_id', 'parent_id') else 'c'}.{name}" for name in TRUTH.split(", "))
            own += f" UNION ALL SELECT {shared} FROM _counting c JOIN _all_images i ON i.parent_id = c.target_id WHERE c.target IN ({self._inherited()})"
        self._view("_truth", own)

    def _counting(self) -> Any:
        """Rows of ``labels`` that count, whatever they stand on."""
        sources = ", ".join(quoted(word) for word in self.request.label_sources)
        where = f" AND ({self.request.label_where})" if self.request.label_where else ""
        return sql.query(self.lake.spark, f"SELECT target, target_id, {TRUTH} FROM labels WHERE source IN ({sources}){where}")

    def _inherited(self) -> str:
        return ", ".join(quoted(target) for target in self.request.inherit)

    def labelled_parents(self) -> list[str]:
        """Targets of `PARENTS` of which one that holds images of the cohort has a positive label of its own."""
        rows = self._run(
            "SELECT DISTINCT c.target FROM _counting c LEFT SEMI JOIN _parted p ON p.parent_id = c.target_id"
            f" WHERE c.role = 'positive' AND c.target IN ({', '.join(map(quoted, PARENTS))})"
        ).collect()
        return sorted(row.target for row in rows)

    def label_names(self) -> list[str]:
        """Positive labels of the cohort's images, sorted; of masks only, where truth is by pixel."""
        masks = " AND t.mask IS NOT NULL" if self.request.task == "segmentation" else ""
        rows = self._run(
            "SELECT DISTINCT t.label FROM _truth t LEFT SEMI JOIN _parted p ON p.image_id = t.image_id"
            f" WHERE t.role = 'positive'{masks} LIMIT {MOST_LABELS + 1}"
        ).collect()
        if len(rows) > MOST_LABELS:
            raise BadRequest(f"--labels: the cohort has more than {MOST_LABELS} labels; name those that are wanted")
        return sorted(row.label for row in rows)

    def one_label_each(self, names: Mapping[str, str]) -> bool:
        """Whether every labelled image shows exactly one of the classes. ``names``: label -> class."""
        if not names:
            return False
        cases = " ".join(f"WHEN {quoted(label)} THEN {quoted(name)}" for label, name in sorted(names.items()))
        most = (
            self._run(
                f"SELECT max(n) AS most FROM (SELECT t.image_id, count(DISTINCT CASE t.label {cases} END) AS n FROM _truth t"
                " LEFT SEMI JOIN _parted p ON p.image_id = t.image_id"
                " WHERE t.role = 'positive' AND (t.area_px IS NULL OR t.area_px > 0) GROUP BY t.image_id)"
            )
            .collect()[0]
            .most
        )
        return most == 1

    def images(self, labels: Iterable[str]) -> Any:
        """The frame that `choose.Chooser` reads: one row per image, sorted by parent, volume and place.

        labels : as rows of ``labels`` spell them
        """
        listed = ", ".join(quoted(label) for label in sorted(set(labels))) or "''"
        self._view("_chosen", f"SELECT * FROM _truth WHERE role IN ('extent', 'ignore') OR label IN ({listed})")
        self._view("_examined", "SELECT DISTINCT parent_id FROM _chosen WHERE role = 'extent'")
        whole = bool(self.request.context or self.request.volume)
        if whole:
            self._view(
                "_involved",
                "SELECT i.* FROM _all_images i JOIN _volumes v ON v.parent_id = i.parent_id AND v.t = i.t WHERE i.k IS NOT NULL",
            )
        else:
            self._view("_involved", "SELECT i.* FROM _all_images i LEFT SEMI JOIN _parted p ON p.image_id = i.image_id")
        self._view(
            "_labelled",
            "SELECT c.image_id, array_sort(collect_list(struct(c.label_row_id, c.label, c.role, c.rows, c.cols, c.area_px, c.mask_codec,"
            " c.threshold, c.mask))) AS truth FROM _chosen c LEFT SEMI JOIN _involved i ON i.image_id = c.image_id GROUP BY c.image_id",
        )
        self._view(
            "_crops",
            "SELECT image_id, array_sort(collect_list(struct(part, row0, col0, weight))) AS wants FROM _parted GROUP BY image_id",
        )
        return self._run(
            "SELECT i.image_id, i.parent_id, i.dataset, i.subject_key, i.t, i.k, i.rows, i.cols, i.meta,"
            " p.file, p.grp, p.row, c.wants, l.truth, (e.parent_id IS NOT NULL AND i.kind <> 'photo') AS extents"
            " FROM _involved i JOIN _pointers p ON p.image_id = i.image_id LEFT JOIN _crops c ON c.image_id = i.image_id"
            " LEFT JOIN _labelled l ON l.image_id = i.image_id LEFT JOIN _examined e ON e.parent_id = i.parent_id"
            " DISTRIBUTE BY parent_id SORT BY parent_id, t, k, image_id"
        )


def quoted(text: str) -> str:
    """A string literal of Spark SQL."""
    return "'" + text.replace("\\", "\\\\").replace("'", "\\'") + "'"


def mapped(labels: Iterable[str], classes: Mapping[str, str]) -> dict[str, str]:
    """label -> class of those that are classes (not background)."""
    named = {label: classes.get(label, label) for label in labels}
    return {label: name for label, name in named.items() if name != BACKGROUND}


_WHOLE = (  # values after rescale are whole numbers that int16 holds
    "(bits_stored <= 16 AND modality_lut IS NULL AND coalesce(rescale_slope, 1) = floor(coalesce(rescale_slope, 1))"
    " AND coalesce(rescale_intercept, 0) = floor(coalesce(rescale_intercept, 0)) AND value_min >= -32768 AND value_max <= 32767"
    " AND value_min = floor(value_min))"
)
_IMAGES_SQL = {
    "slices": (
        "SELECT image_id, series_id AS parent_id, 'slice' AS kind, dataset, subject_key, t, k, rows, cols, pixel_hash, is_hu,"
        f" CASE WHEN is_hu THEN 'HU' ELSE coalesce(value_unit, '') END AS value_unit, {_WHOLE} AS whole,"
        " CAST(pixel_spacing_mm AS STRING) AS spacing, CAST(NULL AS DOUBLE) AS mpp_um,"
        f" to_json(struct({', '.join(_META)}, window_center, window_width, hex(modality_lut) AS modality_lut)) AS meta FROM slices"
    ),
    "tiles": (
        "SELECT image_id, slide_id AS parent_id, 'tile' AS kind, dataset, subject_key, 0 AS t, CAST(NULL AS INT) AS k, height_px AS rows,"
        " width_px AS cols, CAST(NULL AS STRING) AS pixel_hash, false AS is_hu, '' AS value_unit, true AS whole, CAST(NULL AS STRING) AS spacing,"
        " mpp_um, '{}' AS meta FROM tiles"
    ),
    "photos": (
        "SELECT image_id, source_id AS parent_id, 'photo' AS kind, dataset, subject_key, 0 AS t, CAST(NULL AS INT) AS k, rows, cols, pixel_hash,"
        " false AS is_hu, '' AS value_unit, true AS whole, CAST(NULL AS STRING) AS spacing, CAST(NULL AS DOUBLE) AS mpp_um, '{}' AS meta FROM photos"
    ),
}
_NONE = "SELECT CAST(NULL AS STRING) AS image_id WHERE false"


@dataclass(frozen=True)
class _Pointers:
    """Files of ``pixels`` in, one narrow row per stored image out; travels by closure. Payload columns are not read."""

    lake_uri: str

    def __call__(self, batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        filesystem, _, _ = locate(self.lake_uri)
        for batch in batches:
            for number, path in zip(batch.column("file").to_pylist(), batch.column("path").to_pylist(), strict=True):
                with filesystem.open_input_file(path) as stream:
                    file = pq.ParquetFile(stream)
                    for group in range(file.num_row_groups):
                        rows = file.read_row_group(group, columns=["image_id", "codec", "dtype", "shape"])
                        count = rows.num_rows
                        shapes = rows.column("shape").to_pylist()
                        yield pa.RecordBatch.from_arrays(
                            [
                                rows.column("image_id").combine_chunks(),
                                pa.array([number] * count, pa.int32()),
                                pa.array([group] * count, pa.int32()),
                                pa.array(range(count), pa.int32()),
                                rows.column("codec").combine_chunks(),
                                rows.column("dtype").combine_chunks(),
                                pa.array([shape[2] if len(shape) > 2 else 1 for shape in shapes], pa.int32()),
                            ],
                            ["image_id", "file", "grp", "row", "codec", "dtype", "channels"],
                        )
