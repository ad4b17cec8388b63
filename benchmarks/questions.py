"""Ten questions that a data engineer asks a lake of CT slices with nodules, in SQL that Spark and DuckDB both take.

Tables are named as in the lake. ``{series}``, ``{sop}``: keys that the bench draws from the lake. Answers are compared, so each has an order.
"""

from __future__ import annotations

POINT, SERIES, FILTER, ROLL_UP, OTHER = "point", "series", "filter", "roll-up", "other"

QUESTIONS: tuple[tuple[str, str, str], ...] = (
    (
        "slices by modality and label",
        ROLL_UP,
        "SELECT s.modality, l.label, count(DISTINCT l.image_id) AS n FROM labels l JOIN slices s ON s.image_id = l.image_id "
        "GROUP BY s.modality, l.label ORDER BY 1, 2",
    ),
    (
        "nodules above 100 mm² on slices of at most 1.25 mm",
        FILTER,
        "SELECT count(DISTINCT concat(l.parent_id, '/', l.instance_key)) AS n FROM labels l JOIN slices s ON s.image_id = l.image_id "
        "WHERE l.label = 'nodule' AND l.area_mm2 > 100 AND s.slice_thickness_mm <= 1.25",
    ),
    (
        "one series by key",
        SERIES,
        "SELECT image_id, k, position_mm, value_mean FROM slices WHERE series_id = '{series}' ORDER BY k",
    ),
    (
        "one slice by instance",
        POINT,
        "SELECT image_id, series_id, k, rows, cols FROM slices WHERE sop_instance_id = '{sop}'",
    ),
    (
        "one slice by key",
        POINT,
        "SELECT series_id, k, position_mm FROM slices WHERE image_id = '{image}'",
    ),
    (
        "the 100 brightest slices",
        OTHER,
        "SELECT image_id, value_max FROM slices ORDER BY value_max DESC, image_id LIMIT 100",
    ),
    (
        "nodules by manufacturer (join with labels)",
        OTHER,
        "SELECT e.manufacturer, count(*) AS n, round(sum(l.area_mm2)) AS mm2 FROM labels l JOIN series e ON e.series_id = l.parent_id "
        "GROUP BY e.manufacturer ORDER BY n DESC, 1",
    ),
    (
        "wide aggregate over all slices",
        ROLL_UP,
        "SELECT slice_thickness_mm, count(*) AS n, min(value_min) AS low, max(value_max) AS high, round(avg(value_mean), 6) AS mean, "
        "round(avg(value_std), 6) AS std FROM slices GROUP BY slice_thickness_mm ORDER BY 1",
    ),
    (
        "subjects",
        OTHER,
        "SELECT count(DISTINCT subject_key) AS n FROM slices",
    ),
    (
        "series with at least five nodule slices",
        ROLL_UP,
        "SELECT count(*) AS n FROM (SELECT parent_id FROM labels WHERE label = 'nodule' GROUP BY parent_id "
        "HAVING count(DISTINCT image_id) >= 5) t",
    ),
    (
        "agreement: area overlap of two readers by lesion",
        OTHER,
        "SELECT count(*) AS pairs, round(avg(2.0 * least(a.area, b.area) / (a.area + b.area)), 6) AS agreement FROM "
        "(SELECT parent_id, instance_key, annotator, sum(area_px) AS area FROM labels GROUP BY parent_id, instance_key, annotator) a JOIN "
        "(SELECT parent_id, instance_key, annotator, sum(area_px) AS area FROM labels GROUP BY parent_id, instance_key, annotator) b "
        "ON a.parent_id = b.parent_id AND a.instance_key = b.instance_key AND a.annotator < b.annotator",
    ),
)
