"""Predictions of a cohort as rows: images by SQL in, rows of ``labels`` (masks) or ``predictions`` (classes) out.

The plan is pointers: which images, in bands of neighbouring slices or tiles, each band one piece of work. It is written once to the lake's private
folder and worked off in chunks. A task reads the stored pixels of its pieces, asks the model (a pure callable, loaded once per worker process), and
writes the rows' files itself; each chunk is one Delta commit of one table, so an image is predicted whole or not at all. What the table already has of
this model and round is left out of the plan: a run that was killed goes on where it stopped, and a repeated one writes nothing. One run of a model and
round works on a lake at a time (a claim, as in ingest): two can't both find that an image is missing.
"""

from __future__ import annotations

import hashlib
import json
import uuid
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal, Protocol

from pyspark.sql import DataFrame
from pyspark.sql import functions as fn

from medspark.errors import BadRequest
from medspark.lake.batch import Batch, app, recover_dead
from medspark.lake.files import PRIVATE, DataFile
from medspark.lake.session import cores
from medspark.lake.store import Lake

JOB = "predict"
BAND = 64  # slices of a series (or rows of tiles of a slide) in one piece: enough to make its few extra context slices cheap
CHUNK_IMAGES = 20_000  # images in one commit: minutes of work, which is what a kill costs
PIECES_PER_TASK = 8  # at most, where there are pieces enough for all cores

READ = "rescale_slope rescale_intercept modality_lut window_center window_width voi_lut_function photometric value_min value_max".split()
READ += ["pixel_spacing_mm", "pixel_spacing_source"]
"""What of a slice a recipe or a measure reads."""
_OWN = ["image_id", "parent_id", "dataset", "subject_key"]
_TYPES = {
    **dict.fromkeys(("rescale_slope", "rescale_intercept", "value_min", "value_max", "mpp_um"), "double"),
    **dict.fromkeys(("window_center", "window_width", "pixel_spacing_mm"), "array<double>"),
    **dict.fromkeys(("voi_lut_function", "photometric", "pixel_spacing_source"), "string"),
    **dict.fromkeys(("t", "k", "valid_height_px", "valid_width_px"), "int"),
    "modality_lut": "binary",
}


class Model(Protocol):
    """What is asked of a model, on the executors; pickles (its weights by broadcast)."""

    @property
    def uri(self) -> str: ...
    @property
    def name(self) -> str:
        """``labels.annotator`` of its rows: the same for the same weights."""
        ...

    @property
    def task(self) -> str: ...
    @property
    def labels(self) -> tuple[str, ...]: ...
    @property
    def exclusive(self) -> bool: ...
    @property
    def thresholds(self) -> Mapping[str, float]: ...
    @property
    def context(self) -> int:
        """Slices on either side that it looks at."""
        ...

    @property
    def depth(self) -> int:
        """0; or the planes of the volume that it looks at as a whole, slices being all of one (series, t)."""
        ...

    def planes(self, count: int) -> list[int]:
        """Which of a volume's ``count`` slices are its ``depth`` planes; -1 is padding, the last slice again."""
        ...

    def volume(self, planes: Sequence[Any], rows: Sequence[Mapping[str, Any]]) -> Any:
        """float32 (depth, rows, cols, L) at the stored size, or (L,), of a volume's stored planes and their rows."""
        ...

    def neighbours(self, place: int, ks: Sequence[int]) -> list[int]:
        """The 2 * context + 1 slices that slice ``place`` is seen with; ``ks``: places along the normal, ascending."""
        ...

    def probabilities(self, stacks: Sequence[Any]) -> list[Any]:
        """Per image float32 (rows, cols, L) at its stored size, or (L,) for classes; each stack: (stored planes, their rows)."""
        ...


@dataclass(frozen=True)
class Request:
    """round : ``labels.round`` of the rows;  chunk_images : images in one commit"""

    round: int = 0
    chunk_images: int = CHUNK_IMAGES


@dataclass
class Result:
    """images : predicted now;  done : had rows of this model and round before;  failed : could not be predicted, with reasons by kind

    without_pixels : named by the cohort, but no image of the lake, or one without pixels (a tile of mere background)
    """

    images: int = 0
    rows: int = 0
    done: int = 0
    failed: int = 0
    without_pixels: int = 0
    chunks: int = 0
    reasons: Counter[str] = field(default_factory=Counter)


def table_of(task: str) -> Literal["labels", "predictions"]:
    return "labels" if task == "segmentation" else "predictions"


def predict(
    lake: Lake, model: Model, cohort: DataFrame, request: Request, run_id: str, lease_s: float, progress: Callable[[str], None]
) -> Result:
    """Predicts the images of ``cohort`` (a frame with ``image_id``) that have no prediction by this model and round.

    Raises `BadRequest` where another run of this model and round is at work.
    """
    if "image_id" not in cohort.columns:
        raise BadRequest(f"--query: returns {', '.join(cohort.columns)}; expected a column image_id")
    lake.ensure([table_of(model.task), "claims"])
    recover_dead(lake)
    whole = Batch(lake, run_id, JOB, "", lease_s)
    if not whole.claim([claim_of(model, request.round)], {}):
        raise BadRequest(f"another run predicts with model {model.name}, round {request.round}, on this lake; wait for it or end it")
    stage = f"{PRIVATE}/{whole.batch_id}/plan"
    with whole.worked():
        result = Result()
        wanted = cohort.select("image_id").where("image_id IS NOT NULL").distinct().persist()  # the query runs once
        left = wanted.join(_there(lake, model, request), "image_id", "left_anti").persist()
        total = left.count()
        result.done = wanted.count() - total
        chunks = _plan(lake, model, left, total, request, f"{lake.uri.rstrip('/')}/{stage}")
        planned = sum(images for images, _ in chunks.values())
        result.without_pixels = total - planned
        left.unpersist()
        wanted.unpersist()
        progress(f"predict: {planned} images in {len(chunks)} chunks, {result.done} are there already")
        for number, (chunk, (images, pieces)) in enumerate(sorted(chunks.items()), 1):
            _work(lake, model, request, run_id, f"{stage}/chunk={chunk}", pieces, result)
            progress(f"predict: chunk {number} of {len(chunks)}, {images} images")
        lake.filesystem_delete(lake.folder(PRIVATE, whole.batch_id))
        whole.release()
    return result


def claim_of(model: Model, round: int) -> str:
    """What a run claims: the rows that tell it from others (`_there`), hashed, because an address has no place in ``claims``."""
    rows = f"{model.name} {round}" if model.task == "segmentation" else model.uri
    return f"{JOB}:{hashlib.sha256(rows.encode()).hexdigest()[:16]}"


def _there(lake: Lake, model: Model, request: Request) -> DataFrame:
    """``image_id`` of what is predicted already."""
    frame = lake.frame(table_of(model.task))
    if model.task == "segmentation":
        mine = (fn.col("source") == "model") & (fn.col("annotator") == model.name) & (fn.col("round") == request.round)
        return frame.where(mine & (fn.col("target") == "image")).select(fn.col("target_id").alias("image_id")).distinct()
    there = frame.where((fn.col("model_uri") == model.uri) & (fn.col("target") == "image")).select("image_id").distinct()
    if not model.depth or not lake.exists("slices"):
        return there
    # A volume's classes stand at its middle slice, and are said of all of them.
    slices = lake.frame("slices").select("image_id", "series_id", "t")
    return slices.join(slices.join(there, "image_id").select("series_id", "t").distinct(), ["series_id", "t"], "left_semi").select(
        "image_id"
    )


# ---- the plan


def _plan(lake: Lake, model: Model, left: DataFrame, total: int, request: Request, stage: str) -> dict[int, tuple[int, int]]:
    """Writes the pieces of the images into the stage; returns chunk -> (images, pieces)."""
    found = [_volumes(lake, left)] if model.depth else [_slices(lake, left, model.context), _tiles(lake, left), _photos(lake, left)]
    frames = [frame for frame in found if frame is not None]
    if not frames:
        raise BadRequest("the lake holds no images yet")
    frame = frames[0]
    for other in frames[1:]:
        frame = frame.unionByName(other)
    if not total:
        return {}
    chunks = max(1, -(-total // request.chunk_images))
    frame = frame.withColumn("chunk", fn.pmod(fn.xxhash64("piece"), fn.lit(chunks)).cast("int"))
    frame.repartition(min(chunks, 4 * cores(lake.spark)), "chunk").write.partitionBy("chunk").parquet(stage)
    planned = (
        lake.spark.read.schema(frame.schema).parquet(stage).groupBy("chunk")
    )  # a plan of nothing has no file that could say its schema
    rows = planned.agg(fn.sum(fn.col("wanted").cast("int")).alias("images"), fn.countDistinct("piece").alias("pieces")).collect()
    return {int(row.chunk): (int(row.images), int(row.pieces)) for row in rows if row.images}


def _slices(lake: Lake, left: DataFrame, context: int) -> DataFrame | None:
    """Slices in bands along k, each with the neighbours that its outermost ones are seen with."""
    if not lake.exists("slices"):
        return None
    slices = lake.frame("slices").withColumn("parent_id", fn.col("series_id"))
    slices = slices.join(left.withColumn("wanted", fn.lit(True)), "image_id", "left" if context else "inner")
    if context:
        series = slices.where("wanted").select("series_id").distinct()
        slices = slices.join(series, "series_id", "left_semi")
        reached = [fn.floor((fn.col("k") + offset) / BAND) for offset in (-context, 0, context)]
        slices = slices.withColumn("band", fn.explode(fn.array_distinct(fn.array(*(fn.coalesce(band, fn.lit(0)) for band in reached)))))
    else:
        slices = slices.withColumn("band", fn.coalesce(fn.floor(fn.col("k") / BAND), fn.lit(0)))
    own = fn.col("band") == fn.coalesce(fn.floor(fn.col("k") / BAND), fn.lit(0))
    slices = slices.withColumn("wanted", fn.coalesce(fn.col("wanted"), fn.lit(False)) & own)
    return _columns(slices, fn.concat_ws(":", "parent_id", "t", "band"), ["t", "k", *READ])


def _volumes(lake: Lake, left: DataFrame) -> DataFrame | None:
    """All slices with a place of the volumes that hold a wanted one."""
    if not lake.exists("slices"):
        return None
    slices = lake.frame("slices").where("k IS NOT NULL").withColumn("parent_id", fn.col("series_id"))
    slices = slices.join(left.withColumn("wanted", fn.lit(True)), "image_id", "left").withColumn(
        "wanted", fn.coalesce("wanted", fn.lit(False))
    )
    slices = slices.join(slices.where("wanted").select("series_id", "t").distinct(), ["series_id", "t"], "left_semi")
    return _columns(slices, fn.concat_ws(":", "parent_id", "t"), ["t", "k", *READ])


def _tiles(lake: Lake, left: DataFrame) -> DataFrame | None:
    if not lake.exists("tiles"):
        return None
    tiles = lake.frame("tiles").where("pixel_source <> 'none'").join(left.withColumn("wanted", fn.lit(True)), "image_id")
    tiles = tiles.withColumn("parent_id", fn.col("slide_id"))
    place = fn.concat_ws(":", "grid_id", fn.floor(fn.col("tile_row") / BAND), fn.floor(fn.col("tile_col") / BAND))
    return _columns(tiles, place, ["mpp_um", "valid_height_px", "valid_width_px"])


def _photos(lake: Lake, left: DataFrame) -> DataFrame | None:
    if not lake.exists("photos"):
        return None
    photos = lake.frame("photos").join(left.withColumn("wanted", fn.lit(True)), "image_id").withColumn("parent_id", fn.col("source_id"))
    return _columns(photos, fn.concat_ws(":", "parent_id", fn.substring("image_id", 17, 1)), [])


def _columns(frame: DataFrame, piece: Any, has: Sequence[str]) -> DataFrame:
    """The columns of all kinds; null where a kind has none. Columns that a later release added are null in an older lake."""
    rest = [
        (fn.col(name) if name in has and name in frame.columns else fn.lit(None)).cast(kind).alias(name) for name, kind in _TYPES.items()
    ]
    return frame.select(piece.alias("piece"), "wanted", *_OWN, *rest)


# ---- the work


def _work(lake: Lake, model: Model, request: Request, run_id: str, chunk: str, pieces: int, result: Result) -> None:
    """One chunk: predicted by tasks, committed at once."""
    from medspark.lake.predict_task import Worker

    batch_id = uuid.uuid4().hex
    table = table_of(model.task)
    pixels = [{name: action.get(name) for name in ("path", "min.parent_id", "max.parent_id")} for action in lake.actions("pixels")]
    work = Worker(model, lake.uri, table, run_id, batch_id, request.round, pixels)
    tasks = max(1, min(pieces, max(2 * cores(lake.spark), pieces // PIECES_PER_TASK)))
    said = (
        lake.spark.read.parquet(f"{lake.uri.rstrip('/')}/{chunk}")
        .repartition(tasks, "piece")
        .sortWithinPartitions("piece", "t", "k", "image_id")
        .mapInArrow(lambda batches: work(batches), "said string")
        .collect()
    )
    files = []
    for row in said:
        part = json.loads(row.said)
        files += [DataFile(**file) for file in part["files"]]
        result.images += part["images"]
        result.failed += sum(part["reasons"].values())
        result.reasons.update(part["reasons"])
    metadata = lake.user_metadata(run=run_id, batch=batch_id, job=JOB, model=model.name)
    lake.transact(table, sorted(files, key=lambda file: file.path), app(batch_id), metadata)
    result.rows += sum(file.rows for file in files)
    result.chunks += 1


def said(file: DataFile) -> dict[str, Any]:
    return asdict(file)
