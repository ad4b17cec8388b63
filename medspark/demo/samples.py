"""What the demo ingests: real files of a folder such as ``../shared/data`` where there is one, else files that need no network.

The embedded ones are real where Python packages bring real ones (histology and a retina from scikit-image, CT and MR slices from pydicom) and a
phantom where none exists (a CT series and an X-ray with structures of known size). Labels that thresholds derive from pixels are no diagnosis.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterable
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from medspark.errors import BadRequest

ROOT = Path(__file__).resolve().parents[2]
EMBEDDED = "embedded"


Runs = tuple[tuple[str, tuple[Path, ...]], ...]
"""(data set, paths) per run of a job."""


@dataclass(frozen=True)
class Inputs:
    """What the four jobs get.

    about : str                      one sentence for the reader
    slides, series, photos : Runs
    labels : tuple                   annotations of all of them, read in one run; they find their images by instance, by ``pairs``, else by name
    pairs, classes : Path            files for ``--pairs`` and ``--classes``
    """

    about: str
    slides: Runs
    series: Runs
    photos: Runs
    labels: tuple[Path, ...]
    pairs: Path
    classes: Path


def default_data() -> str:
    """The folder of real data beside the project, or "embedded"."""
    beside = ROOT.parent / "shared" / "data"
    return str(beside) if _complete(beside) else EMBEDDED


def choose(data: str, work: Path) -> Inputs:
    """The inputs for ``--data``; embedded ones are written under ``work``; raises `BadRequest` for a folder without the demo's files."""
    if data == EMBEDDED:
        return embedded(work)
    folder = Path(data)
    if not _complete(folder):
        listed = ", ".join(str(path.relative_to(folder)) for path in _needed(folder) if not path.exists())
        raise BadRequest(f"--data {data}: the demo misses {listed} there; `--data {EMBEDDED}` needs no files")
    return shared(folder, work)


def _needed(data: Path) -> tuple[Path, ...]:
    return (
        data / "wsi" / "CMU-1-Small-Region.svs",
        data / "wsi" / "annotations" / "CMU-1-Small-Region.asap.xml",
        data / "ct" / "ge_head_tilt",
        data / "ct" / "ge_head_tilt_labels_derived" / "seg_bone_soft.dcm",
        data / "ct" / "dcmqi_liver" / "ct-3slice",
        data / "ct" / "dcmqi_liver" / "liver.dcm",
        data / "cxr" / "CR-MONO1-10-chest.dcm",
        data / "retina" / "hrf" / "06_h.jpg",
        data / "retina" / "hrf" / "06_h_AVmanual.png",
    )


def _complete(data: Path) -> bool:
    return all(path.exists() for path in _needed(data))


def shared(data: Path, work: Path) -> Inputs:
    """Real slide, CT with DICOM SEG, X-ray and retina, the phantom's X-ray, and two files that no job can read."""
    from medspark.demo import derived, phantom_xray

    slide, outlines, head, bone, abdomen, liver, chest, retina, vessels = _needed(data)
    shadow, shadow_mask = phantom_xray.write(work / "xray")
    fields = derived.lung_fields(chest, work / "derived")
    broken = _broken(work / "broken")
    return Inputs(
        f"a real slide (CMU-1), two CT series with DICOM SEG, a chest X-ray and a retina (HRF), from {data}; a phantom's X-ray",
        slides=(("cmu", (slide,)), ("broken", (broken / "not-a-slide.svs",))),
        series=(
            ("head-ct", (head,)),
            ("abdomen-ct", (abdomen,)),
            ("chest-xray", (chest,)),
            ("xray-phantom", (shadow,)),
            ("broken", (broken / "cut-off.dcm",)),
        ),
        photos=(("retina", (retina,)),),
        labels=(outlines, bone, liver, fields, shadow_mask, vessels),
        pairs=_table(work / "pairs.csv", "image,annotation", ((retina.name, vessels.name),)),
        classes=_classes(work / "classes.csv"),
    )


def embedded(work: Path) -> Inputs:
    """Files written or copied under ``work``; what is there already stays, so that a second run finds nothing new."""
    from medspark.demo import derived, phantom_ct, phantom_slide, phantom_xray

    slide, outlines = phantom_slide.write(work / "slides")
    folder, seg = phantom_ct.write(work / "ct")
    shadow, shadow_mask = phantom_xray.write(work / "xray")
    retina, vessels = derived.retina(work / "photos")
    small = _pydicom_files(work / "pydicom", ("CT_small.dcm", "MR_small.dcm"))
    broken = _broken(work / "broken")
    return Inputs(
        "embedded files: real histology and a retina (scikit-image), CT and MR slices (pydicom), a phantom's CT and X-ray; no network",
        slides=(("histology", (slide,)), ("broken", (broken / "not-a-slide.svs",))),
        series=(
            ("ct-phantom", (folder,)),
            ("xray-phantom", (shadow,)),
            ("pydicom", (small,)),
            ("broken", (broken / "cut-off.dcm",)),
        ),
        photos=(("retina", (retina,)),),
        labels=(outlines, seg, shadow_mask, vessels),
        pairs=_table(work / "pairs.csv", "image,annotation", ((retina.name, vessels.name),)),
        classes=_classes(work / "classes.csv"),
    )


def _classes(path: Path) -> Path:
    """What the values of the masks mean: the phantom's, the thresholds', and the colours of HRF's arteries and veins."""
    from medspark.demo import derived, phantom_xray

    named = {phantom_xray.LUNG: "Lung", phantom_xray.NODULE: "Nodule", **derived.CLASSES}
    rows = [(str(value), label, "positive") for value, label in named.items()]
    rows += [("#ff0000", "artery", "positive"), ("#0000ff", "vein", "positive"), ("#00ff00", "other vessel", "positive")]
    return _table(path, "value,label,role", rows)


def _table(path: Path, header: str, rows: Iterable[tuple[str, ...]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join([header, *(",".join(row) for row in rows)]) + "\n")
    return path


def pydicom_test_file(name: str) -> Path:
    """A DICOM file that lies inside the installed pydicom (found without importing it, and without its downloads)."""
    spec = find_spec("pydicom")
    assert spec is not None
    assert spec.origin is not None
    return Path(spec.origin).parent / "data" / "test_files" / name


def _pydicom_files(folder: Path, names: tuple[str, ...]) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        if not (folder / name).exists():
            shutil.copyfile(pydicom_test_file(name), folder / name)
    return folder


def _broken(folder: Path) -> Path:
    """A slide that is text and a DICOM file whose pixels end early: what arrives in practice, and must not stop a job."""
    folder.mkdir(parents=True, exist_ok=True)
    text, cut = folder / "not-a-slide.svs", folder / "cut-off.dcm"
    if not (text.exists() and cut.exists()):
        text.write_text("404 Not Found: the download was an error page\n")
        shutil.copyfile(pydicom_test_file("MR_truncated.dcm"), cut)
    return folder
