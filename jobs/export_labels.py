"""Labels back out as files: ``spark-submit jobs/export_labels.py --lake URI --query SQL --format FORMAT --out FOLDER``"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any

from _entry import DONE, QUARANTINED, begin, begun, end, main, parser

FORMATS = ("seg", "coco", "geojson", "nifti", "png")


def options() -> argparse.ArgumentParser:
    job = parser("export_labels", "Writes labels as DICOM SEG, COCO JSON, GeoJSON (QuPath), NIfTI or PNG.")
    job.add_argument("--query", required=True, metavar="SQL", help="over the lake's tables; returns label_row_id, image_id or parent_id")
    job.add_argument("--format", required=True, choices=FORMATS, help="format of the files")
    job.add_argument("--out", required=True, metavar="FOLDER", help="folder or URI for the files; must be empty or absent")
    job.add_argument("--overwrite", action="store_true", help="replaces files of the same names")
    job.add_argument("--original-uids", action="store_true", help="seg: original UIDs by the crosswalk beside the key (deid.crosswalk)")
    return job


def run(given: argparse.Namespace) -> tuple[dict[str, Any], int]:
    from medspark import config
    from medspark.lake import card, export, sql

    settings = config.load(given.conf, given.set)
    request = export.Request(given.query, given.format, given.out, given.overwrite)
    request.check()
    key = card.must_exist(given.lake)
    restore = originals(settings, key, given.format) if given.original_uids else None
    spark, summary = begin("export_labels", given, settings)
    lake = sql.register(spark, given.lake)
    if not lake.exists("labels"):
        from medspark.errors import BadRequest

        raise BadRequest(f"--lake {given.lake}: holds no labels yet")
    begun(summary)
    with summary.timed("explode"):
        result = export.export(lake, request, restore)
    summary.versions = {"labels": int(lake.snapshot("labels").version())}
    summary.rejected, summary.images = result.rejected, result.parents - result.rejected
    summary.extra = {"out": given.out, "format": given.format, "files": result.files, "label_rows": result.label_rows, **result.said()}
    too_many = result.parents and result.rejected / result.parents > settings.quarantine.max_fraction
    return end(spark, lake, summary), QUARANTINED if too_many else DONE


def originals(settings: Any, fingerprint: str, format: str) -> Callable[[bytes, str], bytes] | None:
    """The crosswalk's way back, checked before Spark starts; None where the lake keeps the original UIDs itself."""
    from medspark import deid
    from medspark.deid.crosswalk import Crosswalk
    from medspark.errors import BadRequest
    from medspark.keys import Ids

    if format != "seg":
        raise BadRequest(f"--original-uids: only seg refers to images by UID; --format {format} has none to restore")
    if fingerprint == "none":
        return None
    path = settings.deid.key_path()
    key = deid.load_key(path, create=False)
    if Ids(key).fingerprint != fingerprint:
        raise BadRequest("--original-uids: this lake was written with another de-identification key; give its deid.key_file")
    crosswalk = Crosswalk.beside(path, key)
    crosswalk.check()
    return crosswalk.restore


if __name__ == "__main__":
    given = options().parse_args()
    main("export_labels", lambda: run(given), given.summary)
