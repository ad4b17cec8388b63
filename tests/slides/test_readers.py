"""Laws of the readers: a stored tile decodes to what is read, regions fit together, OpenSlide sees the same pixels, nothing hostile gets in."""

from __future__ import annotations

import base64
import os
import struct
import tracemalloc
import warnings
from pathlib import Path

import numpy as np
import pytest

from medspark.config import Guard
from medspark.errors import Rejected, SkippedSource
from medspark.pixels.codecs import decode_jpeg
from medspark.slides.reader import OpenSlideSlide, on_white, open_slide
from medspark.slides.slide import Slide
from medspark.slides.splice import EOI, SOI, Splicer, parse_head, table_segments
from medspark.slides.stored import StoredSlide
from tests.phantoms import bombs
from tests.phantoms import dicom_slides as dcm
from tests.phantoms import tiff_slides as tif
from tests.real import shared_data

GUARD = Guard()
BASE = tif.picture(301, 237)
LEVELS = tif.pyramid(BASE, 3)
SMALL_REGION = "wsi/CMU-1-Small-Region.svs"
DICOM_LEVELS = "wsi/dicom_cmu1_small_region"


TILE_422 = (  # JPEG 2000, 64 x 64, components Y, Cb, Cr with chroma at half width; made by OpenJPEG from a ramp
    "|4;u>051Rl0000$0000$00000000000000$0000$000000000000RdB0S5vB2Lb{AQUDA9000311q1{D0smY86F@*nNKi;fP)JBnNJvmfNKpS|03`qcLvm$d"
    "bY)~9VtF7>aAj^vP(?=|c4cyNX>V>IGA=bPH2;tQ3IG5A00b-m0soW7)CdcJt_;KH1OpAn)CL1hU%-4J!1)2d2!IX*Ukf~c39rC>AwYZ~KnOqr2Mj+8!SjNF"
    "@&W(}91LH;Iy48uGysqxWa)Dh9|L|pG~#~=Ve1FLd?G+P8~}_Lu|@9)Mal_jU%>eSKsp!~E8X7!e__Bnd;_My9ZWQ!C!k<CT~>jDDDycn<2|MY_ty@&go~wJ"
    "0o576TpASj!zAlLw5BUnH8a*`iNHEk1EjzSz#<<pqg~%h&q(7rWjXBksL=m^6f>RsaQ#2Pd?G+PGysetaO=k@-5kZbLm$V_z&l+4?R){-pdBlu4ak}Mbr>Li"
    "rhH)59Ak37il`YQE|G-8yC7G*lJzpo@UHzX8z!CO<YZb8Pznmm-;f{SE1*&tuEs9oD#;A#x>bWHFjp*4l)NLeh6DOr1k2|mJvdMc>c1II?3(X6GL^mA?$g3`"
    "K-Eb!mB48paD9Pw9B&?E<4hR&R$cDVBX%UNpzce&;a1mu+q@kG`l!Cyz&f-6X}}#=6y9-SBR7QNNe;7D@vMs}WgQi(B~uR1V@?=>69z0|NQHSG7vpJ%KNQJ7"
    "@mVmL<+0?#!&;nfSnE`fw;F%IIy3<s0Ejj9cIvlZga2=fH^3Lu@DAzF0`{;1xmov;vLfiuU=qH>D6zsuHN-3<Pmz@?w~s06{DQ!nPm{OBVC$sJm`w$$s6SH~"
    "^|Q2CX|4tZbp{BbXHr&fOR;TwP$LygpWtX{j%IH%EO7hPrl1^s9fGwMW{r={vJq0v<VWR^mIKp;>rDG8`NnMiQ7B?s(GAu^%zgGLNf#A$b@g!!t+t6#<1aJ>"
    "r}jhZ%0A}?NmFHduFs68?iroQJ6=A#IXcYFMoR%M9c4+aq7)LYj^WrKndd(mX*Da`(AUZjaI2J~@2JtS8}UxW1<f5F_^Eg3yy~q)NpHsH#5v46s~hs)2)>9("
    "cNx!k?rLV;r)OeJGC(8)N8V3s<;u06o4c{uSknUYGpTHhX&)r%u=-;jY=l!|&o_BAg9btk#z=YAfcq)?>$hTUBRX_UV5k&?iAQQX%;_y_k^Ejyy>sc|xTaZ8"
    "rNQ|4l!R}<7efGD1OU4L9<<dfxe72&Kgxb?wQA55xiz47u=-Gv92DqdAhweRKNKuxy(r9K%Ah2z(lGffZkyg<NP=_Kecc-0A3J-?0}+TpR?(-RZjVJqN4+5o"
    "lh{o>Mr%61Bf#+rAaiHZRB>wzHz*>?{~yDsAQyS)-@rRt09r5t=s;fpBIT(xE!@BVJ~sMq5)L@A8P!JuOVyYSQ$ZuBPi>d^9%rd0Y%$3T#s|L?IBo?rS|Og4"
    "g9kUtSLy$M5rYVs&@{R*mt@STkMW8>g@XW$Ypus}JobaVT;<3AfB)G"
)


def opened(*paths: Path, guard: Guard = GUARD) -> Slide:
    return open_slide([str(path) for path in paths], guard)


def whole(slide: Slide, level: int) -> np.ndarray:
    return slide.read(level, 0, 0, slide.levels[level].width_px, slide.levels[level].height_px)


def by_openslide(path: Path, level: int, x: int, y: int, width: int, height: int) -> np.ndarray:
    """The oracle; x, y in level 0."""
    import openslide

    with openslide.OpenSlide(str(path)) as handle:
        return on_white(np.asarray(handle.read_region((x, y), level, (width, height))))


def difference(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    assert a.shape == b.shape
    return np.abs(a.astype(int) - b.astype(int))


def make_aperio_jpeg(path: Path, **options: object) -> Path:
    encode, tables = tif.abbreviated(tif.jpeg_rgb_encoder())
    return tif.aperio(path, LEVELS, 7, encode, tables=tables, **options)  # type: ignore[arg-type]


# Each maker with the mean and the largest difference to the truth that its coding allows.
PHANTOMS = {
    "aperio-rgb-jpeg-tables": (make_aperio_jpeg, 3.0, 16, "jpeg"),
    "aperio-rgb-jpeg-bigtiff": (lambda path: make_aperio_jpeg(path, bigtiff=True), 3.0, 16, "jpeg"),
    "aperio-rgb-jpeg-marked": (lambda path: tif.aperio(path, LEVELS, 7, tif.jpeg_rgb_encoder(keep_markers=True)), 3.0, 16, "jpeg"),
    "aperio-33003": (lambda path: tif.aperio(path, LEVELS, 33003, tif.jp2_encoder(33003)), 0.6, 2, "jp2-ycbcr"),
    "aperio-33005": (lambda path: tif.aperio(path, LEVELS, 33005, tif.jp2_encoder(33005)), 0, 0, "jp2-rgb"),
    "vips-ycbcr-jpeg": (lambda path: tif.by_vips(path, BASE, "jpeg"), 4.0, 60, "jpeg"),
    "vips-ycbcr-jpeg-bigtiff": (lambda path: tif.by_vips(path, BASE, "jpeg", bigtiff=True), 4.0, 60, "jpeg"),
    "vips-deflate-predictor": (lambda path: tif.by_vips(path, BASE, "deflate"), 0, 0, "other"),
    "vips-deflate": (lambda path: tif.by_vips(path, BASE, "deflate", predictor="none"), 0, 0, "other"),
    "vips-lzw": (lambda path: tif.by_vips(path, BASE, "lzw"), 0, 0, "other"),
    "vips-uncompressed": (lambda path: tif.by_vips(path, BASE, "none"), 0, 0, "other"),
    "tifffile-rgb-jpeg": (lambda path: tif.generic(path, LEVELS, "jpeg", compressionargs={"outcolorspace": "rgb"}), 3.0, 16, "jpeg"),
    "tifffile-lzw": (lambda path: tif.generic(path, LEVELS, "lzw"), 0, 0, "other"),
}


@pytest.fixture(scope="module", params=PHANTOMS, ids=str)
def phantom(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, float, int, str]:
    make, mean, most, compression = PHANTOMS[request.param]
    path = tmp_path_factory.mktemp("slides") / ("a.svs" if "aperio" in request.param else "a.tif")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the libraries that write
        make(path)  # type: ignore[no-untyped-call]
    return path, mean, most, compression


class TestTiff:
    def test_pixels_are_the_truth_and_openslides(self, phantom: tuple[Path, float, int, str]) -> None:
        path, mean, most, compression = phantom
        slide = opened(path)
        assert isinstance(slide, StoredSlide)
        assert [(it.width_px, it.height_px) for it in slide.levels][:3] == [(301, 237), (150, 118), (75, 59)]
        assert {it.compression for it in slide.levels} == {compression}
        assert slide.verdict == ()
        for level, truth in enumerate(LEVELS):
            pixels = whole(slide, level)
            assert difference(pixels, truth).mean() <= mean and difference(pixels, truth).max() <= most
            height, width = truth.shape[:2]
            assert difference(pixels, by_openslide(path, level, 0, 0, width, height)).max() <= 2
        # a region across tiles, one over the lower right edge, one wholly outside
        for x, y, width, height in ((37, 61, 100, 90), (250, 200, 128, 128), (400, 300, 20, 20)):
            assert difference(slide.read(0, x, y, width, height), by_openslide(path, 0, x, y, width, height)).max() <= 2

    def test_what_the_header_says_is_what_openslide_says(self, phantom: tuple[Path, float, int, str]) -> None:
        import openslide

        slide = opened(phantom[0])
        with openslide.OpenSlide(str(phantom[0])) as handle:
            said = handle.properties
            assert slide.vendor == said["openslide.vendor"]
            assert tuple(it.downsample for it in slide.levels) == handle.level_downsamples
            assert slide.mpp_um == pytest.approx((float(said["openslide.mpp-x"]), float(said["openslide.mpp-y"])), rel=1e-12)
            assert (slide.objective_power or 0) == float(said.get("openslide.objective-power", 0))
            for name, value in said.items():
                if name.startswith(("aperio.", "tiff.ImageDescription", "tiff.ResolutionUnit", "openslide.comment")):
                    assert slide.properties[name] == value

    def test_a_region_is_the_same_however_it_is_read(self, phantom: tuple[Path, float, int, str]) -> None:
        slide = opened(phantom[0])
        truth = whole(slide, 0)
        bands = [slide.read(0, 0, y, 301, min(50, 237 - y)) for y in range(0, 237, 50)]
        assert np.array_equal(np.concatenate(bands), truth)
        pieces = [[slide.read(0, x, y, min(90, 301 - x), min(70, 237 - y)) for x in range(0, 301, 90)] for y in range(0, 237, 70)]
        assert np.array_equal(np.concatenate([np.concatenate(row, axis=1) for row in pieces]), truth)
        beyond = slide.read(0, -10, -20, 321, 277)
        assert np.array_equal(beyond[20:257, 10:311], truth)
        beyond[20:257, 10:311] = 255
        assert (beyond == 255).all()

    def test_stored_tiles_stand_alone_and_decode_to_what_is_read(self, phantom: tuple[Path, float, int, str]) -> None:
        slide, jpeg = opened(phantom[0]), phantom[3] == "jpeg"
        for level, it in enumerate(slide.levels):
            for row in range(-(-it.height_px // 64)):
                cols = -(-it.width_px // 64)
                tiles = slide.stored_jpegs(level, row, 0, cols)
                assert tiles == [slide.stored_jpeg(level, row, col) for col in range(cols)]
                assert all((tile is not None) == jpeg for tile in tiles)
                for col, tile in enumerate(tiles):
                    assert (slide.stored_jp2(level, row, col) is not None) == phantom[3].startswith("jp2")
                    if tile is not None:
                        pixels = decode_jpeg(tile)
                        height, width = min(64, it.height_px - row * 64), min(64, it.width_px - col * 64)
                        assert pixels.shape == (64, 64, 3)
                        assert np.array_equal(pixels[:height, :width], slide.read(level, col * 64, row * 64, width, height))

    def test_foreign_decoders_see_the_same_colours_in_a_stored_tile(self, phantom: tuple[Path, float, int, str]) -> None:
        import pyvips

        tile = opened(phantom[0]).stored_jpeg(0, 1, 1)
        if tile is not None:
            assert difference(np.asarray(pyvips.Image.new_from_buffer(tile, "")), decode_jpeg(tile)).max() <= 2

    def test_subifds_and_big_endian(self, tmp_path: Path) -> None:
        slide = opened(tif.generic(tmp_path / "a.tif", LEVELS, "zlib", subifds=True, byteorder=">", predictor=True))
        assert len(slide.levels) == 3 and slide.mpp_um == pytest.approx((0.25, 0.2))
        for level, truth in enumerate(LEVELS):
            assert np.array_equal(whole(slide, level), truth)

    def test_generic_jpeg_2000(self, tmp_path: Path) -> None:
        """Compression 34712, which OpenSlide does not read."""
        slide = opened(tif.generic(tmp_path / "a.tif", LEVELS, "jpeg2000"))
        assert slide.levels[0].compression == "jp2" and np.array_equal(whole(slide, 1), LEVELS[1])

    def test_inch_is_the_unit_that_is_not_stated(self, tmp_path: Path) -> None:
        slide = opened(tif.generic(tmp_path / "a.tif", LEVELS[:1], "lzw", resolution=(50_800, 25_400), resolutionunit="INCH"))
        assert slide.mpp_um == pytest.approx((0.5, 1.0))

    def test_missing_aperio_tiles_are_white_and_below_made_from_above(self, tmp_path: Path) -> None:
        path = make_aperio_jpeg(tmp_path / "a.svs", sparse={(0, 3), (1, 2)})
        slide = opened(path)
        assert slide.stored_jpeg(0, 0, 3) is None and slide.stored_jpegs(0, 0, 2, 5)[1] is None
        assert slide.stored_jpeg(1, 0, 1) is None, "overlaps a missing tile of level 0: what is stored there is no picture"
        assert (slide.read(0, 192, 0, 64, 64) == 255).all()
        assert difference(whole(slide, 0), by_openslide(path, 0, 0, 0, 301, 237)).max() <= 2
        for level, (width, height) in ((1, (150, 118)), (2, (75, 59))):
            assert difference(whole(slide, level), by_openslide(path, level, 0, 0, width, height)).mean() < 1.5

    def test_a_liar_about_colour_is_doubted(self, tmp_path: Path) -> None:
        """libvips tags YCbCr as RGB under rgbjpeg; OpenSlide follows the tag, and so do we, in doubt."""
        path = tif.by_vips(tmp_path / "a.tif", BASE, "jpeg", rgbjpeg=True)
        slide = opened(path)
        assert slide.verdict == ("COLOUR_DOUBT",)
        assert difference(whole(slide, 0), by_openslide(path, 0, 0, 0, 301, 237)).max() <= 2

    def test_labels_macros_and_other_shapes_are_no_levels(self, tmp_path: Path) -> None:
        import tifffile

        path = tmp_path / "a.tif"
        with tifffile.TiffWriter(path) as out:
            for level in (BASE, np.zeros((64, 64, 3), np.uint8), LEVELS[1], np.zeros((59, 75, 3), np.uint8)):
                kind = 0 if level is BASE else 9 if level.shape[0] == 59 else 1
                out.write(level, tile=(64, 64), photometric="rgb", metadata=None, subfiletype=kind)
        assert [(it.width_px, it.height_px) for it in opened(path).levels] == [(301, 237), (150, 118)]

    def test_tiles_read_from_a_few_descriptors_survive_a_fork(self, tmp_path: Path) -> None:
        slide = opened(make_aperio_jpeg(tmp_path / "a.svs"))
        before = slide.stored_jpeg(0, 1, 2)
        read_end, write_end = os.pipe()
        child = os.fork()
        if child == 0:
            os.write(write_end, b"same" if slide.stored_jpeg(0, 1, 2) == before else b"diff")
            os._exit(0)
        slide.stored_jpeg(0, 0, 0)
        os.waitpid(child, 0)
        assert os.read(read_end, 4) == b"same"
        os.close(read_end)
        os.close(write_end)
        slide.close()
        slide.close()

    def test_subsampled_33003(self, tmp_path: Path) -> None:
        """Scanners write 4:2:2 codestreams under 33003; no encoder at hand does, hence the ready-made tile."""
        tile = base64.b85decode(TILE_422)
        y, x = np.mgrid[0:64, 0:64]
        truth = np.stack([200 - x, 100 + y, 180 + 0 * x], axis=-1).astype(np.uint8)
        path = tif.aperio(tmp_path / "a.svs", [np.zeros((64, 128, 3), np.uint8)], 33003, lambda _: tile)
        pixels = opened(path).read(0, 0, 0, 128, 64)
        assert difference(pixels, np.concatenate([truth, truth], axis=1)).max() <= 4
        assert difference(pixels, by_openslide(path, 0, 0, 0, 128, 64)).max() <= 2


class TestOpenSlideFallback:
    def test_rgba_and_planar_files_go_to_openslide(self, tmp_path: Path) -> None:
        import tifffile

        alpha = np.zeros((100, 120, 1), np.uint8)
        alpha[:, 40:] = 255
        path = tmp_path / "a.tif"
        tifffile.imwrite(
            path, np.concatenate([BASE[:100, :120], alpha], axis=2), tile=(64, 64), photometric="rgb", extrasamples=["UNASSALPHA"]
        )
        slide = opened(path)
        assert isinstance(slide, OpenSlideSlide)
        pixels = slide.read(0, -5, 0, 130, 100)
        assert (pixels[:, :45] == 255).all() and (pixels[:, 125:] == 255).all()
        assert difference(pixels[:, 45:125], BASE[:100, 40:120]).max() <= 2
        assert slide.stored_jpeg(0, 0, 0) is None and slide.stored_jpegs(0, 0, 0, 2) == [None, None]
        planes = np.moveaxis(BASE, 2, 0)
        tifffile.imwrite(path, planes, tile=(64, 64), photometric="rgb", planarconfig="separate", compression="zlib")
        slide = opened(path)
        assert isinstance(slide, OpenSlideSlide) and np.array_equal(whole(slide, 0), BASE)

    @pytest.mark.parametrize("samples", [2, 5])
    def test_channels_that_are_no_colours_are_no_slide(self, samples: int, tmp_path: Path) -> None:
        import tifffile

        channels = np.concatenate([BASE, BASE], axis=2)[..., :samples]  # OpenSlide would show the first one as a grey slide
        tifffile.imwrite(tmp_path / "a.tif", channels, tile=(64, 64), photometric="minisblack", planarconfig="contig")
        with pytest.raises(Rejected) as caught:
            opened(tmp_path / "a.tif")
        assert caught.value.code == "NOT_A_SLIDE"

    def test_what_nobody_reads_is_unsupported(self, tmp_path: Path) -> None:
        import tifffile

        tifffile.imwrite(tmp_path / "a.tif", BASE, tile=(64, 64), photometric="rgb", compression="webp")
        with pytest.raises(Rejected, match="compression 50001") as caught:
            opened(tmp_path / "a.tif")
        assert caught.value.code == "SLIDE_UNSUPPORTED"

    def test_real_slide_through_openslide_alone(self) -> None:
        path = shared_data(SMALL_REGION)
        ours, theirs = opened(path), OpenSlideSlide.open(str(path), GUARD)
        assert theirs.mpp_um == ours.mpp_um and theirs.objective_power == 20
        assert np.array_equal(theirs.read(0, 2000, 2900, 300, 100), ours.read(0, 2000, 2900, 300, 100))

    def test_a_dead_handle_is_replaced(self) -> None:
        slide = OpenSlideSlide.open(str(shared_data("broken/unreadable.svs")), GUARD)
        for _ in range(2):
            with pytest.raises(Rejected) as caught:
                slide.read(0, 0, 0, 16, 16)
            assert caught.value.code == "SLIDE_UNREADABLE"

    def test_on_white(self) -> None:
        rgba = np.array([[[10, 20, 30, 255], [10, 20, 30, 0], [100, 0, 200, 128]]], np.uint8)
        assert on_white(rgba).tolist() == [[[10, 20, 30], [255, 255, 255], [177, 127, 227]]]


class TestRealTiff:
    def test_small_region_equals_openslide(self) -> None:
        path = shared_data(SMALL_REGION)
        slide = opened(path)
        assert isinstance(slide, StoredSlide) and len(slide.levels) == 1
        assert (slide.levels[0].tile_width_px, slide.levels[0].tile_height_px) == (240, 240)
        for x, y, width, height in ((0, 0, 2220, 2967), (2000, 2800, 500, 500), (117, 1003, 333, 777), (-20, -20, 100, 100)):
            assert difference(slide.read(0, x, y, width, height), by_openslide(path, 0, x, y, width, height)).max() <= 2

    def test_small_region_passes_every_tile_through(self) -> None:
        slide = opened(shared_data(SMALL_REGION))
        for row in range(13):
            for col, tile in enumerate(slide.stored_jpegs(0, row, 0, 10)):
                assert tile is not None
                head = parse_head(tile)
                assert head.adobe == 0 and not head.jfif and (head.rows, head.cols) == (240, 240)
                width, height = min(240, 2220 - col * 240), min(240, 2967 - row * 240)
                assert np.array_equal(decode_jpeg(tile)[:height, :width], slide.read(0, col * 240, row * 240, width, height))

    def test_generic_pyramid(self) -> None:
        path = shared_data("wsi/small_HE_levels.tiff")
        slide = opened(path)
        assert slide.vendor == "generic-tiff" and len(slide.levels) == 4
        assert slide.mpp_um == pytest.approx((352.858149, 352.858149)), "as the file says it: the caller doubts"
        for level, it in enumerate(slide.levels):
            assert difference(whole(slide, level), by_openslide(path, level, 0, 0, it.width_px, it.height_px)).max() <= 2

    @pytest.mark.parametrize(
        ("name", "code"),
        [("wsi/annotations/CMU-1-Small-Region.mask.tif", "NOT_A_SLIDE"), ("broken/histolab_broken.svs", "SLIDE_UNSUPPORTED")],
    )
    def test_refused(self, name: str, code: str) -> None:
        with pytest.raises(Rejected) as caught:
            opened(shared_data(name))
        assert caught.value.code == code

    def test_unreadable_opens_but_gives_no_tile(self) -> None:
        slide = opened(shared_data("broken/unreadable.svs"))
        assert slide.stored_jpeg(0, 0, 0) is None
        with pytest.raises(Rejected) as caught:
            slide.read(0, 0, 0, 16, 16)
        assert caught.value.code == "SLIDE_UNREADABLE"


LONG = 4


def value(number: int) -> bytes:
    return struct.pack("<I", number)


HOSTILE = {
    "cycle": ([tif.honest_tags(), tif.honest_tags()], [1, 0]),
    "own successor": ([tif.honest_tags()], [0]),
    "tile outside": ([tif.honest_tags(t324=(LONG, 1, value(1 << 30)))], None),
    "tile end outside": ([tif.honest_tags(t324=(LONG, 1, value(390)))], None),
    "huge byte count": ([tif.honest_tags(t325=(LONG, 1, value(0xFFFFFFFF)))], None),
    "huge array": ([tif.honest_tags(t324=(LONG, 0xFFFFFFFF, value(8)))], None),
    "array too short": ([tif.honest_tags(t256=(LONG, 1, value(4000)))], None),
    "four billion pixels a side": ([tif.honest_tags(t256=(LONG, 1, value(0xFFFFFFFF)), t257=(LONG, 1, value(0xFFFFFFFF)))], None),
    "no width": ([tif.honest_tags(t256=(LONG, 1, value(0)))], None),
    "no tile width": ([tif.honest_tags(t322=(LONG, 1, value(0)))], None),
    "offsets of text": ([tif.honest_tags(t324=(2, 4, value(8)))], None),
    "SubIFD is its parent": ([tif.honest_tags(t330=(LONG, 1, value(tif.FIRST_DIRECTORY)))], None),
    "too many SubIFDs": ([tif.honest_tags(t330=(LONG, 0x3FFFFFFF, value(8)))], None),
}


class TestHostile:
    def test_the_honest_one_opens(self, tmp_path: Path) -> None:
        slide = opened(tif.raw_tiff(tmp_path / "a.tif", [tif.honest_tags()]))
        assert [(it.width_px, it.height_px) for it in slide.levels] == [(4, 4)] and whole(slide, 0).shape == (4, 4, 3)

    @pytest.mark.parametrize("name", HOSTILE)
    def test_broken_structures(self, name: str, tmp_path: Path) -> None:
        directories, following = HOSTILE[name]
        path = tif.raw_tiff(tmp_path / "a.tif", directories, following)
        with pytest.raises(Rejected) as caught:
            opened(path)
        assert caught.value.code == "SLIDE_UNREADABLE", str(caught.value)

    def test_thousands_of_directories(self, tmp_path: Path) -> None:
        with pytest.raises(Rejected) as caught:
            opened(tif.raw_tiff(tmp_path / "a.tif", [tif.honest_tags()] * 1500))
        assert caught.value.code == "SLIDE_UNREADABLE"

    def test_every_cut_and_many_flips_end_in_pixels_or_a_rejection(self, tmp_path: Path) -> None:
        encode, tables = tif.abbreviated(tif.jpeg_rgb_encoder(30))
        data = tif.aperio(tmp_path / "a.svs", tif.pyramid(BASE[:128, :128], 2), 7, encode, tables=tables).read_bytes()
        rng, path = np.random.default_rng(3), tmp_path / "b.svs"
        cuts = [data[:size] for size in range(1, len(data), len(data) // 40)]
        flips = []
        for _ in range(150):
            changed = bytearray(data)
            for place in rng.integers(0, len(data), 4):
                changed[place] = rng.integers(256)
            flips.append(bytes(changed))
        for broken in cuts + flips:
            path.write_bytes(broken)
            try:
                slide = opened(path, guard=Guard(max_pixels=1 << 20))
                for level in range(len(slide.levels)):
                    slide.stored_jpeg(level, 0, 0)
                    slide.read(level, 0, 0, 128, 128)
                slide.close()
            except Rejected:
                pass

    def test_tiles_and_regions_beyond_the_guard(self, tmp_path: Path) -> None:
        path = tif.by_vips(tmp_path / "a.tif", BASE, "deflate")
        with pytest.raises(Rejected) as caught:
            opened(path, guard=Guard(max_pixels=64 * 63))
        assert caught.value.code == "TOO_LARGE"
        with pytest.raises(Rejected) as caught:
            opened(path, guard=Guard(max_pixels=64 * 64)).read(0, 0, 0, 65, 64)
        assert caught.value.code == "TOO_LARGE"

    def test_a_bomb_inflates_no_further_than_its_tile(self, tmp_path: Path) -> None:
        import zlib

        from medspark.slides.codings import RawCoding

        assert RawCoding(4, 4, method="deflate").decode(zlib.compress(bytes(10_000_000))).shape == (4, 4, 3)
        with pytest.raises(ValueError, match="expected"):
            RawCoding(4, 4, method="deflate").decode(zlib.compress(bytes(47)))

    def test_plain_files(self, tmp_path: Path) -> None:
        striped = tif.by_vips(tmp_path / "striped.tif", BASE, "none", tile=False, pyramid=False)
        empty, text, gray = tmp_path / "empty.svs", tmp_path / "text.svs", tmp_path / "gray.tif"
        empty.write_bytes(b"")
        text.write_text("no slide")
        import tifffile

        tifffile.imwrite(gray, BASE[..., 0], tile=(64, 64))
        for path, code in ((striped, "SLIDE_UNSUPPORTED"), (empty, "EMPTY_FILE"), (text, "SLIDE_UNSUPPORTED"), (gray, "NOT_A_SLIDE")):
            with pytest.raises(Rejected) as caught:
                opened(path)
            assert caught.value.code == code
        with pytest.raises(Rejected, match="not tiled"):
            opened(striped)


class TestSplice:
    def test_tables_keep_only_tables(self) -> None:
        tables = tif.abbreviated(tif.jpeg_rgb_encoder())[1]
        assert table_segments(tables) == tables[2:-2] and table_segments(b"") == b""
        with pytest.raises(ValueError):
            table_segments(tables[5:])
        with pytest.raises(ValueError):
            table_segments(tables[:40])

    def test_tiles_of_another_encoder_are_parsed_anew(self) -> None:
        plain, marked = tif.jpeg_rgb_encoder(), tif.jpeg_rgb_encoder(keep_markers=True)
        tile = np.ascontiguousarray(BASE[:64, :64])
        splicer = Splicer(b"", "rgb", 64, 64)
        pixels = [decode_jpeg(splicer.splice(encode(tile))) for encode in (plain, marked, plain)]
        assert np.array_equal(pixels[0], pixels[1]) and np.array_equal(pixels[0], pixels[2])
        assert difference(pixels[0], tile).mean() < 3

    def test_ycbcr_keeps_jfif_and_is_said_where_ids_mislead(self) -> None:
        import imagecodecs

        tile = np.ascontiguousarray(BASE[:64, :64])
        data = bytes(imagecodecs.jpeg8_encode(tile, level=90))
        assert Splicer(b"", "ycbcr", 64, 64).splice(data) == data
        misled = Splicer(b"", "ycbcr", 64, 64).splice(tif.jpeg_rgb_encoder(keep_markers=True)(tile))
        assert parse_head(misled).colour == "ycbcr"

    def test_padding_behind_the_end_goes(self) -> None:
        data = tif.jpeg_rgb_encoder()(np.ascontiguousarray(BASE[:64, :64]))
        splicer = Splicer(b"", "rgb", 64, 64)
        assert splicer.splice(data + b"\0\0\0") == splicer.splice(data) and splicer.splice(data)[-2:] == EOI

    @pytest.mark.parametrize("cut", [0, 1, 2, 10, 200, 650, -2, -40])
    def test_cut_streams(self, cut: int) -> None:
        data = tif.jpeg_rgb_encoder()(np.ascontiguousarray(BASE[:64, :64]))
        splicer = Splicer(b"", "rgb", 64, 64)
        with pytest.raises(ValueError):
            splicer.splice(data[:cut])
        with pytest.raises(ValueError):
            splicer.splice(SOI + data)

    def test_another_size_is_refused(self) -> None:
        with pytest.raises(ValueError, match="tile of"):
            Splicer(b"", "rgb", 64, 63).splice(tif.jpeg_rgb_encoder()(np.ascontiguousarray(BASE[:64, :64])))


def dicom_jpeg(tile: np.ndarray) -> bytes:
    import imagecodecs

    return bytes(imagecodecs.jpeg8_encode(tile, level=90, subsampling="444"))


def dicom_j2k(tile: np.ndarray) -> bytes:
    import imagecodecs

    return bytes(imagecodecs.jpeg2k_encode(tile, level=0, reversible=True, codecformat="j2k"))


def dicom_rle(tile: np.ndarray) -> bytes:
    from pydicom.pixels.encoders import RLELosslessEncoder

    rows, cols = tile.shape[:2]
    layout = {"rows": rows, "columns": cols, "samples_per_pixel": 3, "bits_allocated": 8, "bits_stored": 8, "pixel_representation": 0}
    return bytes(RLELosslessEncoder.encode(tile, photometric_interpretation="RGB", planar_configuration=0, number_of_frames=1, **layout))


def dicom_jpegls(tile: np.ndarray) -> bytes:
    import imagecodecs

    return bytes(imagecodecs.jpegls_encode(tile))


class TestDicom:
    @pytest.mark.parametrize("table", ["basic", "none", "extended"])
    def test_offset_tables_lead_to_the_same_frames(self, table: str, tmp_path: Path) -> None:
        slide = opened(dcm.level(tmp_path / "a.dcm", BASE, dicom_jpeg, dcm.JPEG, photometric="YBR_FULL", table=table))
        assert isinstance(slide, StoredSlide) and slide.verdict == ()
        assert difference(whole(slide, 0), BASE).mean() < 3
        for row in range(8):
            tiles = slide.stored_jpegs(0, row, 0, 10)
            assert tiles == [slide.stored_jpeg(0, row, col) for col in range(10)]
            for col, tile in enumerate(tiles):
                assert tile is not None
                width, height = min(32, 301 - col * 32), min(32, 237 - row * 32)
                assert np.array_equal(decode_jpeg(tile)[:height, :width], slide.read(0, col * 32, row * 32, width, height))

    def test_levels_of_one_series(self, tmp_path: Path) -> None:
        paths = [dcm.level(tmp_path / f"{i}.dcm", level, dicom_j2k, dcm.J2K, photometric="YBR_RCT") for i, level in enumerate(LEVELS)]
        label = dcm.level(tmp_path / "label.dcm", BASE[:32, :64], ImageType=["ORIGINAL", "PRIMARY", "LABEL", "NONE"])
        slide = opened(paths[2], label, paths[0], paths[1])
        assert [(it.width_px, it.height_px, it.compression) for it in slide.levels] == [
            (301, 237, "jp2"),
            (150, 118, "jp2"),
            (75, 59, "jp2"),
        ]
        for level, truth in enumerate(LEVELS):
            assert np.array_equal(whole(slide, level), truth)
        assert slide.mpp_um == (0.25, 0.5), "PixelSpacing is (between rows, between columns)"
        assert slide.facts["scanner_model"] == "Phantom 1" and slide.facts["patient_id"] == "P1" and slide.facts["series_uid"] == dcm.SERIES
        assert slide.stored_jp2(0, 0, 0) is not None and slide.stored_jpeg(0, 0, 0) is None
        with pytest.raises(SkippedSource):
            opened(label)
        stranger = dcm.level(tmp_path / "other.dcm", LEVELS[1], SeriesInstanceUID="1.2.3")
        with pytest.raises(Rejected) as caught:
            opened(paths[0], stranger)
        assert caught.value.code == "SLIDE_UNSUPPORTED"

    @pytest.mark.parametrize("planar", [0, 1])
    def test_uncompressed(self, planar: int, tmp_path: Path) -> None:
        encode = (lambda tile: np.moveaxis(tile, 2, 0).tobytes()) if planar else None
        slide = opened(dcm.level(tmp_path / "a.dcm", BASE, encode, PlanarConfiguration=planar))
        assert np.array_equal(whole(slide, 0), BASE)
        bare = dcm.level(tmp_path / "b.dcm", BASE, SharedFunctionalGroupsSequence=None, ImagedVolumeWidth=0.301, ImagedVolumeHeight=0.474)
        assert opened(bare).mpp_um == pytest.approx((1.0, 2.0))

    def test_sparse_frames_go_to_their_places(self, tmp_path: Path) -> None:
        order = [5, 3, 79, 0, 12]
        slide = opened(dcm.level(tmp_path / "a.dcm", BASE, order=order))
        expected = np.full_like(BASE, 255)
        for tile in order:
            place = (slice(tile // 10 * 32, tile // 10 * 32 + 32), slice(tile % 10 * 32, tile % 10 * 32 + 32))
            expected[place] = BASE[place]
        assert np.array_equal(whole(slide, 0), expected)

    @pytest.mark.parametrize(
        ("encode", "photometric", "verdict"),
        [
            (tif.jpeg_rgb_encoder(), "RGB", ()),
            (tif.jpeg_rgb_encoder(keep_markers=True), "RGB", ()),
            (dicom_jpeg, "RGB", ("COLOUR_DOUBT",)),
            (dicom_jpeg, "YBR_FULL_422", ()),
            (tif.jpeg_rgb_encoder(keep_markers=True), "YBR_FULL_422", ("COLOUR_DOUBT",)),
        ],
        ids=["rgb", "rgb-adobe", "rgb-tag-jfif", "ybr", "ybr-tag-adobe-0"],
    )
    def test_colour_by_evidence(self, encode: object, photometric: str, verdict: tuple[str, ...], tmp_path: Path) -> None:
        slide = opened(dcm.level(tmp_path / "a.dcm", BASE, encode, dcm.JPEG, photometric=photometric))
        assert slide.verdict == verdict
        assert difference(whole(slide, 0), BASE).mean() < 3
        tile = slide.stored_jpeg(0, 0, 0)
        assert tile is not None and difference(decode_jpeg(tile), BASE[:32, :32]).mean() < 3

    def test_a_changed_file_is_read_anew(self, tmp_path: Path) -> None:
        path = dcm.level(tmp_path / "a.dcm", BASE)
        first, again = opened(path), opened(path)
        first.close()
        assert np.array_equal(whole(again, 0), BASE)
        dcm.level(path, 255 - BASE, order=list(range(80)))
        assert np.array_equal(whole(opened(path), 0), 255 - BASE)

    def test_focal_planes(self, tmp_path: Path) -> None:
        planes = [dcm.tiles(255 - BASE, 32, bytes_of), dcm.tiles(BASE, 32, bytes_of), dcm.tiles(255 - BASE, 32, bytes_of)]
        data = b"".join(b"".join(plane) for plane in planes)
        slide = opened(dcm.level(tmp_path / "a.dcm", BASE, PixelData=data, NumberOfFrames=240, TotalPixelMatrixFocalPlanes=3))
        assert np.array_equal(whole(slide, 0), BASE) and slide.facts["focal_plane"] == 1 and slide.facts["n_focal_planes"] == 3

    @pytest.mark.parametrize("table", ["basic", "none"])
    @pytest.mark.parametrize(
        ("encode", "syntax", "photometric"),
        [
            (lambda tile: dicom_rle(tile), "1.2.840.10008.1.2.5", "RGB"),
            (lambda tile: dicom_rle(tif.rgb_to_ycbcr(tile)), "1.2.840.10008.1.2.5", "YBR_FULL"),
            (lambda tile: dicom_jpegls(tile), "1.2.840.10008.1.2.4.80", "RGB"),
        ],
        ids=["rle", "rle-ybr", "jpeg-ls"],
    )
    def test_frames_that_openslide_refuses(self, encode: object, syntax: str, photometric: str, table: str, tmp_path: Path) -> None:
        slide = opened(dcm.level(tmp_path / "a.dcm", BASE, encode, syntax, photometric=photometric, table=table))
        assert isinstance(slide, StoredSlide) and slide.levels[0].compression == "other" and slide.stored_jpeg(0, 0, 0) is None
        assert difference(whole(slide, 0), BASE).max() <= (0 if photometric == "RGB" else 2)

    def test_frames_in_several_fragments_are_left_to_others(self, tmp_path: Path) -> None:
        for table in ("basic", "none"):
            path = dcm.level(tmp_path / "a.dcm", BASE, dicom_jpeg, dcm.JPEG, photometric="YBR_FULL", fragments=3, table=table)
            with pytest.raises(Rejected, match="several fragments") as caught:
                opened(path)
            assert caught.value.code == "SLIDE_UNSUPPORTED"

    def test_an_image_that_shows_the_label_is_no_level_unless_it_is_called_one(self, tmp_path: Path) -> None:
        label = {"ImageType": ["ORIGINAL", "PRIMARY"], "SpecimenLabelInImage": "YES"}
        with pytest.raises(SkippedSource):
            opened(dcm.level(tmp_path / "label.dcm", BASE, **label))
        assert opened(dcm.level(tmp_path / "none.dcm", BASE, **label | {"SpecimenLabelInImage": "NO"})).verdict == ()
        burned = dcm.level(tmp_path / "burned.dcm", BASE, SpecimenLabelInImage="YES", BurnedInAnnotation="YES")
        assert opened(burned).verdict == ("BURNED_IN",)

    def test_a_deflated_bomb_is_never_inflated(self, tmp_path: Path) -> None:
        path = bombs.deflated(tmp_path / "a.dcm", dcm.WSM, 64 << 20)
        tracemalloc.start()
        try:
            with pytest.raises(Rejected) as caught:
                opened(path)
            with pytest.raises(SkippedSource):
                opened(bombs.deflated(tmp_path / "ct.dcm", "1.2.840.10008.5.1.4.1.1.2", 1 << 10))
            assert caught.value.code == "SLIDE_UNSUPPORTED" and tracemalloc.get_traced_memory()[1] < 8 << 20
        finally:
            tracemalloc.stop()

    def test_broken(self, tmp_path: Path) -> None:
        good = dcm.level(tmp_path / "a.dcm", BASE, dicom_jpeg, dcm.JPEG, photometric="YBR_FULL").read_bytes()
        path = tmp_path / "b.dcm"
        for size in (132, 200, 600, len(good) // 2, len(good) - 20):
            path.write_bytes(good[:size])
            with pytest.raises((Rejected, SkippedSource)):
                opened(path)
        for name, changes, code in (
            ("frames", {"NumberOfFrames": 79}, "SLIDE_UNREADABLE"),
            ("one channel", {"SamplesPerPixel": 1, "PhotometricInterpretation": "MONOCHROME2"}, "NOT_A_SLIDE"),
            ("no rows", {"Rows": 0}, "SLIDE_UNREADABLE"),
            ("no pixels", {"PixelData": None}, "SLIDE_UNREADABLE"),
        ):
            broken = dcm.level(tmp_path / f"{name}.dcm", BASE, **changes)
            with pytest.raises(Rejected) as caught:
                opened(broken)
            assert caught.value.code == code, name

    def test_real_levels_show_the_same_slide_as_the_svs(self) -> None:
        folder = shared_data(DICOM_LEVELS)
        slide, svs = opened(*sorted(folder.iterdir())), opened(shared_data(SMALL_REGION))
        assert len(slide.levels) == 12 and slide.verdict == ("COLOUR_DOUBT",)
        assert slide.mpp_um == pytest.approx((0.499, 0.499)) and slide.levels[1].downsample == pytest.approx(2.000337154)
        assert difference(whole(slide, 0), whole(svs, 0)).mean() <= 5
        for level, it in enumerate(slide.levels):
            tile = slide.stored_jpeg(level, 0, 0)
            assert tile is not None and decode_jpeg(tile).shape == (it.tile_height_px, it.tile_width_px, 3)

    @pytest.mark.parametrize("name", ["sm_image.dcm", "sm_image_control.dcm"])
    def test_real_small_tiles(self, name: str) -> None:
        path = shared_data(f"highdicom/{name}")
        slide = opened(path)
        assert isinstance(slide, StoredSlide) and slide.icc_profile is not None and slide.facts["scanner_model"] == "Test Model"
        assert np.array_equal(whole(slide, 0), by_openslide(path, 0, 0, 0, 50, 50))

    def test_other_dicom_objects_are_skipped(self) -> None:
        for name in ("ct_image.dcm", "sm_annotations.dcm", "seg_image_sm_dots.dcm"):
            with pytest.raises(SkippedSource):
                opened(shared_data(f"highdicom/{name}"))


def bytes_of(tile: np.ndarray) -> bytes:
    return tile.tobytes()
