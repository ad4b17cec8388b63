"""Scan, plan, explode: laws on phantoms with known pixels, then real files against OpenSlide."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from medspark import config
from medspark.errors import Rejected, SkippedSource
from medspark.keys import Ids
from medspark.pixels import decode, encode, masks
from medspark.pixels.codecs import ycbcr_to_rgb
from medspark.slides.array import ArraySlide
from medspark.slides.explode import explode_band, measure, runs
from medspark.slides.header import describe, pixel_size
from medspark.slides.kind import SLIDES, slides_kind
from medspark.tables.rows import Rejection
from medspark.tables.work import SourceFile
from tests.phantoms import dicom_slides
from tests.phantoms.slides_work import halved, stained, write_jp2, write_svs
from tests.real import shared_data

IDS = Ids(b"\x01" * 32)


def source(path, settings, subject=None, kind=SLIDES):
    path = str(path)
    digest = IDS.digest("test", path)
    return SourceFile(digest, f"file://{path}", path, 1, "phantoms", kind.scan(path, f"file://{path}", IDS, settings), subject, "phantoms")


def settings_of(**tiling):
    return config.from_tree({"tiling": tiling})


def collect(items):
    """(tiles as a list of dicts, image_id -> pixels row, rejections); every Rows must fit its table's schema."""
    tiles, pixels, rejections = [], {}, []
    for item in items:
        if isinstance(item, Rejection):
            rejections.append(item)
        elif item.table == "tiles":
            tiles += item.to_arrow("run", "batch").to_pylist()
        else:
            columns = {**item.columns, "crc32c": [0] * len(item), "n_bytes": [len(data) for data in item.columns["bytes"]]}
            for row in type(item)("pixels", columns).to_arrow("run", "batch").to_pylist():
                assert row["image_id"] not in pixels
                pixels[row["image_id"]] = row
    assert len({tile["image_id"] for tile in tiles}) == len(tiles)
    return tiles, pixels, rejections


def ingest(paths, settings, kind=SLIDES, watched=None):
    """The whole of scan, plan and explode; (plan, tiles, pixels, rejections)."""
    plan = kind.plan([source(path, settings, kind=kind) for path in paths], IDS, settings)
    seen = [] if watched is None else watched
    found = [item for unit in plan.units for item in kind.explode(unit, IDS, settings, lambda source, what="": seen.append(source))]
    return plan, *collect(found)


def rows_of(plan, table):
    return [row for rows in plan.rows if rows.table == table for row in rows.to_arrow("run", "batch").to_pylist()]


def array_band(slide, settings):
    """An ArraySlide through describe, plan and explode."""
    header = describe(slide, "file:///phantom.svs", settings)
    plan = SLIDES.plan([SourceFile("a" * 32, "file:///phantom.svs", "", 1, "phantoms", header)], IDS, settings)
    items = []
    for unit in plan.units:
        items += explode_band(slide, unit.work, unit.sources[0], IDS, settings, lambda source, what="": None)
    return plan, *collect(items)


def picture(row):
    return decode(row["bytes"], row["codec"], row["dtype"], row["shape"], dict(row["params"]))


@pytest.fixture(scope="module")
def svs(tmp_path_factory):
    image, truth = stained(1300, 1100)
    path = write_svs(tmp_path_factory.mktemp("slides") / "phantom.svs", halved(image, 3))
    return path, image, truth


@pytest.mark.parametrize("edge", ["pad", "clip", "drop"])
@pytest.mark.parametrize("overlap", [0, 17])
def test_tiles_put_together_are_the_slide(edge, overlap):
    image, _ = stained(700, 500)
    settings = settings_of(tile_px=128, edge=edge, overlap_px=overlap, codec="png", min_tissue=0.0)
    plan, tiles, pixels, rejections = array_band(ArraySlide([image]), settings)
    assert not rejections and len(tiles) == len(pixels) == rows_of(plan, "grids")[0]["n_tiles"]
    covered = np.zeros(image.shape[:2], int)
    for tile in tiles:
        array = picture(pixels[tile["image_id"]])
        assert array.shape[:2] == (tile["height_px"], tile["width_px"])
        x, y, w, h = int(tile["x_l0"]), int(tile["y_l0"]), tile["valid_width_px"], tile["valid_height_px"]
        assert np.array_equal(array[:h, :w], image[y : y + h, x : x + w])
        assert (array[h:] == 255).all() and (array[:, w:] == 255).all()
        assert tile["mean_rgb"] == pytest.approx(array[:h, :w].mean(axis=(0, 1)), abs=1e-3)
        covered[y : y + h, x : x + w] += 1
    if edge != "drop":
        assert (covered == 1).all() if overlap == 0 else (covered >= 1).all()
    else:
        assert covered.max() >= 1 and all(tile["valid_width_px"] == 128 == tile["valid_height_px"] for tile in tiles)


def test_ids_depend_on_the_slide_the_settings_and_the_place_only(svs):
    settings = settings_of(min_tissue=0.0)
    plan, tiles, *_ = ingest([svs[0]], settings)
    again = ingest([svs[0]], settings)[1]
    assert [tile["image_id"] for tile in tiles] == [tile["image_id"] for tile in again]
    slide = rows_of(plan, "slides")[0]
    assert all(tile["image_id"][:16] == slide["slide_id"][:16] and len(tile["image_id"]) == 32 for tile in tiles)
    other = ingest([svs[0]], settings_of(min_tissue=0.0, jpeg_quality=70))[1]
    assert not {tile["image_id"] for tile in tiles} & {tile["image_id"] for tile in other}


def test_the_files_own_tiles_pass_through_unchanged_and_edges_are_made_anew(svs):
    from medspark.slides.reader import open_slide

    path, image, _ = svs
    settings = settings_of(min_tissue=0.0)
    watched = []
    plan, tiles, pixels, rejections = ingest([path], settings, watched=watched)
    assert not rejections and watched and {item.source_id for item in watched} == {plan.units[0].sources[0].source_id}
    slide = open_slide([str(path)], settings.guard)
    assert len(tiles) == 6 * 5 == len(pixels)
    for tile in tiles:
        row = pixels[tile["image_id"]]
        whole = tile["valid_width_px"] == 256 == tile["valid_height_px"]
        assert tile["pixel_source"] == ("passthrough" if whole else "reencoded")
        if whole:
            assert row["bytes"] == slide.stored_jpeg(0, tile["tile_row"], tile["tile_col"])
            assert tile["mean_rgb"] is None
        x, y, w, h = int(tile["x_l0"]), int(tile["y_l0"]), tile["valid_width_px"], tile["valid_height_px"]
        assert np.abs(picture(row)[:h, :w].astype(int) - image[y : y + h, x : x + w]).mean() < 6
    slide.close()
    sources = {
        edge: {tile["pixel_source"] for tile in ingest([path], settings_of(min_tissue=0.0, edge=edge))[1]} for edge in ("clip", "drop")
    }
    assert sources == {"clip": {"passthrough", "reencoded"}, "drop": {"passthrough"}}
    assert {tile["pixel_source"] for tile in ingest([path], settings_of(min_tissue=0.0, pixel_source="reencode"))[1]} == {"reencoded"}


@pytest.mark.parametrize("ycbcr", [False, True])
def test_jpeg_2000_tiles_pass_through_on_request_and_decode_to_the_same_colours(tmp_path, ycbcr):
    image, _ = stained(256, 256)
    path = write_jp2(tmp_path / "a.svs", image, 128, ycbcr)
    wanted = ycbcr_to_rgb(image) if ycbcr else image
    for codec, origin in (("jp2", "passthrough"), ("png", "reencoded")):
        _, tiles, pixels, rejections = ingest([path], settings_of(tile_px=128, min_tissue=0.0, codec=codec))
        assert not rejections and {tile["pixel_source"] for tile in tiles} == {origin}
        for tile in tiles:
            y, x = tile["tile_row"] * 128, tile["tile_col"] * 128
            assert np.array_equal(picture(pixels[tile["image_id"]]), wanted[y : y + 128, x : x + 128])


def test_measure_decodes_every_stored_tile_and_is_the_same_either_way(svs):
    passed = ingest([svs[0]], settings_of(measure=True))[1]
    made = ingest([svs[0]], settings_of(measure=True, pixel_source="reencode", codec="png"))[1]
    for one, two in zip(passed, made, strict=True):
        assert (one["mean_rgb"] is None) == (one["pixel_source"] == "none")
        if one["mean_rgb"] is not None:
            assert one["mean_rgb"] == pytest.approx(two["mean_rgb"], abs=0.01)
            assert one["sharpness"] == pytest.approx(two["sharpness"], rel=1e-3, abs=1e-3)


def test_a_tile_without_tissue_keeps_its_row_and_loses_its_pixels(svs):
    plan, tiles, pixels, _ = ingest([svs[0]], settings_of(min_tissue=0.3))
    grid = rows_of(plan, "grids")[0]
    assert len(tiles) == grid["n_tiles"] == 30 and len(pixels) == grid["n_stored"] < 30
    for tile in tiles:
        x0, y0 = int(tile["x_l0"]), int(tile["y_l0"])
        assert tile["tissue_fraction"] == pytest.approx(svs[2][y0 : y0 + 256, x0 : x0 + 256].mean(), abs=0.06)
        assert (tile["image_id"] in pixels) == (tile["tissue_fraction"] >= 0.3) == (tile["pixel_source"] != "none")
    assert sum(unit.images for unit in plan.units) == 30


def test_bands_are_the_whole_grid_whatever_their_size(svs, monkeypatch):
    settings = settings_of(tile_px=100, min_tissue=0.0, codec="png")
    whole = ingest([svs[0]], settings)
    monkeypatch.setattr("medspark.slides.plan.BAND_TILES", 20)
    monkeypatch.setattr("medspark.slides.resample.BLOCK_PX", 1 << 15)
    monkeypatch.setattr("medspark.slides.explode.BLOCK_PX", 1 << 15)
    monkeypatch.setattr("medspark.slides.explode.FLUSH_BYTES", 1 << 16)
    cut = ingest([svs[0]], settings)
    assert len(cut[0].units) > 5 > len(whole[0].units)
    assert cut[1] == whole[1]
    assert {name: row["bytes"] for name, row in cut[2].items()} == {name: row["bytes"] for name, row in whole[2].items()}


def test_a_grid_by_micrometres_shows_the_slide_at_that_size(svs):
    path, image, _ = svs
    plan, tiles, pixels, _ = ingest([path], settings_of(tile_px=128, mpp_um=1.0, codec="png", min_tissue=0.0))
    grid = rows_of(plan, "grids")[0]
    assert grid["mpp_um"] == pytest.approx(1.0) and grid["level"] is None and grid["downsample"] == pytest.approx(2.0)
    assert {tile["level"] for tile in tiles} == {1}  # the second level is exactly it: no resampling
    plan, tiles, pixels, _ = ingest([path], settings_of(tile_px=128, mpp_um=1.3, codec="png", min_tissue=0.0))
    assert {tile["level"] for tile in tiles} == {1}
    down = 2.6
    for tile in tiles:
        assert tile["mpp_um"] == pytest.approx(1.3, rel=0.005)
        assert tile["width_l0"] == pytest.approx(128 * down) and tile["x_l0"] == pytest.approx(tile["tile_col"] * 128 * down)
        array = picture(pixels[tile["image_id"]])[: tile["valid_height_px"], : tile["valid_width_px"]].astype(int)
        x, y = tile["x_l0"] + (np.arange(array.shape[1]) + 0.5) * down, tile["y_l0"] + (np.arange(array.shape[0]) + 0.5) * down
        nearest = image[np.minimum(y.astype(int), 1099)[:, None], np.minimum(x.astype(int), 1299)[None]]
        assert np.abs(array - nearest).mean() < 12  # texture below the new pixel size is averaged away


def test_a_resampled_slide_has_no_seams():
    ramp = np.broadcast_to(np.linspace(20, 235, 1500)[None, :, None], (400, 1500, 3)).round().astype(np.uint8)
    settings = settings_of(tile_px=64, mpp_um=0.83, codec="png", min_tissue=0.0)
    _, tiles, pixels, _ = array_band(ArraySlide([ramp], mpp_um=(0.5, 0.5)), settings)
    first = [tile for tile in tiles if tile["tile_row"] == 1]
    line = np.concatenate([picture(pixels[tile["image_id"]])[32, : tile["valid_width_px"], 0] for tile in first]).astype(int)
    centres = (np.arange(len(line)) + 0.5) * 0.83 / 0.5 - 0.5
    assert np.abs(line - (20 + centres * 215 / 1499))[5:-5].max() < 1.1


def test_non_square_pixels_become_square_in_a_grid_by_micrometres():
    image, _ = stained(1200, 600)
    settings = settings_of(tile_px=100, mpp_um=1.0, min_tissue=0.0)
    plan, tiles, *_ = array_band(ArraySlide([image], mpp_um=(0.25, 0.5)), settings)
    assert "NON_SQUARE_PIXELS" in rows_of(plan, "slides")[0]["verdict"]
    assert (rows_of(plan, "grids")[0]["n_cols"], rows_of(plan, "grids")[0]["n_rows"]) == (3, 3)
    assert {(tile["width_l0"], tile["height_l0"]) for tile in tiles} == {(400.0, 200.0)}


def test_a_tile_that_cannot_be_decoded_is_rejected_alone():
    image, _ = stained(512, 384)
    settings = settings_of(tile_px=128, min_tissue=0.0)
    slide = ArraySlide([image], tile_px=(64, 64), broken=[(130, 130, 140, 140), (300, 20, 310, 30)])
    _, tiles, pixels, rejections = array_band(slide, settings)
    assert len(tiles) == len(pixels) == 12 - 2
    assert [(item.code, item.images) for item in rejections] == [("DECODE_FAILED", 1)] * 2
    assert len({item.message for item in rejections}) == 2
    assert {(1, 1), (0, 2)} == {(r, c) for r in range(3) for c in range(4)} - {(tile["tile_row"], tile["tile_col"]) for tile in tiles}


def test_a_broken_stored_tile_is_found_when_it_is_measured():
    image, _ = stained(256, 256)
    good = {(0, r, c): encode(image[r * 128 : r * 128 + 128, c * 128 : c * 128 + 128], "jpeg") for r in range(2) for c in range(2)}
    slide = ArraySlide([image], (128, 128), {**good, (0, 1, 0): b"\xff\xd8broken\xff\xd9"})
    _, tiles, pixels, rejections = array_band(slide, settings_of(tile_px=128, min_tissue=0.0, measure=True))
    assert len(tiles) == len(pixels) == 3 and [item.code for item in rejections] == ["DECODE_FAILED"]
    del slide._jpeg[(0, 1, 0)]  # a sparse or odd tile is read instead
    _, tiles, _, rejections = array_band(slide, settings_of(tile_px=128, min_tissue=0.0))
    assert not rejections and [tile["pixel_source"] for tile in tiles] == ["passthrough", "passthrough", "reencoded", "passthrough"]


def test_reads_stay_within_their_bounds_on_a_wide_slide():
    class Wide(ArraySlide):
        def read(self, level, x, y, width, height):
            self.largest_read_px = max(self.largest_read_px, width * height)
            return np.full((height, width, 3), 120, np.uint8)

    for tiling in ({"tile_px": 256}, {"tile_px": 256, "mpp_um": 7.3}):
        slide = Wide([np.broadcast_to(np.uint8(0), (600, 60_000, 3))], mpp_um=(0.5, 0.5))
        settings = settings_of(min_tissue=0.0, **tiling)
        header = describe(slide, "file:///wide.svs", settings)
        plan = SLIDES.plan([SourceFile("b" * 32, "file:///wide.svs", "", 1, "p", header)], IDS, settings)
        slide.largest_read_px = 0
        for unit in plan.units:
            for item in explode_band(slide, unit.work, unit.sources[0], IDS, settings, lambda source, what="": None):
                if item.table == "pixels":
                    assert sum(map(len, item.columns["bytes"])) < 64 << 20
        assert 0 < slide.largest_read_px <= 1 << 23


def test_subjects_and_verdicts():
    image, _ = stained(300, 200)
    blank = np.full((200, 300, 3), 243, np.uint8)
    for slide, tiling, wanted in (
        (ArraySlide([image]), {}, {"NO_PYRAMID"}),
        (ArraySlide(halved(image, 2), mpp_um=None), {}, {"NO_MPP"}),
        (ArraySlide(halved(image, 2), mpp_um=(352.0, 352.0)), {}, {"MPP_DOUBT"}),
        (ArraySlide([blank]), {}, {"NO_PYRAMID", "NO_TISSUE"}),
    ):
        plan, *_ = array_band(slide, settings_of(**tiling))
        row = rows_of(plan, "slides")[0]
        assert set(row["verdict"]) == wanted and row["usable"]
        assert masks.unpack(row["tissue_mask"], row["tissue_rows"], row["tissue_cols"]).mean() == pytest.approx(row["tissue_fraction"])
        assert picture(
            {
                "bytes": row["thumbnail"],
                "codec": "jpeg",
                "dtype": "uint8",
                "params": [],
                "shape": (row["tissue_rows"], row["tissue_cols"], 3),
            }
        ).any()
    assert pixel_size(None, 0.5) == ((0.5, 0.5), ["NO_MPP"])
    header = describe(ArraySlide([image]), "file:///a.svs", settings_of())
    one, two = (SourceFile(name * 32, f"file:///{name}.svs", "", 1, "p", header) for name in "ab")
    given = SourceFile("c" * 32, "file:///c.svs", "", 1, "p", header, subject="TCGA-1", domain="tcga")
    plan = SLIDES.plan([one, two, given], IDS, settings_of())
    keys = [row["subject_key"] for row in rows_of(plan, "slides")]
    assert len(set(keys)) == 3 and keys[2] == IDS.subject("tcga", "TCGA-1")
    assert {row["subject_key"] for row in rows_of(plan, "subjects")} == set(keys)
    assert plan.locks == {
        source.source_id: f"slide:{row['slide_id']}" for source, row in zip((one, two, given), rows_of(plan, "slides"), strict=True)
    }


def test_a_grid_by_micrometres_without_a_pixel_size_is_rejected_unless_one_is_assumed():
    image, _ = stained(300, 200)
    plan, tiles, *_ = array_band(ArraySlide([image], mpp_um=None), settings_of(mpp_um=1.0))
    assert [item.code for item in plan.rejections] == ["UNKNOWN_MPP"] and not plan.units and not plan.rows
    plan, tiles, *_ = array_band(ArraySlide([image], mpp_um=None), settings_of(mpp_um=1.0, assume_mpp_um=0.5, tile_px=64))
    assert {tile["mpp_um"] for tile in tiles} == {1.0} and rows_of(plan, "slides")[0]["verdict"] == ["NO_MPP", "NO_PYRAMID"]


def test_small_things():
    assert runs(np.array([3, 4, 5, 9])) == [(3, 6), (9, 10)] and runs(np.array([], int)) == []
    flat, edge = np.full((8, 8, 3), 99, np.uint8), np.zeros((8, 8, 3), np.uint8)
    edge[:, 4:] = 255
    assert measure(flat) == ([99.0] * 3, 0.0) and measure(edge)[1] > 1000 and measure(flat[:2])[1] is None


def test_other_files_in_a_slide_folder_are_skipped_and_broken_ones_rejected(tmp_path):
    for name in ("a.xml", "a.geojson", "notes.txt", "thumb.png", "Slidedat.ini", "Data0001.dat", "slide.opt", "slide.ngr"):
        (tmp_path / name).write_bytes(b"x")
        with pytest.raises(SkippedSource):
            SLIDES.scan(str(tmp_path / name), f"file://{tmp_path}/{name}", IDS, settings_of())
    for name in ("broken/histolab_broken.svs", "broken/unreadable.svs"):
        with pytest.raises(Rejected):
            SLIDES.scan(str(shared_data(name)), f"file:///{name}", IDS, settings_of())
    with pytest.raises(SkippedSource):
        ct = shared_data("broken/pydicom/CT_small.dcm")
        SLIDES.scan(str(ct), f"file://{ct}", IDS, settings_of())


def test_a_dicom_slide_that_names_somebody_in_its_pixels_is_quarantined_unless_asked_for(tmp_path):
    path = dicom_slides.level(tmp_path / "a.dcm", stained(300, 200)[0], BurnedInAnnotation="YES")
    with pytest.raises(Rejected) as caught:
        source(path, settings_of())
    assert caught.value.code == "BURNED_IN"
    settings = config.from_tree({"deid": {"burned_in": "keep"}, "tiling": {"min_tissue": 0.0}})
    plan, tiles, *_ = ingest([path], settings)
    (slide,) = rows_of(plan, "slides")
    assert "BURNED_IN" in slide["verdict"] and not slide["usable"] and tiles


def test_a_given_tissue_mask_decides_what_is_stored(svs, tmp_path):

    mask = np.zeros((110, 130), np.uint8)
    mask[:55] = 1
    Image.fromarray(mask).save(tmp_path / "phantom.png")
    kind = slides_kind(str(tmp_path))
    plan, tiles, *_ = ingest([svs[0]], settings_of(), kind=kind)
    assert all((tile["pixel_source"] != "none") == (tile["y_l0"] < 550 - 0.05 * 256) for tile in tiles)
    assert kind.fingerprint and rows_of(plan, "grids")[0]["grid_id"] != rows_of(ingest([svs[0]], settings_of())[0], "grids")[0]["grid_id"]


@pytest.mark.parametrize(
    ("tiling", "n_tiles", "n_passed"),
    [
        ({}, 108, 0),
        ({"tile_px": "native"}, 130, 108),
        ({"level": 0, "tile_px": 512}, 30, 0),
        ({"tile_px": "native", "edge": "drop"}, 108, 108),
    ],
)
def test_cmu1_agrees_with_openslide(tiling, n_tiles, n_passed):
    import openslide

    path = shared_data("wsi/CMU-1-Small-Region.svs")
    codec = {} if tiling.get("tile_px") == "native" else {"codec": "png"}
    _, tiles, pixels, rejections = ingest([path], settings_of(min_tissue=0.0, **tiling, **codec))
    assert not rejections and len(tiles) == len(pixels) == n_tiles
    assert sum(tile["pixel_source"] == "passthrough" for tile in tiles) == n_passed
    with openslide.OpenSlide(str(path)) as slide:
        for tile in tiles[:: max(1, n_tiles // 40)]:
            w, h = tile["valid_width_px"], tile["valid_height_px"]
            wanted = np.asarray(slide.read_region((int(tile["x_l0"]), int(tile["y_l0"])), 0, (w, h)))[..., :3].astype(int)
            got = picture(pixels[tile["image_id"]])[:h, :w]
            if tile["pixel_source"] == "passthrough" or codec:
                assert np.abs(got - wanted).max() <= 2
            else:
                assert np.abs(got - wanted).mean() < 12  # one more JPEG, with half the colour resolution of this RGB one


def test_generic_pyramid_agrees_with_openslide_at_every_level():
    import openslide

    path = shared_data("wsi/small_HE_levels.tiff")
    with openslide.OpenSlide(str(path)) as slide:
        for level, (width, height) in enumerate(slide.level_dimensions):
            plan, tiles, pixels, _ = ingest([path], settings_of(level=level, tile_px=64, codec="png", min_tissue=0.0))
            assert rows_of(plan, "slides")[0]["verdict"] == ["MPP_DOUBT"]
            whole = np.asarray(slide.read_region((0, 0), level, (width, height)))[..., :3].astype(int)
            for tile in tiles:
                w, h, x, y = tile["valid_width_px"], tile["valid_height_px"], 64 * tile["tile_col"], 64 * tile["tile_row"]
                got = picture(pixels[tile["image_id"]])[:h, :w]
                assert np.abs(got - whole[y : y + h, x : x + w]).max() <= 2


def test_dicom_levels_become_one_slide_that_looks_like_the_svs():
    settings = settings_of(tile_px="native")
    folder = shared_data("wsi/dicom_cmu1_small_region")
    paths = sorted(folder.glob("*.dcm"), reverse=True)
    watched = []
    plan, tiles, pixels, rejections = ingest(paths, settings, watched=watched)
    assert not rejections and not plan.rejections
    (slide,) = rows_of(plan, "slides")
    assert (slide["vendor"], slide["level_count"], slide["tile_width_px"]) == ("dicom", 12, 500)
    assert "COLOUR_DOUBT" in slide["verdict"] and len(slide["level_instance_ids"]) == 12
    assert len(tiles) == 30 and {tile["pixel_source"] for tile in tiles} == {"passthrough", "reencoded", "none"}
    assert {item.path for item in watched} == {str(folder / "level-0-frames-0-30.dcm")}
    svs = ingest([shared_data("wsi/CMU-1-Small-Region.svs")], settings_of(tile_px=500, codec="png", min_tissue=0.0))
    there = {(tile["tile_row"], tile["tile_col"]): picture(svs[2][tile["image_id"]]).astype(int) for tile in svs[1]}
    for tile in tiles:
        if tile["image_id"] in pixels:
            other = there[tile["tile_row"], tile["tile_col"]]
            assert np.abs(picture(pixels[tile["image_id"]]) - other).mean() < 12  # its own JPEG; swapped colours differ by 66
    assert slide["tissue_fraction"] == pytest.approx(rows_of(svs[0], "slides")[0]["tissue_fraction"], abs=0.03)
    text = repr([rows.columns for rows in plan.rows]) + repr([unit.work for unit in plan.units]) + repr(tiles[:3])
    for private in ("1.2.276.0.7230010", str(folder)):
        assert private not in text


def test_a_given_tissue_mask_fits_every_level_of_a_dicom_slide():
    kind = slides_kind(str(shared_data("wsi/annotations/CMU-1-Small-Region.mask.png")))
    plan, *_ = ingest(sorted(shared_data("wsi/dicom_cmu1_small_region").glob("*.dcm")), settings_of(), kind=kind)
    assert rows_of(plan, "slides")[0]["tissue_fraction"] == pytest.approx((869735 + 561525) / (2220 * 2967), abs=0.005)


def test_two_files_of_one_level_are_told_apart(tmp_path):
    import shutil

    folder = shared_data("wsi/dicom_cmu1_small_region")
    paths = [folder / "level-2-frames-0-4.dcm", folder / "level-4-frames-0-1.dcm"]
    again = tmp_path / "z.dcm"
    shutil.copyfile(paths[0], again)
    settings = settings_of(tile_px="native")
    files = [source(path, settings) for path in (again, *paths)]
    plan = SLIDES.plan(files, IDS, settings)
    assert [item.code for item in plan.rejections] == ["DUPLICATE"] and len(plan.units[0].sources) == 2
    odd = dict(files[0].header, thumbnail=b"other")
    plan = SLIDES.plan([SourceFile("f" * 32, files[0].uri, files[0].path, 1, "phantoms", odd), *files[1:]], IDS, settings)
    assert [item.code for item in plan.rejections] == ["SOP_CONFLICT"]
    odd = dict(odd, private={**odd["private"], "sop_uid": "1.2.3"})
    plan = SLIDES.plan([SourceFile("f" * 32, files[0].uri, files[0].path, 1, "phantoms", odd), *files[1:]], IDS, settings)
    assert [item.code for item in plan.rejections] == ["SLIDE_UNSUPPORTED"]
