"""X-ray, ultrasound, PET, nuclear medicine, secondary capture: what is theirs alone."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pydicom
import pytest
from pydicom.data import get_testdata_file

from medspark import pixels
from medspark.series.assemble import assemble
from tests.phantoms.series import PT, US, ingest, slice_dataset, write
from tests.phantoms.series import rows_of as made_of
from tests.real import shared_data

NM, DX, MG, SC = (f"1.2.840.10008.5.1.4.1.1.{end}" for end in ("20", "1.1", "1.2", "7"))


def item(**attributes):
    ds = pydicom.Dataset()
    for keyword, value in attributes.items():
        setattr(ds, keyword, value)
    return ds


def rows_of(tmp_path, **attributes):
    write(tmp_path, "a.dcm", slice_dataset(**attributes))
    slices, _, rejections, others = ingest(tmp_path)
    assert (rejections, others) == ([], [])
    return slices


# --- nuclear medicine -------------------------------------------------------------------------------------------------------------


def nuclear(tmp_path, frames, **attributes):
    plain = {"ImagePositionPatient": None, "ImageOrientationPatient": None, "RescaleSlope": None, "RescaleIntercept": None}
    return rows_of(tmp_path, Modality="NM", SOPClassUID=NM, NumberOfFrames=frames, **plain, **attributes)


def test_a_dynamic_image_tells_window_detector_phase_and_time(tmp_path):
    """The example of PS3.3 C.8.4.8: two phases of five and two frames from each of two detectors."""
    rows = nuclear(
        tmp_path,
        14,
        ImageType=["ORIGINAL", "PRIMARY", "DYNAMIC", "EMISSION"],
        FrameIncrementPointer=[0x00540010, 0x00540020, 0x00540030, 0x00540100],
        EnergyWindowVector=[1] * 14,
        DetectorVector=[1] * 7 + [2] * 7,
        PhaseVector=[1, 1, 1, 1, 1, 2, 2] * 2,
        TimeSliceVector=[1, 2, 3, 4, 5, 1, 2] * 2,
        PhaseInformationSequence=pydicom.Sequence(
            [
                item(PhaseDelay=0, ActualFrameDuration=1000, PauseBetweenFrames=100, NumberOfFramesInPhase=5),
                item(PhaseDelay=500, ActualFrameDuration=4000, PauseBetweenFrames=0, NumberOfFramesInPhase=2),
            ]
        ),
    )
    assert [row["energy_window"] for row in rows] == [1] * 14
    assert [row["detector"] for row in rows] == [1] * 7 + [2] * 7
    assert [row["phase"] for row in rows] == [1, 1, 1, 1, 1, 2, 2] * 2
    assert [row["time_ms"] for row in rows] == [0, 1100, 2200, 3300, 4400, 5900, 9900] * 2
    assert {row["image_position_mm"] for row in rows} == {None}


@pytest.mark.parametrize("spacing", [4.0, -4.0])
def test_reconstructed_slices_are_stacked_by_the_sign_of_the_spacing(tmp_path, spacing):
    rows = nuclear(
        tmp_path,
        6,
        ImageType=["ORIGINAL", "PRIMARY", "RECON GATED TOMO", "EMISSION"],
        FrameIncrementPointer=[0x00540060, 0x00540070, 0x00540080],
        RRIntervalVector=[1] * 6,
        TimeSlotVector=[1, 1, 1, 2, 2, 2],
        SliceVector=[1, 2, 3] * 2,
        SpacingBetweenSlices=spacing,
        GatedInformationSequence=pydicom.Sequence([item(DataInformationSequence=pydicom.Sequence([item(FrameTime=50)]))]),
        DetectorInformationSequence=pydicom.Sequence(
            [item(ImagePositionPatient=[-10, -20, 100], ImageOrientationPatient=[1, 0, 0, 0, 1, 0])]
        ),
    )
    assert [row["image_position_mm"] for row in rows] == [[-10, -20, 100 + spacing * place] for place in (0, 1, 2)] * 2
    assert [row["position_mm"] for row in rows] == [100 + spacing * place for place in (0, 1, 2)] * 2
    assert [(row["temporal_position"], row["time_ms"]) for row in rows] == [(1, 0)] * 3 + [(2, 50)] * 3
    assembled = assemble(pa.Table.from_pylist(rows))
    placed = {row["image_id"]: row for row in assembled.slices.to_pylist()}
    assert [placed[row["image_id"]]["t"] for row in rows] == [0, 0, 0, 1, 1, 1]
    assert [placed[row["image_id"]]["k"] for row in rows] == ([0, 1, 2] if spacing > 0 else [2, 1, 0]) * 2
    ((series,), size) = made_of(assembled.series), abs(spacing)
    assert (series["n_volumes"], series["slice_spacing_mm"], series["verdict"]) == (2, size, ["MULTI_VOLUME"])


def test_a_vector_of_another_length_says_nothing(tmp_path):
    rows = nuclear(tmp_path, 3, EnergyWindowVector=[1, 2], DetectorVector=[1, 1, 2], SliceVector=[0, 1, 2])
    assert [(row["energy_window"], row["detector"], row["image_position_mm"]) for row in rows] == [
        (None, 1, None),
        (None, 1, None),
        (None, 2, None),
    ]


def test_pydicoms_bone_scan():
    """JPEG2000.dcm, a whole-body bone scan of one frame."""
    ((row,), _, _, _) = ingest(Path(get_testdata_file("JPEG2000.dcm")))
    assert (row["modality"], row["energy_window"], row["detector"], row["pixel_spacing_mm"]) == ("NM", 1, 1, [2.26, 2.26])


# --- ultrasound -------------------------------------------------------------------------------------------------------------------


def region(down_cm, right_cm, space=1, units=3):
    return item(
        RegionSpatialFormat=space,
        PhysicalUnitsXDirection=units,
        PhysicalUnitsYDirection=units,
        PhysicalDeltaX=right_cm,
        PhysicalDeltaY=down_cm,
    )


@pytest.mark.parametrize(
    ("regions", "spacing"),
    [
        ([region(0.02, 0.03)], [0.2, 0.3]),
        ([region(0.02, 0.03), region(0.02, 0.03)], [0.2, 0.3]),
        ([region(0.02, 0.03), region(0.02 * (1 + 1e-9), 0.03)], [0.2, 0.3]),  # the same number, printed by two programs
        ([region(0.02, 0.03), region(0.02, 0.04)], None),
        ([region(0.02, 0.03), region(0.02, 0.03, units=4)], None),
        ([region(-0.02, 0.03)], [0.2, 0.3]),
        ([region(0.02, 0.03, space=3)], None),  # a spectrum: its axes are time and speed
        ([region(0.0, 0.03)], None),
    ],
)
def test_spacing_of_ultrasound_regions(tmp_path, regions, spacing):
    (row,) = rows_of(tmp_path, Modality="US", SOPClassUID=US, PixelSpacing=None, SequenceOfUltrasoundRegions=pydicom.Sequence(regions))
    assert row["pixel_spacing_source"] == (None if spacing is None else "us_region")
    assert row["pixel_spacing_mm"] == (None if spacing is None else pytest.approx(spacing, rel=1e-6))


@pytest.mark.parametrize(
    ("times", "expected"),
    [
        ({"FrameTime": 40}, [0, 40, 80]),
        ({"FrameTimeVector": [0, 30, 50]}, [0, 30, 80]),
        ({"FrameTimeVector": [0, 30], "FrameTime": 10}, [0, 10, 20]),
    ],
)
def test_a_loop_has_its_times(tmp_path, times, expected):
    rows = rows_of(tmp_path, Modality="US", SOPClassUID=US, NumberOfFrames=3, **times)
    assert [row["time_ms"] for row in rows] == expected
    assert [row["frame_number"] for row in rows] == [1, 2, 3]


def test_real_sixteen_bit_palette_is_expanded():
    ((row,), (payload,), _, _) = ingest(shared_data("us/gdcm-US-ALOKA-16.dcm"))
    ds = pydicom.dcmread(shared_data("us/gdcm-US-ALOKA-16.dcm"))
    array = pixels.decode(payload["bytes"], payload["codec"], payload["dtype"], payload["shape"])
    np.testing.assert_array_equal(array, pydicom.pixels.apply_color_lut(ds.pixel_array, ds))
    assert (row["channels"], payload["dtype"], row["pixel_spacing_source"]) == (3, "uint16", "us_region")
    assert "BURNED_IN_POSSIBLE" in row["verdict"]


# --- X-ray ------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("attributes", "view"),
    [
        ({"ViewPosition": "PA"}, "PA"),
        (
            {
                "ViewCodeSequence": pydicom.Sequence(
                    [item(CodeValue="399368009", CodingSchemeDesignator="SCT", CodeMeaning="medio-lateral oblique")]
                )
            },
            "MLO",
        ),
        (
            {"ViewCodeSequence": pydicom.Sequence([item(CodeValue="R-10242", CodingSchemeDesignator="SRT", CodeMeaning="cranio-caudal")])},
            "CC",
        ),
        ({"ViewPosition": "AP", "ViewCodeSequence": pydicom.Sequence([item(CodeValue="R-10242")])}, "AP"),
        ({"ViewCodeSequence": pydicom.Sequence([item(CodeValue="X-1", CodeMeaning="Doe^Jane")])}, None),
    ],
)
def test_the_view_by_name_or_code(tmp_path, attributes, view):
    (row,) = rows_of(tmp_path, Modality="MG", SOPClassUID=MG, ImageLaterality="R", **attributes)
    assert (row["view_position"], row["laterality"]) == (view, "R")


def test_views_are_the_codes_of_the_standard():
    from pydicom.sr.codedict import codes

    from medspark.series.frames import VIEWS

    views = {"AP": "AnteroPosterior", "PA": "PosteroAnterior", "LL": "LeftLateral", "RL": "RightLateral"}
    breast = {"CC": "CranioCaudal", "MLO": "MedioLateralObliqueProjection", "ML": "MedioLateralProjection", "LM": "LateroMedial"}
    breast |= {"LMO": "LateroMedialOblique", "XCCL": "CranioCaudalExaggeratedLaterally", "XCCM": "CranioCaudalExaggeratedMedially"}
    breast |= {"FB": "CaudoCranial", "SIO": "SuperolateralToInferomedialOblique", "ISO": "InferomedialToSuperolateralOblique"}
    for table, names in ((codes.cid4010, views), (codes.cid4014, breast)):
        for view, name in names.items():
            assert VIEWS[getattr(table, name).value] == view
    assert len(set(VIEWS.values())) == len(views) + len(breast)


def test_real_detector_spacing_is_called_so():
    """dx_image.dcm: PixelSpacing only repeats ImagerPixelSpacing, so that it is the detector's plane and gives no mm²."""
    (row, *_) = [row for row in ingest(shared_data("highdicom/dx_image.dcm"))[0]]
    assert (row["modality"], row["photometric"], row["pixel_spacing_source"], row["laterality"]) == (
        "DX",
        "MONOCHROME1",
        "ImagerPixelSpacing",
        "L",
    )


# --- PET --------------------------------------------------------------------------------------------------------------------------

F18, ZR89 = 6586.2, 282_240.0


def suv(tmp_path, dose=None, **attributes):
    given = {"RadionuclideTotalDose": 3.7e8, "RadionuclideHalfLife": F18, "RadiopharmaceuticalStartTime": "090000", **(dose or {})}
    sequence = pydicom.Sequence([item(**{name: value for name, value in given.items() if value is not None})])
    plain = {"Units": "BQML", "CorrectedImage": ["DECY", "ATTN"], "DecayCorrection": "START", "PatientWeight": 70, "SeriesDate": "20200229"}
    (row,) = rows_of(tmp_path, Modality="PT", SOPClassUID=PT, RadiopharmaceuticalInformationSequence=sequence, **{**plain, **attributes})
    return json.loads(row["series_attributes"]).get("suv_bw_factor")


def decayed(hours, half_life=F18):
    return pytest.approx(70_000 / (3.7e8 * 2 ** (-3600 * hours / half_life)), rel=1e-12)


@pytest.mark.parametrize(
    ("dose", "attributes", "factor"),
    [
        ({}, {}, decayed(1)),
        ({}, {"DecayCorrection": "ADMIN"}, decayed(0)),
        ({}, {"DecayCorrection": "NONE"}, None),
        ({}, {"CorrectedImage": ["DECY"]}, None),
        ({}, {"PatientWeight": 0}, None),
        ({"RadionuclideTotalDose": 370}, {}, None),  # megabecquerels, in becquerels' place
        ({"RadiopharmaceuticalStartTime": "233000"}, {"SeriesTime": "003000"}, decayed(1)),  # over midnight
        ({"RadiopharmaceuticalStartDateTime": "20200229093000.0"}, {}, decayed(0.5)),
        ({"RadiopharmaceuticalStartDateTime": "20200228100000", "RadionuclideHalfLife": ZR89}, {}, decayed(24, ZR89)),
        ({"RadionuclideHalfLife": ZR89}, {}, None),  # the time of day alone: this day's or one of the days before?
        ({"RadiopharmaceuticalStartDateTime": "20200301093000"}, {}, None),  # injected after the scan
        ({"RadiopharmaceuticalStartDateTime": "20200129093000"}, {}, None),  # a month before
        ({}, {"Units": "GML"}, 1.0),
        ({}, {"Units": "GML", "SUVType": "BW"}, 1.0),
        ({}, {"Units": "GML", "SUVType": "LBM"}, None),  # SUV, but not by body weight
        ({}, {"Units": "CNTS"}, None),
        ({}, {"AcquisitionTime": "095900"}, None),  # the series begins after its images: made later
    ],
)
def test_suv_only_where_it_is_certain(tmp_path, dose, attributes, factor):
    assert suv(tmp_path, dose, **attributes) == factor


# --- secondary capture ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("said", "verdicts"), [(None, ["BURNED_IN_POSSIBLE"]), ("NO", [])])
def test_a_capture_that_does_not_say_no_may_hold_names(tmp_path, said, verdicts):
    colour = {"SamplesPerPixel": 3, "PhotometricInterpretation": "RGB", "PlanarConfiguration": 0, "PixelRepresentation": 0}
    bits = {"BitsAllocated": 8, "BitsStored": 8, "HighBit": 7, "pixels": np.zeros((4, 5, 3))}
    ds = slice_dataset(Modality="OT", SOPClassUID=SC, BurnedInAnnotation=said, **colour, **{k: v for k, v in bits.items() if k != "pixels"})
    ds.PixelData = bytes(range(60))
    write(tmp_path, "a.dcm", ds)
    ((row,), (payload,), _, _) = ingest(tmp_path)
    assert (row["verdict"], row["channels"], row["is_hu"]) == (verdicts, 3, False)
    array = pixels.decode(payload["bytes"], payload["codec"], payload["dtype"], payload["shape"])
    np.testing.assert_array_equal(array, np.arange(60).reshape(4, 5, 3))


# --- nibabel's own DICOM files ----------------------------------------------------------------------------------------------------


def nibabel_file(tmp_path, name):
    folder = Path(pytest.importorskip("nibabel").__file__).parent / "nicom" / "tests" / "data"
    if not (folder / name).exists():
        pytest.skip("nibabel was installed without its test data")
    data = (folder / name).read_bytes()
    path = tmp_path / name.removesuffix(".gz")
    path.write_bytes(gzip.decompress(data) if name.endswith(".gz") else data)
    return path


@pytest.mark.parametrize("name", ["0.dcm", "siemens_dwi_1000.dcm.gz"])
def test_a_siemens_mosaic_is_blocked(tmp_path, name):
    """49 slices in one image: they were one usable slice of 896 x 896."""
    ((row,), _, _, _) = ingest(nibabel_file(tmp_path, name))
    assert "MOSAIC" in row["verdict"]
    assert not row["usable"]


@pytest.mark.filterwarnings("ignore::UserWarning")  # nibabel of its own reader
def test_a_philips_multi_frame_lies_where_nibabel_says(tmp_path):
    from nibabel.nicom.dicomwrappers import wrapper_from_file

    path = nibabel_file(tmp_path, "philips_mprage.dcm.gz")
    rows, _, rejections, _ = ingest(path)
    assert rejections == []
    ((series,),) = [made_of(assemble(pa.Table.from_pylist(rows)).series)]
    assert (series["n_slices"], series["n_volumes"], series["slice_spacing_mm"]) == (176, 1, pytest.approx(1.0, abs=1e-5))
    ours = np.array(series["affine_lps_mm"]).reshape(4, 4)
    theirs = wrapper_from_file(path).affine  # (row, column, frame) to LPS, frames either way along the normal
    np.testing.assert_allclose(ours[:3, [1, 0]], theirs[:3, :2], atol=1e-5)
    along = np.sign(ours[:3, 2] @ theirs[:3, 2])
    np.testing.assert_allclose(ours[:3, 2] * along, theirs[:3, 2], atol=1e-4)
    first = ours[:3, 3] if along > 0 else ours[:3, 3] + 175 * ours[:3, 2]
    np.testing.assert_allclose(first, theirs[:3, 3], atol=1e-2)
