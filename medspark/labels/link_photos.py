"""Annotations of photos to rows of ``labels``: each photo is an image of its own, in pixels, whatever else the file annotates."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from datetime import datetime

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from medspark.config import Config
from medspark.keys import Ids
from medspark.labels.link_slices import link_slices
from medspark.tables.rows import Rejection, Rows
from medspark.tables.work import SourceFile

Values = Callable[[list[str]], Mapping[str, np.ndarray]]


def link_photos(
    photos: pa.Table,
    regions: pa.Table,
    planes: pa.Table,
    values: Values,
    source: SourceFile,
    ids: Ids,
    settings: Config,
    now: datetime,
) -> Iterator[Rows | Rejection]:
    """Rows of ``labels`` for every photo that a region or plane names.

    photos : rows of ``photos``, whole sources (an array's images come together)
    regions, planes : those of ``source``; what is placed in a patient (an affine, a contour in mm) belongs to a series of the same name
    values : stored arrays of the given images
    A name that several photos have is meant for each of them. Rejections as of `link_slices`.
    """
    regions = regions.filter(pc.not_equal(regions.column("geometry"), "contour"))
    planes = planes.filter(pc.is_null(planes.column("affine")))
    for photo, named in of_sources(photos):
        refs = pa.array(sorted(named), pa.string())
        drawn = regions.filter(pc.is_in(regions.column("ref_image"), value_set=refs))
        painted = planes.filter(pc.is_in(planes.column("ref_image"), value_set=refs))
        if drawn.num_rows or painted.num_rows:
            yield from link_slices(None, photo, None, drawn, iter([painted]), values, source, ids, settings, now)


def of_sources(photos: pa.Table) -> Iterator[tuple[pa.Table, set[str]]]:
    """(rows of one source, what references may call them), in the order of the sources' ids."""
    if not photos.num_rows:
        return
    ordered = photos.sort_by([("source_id", "ascending"), ("image_id", "ascending")])
    sources = ordered.column("source_id").to_pylist()
    starts = [place for place, source in enumerate(sources) if place == 0 or source != sources[place - 1]]
    for start, stop in zip(starts, [*starts[1:], len(sources)], strict=True):
        part = ordered.slice(start, stop - start)
        name, folder = part.column("file_token")[0].as_py(), part.column("folder_token")[0].as_py()
        named = {f"name:{name}", f"path:{folder}/{name}", f"image:{sources[start]}"}
        yield part, named | {f"image:{image_id}" for image_id in part.column("image_id").to_pylist()}
