"""The views of a lake, as data: their columns with comments, and their texts, which Spark and DuckDB both run.

One text for both keeps the two answers equal (tested). It holds no array index (one counts from 0, the other from 1) and no function that
only one of them has, but ``explode``, which is a macro in DuckDB; whole numbers are cast, because DuckDB's sums are wider than Spark's.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from medspark.tables.catalog import TABLES
from medspark.tables.schema import Table, comment

_TABLE = re.compile(rf"\b(FROM|JOIN) ({'|'.join(TABLES)})\b")


@dataclass(frozen=True)
class Item:
    """A view's column: its name, the expression that makes it, its comment."""

    name: str
    expression: str
    doc: str


@dataclass(frozen=True)
class View:
    """name, doc : as users see them;  items : columns;  source : FROM and what follows"""

    name: str
    doc: str
    items: tuple[Item, ...]
    source: str

    @property
    def text(self) -> str:
        return "SELECT " + ", ".join(f"{item.expression} AS {item.name}" for item in self.items) + " " + self.source

    @property
    def tables(self) -> set[str]:
        """Tables that it is made from."""
        return {table for _, table in _TABLE.findall(self.text)}

    def within(self, database: str) -> str:
        """The text with its tables named within a database, whatever else has their names in the session."""
        return _TABLE.sub(rf"\1 {database}.\2", self.text)


def _of(table: str, alias: str, names: str) -> list[Item]:
    """Columns of a table as they are, with its own comments."""
    return [Item(name, f"{alias}.{name}", comment(TABLES[table][name])) for name in names.split()]


_LABEL = _of(
    "labels",
    "l",
    "label_row_id label code code_scheme instance_key role source annotator round confidence area_px area_mm2 fraction bbox centroid_row "
    "centroid_col n_components boundary_px value_mean value_std value_min value_max class_value threshold mask_codec mask",
)

SLICES_LABELLED = View(
    "slices_labelled",
    "One row per label on a slice, with the slice and its series; slices without labels are not here.",
    (
        *_of("slices", "s", "image_id series_id k t dataset subject_key study_id modality position_mm rows cols slice_thickness_mm"),
        *_of("series", "e", "slice_spacing_mm manufacturer model_name kernel body_part"),
        *_of("slices", "s", "is_hu value_unit usable"),
        *_LABEL,
    ),
    # The parent stands in the condition so that a filter on series_id prunes the files of labels, too.
    "FROM labels l JOIN slices s ON s.image_id = l.image_id AND s.series_id = l.parent_id JOIN series e ON e.series_id = s.series_id",
)

TILES_LABELLED = View(
    "tiles_labelled",
    "One row per label on a tile, with the tile and its slide; tiles without labels are not here.",
    (
        *_of("tiles", "t", "image_id slide_id grid_id dataset subject_key level tile_row tile_col x_l0 y_l0 width_px height_px mpp_um"),
        *_of("tiles", "t", "tissue_fraction pixel_source"),
        *_of("slides", "s", "vendor scanner_model stain usable"),
        *_LABEL,
    ),
    "FROM labels l JOIN tiles t ON t.image_id = l.image_id AND t.slide_id = l.parent_id JOIN slides s ON s.slide_id = t.slide_id",
)

_ROLLED_UP = """(
  SELECT parent_id, label, role, source, annotator, round,
         count(DISTINCT CASE WHEN area_px > 0 THEN image_id END) AS n_labelled_slices,
         count(DISTINCT instance_key) + coalesce(max(CASE WHEN instance_key IS NULL THEN n_components END), 0) AS n_lesions,
         sum(area_px) AS area_px, count(area_px) AS n_areas, count(area_mm2) AS n_measured, sum(area_mm2) AS area_mm2,
         sum(value_mean * area_px) AS value_sum, sum(CASE WHEN value_mean IS NOT NULL THEN area_px END) AS value_px,
         max(class_value) AS class_value, count(DISTINCT source_id) AS n_files
  FROM labels GROUP BY parent_id, label, role, source, annotator, round)"""

SERIES_SUMMARY = View(
    "series_summary",
    "The roll-up: one row per series and label, role, source, annotator and round; a series without labels has one row with a null label.",
    (
        *_of("series", "e", "series_id dataset subject_key study_id modality manufacturer model_name kernel body_part n_slices n_volumes"),
        *_of("series", "e", "rows cols slice_spacing_mm slice_thickness_mm usable"),
        *_of("labels", "l", "label role source annotator round"),
        Item("n_labelled_slices", "CAST(coalesce(l.n_labelled_slices, 0) AS INT)", "slices on which the label has pixels"),
        Item(
            "n_files",
            "CAST(coalesce(l.n_files, 0) AS INT)",
            "annotation files that the sums are over; what two of them hold counts twice",
        ),
        Item(
            "n_lesions",
            "CAST(coalesce(l.n_lesions, 0) AS INT)",
            "distinct instance_key, and where masks have none the most 8-connected pieces on one slice (at least so many)",
        ),
        Item("area_px", "CAST(l.area_px AS BIGINT)", "sum of the label’s areas over the slices [px]"),
        Item(
            "area_mm2",
            "CASE WHEN l.n_measured = l.n_areas THEN l.area_mm2 END",
            "sum of the label’s areas over the slices; null where one has no area [mm²]",
        ),
        Item(
            "volume_ml",
            "CASE WHEN l.n_measured = l.n_areas AND e.n_volumes = 1 AND e.affine_lps_mm IS NOT NULL"
            " THEN l.area_mm2 * e.slice_spacing_mm / 1000 END",
            "area_mm2 times the spacing along the normal; null unless steps are even and the series is one volume [ml]",
        ),
        Item("value_mean", "l.value_sum / nullif(l.value_px, 0)", "mean under the label’s masks, after rescale"),
        Item("class_value", "l.class_value", "value of a label without pixels"),
    ),
    f"FROM series e LEFT JOIN {_ROLLED_UP} l ON l.parent_id = e.series_id",
)

SUBJECT_SUMMARY = View(
    "subject_summary",
    "One row per subject: who, how much of each kind, and which labels.",
    (
        *_of("subjects", "p", "subject_key dataset sex age_years follow_up_days event"),
        Item("n_studies", "CAST(coalesce(e.n_studies, 0) AS INT)", "studies with series"),
        Item("n_series", "CAST(coalesce(e.n_series, 0) AS INT)", "series"),
        Item("n_slices", "CAST(coalesce(e.n_slices, 0) AS BIGINT)", "slices"),
        Item("n_slides", "CAST(coalesce(w.n_slides, 0) AS INT)", "slides"),
        Item("n_tiles", "CAST(coalesce(w.n_tiles, 0) AS BIGINT)", "tiles, of all grids"),
        Item("n_photos", "CAST(coalesce(f.n_photos, 0) AS BIGINT)", "photos"),
        Item("n_labelled_images", "CAST(coalesce(l.n_labelled_images, 0) AS BIGINT)", "images with a positive label"),
        Item("labels", "l.labels", "positive labels on the subject’s images, sorted; null for none"),
    ),
    """FROM subjects p
LEFT JOIN (SELECT subject_key, count(DISTINCT study_id) AS n_studies, count(*) AS n_series, sum(n_slices) AS n_slices
           FROM series GROUP BY subject_key) e ON e.subject_key = p.subject_key
LEFT JOIN (SELECT s.subject_key, count(DISTINCT s.slide_id) AS n_slides, sum(g.n_tiles) AS n_tiles
           FROM slides s LEFT JOIN grids g ON g.slide_id = s.slide_id GROUP BY s.subject_key) w ON w.subject_key = p.subject_key
LEFT JOIN (SELECT subject_key, count(*) AS n_photos FROM photos GROUP BY subject_key) f ON f.subject_key = p.subject_key
LEFT JOIN (SELECT subject_key, count(DISTINCT image_id) AS n_labelled_images, array_sort(array_agg(DISTINCT label)) AS labels
           FROM labels WHERE role = 'positive' AND (area_px IS NULL OR area_px > 0) GROUP BY subject_key) l ON l.subject_key = p.subject_key""",
)


def _verdicts(table: str, what: str) -> str:
    return (
        f"SELECT dataset, '{what}' AS what, code, count(*) AS n, sum(CASE WHEN usable THEN 0 ELSE 1 END) AS n_unusable,"
        f" CAST(NULL AS STRING) AS example FROM (SELECT dataset, usable, explode(verdict) AS code FROM {table}) {what}_codes"
        " GROUP BY dataset, code"
    )


DATA_QUALITY = View(
    "data_quality",
    "Verdicts and rejections, counted by data set.",
    (
        Item("dataset", "q.dataset", "data set"),
        Item("what", "q.what", "what the code stands on: series, slice, slide, or file (rejected)"),
        Item("code", "q.code", "verdict or rejection code (see docs/tables.md)"),
        Item("n", "CAST(q.n AS BIGINT)", "how many"),
        Item("n_unusable", "CAST(q.n_unusable AS BIGINT)", "how many of them are not usable; rejections: all"),
        Item("example", "q.example", "rejections: one of the sentences that say why"),
    ),
    "FROM ("
    "SELECT dataset, 'file' AS what, code, count(*) AS n, count(*) AS n_unusable, min(message) AS example FROM rejected GROUP BY dataset, code"
    " UNION ALL "
    + " UNION ALL ".join(_verdicts(table, what) for table, what in (("series", "series"), ("slices", "slice"), ("slides", "slide")))
    + ") q",
)

VIEWS = (SLICES_LABELLED, TILES_LABELLED, SERIES_SUMMARY, SUBJECT_SUMMARY, DATA_QUALITY)


def empty(table: Table) -> str:
    """A query with a table's columns and no row, for Spark: stands in for a table that a lake does not have."""
    return (
        "SELECT "
        + ", ".join(f"CAST(NULL AS {table[name].dtype.replace('long', 'bigint')}) AS {name}" for name in table.names)
        + " WHERE false"
    )
