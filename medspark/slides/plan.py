"""From headers to work: slides put together, their grids chosen, their tiles cut into bands of tile rows. Pure, no pixels.

The files of a DICOM slide are its levels; they meet here by their SeriesInstanceUID. What makes up a unit (`Band`) is numbers and ids.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from medspark.config import Config, Tiling
from medspark.errors import Rejected
from medspark.keys import Ids
from medspark.pixels import masks
from medspark.slides import tissue
from medspark.slides.grid import Grid, LevelShape, choose
from medspark.slides.header import mask_of, pixel_size
from medspark.tables.names import file_token, folder_token
from medspark.tables.rows import Rejection, Rows
from medspark.tables.verdicts import usable
from medspark.tables.work import Plan, SourceFile, Unit

PASS_TILES_S = 60_000.0  # tiles a second on one core: copied with their tables spliced in
MADE_PX_S, READ_PX_S = 6e-9, 4e-9  # seconds of one core per pixel of a tile made anew, and per pixel that is read for it
BAND_S = 0.4  # a band's work: seconds, so that a lost task costs little and cores are evenly filled
BAND_TILES = 8_000  # at most, whatever they cost


@dataclass(frozen=True)
class Band:
    """Tile rows row0 <= row < row1 of one grid; everything that exploding them needs besides the files.

    level_source : which of the unit's sources holds each level
    level_size : (width, height) px of the level that is read, as it was scanned
    tissue_fractions : (n,) float64, one per tile of the band, over what lies on the slide
    """

    slide_id: str
    grid_id: str
    dataset: str
    subject_key: str
    grid: Grid
    row0: int
    row1: int
    level_source: tuple[int, ...]
    level_size: tuple[int, int]
    tissue_fractions: np.ndarray
    focal_plane: int
    optical_path: str


def plan(files: Sequence[SourceFile], ids: Ids, settings: Config, fingerprint: str) -> Plan:
    """Units, rows of ``slides``, ``grids`` and ``subjects``, and rejections.

    fingerprint : of the settings that change rows; a part of grid_id, so that a slide tiled anew under other settings gets other tiles
    """
    units: list[Unit] = []
    slides: list[dict[str, Any]] = []
    grids: list[dict[str, Any]] = []
    subjects: dict[str, dict[str, Any]] = {}
    rejections: list[Rejection] = []
    locks: dict[str, str] = {}
    for group in _groups(files):
        first = group[0]
        slide_id = ids.slide(first.dataset, first.header["private"].get("series_uid") or first.source_id)
        locks.update({source.source_id: f"slide:{slide_id}" for source in group})
        group, shadowed = _one_file_per_level(group)
        rejections += shadowed
        try:
            slide = _slide_row(slide_id, group, ids, settings)
            grid_row, bands = _bands(slide, group, ids, settings, fingerprint)
        except Rejected as rejected:
            rejections += [Rejection(source.source_id, source.uri, "plan", rejected.code, rejected.reason) for source in group]
            continue
        slides.append(slide)
        grids.append(grid_row)
        units += bands
        subjects[slide["subject_key"]] = {
            "subject_key": slide["subject_key"],
            "dataset": first.dataset,
            "sex": first.header["private"].get("patient_sex"),
            "age_years": None,
            "attributes": [],
        }
    rows = (Rows.of("subjects", list(subjects.values())), Rows.of("slides", slides), Rows.of("grids", grids))
    return Plan(tuple(units), tuple(item for item in rows if len(item)), tuple(rejections), locks)


def copies_tiles(tiling: Tiling, grid: Grid, level: LevelShape, compression: str) -> bool:
    """Whether whole tiles are the file's own bytes: the same grid, and the codec is how the file stores them (jpeg, jp2)."""
    return tiling.pixel_source == "auto" and compression.startswith(tiling.codec) and grid.passes_through(level)


def _groups(files: Sequence[SourceFile]) -> list[list[SourceFile]]:
    """Files of one slide together, largest level first; order never depends on how the files were listed."""
    groups: dict[tuple[str, str], list[SourceFile]] = {}
    for source in sorted(files, key=lambda item: (item.uri, item.source_id)):
        key = source.header["private"].get("series_uid")
        groups.setdefault((source.dataset, key or source.source_id), []).append(source)
    return [sorted(group, key=lambda item: -item.header["levels"][0]["width_px"]) for group in groups.values()]


def _one_file_per_level(group: Sequence[SourceFile]) -> tuple[list[SourceFile], list[Rejection]]:
    """The files that make up the slide (of two with the same level the smaller uri), and what becomes of the others."""
    kept: dict[tuple[tuple[int, int], ...], SourceFile] = {}
    rejections = []
    for source in group:
        sizes = tuple((level["width_px"], level["height_px"]) for level in source.header["levels"])
        first = kept.setdefault(sizes, source)
        if first is source:
            continue
        one, two = (item.header["private"].get("sop_uid") for item in (first, source))
        if len(sizes) > 1:  # OpenSlide shows the whole slide from each of its files
            continue
        if one != two:
            code, reason = "SLIDE_UNSUPPORTED", "another instance of the same series has the same size; only one becomes a level"
        elif first.header["thumbnail"] == source.header["thumbnail"]:  # made from all of the level's pixels
            code, reason = "DUPLICATE", "the same instance was found in another file"
        else:
            code, reason = "SOP_CONFLICT", "another file has the same SOPInstanceUID and other pixels"
        rejections.append(Rejection(source.source_id, source.uri, "plan", code, reason))
    return list(kept.values()), rejections


def _levels(group: Sequence[SourceFile]) -> tuple[list[dict[str, Any]], tuple[int, ...]]:
    """The slide's levels, finest first, and the place of each level's file in ``group``; files that share a level count once."""
    levels: dict[tuple[int, int], tuple[dict[str, Any], int]] = {}
    for place, source in enumerate(group):
        for level in source.header["levels"]:
            levels.setdefault((level["width_px"], level["height_px"]), (level, place))
    ordered = [levels[size] for size in sorted(levels, reverse=True)]  # as the readers order them
    return [level for level, _ in ordered], tuple(place for _, place in ordered)


def _slide_row(slide_id: str, group: Sequence[SourceFile], ids: Ids, settings: Config) -> dict[str, Any]:
    """One row of ``slides``."""
    first, header = group[0], group[0].header
    levels, level_source = _levels(group)
    l0 = levels[0]
    mpp_um, verdict = pixel_size(header["mpp_um"], settings.tiling.assume_mpp_um)
    subject_key, known = _subject(first, ids)
    seen = [] if known else ["NO_SUBJECT"]
    seen += sorted({code for source in group for code in source.header["verdict"]}) + verdict
    if len(levels) == 1:
        seen.append("NO_PYRAMID")
    picture = _pick_thumbnail(group, (l0["width_px"], l0["height_px"]), mpp_um)
    fraction = float(mask_of(picture).mean())
    if fraction == 0:
        seen.append("NO_TISSUE")
    downsamples = [(l0["width_px"] / level["width_px"] + l0["height_px"] / level["height_px"]) / 2 for level in levels]
    bounds, private = header["bounds_l0"], header["private"]
    instances = [group[place].header["private"].get("sop_uid") for place in level_source]
    specimen = private.get("specimen_id") or private.get("container_id")
    return {
        "slide_id": slide_id,
        "source_id": first.source_id,
        "dataset": first.dataset,
        "subject_key": subject_key,
        "specimen_key": ids.digest("specimen", private.get("issuer") or first.domain or first.dataset, specimen) if specimen else None,
        "vendor": header["vendor"],
        "scanner_model": header["scanner_model"],
        "stain": header["stain"],
        "width_l0_px": l0["width_px"],
        "height_l0_px": l0["height_px"],
        "bounds_l0": None if bounds is None else dict(zip(("x", "y", "width", "height"), map(int, bounds), strict=True)),
        "mpp_x_um": None if mpp_um is None else mpp_um[0],
        "mpp_y_um": None if mpp_um is None else mpp_um[1],
        "objective_power": header["objective_power"],
        "level_count": len(levels),
        "level_sizes_px": [{"width": level["width_px"], "height": level["height_px"]} for level in levels],
        "level_downsamples": downsamples,
        "tile_width_px": l0["tile_width_px"],
        "tile_height_px": l0["tile_height_px"],
        "compression": l0["compression"],
        "icc_profile": header["icc_profile"],
        "tissue_fraction": fraction,
        "tissue_mask": picture["tissue_mask"],
        "tissue_rows": picture["tissue_rows"],
        "tissue_cols": picture["tissue_cols"],
        "thumbnail": picture["thumbnail"],
        "properties": list(header["properties"].items()),
        "file_token": file_token(ids, first.uri),
        "folder_token": folder_token(ids, first.uri),
        "series_instance_id": ids.uid(private["series_uid"]) if private.get("series_uid") else None,
        "level_instance_ids": [ids.uid(uid) for uid in instances] if all(instances) else None,
        "verdict": seen,
        "usable": usable(seen, settings.verdicts),
    }


def _subject(source: SourceFile, ids: Ids) -> tuple[str, bool]:
    """subject_key (contract.md §2) and whether somebody said whose slide it is; a plain file is its own subject."""
    private, own_domain = source.header["private"], source.domain or source.dataset
    domain = private.get("issuer") or own_domain
    if source.subject:
        return ids.subject(own_domain, source.subject), True
    if private.get("patient_id"):
        return ids.subject(domain, private["patient_id"]), True
    if private.get("study_uid"):
        return ids.subject(own_domain, "study:" + private["study_uid"]), False
    return ids.subject(own_domain, "source:" + source.source_id), not private.get("series_uid")


def _pick_thumbnail(group: Sequence[SourceFile], l0_size: tuple[int, int], mpp_um: tuple[float, float] | None) -> Mapping[str, Any]:
    """The header whose thumbnail is nearest to the wished size; of equals the one made from most pixels."""
    cols, _ = tissue.thumbnail_size(*l0_size, mpp_um)
    return min((source.header for source in group), key=lambda header: round(abs(math.log(header["tissue_cols"] / cols)), 2))


def _make_s(grid: Grid) -> float:
    """Seconds that one tile takes to be read, brought to its resolution, measured and encoded."""
    factor = grid.frames.t_in_l
    return grid.tile_width_px * grid.tile_height_px * (MADE_PX_S + READ_PX_S * factor[0] * factor[1])


def _bands(
    slide: Mapping[str, Any], group: Sequence[SourceFile], ids: Ids, settings: Config, fingerprint: str
) -> tuple[dict[str, Any], list[Unit]]:
    """The row of ``grids`` and the units of one slide."""
    levels, level_source = _levels(group)
    mpp_um = None if slide["mpp_x_um"] is None else (slide["mpp_x_um"], slide["mpp_y_um"])
    shapes = [LevelShape(level["width_px"], level["height_px"], level["tile_width_px"], level["tile_height_px"]) for level in levels]
    grid = choose(settings.tiling, shapes, mpp_um)
    if grid.n_tiles == 0:
        raise Rejected("NO_IMAGE", "the slide is smaller than one tile and tiling.edge is drop")
    grid_id = ids.grid(slide["slide_id"], fingerprint)
    through = copies_tiles(settings.tiling, grid, shapes[grid.level], levels[grid.level]["compression"])
    tile_s = 1 / PASS_TILES_S if through and not settings.tiling.measure else _make_s(grid)
    n_bands = math.ceil(grid.n_tiles / max(1.0, min(BAND_TILES, BAND_S / tile_s)))
    rows_per_band = math.ceil(grid.n_rows / n_bands)  # as even as they come: the last one keeps no core waiting
    header = group[0].header
    mask = masks.unpack(slide["tissue_mask"], slide["tissue_rows"], slide["tissue_cols"])
    area = tissue.Area.of(mask, (grid.l0_width, grid.l0_height))
    sources, units, n_stored = tuple(source.bare() for source in group), [], 0
    for row0 in range(0, grid.n_rows, rows_per_band):
        row1 = min(row0 + rows_per_band, grid.n_rows)
        tiles = grid.table(row0, row1)
        ends = tiles["x_l0"] + tiles["width_l0"], tiles["y_l0"] + tiles["height_l0"]
        fractions = area.fractions(tiles["x_l0"], tiles["y_l0"], *ends)
        stored = int((fractions >= settings.tiling.min_tissue).sum())
        band = Band(
            slide_id=slide["slide_id"],
            grid_id=grid_id,
            dataset=slide["dataset"],
            subject_key=slide["subject_key"],
            grid=grid,
            row0=row0,
            row1=row1,
            level_source=level_source,
            level_size=(shapes[grid.level].width_px, shapes[grid.level].height_px),
            tissue_fractions=fractions,
            focal_plane=int(header["focal_plane"] or 0),
            optical_path=str(header["optical_path"] or ""),
        )
        n_stored += stored
        units.append(Unit(slide["slide_id"], sources, 0.05 + stored * tile_s, (row1 - row0) * grid.n_cols, band))
    frames = grid.frames
    row = {
        "grid_id": grid_id,
        "slide_id": slide["slide_id"],
        "tile_px": grid.tile_width_px,
        "tile_height_px": grid.tile_height_px if grid.tile_height_px != grid.tile_width_px else None,
        "level": grid.level if grid.by_mpp_um is None else None,
        "mpp_um": frames.t_mpp_um,
        "overlap_px": grid.overlap_px,
        "edge": grid.edge,
        "n_rows": grid.n_rows,
        "n_cols": grid.n_cols,
        "n_tiles": grid.n_tiles,
        "n_stored": n_stored,
        "downsample": math.sqrt(frames.t_scale[0] * frames.t_scale[1]),
    }
    return row, units
