"""Explodes DICOM and NIfTI series into slices: ``spark-submit jobs/explode_series.py --lake URI (--input PATH... | --watch FOLDER)``"""

from __future__ import annotations

from _entry import ingest, ingest_parser


def options() -> object:
    parser = ingest_parser(
        "explode_series",
        "Explodes CT, MR and other series (DICOM files, folders, a DICOMweb server, NIfTI) into slices in the lake.",
        watch=True,
    )
    parser.add_argument("--modality", default="OT", help="modality of NIfTI files, which do not say it")
    return parser


def main() -> None:
    given = options().parse_args()  # type: ignore[attr-defined]
    from medspark.series.kind import series_kind

    ingest(series_kind(given.modality), given)


if __name__ == "__main__":
    main()
