"""The catalogue against the contract (contract.md §3, transcribed here as data), and its renderings against each other."""

from __future__ import annotations

import json

import pyarrow as pa
import pytest

from medspark.tables.catalog import ALL, TABLES, WRITTEN_BY_AT
from medspark.tables.schema import Table, arrow_type, json_type
from medspark.tables.verdicts import SEVERITY, usable

INDEXED_LEAVES = 32
"""Delta gathers statistics on the first so many leaf columns (delta.dataSkippingNumIndexedCols)."""

# Column names and types as the contract gives them: string where none is given, ``?`` nullable; separated by semicolons.
CONTRACT = {
    "sources": """
        source_id; dataset; uri; kind; size_bytes long; modified_at timestamp; sha256; job; settings; status; n_images int;
        n_rejected int; ingested_at timestamp
    """,
    "subjects": """
        subject_key; dataset; sex?; age_years double?; follow_up_days double?; event boolean?; attributes map<string,string>
    """,
    "slides": """
        slide_id; source_id; dataset; subject_key; specimen_key?; vendor; scanner_model?; stain?; width_l0_px int;
        height_l0_px int; bounds_l0 struct<x,y,width,height: int>?; mpp_x_um double?; mpp_y_um double?; objective_power
        double?; level_count int; level_sizes_px array<struct<width:int,height:int>>; level_downsamples array<double>;
        tile_width_px int?; tile_height_px int?; compression?; icc_profile binary?; tissue_fraction double; tissue_mask
        binary?; thumbnail binary; properties map<string,string>; verdict array<string>; usable boolean
    """,
    "grids": """
        grid_id; slide_id; tile_px int; level int?; mpp_um double?; overlap_px int; edge; n_rows int; n_cols int; n_tiles int;
        n_stored int
    """,
    "tiles": """
        image_id; slide_id; grid_id; dataset; subject_key; level int; tile_row int; tile_col int; x_l0 double; y_l0 double;
        width_l0 double; height_l0 double; width_px int; height_px int; valid_width_px int; valid_height_px int; mpp_um
        double?; focal_plane int; optical_path; tissue_fraction double; mean_rgb array<float>?; sharpness double?;
        pixel_source
    """,
    "series": """
        series_id; dataset; subject_key; study_id; modality; series_instance_id; frame_of_reference_id?; body_part?;
        description?; series_number int?; protocol?; site?; manufacturer?; model_name?; kernel?; contrast?; kvp double?;
        tube_current_time_mas double?; ctdi_vol_mgy double?; field_strength_t double?; sequence_name?; tr_ms double?; ti_ms
        double?; flip_angle_deg double?; suv_bw_factor double?; study_date date?; n_slices int; n_volumes int; rows int; cols
        int; pixel_spacing_mm array<double>?; slice_spacing_mm double?; slice_thickness_mm double?; orientation
        array<double>?; step_mm array<double>?; affine_lps_mm array<double>?; tilt_deg double?; patient_position?;
        transfer_syntaxes array<string>; verdict array<string>; usable boolean
    """,
    "slices": """
        image_id; series_id; source_id; dataset; subject_key; study_id; modality; image_type array<string>; frame_number int;
        t int; k int?; position_mm double?; image_position_mm array<double>?; time_ms double?; echo_time_ms double?; b_value
        double?; cardiac_phase_pct double?; instance_number int?; acquisition_number int?; sop_instance_id?; rows int; cols
        int; channels int; pixel_spacing_mm array<double>?; pixel_spacing_source?; slice_thickness_mm double?; photometric;
        transfer_syntax?; bits_stored int; high_bit int; pixel_representation int; rescale_slope double?; rescale_intercept
        double?; value_unit?; is_hu boolean; modality_lut binary?; window_center array<double>?; window_width array<double>?;
        voi_lut_function?; padding_value int?; padding_range_limit int?; value_min double; value_max double; value_mean
        double; value_std double; laterality?; view_position?; pixel_hash; verdict array<string>; usable boolean; header_json
    """,
    "photos": """
        image_id; source_id; dataset; subject_key; rows int; cols int; channels int; bits int; mean array<float>;
        source_part?; pixel_hash
    """,
    "pixels": """
        image_id; dataset; parent_id; codec; dtype; shape array<int>; params map<string,string>; crc32c long; n_bytes int;
        bytes binary
    """,
    "regions": """
        region_id; source_id; parent_id?; ref_image; label; code?; code_scheme?; code_meaning?; instance_key?; role; geometry;
        rings array<array<struct<x:double,y:double,z:double?>>>; annotator?; properties map<string,string>
    """,
    "planes": """
        plane_id; source_id; parent_id?; ref_image; label; code?; code_scheme?; code_meaning?; instance_key?; role;
        annotator?; affine array<double>?; rows int; cols int; mask_codec; mask binary
    """,
    "labels": """
        label_row_id; target; target_id; image_id?; parent_id?; dataset; subject_key; label; code?; code_scheme?;
        instance_key?; role; source; annotator?; round int; confidence double?; mask_codec?; rows int?; cols int?; mask
        binary?; area_px long?; area_mm2 double?; fraction double?; bbox struct<row0:int,col0:int,row1:int,col1:int>?;
        centroid_row double?; centroid_col double?; n_components int?; boundary_px long?; value_mean double?; value_std
        double?; value_min double?; value_max double?; class_value?; threshold double?; source_id?; created_at timestamp
    """,
    "splits": """
        split_name; unit; unit_key; part; seed long; stratum?
    """,
    "rejected": """
        source_id; uri; dataset; stage; code; message; rejected_at timestamp
    """,
    "claims": """
        source_id; settings; owner; state; lease_until timestamp
    """,
    "kpi": """
        job; metric; value double; unit; recorded_at timestamp; context map<string,string>
    """,
    "predictions": """
        image_id?; target; target_id; model_uri; task; label; probability double; rank int; threshold double?; suspicion
        double?; predicted_at timestamp
    """,
    "evaluations": """
        model_uri; feed; feed_version long; part; unit; unit_id?; label?; metric; value double?; low double?; high double?; n
        int; within_subject boolean; evaluated_at timestamp
    """,
}
KEYS = {
    "sources": "source_id job settings",
    "subjects": "subject_key",
    "slides": "slide_id",
    "grids": "grid_id",
    "tiles": "image_id",
    "series": "series_id",
    "slices": "image_id",
    "photos": "image_id",
    "pixels": "image_id",
    "regions": "region_id",
    "planes": "plane_id",
    "labels": "label_row_id",
    "splits": "split_name unit_key",
}
LATER = {"predictions", "evaluations"}
"""Tables of jobs that are not there yet; once they are, their columns are checked like all others."""


def columns(table: str) -> dict[str, str]:
    """name -> type with its ``?``, in the catalogue's spelling."""
    found = {}
    for item in " ".join(CONTRACT[table].split()).split("; "):
        name, _, dtype = item.partition(" ")
        if not dtype:
            name, dtype = name.rstrip("?"), "string?" if name.endswith("?") else "string"
        found[name] = dtype.replace("x,y,width,height: int", "x:int,y:int,width:int,height:int").replace("z:double?", "z:double")
    return found


@pytest.mark.parametrize("name", sorted(CONTRACT))
def test_contract_columns_exist_with_their_types(name: str) -> None:
    if name in LATER and name not in TABLES:
        pytest.skip("its job is not there yet")
    table = TABLES[name]
    for column, dtype in columns(name).items():
        assert table[column].dtype + ("?" if table[column].null else "") == dtype, column


@pytest.mark.parametrize("name", sorted(set(CONTRACT) - LATER))
def test_what_the_contract_does_not_list_is_nullable(name: str) -> None:
    added = set(TABLES[name].names) - set(columns(name)) - {"run_id", "batch_id"}
    assert not [column for column in added if not TABLES[name][column].null]


@pytest.mark.parametrize("name", sorted(KEYS))
def test_keys_are_those_of_the_contract(name: str) -> None:
    assert TABLES[name].key == tuple(KEYS[name].split())


def leaves(kind: pa.DataType) -> int:
    """How many leaf columns a value of this type has in Parquet."""
    if pa.types.is_struct(kind):
        return sum(leaves(field.type) for field in kind)
    if pa.types.is_map(kind):
        return leaves(kind.key_type) + leaves(kind.item_type)
    if pa.types.is_list(kind):
        return leaves(kind.value_type)
    return 1


def first_leaf(table: Table, name: str) -> int:
    """Place of a column's first leaf among the table's leaf columns, from 0."""
    before = table.columns[: table.names.index(name)]
    return sum(leaves(arrow_type(column.dtype)) for column in before)


@pytest.mark.parametrize("table", ALL, ids=lambda table: table.name)
def test_what_prunes_has_statistics(table: Table) -> None:
    """Keys, clustering columns, and the batch that roll-back looks for."""
    wanted = {"run_id", "batch_id", *table.key, *table.cluster_by}
    assert {name for name in wanted if first_leaf(table, name) >= INDEXED_LEAVES} <= {"message"}  # of `rejected`: no look-up by it
    assert table.names.index("batch_id") <= WRITTEN_BY_AT + 1


@pytest.mark.parametrize("table", ALL, ids=lambda table: table.name)
def test_tables_are_sound(table: Table) -> None:
    assert len(set(table.names)) == len(table.names)
    assert TABLES[table.name] is table
    for name in (*table.key, "run_id", "batch_id"):
        assert not table[name].null, f"{name} identifies a row and may not be null"
    assert set(table.cluster_by) <= set(table.names)
    assert table.doc and all(column.doc for column in table.columns)
    wide = [place for place, column in enumerate(table.columns) if column.dtype == "binary"]
    assert all(place >= len(table.columns) - len(wide) - (("header_json" in table.names) or 0) for place in wide), (
        "payload columns come last"
    )


@pytest.mark.parametrize("table", ALL, ids=lambda table: table.name)
def test_renderings_agree(table: Table) -> None:
    """Arrow, Delta's JSON and the DDL name the same columns in the same order, with the same types and nullability."""
    schema, tree, ddl = table.arrow(), table.json(), table.ddl()
    assert schema.names == list(table.names) == [field["name"] for field in tree["fields"]]
    assert (
        [field.nullable for field in schema] == [field["nullable"] for field in tree["fields"]] == [column.null for column in table.columns]
    )
    json.dumps(tree)
    place = 0
    for column in table.columns:
        place = ddl.index(f"`{column.name}` ", place)
        said = ddl[place:].split(" COMMENT ", 1)[0]
        assert said.endswith(" NOT NULL") == (not column.null)
        assert said.removeprefix(f"`{column.name}` ").removesuffix(" NOT NULL") == column.dtype.replace("long", "bigint")
    assert ddl.count("NOT NULL") == sum(not column.null for column in table.columns)


def from_json(kind: object) -> pa.DataType:
    """The Arrow type of Spark's JSON type, read independently of the catalogue's own rendering."""
    plain = {
        "string": pa.string(),
        "integer": pa.int32(),
        "long": pa.int64(),
        "double": pa.float64(),
        "float": pa.float32(),
        "boolean": pa.bool_(),
        "binary": pa.binary(),
        "date": pa.date32(),
        "timestamp": pa.timestamp("us", tz="UTC"),
    }
    if isinstance(kind, str):
        return plain[kind]
    assert isinstance(kind, dict)
    if kind["type"] == "array":
        return pa.list_(pa.field("element", from_json(kind["elementType"])))
    if kind["type"] == "map":
        return pa.map_(from_json(kind["keyType"]), from_json(kind["valueType"]))
    return pa.struct([pa.field(field["name"], from_json(field["type"])) for field in kind["fields"]])


@pytest.mark.parametrize("dtype", sorted({column.dtype for table in ALL for column in table.columns}))
def test_types_agree(dtype: str) -> None:
    assert from_json(json_type(dtype)) == arrow_type(dtype)


def test_an_unknown_type_is_an_error() -> None:
    with pytest.raises(ValueError, match="unknown column type"):
        arrow_type("decimal")


def test_comments_cannot_end_a_string() -> None:
    for table in ALL:
        quotes = table.ddl().count("'")
        assert quotes == 2 * len(table.columns)


def test_usable_follows_the_severities() -> None:
    assert usable([])
    assert usable(["LOSSY", "GANTRY_TILT"])
    assert not usable(["LOSSY", "LOCALIZER"])
    assert usable(["LOCALIZER"], {"LOCALIZER": "note"})
    assert not usable(["LOSSY"], {"LOSSY": "block"})
    assert {code for code, severity in SEVERITY.items() if severity == "block"} == {
        *("LOCALIZER", "NO_POSITION", "NO_RESCALE", "BURNED_IN", "MOSAIC"),
    }
