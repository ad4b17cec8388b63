"""Imports annotations as labels per pixel: ``spark-submit jobs/import_labels.py --lake URI --input PATH...``"""

from __future__ import annotations

from _entry import ingest, ingest_parser
from _entry import main as run

FORMATS = ("auto", "asap", "geojson", "seg", "rtstruct", "ann", "nifti", "mask", "coco", "csv")


def options() -> object:
    parser = ingest_parser("import_labels", "Imports annotations (vector and raster) and rasterises them onto the images of the lake.")
    parser.add_argument("--format", default="auto", choices=FORMATS, help="format of the annotations")
    parser.add_argument("--pairs", metavar="FILE", help="CSV image,annotation: file names or paths, a series' folder or its series_id")
    parser.add_argument("--classes", metavar="FILE", help="CSV value,label,role: value is a number or #rrggbb")
    parser.add_argument(
        "--annotation-minutes", type=float, metavar="MINUTES", help="what people spent on drawing these; recorded in the table kpi"
    )
    return parser


def main() -> None:
    given = options().parse_args()  # type: ignore[attr-defined]
    from medspark.errors import BadRequest
    from medspark.labels.kind import labels_kind

    try:
        if given.annotation_minutes is not None and not 0 <= given.annotation_minutes < float("inf"):
            raise BadRequest(f"--annotation-minutes: expected 0 or more, got {given.annotation_minutes}")
        kind = labels_kind(given.format, given.pairs, given.classes, explicit_dataset=bool(given.dataset))
    except BadRequest as error:
        problem = error

        def refuse() -> dict[str, object]:
            raise problem

        run("import_labels", refuse)
    ingest(kind, given)


if __name__ == "__main__":
    main()
