"""NIfTI volumes: planes, positions and refusals, with nibabel as the foreign oracle."""

from __future__ import annotations

import gzip
import itertools
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from medspark.config import Config, Guard
from medspark.errors import Rejected, SkippedSource
from medspark.keys import Ids
from medspark.pixels import decode
from medspark.series import header, nifti
from medspark.series.assemble import assemble
from medspark.tables.rows import Rejection, Rows
from medspark.tables.work import SourceFile
from tests.phantoms.series import rows_of
from tests.real import shared_data

IDS = Ids(b"k" * 32)
NIBABEL_FILES = Path(nibabel.__file__).parent / "tests" / "data"
OBLIQUE = np.array([[-1.9, 0.1, 0.3, 10.0], [0.2, 2.1, -0.5, -20.0], [0.1, 0.4, 2.9, 30.0], [0, 0, 0, 1]])


def explode(
    path: Path, header: dict[str, Any] | None = None, **options: Any
) -> tuple[list[dict[str, Any]], list[dict[str, Any]], list[Rejection]]:
    """(rows of slices, rows of pixels, rejections) of one file."""
    source = SourceFile("5" * 32, str(path), str(path), path.stat().st_size, "set", {}, options.pop("subject", "patient"), "set")
    config = Config(**options)
    if header is None:
        header = nifti.scan(str(path), str(path), IDS, config)
    rows: dict[str, list[dict[str, Any]]] = {"slices": [], "pixels": []}
    rejections = []
    for item in nifti.explode_file(source, header, IDS, config, lambda source, what="": None):
        if isinstance(item, Rejection):
            rejections.append(item)
            continue
        assert isinstance(item, Rows)
        if item.table == "slices":
            item.to_arrow("run", "batch")  # every column known, none missing
        rows[item.table] += [dict(zip(item.columns, values, strict=True)) for values in zip(*item.columns.values(), strict=True)]
    return rows["slices"], rows["pixels"], rejections


def array_of(pixel: dict[str, Any]) -> np.ndarray:
    return decode(pixel["bytes"], pixel["codec"], pixel["dtype"], pixel["shape"])


def save(
    tmp_path: Path,
    data: np.ndarray,
    affine: np.ndarray | None = OBLIQUE,
    name: str = "v.nii",
    cls: type = nibabel.Nifti1Image,
    **fields: Any,
) -> Path:
    image = cls(data, affine)
    image.header.set_xyzt_units("mm", "sec")
    for key, value in fields.items():
        image.header[key] = value
    path = tmp_path / name
    nibabel.save(image, path)
    return path


def code_of(path: Path, config: Config | None = None) -> str:
    with pytest.raises(Rejected) as caught:
        nifti.scan(str(path), str(path), IDS, config or Config())
    return caught.value.code


def numbers(shape: tuple[int, ...], dtype: str = "<i2") -> np.ndarray:
    return np.random.default_rng(4).integers(0, 100, shape).astype(dtype)


@given(
    st.lists(st.integers(1, 6), min_size=2, max_size=5),
    st.sampled_from(["u1", "i1", "<i2", ">i2", "<u2", "<i4", ">u4", "<f4", ">f4", "<f8", "<i8"]),
    st.sampled_from([".nii", ".nii.gz"]),
    st.sampled_from([nibabel.Nifti1Image, nibabel.Nifti2Image]),
)
@settings(deadline=None, max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_every_plane_comes_back(tmp_path: Path, shape: list[int], dtype: str, suffix: str, cls: type) -> None:
    data = numbers(tuple(shape), dtype)
    header = cls.header_class(endianness=">" if dtype[0] == ">" else "<")
    header.set_data_dtype(data.dtype)
    path = tmp_path / f"v{suffix}"
    nibabel.save(cls(data, OBLIQUE, header), path)
    slices, pixels, rejections = explode(path)
    planes = data.reshape(*shape[:2], shape[2] if len(shape) > 2 else 1, -1, order="F")
    assert not rejections
    assert len(slices) == len(pixels) == planes.shape[2] * planes.shape[3]
    for row, pixel in zip(slices, pixels, strict=True):
        t, k = divmod(row["frame_number"] - 1, planes.shape[2])
        assert row["t"] == t
        assert np.array_equal(array_of(pixel), planes[:, :, k, t].T)
        assert pixel["dtype"] == ("float32" if data.dtype.kind == "f" else data.dtype.name)
        assert (row["rows"], row["cols"]) == (shape[1], shape[0])
        assert pixel["parent_id"] == row["series_id"] and pixel["image_id"] == row["image_id"]
        assert row["image_id"][:16] == row["series_id"][:16]
    assert len({row["image_id"] for row in slices}) == len(slices)
    assert sorted((row["t"], row["k"]) for row in slices) == [(t, k) for t in range(planes.shape[3]) for k in range(planes.shape[2])]


@pytest.mark.parametrize("flips", [(1, 1, 1), (-1, 1, 1), (1, -1, 1), (1, 1, -1), (-1, -1, -1)])
def test_positions_are_those_of_dicom(tmp_path: Path, flips: tuple[int, int, int]) -> None:
    """LPS centre of the first pixel; position and k along row x column cosines, whatever the handedness of the voxel axes."""
    affine = OBLIQUE @ np.diag([*flips, 1.0])
    slices, _, _ = explode(save(tmp_path, numbers((5, 4, 6)), affine))
    lps = np.diag([-1, -1, 1, 1]) @ affine
    for row in slices:
        k = row["frame_number"] - 1
        assert np.allclose(row["image_position_mm"], (lps @ [0, 0, k, 1])[:3], atol=1e-4)
        assert row["pixel_spacing_source"] == "nifti"
        assert np.allclose(row["pixel_spacing_mm"], [np.linalg.norm(lps[:3, 1]), np.linalg.norm(lps[:3, 0])], atol=1e-5)
    positions = [row["position_mm"] for row in sorted(slices, key=lambda row: row["k"])]
    assert np.all(np.diff(positions) > 0)


CODES = [(first, second, third) for axes in itertools.permutations(("LR", "PA", "IS")) for first, second, third in itertools.product(*axes)]


@pytest.mark.parametrize("code", CODES, ids=["".join(code) for code in CODES])
def test_every_orientation_maps_voxels_where_nibabel_maps_them(tmp_path: Path, code: tuple[str, str, str]) -> None:
    """All 48: the series' affine takes (col, row, k) of a stored pixel to the point to which nibabel takes the voxel of its value."""
    axes = nibabel.orientations.axcodes2ornt(code)
    turn = nibabel.orientations.inv_ornt_aff(axes, (4, 5, 6))
    affine = np.diag([1.5, 2.0, 3.0, 1.0]) @ np.linalg.inv(turn)
    affine[:3, 3] = [7.0, -11.0, 13.0]
    assert nibabel.aff2axcodes(affine) == code
    data = np.arange(2 * 3 * 4, dtype="<i2").reshape(2, 3, 4)
    path = save(tmp_path, data, affine)
    slices, pixels, _ = explode(path)
    assembled = assemble(pa.Table.from_pylist([{"verdict": [], **row} for row in slices]))
    ((series,), placed) = rows_of(assembled.series), {row["image_id"]: row for row in assembled.slices.to_pylist()}
    lps = np.array(series["affine_lps_mm"]).reshape(4, 4)
    assert series["tilt_deg"] == pytest.approx(0, abs=1e-6)
    assert series["n_slices"] == 4 and series["n_volumes"] == 1
    for row, pixel in zip(slices, pixels, strict=True):
        assert placed[row["image_id"]]["k"] == row["k"]  # what explode says at once is what the whole series says
        for (line, column), value in np.ndenumerate(array_of(pixel)):
            voxel = np.argwhere(data == value)[0]
            ours = (lps @ [column, line, row["k"], 1])[:3] * [-1, -1, 1]
            np.testing.assert_allclose(ours, nibabel.affines.apply_affine(affine, voxel), atol=1e-5)


@pytest.mark.parametrize("fields", [{"srow_x": [np.nan] * 4}, {name: [0.0] * 4 for name in ("srow_x", "srow_y", "srow_z")}])
def test_a_form_that_maps_nothing_counts_as_absent(tmp_path: Path, fields: dict[str, list[float]]) -> None:
    image = nibabel.Nifti1Image(numbers((4, 3, 2)), np.diag([1.0, 1.0, 2.0, 1.0]))
    image.header["qform_code"] = 1
    path = tmp_path / "v.nii"
    nibabel.save(image, path)
    raw = bytearray(path.read_bytes())
    for place, name in ((280, "srow_x"), (296, "srow_y"), (312, "srow_z")):
        if name in fields:
            raw[place : place + 16] = np.array(fields[name], "<f4").tobytes()
    path.write_bytes(raw)
    slices, _, _ = explode(path)
    assert [row["image_position_mm"] for row in slices] == [[0, 0, 0], [0, 0, 2]]


def test_units_scale_and_time_are_honoured(tmp_path: Path) -> None:
    data = numbers((4, 3, 2, 3))
    for unit, factor in ((1, 1000.0), (2, 1.0), (3, 0.001), (0, 1.0)):
        path = save(tmp_path, data, np.diag([1.0, 2.0, 3.0, 1.0]), xyzt_units=unit + 8, pixdim=[1, 1, 2, 3, 2.5, 0, 0, 0])
        slices, _, _ = explode(path)
        assert np.allclose(slices[0]["pixel_spacing_mm"], [2.0 * factor, 1.0 * factor])
        assert np.isclose(slices[1]["slice_thickness_mm"], 3.0 * factor)
        assert [row["time_ms"] for row in slices[::2]] == [0.0, 2500.0, 5000.0]


def test_scale_factors_go_to_the_rescale_columns(tmp_path: Path) -> None:
    data = numbers((4, 3, 2))
    image = nibabel.Nifti1Image(data, OBLIQUE)
    path = tmp_path / "scaled.nii"
    nibabel.save(image, path)
    raw = bytearray(path.read_bytes())
    raw[112:120] = np.array([0.5, -10.0], "<f4").tobytes()  # scl_slope, scl_inter
    path.write_bytes(raw)
    slices, pixels, _ = explode(path)
    assert (slices[0]["rescale_slope"], slices[0]["rescale_intercept"]) == (0.5, -10.0)
    assert np.array_equal(array_of(pixels[0]), data[:, :, 0].T)
    assert slices[0]["value_max"] == data[:, :, 0].max() * 0.5 - 10.0


def test_the_better_form_is_taken(tmp_path: Path) -> None:
    image = nibabel.Nifti1Image(numbers((4, 3, 2)), np.diag([1.0, 1.0, 2.0, 1.0]))
    path = tmp_path / "v.nii"
    nibabel.save(image, path)
    raw = bytearray(path.read_bytes())
    raw[320:324] = np.array([5.0], "<f4").tobytes()  # srow_z[2]
    for codes, step in (((1, 2), 5.0), ((1, 0), 2.0), ((0, 0), 2.0)):  # qform_code, sform_code
        raw[252:256] = np.array(codes, "<i2").tobytes()
        path.write_bytes(raw)
        slices, _, _ = explode(path)
        assert abs(slices[1]["position_mm"] - slices[0]["position_mm"]) == pytest.approx(step)
    assert slices[1]["image_position_mm"] is None and slices[1]["image_orientation"] is None
    assert slices[1]["position_mm"] == pytest.approx(2.0)  # without any form: a distance from the first slice, by pixdim


def test_identity_is_the_decompressed_content(tmp_path: Path) -> None:
    plain = save(tmp_path, numbers((5, 4, 3)))
    packed = tmp_path / "other name.nii.gz"
    packed.write_bytes(gzip.compress(plain.read_bytes()))
    first, second = explode(plain)[0], explode(packed)[0]
    assert [row["image_id"] for row in first] == [row["image_id"] for row in second]
    assert first[0]["series_id"] == second[0]["series_id"]
    assert first[0]["subject_key"] == IDS.subject("set", "patient") and first[0]["verdict"] == []
    nameless = explode(plain, subject=None)[0]
    assert nameless[0]["verdict"] == ["NO_SUBJECT"] and nameless[0]["subject_key"] != first[0]["subject_key"]


def test_colour_volumes(tmp_path: Path) -> None:
    data = numbers((4, 3, 2, 3), "u1")
    rgb = data.view(np.dtype([("R", "u1"), ("G", "u1"), ("B", "u1")]))[..., 0]
    slices, pixels, _ = explode(save(tmp_path, rgb))
    assert slices[0]["photometric"] == "RGB" and slices[0]["channels"] == 3
    assert np.array_equal(array_of(pixels[1]), data[:, :, 1].transpose(1, 0, 2))


# --- refusals ---------------------------------------------------------------------------------------------------------------------


def test_unreadable_files_have_their_codes(tmp_path: Path) -> None:
    good = save(tmp_path, numbers((20, 20, 10))).read_bytes()
    path = tmp_path / "bad.nii"
    packed = gzip.compress(good)

    def damaged(place: int, value: bytes) -> bytes:
        return good[:place] + value + good[place + len(value) :]

    for data, code in (
        (b"", "EMPTY_FILE"),
        (b"no NIfTI at all" * 50, "NIFTI_UNREADABLE"),
        (good[:100], "NIFTI_UNREADABLE"),
        (good[:-10], "TRUNCATED"),
        (packed[: len(packed) // 2], "TRUNCATED"),
        (packed[:50] + b"\xff" * 40 + packed[90:], "NIFTI_UNREADABLE"),
        (damaged(344, b"ni1\0"), "NIFTI_UNREADABLE"),
        (damaged(40, np.array([3, 20, -5, 10], "<i2").tobytes()), "NIFTI_UNREADABLE"),
        (damaged(40, np.array([9], "<i2").tobytes()), "NIFTI_UNREADABLE"),
        (damaged(70, np.array([32], "<i2").tobytes()), "NIFTI_UNREADABLE"),  # complex64
        (damaged(70, np.array([777], "<i2").tobytes()), "NIFTI_UNREADABLE"),
        (damaged(40, np.array([3, 32767, 32767, 32767], "<i2").tobytes()), "TOO_LARGE"),
        (damaged(40, np.array([3, 200, 200, 10], "<i2").tobytes()), "TRUNCATED"),
        (gzip.compress(good + bytes(4 << 20)), "TOO_LARGE"),  # goes on after its voxels
    ):
        path.write_bytes(data)
        assert code_of(path) == code
    path.write_bytes(good)
    assert code_of(path, Config(guard=Guard(max_pixels=399))) == "TOO_LARGE"


def test_a_bomb_is_refused_by_its_header(tmp_path: Path) -> None:
    """4 KB of gzip that declare 10 GB."""
    raw = bytearray(save(tmp_path, numbers((4, 4, 4))).read_bytes())
    raw[40:48] = np.array([3, 2000, 2000, 1300], "<i2").tobytes()
    path = tmp_path / "bomb.nii.gz"
    path.write_bytes(gzip.compress(bytes(raw) + bytes(1 << 20)))
    assert code_of(path) == "TRUNCATED"


def test_a_file_that_breaks_off_gives_the_slices_before(tmp_path: Path) -> None:
    path = save(tmp_path, np.random.default_rng(0).integers(0, 30000, (64, 64, 20)).astype("<i2"), name="v.nii.gz")
    header = nifti.scan(str(path), str(path), IDS, Config())
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2])
    slices, pixels, rejections = explode(path, header)
    assert 5 <= len(slices) == len(pixels) <= 15
    assert [item.code for item in rejections] == ["TRUNCATED"]
    assert rejections[0].images == 20 - len(slices)


# --- real files ---------------------------------------------------------------------------------------------------------------------


def _check(path: Path) -> int:
    slices, pixels, rejections = explode(path)
    assert not rejections
    image = nibabel.load(path)
    data = np.asarray(image.dataobj.get_unscaled())  # type: ignore[attr-defined]
    planes = data.reshape(*data.shape[:2], data.shape[2] if data.ndim > 2 else 1, -1, order="F")
    for row, pixel in zip(slices, pixels, strict=True):
        t, k = divmod(row["frame_number"] - 1, planes.shape[2])
        assert np.array_equal(array_of(pixel), planes[:, :, k, t].T, equal_nan=data.dtype.kind == "f")
        assert np.allclose(np.array(row["image_position_mm"]) * [-1, -1, 1], (image.affine @ [0, 0, k, 1])[:3], atol=1e-3)
        assert "header_json" in row and row["modality"] == "OT" and row["photometric"] == "MONOCHROME2"
    return len(slices)


@pytest.mark.parametrize(
    ("name", "planes"),
    [("anatomical.nii", 25), ("functional.nii", 60), ("example4d.nii.gz", 48), ("example_nifti2.nii.gz", 24), ("standard.nii.gz", 7)],
)
def test_nibabels_own_files(name: str, planes: int) -> None:
    if not (NIBABEL_FILES / name).exists():
        pytest.skip("nibabel was installed without its test data")
    assert _check(NIBABEL_FILES / name) == planes


@pytest.mark.parametrize(
    ("name", "planes"),
    [("nibabel_anatomical.nii", 25), ("nibabel_example4d.nii.gz", 48), ("BraTS2021_00006/BraTS2021_00006_flair.nii.gz", 155)],
)
def test_the_real_collection(name: str, planes: int) -> None:
    assert _check(shared_data("nifti") / name) == planes


def test_a_label_volume_is_no_series(tmp_path: Path) -> None:
    """By its name, as for pictures: its values are numbers of classes, and a cohort of MR series would hold it."""
    volume = nibabel.Nifti1Image(np.ones((4, 3, 2), np.uint8), np.eye(4))
    for name in ("case_seg.nii.gz", "case-LABELS.nii", "case.mask.nii.gz"):
        nibabel.save(volume, tmp_path / name)
        with pytest.raises(SkippedSource, match="import_labels"):
            header.scan(str(tmp_path / name), f"file://{tmp_path}/{name}", Ids(b"k" * 32), Config())
    for name in ("case.nii.gz", "seg.nii", "case_segmented.nii.gz"):
        nibabel.save(volume, tmp_path / name)
        assert header.scan(str(tmp_path / name), f"file://{tmp_path}/{name}", Ids(b"k" * 32), Config())["kind"] == "nifti"
