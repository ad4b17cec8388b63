"""Six questions that a data engineer asks of a new lake, as SQL over its tables, and their answers as printed tables."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from medspark.lake import sql

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

MIN_LABEL_PX = 100
MAX_ROWS = 14
TABLE_WIDTH = 118
WIDEST = 24  # characters of a cell that are never wrapped


@dataclass(frozen=True)
class Question:
    """heading : the question;  text : its SQL;  read : how to read the answer, one sentence."""

    heading: str
    text: str
    read: str


@dataclass(frozen=True)
class Answer:
    question: Question
    columns: tuple[str, ...]
    rows: list[tuple[Any, ...]]


QUESTIONS = (
    Question(
        "What is in the lake, by data set and modality?",
        """
SELECT dataset, modality, count(DISTINCT subject_key) AS subjects, count(DISTINCT parent) AS `series or files`,
       count(*) AS images, count(n_bytes) AS `with pixels`, round(sum(n_bytes) / 1e6, 2) AS `stored MB`, count_if(usable) AS usable
FROM (SELECT dataset, modality, subject_key, series_id AS parent, image_id, usable FROM slices
      UNION ALL
      SELECT t.dataset, 'slide' AS modality, t.subject_key, t.slide_id AS parent, t.image_id, s.usable
      FROM tiles t JOIN slides s ON s.slide_id = t.slide_id
      UNION ALL
      SELECT dataset, 'photo' AS modality, subject_key, source_id AS parent, image_id, true AS usable FROM photos)
LEFT JOIN (SELECT image_id, n_bytes FROM pixels) USING (image_id)
GROUP BY dataset, modality ORDER BY dataset, modality""",
        "A tile without tissue keeps its row and stores no pixels; an image is usable unless a verdict forbids it.",
    ),
    Question(
        f"Which series have slices with more than {MIN_LABEL_PX} px of a label, and are those slices evenly spaced?",
        f"""
SELECT s.dataset, l.label, count(*) AS slices, max(l.px) AS `largest px`, round(min(s.position_mm), 1) AS `from mm`,
       round(max(s.position_mm), 1) AS `to mm`, round(any_value(e.slice_spacing_mm), 2) AS `median gap mm`,
       coalesce(nullif(array_join(any_value(e.verdict), ' '), ''), 'none') AS verdict
FROM (SELECT image_id, label, mask_area(mask, rows, cols) AS px FROM labels WHERE mask IS NOT NULL) l
JOIN slices s ON s.image_id = l.image_id JOIN series e ON e.series_id = s.series_id
WHERE l.px > {MIN_LABEL_PX} AND s.position_mm IS NOT NULL
GROUP BY s.dataset, s.series_id, l.label ORDER BY s.dataset, l.label""",
        "mask_area counts the pixels of the stored masks; the gaps come from the slices' positions, not from a tag.",
    ),
    Question(
        "How many tiles would a training set get: at least half tissue, at least a quarter labelled?",
        """
SELECT t.dataset, l.label, count(*) AS `labelled tiles`,
       count_if(t.tissue_fraction >= 0.5 AND l.fraction >= 0.25) AS `would be taken`,
       round(100 * avg(l.fraction), 1) AS `mean % labelled`, round(100 * avg(t.tissue_fraction), 1) AS `mean % tissue`,
       round(sum(l.area_mm2), 3) AS `labelled mm2`
FROM (SELECT image_id, label, least(1, sum(fraction)) AS fraction, sum(area_mm2) AS area_mm2
      FROM labels WHERE role = 'positive' GROUP BY image_id, label) l
JOIN tiles t ON t.image_id = l.image_id
GROUP BY t.dataset, l.label ORDER BY t.dataset, l.label""",
        "Outlines were rasterised onto each tile they touch: every object is a mask on one tile, summed here by label.",
    ),
    Question(
        "What is the volume of each label, and what would equal gaps have made of it?",
        """
WITH gaps AS (
  SELECT series_id, image_id, position_mm,
         position_mm - lag(position_mm) OVER (PARTITION BY series_id ORDER BY position_mm) AS below,
         lead(position_mm) OVER (PARTITION BY series_id ORDER BY position_mm) - position_mm AS above
  FROM slices WHERE usable AND position_mm IS NOT NULL)
SELECT l.dataset, l.label, count(DISTINCT l.image_id) AS slices,
       round(sum(l.area_mm2 * (coalesce(g.below, g.above) + coalesce(g.above, g.below)) / 2) / 1000, 1) AS `volume ml`,
       round(sum(l.area_mm2 * e.slice_spacing_mm) / 1000, 1) AS `by the median gap ml`,
       round(sum(l.value_mean * l.area_px) / sum(l.area_px), 0) AS `mean value`, any_value(s.value_unit) AS unit
FROM labels l JOIN gaps g ON g.image_id = l.image_id JOIN slices s ON s.image_id = l.image_id
JOIN series e ON e.series_id = g.series_id
GROUP BY l.dataset, e.series_id, l.label ORDER BY l.dataset, l.label""",
        "Each slice stands for half the way to its two neighbours; where gaps differ, the simple product is wrong.",
    ),
    Question(
        "How large are the labels on X-rays and photos, and in what unit may that be said?",
        """
SELECT i.dataset, i.kind, l.label, count(DISTINCT l.image_id) AS images, sum(l.px) AS px, round(100 * sum(l.px) / sum(i.px), 1) AS `% of image`,
       sum(l.pieces) AS pieces, round(sum(l.area_mm2), 1) AS mm2, i.spacing AS `pixel size from`,
       round(avg(l.value_mean), 1) AS `mean value`
FROM (SELECT image_id, dataset, modality AS kind, rows * cols AS px, pixel_spacing_source AS spacing FROM slices WHERE modality IN ('CR', 'DX', 'MG')
      UNION ALL
      SELECT image_id, dataset, 'photo' AS kind, rows * cols AS px, NULL AS spacing FROM photos) i
JOIN (SELECT image_id, label, mask_area(mask, rows, cols) AS px, mask_components(mask, rows, cols) AS pieces, area_mm2, value_mean
      FROM labels WHERE mask IS NOT NULL) l ON l.image_id = i.image_id
GROUP BY i.dataset, i.kind, l.label, i.spacing ORDER BY i.kind, i.dataset, l.label""",
        "An X-ray knows its detector's pixels, not the patient's, and a photo neither: their areas stay pixels, mm2 is null.",
    ),
    Question(
        "What was rejected or is doubtful, and why?",
        """
SELECT 'rejected' AS what, dataset, code, count(*) AS n, any_value(message) AS why FROM rejected GROUP BY dataset, code
UNION ALL
SELECT CASE WHEN usable THEN 'kept' ELSE 'kept, not usable' END, dataset, code, count(*), 'verdict on the series'
FROM (SELECT dataset, usable, explode(verdict) AS code FROM series) GROUP BY dataset, code, usable
UNION ALL
SELECT CASE WHEN usable THEN 'kept' ELSE 'kept, not usable' END, dataset, code, count(*), 'verdict on the slice'
FROM (SELECT dataset, usable, explode(verdict) AS code FROM slices) GROUP BY dataset, code, usable
UNION ALL
SELECT CASE WHEN usable THEN 'kept' ELSE 'kept, not usable' END, dataset, code, count(*), 'verdict on the slide'
FROM (SELECT dataset, usable, explode(verdict) AS code FROM slides) GROUP BY dataset, code, usable
ORDER BY what DESC, dataset, code""",
        "A bad file is a row with a code, not a stopped job; a doubtful image is kept and says what is doubtful.",
    ),
)


def ask(spark: SparkSession, question: Question) -> Answer:
    """The question's answer; the lake's views must be registered (`medspark.lake.sql.register`)."""
    frame = sql.query(spark, question.text)
    return Answer(question, tuple(frame.columns), [tuple(row) for row in frame.collect()])


def show(console: Console, number: int, answer: Answer) -> None:
    """The heading, the answer as a table, and how to read it."""
    console.print()
    console.print(Text(f"{number}. {answer.question.heading}", style="bold"))
    table = Table(box=None, header_style="cyan", pad_edge=False, padding=(0, 2, 0, 0))
    for place, name in enumerate(answer.columns):
        numeric = any(isinstance(row[place], (int, float)) for row in answer.rows)
        longest = max((len(_cell(row[place])) for row in answer.rows), default=0)
        table.add_column(name, justify="right" if numeric else "left", overflow="fold", min_width=min(longest, WIDEST))
    for row in answer.rows[:MAX_ROWS]:
        table.add_row(*(_cell(value) for value in row))
    console.print(table, width=max(console.width, TABLE_WIDTH), crop=False)  # a narrow terminal wraps lines, and loses no column
    if not answer.rows:
        console.print("(nothing)", style="dim")
    if len(answer.rows) > MAX_ROWS:
        console.print(f"… and {len(answer.rows) - MAX_ROWS} more rows", style="dim")
    console.print(answer.question.read, style="dim italic")


def _cell(value: Any) -> str:
    if value is None:
        return "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:,.0f}" if value == round(value) and abs(value) >= 1000 else f"{value:,g}"
    return f"{value:,}" if isinstance(value, int) else str(value)


def script() -> str:
    """All of them as one SQL file, with their headings as comments."""
    return "\n\n".join(f"-- {one.heading}\n-- {one.read}{one.text};" for one in QUESTIONS) + "\n"
