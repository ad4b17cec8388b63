"""Slide properties and NIfTI header fields: allow-lists."""

from __future__ import annotations

import json

import numpy as np

from medspark.deid import keep_slide_properties, nifti_header_json
from tests.real import shared_data


def test_aperio_identity_goes() -> None:
    raw = {
        "openslide.vendor": "aperio",
        "openslide.mpp-x": "0.499",
        "openslide.mpp-y": "0.499",
        "openslide.objective-power": "20",
        "openslide.level[0].width": "2220",
        "openslide.quickhash-1": "ab" * 32,
        "openslide.comment": "Aperio Image Library|User = jdoe",
        "tiff.ImageDescription": "Aperio Image Library|User = jdoe",
        "tiff.DateTime": "2009:12:29 09:59:15",
        "aperio.MPP": "0.4990",
        "aperio.AppMag": "20",
        "aperio.User": "b414003d-95c6-48b0-9369-8010ed517ba7",
        "aperio.Date": "12/29/09",
        "aperio.Time": "09:59:15",
        "aperio.ImageID": "1004486",
        "aperio.Filename": "CMU-1",
        "aperio.Title": "Doe",
        "aperio.ScanScope ID": "CPAPERIOCS",
        "aperio.Barcode": "S12-345",
        "hamamatsu.Created": "2009/12/29",
        "hamamatsu.NDP.S/N": "000123",
        "hamamatsu.SourceLens": "20",
        "leica.barcode": "aGVsbG8=",
        "leica.creation-date": "2010-01-01",
        "mirax.GENERAL.SLIDE_NAME": "Doe",
        "philips.DICOM_DEVICE_SERIAL_NUMBER": "FMT0107",
        "unknown.key": "1",
        "tiff.Model": "Doe 12.03.1950",
    }
    assert keep_slide_properties(raw) == {
        "aperio.AppMag": "20",
        "aperio.MPP": "0.4990",
        "hamamatsu.SourceLens": "20",
        "openslide.level[0].width": "2220",
        "openslide.mpp-x": "0.499",
        "openslide.mpp-y": "0.499",
        "openslide.objective-power": "20",
        "openslide.vendor": "aperio",
    }


def test_real_aperio_slide() -> None:
    import openslide

    with openslide.OpenSlide(str(shared_data("wsi/CMU-1-Small-Region.svs"))) as slide:
        raw = dict(slide.properties)
    kept = keep_slide_properties(raw)
    assert kept["openslide.mpp-x"] == raw["openslide.mpp-x"] and kept["aperio.AppMag"] == "20"
    for key in ("aperio.User", "aperio.Date", "aperio.Time", "aperio.ImageID", "aperio.Filename", "aperio.ScanScope ID"):
        assert key in raw
        assert key not in kept
        assert len(raw[key]) < 4 or raw[key] not in kept.values()


FIELDS = {
    "sizeof_hdr": np.array(348, np.int32),
    "dim": np.array([3, 4, 5, 6, 1, 1, 1, 1], np.int16),
    "pixdim": np.array([1, 0.5, 0.5, np.nan, 0, 0, 0, 0], np.float32),
    "descrip": np.array(b"Doe^John FSL brain 12.03.1950"),
    "db_name": np.array(b"Doe"),
    "aux_file": np.array(b"/home/doe/x"),
    "intent_name": np.array(b"Doe"),
    "magic": np.array(b"n+1"),
    "qform_code": 1,
    "extensions": [b"Doe"],
}


def test_nifti_fields() -> None:
    text = nifti_header_json(FIELDS, "basic")
    fields = json.loads(text)
    assert "Doe" not in text and "1950" not in text
    assert fields["dim"] == [3, 4, 5, 6, 1, 1, 1, 1] and fields["pixdim"][3] is None and fields["descrip"] == "brain"
    assert list(fields) == sorted(fields)
    kept = json.loads(nifti_header_json(FIELDS, "none"))
    assert kept["db_name"] == "Doe" and "extensions" not in kept


def test_real_nifti() -> None:
    import nibabel

    header = nibabel.load(shared_data("nifti/nibabel_example4d.nii.gz")).header
    fields = json.loads(nifti_header_json(dict(header.items()), "basic"))
    assert fields["dim"][0] == 4 and "db_name" not in fields
