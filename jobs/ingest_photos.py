"""Ingests photos and arrays of images: ``spark-submit jobs/ingest_photos.py --lake URI --input PATH...``"""

from __future__ import annotations

from _entry import ingest, ingest_parser
from _entry import main as run


def options() -> object:
    from medspark.tables.names import MASK_NAMES

    parser = ingest_parser(
        "ingest_photos", "Ingests photos (PNG, JPEG, TIFF, BMP, zips of them) and arrays of images (.npz) into the lake."
    )
    parser.add_argument("--class-from", default="none", choices=("none", "folder"), help="folder: the folder's name is the image's label")
    parser.add_argument("--class-pattern", default="", metavar="REGEX", help="group 1 of the file name is the image's label")
    parser.add_argument("--labels", metavar="FILE", help="CSV file,label[,value][,role]: labels of images by file name or path")
    parser.add_argument("--classes", metavar="FILE", help="CSV value,label,role: what the values of an array's labels mean")
    parser.add_argument("--exclude", default=MASK_NAMES, metavar="REGEX", help="file names that are left out; empty for none")
    return parser


def main() -> None:
    given = options().parse_args()  # type: ignore[attr-defined]
    from medspark.errors import BadRequest
    from medspark.labels.codebook import read_codebook
    from medspark.photos.kind import photos_kind

    try:
        entries = read_codebook(given.classes).entries if given.classes else ()
        names = {entry.value: (entry.label, entry.role) for entry in entries}
        kind = photos_kind(given.class_from, given.class_pattern, given.labels, names, given.exclude)
    except BadRequest as error:
        problem = error

        def refuse() -> dict[str, object]:
            raise problem

        run("ingest_photos", refuse)
    ingest(kind, given)


if __name__ == "__main__":
    main()
