"""Cuts whole-slide images into tiles: ``spark-submit jobs/tile_slides.py --lake URI --input PATH...``"""

from __future__ import annotations

from _entry import ingest, ingest_parser


def options() -> object:
    parser = ingest_parser("tile_slides", "Tiles whole-slide images (any OpenSlide format, DICOM, tiled TIFF) into the lake.")
    parser.add_argument("--tissue", metavar="FILE", help="tissue mask (PNG or TIFF) to use instead of the detected one")
    return parser


def main() -> None:
    given = options().parse_args()  # type: ignore[attr-defined]
    from medspark.slides.kind import slides_kind

    ingest(slides_kind(given.tissue), given)


if __name__ == "__main__":
    main()
