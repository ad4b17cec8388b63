"""Settings: what is unknown or ill-typed is refused in one sentence; the fingerprint knows what changes rows and what does not."""

from __future__ import annotations

import dataclasses
import tomllib
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from medspark import config
from medspark.config import Config, load
from medspark.errors import BadRequest

CONF = Path(__file__).resolve().parents[1] / "conf"
SECTIONS = [item.name for item in dataclasses.fields(Config) if item.name not in ("verdicts", "spark")]

# contract.md §1: keys that others rely on, with the defaults that it names
CONTRACT: dict[str, object] = {
    "tiling.tile_px": 256,
    "tiling.level": None,
    "tiling.mpp_um": None,
    "tiling.overlap_px": 0,
    "tiling.edge": "pad",
    "tiling.min_tissue": 0.05,
    "tiling.pixel_source": "auto",
    "tiling.codec": "jpeg",
    "tiling.jpeg_quality": 80,
    "tiling.measure": False,
    "tiling.assume_mpp_um": None,
    "series.store": "decoded",
    "series.quiet_s": 600.0,
    "labels.overlap": "keep",
    "labels.exclude_groups": ("Exclusion",),
    "labels.resample": "none",
    "labels.rtstruct_nested": "fill",
    "deid.profile": "basic",
    "deid.key_file": "",
    "deid.uris": "keep",
    "deid.burned_in": "quarantine",
    "quarantine.max_fraction": 0.5,
    "guard.max_pixels": 1 << 28,
    "guard.decode_s": 120.0,
    "ingest.batch_sources": 20_000,
    "ingest.batch_bytes": 64 << 30,
}


@pytest.mark.parametrize("name", sorted(CONTRACT))
def test_keys_of_the_contract_are_there_with_their_defaults(name: str) -> None:
    section, key = name.split(".")
    value = getattr(getattr(Config(), section), key)
    assert value == CONTRACT[name]
    assert type(value) is type(CONTRACT[name])


def test_local_toml_says_the_defaults() -> None:
    assert load(CONF / "local.toml") == Config()


def test_local_toml_names_every_key() -> None:
    text = (CONF / "local.toml").read_text()
    for section in SECTIONS:
        body = text.split(f"\n[{section}]", 1)[1].split("\n[", 1)[0]
        for item in dataclasses.fields(getattr(Config(), section)):
            assert f"\n{item.name} = " in body or f"\n# {item.name} = " in body, f"{section}.{item.name}"


@pytest.mark.parametrize("path", sorted(CONF.rglob("*.toml")), ids=lambda path: path.name)
def test_every_settings_file_loads(path: Path) -> None:
    load(path)


def test_overrides_win_over_the_file(tmp_path: Path) -> None:
    path = tmp_path / "a.toml"
    path.write_text('[tiling]\ntile_px = 512\nedge = "drop"\n')
    found = load(path, ["tiling.tile_px=native", "spark.sql.shuffle.partitions=4", "labels.exclude_groups=['a', 'b']", "guard.decode_s=5"])
    assert (found.tiling.tile_px, found.tiling.edge) == ("native", "drop")
    assert found.spark == {"spark.sql.shuffle.partitions": "4"}
    assert found.labels.exclude_groups == ("a", "b")
    assert found.guard.decode_s == 5.0 and isinstance(found.guard.decode_s, float)


def test_spark_options_keep_their_text(tmp_path: Path) -> None:
    path = tmp_path / "a.toml"
    path.write_text('[spark]\n"io.encryption.enabled" = "true"\n[spark.sql.shuffle]\npartitions = 7\n')
    assert load(path, ["spark.task.maxFailures=08"]).spark == {
        "spark.io.encryption.enabled": "true",
        "spark.sql.shuffle.partitions": "7",
        "spark.task.maxFailures": "08",
    }


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("tilling.tile_px=256", "did you mean 'tiling'"),
        ("tiling.tile=256", "did you mean 'tile_px'"),
        ("tiling.tile_px", "expected section.key=value"),
        ("tile_px=256", "expected section.key=value"),
        ("tiling.tile_px=big", "'native'"),
        ("tiling.tile_px=8", "16 to 8192"),
        ("tiling.tile_px=true", "expected int or str"),
        ("tiling.edge=wrap", "pad, drop, clip"),
        ("tiling.overlap_px=256", "0 to tile_px - 1"),
        ("tiling.min_tissue=1.5", "fraction"),
        ("tiling.jpeg_quality=0", "1 to 100"),
        ("tiling.level=-1", "0 or more"),
        ("tiling.mpp_um=0", "micrometres"),
        ("tiling.measure=1", "expected bool"),
        ("quarantine.max_fraction=2", "fraction"),
        ("ingest.batch_sources=0", "1 or more"),
        ("deid.profile=strict", "basic, none"),
        ("verdicts.LOSSY=fatal", "note, warn, block"),
        ("spark.driver.memory=8g", "--driver-memory"),
    ],
)
def test_bad_settings_are_refused_with_the_way_out(override: str, said: str) -> None:
    with pytest.raises(BadRequest) as refusal:
        load(None, [override])
    assert said in str(refusal.value)
    assert "\n" not in str(refusal.value)


def test_level_and_mpp_exclude_each_other() -> None:
    with pytest.raises(BadRequest, match="one of the two"):
        load(None, ["tiling.level=0", "tiling.mpp_um=0.5"])


def test_bad_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(BadRequest, match="no such file"):
        load(tmp_path / "none.toml")
    broken = tmp_path / "broken.toml"
    broken.write_text("[tiling\n")
    with pytest.raises(BadRequest, match="not valid TOML"):
        load(broken)
    bare = tmp_path / "bare.toml"
    bare.write_text("tile_px = 256\n")
    with pytest.raises(BadRequest, match="outside a section"):
        load(bare)


def test_when_a_series_is_taken_changes_no_row() -> None:
    assert load(None, ["series.quiet_s=1"]).fingerprint("series") == Config().fingerprint("series")
    assert load(None, ["series.store=as_received"]).fingerprint("series") != Config().fingerprint("series")


@pytest.mark.parametrize(
    "setting", ["series.quiet_s=-1", "watch.settle_s=-1", "watch.settle_s=inf", "watch.poll_s=0", "dicomweb.attempts=0", "dicomweb.page=0"]
)
def test_times_and_counts_are_bounded(setting: str) -> None:
    with pytest.raises(BadRequest, match=f"config {setting.split('.', 1)[0]}"):
        load(None, [setting])


def test_the_fingerprint_knows_what_it_covers() -> None:
    plain = Config()
    assert plain.fingerprint("tiling") == Config().fingerprint("tiling")
    assert load(None, ["tiling.tile_px=512"]).fingerprint("tiling") != plain.fingerprint("tiling")
    assert load(None, ["tiling.tile_px=512"]).fingerprint("series") == plain.fingerprint("series")
    assert load(None, ["guard.decode_s=1"]).fingerprint("tiling", "deid") == plain.fingerprint("tiling", "deid")
    assert plain.fingerprint("tiling", extra=("a",)) != plain.fingerprint("tiling", extra=("b",))


def test_where_the_key_lies_changes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    moved = load(None, [f"deid.key_file={tmp_path / 'key'}"])
    assert moved.fingerprint("deid") == Config().fingerprint("deid")
    assert moved.deid.key_path() == tmp_path / "key"
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    assert Config().deid.key_path() == tmp_path / "medspark" / "deid.key"


@given(st.sampled_from(SECTIONS), st.data())
def test_what_is_written_is_read(section: str, data: st.DataObject) -> None:
    """Every default of a section, given as an override, is the default."""
    defaults = {key: value for key, value in dataclasses.asdict(getattr(Config(), section)).items() if value is not None}
    names = data.draw(st.sets(st.sampled_from(sorted(defaults))))
    overrides = []
    for name in sorted(names):
        value = defaults[name]
        text = list(value) if isinstance(value, tuple) else str(value).lower() if isinstance(value, bool) else value
        overrides.append(f"{section}.{name}={text}")
    assert load(None, overrides) == Config()


def test_set_takes_toml_or_bare_text() -> None:
    assert config._parse("0.5") == 0.5
    assert config._parse("pad") == "pad"
    assert config._parse("") == ""
    assert tomllib.loads("value = true")["value"] is config._parse("true")
