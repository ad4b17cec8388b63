"""`open_lake` on a lake with known truth and on real CT: arrays, affines, masks, pictures, versions; without Spark, and equal to Spark."""

from __future__ import annotations

import io
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.compute as pc
import pytest
from PIL import Image

import medspark
from medspark.errors import BadRequest
from medspark.lake import volume
from medspark.lake.open import OpenLake
from medspark.pixels import masks
from medspark.pixels.picture import COLOURS, drawn
from medspark.pixels.window import windowed
from tests.conftest import ROOT
from tests.lake import harness, reading
from tests.real import shared_data

HALF_STEP_HU = 1 / 32  # the phantoms' fields are stored in sixteenths


@pytest.fixture
def lake(built: reading.Built) -> OpenLake:
    return medspark.open_lake(str(built.uri))


def positions(affine: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """LPS mm of every voxel of an array (k, row, col), by its affine of (col, row, k, 1)."""
    k, row, col = np.indices(shape)
    return np.stack([col, row, k, np.ones(shape)], axis=-1) @ affine.T[:, :3]


def test_import_medspark_is_light() -> None:
    code = "import sys, medspark; print(sorted(m for m in sys.modules if m in ('pyarrow', 'pyspark', 'duckdb', 'deltalake', 'pydicom', 'scipy')))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True).stdout.strip() == "[]"
    with pytest.raises(AttributeError, match="no_such"):
        _ = medspark.no_such  # type: ignore[attr-defined]


@pytest.mark.spark
def test_reading_needs_neither_spark_nor_a_jvm(built: reading.Built) -> None:
    code = f"""
import sys, medspark
lake = medspark.open_lake({str(built.uri)!r})
assert lake.sql("SELECT sum(mask_area(mask, rows, cols)) AS px FROM labels").to_pylist()[0]["px"] > 0
lake.show(lake.sql("SELECT image_id FROM slices_labelled LIMIT 1").to_pylist()[0]["image_id"])
print(lake.volume({built.series["even"]!r}).array.shape, sorted(m for m in sys.modules if m.startswith(("pyspark", "py4j", "tensorflow"))))
"""
    done = subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, cwd=ROOT, timeout=120)
    assert done.stdout.strip() == "(12, 16, 20) []", done.stderr
    assert done.stderr == ""  # no report of leaks at the interpreter's end


@pytest.mark.spark
@pytest.mark.parametrize("name", ["even", "tilted"])
def test_a_volume_is_where_its_affine_says(lake: OpenLake, built: reading.Built, name: str) -> None:
    found = lake.volume(built.series[name])
    assert found.array.dtype == np.float32 and found.array.shape == (len(reading.EVEN_MM), reading.ROWS, reading.COLS)
    assert np.abs(found.array - reading.field(positions(found.affine, found.array.shape))).max() <= HALF_STEP_HU + 1e-3
    series = lake.rows("series", series_id=built.series[name]).to_pylist()[0]
    assert np.allclose(found.affine, np.array(series["affine_lps_mm"]).reshape(4, 4))


@pytest.mark.spark
@pytest.mark.parametrize(("name", "spacing_mm"), [("even", 0.5), ("even", (3.0, 0.4, 1.1)), ("tilted", 0.6), ("uneven", (1.0, 0.5, 0.75))])
def test_a_resampled_volume_has_the_values_of_its_places(
    lake: OpenLake, built: reading.Built, name: str, spacing_mm: float | tuple[float, float, float]
) -> None:
    plain = lake.volume(built.series[name], uneven=name == "uneven")
    found = lake.volume(built.series[name], spacing_mm=spacing_mm, uneven=name == "uneven")
    places = positions(found.affine, found.array.shape)
    right = np.abs(found.array - reading.field(places)) <= HALF_STEP_HU + 1e-2
    empty = found.array == plain.array.min()
    beyond = ~right & ~empty
    if name == "tilted":  # within half a pixel beyond a slice's outer centres its last pixel is repeated; further out is empty
        assert right.mean() > 0.5 and beyond.mean() < 0.15 and empty.mean() > 0.3
    else:
        assert right.all()
    steps = np.linalg.norm(found.affine[:3, [2, 1, 0]], axis=0)
    assert np.allclose(steps, volume.spacing_of(spacing_mm))
    axes = found.affine[:3, :3] / steps[::-1]
    assert np.allclose(axes.T @ axes, np.eye(3), atol=1e-9)  # upright, also where the gantry was tilted
    first, last = places.min(axis=(0, 1, 2)), places.max(axis=(0, 1, 2))
    low, high = (edge(positions(plain.affine, plain.array.shape), axis=(0, 1, 2)) for edge in (np.min, np.max))
    if name == "even":
        assert np.allclose(first, low)
        assert (last <= high + 1e-6).all() and (last > high - np.array(volume.spacing_of(spacing_mm))[::-1]).all()


def test_two_dimensions_by_the_definition() -> None:
    """Bilinear, spot-checked by hand: half way between four pixels is their mean; beyond half a pixel is nothing."""
    image = np.array([[0, 2], [4, 10]], np.float32)
    values, inside = volume._plane(image, np.array([0.5]), np.array([0.5]))
    assert (values.tolist(), inside.tolist()) == ([[4.0]], [[True]])
    values, inside = volume._plane(image, np.array([-0.4, 1.6]), np.array([0.0, 1.0]))
    assert (values[0].tolist(), inside.tolist()) == ([0.0, 2.0], [[True, True], [False, False]])
    assert volume._plane(image[:1, :1], np.array([0.0]), np.array([0.0]))[0].tolist() == [[0.0]]


@pytest.mark.spark
def test_what_is_no_volume_is_refused_with_its_verdicts(lake: OpenLake, built: reading.Built) -> None:
    with pytest.raises(BadRequest, match=r"not evenly spaced \(verdicts: IRREGULAR_SPACING, MISSING_SLICES\).*uneven=True"):
        lake.volume(built.series["uneven"])
    stacked = lake.volume(built.series["uneven"], uneven=True)
    assert stacked.array.shape[0] == len(reading.UNEVEN_MM)
    for uneven in (False, True):
        with pytest.raises(BadRequest, match="DUPLICATE_POSITIONS"):
            lake.volume(built.series["doubled"], uneven=uneven)
    with pytest.raises(BadRequest, match=r"1 volume\(s\).*t = 1"):
        lake.volume(built.series["even"], t=1)
    with pytest.raises(BadRequest, match="no series"):
        lake.volume("0" * 32)
    for spacing_mm in (0.0, (1.0, 2.0), (1.0, -1.0, 1.0), float("nan")):
        with pytest.raises(BadRequest, match="spacing_mm"):
            lake.volume(built.series["even"], spacing_mm=spacing_mm)
    single = lake.volume(built.series["dark"], uneven=True)
    assert single.array.shape == (1, reading.ROWS, reading.COLS)


@pytest.mark.spark
def test_rows_come_from_the_files_that_can_have_them(lake: OpenLake, built: reading.Built) -> None:
    series = built.series["even"]
    found = lake.rows("slices", ["k", "series_id"], series_id=series)
    assert sorted(found.column("k").to_pylist()) == list(range(len(reading.EVEN_MM)))
    data_set = lake.table("slices")
    where = pc.field("series_id") == series
    assert data_set.to_table(columns=["k"], filter=where).num_rows == found.num_rows
    assert list(lake.table("tiles").get_fragments(pc.field("slide_id") == series)) == []
    assert lake.table("slices").to_table().num_rows == len(harness.rows(built.uri, "slices"))
    assert lake.table("photos").to_table().num_rows == 0
    assert lake.rows("slices", series_id=[series, built.series["dark"]]).num_rows == len(reading.EVEN_MM) + 1
    for refused in (lambda: lake.table("nosuch"), lambda: lake.rows("slices", nosuch=1)):
        with pytest.raises(BadRequest, match="nosuch"):
            refused()


@pytest.mark.spark
def test_masks_are_those_of_the_readers(lake: OpenLake, built: reading.Built) -> None:
    rows = lake.sql("SELECT label_row_id, k, area_px, instance_key, annotator FROM slices_labelled ORDER BY annotator, k").to_pylist()
    slices, wanted_rows, wanted_cols = reading.SECOND
    truth = np.zeros((reading.ROWS, reading.COLS), bool)
    truth[wanted_rows, wanted_cols] = True
    seen = 0
    for row in rows:
        mask = lake.mask(row["label_row_id"])
        assert mask.sum() == row["area_px"]
        if slices.start <= row["k"] < slices.stop:
            assert np.array_equal(mask, truth)
            seen += 1
    assert seen == 2 * (slices.stop - slices.start)
    together = lake.masks(parent_id=built.series["even"])
    assert set(together) == {row["label_row_id"] for row in rows}
    assert all(np.array_equal(mask, lake.mask(name)) for name, mask in together.items())
    with pytest.raises(BadRequest, match="no label"):
        lake.mask("0" * 32)


@pytest.mark.spark
def test_images_of_several_parents_come_together(lake: OpenLake, built: reading.Built) -> None:
    tiles = lake.rows("tiles", ["image_id", "pixel_source"]).to_pylist()
    slices = lake.rows("slices", ["image_id"], series_id=[built.series["even"], built.series["dark"]]).to_pylist()
    found = lake.images([row["image_id"] for row in [*tiles, *slices]] + ["0" * 32])
    stored = {row["image_id"] for row in tiles if row["pixel_source"] != "none"} | {row["image_id"] for row in slices}
    assert set(found) == stored and len(stored) > len(slices)  # what has no pixels is left out
    assert all(np.array_equal(array, lake.image(image_id)) for image_id, array in found.items())


def test_a_fractional_mask_counts_from_its_own_threshold() -> None:
    from medspark.lake.open import _mask

    fractions = np.array([[0, 60, 128, 255]], np.uint8)
    row = {"rows": 1, "cols": 4, "mask_codec": "u8-zstd", "mask": masks.pack_u8(fractions)}
    assert _mask({**row, "threshold": None}).tolist() == [[False, False, True, True]]
    assert _mask({**row, "threshold": 0.2}).tolist() == [[False, True, True, True]]
    assert _mask({**row, "threshold": 0.0}).tolist() == [[False, True, True, True]]


def shown(data: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(data))).astype(int)


@pytest.mark.spark
def test_pictures_show_outlines_and_dark_is_inverted(lake: OpenLake, built: reading.Built, tmp_path: Path) -> None:
    image_id = lake.sql("SELECT image_id FROM slices_labelled WHERE k = 4 LIMIT 1").to_pylist()[0]["image_id"]
    picture = lake.show(image_id)
    picture.save(tmp_path / "one.png")
    array = shown(picture._repr_png_())
    assert np.array_equal(shown((tmp_path / "one.png").read_bytes()), array)
    assert array.shape[0] / array.shape[1] == pytest.approx(reading.ROWS * 0.5 / (reading.COLS * 0.75), rel=0.01)
    colour = [int(COLOURS[0][place : place + 2], 16) for place in (1, 3, 5)]
    assert (array == colour).all(axis=-1).sum() > 500
    assert not (shown(lake.show(image_id, labels=False)._repr_png_()) == colour).all(axis=-1).any()

    (dark,) = lake.rows("slices", ["image_id"], series_id=built.series["dark"]).column(0).to_pylist()
    values = lake.image(dark, rescaled=True)
    centre, width = float(values.mean()), float(np.ptp(values)) / 2
    wanted = 255 - windowed(values, centre, width)
    grey = lake.show(dark, window=(centre, width)).array
    assert (grey[0, 0] == wanted[0, 0]).all() and (grey[-1, -1] == wanted[-1, -1]).all() and wanted[0, 0] > wanted[-1, -1]
    assert np.array_equal(
        lake.show(dark).array, drawn(255 - windowed(values, 0, 400, "LINEAR"), aspect=0.5 / 0.75).array
    )  # the file's window
    tile = lake.sql("SELECT image_id FROM tiles_labelled LIMIT 1").to_pylist()[0]["image_id"]
    assert (lake.show(tile).array == colour).all(axis=-1).any()


def test_a_picture_of_a_mask_that_covers_all_has_a_border() -> None:
    picture = drawn(np.zeros((600, 500), np.uint8), [("всё", np.ones((600, 500), bool))])
    colour = np.array([int(COLOURS[0][place : place + 2], 16) for place in (1, 3, 5)])
    assert (picture.array[0] == colour).all() and (picture.array[300, 200:300] == 0).all()


@pytest.mark.spark
def test_versions_stay_until_refreshed(spark: Any, tmp_path: Path) -> None:
    from tests.phantoms import series as phantoms

    where = tmp_path / "lake"
    harness.run(spark, where, [phantoms.write_series(tmp_path / "a", [0, 2])])
    lake = medspark.open_lake(str(where))
    count = lambda opened: opened.sql("SELECT count(*) AS n FROM slices").to_pylist()[0]["n"]
    assert count(lake) == 2
    before = lake.versions
    more = phantoms.write_series(
        tmp_path / "b", [0, 2, 4], SeriesInstanceUID=phantoms.ROOT + "3", SOPInstanceUID=tuple(f"{phantoms.ROOT}8.{n}" for n in range(3))
    )
    harness.run(spark, where, [more])
    assert count(lake) == 2 and lake.table("slices").count_rows() == 2
    assert count(lake.refresh()) == 5
    old = medspark.open_lake(str(where), versions=before)
    assert count(old) == count(old.refresh()) == 2
    assert old.versions == before
    for versions, said in (({"slices": 99}, "no version 99"), ({"nosuch": 1}, "nosuch"), ({"photos": 0}, "no table photos")):
        with pytest.raises(BadRequest, match=said):
            medspark.open_lake(str(where), versions=versions)
    with pytest.raises(BadRequest, match="no lake there"):
        medspark.open_lake(str(tmp_path / "nothing"))


@pytest.mark.spark
def test_an_older_lake_has_nulls_and_odd_paths_are_read(spark: Any, built: reading.Built, tmp_path: Path) -> None:
    """Columns that an older release did not write are null; brackets in a path are no pattern."""
    where = tmp_path / "odd [1] 'lake'"
    frame = spark.read.format("delta").load(str(built.uri / "slices"))
    frame.drop("file_token", "modality_lut").coalesce(1).write.format("delta").save(str(where / "slices"))
    for path in (where, tmp_path / "plain"):
        if path != where:
            where.rename(path)
        lake = medspark.open_lake(str(path))
        found = lake.sql("SELECT count(*) AS n, count(file_token) AS tokens, count(modality_lut) AS luts FROM slices").to_pylist()
        assert found == [{"n": frame.count(), "tokens": 0, "luts": 0}]
        assert lake.table("slices").to_table(columns=["file_token"]).column(0).null_count == frame.count()


@pytest.mark.spark
def test_a_query_that_cannot_be_is_one_sentence(lake: OpenLake) -> None:
    for query, said in (
        ("SELECT nosuch FROM slices", "nosuch"),
        ("SELEC 1", "SELEC"),
        ("SELECT * FROM nosuch", "nosuch"),
    ):
        with pytest.raises(BadRequest, match=said) as refused:
            lake.sql(query)
        assert "\n" not in str(refused.value)
    with pytest.raises(Exception, match="pixels are"):
        lake.sql("SELECT mask_area(mask, rows, cols + 100) FROM labels")
    with pytest.raises(BadRequest, match="no image"):
        lake.image("0" * 32)
    tile = lake.sql("SELECT image_id FROM tiles LIMIT 1").to_pylist()[0]["image_id"]
    with pytest.raises(BadRequest, match="no slice"):
        lake.image(tile, rescaled=True)


@pytest.mark.spark
def test_real_ct_equals_simpleitk(spark: Any, tmp_path: Path) -> None:
    import pydicom
    import SimpleITK

    folder = shared_data("ct/dcmqi_liver/ct-3slice")
    harness.run(spark, tmp_path / "lake", [folder])
    lake = medspark.open_lake(str(tmp_path / "lake"))
    (series,) = lake.rows("series").to_pylist()
    found = lake.volume(series["series_id"])
    files = sorted(map(str, folder.iterdir()), key=lambda path: pydicom.dcmread(path, stop_before_pixels=True).ImagePositionPatient[2])
    image = SimpleITK.ReadImage(files)
    assert np.array_equal(found.array, SimpleITK.GetArrayFromImage(image))
    assert np.allclose(found.affine[:3, 3], image.GetOrigin())
    assert np.allclose(np.linalg.norm(found.affine[:3, :3], axis=0), image.GetSpacing(), atol=1e-6)

    ours = lake.volume(series["series_id"], spacing_mm=(0.5, 2.0, 1.3))
    size = [int(side) for side in ours.array.shape[::-1]]
    grid = SimpleITK.Resample(SimpleITK.Cast(image, SimpleITK.sitkFloat32), size, SimpleITK.Transform(), SimpleITK.sitkLinear, ours.affine[:3, 3].tolist(), (1.3, 2.0, 0.5), image.GetDirection(), 0.0)  # fmt: skip
    inside = np.s_[1:-1, 1:-1, 1:-1]  # at the outer centres SimpleITK may decide by rounding that a point is outside
    assert np.abs(ours.array - SimpleITK.GetArrayFromImage(grid))[inside].max() < 0.05
    for row in lake.rows("slices", ["image_id", "value_max"]).to_pylist():
        assert lake.image(row["image_id"], rescaled=True).max() == row["value_max"]
        assert lake.image(row["image_id"]).dtype == np.int16


def test_the_page_names_every_method() -> None:
    page = (ROOT / "docs" / "sql.md").read_text(encoding="utf-8")
    public = [name for name in vars(OpenLake) if not name.startswith("_")]
    assert [name for name in public if not re.search(rf"\.{name}\b", page)] == []
