"""``docs/tables.md``: the tables, verdicts and rejection codes as a page, rendered from the catalogue and nothing else.

``python -m medspark.tables.page`` writes the page, ``--check`` says whether it is stale. `VERDICTS` and `CODES` hold what the page says about
each code; a code without a sentence is an error, so that none is ever undocumented.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from medspark.errors import REJECTION_CODES, UNCOUNTED_CODES
from medspark.tables.catalog import ALL, SCHEMA_VERSION
from medspark.tables.schema import Column, Table
from medspark.tables.verdicts import SEVERITY

PAGE = Path("docs/tables.md")
COMMAND = "python -m medspark.tables.page"

VERDICTS: dict[str, dict[str, str]] = {
    "series": {
        "IRREGULAR_SPACING": "a gap differs from the median by more than the larger of 0.1 mm and 5 % (gaps of 0 left out)",
        "MISSING_SLICES": "a gap lies within 10 % of the median from an integer of 2 or more times the median",
        "DUPLICATE_POSITIONS": "positions repeat and no attribute tells volumes apart",
        "MULTI_VOLUME": "positions repeat and volumes (`t`) were told apart by time, echo, b value, phase, acquisition or image type",
        "MIXED_THICKNESS": "slices state different thicknesses",
        "MIXED_RESCALE": "slices have different slopes or intercepts; values are right slice by slice",
        "SPLIT_ORIENTATION": "the series was split by orientation or frame of reference; stands on every part",
        "SPLIT_SIZE": "the series was split by rows and columns; stands on every part",
        "GANTRY_TILT": "neighbouring origins are shifted sideways: more than 0.5° between step and normal",
        "SINGLE_SLICE": "one slice",
        "LOCALIZER": "ImageType says LOCALIZER",
    },
    "slice": {
        "NO_POSITION": "a CT or MR slice without a usable position and orientation",
        "NO_RESCALE": "a CT slice without slope and intercept (and without a modality LUT)",
        "MOSAIC": "the slices of a volume tiled into one image: its size, position and spacing are no slice’s",
        "LOSSY": "the pixels lost information at some time",
        "NO_UID": "SeriesInstanceUID or SOPInstanceUID is blank; folder and address stand in",
        "NO_SUBJECT": "nobody says whose image it is; study, folder or file stands in (series, and slides)",
        "PADDING_DOUBT": "the padding value cannot occur among the stored values",
        "SYNTAX_ASSUMED": "the file names no transfer syntax; it was read by how it is encoded",
        "BURNED_IN": "the header says that text is burned into the pixels (with `deid.burned_in = quarantine` it is rejected instead)",
        "BURNED_IN_POSSIBLE": "ultrasound, secondary or screen capture that does not say NO",
        "FACE_RECOGNISABLE": "CT or MR of a head: a face can be reconstructed",
    },
    "slide": {
        "NO_MPP": "no pixel size; `tiling.assume_mpp_um` supplies one",
        "MPP_DOUBT": "a pixel size outside 0.05 to 10 µm, treated as none",
        "NON_SQUARE_PIXELS": "width and height of a pixel differ by more than 1 %",
        "NO_PYRAMID": "one level",
        "COLOUR_DOUBT": "what the file says of its colours and what its JPEG streams say disagree",
        "NO_TISSUE": "no tissue was found",
    },
}
"""What each verdict of `SEVERITY` means, by what it stands on."""

CODES: dict[str, str] = {
    "NOT_DICOM": "not a DICOM file, or one whose data set cannot be parsed",
    "EMPTY_FILE": "0 bytes",
    "TRUNCATED": "the file ends before what it announces",
    "DECODER_CRASHED": "decoding it ended the process, on two attempts or alone",
    "DECODER_TIMEOUT": "decoding it took longer than `guard.decode_s` a step",
    "NO_IMAGE": "no pixels, no rows or columns, or a slide smaller than one tile where `tiling.edge = drop`",
    "MISSING_ATTRIBUTE": "an attribute without which pixels cannot be read is missing or no number",
    "UNSUPPORTED_SYNTAX": "video, pixels that lie elsewhere, a private or unknown transfer syntax",
    "DECODE_FAILED": "pixels, or anything else in the file, could not be decoded",
    "PIXEL_LENGTH": "fewer pixels or frames than the header says",
    "SOP_CONFLICT": "the same instance with other pixels is there already; the first stays",
    "BURNED_IN": "the header says that text is burned into the pixels",
    "SLIDE_UNREADABLE": "a slide that is broken",
    "SLIDE_UNSUPPORTED": "a slide that nobody here reads, or that cannot be tiled as asked",
    "NOT_A_SLIDE": "a single channel: a mask or fluorescence",
    "UNKNOWN_MPP": "a grid by micrometres on a slide without a pixel size",
    "ARCHIVE_MEMBER": "a member of an archive cannot be read",
    "NIFTI_UNREADABLE": "not a NIfTI file, or of a kind that is not read",
    "PHOTO_UNREADABLE": "a photo or array that cannot be read",
    "LABEL_GEOMETRY": "a shape that cannot be what it says, or a structure that does not lie on its images",
    "LABEL_SIZE": "a mask of another size than its image",
    "LABEL_FORMAT": "an annotation file that is broken or of an unknown form",
    "UNKNOWN_KIND": "a compressed or unknown file",
    "TOO_LARGE": "larger than `guard.max_pixels` or `guard.max_file_bytes`",
    "DUPLICATE": "the same instance with the same pixels is there already",
    "ORPHAN_LABEL": "an image of the annotation is not in the lake; the source waits, its labels appear when the image comes",
}
"""What each of `REJECTION_CODES` means."""


def page() -> str:
    """The whole page as Markdown."""
    parts = [
        "# Tables\n",
        f"Generated by `{COMMAND}` from `medspark/tables/catalog.py`, `verdicts.py` and `errors.py`; do not edit.\n",
        f"Schema version {SCHEMA_VERSION} (table property `medspark.schema`). All tables are Delta; table `t` lies at `<lake>/t`. A `?` marks a column that "
        "may be null, every other is never null. Only `sources` and `rejected` hold addresses (`uri`).\n",
        "| table | |\n|---|---|\n" + "\n".join(f"| [{table.name}](#{table.name}) | {_cell(table.doc)} |" for table in ALL) + "\n",
        *(_table(table) for table in ALL),
        _verdicts(),
        _codes(),
    ]
    return "\n".join(parts)


def _table(table: Table) -> str:
    key = ", ".join(f"`{name}`" for name in table.key)
    clustered = f" Clustered by {', '.join(f'`{name}`' for name in table.cluster_by)}." if table.cluster_by else ""
    head = f"## {table.name}\n\n{table.doc} Key: {key}.{clustered}\n\n| column | type | unit | |\n|---|---|---|---|\n"
    return head + "\n".join(_row(column) for column in table.columns) + "\n"


def _row(column: Column) -> str:
    dtype = column.dtype + ("?" if column.null else "")
    return f"| `{column.name}` | `{dtype}` | {column.unit} | {_cell(column.doc)} |"


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("<", "&lt;")


def _verdicts() -> str:
    said = {code for group in VERDICTS.values() for code in group}
    if said != set(SEVERITY):
        raise ValueError(f"verdicts without a sentence or without a severity: {sorted(said ^ set(SEVERITY))}")
    rows = [f"| `{code}` | {kind} | {SEVERITY[code]} | {_cell(text)} |" for kind, group in VERDICTS.items() for code, text in group.items()]
    intro = (
        "## Verdicts\n\nWhat is odd about data that were kept. `usable` is false where one of severity **block** is among them; the section "
        "`[verdicts]` of the settings overrides severities code by code.\n\n| verdict | on | severity | |\n|---|---|---|---|\n"
    )
    return intro + "\n".join(rows) + "\n"


def _codes() -> str:
    if set(CODES) != REJECTION_CODES:
        raise ValueError(f"codes without a sentence or unknown: {sorted(set(CODES) ^ REJECTION_CODES)}")
    rows = [f"| `{code}` | {'no' if code in UNCOUNTED_CODES else 'yes'} | {_cell(text)} |" for code, text in CODES.items()]
    intro = (
        "## Rejection codes\n\nIn `rejected.code`. Those that do not count are listed but enter neither `rejected` of a job's summary nor "
        "`quarantine.max_fraction`.\n\n| code | counts | |\n|---|---|---|\n"
    )
    return intro + "\n".join(rows) + "\n"


def main(argv: list[str] | None = None) -> int:
    """Writes the page into the working directory's ``docs``; with ``--check`` only compares (status 1: stale)."""
    options = argparse.ArgumentParser(prog=COMMAND, description="Writes docs/tables.md.")
    options.add_argument("--check", action="store_true", help="writes nothing; status 1 where the page is stale")
    given = options.parse_args(argv)
    text = page()
    if given.check:
        stale = not PAGE.exists() or PAGE.read_text(encoding="utf-8") != text
        if stale:
            print(f"{PAGE} is stale; run: {COMMAND}", file=sys.stderr)
        return int(stale)
    PAGE.parent.mkdir(exist_ok=True)
    PAGE.write_text(text, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
