"""A task of a prediction by itself, without Spark: planned rows in, files of rows out, whatever is missing or refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from medspark.keys import rng
from medspark.lake.predict_task import Worker, confidence
from medspark.pixels import encode
from medspark.pixels.masks import unpack
from medspark.tables.catalog import TABLES
from medspark.tables.rows import Rows
from tests.lake.predicting import Above

SERIES = "5" * 32
SIZE = (9, 12)


def image_id(k: int) -> str:
    return SERIES[:16] + f"{k:016x}"


def stored(k: int) -> np.ndarray:
    return rng(1, "slice", k).integers(0, 2000, SIZE).astype(np.int16)


def payload(folder: Path, ks: list[int], damaged: int | None = None) -> list[dict[str, Any]]:
    """A file of ``pixels``, as `Lake.actions` lists it."""
    rows = Rows.of(
        "pixels",
        [
            {
                "image_id": image_id(k),
                "dataset": "d",
                "parent_id": SERIES,
                "codec": "blosc2",
                "dtype": "int16",
                "shape": list(SIZE),
                "params": {},
                "crc32c": 0,
                "n_bytes": 0,
                "bytes": encode(stored(k), "blosc2") if k != damaged else b"no blosc2 at all",
            }
            for k in ks
        ],
    )
    pq.write_table(pa.Table.from_batches([rows.to_arrow("run", "batch")]), folder / "pixels.parquet")
    return [{"path": str(folder / "pixels.parquet"), "min.parent_id": SERIES, "max.parent_id": SERIES}]


def planned(k: int | None, wanted: bool = True, piece: str = "p", number: int | None = None, **more: Any) -> dict[str, Any]:
    row = {"piece": piece, "wanted": wanted, "image_id": image_id(k if number is None else number), "parent_id": SERIES}  # type: ignore[arg-type]
    rest = {"dataset": "d", "subject_key": "s", "t": 0, "k": k, "rescale_slope": 1.0, "rescale_intercept": -1024.0, "modality_lut": None}
    none = dict.fromkeys(("pixel_spacing_mm", "pixel_spacing_source", "mpp_um", "valid_height_px", "valid_width_px"))
    return {**row, **rest, **none, **more}


def run(
    folder: Path, model: Above, rows: list[dict[str, Any]], ks: list[int], table: str = "labels", damaged: int | None = None
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    (folder / "lake").mkdir()
    work = Worker(model, str(folder / "lake"), table, "run", "batch", 2, payload(folder, ks, damaged))
    said = [json.loads(batch.column(0)[0].as_py()) for batch in work([pa.RecordBatch.from_pylist(rows)])]
    if not said:
        return {}, []
    files = [folder / "lake" / table / file["path"] for file in said[0]["files"]]
    return said[0], [row for file in files for row in pq.read_table(file, schema=TABLES[table].arrow()).to_pylist()]


def test_slices_are_seen_with_their_neighbours(tmp_path: Path) -> None:
    model = Above(context=1)
    rows = [planned(k, wanted=k in (1, 2)) for k in range(4)]
    said, found = run(tmp_path, model, rows, [0, 1, 2, 3])
    assert (said["images"], said["reasons"], len(found)) == (2, {}, 4)
    for row in found:
        k = next(k for k in range(4) if image_id(k) == row["image_id"])
        p = model.one([stored(k - 1), stored(k), stored(k + 1)], rows[:3])[..., model.labels.index(row["label"])]
        mask = p >= model.thresholds[row["label"]]
        assert (unpack(row["mask"], *SIZE) == mask).all() and row["confidence"] == pytest.approx(confidence(mask, p))
        assert (row["source"], row["annotator"], row["round"], row["source_id"]) == ("model", "model:above", 2, None)


def test_what_is_not_stored_is_counted(tmp_path: Path) -> None:
    said, found = run(tmp_path, Above(context=1), [planned(k) for k in range(5)], [0, 1, 2, 3])
    assert said["images"] == 3 and list(said["reasons"].values()) == [2]  # the last one, and its neighbour
    assert {row["image_id"] for row in found} == {image_id(k) for k in (0, 1, 2)}


def test_damage_costs_its_image_alone(tmp_path: Path) -> None:
    said, found = run(tmp_path, Above(), [planned(k) for k in range(5)], [0, 1, 2, 3, 4], damaged=2)
    assert said["images"] == 4 and list(said["reasons"].values()) == [1]
    assert {row["image_id"] for row in found} == {image_id(k) for k in (0, 1, 3, 4)}


def test_a_slice_without_a_place_stands_alone(tmp_path: Path) -> None:
    model = Above(context=1)
    said, found = run(tmp_path, model, [planned(None, number=7), planned(0), planned(1)], [0, 1, 7])
    assert said["images"] == 3
    (bright,) = [row for row in found if row["image_id"] == image_id(7) and row["label"] == "bright"]
    assert (unpack(bright["mask"], *SIZE) == (model.one([stored(7)] * 3, [planned(0)] * 3)[..., 0] >= 0.5)).all()


def test_a_piece_that_nobody_wants_writes_nothing(tmp_path: Path) -> None:
    assert run(tmp_path, Above(context=1), [planned(k, wanted=False) for k in range(3)], [0, 1, 2]) == ({}, [])


def test_the_padding_of_a_tile_is_never_inside(tmp_path: Path) -> None:
    model = Above()
    tile = {"valid_height_px": 5, "valid_width_px": 7, "mpp_um": 0.5, "rescale_slope": None, "rescale_intercept": None}
    _, found = run(tmp_path, model, [planned(0, **tile)], [0])
    for row in found:
        mask = unpack(row["mask"], *SIZE)
        assert not mask[5:].any() and not mask[:, 7:].any() and mask.any()
        assert row["fraction"] == mask.sum() / 35 and row["area_mm2"] == pytest.approx(mask.sum() * 0.25e-6)


def test_classes_are_ranked(tmp_path: Path) -> None:
    said, found = run(tmp_path, Above("classification"), [planned(k) for k in range(3)], [0, 1, 2], "predictions")
    assert said["images"] == 3 and len(found) == 6
    for k in range(3):
        both = sorted((row for row in found if row["image_id"] == image_id(k)), key=lambda row: row["rank"])
        assert [row["rank"] for row in both] == [0, 1] and both[0]["probability"] >= both[1]["probability"]
        assert sum(row["probability"] for row in both) == pytest.approx(1)


def test_many_images_leave_in_several_batches(tmp_path: Path) -> None:
    said, found = run(tmp_path, Above(context=2), [planned(k) for k in range(50)], list(range(50)))
    assert said["images"] == 50 and len(found) == 100 == len({row["label_row_id"] for row in found})


@pytest.mark.parametrize(("count", "depth"), [(3, 3), (2, 4), (9, 4)])
def test_each_slice_of_a_volume_gets_the_nearest_plane(tmp_path: Path, count: int, depth: int) -> None:
    model = Above(depth=depth)
    said, found = run(tmp_path, model, [planned(k, wanted=k > 0) for k in range(count)], list(range(count)))
    assert said["images"] == count - 1 and len(found) == 2 * (count - 1)
    shown = [place for place in model.planes(count) if place >= 0]
    for row in found:
        k = next(k for k in range(count) if image_id(k) == row["image_id"])
        nearest = min(shown, key=lambda place: (abs(place - k), place))
        p = Above().one([stored(nearest)], [planned(nearest)])[..., model.labels.index(row["label"])]
        assert (unpack(row["mask"], *SIZE) == (p >= model.thresholds[row["label"]])).all()


def test_the_classes_of_a_volume_stand_at_its_middle_slice(tmp_path: Path) -> None:
    said, found = run(tmp_path, Above("classification", depth=4), [planned(k) for k in range(7)], list(range(7)), "predictions")
    assert said["images"] == 7 and {row["image_id"] for row in found} == {image_id(3)} and len(found) == 2


def test_a_volume_that_lacks_a_plane_is_not_predicted(tmp_path: Path) -> None:
    said, found = run(tmp_path, Above(depth=3), [planned(k) for k in range(3)], [0, 2])
    assert said["images"] == 0 and sum(said["reasons"].values()) == 3 and not found
