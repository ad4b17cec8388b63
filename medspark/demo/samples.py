"""What the demo ingests: real files of a folder such as ``../shared/data`` where there is one, else files that need no network.

The embedded ones are real where Python packages bring real ones (histology from scikit-image, CT and MR slices from pydicom) and a phantom
where none exists (a CT series with structures of known volume). Labels are derived from the pixels and are no diagnosis.
"""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from medspark.errors import BadRequest

ROOT = Path(__file__).resolve().parents[2]
EMBEDDED = "embedded"


@dataclass(frozen=True)
class Inputs:
    """What the three jobs get.

    about : str                      one sentence for the reader
    slides, series, labels : tuple   (data set, paths) per run of a job; labels find their images by name or by instance
    """

    about: str
    slides: tuple[tuple[str, tuple[Path, ...]], ...]
    series: tuple[tuple[str, tuple[Path, ...]], ...]
    labels: tuple[tuple[str, tuple[Path, ...]], ...]


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
    )


def _complete(data: Path) -> bool:
    return all(path.exists() for path in _needed(data))


def shared(data: Path, work: Path) -> Inputs:
    """Real slide, real CT with DICOM SEG, and two files that no job can read."""
    slide, outlines, head, bone, abdomen, liver = _needed(data)
    broken = _broken(work / "broken")
    return Inputs(
        f"a real slide (CMU-1) and two real CT series with DICOM SEG, from {data}",
        slides=(("cmu", (slide,)), ("broken", (broken / "not-a-slide.svs",))),
        series=(("head-ct", (head,)), ("abdomen-ct", (abdomen,)), ("broken", (broken / "cut-off.dcm",))),
        labels=(("cmu", (outlines,)), ("head-ct", (bone,)), ("abdomen-ct", (liver,))),
    )


def embedded(work: Path) -> Inputs:
    """Files written or copied under ``work``; what is there already stays, so that a second run finds nothing new."""
    from medspark.demo import phantom_ct, phantom_slide

    slide, outlines = phantom_slide.write(work / "slides")
    folder, seg = phantom_ct.write(work / "ct")
    small = _pydicom_files(work / "pydicom", ("CT_small.dcm", "MR_small.dcm"))
    broken = _broken(work / "broken")
    return Inputs(
        "embedded files: real histology (scikit-image), real CT and MR slices (pydicom), a CT phantom; no network",
        slides=(("histology", (slide,)), ("broken", (broken / "not-a-slide.svs",))),
        series=(("ct-phantom", (folder,)), ("pydicom", (small,)), ("broken", (broken / "cut-off.dcm",))),
        labels=(("histology", (outlines,)), ("ct-phantom", (seg,))),
    )


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
