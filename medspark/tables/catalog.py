"""All tables of the lake, as data: the narrow waist. Read this first.

Everything that crosses from one part of medspark to another is a row of one of these tables. Spark's DDL, Delta's and Arrow's schemas, the
comments that SQL users see and ``docs/tables.md`` are rendered from here. ``contract.md`` rules: add nullable columns freely, never rename.
"""

from __future__ import annotations

from medspark.tables.schema import Column, Table

SCHEMA_VERSION = "1.0"
"""Property ``medspark.schema`` of every table; a newer major version is refused."""


WRITTEN_BY_AT = 8
"""Place of ``run_id`` and ``batch_id``: Delta gathers statistics on the first 32 leaf columns only, and roll-back finds files by batch_id."""


def c(name: str, dtype: str, doc: str, unit: str = "") -> Column:
    """A column; a type that ends in ``?`` is nullable, as in contract.md."""
    return Column(name, dtype.rstrip("?"), doc, null=dtype.endswith("?"), unit=unit)


def table(name: str, doc: str, key: str, columns: list[Column], cluster_by: str = "") -> Table:
    written_by = [
        c("run_id", "string", "run that wrote the row"),
        c("batch_id", "string", "batch (one commit per table) that wrote the row"),
    ]
    blobs = [column for column in columns if column.dtype == "binary" or column.name == "header_json"]
    narrow = [column for column in columns if column not in blobs]
    narrow[WRITTEN_BY_AT:WRITTEN_BY_AT] = written_by
    return Table(name, doc, tuple(key.split()), tuple(narrow + blobs), tuple(cluster_by.split()))


_LABEL_CODE = [
    c("label", "string", "class of the finding or structure"),
    c("code", "string?", "concept code of the label"),
    c("code_scheme", "string?", "coding scheme of the code (SCT; SRT is mapped to SCT)"),
]

SOURCES = table(
    "sources",
    "The ledger: one row per input file, job and settings. Its commit closes a batch.",
    "source_id job settings",
    [
        c("source_id", "string", "id of (dataset, uri, sha256): a changed file is a new source"),
        c("dataset", "string", "data set the file belongs to"),
        c("uri", "string", "address of the original; archive.zip!member for a member of an archive"),
        c("kind", "string", "slide, dicom, nifti, photo, annotation, archive or other"),
        c("size_bytes", "long", "size of the file", "bytes"),
        c("modified_at", "timestamp", "the file’s modification time when it was read; 1970-01-01 where it has none (DICOMweb)"),
        c("sha256", "string", "SHA-256 of the file’s bytes, hex"),
        c("job", "string", "job that read the source"),
        c("settings", "string", "fingerprint of the settings that change rows"),
        c("status", "string", "ok, partial, rejected, waiting, skipped or duplicate"),
        c("n_images", "int", "images stored from this source"),
        c("n_rejected", "int", "images of this source that were rejected"),
        c("ingested_at", "timestamp", "when the batch closed"),
    ],
    "dataset source_id",
)

SUBJECTS = table(
    "subjects",
    "One row per subject (patient, animal, specimen donor).",
    "subject_key",
    [
        c("subject_key", "string", "keyed hash of (domain, PatientID)"),
        c("dataset", "string", "data set that first brought the subject"),
        c("sex", "string?", "PatientSex"),
        c("age_years", "double?", "age at the first study; above 89 is 90", "years"),
        c("follow_up_days", "double?", "time under observation, for survival", "days"),
        c("event", "boolean?", "whether the event of interest was observed"),
        c("attributes", "map<string,string>", "further attributes given with the data set"),
    ],
    "subject_key",
)

SLIDES = table(
    "slides",
    "One row per whole-slide image.",
    "slide_id",
    [
        c("slide_id", "string", "id of (dataset, SeriesInstanceUID or file)"),
        c("source_id", "string", "the slide’s (first) file in sources"),
        c("dataset", "string", "data set"),
        c("subject_key", "string", "whose tissue it is"),
        c("specimen_key", "string?", "keyed hash of the specimen or container identifier"),
        c("vendor", "string", "OpenSlide’s vendor name, dicom, or generic-tiff"),
        c("scanner_model", "string?", "model of the scanner"),
        c("stain", "string?", "stain where the file says it"),
        c("width_l0_px", "int", "width at level 0", "px"),
        c("height_l0_px", "int", "height at level 0", "px"),
        c("bounds_l0", "struct<x:int,y:int,width:int,height:int>?", "scanned area at level 0", "px"),
        c("mpp_x_um", "double?", "pixel width at level 0", "µm"),
        c("mpp_y_um", "double?", "pixel height at level 0", "µm"),
        c("objective_power", "double?", "magnification of the objective, as the file says"),
        c("level_count", "int", "pyramid levels"),
        c("level_sizes_px", "array<struct<width:int,height:int>>", "size of each level", "px"),
        c("level_downsamples", "array<double>", "level-0 pixels per pixel of each level"),
        c("tile_width_px", "int?", "width of the file’s own tiles at level 0", "px"),
        c("tile_height_px", "int?", "height of the file’s own tiles at level 0", "px"),
        c("compression", "string?", "compression of the file’s own tiles"),
        c("icc_profile", "binary?", "ICC profile of the scanner"),
        c("tissue_fraction", "double", "tissue area / slide area"),
        c("tissue_mask", "binary?", "tissue on the thumbnail’s grid, bits-zstd"),
        c("tissue_rows", "int?", "rows of tissue_mask and thumbnail", "px"),
        c("tissue_cols", "int?", "columns of tissue_mask and thumbnail", "px"),
        c("thumbnail", "binary", "JPEG made from the levels, never an associated image"),
        c("properties", "map<string,string>", "allow-listed vendor properties: no names, dates, barcodes"),
        c("file_token", "string?", "keyed hash of the file’s name without its extension; labels are matched by it"),
        c("folder_token", "string?", "keyed hash of the folder’s name; labels are matched by it"),
        c("series_instance_id", "string?", "SeriesInstanceUID of a DICOM slide, pseudonymous when de-identified"),
        c("level_instance_ids", "array<string>?", "SOPInstanceUID of each level of a DICOM slide, pseudonymous when de-identified"),
        c("verdict", "array<string>", "what is odd about the slide"),
        c("usable", "boolean", "false when a verdict blocks"),
    ],
    "slide_id",
)

GRIDS = table(
    "grids",
    "One row per way a slide was tiled.",
    "grid_id",
    [
        c("grid_id", "string", "id of (slide, fingerprint of the settings that change rows)"),
        c("slide_id", "string", "slide"),
        c("tile_px", "int", "tile width and height", "px"),
        c("level", "int?", "pyramid level of the grid, null for a grid by µm", ""),
        c("mpp_um", "double?", "pixel size of the grid", "µm"),
        c("overlap_px", "int", "pixels that neighbouring tiles share", "px"),
        c("edge", "string", "pad, drop or clip"),
        c("n_rows", "int", "tile rows"),
        c("n_cols", "int", "tile columns"),
        c("n_tiles", "int", "rows in tiles"),
        c("n_stored", "int", "tiles whose pixels are stored"),
        c("tile_height_px", "int?", "tile height where it differs from tile_px (native tiles that are not square)", "px"),
        c("downsample", "double?", "level-0 pixels per pixel of the grid"),
    ],
    "slide_id",
)

TILES = table(
    "tiles",
    "One row per tile, also where its pixels are not stored.",
    "image_id",
    [
        c("image_id", "string", "id of (slide, grid, row, column); begins with 16 digits of slide_id"),
        c("slide_id", "string", "slide"),
        c("grid_id", "string", "grid"),
        c("dataset", "string", "data set"),
        c("subject_key", "string", "whose tissue it is"),
        c("level", "int", "pyramid level the pixels came from"),
        c("tile_row", "int", "row in the grid, from 0"),
        c("tile_col", "int", "column in the grid, from 0"),
        c("x_l0", "double", "left edge at level 0", "px"),
        c("y_l0", "double", "upper edge at level 0", "px"),
        c("width_l0", "double", "whole tile’s width at level 0, padding included", "px"),
        c("height_l0", "double", "whole tile’s height at level 0, padding included", "px"),
        c("width_px", "int", "width of the stored array", "px"),
        c("height_px", "int", "height of the stored array", "px"),
        c("valid_width_px", "int", "columns that lie on the slide", "px"),
        c("valid_height_px", "int", "rows that lie on the slide", "px"),
        c("mpp_um", "double?", "pixel size", "µm"),
        c("focal_plane", "int", "focal plane, from 0"),
        c("optical_path", "string", "optical path identifier"),
        c("tissue_fraction", "double", "tissue area / area on the slide"),
        c("mean_rgb", "array<float>?", "mean colour over the valid area (0 to 255)"),
        c("sharpness", "double?", "variance of the Laplacian of the luminance over the valid area"),
        c("pixel_source", "string", "passthrough, reencoded or none"),
    ],
    "slide_id image_id",
)

SERIES = table(
    "series",
    "One row per series, split where frame of reference, orientation or size differ.",
    "series_id",
    [
        c("series_id", "string", "id of (dataset, SeriesInstanceUID, frame of reference, orientation, size)"),
        c("dataset", "string", "data set"),
        c("subject_key", "string", "subject"),
        c("study_id", "string", "StudyInstanceUID, pseudonymous when de-identified"),
        c("modality", "string", "Modality"),
        c("series_instance_id", "string", "SeriesInstanceUID, pseudonymous when de-identified"),
        c("frame_of_reference_id", "string?", "FrameOfReferenceUID, pseudonymous when de-identified"),
        c("body_part", "string?", "BodyPartExamined"),
        c("description", "string?", "SeriesDescription, cleaned"),
        c("series_number", "int?", "SeriesNumber"),
        c("protocol", "string?", "ProtocolName, cleaned"),
        c("site", "string?", "keyed hash of the institution"),
        c("manufacturer", "string?", "Manufacturer"),
        c("model_name", "string?", "ManufacturerModelName"),
        c("kernel", "string?", "ConvolutionKernel"),
        c("contrast", "string?", "whether a contrast agent was given, cleaned"),
        c("kvp", "double?", "KVP", "kV"),
        c("tube_current_time_mas", "double?", "Exposure", "mAs"),
        c("ctdi_vol_mgy", "double?", "CTDIvol", "mGy"),
        c("field_strength_t", "double?", "MagneticFieldStrength", "T"),
        c("sequence_name", "string?", "SequenceName"),
        c("tr_ms", "double?", "RepetitionTime", "ms"),
        c("ti_ms", "double?", "InversionTime", "ms"),
        c("flip_angle_deg", "double?", "FlipAngle", "degrees"),
        c("suv_bw_factor", "double?", "factor from Bq/ml to SUV by body weight, computed before cleaning"),
        c("study_date", "date?", "StudyDate, shifted by a whole number of days per subject"),
        c("n_slices", "int", "rows in slices"),
        c("n_volumes", "int", "volumes (distinct t)"),
        c("rows", "int", "Rows", "px"),
        c("cols", "int", "Columns", "px"),
        c("pixel_spacing_mm", "array<double>?", "between rows, between columns", "mm"),
        c("slice_spacing_mm", "double?", "median gap along the normal, gaps of 0 left out", "mm"),
        c("slice_thickness_mm", "double?", "median SliceThickness", "mm"),
        c("orientation", "array<double>?", "row and column cosines, LPS"),
        c("step_mm", "array<double>?", "from origin to origin of neighbouring slices, LPS", "mm"),
        c("affine_lps_mm", "array<double>?", "4 x 4, row-major, (col, row, k, 1) to LPS mm; null unless gaps are even"),
        c("tilt_deg", "double?", "angle between the normal and the step", "degrees"),
        c("patient_position", "string?", "PatientPosition"),
        c("transfer_syntaxes", "array<string>", "transfer syntaxes met"),
        c("verdict", "array<string>", "what is odd about the series"),
        c("usable", "boolean", "false when a verdict blocks"),
    ],
    "dataset series_id",
)

SLICES = table(
    "slices",
    "One row per frame of a series.",
    "image_id",
    [
        c("image_id", "string", "id of (dataset, SOPInstanceUID, frame); begins with 16 digits of series_id"),
        c("series_id", "string", "series"),
        c("k", "int?", "place along the normal, from 0; null without a position"),
        c("t", "int", "volume, from 0"),
        c("source_id", "string", "file in sources"),
        c("dataset", "string", "data set"),
        c("subject_key", "string", "subject"),
        c("study_id", "string", "StudyInstanceUID, pseudonymous when de-identified"),
        c("modality", "string", "Modality"),
        c("sop_instance_id", "string?", "SOPInstanceUID, pseudonymous when de-identified"),
        c("frame_number", "int", "frame, from 1"),
        c("position_mm", "double?", "along the normal", "mm"),
        c("pixel_hash", "string", "hash of the decoded array: equal pixels, equal hash"),
        c("rows", "int", "Rows", "px"),
        c("cols", "int", "Columns", "px"),
        c("channels", "int", "1, or 3 for colour"),
        c("slice_thickness_mm", "double?", "SliceThickness", "mm"),
        c("value_min", "double", "smallest value after rescale, padding left out"),
        c("value_max", "double", "largest value after rescale, padding left out"),
        c("value_mean", "double", "mean value after rescale, padding left out"),
        c("value_std", "double", "standard deviation after rescale, padding left out"),
        c("is_hu", "boolean", "whether values are Hounsfield units"),
        c("value_unit", "string?", "RescaleType, or HU by the rule"),
        c("usable", "boolean", "false when a verdict blocks"),
        c("file_token", "string?", "keyed hash of the file’s name without its extension; labels are matched by it"),
        c("folder_token", "string?", "keyed hash of the folder’s name; labels are matched by it"),
        c("series_instance_id", "string?", "SeriesInstanceUID, pseudonymous when de-identified"),
        c("image_type", "array<string>", "ImageType"),
        c("image_position_mm", "array<double>?", "ImagePositionPatient, LPS: centre of the first pixel", "mm"),
        c("image_orientation", "array<double>?", "ImageOrientationPatient: row and column cosines, LPS"),
        c("time_ms", "double?", "trigger or acquisition time within the series", "ms"),
        c("echo_time_ms", "double?", "EchoTime", "ms"),
        c("b_value", "double?", "DiffusionBValue", "s/mm²"),
        c("cardiac_phase_pct", "double?", "NominalPercentageOfCardiacPhase", "%"),
        c("temporal_position", "double?", "TemporalPositionIdentifier or index"),
        c("instance_number", "int?", "InstanceNumber"),
        c("acquisition_number", "int?", "AcquisitionNumber"),
        c("energy_window", "int?", "nuclear medicine: number of the frame’s energy window, from 1"),
        c("detector", "int?", "nuclear medicine: number of the frame’s detector, from 1"),
        c("phase", "int?", "nuclear medicine: number of the dynamic phase, from 1"),
        c("pixel_spacing_mm", "array<double>?", "between rows, between columns", "mm"),
        c("pixel_spacing_source", "string?", "PixelSpacing, ImagerPixelSpacing, NominalScannedPixelSpacing, us_region or nifti"),
        c("photometric", "string", "PhotometricInterpretation"),
        c("transfer_syntax", "string?", "TransferSyntaxUID"),
        c("bits_stored", "int", "BitsStored", "bits"),
        c("high_bit", "int", "HighBit"),
        c("pixel_representation", "int", "0 unsigned, 1 signed"),
        c("rescale_slope", "double?", "RescaleSlope"),
        c("rescale_intercept", "double?", "RescaleIntercept"),
        c(
            "modality_lut",
            "binary?",
            "modality LUT where it replaces slope and intercept: first mapped value as int32, then uint16 entries, little-endian",
        ),
        c("window_center", "array<double>?", "WindowCenter"),
        c("window_width", "array<double>?", "WindowWidth"),
        c("voi_lut_function", "string?", "VOILUTFunction"),
        c("padding_value", "int?", "PixelPaddingValue, with the sign of the pixels"),
        c("padding_range_limit", "int?", "PixelPaddingRangeLimit, with the sign of the pixels"),
        c("laterality", "string?", "ImageLaterality or Laterality"),
        c("view_position", "string?", "ViewPosition"),
        c("verdict", "array<string>", "what is odd about the slice"),
        c("series_attributes", "string?", "this instance’s values for the table series (JSON), from which late instances re-plan it"),
        c("header_json", "string", "kept attributes, DICOM JSON model; no overlays, icons or bulk data"),
    ],
    "series_id k",
)

PHOTOS = table(
    "photos",
    "One row per photo or image of an array.",
    "image_id",
    [
        c("image_id", "string", "id of (source, index)"),
        c("source_id", "string", "file in sources"),
        c("dataset", "string", "data set"),
        c("subject_key", "string", "subject"),
        c("rows", "int", "height", "px"),
        c("cols", "int", "width", "px"),
        c("channels", "int", "1 or 3"),
        c("bits", "int", "bits per sample", "bits"),
        c("mean", "array<float>", "mean per channel"),
        c("source_part", "string?", "the publisher’s split"),
        c("pixel_hash", "string", "hash of the decoded array"),
        c("file_token", "string?", "keyed hash of the file’s name without its extension; labels are matched by it"),
        c("folder_token", "string?", "keyed hash of the folder’s name; labels are matched by it"),
    ],
    "image_id",
)

PIXELS = table(
    "pixels",
    "The payload: one row per stored image, in runs of one parent.",
    "image_id",
    [
        c("image_id", "string", "image in tiles, slices or photos"),
        c("dataset", "string", "data set"),
        c("parent_id", "string", "slide, series or source"),
        c("codec", "string", "jpeg, blosc2, png, jp2 or dicom:<UID>"),
        c("dtype", "string", "numpy dtype of the decoded array"),
        c("shape", "array<int>", "[rows, cols] or [rows, cols, channels]", "px"),
        c("params", "map<string,string>", "what the codec needs besides"),
        c("crc32c", "long", "CRC-32C of bytes"),
        c("n_bytes", "int", "length of bytes", "bytes"),
        c("bytes", "binary", "the encoded stored values (before rescale)"),
    ],
)

REGIONS = table(
    "regions",
    "Vector truth as it was drawn.",
    "region_id",
    [
        c("region_id", "string", "id of (source, index in the file)"),
        c("source_id", "string", "annotation in sources"),
        c("parent_id", "string?", "slide, series or photo where known at import"),
        c(
            "ref_image",
            "string",
            "what the file says it belongs to: sop:<id>#<frame>, plane: or image:<id>, name:, path: or folder:<token>",
        ),
        c("ref_dataset", "string?", "only images of this data set match; null: of any"),
        c("ref_series_id", "string?", "SeriesInstanceUID that the file refers to, pseudonymous when de-identified"),
        *_LABEL_CODE,
        c("code_meaning", "string?", "meaning of the code"),
        c("instance_key", "string?", "object, nodule or lesion id"),
        c("role", "string", "positive, negative, ignore or extent"),
        c("geometry", "string", "polygon, point, line, box or contour"),
        c("rings", "array<array<struct<x:double,y:double,z:double>>>", "level-0 px, LPS mm or px; first ring outer, the rest holes"),
        c("annotator", "string?", "who drew it, pseudonymous"),
        c("properties", "map<string,string>", "further attributes of the shape"),
    ],
    "source_id",
)

PLANES = table(
    "planes",
    "Raster truth as it was given.",
    "plane_id",
    [
        c("plane_id", "string", "id of (source, index in the file)"),
        c("source_id", "string", "annotation in sources"),
        c("parent_id", "string?", "slide, series or photo where known at import"),
        c(
            "ref_image",
            "string",
            "what the file says it belongs to: sop:<id>#<frame>, plane: or image:<id>, name:, path: or folder:<token>",
        ),
        c("ref_dataset", "string?", "only images of this data set match; null: of any"),
        c("ref_series_id", "string?", "SeriesInstanceUID that the file refers to, pseudonymous when de-identified"),
        *_LABEL_CODE,
        c("code_meaning", "string?", "meaning of the code"),
        c("instance_key", "string?", "object, nodule or lesion id"),
        c("role", "string", "positive, negative, ignore or extent"),
        c("annotator", "string?", "who drew it, pseudonymous"),
        c("affine", "array<double>?", "4 x 4, row-major, (col, row, 0, 1) of this plane to LPS mm or level-0 px"),
        c("rows", "int", "rows of the mask", "px"),
        c("cols", "int", "columns of the mask", "px"),
        c("row0", "int?", "first row of the mask within ref_rows (large masks are stored in bands)", "px"),
        c("col0", "int?", "first column of the mask within ref_cols (tiled segmentations); null is 0", "px"),
        c("ref_rows", "int?", "rows of the whole image that the mask was drawn on", "px"),
        c("ref_cols", "int?", "columns of the whole image that the mask was drawn on", "px"),
        c("threshold", "double?", "lowest value that counts as inside, for u8-zstd"),
        c("mask_codec", "string", "bits-zstd or u8-zstd"),
        c("mask", "binary", "the mask"),
    ],
    "source_id",
)

LABELS = table(
    "labels",
    "One row per image, label, instance, source and annotator, with its mask and measures.",
    "label_row_id",
    [
        c("label_row_id", "string", "id of (target_id, label, instance_key, source, annotator, round, source_id[, role])"),
        c("target", "string", "image, series, slide, study or subject"),
        c("target_id", "string", "what is labelled"),
        c("image_id", "string?", "image, for labels of images"),
        c("parent_id", "string?", "its slide, series or source"),
        c("dataset", "string", "data set of the image"),
        c("subject_key", "string", "subject"),
        *_LABEL_CODE,
        c("instance_key", "string?", "object, nodule or lesion id"),
        c("role", "string", "positive, negative, ignore or extent"),
        c("source", "string", "annotation, reader, consensus, model or synthetic"),
        c("annotator", "string?", "who drew it, pseudonymous"),
        c("round", "int", "round of annotation, from 0"),
        c("confidence", "double?", "0 to 1"),
        c("rows", "int?", "rows of the mask", "px"),
        c("cols", "int?", "columns of the mask", "px"),
        c("area_px", "long?", "pixels in the mask", "px"),
        c("area_mm2", "double?", "area; null where the spacing is the detector’s", "mm²"),
        c("fraction", "double?", "area / pixels on the slide for tiles, / rows x cols elsewhere"),
        c("bbox", "struct<row0:int,col0:int,row1:int,col1:int>?", "half-open box", "px"),
        c("centroid_row", "double?", "mean row of the mask’s pixel centres", "px"),
        c("centroid_col", "double?", "mean column of the mask’s pixel centres", "px"),
        c("n_components", "int?", "8-connected components"),
        c("boundary_px", "long?", "mask pixels with a 4-neighbour outside", "px"),
        c("value_mean", "double?", "mean under the mask, after rescale; colour: luminance"),
        c("value_std", "double?", "standard deviation under the mask"),
        c("value_min", "double?", "smallest value under the mask"),
        c("value_max", "double?", "largest value under the mask"),
        c("class_value", "string?", "value for a label without pixels"),
        c("threshold", "double?", "lowest fraction that counts as inside, for fractional masks"),
        c("source_id", "string?", "annotation in sources"),
        c("created_at", "timestamp", "when the row was made"),
        c("mask_codec", "string?", "bits-zstd or u8-zstd"),
        c("mask", "binary?", "rows x cols mask; null for a label without pixels"),
    ],
    "parent_id image_id",
)

SPLITS = table(
    "splits",
    "Which part of a split a subject (or image) belongs to.",
    "split_name unit_key",
    [
        c("split_name", "string", "name of the split"),
        c("unit", "string", "subject or image"),
        c("unit_key", "string", "subject_key or image_id"),
        c("part", "string", "train, val, test, ..."),
        c("seed", "long", "seed of the split"),
        c("stratum", "string?", "stratum the unit was drawn from"),
        c(
            "definition",
            "string?",
            "what the split was asked for beside unit and seed (JSON): parts with their shares, or the column they came from",
        ),
    ],
)

PREDICTIONS = table(
    "predictions",
    "What a model said about whole images, series, slides or subjects: one row per label.",
    "model_uri target_id label",
    [
        c("image_id", "string?", "image, for predictions of images"),
        c("target", "string", "image, series, slide, study or subject"),
        c("target_id", "string", "what was predicted"),
        c("model_uri", "string", "the model"),
        c("task", "string", "classification, ..."),
        c("label", "string", "label"),
        c("probability", "double", "probability of the label (0 to 1)"),
        c("rank", "int", "place among the labels of one target, from 0: the most probable"),
        c("threshold", "double?", "from which the label counts as present, fixed on validation"),
        c("suspicion", "double?", "how likely the image was tampered with (0 to 1)"),
        c("predicted_at", "timestamp", "when"),
    ],
    "model_uri target_id",
)

EVALUATIONS = table(
    "evaluations",
    "Measures of a model on one part of a feed, per image, series, slide or subject, and over all.",
    "evaluation_id",
    [
        c("evaluation_id", "string", "id of (model_uri, feed, feed_version, part, unit, unit_id, label, metric)"),
        c("model_uri", "string", "the model"),
        c("feed", "string", "name of the feed"),
        c("feed_version", "long", "its Delta version"),
        c("part", "string", "part of the split"),
        c("unit", "string", "image, series, slide, subject or all"),
        c("unit_id", "string?", "which one; null for all"),
        c("label", "string?", "label; null where the measure is over all labels"),
        c("metric", "string", "name of the measure"),
        c("value", "double?", "its value; null where it is not defined"),
        c("low", "double?", "lower end of the 95 % interval over subjects"),
        c("high", "double?", "upper end of the 95 % interval over subjects"),
        c("n", "int", "how many units (subjects for intervals) it is over"),
        c("within_subject", "boolean", "whether training and test share subjects"),
        c("evaluated_at", "timestamp", "when"),
    ],
    "model_uri feed",
)

REJECTED = table(
    "rejected",
    "What did not become rows, and why.",
    "source_id stage code message",
    [
        c("source_id", "string", "file in sources"),
        c("uri", "string", "address of the original"),
        c("dataset", "string", "data set"),
        c("stage", "string", "scan, plan, explode or link"),
        c("code", "string", "stable code (see docs/tables.md)"),
        c("message", "string", "one sentence; never a header value"),
        c("rejected_at", "timestamp", "when"),
    ],
)

CLAIMS = table(
    "claims",
    "Open work: which live batch is ingesting which source under which settings.",
    "source_id settings",
    [
        c("source_id", "string", "claimed source, or lock:<parent> for a parent that only one batch may touch"),
        c("settings", "string", "job and fingerprint of its settings"),
        c("owner", "string", "host, boot, process namespace, process and its start time"),
        c("state", "string", "open or closed (closed: in the ledger, finishing)"),
        c("lease_until", "timestamp", "a batch whose lease has passed may be taken over"),
    ],
)

KPI = table(
    "kpi",
    "What jobs measured of themselves.",
    "run_id job metric",
    [
        c("job", "string", "job"),
        c("metric", "string", "what was measured"),
        c("value", "double", "value in unit"),
        c("unit", "string", "unit of value"),
        c("recorded_at", "timestamp", "when"),
        c("context", "map<string,string>", "what it was measured on"),
    ],
)

ALL = (
    SOURCES,
    SUBJECTS,
    SLIDES,
    GRIDS,
    TILES,
    SERIES,
    SLICES,
    PHOTOS,
    PIXELS,
    REGIONS,
    PLANES,
    LABELS,
    SPLITS,
    PREDICTIONS,
    EVALUATIONS,
    REJECTED,
    CLAIMS,
    KPI,
)
TABLES: dict[str, Table] = {item.name: item for item in ALL}
