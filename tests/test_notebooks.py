"""Every notebook runs from top to bottom on a small lake; notebooks define nothing."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import matplotlib
import pytest

from tests.conftest import ROOT
from tests.lake import harness
from tests.phantoms import series as phantoms

NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))


@pytest.mark.spark
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_it_runs(spark: Any, tmp_path: Path, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import highdicom
    import numpy as np
    import pydicom
    from highdicom.seg import SegmentAlgorithmTypeValues, SegmentationTypeValues, SegmentDescription
    from pydicom.sr.codedict import codes

    from medspark.labels.kind import labels_kind

    matplotlib.use("Agg")
    sides = {"Rows": 40, "Columns": 50, "pixels": np.arange(2000).reshape(1, 40, 50)}
    header = {
        "AccessionNumber": "",
        "StudyID": "1",
        "StudyTime": "100000",
        "PatientBirthDate": "",
        "ReferringPhysicianName": "",
        "Manufacturer": "A",
    }
    folder = phantoms.write_series(tmp_path / "ct", [0, 2], **sides, **header)
    images = [pydicom.dcmread(file) for file in sorted(folder.iterdir())]
    segment = SegmentDescription(1, "liver", codes.SCT.Organ, codes.SCT.Liver, SegmentAlgorithmTypeValues.MANUAL)
    mask = np.zeros((2, 40, 50), np.uint8)
    mask[:, 5:35, 5:45] = 1
    seg = highdicom.seg.Segmentation(
        images, mask, SegmentationTypeValues.BINARY, [segment], phantoms.ROOT + "77", 9, phantoms.ROOT + "77.1", 1, "A", "m", "1", "1"
    )
    seg.save_as(tmp_path / "seg.dcm")
    harness.run(spark, tmp_path / "lake", [folder])
    harness.run(spark, tmp_path / "lake", [tmp_path / "seg.dcm"], labels_kind("auto", None, None, explicit_dataset=False))
    monkeypatch.setenv("MEDSPARK_LAKE", str(tmp_path / "lake"))
    names: dict[str, Any] = {}
    for cell in json.loads(path.read_text())["cells"]:
        if cell["cell_type"] == "code":
            exec(compile("".join(cell["source"]), path.name, "exec"), names)
    assert names["mask"].sum() == names["best"].area_px == 1200


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_it_is_clean_and_defines_nothing(path: Path) -> None:
    cells = [cell for cell in json.loads(path.read_text())["cells"] if cell["cell_type"] == "code"]
    assert all(cell["outputs"] == [] and cell["execution_count"] is None for cell in cells)
    assert not any(re.search(r"^\s*(def|class) ", "".join(cell["source"]), re.M) for cell in cells)
