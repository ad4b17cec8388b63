"""VOI windows against pydicom's, and the order of modality, window and inversion."""

from __future__ import annotations

import numpy as np
import pydicom
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydicom.pixels import apply_voi_lut

from medspark import pixels
from medspark.series.display import picture, voi
from tests.phantoms.series import ingest, slice_dataset, write
from tests.real import shared_data


@given(
    st.sampled_from(["LINEAR", "LINEAR_EXACT", "SIGMOID"]),
    st.floats(-2000, 2000),
    st.floats(2, 4000),
)
def test_a_window_is_pydicom_s(function, center, width):
    values = np.arange(-4000, 4000, 7, dtype=np.int16).reshape(1, -1)
    ds = pydicom.Dataset()
    ds.PhotometricInterpretation, ds.BitsStored, ds.PixelRepresentation = "MONOCHROME2", 16, 1
    ds.WindowCenter, ds.WindowWidth, ds.VOILUTFunction = f"{center:.6g}", f"{width:.6g}", function
    with np.errstate(over="ignore"):
        theirs = apply_voi_lut(values, ds)  # in -32768..32767
    ours = voi(values, float(ds.WindowCenter), float(ds.WindowWidth), function)
    np.testing.assert_allclose(ours * 65535 - 32768, theirs, atol=1e-6)
    assert (np.diff(ours.ravel()) >= 0).all()


def test_a_window_one_wide_is_a_threshold_and_a_narrower_one_is_refused():
    np.testing.assert_array_equal(voi(np.array([38, 39, 40, 41]), 40, 1), [0, 0, 1, 1])
    for function, width in (("LINEAR", 0.5), ("LINEAR_EXACT", 0), ("SIGMOID", -1)):
        with pytest.raises(ValueError, match="wide"):
            voi(np.zeros(1), 0, width, function)


def test_monochrome1_is_inverted_after_the_window_and_only_by_the_reader(tmp_path):
    stored = np.arange(20).reshape(1, 4, 5)
    shared = {"pixels": stored, "WindowCenter": -1014, "WindowWidth": 11, "RescaleSlope": 1, "RescaleIntercept": -1024}
    write(tmp_path, "1.dcm", slice_dataset(PhotometricInterpretation="MONOCHROME1", **shared))
    ((row,), (payload,), _, _) = ingest(tmp_path)
    array = pixels.decode(payload["bytes"], payload["codec"], payload["dtype"], payload["shape"])
    np.testing.assert_array_equal(array, stored[0])  # the lake keeps what the file holds
    upright = picture(array, row, invert=False)
    np.testing.assert_allclose(upright, np.clip((array - 1024.0 + 1014.5) / 10 + 0.5, 0, 1))
    np.testing.assert_allclose(picture(array, row), 1 - upright)
    np.testing.assert_allclose(picture(array, {**row, "photometric": "MONOCHROME2"}), upright)
    np.testing.assert_allclose(picture(array, row, window=(-1014, 2), invert=False), voi(array - 1024.0, -1014, 2))


def test_without_a_window_the_whole_range_is_shown():
    row = {"value_min": 10.0, "value_max": 30.0, "photometric": "MONOCHROME2", "rescale_slope": 2.0, "rescale_intercept": 0.0}
    np.testing.assert_allclose(picture(np.array([[5, 10, 15]]), row), [[0, 0.5, 1]])
    assert not picture(np.full((2, 2), 5), {**row, "value_max": 10.0}).any()
    np.testing.assert_allclose(picture(np.full((1, 1, 3), 51, np.uint8), row), 0.2)


def test_real_chest_has_dark_air_around_and_bright_bones():
    """CR-MONO1-10-chest.dcm: air is large as stored, and white before the inversion."""
    ((row,), (payload,), _, _) = ingest(shared_data("cxr/CR-MONO1-10-chest.dcm"))
    array = pixels.decode(payload["bytes"], payload["codec"], payload["dtype"], payload["shape"])
    shown = picture(array, row)
    assert row["photometric"] == "MONOCHROME1"
    assert 0 <= shown.min() < shown.max() <= 1
    assert np.corrcoef(array.ravel(), shown.ravel())[0, 1] < -0.9
