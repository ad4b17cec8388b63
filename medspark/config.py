"""Settings: frozen dataclasses read from TOML, checked key by key.

One section per dataclass. An unknown section or key is a `BadRequest` that names the nearest known one; ``--set section.key=value``
overrides the file. `Config.fingerprint` covers the sections that change rows, so that the ledger knows "same input, same settings".
"""

from __future__ import annotations

import dataclasses
import difflib
import hashlib
import json
import os
import tomllib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints

from medspark.errors import BadRequest

Severity = Literal["note", "warn", "block"]


@dataclass(frozen=True)
class Tiling:
    """How slides are cut into tiles (contract.md §1)."""

    tile_px: int | str = 256  # or "native": the file's own tile size
    level: int | None = None  # grid by pyramid level (0 when neither this nor mpp_um is given) ...
    mpp_um: float | None = None  # ... or by micrometres per pixel, resampled from the best level
    overlap_px: int = 0
    edge: Literal["pad", "drop", "clip"] = "pad"
    min_tissue: float = 0.05
    pixel_source: Literal["auto", "reencode"] = "auto"
    codec: Literal["jpeg", "png", "jp2"] = "jpeg"
    jpeg_quality: int = 80
    measure: bool = False
    assume_mpp_um: float | None = None


@dataclass(frozen=True)
class Series:
    """How DICOM and NIfTI series are stored."""

    store: Literal["decoded", "as_received"] = "decoded"
    quiet_s: float = 600.0


@dataclass(frozen=True)
class Labels:
    overlap: Literal["keep", "first", "last"] = "keep"
    exclude_groups: tuple[str, ...] = ("Exclusion",)
    resample: Literal["none", "nearest"] = "none"
    rtstruct_nested: Literal["fill", "xor"] = "fill"


@dataclass(frozen=True)
class Deid:
    profile: Literal["basic", "none"] = "basic"
    key_file: str = ""  # empty: $XDG_CONFIG_HOME/medspark/deid.key
    uris: Literal["keep", "token"] = "keep"
    burned_in: Literal["quarantine", "keep"] = "quarantine"
    crosswalk: bool = False  # original UIDs, encrypted, in files beside the key

    def key_path(self) -> Path:
        if self.key_file:
            return Path(self.key_file).expanduser()
        base = os.environ.get("XDG_CONFIG_HOME") or os.path.join(os.path.expanduser("~"), ".config")
        return Path(base) / "medspark" / "deid.key"


@dataclass(frozen=True)
class Quarantine:
    max_fraction: float = 0.5


@dataclass(frozen=True)
class Guard:
    """Bounds against hostile or broken input, checked from headers before any allocation."""

    max_pixels: int = 1 << 28  # of one decoded frame, band or thumbnail: 268 Mpx
    max_file_bytes: int = 1 << 31  # of one DICOM object or annotation read into memory (a slide file is never read whole)
    decode_s: float = 120.0


@dataclass(frozen=True)
class Ingest:
    batch_sources: int = 20_000
    batch_bytes: int = 64 << 30
    lease_s: float = 60.0


@dataclass(frozen=True)
class Watch:
    """A folder that others write into (``explode_series --watch``)."""

    poll_s: float = 10.0  # between two looks
    settle_s: float = 30.0  # a file that changed within this time is still being written


@dataclass(frozen=True)
class Dicomweb:
    """How a DICOMweb server is asked."""

    attempts: int = 6  # for each answer
    pause_s: float = 0.5  # before the second; doubles each time, unless the server says when to come back
    timeout_s: float = 60.0  # of silence
    page: int = 1000  # results of a search in one answer


@dataclass(frozen=True)
class Train:
    """How a network is trained (docs/training.md). What names the run (feed, epochs, batch size, seed, ranks) are the jobs' own options."""

    width: int = 16  # channels of the first level; doubles with every level
    depth: int = 0  # levels; 0: by the image's size
    blocks: int = 2  # residual blocks of a classifier's level
    residual: bool = False  # segmenters: adds each level's input to its output
    norm: Literal["group", "batch", "none"] = "group"
    dropout: float = 0.0
    loss: Literal["auto", "bce", "bce_dice", "focal", "tversky"] = "auto"  # auto: bce_dice for masks, bce for classes
    focal_gamma: float = 2.0
    tversky_alpha: float = 0.3  # weight of false positives ...
    tversky_beta: float = 0.7  # ... and of what is missed
    class_weights: Literal["none", "balanced"] = "none"
    optimizer: Literal["adam", "adamw", "sgd"] = "adam"
    weight_decay: float = 1e-4  # of adamw
    learning_rate: float = 1e-3
    scaling: Literal["none", "sqrt", "linear"] = "sqrt"  # of the learning rate with the ranks
    schedule: Literal["constant", "cosine", "plateau"] = "cosine"
    warmup_epochs: float = 0.5
    min_rate: float = 0.01  # the schedule's end, as a fraction of the learning rate
    patience: int = 3  # plateau: epochs without progress before the rate is halved
    accumulate: int = 1  # batches whose gradients make one update
    clip_norm: float = 0.0  # of all gradients together; 0: not clipped
    stop_after: int = 0  # epochs without progress on validation before training stops; 0: never
    monitor: Literal["auto", "loss", "dice", "auc", "accuracy"] = "auto"  # auto: dice for masks, loss for classes
    augment: bool = True
    bad_rows: Literal["stop", "skip"] = "stop"
    checkpoint_updates: int = 0  # updates between checkpoints within an epoch; 0: after each epoch only
    keep: int = 2  # newest checkpoints that stay, besides the best
    report_updates: int = 10  # updates between two reports to the tracker
    pictures: int = 6  # validation images drawn after each epoch; 0: none
    precision: Literal["float32", "bfloat16", "float16"] = "float32"
    xla: bool = False
    threads: int = 0  # of a rank; 0: the machine's cores shared among its ranks
    memory_gib: float = 0.0  # of a rank; 0: what the machine or its GPU has free
    memory_check: Literal["refuse", "warn"] = "refuse"
    stall_s: float = 600.0  # a rank without progress for longer ends the run
    reader: Literal["arrow", "petastorm"] = "arrow"
    workers: int = 0  # decoding threads of a rank; 0: as many as its share of the cores
    cache_gib: float = 0.0  # of a machine's local disk for copies of the feed's row groups; 0: none
    cache_folder: str = ""  # empty: $XDG_CACHE_HOME/medspark/feeds

    def cache_path(self) -> Path:
        base = os.environ.get("XDG_CACHE_HOME") or os.path.join(os.path.expanduser("~"), ".cache")
        return Path(self.cache_folder).expanduser() if self.cache_folder else Path(base) / "medspark" / "feeds"


@dataclass(frozen=True)
class Augment:
    """How training samples are changed, where ``train.augment`` says so; see `medspark.feed.augment.Augmentation`."""

    flip_rows: float = 0.0  # probability of turning upside down ...
    flip_cols: float = 0.0  # ... and of mirroring: for images without a right way up
    turn: float = 0.0  # probability of quarter turns (square images)
    rotate_deg: float = 10.0
    scale: float = 0.1
    translate: float = 0.05
    elastic_px: float = 0.0
    gain: float = 0.1
    offset: float = 0.0
    stain: float = 0.0
    noise: float = 0.0


@dataclass(frozen=True)
class Config:
    tiling: Tiling = Tiling()
    series: Series = Series()
    labels: Labels = Labels()
    deid: Deid = Deid()
    quarantine: Quarantine = Quarantine()
    guard: Guard = Guard()
    ingest: Ingest = Ingest()
    watch: Watch = Watch()
    dicomweb: Dicomweb = Dicomweb()
    train: Train = Train()
    augment: Augment = Augment()
    verdicts: dict[str, Severity] = field(default_factory=dict)
    spark: dict[str, str] = field(default_factory=dict)

    def fingerprint(self, *sections: str, extra: tuple[object, ...] = ()) -> str:
        """16 hex digits over the named sections (those that change a job's rows) and ``extra``."""
        said = {name: _plain(getattr(self, name)) for name in sections}
        if "deid" in said:
            said["deid"].pop("key_file")  # the key's own fingerprint is in the lake; where its file lies changes nothing
            said["deid"].pop("crosswalk")  # changes no row
        if "series" in said:
            said["series"]["quiet_s"] = Series().quiet_s  # when a series is taken changes none of its rows
        raw = json.dumps([said, [str(item) for item in extra]], sort_keys=True)
        return hashlib.sha256(raw.encode()).hexdigest()[:16]


def _plain(value: Any) -> Any:
    return dataclasses.asdict(value) if dataclasses.is_dataclass(value) and not isinstance(value, type) else value


_SECTIONS: dict[str, type] = {
    "tiling": Tiling,
    "series": Series,
    "labels": Labels,
    "deid": Deid,
    "quarantine": Quarantine,
    "guard": Guard,
    "ingest": Ingest,
    "watch": Watch,
    "dicomweb": Dicomweb,
    "train": Train,
    "augment": Augment,
}


def load(path: str | os.PathLike[str] | None = None, overrides: list[str] | tuple[str, ...] = ()) -> Config:
    """Settings from a TOML file and ``section.key=value`` overrides; raises `BadRequest` on anything unknown or ill-typed."""
    tree: dict[str, Any] = {}
    if path is not None:
        try:
            with open(path, "rb") as stream:
                tree = tomllib.load(stream)
        except FileNotFoundError:
            raise BadRequest(f"--conf {path}: no such file") from None
        except tomllib.TOMLDecodeError as error:
            raise BadRequest(f"--conf {path}: not valid TOML ({error})") from None
    for item in overrides:
        name, equals, text = item.partition("=")
        section, dot, key = name.strip().partition(".")
        if not equals or not dot:
            raise BadRequest(f"--set {item}: expected section.key=value")
        tree.setdefault(section, {})
        if not isinstance(tree[section], dict):
            raise BadRequest(f"--set {item}: {section} is not a section")
        tree[section][key] = text if section == "spark" else _parse(text)
    return from_tree(tree)


def from_tree(tree: dict[str, Any]) -> Config:
    """`Config` from nested dictionaries (section -> key -> value)."""
    parts: dict[str, Any] = {}
    for section, values in tree.items():
        if not isinstance(values, dict):
            raise BadRequest(f"config: {section!r} stands outside a section")
        if section == "spark":
            parts["spark"] = {f"spark.{key}": str(value) for key, value in _flatten(values)}
        elif section == "verdicts":
            for code, severity in values.items():
                if severity not in get_args(Severity):
                    raise BadRequest(f"config verdicts.{code}: expected one of {', '.join(get_args(Severity))}, got {severity!r}")
            parts["verdicts"] = dict(values)
        elif section in _SECTIONS:
            parts[section] = _section(section, _SECTIONS[section], values)
        else:
            raise BadRequest(f"config: unknown section {section!r}{_nearest(section, [*_SECTIONS, 'spark', 'verdicts'])}")
    config = Config(**parts)
    _check(config)
    return config


def _section(name: str, cls: type, values: dict[str, Any]) -> Any:
    hints = get_type_hints(cls)
    for key, value in values.items():
        if key not in hints:
            raise BadRequest(f"config: unknown key {name}.{key}{_nearest(key, list(hints))}")
        values[key] = _coerce(f"{name}.{key}", hints[key], value)
    return cls(**values)


def _coerce(name: str, hint: Any, value: Any) -> Any:
    options = get_args(hint)
    if get_origin(hint) is Literal:
        if value not in options:
            raise BadRequest(f"config {name}: expected one of {', '.join(map(str, options))}, got {value!r}")
        return value
    if get_origin(hint) is tuple:
        items = value if isinstance(value, list) else [value]
        return tuple(str(item) for item in items)
    kinds = [kind for kind in (options or (hint,)) if kind is not type(None)]
    if value is None or (value == "" and type(None) in options):
        return None
    for kind in kinds:
        if kind is float and isinstance(value, (int, float)) and not isinstance(value, bool):
            return float(value)
        if isinstance(kind, type) and isinstance(value, kind) and isinstance(value, bool) == (kind is bool):
            return value
    raise BadRequest(f"config {name}: expected {' or '.join(kind.__name__ for kind in kinds)}, got {value!r}")


def _parse(text: str) -> Any:
    """A TOML value, or the bare text where it is none (so that ``tiling.edge=pad`` needs no quotes)."""
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text


def _flatten(values: dict[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    flat: list[tuple[str, Any]] = []
    for key, value in values.items():
        flat += _flatten(value, f"{prefix}{key}.") if isinstance(value, dict) else [(prefix + key, value)]
    return flat


def _nearest(word: str, known: list[str]) -> str:
    close = difflib.get_close_matches(word, known, 1)
    return f"; did you mean {close[0]!r}?" if close else f"; known: {', '.join(sorted(known))}"


def _check(config: Config) -> None:
    tiling = config.tiling
    if isinstance(tiling.tile_px, str):
        if tiling.tile_px != "native":
            raise BadRequest(f"config tiling.tile_px: expected a number of pixels or 'native', got {tiling.tile_px!r}")
    elif not 16 <= tiling.tile_px <= 8192:
        raise BadRequest(f"config tiling.tile_px: expected 16 to 8192, got {tiling.tile_px}")
    if tiling.level is not None and tiling.mpp_um is not None:
        raise BadRequest("config: tiling.level and tiling.mpp_um exclude each other; give one of the two")
    if tiling.level is not None and tiling.level < 0:
        raise BadRequest(f"config tiling.level: expected 0 or more, got {tiling.level}")
    for name in ("mpp_um", "assume_mpp_um"):
        value = getattr(tiling, name)
        if value is not None and not 0.01 <= value <= 100.0:
            raise BadRequest(f"config tiling.{name}: expected 0.01 to 100 micrometres per pixel, got {value}")
    if isinstance(tiling.tile_px, int) and not 0 <= tiling.overlap_px < tiling.tile_px:
        raise BadRequest(f"config tiling.overlap_px: expected 0 to tile_px - 1, got {tiling.overlap_px}")
    if not 0.0 <= tiling.min_tissue <= 1.0:
        raise BadRequest(f"config tiling.min_tissue: expected a fraction 0 to 1, got {tiling.min_tissue}")
    if not 1 <= tiling.jpeg_quality <= 100:
        raise BadRequest(f"config tiling.jpeg_quality: expected 1 to 100, got {tiling.jpeg_quality}")
    if config.ingest.batch_sources < 1 or config.ingest.batch_bytes < 1:
        raise BadRequest("config ingest.batch_sources and ingest.batch_bytes: expected 1 or more")
    for name, value in (("series.quiet_s", config.series.quiet_s), ("watch.settle_s", config.watch.settle_s)):
        if not 0.0 <= value < float("inf"):
            raise BadRequest(f"config {name}: expected 0 or more seconds, got {value}")
    if not 0.1 <= config.watch.poll_s <= 86_400.0:
        raise BadRequest(f"config watch.poll_s: expected 0.1 to 86400 seconds, got {config.watch.poll_s}")
    web = config.dicomweb
    if not 1 <= web.attempts <= 100 or not 1 <= web.page <= 100_000 or not 0.0 <= web.pause_s <= 60.0 or not 0.1 <= web.timeout_s <= 3600.0:
        raise BadRequest("config dicomweb: expected attempts 1 to 100, page 1 to 100000, pause_s 0 to 60 and timeout_s 0.1 to 3600")
    _check_train(config.train)
    if not 0.0 <= config.quarantine.max_fraction <= 1.0:
        raise BadRequest(f"config quarantine.max_fraction: expected a fraction 0 to 1, got {config.quarantine.max_fraction}")
    if config.deid.crosswalk and config.deid.profile == "none":
        raise BadRequest(
            "config deid.crosswalk: with deid.profile = none the lake keeps the original UIDs itself; leave one of the two out"
        )
    for key in config.spark:
        if key.startswith("spark.driver."):
            raise BadRequest(
                f"--set {key}: comes too late, the driver's JVM is already running; "
                f"give it to spark-submit as --conf {key}=... (memory: --driver-memory)"
            )


TRAIN_RANGES: dict[str, tuple[float, float]] = {
    "width": (1, 1024),
    "depth": (0, 8),
    "blocks": (1, 16),
    "dropout": (0, 0.95),
    "focal_gamma": (0, 10),
    "tversky_alpha": (0, 10),
    "tversky_beta": (0, 10),
    "weight_decay": (0, 1),
    "learning_rate": (1e-9, 100),
    "warmup_epochs": (0, 1000),
    "min_rate": (0, 1),
    "patience": (1, 1000),
    "accumulate": (1, 4096),
    "clip_norm": (0, 1e6),
    "stop_after": (0, 100_000),
    "checkpoint_updates": (0, 10**9),
    "keep": (1, 100),
    "report_updates": (1, 10**6),
    "pictures": (0, 64),
    "threads": (0, 1024),
    "memory_gib": (0, 1e5),
    "stall_s": (5, 86_400),
    "workers": (0, 1024),
    "cache_gib": (0, 1e6),
}
"""What the numbers of ``[train]`` may be."""


def _check_train(train: Train) -> None:
    for name, (low, high) in TRAIN_RANGES.items():
        value = getattr(train, name)
        if not low <= value <= high:
            raise BadRequest(f"config train.{name}: expected {low:g} to {high:g}, got {value}")
