"""Batches of a feed: tiles and CT slices a second, against bare decoding on the same cores, tf.data, stock Petastorm and TFRecords; slow stores."""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import os
import pickle
import statistics
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from multiprocessing.shared_memory import SharedMemory
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from benchmarks import peer, phantoms
from benchmarks.peer import Given, Ratio, Report

SIZES = {"small": (1_024, 128), "medium": (4_096, 512), "full": (8_192, 4_096)}  # tiles, CT slices
GROUP_BYTES = 3 << 20  # of a feed's row groups
BATCH = {"tiles": 32, "ct": 8}
SHARDS = 4  # files of every layout
STORE_SHARE = 0.5  # the slow store brings rows at this share of the speed at which they are decoded
EPOCHS = 2  # in a row: the reader loads the next one's first row groups in the last one's time
SLOW_EPOCHS = 2  # with a cache: the first fills it


@dataclass(frozen=True)
class Set:
    """A feed of one kind, and the same rows as its peers store them. rows : a multiple of the batch"""

    kind: str
    lake: Path
    rows: int
    shape: tuple[int, ...]
    dtype: str
    petastorm: Path
    records: tuple[str, ...]
    plain: tuple[str, ...]

    def feed(self) -> Any:
        from medspark.feed.open import open_feed

        return open_feed(str(self.lake), "bench")

    @property
    def batch(self) -> int:
        return BATCH[self.kind]


def bench(given: Given) -> Report:
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    report = Report(f"Batches of a feed, {peer.CORES} cores")
    for kind, count in zip(("tiles", "ct"), SIZES[given.size]):
        made = prepared(given.work, kind, count)
        if given.own.prepare:
            continue
        sides = {
            "bare": partial(bare, made),
            "arrow": partial(ours, made, "arrow"),
            "petastorm": partial(ours, made, "petastorm"),
            "tf.data": partial(as_tfdata, made),
            "processes": partial(two_processes, made),
            "TFRecord": partial(records, made),
            "files": partial(plain_files, made),
        }
        if kind == "tiles" and not _stock_missing():
            sides["make_reader"] = partial(stock, made)
        seconds = peer.alternate(sides, given.repeat)
        rates = {name: made.rows / min(found) for name, found in seconds.items()}
        report.ratios += ratios(kind, rates)
        report.remarks.append(
            f"{kind}, median rates: " + ", ".join(f"{n} {made.rows / statistics.median(s):,.0f}/s" for n, s in seconds.items())
        )
        if kind == "tiles":
            report.ratios += slow_store(made, given, rates["arrow"])
    if _stock_missing():
        report.remarks.append("stock Petastorm's image codec needs opencv-python-headless, which is not here: not measured")
    report.remarks.append("bare: threads decode payloads that lie in memory into new batches; the best run of each side counts")
    return report


def ratios(kind: str, rates: dict[str, float]) -> list[Ratio]:
    unit = "tiles/s" if kind == "tiles" else "slices/s"

    def against(what: str, one: str, other: str, target: float | None) -> Ratio:
        return Ratio(f"{kind}: {what}", rates[one], rates[other], unit, rates[one] / rates[other], target)

    found = [
        against("reader / bare decoding", "arrow", "bare", 0.9),
        against("reader on Petastorm / bare decoding", "petastorm", "bare", None),
        against("as tf.data / bare decoding", "tf.data", "bare", 0.8),
        against("reader / two processes with shared memory", "arrow", "processes", None),
        against("as tf.data / TFRecord", "tf.data", "TFRecord", None),
        against("as tf.data / a file each", "tf.data", "files", None),
    ]
    if "make_reader" in rates:
        found.append(against("reader / stock Petastorm make_reader, image codec", "arrow", "make_reader", 2.0))
    return found


# ---- our side


def ours(made: Set, kind: str) -> float:
    """Seconds of an epoch, from opening the feed, as one of `EPOCHS`."""
    started = time.perf_counter()
    reader = made.feed().reader("train", made.batch, seed=1, kind=kind, workers=peer.CORES)
    for epoch in range(EPOCHS):
        assert sum(len(batch) for batch in reader.epoch(epoch)) == made.rows
    seconds = time.perf_counter() - started
    reader.close()
    return seconds / EPOCHS


def as_tfdata(made: Set) -> float:
    from medspark.feed import tfdata

    started = time.perf_counter()
    reader = made.feed().reader("train", made.batch, seed=1, workers=peer.CORES)
    batches = tfdata.epochs(reader).take(EPOCHS * reader.steps_per_epoch)
    assert sum(element["images"].shape[0] for element in batches) == EPOCHS * made.rows
    seconds = time.perf_counter() - started
    reader.close()
    return seconds / EPOCHS


def two_processes(made: Set) -> float:
    """The other way to use all cores: each process reads half and decodes on one thread into shared memory; the batch is handed over by its place."""
    context = multiprocessing.get_context("spawn")
    size = made.batch * int(np.prod(made.shape)) * np.dtype(made.dtype).itemsize
    full, free, go = context.Queue(), [context.Queue() for _ in range(peer.CORES)], context.Event()
    memories = [[SharedMemory(create=True, size=size) for _ in range(3)] for _ in range(peer.CORES)]
    names = [[memory.name for memory in mine] for mine in memories]
    workers = [
        context.Process(target=_fill_shared, args=(made, rank, names[rank], full, free[rank], go), daemon=True)
        for rank in range(peer.CORES)
    ]
    for rank, worker in enumerate(workers):
        worker.start()
        for place in range(3):
            free[rank].put(place)
    for _ in workers:
        assert full.get()[0] == "ready"  # starting a process is not what is measured
    started = time.perf_counter()
    go.set()
    left, rows = peer.CORES, 0
    while left:
        rank, place = full.get()
        if place is None:
            left -= 1
            continue
        rows += len(np.ndarray((made.batch, *made.shape), made.dtype, memories[rank][place].buf))
        free[rank].put(place)
    seconds = time.perf_counter() - started
    for worker in workers:
        worker.join()
    for mine in memories:
        for memory in mine:
            memory.close()
            memory.unlink()
    return seconds * made.rows / rows


def _fill_shared(made: Set, rank: int, names: Sequence[str], full: Any, free: Any, go: Any) -> None:
    from medspark.feed.decode import Scratch, decode_into

    feed = made.feed()
    reader = feed.reader("train", made.batch, rank, peer.CORES, seed=1, workers=1)
    memories = [SharedMemory(name) for name in names]
    arrays = [np.ndarray((made.batch, *made.shape), made.dtype, memory.buf) for memory in memories]
    source = reader._source  # the bench decodes by itself: only where the batch lies differs
    full.put(("ready", None))
    go.wait()
    held: list[Any] = []
    scratch = Scratch()
    for window in reader.plan.epoch(0):
        loaded = [source.load(piece, 0) for piece in window.pieces]
        flat = [image for rows in loaded for image in rows.images]
        held += [flat[place] for place in window.order.tolist()]
        while len(held) >= made.batch:
            place = free.get()
            for at in range(made.batch):
                decode_into(arrays[place][at], scratch.bytes(held[at]), feed.card.image)
            full.put((rank, place))
            del held[: made.batch]
    full.put((rank, None))
    reader.close()
    del arrays
    for memory in memories:
        memory.close()


# ---- peers


def bare(made: Set) -> float:
    """Threads that only decode: payloads lie in memory, in order, and every batch is a new array, as decoding gives it."""
    from medspark.feed.arrow import ArrowSource
    from medspark.feed.decode import decode_into
    from medspark.feed.stream import shares

    feed = made.feed()
    plan = shares(feed.card, "train", made.batch, 0, 1, 0)
    source = ArrowSource(feed.card, "train", *feed.store())
    payloads = [bytes(image) for piece in plan.pieces() for image in source.load(piece, None).images]

    def work(first: int) -> None:
        for start in range(first, len(payloads), made.batch * peer.CORES):
            batch = np.empty((made.batch, *made.shape), made.dtype)
            for out, payload in zip(batch, payloads[start : start + made.batch]):
                decode_into(out, payload, feed.card.image)

    with ThreadPoolExecutor(peer.CORES) as pool:
        started = time.perf_counter()
        list(pool.map(work, range(0, peer.CORES * made.batch, made.batch)))
        return time.perf_counter() - started


def stock(made: Set) -> float:
    """make_reader with its thread pool, as its guide shows; each row decoded by its codec."""
    import warnings

    from petastorm import make_reader

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        started = time.perf_counter()
        with make_reader(
            f"file://{made.petastorm}", num_epochs=None, seed=1, workers_count=peer.CORES, reader_pool_type="thread"
        ) as reader:
            for _ in range(made.rows // made.batch):
                np.stack([next(reader).image for _ in range(made.batch)])
            return time.perf_counter() - started


def records(made: Set) -> float:
    import tensorflow as tf

    spec = {"image": tf.io.FixedLenFeature([], tf.string), "target": tf.io.FixedLenFeature([], tf.float32)}

    def parse(raw: Any) -> Any:
        found = tf.io.parse_single_example(raw, spec)
        return _tf_decoded(made, found["image"]), found["target"]

    data = tf.data.TFRecordDataset(list(made.records), num_parallel_reads=peer.CORES)
    return _tf_seconds(made, data.map(parse, num_parallel_calls=peer.CORES))


def plain_files(made: Set) -> float:
    import tensorflow as tf

    names = np.random.default_rng(1).permutation(np.array(made.plain))
    data = tf.data.Dataset.from_tensor_slices(names)
    return _tf_seconds(made, data.map(lambda name: (_tf_decoded(made, tf.io.read_file(name)), 0.0), num_parallel_calls=peer.CORES))


def _tf_decoded(made: Set, payload: Any) -> Any:
    """TensorFlow knows no blosc2: its CT values lie uncompressed."""
    import tensorflow as tf

    if made.kind == "tiles":
        return tf.ensure_shape(tf.io.decode_jpeg(payload, 3, dct_method="INTEGER_ACCURATE"), made.shape)
    return tf.reshape(tf.io.decode_raw(payload, tf.int16), made.shape)


def _tf_seconds(made: Set, data: Any) -> float:
    started = time.perf_counter()
    rows = sum(images.shape[0] for images, _ in data.batch(made.batch, drop_remainder=True).prefetch(2))
    assert rows == made.rows // made.batch * made.batch
    return time.perf_counter() - started


# ---- a slow store


def slow_store(made: Set, given: Given, rate: float) -> list[Ratio]:
    """Epochs from a store that brings rows at `STORE_SHARE` of what the reader decodes: without a cache, then with one."""
    from medspark.feed.cache import Cache
    from tests.phantoms.slow_store import SlowStore

    feed = made.feed()
    files = feed.card.files_of("train")
    bytes_per_s = sum(file.bytes for file in files) / made.rows * rate * STORE_SHARE

    def epochs(store: Any, cache: Cache | None, count: int) -> list[float]:
        where = None if store is None else (store.arrow(), f"{feed.lake}/feeds/{feed.name}")
        reader = feed.reader("train", made.batch, seed=1, workers=peer.CORES, cache=cache, store=where)
        seconds = []
        for epoch in range(count):
            started = time.perf_counter()
            assert sum(len(batch) for batch in reader.epoch(epoch)) == made.rows
            seconds.append(time.perf_counter() - started)
        if cache is not None:
            peer.say(f"cache: {reader.metrics()}")
        reader.close()
        return seconds

    turns = []
    for turn in range(given.repeat):
        fast = epochs(None, None, SLOW_EPOCHS)[-1]
        slow = epochs(SlowStore(bytes_per_s), None, 1)[0]
        folder = peer.fresh(given.work, f"cache{turn}")
        first, second = epochs(SlowStore(bytes_per_s), Cache(str(folder), 4 * sum(file.bytes for file in files)), SLOW_EPOCHS)
        turns.append((fast, slow, first, second))
        peer.say(f"slow store, run {turn + 1}: fast {fast:.2f}, slow {slow:.2f}, first with cache {first:.2f}, second {second:.2f} s")
    fast, slow, first, second = (statistics.median(column) for column in zip(*turns))
    return [
        Ratio("slow store: second epoch with cache / no slow store", made.rows / second, made.rows / fast, "tiles/s", fast / second, 0.95),
        Ratio("slow store: first epoch with cache / without one", first, slow, "s", first / slow, 1.1, at_least=False),
    ]


# ---- the data


def prepared(work: Path, kind: str, count: int) -> Set:
    """The feed and its peers' layouts, made once and kept in the work folder."""
    folder = work / "phantoms" / f"stream-{kind}-{count}"
    done = folder / "set.pickle"
    if not done.exists():
        payloads, raw, shape, dtype, codec = _tiles(count) if kind == "tiles" else _slices(work, count)
        rows = count // BATCH[kind] * BATCH[kind]
        made = Set(
            kind,
            folder,
            rows,
            shape,
            dtype,
            _petastorm(folder / "petastorm", payloads[:rows], shape) if kind == "tiles" else folder,
            _records(folder, raw[:rows]),
            _plain(folder / "files", raw[:rows]),
        )
        _feed(folder, kind, payloads[:rows], shape, dtype, codec)
        done.write_bytes(pickle.dumps(made))
    return pickle.loads(done.read_bytes())


def _tiles(count: int) -> tuple[list[bytes], list[bytes], tuple[int, ...], str, str]:
    tiles = phantoms.jpeg_tiles()
    payloads = [tiles[place] for place in np.random.default_rng(0).integers(0, len(tiles), count).tolist()]
    return payloads, payloads, (phantoms.TILE_PX, phantoms.TILE_PX, 3), "uint8", "jpeg"


def _slices(work: Path, count: int) -> tuple[list[bytes], list[bytes], tuple[int, ...], str, str]:
    import pydicom

    from medspark.pixels.codecs import encode

    arrays = [pydicom.dcmread(path).pixel_array.astype(np.int16) for path in sorted(phantoms.ct(work, 56).rglob("*.dcm"))]
    rolled = [np.roll(array, turn * 7, axis=0) for turn in range(4) for array in arrays]
    payloads, raw = [encode(array[..., None], "blosc2") for array in rolled], [array.tobytes() for array in rolled]
    places = np.random.default_rng(0).integers(0, len(rolled), count).tolist()
    return [payloads[p] for p in places], [raw[p] for p in places], (*arrays[0].shape, 1), "int16", "blosc2"


def _feed(lake: Path, kind: str, payloads: Sequence[bytes], shape: tuple[int, ...], dtype: str, codec: str) -> None:
    from medspark.feed import rows
    from medspark.feed.card import Card, ImageSpec, PartCounts
    from tests.phantoms.feeds import commit, write_file

    folder = lake / "feeds" / "bench"
    folder.mkdir(parents=True)
    group = max(1, GROUP_BYTES // (sum(map(len, payloads)) // len(payloads)))
    ids = [hashlib.sha256(str(number).encode()).hexdigest()[:32] for number in range(len(payloads))]
    plain = {"parent_id": "p", "dataset": "bench", "subject_key": "s", "part": "train", "row0": 0, "col0": 0, "k": -1, "weight": 1.0}
    made = [
        {**plain, "row_id": i, "image_id": i, "target": [float(n % 2)], "mask": b"", "image": payload}
        for n, (i, payload) in enumerate(zip(ids, payloads))
    ]
    step = -(-len(made) // SHARDS)
    table = pa.Table.from_pylist(made, rows.SCHEMA)
    files = tuple(write_file(folder, "train", table.slice(start, step), group) for start in range(0, len(made), step))
    image = ImageSpec("image", shape, dtype, codec, ("R", "G", "B") if kind == "tiles" else ("value",))
    counts = {"train": PartCounts(len(made), len(made), 1, {"odd": len(made) // 2}, {"odd": len(made) - len(made) // 2})}
    ones = (1.0,) * shape[-1]
    commit(folder, Card("bench", "classification", ("odd",), False, image, "", {}, {}, False, 0, {}, {}, counts, ones, ones, files))


def _petastorm(folder: Path, payloads: Sequence[bytes], shape: tuple[int, ...]) -> Path:
    """What ``materialize_dataset`` leaves: Parquet and a pickled schema beside it; written without Spark."""
    if _stock_missing():
        return folder
    import warnings

    from petastorm import utils
    from petastorm.codecs import CompressedImageCodec
    from petastorm.etl.dataset_metadata import ROW_GROUPS_PER_FILE_KEY, UNISCHEMA_KEY
    from petastorm.unischema import Unischema, UnischemaField

    folder.mkdir(parents=True)
    schema = Unischema("Tiles", [UnischemaField("image", np.uint8, shape, CompressedImageCodec("jpeg"), False)])
    step = -(-len(payloads) // SHARDS)
    groups = {}
    for shard in range(SHARDS):
        table = pa.table({"image": pa.array(payloads[shard * step : (shard + 1) * step], pa.binary())})
        pq.write_table(table, folder / f"{shard}.parquet", row_group_size=256, compression="none")
        groups[f"{shard}.parquet"] = pq.ParquetFile(folder / f"{shard}.parquet").num_row_groups
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for key, value in ((UNISCHEMA_KEY, pickle.dumps(schema)), (ROW_GROUPS_PER_FILE_KEY, json.dumps(groups))):
            from petastorm.fs_utils import get_filesystem_and_path_or_paths

            disk, _ = get_filesystem_and_path_or_paths("file:///")
            utils.add_to_dataset_metadata(pq.ParquetDataset(str(folder), filesystem=disk, validate_schema=False), key, value)
    return folder


def _records(folder: Path, raw: Sequence[bytes]) -> tuple[str, ...]:
    import tensorflow as tf

    folder.mkdir(parents=True, exist_ok=True)
    names = []
    for shard in range(SHARDS):
        names.append(str(folder / f"{shard}.tfrecord"))
        with tf.io.TFRecordWriter(names[-1]) as writer:
            for payload in raw[shard::SHARDS]:
                feature = {
                    "image": tf.train.Feature(bytes_list=tf.train.BytesList(value=[payload])),
                    "target": tf.train.Feature(float_list=tf.train.FloatList(value=[1.0])),
                }
                writer.write(tf.train.Example(features=tf.train.Features(feature=feature)).SerializeToString())
    return tuple(names)


def _plain(folder: Path, raw: Sequence[bytes]) -> tuple[str, ...]:
    folder.mkdir(parents=True)
    names = [folder / f"{number}.bin" for number in range(len(raw))]
    for name, payload in zip(names, raw):
        name.write_bytes(payload)
    return tuple(map(str, names))


def _stock_missing() -> bool:
    try:
        import cv2  # noqa: F401
    except ImportError:
        return True
    return False


if __name__ == "__main__":
    parser = peer.options("stream", __doc__, 3)
    parser.add_argument("--prepare", action="store_true", help="only makes the data, which stays in --work")
    peer.main("stream", parser, bench)
