"""The demo's steps, each with a number, a line and its seconds."""

from __future__ import annotations

import logging
import os
import shlex
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.text import Text

from medspark import config, deid
from medspark.demo import pictures, questions, samples, training
from medspark.keys import Ids
from medspark.lake import card, ingest, logs, session, sql
from medspark.lake.open import open_lake
from medspark.lake.store import Lake

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

STEPS, TRAINING_STEPS = 8, 3
LOG = "demo.log"


class Steps:
    """Numbered lines on the console: what is being done now, then what came of it and the seconds it took."""

    def __init__(self, console: Console, count: int) -> None:
        self.console, self.count, self.number, self.started = console, count, 0, time.monotonic()

    @contextmanager
    def step(self, title: str) -> Iterator[list[str]]:
        """Prints the title, and on leaving what the caller appended to the list it got."""
        self.number += 1
        self.console.print(Text.assemble((f"[{self.number}/{self.count}] ", "bold cyan"), (title, "bold")))
        begun, said = time.monotonic(), list[str]()
        yield said
        for line in said:
            self.console.print(Text(f"      {line}"), soft_wrap=True)
        self.console.print(Text(f"      {time.monotonic() - begun:.1f} s", style="dim"))

    def progress(self, text: str) -> None:
        """A line of the engine's own progress."""
        self.console.print(Text(f"      {time.monotonic() - self.started:6.1f} s  {text}", style="dim"), soft_wrap=True)


def run(
    out: str, data: str | None = None, spark: SparkSession | None = None, console: Console | None = None, train: bool = True
) -> int:
    """Ingests, asks, draws, trains and says what to type next; returns the exit status.

    out : str            folder; the lake is ``out/lake``, pictures are in ``out/pictures``. A second run finds nothing new and says so
    data : str | None    a folder with the demo's real files, "embedded", or None (../shared/data beside the project, else embedded)
    spark                an open session to use; it is left open
    train                whether a network is trained on what was ingested
    """
    folder = Path(out)
    folder.mkdir(parents=True, exist_ok=True)
    with _log_to(folder / LOG):
        return _run(folder, data, spark, console or Console(highlight=False), train)


def _run(folder: Path, data: str | None, spark: SparkSession | None, console: Console, train: bool) -> int:
    steps = Steps(console, STEPS + (TRAINING_STEPS if train else 0))
    lake_path = folder / "lake"
    with steps.step("Inputs") as said:
        inputs = samples.choose(data or samples.default_data(), folder / "input")
        settings = config.Config()
        ids = Ids(deid.load_key(settings.deid.key_path(), create=True))
        card.check_key(str(lake_path), ids, create=True)
        said.append(inputs.about)
    with steps.step("Spark") as said:
        opened = spark is None
        if spark is None:
            with _noise_to(folder / LOG):
                spark = session.build("medspark demo", settings.spark)
        said.append(f"Spark {spark.version}, {session.cores(spark)} cores; its own messages go to {folder / LOG}")
    try:
        _ingest(steps, Lake(spark, str(lake_path)), ids, settings, inputs)
        with steps.step("Six questions, in SQL"):
            sql.register(spark, str(lake_path))
            for number, question in enumerate(questions.QUESTIONS, start=1):
                questions.show(console, number, questions.ask(spark, question))
            (folder / "questions.sql").write_text(questions.script())
            console.print()
        with steps.step("Pictures, drawn from the tables") as said:
            said += [f"{path}  {about}" for path, about in pictures.draw(open_lake(str(lake_path)), folder / "pictures")]
    finally:
        if opened:
            spark.stop()
    try:
        if train:
            _train(steps, lake_path, folder)
    except training.Failed as failed:
        console.print(Text(f"      {failed}", style="bold red"), soft_wrap=True)
        return 1
    _next(console, lake_path, folder)
    console.print(Text(f"\nDone in {time.monotonic() - steps.started:.0f} s.", style="bold green"))
    return 0


def _ingest(steps: Steps, lake: Lake, ids: Ids, settings: config.Config, inputs: samples.Inputs) -> None:
    from medspark.labels.kind import labels_kind
    from medspark.photos.kind import photos_kind
    from medspark.series.kind import series_kind
    from medspark.slides.kind import slides_kind

    annotations = labels_kind(pairs=inputs.pairs, classes=inputs.classes)
    jobs: list[tuple[str, Any, samples.Runs]] = [
        ("Slides into tiles (tile_slides)", slides_kind(), inputs.slides),
        ("CT, MR and X-rays into slices (explode_series)", series_kind(), inputs.series),
        ("Photos (ingest_photos)", photos_kind(), inputs.photos),
        ("Annotations of all of them into masks per image (import_labels)", annotations, (("annotations", inputs.labels),)),
    ]
    for title, kind, listed in jobs:
        with steps.step(title) as said:
            for dataset, paths in listed:
                request = ingest.Request(tuple(str(path) for path in paths), dataset)
                begun = time.monotonic()
                told = lambda text, dataset=dataset: steps.progress(f"{dataset}: {text}")
                summary = ingest.Ingest(lake, kind, ids, settings, request, progress=told).run()
                summary.seconds = time.monotonic() - begun
                ingest.record_kpi(lake, summary)
                said.append(f"{dataset}: {_said(summary)}")


def _train(steps: Steps, lake: Path, folder: Path) -> None:
    """From SQL to a feed, to a network on two ranks, to rows of predictions. The demo's own Spark session has ended: each is a job of its own."""
    subject = training.choose(open_lake(str(lake)))
    if subject is None:
        return
    jobs = training.Jobs(lake, folder / LOG, lambda text: steps.console.print(Text(f"      $ {text}", style="green"), soft_wrap=True))
    with steps.step(f"A feed by SQL: {subject.label} on {subject.modality} slices, with their neighbours as channels (build_feed)") as said:
        fed = training.feed(jobs, subject)
        counts = ", ".join(f"{name} {part['rows']}" for name, part in sorted(fed["parts"].items()))
        said.append(f"crops: {counts}; one series, so the parts share a subject: WITHIN-SUBJECT. `describe-feed` shows it")
    before = training.done_before(folder, fed["version"])
    with steps.step(f"A small U-Net on {training.RANKS} ranks, Horovod on Spark (train_segmenter)") as said:
        trained = before or training.train(jobs)
        said.append(("trained by an earlier demo: " if before else "") + training.told(trained))
        picture = training.keep_progress(lake, trained["run_id"], folder / "pictures")
        if picture:
            said.append(f"{picture}  the same unseen crops after every epoch: image, truth, prediction")
    with steps.step("Its predictions as rows beside the truth, and its scores (predict, evaluate)") as said:
        if not before:
            model = trained["registered"] or trained["model"]
            training.predict(jobs, model)
            training.evaluate(jobs, model)
            training.keep(folder, trained)
        said += training.compared(lake, subject)


def _said(summary: ingest.Summary) -> str:
    """A job's summary for people."""
    tables = [
        f"{count:,} {table}" for table, count in sorted(summary.written.items()) if count and table not in ("sources", "kpi", "rejected")
    ]
    parts = [", ".join(tables) + " written"] if tables else []
    if summary.rejected:
        parts.append(f"{summary.rejected} rejected (see question {len(questions.QUESTIONS)})")
    if summary.skipped:
        parts.append(f"{summary.skipped} files skipped: " + ("in the lake already" if not tables else "in the lake already, or no images"))
    return "; ".join(parts) or "nothing to do"


def _next(console: Console, lake: Path, folder: Path) -> None:
    """Commands that work as they stand here."""
    at, program = shlex.quote(str(lake)), Path(sys.executable)
    inside = Path(os.path.abspath(program)).is_relative_to(samples.ROOT)
    programs = program.parent.relative_to(samples.ROOT) if inside else program.parent
    query = "SELECT label, count(DISTINCT image_id) AS images, sum(area_px) AS px FROM labels GROUP BY label"
    own = [
        (job, f"/path/to/{what}")
        for job, what in (
            ("tile_slides", "slides"),
            ("explode_series", "dicom"),
            ("ingest_photos", "photos"),
            ("import_labels", "annotations"),
        )
    ]
    console.print()
    console.print(Text("What to type next (in the project's folder)", style="bold"))
    lines = [
        ("look at the lake", f"{programs}/python -m medspark status --lake {at}"),
        ("ask it something", f'{programs}/python -m medspark sql --lake {at} "{query}"'),
        ("the runs, their curves, pictures and models", f"{programs}/python -m medspark mlflow --lake {at}"),
        ("the six questions' SQL", f"less {shlex.quote(str(folder / 'questions.sql'))}"),
        *((f"your own {path.rsplit('/', 1)[1]}", f"{programs}/spark-submit jobs/{job}.py --lake {at} --input {path}") for job, path in own),
    ]
    for what, command in lines:
        console.print(Text.assemble(("  # " + what + "\n", "dim"), "  " + command), soft_wrap=True)


@contextmanager
def _log_to(path: Path) -> Iterator[None]:
    """medspark's own log lines (warnings and more) into a file; the console belongs to the steps."""
    handler = logging.FileHandler(path, mode="w", encoding="utf-8")
    handler.setFormatter(logs.JsonLines("demo"))
    logger = logging.getLogger("medspark")
    before = logger.handlers[:], logger.level, logger.propagate
    logger.handlers[:] = [handler]
    logger.setLevel(logging.INFO)
    logger.propagate = False
    try:
        yield
    finally:
        logger.handlers[:], logger.level, logger.propagate = before
        handler.close()


@contextmanager
def _noise_to(path: Path) -> Iterator[None]:
    """Standard error (file descriptor 2) goes to a file: a JVM started meanwhile keeps it, and so do the workers that it starts."""
    sys.stderr.flush()
    kept = os.dup(2)
    with open(path, "ab") as stream:
        os.dup2(stream.fileno(), 2)
    try:
        yield
    finally:
        sys.stderr.flush()
        os.dup2(kept, 2)
        os.close(kept)
