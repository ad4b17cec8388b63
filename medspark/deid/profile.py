"""What is done to each attribute: PS3.15 Annex E as one function, `decide`.

The Basic Profile (113100) with three options: Modified Dates (113107), Patient Characteristics (113108), Clean Descriptors (113105). What the
table does not name is judged by its value representation, safe by default: a text is kept only when its attribute is on a list of technical ones,
an unknown or private attribute never. The *dictionary's* VR decides, not the file's: a file cannot talk a comment into a code.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Literal

from pydicom.datadict import dictionary_VR, tag_for_keyword

from medspark.deid.table import BASIC, NEWER

Action = Literal[
    "keep",  # as it is
    "code",  # a coded string: kept where it looks like one
    "technical",  # a maker's, model's, kernel's name: kept unless it shows a date, number or title
    "clean",  # a descriptor: its harmless words
    "coding",  # CodeValue and its companions; becomes "public_code" or "technical" under a public coding scheme, else "clean" or "remove"
    "public_code",
    "private_text",  # profile none only
    "uid",  # replaced by its pseudonym, unless it is one of the standard's own
    "class_uid",  # kept where it lies under the standard's root, else replaced
    "shift",  # moved by the subject's days
    "time",  # a time of day, kept where it is one
    "age",  # capped
    "charset",  # the JSON is UTF-8, whatever the file was
    "recurse",  # a sequence: item by item
    "empty",  # zero length
    "remove",
]

STANDARD_ROOT = "1.2.840.10008."  # UIDs of the standard itself (PS3.6 Annex A) say nothing about anybody

PATIENT_CHARACTERISTICS = (
    "PatientSex PatientAge PatientSize PatientWeight PatientSexNeutered EthnicGroup EthnicGroupCodeSequence SmokingStatus PregnancyStatus"
)
"""Option 113108, its K rows. Its C rows (Allergies, MedicalAlerts, SpecialNeeds, PatientState, PreMedication) stay removed: letters about a person."""

CLEANED_DESCRIPTORS = """
    StudyDescription SeriesDescription ProtocolName AcquisitionProtocolDescription AcquisitionDeviceProcessingDescription DerivationDescription
    PerformedProcedureStepDescription RequestedProcedureDescription ScheduledProcedureStepDescription RequestedSeriesDescription
    ContrastBolusAgent RequestedContrastAgent DeviceDescription FilterLookupTableDescription ChannelDerivationDescription
    RespiratoryMotionCompensationTechniqueDescription WaveformFilterDescription MultienergyAcquisitionDescription DecompositionDescription
    ClinicalTrialSeriesDescription SpecimenShortDescription PyramidLabel PyramidDescription BeamDescription ROIName StructureSetLabel
    RTPlanLabel AnnotationGroupLabel ModifiedImageDescription TreatmentSite XRayDetectorLabel AcquisitionFieldOfViewLabel
"""
"""Option 113105, its C rows that `medspark.deid.text.clean_text` can serve; comments, histories and narratives stay removed."""

CLEANED_BEYOND = """
    SegmentLabel SegmentDescription ContentDescription ReconstructionDescription AlgorithmDescription OpticalPathDescription ViewName StageName
    FrameLabel FrameOfInterestDescription PartialViewDescription MaskOperationExplanation InterventionDescription WindowCenterWidthExplanation
    LUTExplanation PixelSpacingCalibrationDescription PaddleDescription FieldOfViewDescription ImageFilterDescription
    PerformedProcedureTypeDescription RequestedProcedureDescriptionTrial ContainerComponentDescription LensDescription RTImageLabel
    PatientSpeciesDescription PatientBreedDescription InterventionDrugName OphthalmicImageTypeDescription HistogramExplanation
    AcquisitionProtocolName ASLTechniqueDescription ASLCrusherDescription BodyPartExamined
"""
"""Free descriptors that the table does not name; BodyPartExamined is a code string by its VR, but typed in by hand on many consoles."""

TECHNICAL = """
    Manufacturer ManufacturerModelName ManufacturerRelatedModelGroup SoftwareVersions ConvolutionKernel SequenceName PulseSequenceName FilterType
    CollimatorGridName ImagedNucleus ReceiveCoilName TransmitCoilName MultiCoilElementName MultiCoilConfiguration ReceiveCoilManufacturerName
    TransmitCoilManufacturerName PlateType PhosphorType OutputPower ImageFilter TypeOfFilters AcquisitionMode AcquisitionDeviceProcessingCode
    DetectorManufacturerName DetectorManufacturerModelName DetectorMode ExposureControlModeDescription GridAbsorbingMaterial GridSpacingMaterial
    Radionuclide Radiopharmaceutical RadiopharmaceuticalRoute ContrastBolusRoute TriggerSourceOrType CardiacFramingType PVCRejection DoseModeName
    TransducerData ProcessingFunction PostprocessingFunction ImageGeometryType PositionReferenceIndicator TargetPositionReferenceIndicator
    RescaleType ModalityLUTType AttenuationCorrectionMethod ReconstructionMethod DetectorLinesOfResponseUsed ScatterCorrectionMethod
    SegmentAlgorithmName AlgorithmName AlgorithmVersion AlgorithmSource AlgorithmParameters ApplicationName ApplicationVersion ApplicationManufacturer
    SecondaryCaptureDeviceManufacturer SecondaryCaptureDeviceManufacturerModelName SecondaryCaptureDeviceSoftwareVersions
    DigitalImageFormatAcquired VideoImageFormatAcquired ApplicableSafetyStandardDescription EnergyWindowName LUTLabel OpticalPathIdentifier
    ReferencedOpticalPathIdentifier StackID DisplayWindowLabelVector FrameLabelVector CodingSchemeVersion CodingSchemeRegistry MappingResourceName
    ASLBolusCutoffTechnique EffectiveDoseCalculationMethodDescription ManufacturerModelVersion RespiratorySignalSourceID
    PatientReliabilityIndicator SpectralSensitivity DimensionDescriptionLabel EXIFVersion TimeSource
"""
"""Texts that only machines write."""

CODING = "CodeValue CodingSchemeDesignator CodeMeaning LongCodeValue"

PUBLIC_SCHEMES = frozenset(
    "SCT SRT SNM3 99SDM DCM LN UCUM FMA RADLEX NCIt UMLS I10 I10P I9C I9 ICDO3 ICD10 ICD11 MDC NYUMCCG NEU BI ACR MSH CPT4 CPT5 C4 RXNORM RADELEMENT "
    "ITIS_TSN PUBCHEM_CID ISO3166_1 ISO639_1 ISO639_2 RFC3066 RFC5646 IBSI 99PMP 99OFFIS_DCMTK 99QIICR 99DCMQI HPC IHERO NIFSTD UBERON".split()
)
"""CodingSchemeDesignators whose codes and meanings are published (PS3.16 Table 8-1; a few makers' own that are published too). A designator that is not
among them may be a hospital's own, and its meanings may be anything."""

_MARKERS = frozenset({0x00120062, 0x00120063, 0x00120064, 0x00280303})  # written anew by `header_json`
_NOT_HEADER = frozenset({0x00880200, 0x7FE00008, 0x7FE00009, 0x7FE00010, 0xFFFCFFFC})
"""Icon, pixel data, padding."""
_TEXT_VRS = frozenset({"LO", "SH", "ST", "LT", "UT", "UC"})
_NUMBER_VRS = frozenset({"DS", "IS", "US", "SS", "UL", "SL", "UV", "SV", "FL", "FD", "AT"})
_BULK_VRS = frozenset({"OB", "OW", "OF", "OD", "OL", "OV", "UN"})
_NEVER_SHIFTED = frozenset({0x00100030})  # PatientBirthDate: not among the dates that option 113107 allows
_NEVER_TOLD_TIMES = frozenset({0x00100032})  # PatientBirthTime


def _tags(keywords: str) -> frozenset[int]:
    found = {keyword: tag_for_keyword(keyword) for keyword in keywords.split()}
    unknown = [keyword for keyword, tag in found.items() if tag is None]
    if unknown:
        raise AssertionError(f"no DICOM keywords: {unknown}")
    return frozenset(int(tag) for tag in found.values() if tag is not None)


TABLE: dict[int, str] = {tag: action for action, keywords in BASIC.items() for tag in _tags(keywords)} | NEWER
"""Tag -> action of Table E.1-1 (without the group rules)."""

_CHARACTERISTICS = _tags(PATIENT_CHARACTERISTICS)
_CLEANED = _tags(CLEANED_DESCRIPTORS)
_CLEANED_BEYOND = _tags(CLEANED_BEYOND)
_TECHNICAL = _tags(TECHNICAL)
_CODING = _tags(CODING)
_KNOWN_SEQUENCES_KEPT = _tags("ReferencedImageSequence SourceImageSequence AcquisitionContextSequence")


def known_vr(tag: int) -> str | None:
    """The dictionary's VR, None for a private or unknown tag; ``US or SS`` and the like as they stand there."""
    try:
        return dictionary_VR(tag)
    except KeyError:
        return None


def is_bulk_group(group: int) -> bool:
    """Curves (50xx) and overlays (60xx): pictures of their own, often with burned-in text."""
    return 0x5000 <= group <= 0x50FF or 0x6000 <= group <= 0x60FF


@lru_cache(maxsize=16384)
def decide(tag: int, profile: str) -> Action:
    """What ``profile`` does to the attribute ``tag``, from the tag alone. Private tags: "remove" (`header_json` treats them for ``none``)."""
    group = tag >> 16
    vr = known_vr(tag)
    if (
        tag & 0xFFFF == 0
        or group & 1
        or vr is None
        or is_bulk_group(group)
        or tag in _NOT_HEADER
        or vr in _BULK_VRS
        or " or OW" in vr
        or vr == "OB or OW"
    ):
        return "remove"
    if tag == 0x00080005:
        return "charset"
    if profile == "none":
        return "recurse" if vr == "SQ" else "keep"
    if tag in _MARKERS:
        return "remove"
    return _by_table(tag, vr) if tag in TABLE else _beyond_table(tag, vr)


def _by_table(tag: int, vr: str) -> Action:
    basic = TABLE[tag]
    if vr in ("DA", "DT"):
        return "empty" if tag in _NEVER_SHIFTED else "shift"  # option 113107
    if vr == "TM":
        return "remove" if tag in _NEVER_TOLD_TIMES else "time"  # option 113107
    if tag in _CHARACTERISTICS:
        return _beyond_table(tag, vr) if vr not in _TEXT_VRS else "clean"  # option 113108
    if tag in _CLEANED:
        return "clean"  # option 113105
    if vr == "UI":
        return "uid"
    if tag in _KNOWN_SEQUENCES_KEPT:
        return "recurse"  # U*: the references stay, their UIDs are replaced; a context item is judged attribute by attribute
    # A header in a table is no object of its own: nothing needs a dummy value to stand in for Type 1, so D is carried out as Z.
    return "empty" if basic in ("Z", "Z/D", "D") and vr != "SQ" else "remove"


def _beyond_table(tag: int, vr: str) -> Action:
    if tag in _CLEANED_BEYOND:
        return "clean"
    if vr in _TEXT_VRS:
        if tag in _TECHNICAL:
            return "technical"
        return "coding" if tag in _CODING else "remove"
    if vr in _NUMBER_VRS or vr == "US or SS":
        return "keep"
    simple: dict[str, Action] = {"CS": "code", "SQ": "recurse", "UI": "class_uid", "DA": "shift", "DT": "shift", "TM": "time", "AS": "age"}
    return simple.get(vr, "remove")  # PN, AE, UR and whatever a later edition adds
