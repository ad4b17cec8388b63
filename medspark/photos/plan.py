"""Headers -> units of work: runs of photos, or of images of one array. Pure; pointers travel, never pixels."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from medspark.config import Config
from medspark.keys import Ids
from medspark.photos.arrays import Part
from medspark.photos.classes import Class, Classes
from medspark.tables.rows import Rows
from medspark.tables.work import Plan, SourceFile, Unit

UNIT_S = 3.0  # seconds of work in one unit: small enough to balance, large enough that starting it costs nothing
BASE_S = 1e-3  # opening a file; a row of each table
PIXEL_S = 2.5e-8  # decode, hash and, of what is no JPEG, PNG level 1: 40 million pixels of RGB a second
SPLIT_BYTES = 64 << 20  # decoded bytes of an array in one unit ...
SPLITS = 8  # ... and at most so many units of one array: each inflates all that lies before its images


def plan(files: list[SourceFile], ids: Ids, settings: Config, classes: Classes) -> Plan:
    """Units in the order of the sources' ids, so that payload files hold ranges of ids and their statistics prune; subjects that were given.

    Subjects that an image is on its own come with the image. Each file is locked: read by two jobs under different options at a time, it
    would be stored twice.
    """
    units: list[Unit] = []
    subjects: dict[str, dict[str, Any]] = {}
    run: list[SourceFile] = []
    spent = 0.0
    for source in sorted(files, key=lambda item: item.source_id):
        header = source.header
        if source.subject:
            key = ids.subject(source.domain, source.subject)
            subjects[key] = subject_row(key, source.dataset)
        cost = BASE_S * header["images"] + PIXEL_S * header["pixels"]
        if header["format"] == "npz":
            units += _array_units(source, classes.of_file(source.uri))
            continue
        if run and spent + cost > UNIT_S:
            units.append(_unit(run, spent, classes))
            run, spent = [], 0.0
        run.append(source)
        spent += cost
    if run:
        units.append(_unit(run, spent, classes))
    rows = (Rows.of("subjects", [subjects[key] for key in sorted(subjects)]),) if subjects else ()
    locks = {source.source_id: "photo:" + source.source_id for source in files}
    return Plan(tuple(sorted(units, key=lambda unit: unit.parent_id)), rows, (), locks)


def subject_row(key: str, dataset: str) -> dict[str, Any]:
    """A subject of whom nothing else is known."""
    unknown = dict.fromkeys(("sex", "age_years", "follow_up_days", "event"))
    return {"subject_key": key, "dataset": dataset, **unknown, "attributes": {}}


def _unit(run: list[SourceFile], cost: float, classes: Classes) -> Unit:
    given: dict[str, tuple[Class, ...]] = {source.source_id: classes.of_file(source.uri) for source in run}
    formats = {source.source_id: source.header["format"] for source in run}
    images = sum(source.header["images"] for source in run)
    return Unit(run[0].source_id, tuple(source.bare() for source in run), cost, images, {"formats": formats, "classes": given})


def _array_units(source: SourceFile, given: tuple[Class, ...]) -> Iterator[Unit]:
    for part in source.header["parts"]:
        for start, stop in spans(part):
            pixels = (stop - start) * part.rows * part.cols
            cost = BASE_S * (stop - start) / 4 + PIXEL_S * pixels
            work = {"part": part, "start": start, "stop": stop, "classes": {source.source_id: given}}
            yield Unit(source.source_id, (source.bare(),), cost, stop - start, work)


def spans(part: Part) -> Iterator[tuple[int, int]]:
    """(start, stop) of the runs of images that are units of their own."""
    size = max(SPLIT_BYTES, -(-part.count * part.image_bytes // SPLITS))
    step = max(1, size // part.image_bytes)
    for start in range(0, part.count, step):
        yield start, min(part.count, start + step)
