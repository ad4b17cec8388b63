"""Real series against SimpleITK: affine, order and rescaled values of every voxel."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest

from medspark import pixels
from medspark.config import Config
from medspark.series import rescale
from medspark.series.assemble import assemble
from medspark.series.kind import SERIES
from tests.phantoms.series import IDS, explode_units, files_of, rows_of
from tests.real import shared_data

sitk = pytest.importorskip("SimpleITK")
sitk.ProcessObject.SetGlobalWarningDisplay(False)


@pytest.mark.parametrize(
    ("folder", "volumes"),
    [
        ("ct/dcmqi_liver", 1),
        ("ct/dcmqi_small", 2),
        ("ct/rtutils_oriented", 1),
        ("ct/rtutils_phantom", 1),
        ("mr/sag_anon", 1),
        ("ct/ge_head_tilt", 1),
    ],
)
def test_volumes_are_simpleitk_s(folder: str, volumes: int) -> None:
    files, _ = files_of(shared_data(folder))
    path_of = {file.source_id: file.path for file in files}
    slices, payload, _ = explode_units(SERIES.plan(files, IDS, Config()).units)
    stored = {row["image_id"]: row for row in payload}
    compared = 0
    for name in sorted({row["series_instance_id"] for row in slices}):
        own = [row for row in slices if row["series_instance_id"] == name]
        if len({row["source_id"] for row in own}) < len(own):
            continue  # multi-frame: SimpleITK reads it otherwise
        assembled = assemble(pa.Table.from_pylist(own))
        (series,) = rows_of(assembled.series)
        k = {row["image_id"]: row["k"] for row in assembled.slices.to_pylist()}
        own.sort(key=lambda row: k[row["image_id"]])
        reader = sitk.ImageSeriesReader()
        reader.SetFileNames([path_of[row["source_id"]] for row in own])
        image = reader.Execute()
        for row, theirs in zip(own, sitk.GetArrayFromImage(image), strict=True):
            found = stored[row["image_id"]]
            array = pixels.decode(found["bytes"], found["codec"], found["dtype"], found["shape"])
            np.testing.assert_allclose(rescale.to_values(array, row["rescale_slope"], row["rescale_intercept"]), theirs, atol=1e-3)
        if series["affine_lps_mm"] is not None:  # SimpleITK takes any series for an even one
            ours = np.array(series["affine_lps_mm"]).reshape(4, 4)
            np.testing.assert_allclose(ours[:3, 3], image.GetOrigin(), atol=1e-6)
            np.testing.assert_allclose(ours[:3, :3], np.reshape(image.GetDirection(), (3, 3)) * image.GetSpacing(), atol=1e-6)
        compared += 1
    assert compared == volumes
