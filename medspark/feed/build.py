"""build_feed: cohort -> samples -> order -> files -> one Delta version with its card.

`cohort` says which images, `choose` (tasks) which samples and their truth, `order` (driver, integers) where each goes, `write` (tasks) makes the
files. The driver holds counts by input row group (16 bytes for each group of ``pixels``: 30 MB at 21 million slices), never rows.
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa

from medspark import __version__
from medspark.errors import BadRequest
from medspark.feed import order
from medspark.feed.card import Card, PartCounts, PartFile
from medspark.feed.choose import STAGED, Chooser
from medspark.feed.cohort import Cohort, mapped
from medspark.feed.request import Request
from medspark.feed.resolve import image_spec, resolve
from medspark.feed.sample import Recipe
from medspark.feed.table import TABLE, commit
from medspark.feed.truth import Truth
from medspark.feed.write import Builder, Moments, Payload, Writer, Written
from medspark.keys import Ids
from medspark.lake import pins
from medspark.lake.create import first_commit
from medspark.lake.files import PRIVATE
from medspark.lake.store import Lake

TRIAL = 32  # samples that are made once beforehand, to learn how many bytes a row has
POOL_BYTES = 128 << 20  # encoded samples of a pool that a task holds at once
FIT = "train"
"""Part over which mean, std and balanced weights are taken; all parts where a feed has none of this name."""
NARROW_ROWS = 200_000  # rows of a few numbers per Arrow batch
BATCH_ROWS = 256  # rows per Arrow batch into Python: masks of a large photo have some 100 KB


@dataclass
class Outcome:
    """version : of the feed;  changed : False where the same feed was there already;  counts : images left out, by reason"""

    card: Card
    version: int
    changed: bool
    skipped: Mapping[str, int]
    doubles: int

    def said(self) -> dict[str, Any]:
        parts = {name: {"rows": part.rows, "images": part.images, "subjects": part.subjects} for name, part in self.card.parts.items()}
        groups = {name: sum(len(file.row_groups) for file in self.card.files_of(name)) for name in self.card.parts}
        return {
            "feed": self.card.name,
            "version": self.version,
            "changed": self.changed,
            "parts": parts,
            "row_groups": groups,
            "labels": list(self.card.labels),
            "left_out": {name: count for name, count in self.skipped.items() if count},
            "doubles": self.doubles,
            **({"within_subject": "WITHIN-SUBJECT"} if self.card.within_subject else {}),
        }


@dataclass
class Build:
    """One build. ``timed``: a context manager by stage name (`Summary.timed`); ``progress``: sentences for people."""

    lake: Lake
    request: Request
    tables: Mapping[str, int]
    run_id: str = field(default_factory=lambda: uuid.uuid4().hex[:16])
    timed: Callable[[str], Any] = lambda stage: nullcontext()
    progress: Callable[[str], None] = lambda text: None
    stage: str = field(default_factory=lambda: f"feed-{uuid.uuid4().hex[:16]}")

    def run(self) -> Outcome:
        """Builds and commits; the private folder is removed whatever happens."""
        try:
            with self._batches_of(BATCH_ROWS):
                return self._run()
        finally:
            self.lake.filesystem_delete(self.lake.folder(PRIVATE, self.stage))

    @contextmanager
    def _batches_of(self, rows: int) -> Iterator[None]:
        """Arrow batches of so many rows, into Python and out of it."""
        name, conf = "spark.sql.execution.arrow.maxRecordsPerBatch", self.lake.spark.conf
        before = str(conf.get(name))
        conf.set(name, str(rows))
        try:
            yield
        finally:
            conf.set(name, before)

    def _run(self) -> Outcome:
        request, cohort = self.request, Cohort(self.lake, self.request, self.tables, self.stage)
        with self.timed("scan"):
            cohort.ask()
            cohort.parts()
            cohort.gate()
            if cohort.doubles_total:
                self.progress(f"{cohort.doubles_total} groups of equal images are under different subjects or parts; the card lists them")
            if cohort.part_given:
                self._one_part_each()
            cohort.locate_pixels()
        with self.timed("plan"):
            facts = cohort.facts()
            recipe = resolve(request, facts)
            cohort.truth_rows()
            truth, spelled = self._truth(cohort)
            self.progress(f"choose: {', '.join(truth.labels)}; {recipe.mode} {recipe.dtype}")
            exclusive, shape = self._choose(cohort, recipe, truth, spelled)
            codec = "jpeg" if self._passes_through(recipe, facts) else "blosc2"
            builder = Builder(recipe, request.crop, codec)
            self._select()
            layouts, runs = self._lay_out(builder, cohort.files())
        with self.timed("explode"):
            self.progress("write: " + ", ".join(f"{part} {one.rows} rows in {one.groups} groups" for part, one in sorted(layouts.items())))
            self._ensure_table()
            written = self._write(cohort.files(), builder, shape)
        with self.timed("commit"):
            card = self._card(cohort, recipe, truth, exclusive, shape, codec, facts, written, runs)
            version, changed = commit(self.lake, card, [one.data for one in written], self.run_id)
        return Outcome(card, version, changed, cohort.skipped, cohort.doubles_total)

    def _sql(self, text: str) -> Any:
        return self.lake.spark.sql(text)

    def _one_part_each(self) -> None:
        """A volume, or without crops an image, is one sample: it cannot be in two parts."""
        whole = "parent_id, t" if self.request.volume else "image_id"
        if self.request.crop is None:
            torn = self._sql(f"SELECT {whole} FROM _parted GROUP BY {whole} HAVING count(DISTINCT part) > 1 LIMIT 1").collect()
            if torn:
                raise BadRequest(
                    f"{'a volume' if self.request.volume else 'an image'} is in two parts ({torn[0][0]}); give --crop, or one part"
                )

    # ---- choose

    def _truth(self, cohort: Cohort) -> tuple[Truth, list[str]]:
        """How labels are read, and the labels (as ``labels`` spells them) that matter."""
        request = self.request
        found = cohort.label_names()
        named = mapped(found, request.classes)
        labels = request.labels or tuple(sorted(set(named.values())))
        if not labels:
            if request.task == "classification" and (targets := [one for one in cohort.labelled_parents() if one not in request.inherit]):
                raise BadRequest(
                    f"no image of --query has a label of its own, its {' and '.join(targets)} has: see --inherit {','.join(targets)}"
                )
            raise BadRequest("no image of --query has a positive label that counts; see --labels, --label-sources, --label-where")
        missing = sorted(set(labels) - set(named.values()))
        if missing:
            raise BadRequest(f"--labels: no image of the cohort shows {', '.join(missing)}; it shows {', '.join(found) or 'no label'}")
        exclusive = request.exclusive == "yes"
        if request.exclusive == "auto" and request.task == "classification" and len(labels) > 1:
            exclusive = cohort.one_label_each({label: name for label, name in named.items() if name in labels})
        spelled = {*labels, *request.classes, *(label for label, name in named.items() if name in labels)}
        return Truth(labels, request.classes, exclusive, request.unlabelled), sorted(spelled)

    def _choose(self, cohort: Cohort, recipe: Recipe, truth: Truth, spelled: Sequence[str]) -> tuple[bool, tuple[int, ...]]:
        """``_samples``: every candidate sample, staged. Returns whether labels exclude each other, and the shape that all samples share."""
        request = self.request
        what = json.dumps({"recipe": recipe.to_dict(), "crop": request.crop, "volume": request.volume}, sort_keys=True)
        choose = Chooser(recipe, truth, request.task == "segmentation", request.crop, request.stride, Ids(None).digest("feed_recipe", what))
        frame = cohort.images(spelled).mapInArrow(lambda batches: choose(batches), STAGED)
        frame.createOrReplaceTempView("_choosing")
        cohort.staged("samples", "SELECT * FROM _choosing")
        sizes = self._sql(
            "SELECT rows, cols, max(overlap) AS overlap, count(*) AS n FROM _samples GROUP BY rows, cols ORDER BY n DESC, rows, cols LIMIT 6"
        ).collect()
        if not sizes:
            raise BadRequest("no sample is left: no image has a known truth (see --unlabelled negative)")
        if len(sizes) > 1:
            listed = ", ".join(f"{row.rows} x {row.cols} ({row.n})" for row in sizes[:5])
            raise BadRequest(f"images differ in size: {listed}{', ...' if len(sizes) > 5 else ''}; give --crop or --size")
        (one,) = sizes
        space, channels = (one.rows, one.cols), len(recipe.channel_names)
        shape = (recipe.depth, *space, channels) if recipe.kind == "volume" else (*space, channels)
        if one.overlap and request.exclusive == "yes":
            raise BadRequest("--exclusive yes: labels overlap in some samples; use --exclusive no, or map them apart")
        if request.task == "classification" or request.exclusive != "auto":
            return truth.exclusive, shape
        return len(truth.labels) > 1 and not one.overlap, shape

    def _passes_through(self, recipe: Recipe, facts: Sequence[Mapping[str, Any]]) -> bool:
        """Whether stored JPEGs are the samples as they are."""
        whole = not self.request.crop and recipe.size is None and recipe.spacing_mm is None and recipe.kind == "image"
        return whole and recipe.mode == "stored" and recipe.channels == 3 and all(fact["codec"] == "jpeg" for fact in facts)

    def _select(self) -> None:
        """``_selected``: samples that stay, negatives thinned, each with its weight."""
        request = self.request
        kept = "SELECT * FROM _samples"
        if request.negatives_per_positive is not None:
            thinned = ", ".join(f"'{part}'" for part in request.thinned)
            positives = self._sql(
                f"SELECT part, count(*) AS n FROM _samples WHERE positive AND part IN ({thinned}) GROUP BY part"
            ).collect()
            most = [(row.part, int(request.negatives_per_positive * row.n)) for row in positives]
            self.lake.spark.createDataFrame(most, "part string, most long").createOrReplaceTempView("_most")
            ranked = (
                f"SELECT row_id, part, row_number() OVER (PARTITION BY part ORDER BY {self._hash('negatives')}, row_id) AS place"
                f" FROM _samples WHERE NOT positive AND part IN ({thinned})"
            )
            kept = (
                f"SELECT s.* FROM _samples s LEFT ANTI JOIN (SELECT r.row_id FROM ({ranked}) r LEFT JOIN _most m ON m.part = r.part"
                " WHERE r.place > coalesce(m.most, 0)) gone ON gone.row_id = s.row_id"
            )
        self._sql(kept).createOrReplaceTempView("_kept")
        self._sql(f"SELECT k.*, CAST(coalesce(k.weight, {self._balance()}, 1) AS FLOAT) AS of_sample FROM _kept k").createOrReplaceTempView(
            "_selected"
        )

    def _balance(self) -> str:
        """SQL for the weight of a sample in `FIT`: rows / (kinds * rows of its kind), where kinds are the sets of labels that it shows."""
        if self.request.weights == "none":
            return "NULL"
        kind = "array_join(transform(k.target, x -> CASE WHEN x = 1 THEN '1' ELSE '0' END), '')"
        counts = self._sql(f"SELECT {kind} AS kind, count(*) AS n FROM _kept k WHERE part = '{FIT}' GROUP BY 1 ORDER BY 1").collect()
        total = sum(row.n for row in counts)
        cases = " ".join(f"WHEN '{row.kind}' THEN {total / (len(counts) * row.n)!r}" for row in counts)
        return f"CASE WHEN k.part = '{FIT}' THEN CASE {kind} {cases} END END" if counts else "NULL"

    def _hash(self, what: str) -> str:
        return f"substr(sha2(concat('{self.request.seed}:{what}:', row_id), 256), 1, 32)"

    # ---- order

    def _lay_out(self, builder: Builder, files: Sequence[str]) -> tuple[dict[str, order.Layout], int]:
        """``_ordered``: the selected samples with pool, position, row group and file. Returns parts' layouts and the input groups of a pool."""
        groups = self._sql(
            "SELECT part, home_file, home_grp, count(*) AS n FROM _selected GROUP BY part, home_file, home_grp ORDER BY part, home_file, home_grp"
        ).toArrow()
        if not groups.num_rows:
            raise BadRequest("no sample is left after thinning; see --negatives-per-positive")
        row_bytes = self._trial(builder, files)
        counts = groups.column("n").to_numpy()
        mean_group = float(counts.mean())
        runs = 1 if self.request.volume else int(max(1, min(self.request.runs, POOL_BYTES // max(1.0, row_bytes * mean_group))))
        parts = np.array(groups.column("part").to_pylist())
        pool, offset = np.empty(len(counts), np.int64), np.empty(len(counts), np.int64)
        layouts: dict[str, order.Layout] = {}
        constants: list[tuple[str, int, int, int, int]] = []
        first_file = 0
        for part in sorted(set(parts.tolist())):
            mine = parts == part
            pool[mine], starts = order.pools(counts[mine], runs, self.request.seed, part)
            offset[mine] = starts[pool[mine]]
            one = layouts[part] = order.layout(int(counts[mine].sum()), row_bytes, self.request.world)
            constants.append((part, one.small, one.larger, one.per_file, first_file))
            first_file += one.files
        dealt = groups.drop_columns(["n"]).append_column("pool", pa.array(pool)).append_column("first", pa.array(offset))
        with self._batches_of(NARROW_ROWS):  # each batch becomes a partition
            self.lake.spark.createDataFrame(dealt).createOrReplaceTempView("_dealt")
        self.lake.spark.createDataFrame(
            constants, "part string, small long, larger long, per_file long, first_file long"
        ).createOrReplaceTempView("_layouts")
        placed = (
            "SELECT s.*, d.pool, d.first + row_number() OVER (PARTITION BY s.part, d.pool"
            f" ORDER BY {self._hash('order')}, s.row_id) - 1 AS position FROM _selected s JOIN _dealt d"
            " ON d.part = s.part AND d.home_file = s.home_file AND d.home_grp = s.home_grp"
        )
        grouped = (
            "SELECT p.*, CASE WHEN p.position < l.larger * (l.small + 1) THEN p.position DIV (l.small + 1)"
            " ELSE l.larger + (p.position - l.larger * (l.small + 1)) DIV l.small END AS out_grp, l.per_file, l.first_file"
            f" FROM ({placed}) p JOIN _layouts l ON l.part = p.part"
        )
        self._sql(
            f"SELECT g.*, CAST(g.first_file + g.out_grp DIV g.per_file AS INT) AS out_file FROM ({grouped}) g"
        ).createOrReplaceTempView("_ordered")
        self._files = first_file
        return layouts, runs

    def _trial(self, builder: Builder, files: Sequence[str]) -> float:
        """Bytes of a row, from a few samples that are made here once: the same few for the same inputs."""
        rows = self._sql(
            f"SELECT row_id, row0, col0, planes, mask FROM _selected ORDER BY {self._hash('trial')}, row_id LIMIT {TRIAL}"
        ).collect()
        payload = Payload(self.lake.filesystem, files)
        sizes = [len(builder.build(payload, [row.asDict()])[0][0]) + len(row.mask) for row in rows]
        return sum(sizes) / len(sizes)

    # ---- write

    def _folder(self) -> str:
        return f"{pins.FEEDS}/{self.request.name}"

    def _ensure_table(self) -> None:
        table = self._folder()
        if not self.lake.exists(table):
            first_commit(self.lake, table, TABLE)

    def _write(self, files: Sequence[str], builder: Builder, shape: tuple[int, ...]) -> list[Written]:
        write = Writer(self.lake.uri, self._folder(), tuple(files), builder, shape)
        columns = "row_id, image_id, parent_id, dataset, subject_key, part, row0, col0, k, of_sample AS weight, target, planes, mask"
        frame = self._sql(f"SELECT {columns}, pool, position, out_grp, out_file FROM _ordered")
        tasks = max(1, min(self._files, 4096))
        said = (
            frame.repartition(tasks, "out_file")
            .sortWithinPartitions("out_file", "position")
            .mapInArrow(lambda batches: write(batches), "said string")
            .collect()
        )
        return sorted((Written.parse(row.said) for row in said), key=lambda one: one.number)

    # ---- card

    def _counts(self, truth: Truth) -> dict[str, PartCounts]:
        wanted = [
            "count(*) AS n",
            "count(DISTINCT image_id) AS images",
            "count(DISTINCT subject_key) AS subjects",
            "sum(known_px) AS known",
        ]
        for place in range(len(truth.labels)):
            wanted.append(f"count_if(target[{place}] = 1) AS pos{place}")
            wanted.append(f"count_if(target[{place}] = 0) AS neg{place}")
            wanted.append(f"sum(get(positive_px, {place})) AS px{place}")
        found = {}
        for row in self._sql(f"SELECT part, {', '.join(wanted)} FROM _selected GROUP BY part ORDER BY part").collect():
            by = row.asDict()

            def of(prefix: str, by: Mapping[str, Any] = by) -> dict[str, int]:
                return {label: int(by[f"{prefix}{place}"] or 0) for place, label in enumerate(truth.labels)}

            pixels = of("px") if self.request.task == "segmentation" else {}
            found[row.part] = PartCounts(row.n, row.images, row.subjects, of("pos"), of("neg"), pixels, int(row.known or 0))
        return found

    def _card(
        self,
        cohort: Cohort,
        recipe: Recipe,
        truth: Truth,
        exclusive: bool,
        shape: tuple[int, ...],
        codec: str,
        facts: Sequence[Mapping[str, Any]],
        written: Sequence[Written],
        runs: int,
    ) -> Card:
        request = self.request
        moments = Moments()
        fitted = any(one.part == FIT for one in written)
        for one in written:
            if one.part == FIT or not fitted:
                moments.join(one.moments)
        mean, std = moments.mean_std()
        return Card(
            name=request.name,
            task=request.task,
            labels=truth.labels,
            exclusive=exclusive,
            image=image_spec(recipe, shape, codec, facts),
            query=request.query,
            tables=dict(sorted(self.tables.items())),
            split=cohort.split,
            within_subject=cohort.within_subject,
            seed=request.seed,
            options=request.options(),
            recipe=recipe.to_dict(),
            parts=self._counts(truth),
            mean=mean,
            std=std,
            files=tuple(PartFile(one.data.path, one.part, one.data.size, one.sha256, one.row_groups) for one in written),
            runs=runs,
            world=request.world,
            doubles=cohort.doubles,
            medspark=__version__,
        )
