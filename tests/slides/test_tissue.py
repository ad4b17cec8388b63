"""Tissue on slides of known truth: found where it is, not where it is not, and never more memory than allowed."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from medspark.config import Guard
from medspark.errors import BadRequest, Rejected
from medspark.slides import tissue
from medspark.slides.array import ArraySlide
from medspark.slides.resample import block_mean, read_scaled
from tests.phantoms.slides_work import GLASS, HE, halved, stained, write_svs
from tests.real import shared_data


def flat(colour, shape=(120, 160), noise=4, seed=1):
    generator = np.random.Generator(np.random.PCG64(seed))
    return (np.array(colour) + generator.integers(-noise, noise + 1, (*shape, 3))).clip(0, 255).astype(np.uint8)


def iou(a, b):
    return (a & b).sum() / (a | b).sum()


def test_tissue_is_where_the_phantom_has_it():
    image, truth = stained(400, 300)
    assert iou(tissue.find_tissue(image), truth) > 0.98


@pytest.mark.parametrize("share", [0.02, 0.9])
def test_little_and_much_tissue_are_found_alike(share):
    side = (share * 400 * 300 * 4 / np.pi) ** 0.5
    box = (200 - side * 0.57, 150 - side * 0.43, 200 + side * 0.57, 150 + side * 0.43)
    image, truth = stained(400, 300, [tuple(int(v) for v in box)])
    assert iou(tissue.find_tissue(image), truth) > 0.95


def test_a_blank_slide_has_no_tissue_and_a_full_one_is_not_cut_in_half():
    for glass in (GLASS, (255, 255, 255), (228, 229, 226)):
        assert tissue.find_tissue(flat(glass)).sum() == 0
    for noise in (4, 40):
        assert tissue.find_tissue(flat(HE, noise=noise)).all()
    pale = np.where(np.arange(160)[None, :, None] < 80, (225, 170, 200), (200, 150, 190)) + np.zeros((120, 1, 1))
    assert tissue.find_tissue(pale.astype(np.uint8)).all()  # two stains, no glass: two humps, but none is background


def test_uneven_light_is_no_tissue():
    shade = np.linspace(1.0, 0.9, 160)[None, :, None]
    assert tissue.find_tissue((flat(GLASS) * shade).astype(np.uint8)).sum() == 0


@pytest.mark.parametrize("pen", [(30, 120, 60), (40, 60, 180), (20, 30, 200), (25, 25, 28), (90, 190, 110)])
def test_pen_marks_are_left_out(pen):
    image, truth = stained(400, 300)
    image[20:30, 20:380] = pen
    image[20:280, 20:28] = pen
    found = tissue.find_tissue(image)
    assert found[:34].sum() == 0 and found[:, :32].sum() == 0
    assert iou(found, truth) > 0.97


@pytest.mark.parametrize("colour", [(70, 40, 120), (110, 70, 150), (220, 120, 160), (190, 40, 60), (150, 160, 200), (150, 100, 60)])
def test_haematoxylin_eosin_blood_and_brown_are_not_ink(colour):
    assert not tissue.ink(flat(colour, noise=2)).any()


def test_black_borders_are_left_out():
    image, truth = stained(400, 300)
    image[:, :30] = 3
    image[-25:] = 0
    found = tissue.find_tissue(image)
    assert found[:, :30].sum() == 0 and found[-25:].sum() == 0
    assert iou(found, truth) > 0.97


def test_specks_go_and_small_holes_are_filled():
    image, _ = stained(400, 300)
    image[10:13, 10:13] = HE
    image[150:153, 200:203] = GLASS
    found = tissue.find_tissue(image)
    assert not found[:20, :20].any() and found[145:158, 195:208].all()


@given(st.data())
def test_fractions_are_the_exact_area(data):
    generator = np.random.Generator(np.random.PCG64(data.draw(st.integers(0, 1000))))
    mask = generator.random((7, 11)) < 0.5
    fine = mask.repeat(12, 0).repeat(12, 1)  # level-0 pixels: a mask pixel is 12 x 12
    x0, x1 = sorted(data.draw(st.lists(st.integers(0, 132), min_size=2, max_size=2, unique=True)))
    y0, y1 = sorted(data.draw(st.lists(st.integers(0, 84), min_size=2, max_size=2, unique=True)))
    found = tissue.Area.of(mask, (132, 84)).fractions(*(np.array([float(v)]) for v in (x0, y0, x1, y1)))
    assert found[0] == pytest.approx(fine[y0:y1, x0:x1].mean(), abs=1e-9)
    beyond = tissue.Area.of(mask, (132, 84)).fractions(*(np.array([float(v)]) for v in (x0, y0, 500, 500)))
    assert beyond[0] == pytest.approx(fine[y0:, x0:].mean(), abs=1e-9)  # what lies outside the slide does not count


def test_thumbnail_is_8_um_per_pixel_and_bounded_in_size():
    assert tissue.thumbnail_size(16000, 8000, (0.5, 0.5)) == (1000, 500)
    assert tissue.thumbnail_size(16000, 8000, (0.5, 0.25)) == (1000, 250)
    assert tissue.thumbnail_size(300, 200, (20.0, 20.0)) == (300, 200)
    assert tissue.thumbnail_size(40000, 20000, None) == (2000, 1000)
    assert max(tissue.thumbnail_size(900_000, 300_000, (0.25, 0.25))) <= tissue.MAX_SIDE_PX


def test_thumbnail_is_the_area_mean_of_the_best_level():
    image, _ = stained(1600, 1216)
    slide = ArraySlide(halved(image, 3), mpp_um=(0.5, 0.5))
    thumbnail = tissue.read_thumbnail(slide, slide.mpp_um)
    assert thumbnail.shape == (76, 100, 3)
    mean = image.reshape(76, 16, 100, 16, 3).mean(axis=(1, 3))
    assert np.abs(thumbnail - mean).mean() < 4  # a sharper filter than the plain mean, and texture of half a thumbnail pixel


def test_thumbnail_of_a_slide_without_pyramid_is_read_in_bounded_pieces():
    class Endless(ArraySlide):  # 8,000 x 8,000 px: a hundred times the limit if it were read at once
        def read(self, level, x, y, width, height):
            self.largest_read_px = max(self.largest_read_px, width * height)
            return np.broadcast_to(np.array(HE if y < 4_000 else GLASS, np.uint8), (height, width, 3))

    slide = Endless([np.broadcast_to(np.uint8(0), (8_000, 8_000, 3))], mpp_um=(0.1, 0.1))
    thumbnail = tissue.read_thumbnail(slide, slide.mpp_um, limit_px=1 << 19)
    assert slide.largest_read_px <= 1 << 19
    assert thumbnail.shape == (100, 100, 3) and tuple(thumbnail[10, 10]) == HE and tuple(thumbnail[90, 90]) == GLASS


def test_thumbnail_from_the_jpegs_own_frequencies_is_the_same(tmp_path):
    from medspark.slides.reader import open_slide

    image, _ = stained(1500, 1210)
    slide = open_slide([str(write_svs(tmp_path / "flat.svs", [image], quality=95))], Guard())
    fast = tissue.read_thumbnail(slide, (0.5, 0.5))
    plain = tissue.read_thumbnail(ArraySlide([image]), (0.5, 0.5))
    assert fast.shape == plain.shape and np.abs(fast.astype(int) - plain).mean() < 1.5
    slide.close()


def test_thumbnail_survives_a_broken_tile_and_rejects_a_broken_slide():
    image, _ = stained(800, 800)
    whole = tissue.read_thumbnail(ArraySlide([image]), (0.5, 0.5))
    holed = tissue.read_thumbnail(ArraySlide([image], tile_px=(100, 100), broken=[(0, 0, 90, 90)]), (0.5, 0.5))
    assert (holed[0:5, 0:5] == 255).all() and np.abs(holed[10:].astype(int) - whole[10:]).max() <= 1
    with pytest.raises(Rejected, match="DECODE_FAILED"):
        tissue.read_thumbnail(ArraySlide([image], broken=[(0, 0, 800, 800)]), (0.5, 0.5))


@pytest.mark.parametrize("factor", [(1.7, 1.7), (3.0, 2.2), (9.3, 9.3), (0.8, 0.8)])
def test_scaled_reads_fit_together_without_seams(factor):
    image, _ = stained(900, 700)
    slide = ArraySlide([image])
    width, height = int(900 / factor[0]), int(700 / factor[1])
    whole = read_scaled(slide, 0, factor, 0, 0, width, height)
    for limit in (1 << 14, 1 << 16):
        assert (
            np.abs(read_scaled(slide, 0, factor, 0, 0, width, height, limit).astype(int) - whole).max() <= 2
        )  # Pillow rounds between its two passes
    part = read_scaled(slide, 0, factor, 13, 17, 40, 30)
    assert np.abs(part.astype(int) - whole[17:47, 13:53]).max() <= 1
    outside = read_scaled(slide, 0, factor, width + 5, 0, 4, 4)
    assert (outside == 255).all()


@pytest.mark.parametrize("factor", [(2.0, 2.0), (3.0, 2.0), (2.0, 2.00001)])
def test_whole_factors_are_means_of_pixels_whatever_is_read_at_once(factor):
    image, _ = stained(901, 707)
    slide = ArraySlide([image], tile_px=(64, 48))
    width, height = -(-901 // round(factor[0])), -(-707 // 2)
    whole = read_scaled(slide, 0, factor, 0, 0, width, height)
    blocks = image[:706, : (width - 1) * round(factor[0])].reshape(353, 2, width - 1, round(factor[0]), 3).mean(axis=(1, 3))
    assert np.abs(whole[:353, : width - 1] - blocks).max() <= 0.51
    assert np.abs(whole[353, 0] - image[706, : round(factor[0])].mean(axis=0)).max() <= 0.51  # half a pixel of slide: what is there
    for limit in (1 << 8, 1 << 13, 1 << 16):
        assert np.array_equal(read_scaled(slide, 0, factor, 0, 0, width, height, limit), whole)
    part = read_scaled(slide, 0, factor, -3, height - 20, 60, 30)
    assert np.array_equal(part[:20, 3:], whole[height - 20 :, :57]) and (part[20:] == 255).all() and (part[:, :3] == 255).all()


def test_scaled_reads_keep_their_place():
    x = np.linspace(0, 250, 1000)
    ramp = np.repeat(np.broadcast_to(x[None, :, None], (400, 1000, 3)), 1, 0).round().astype(np.uint8)
    for factor in (1.5, 2.5, 7.3):
        got = read_scaled(ArraySlide([ramp]), 0, (factor, factor), 10, 5, 60, 20)[10, :, 0]
        centres = (10 + np.arange(60) + 0.5) * factor - 0.5
        assert np.abs(got - centres * 250 / 999).max() < 1.0


def test_block_mean_counts_what_is_there():
    array = np.arange(5 * 7 * 3, dtype=np.uint8).reshape(5, 7, 3)
    means = block_mean(array, 3, 2)
    assert means.shape == (3, 3, 3)
    assert abs(int(means[0, 0, 0]) - array[0:2, 0:3, 0].mean()) <= 0.5 and means[2, 2, 1] == array[4, 6, 1]
    assert np.array_equal(block_mean(array[:4, :6], 3, 2)[:2, :2], means[:2, :2])


def test_a_given_mask_replaces_the_found_one(tmp_path):
    mask = np.zeros((50, 100), np.uint8)
    mask[:25] = 255
    Image.fromarray(mask).save(tmp_path / "a.png")
    found = tissue.given_mask(tmp_path / "a.png", "file:/x/whatever.svs", (1000, 500), 1 << 20)
    assert found.mean() == 0.5 and tissue.fit(found, 10, 20)[:5].all() and not tissue.fit(found, 10, 20)[5:].any()
    assert tissue.given_mask(tmp_path, "file:/x/a.svs", (1000, 500), 1 << 20).mean() == 0.5
    assert tissue.given_mask(tmp_path, "file:/x/b.svs", (1000, 500), 1 << 20) is None
    with pytest.raises(Rejected, match="LABEL_SIZE"):
        tissue.given_mask(tmp_path / "a.png", "file:/x/a.svs", (500, 500), 1 << 20)
    (tmp_path / "c.png").write_bytes(b"no image")
    with pytest.raises(Rejected, match="LABEL_FORMAT"):
        tissue.given_mask(tmp_path / "c.png", "file:/x/a.svs", (500, 500), 1 << 20)
    with pytest.raises(BadRequest):
        tissue.given_mask(tmp_path / "absent", "file:/x/a.svs", (500, 500), 1 << 20)


def test_real_slide_and_real_patches():
    from medspark.slides.reader import open_slide

    slide = open_slide([str(shared_data("wsi/CMU-1-Small-Region.svs"))], Guard())
    mask = tissue.find_tissue(tissue.read_thumbnail(slide, slide.mpp_um))
    slide.close()
    truth = np.asarray(Image.open(shared_data("wsi/annotations/CMU-1-Small-Region.mask.png"))) > 0
    assert mask.shape == (185, 138)
    assert 0.30 < mask.mean() < 0.42
    assert mask[tissue.fit(truth, *mask.shape)].mean() > 0.75  # drawn outlines lie in tissue (they cut some glass)
    for name, low, high in (("BACK", 0, 0), ("LYM", 1, 1), ("STR", 1, 1), ("MUS", 1, 1), ("DEB", 1, 1)):
        path = next(shared_data("histology_patches/nct_crc").glob(f"{name}-*.tif"))
        patch = np.asarray(Image.open(path).convert("RGB").resize((28, 28), Image.Resampling.BOX))
        assert low <= tissue.find_tissue(patch).mean() <= high, name
