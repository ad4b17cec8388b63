"""A model on one part of a feed: rows of ``evaluations`` per image, series or slide, subject and over all, and the pictures that belong to them.

Thresholds come with the model, which fixed them on validation; nothing is chosen here. Every row of the part is read exactly once, in any amount of data:
masks are measured parent by parent (`gathered`), classes keep a few bytes an image (`medspark.scores.stream`), and rows leave through a sink.
Intervals are over subjects; with fewer than five there are none.
"""

from __future__ import annotations

import hashlib
import json
import random
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from medspark.errors import BadRequest
from medspark.feed.card import Card, ImageSpec
from medspark.feed.open import Feed
from medspark.feed.reader import Batch, Reader
from medspark.feed.sample import Recipe
from medspark.lake.files import PRIVATE
from medspark.lake.store import Lake
from medspark.scores import pictures
from medspark.scores.calibration import Reliability, reliability
from medspark.scores.classes import score_classes, score_label
from medspark.scores.counts import Counts
from medspark.scores.intervals import REPLICATES, Estimate
from medspark.scores.lesions import Detection
from medspark.scores.ranking import Ranked
from medspark.scores.stream import Called, Means, Totals
from medspark.scores.threshold import present
from medspark.track.tracker import Tracker
from medspark.train import segments
from medspark.train.examples import Examples
from medspark.train.gathered import Crop, Gathered, Place, places

SHOWN_VALUES = 1500  # dots of a picture, a random choice of all values
ROWS_AT_ONCE = 20_000  # evaluation rows handed to the sink together


class Predicts(Protocol):
    """What is asked of a model (`predictor.Predictor`)."""

    @property
    def task(self) -> str: ...
    @property
    def labels(self) -> tuple[str, ...]: ...
    @property
    def exclusive(self) -> bool: ...
    @property
    def image(self) -> ImageSpec: ...
    @property
    def recipe(self) -> Mapping[str, Any]: ...
    @property
    def thresholds(self) -> Mapping[str, float]: ...
    def probabilities(self, images: np.ndarray) -> np.ndarray: ...


@dataclass(frozen=True)
class Request:
    """spacing_mm : series_id -> (slice, row, col) mm of its slices as they lie in the feed; series without one get no millimetres"""

    model_uri: str
    part: str
    seed: int = 0
    replicates: int = REPLICATES
    spacing_mm: Mapping[str, tuple[float, float, float]] = field(default_factory=dict)


@dataclass
class Result:
    """overall : the rows of unit ``all``; pictures : file name -> PNG; rows : how many were given to the sink"""

    overall: list[dict[str, Any]] = field(default_factory=list)
    pictures: dict[str, bytes] = field(default_factory=dict)
    rows: int = 0
    images: int = 0
    subjects: int = 0

    def said(self, within_subject: bool) -> str:
        """A table for people."""
        mark = "WITHIN-SUBJECT: training and test share subjects; do not compare with results on new subjects\n" if within_subject else ""
        lines = [
            f"{row['label'] or 'all labels':24} {row['metric']:24} {Estimate(row['value'], row['low'], row['high'], row['n']).said()}"
            for row in self.overall
        ]
        return mark + "\n".join(lines)


Sink = Callable[[list[dict[str, Any]]], None]
HEADLINE = (
    "dice",
    "series_dice",
    "hd95_mm",
    "series_hd95_mm",
    "lesion_f1_pooled",
    "auc",
    "accuracy",
    "balanced_accuracy",
    "macro_f1",
    "f1",
    "ece",
    "brier",
)
"""Measures that the summary line names; all of them are rows."""


def headline(result: Result) -> dict[str, dict[str, Any]]:
    """``metric`` or ``metric/label`` -> value, low, high, for the summary line."""
    return {
        row["metric"] + (f"/{row['label']}" if row["label"] else ""): {name: row[name] for name in ("value", "low", "high")}
        for row in result.overall
        if row["metric"] in HEADLINE and row["value"] is not None
    }


def tell(result: Result, tracker: Tracker, within_subject: bool, part: str) -> None:
    """Measures, intervals, the table and the pictures to the run that trained the model."""
    told: dict[str, float] = {}
    for row in result.overall:
        name = f"{part}/{row['metric']}" + (f"/{row['label']}" if row["label"] else "")
        for suffix, key in (("", "value"), ("_low", "low"), ("_high", "high")):
            if row[key] is not None:
                told[name + suffix] = row[key]
    tracker.metrics(told, 0)
    if within_subject:
        tracker.tags({"WITHIN-SUBJECT": "training and test share subjects"})
    tracker.text(result.said(within_subject) + "\n", f"evaluation/{part}.txt")
    plain = [{**row, "evaluated_at": row["evaluated_at"].isoformat()} for row in result.overall]
    tracker.text(json.dumps(plain, indent=1) + "\n", f"evaluation/{part}.json")
    with tempfile.TemporaryDirectory(prefix="medspark-") as place:
        for name, data in result.pictures.items():
            file = Path(place) / f"{part}-{name}"
            file.write_bytes(data)
            tracker.artifact(file, "pictures/evaluation")


def keep_pictures(lake: Lake, run_id: str, result: Result) -> str:
    """The pictures beside the lake's runs; returns their folder, relative to the lake."""
    folder = f"{PRIVATE}/runs/evaluate-{run_id}"
    lake.filesystem.create_dir(lake.folder(folder), recursive=True)
    for name, data in result.pictures.items():
        with lake.filesystem.open_output_stream(lake.folder(folder, name)) as stream:
            stream.write(data)
    return folder


def spacing_of_series(lake: Lake, card: Card) -> dict[str, tuple[float, float, float]]:
    """series_id -> (slice, row, col) mm of its slices as they lie in the feed; series whose spacing is not known are left out."""
    if not lake.exists("series") or card.image.kind == "volume":  # a volume's planes may be chosen ones: the card knows their distance
        return {}
    recipe = Recipe.parse(card.recipe)
    found = {}
    for row in lake.read("series", ["series_id", "rows", "cols", "pixel_spacing_mm", "slice_spacing_mm"]).to_pylist():
        pixel_mm = row["pixel_spacing_mm"]
        if pixel_mm is None:
            continue
        rows, cols = recipe.sized(row["rows"], row["cols"], pixel_mm)
        slice_mm = row["slice_spacing_mm"] if row["slice_spacing_mm"] else float("nan")
        found[row["series_id"]] = (slice_mm, pixel_mm[0] * row["rows"] / rows, pixel_mm[1] * row["cols"] / cols)
    return found


def check(card: Card, model: Predicts) -> None:
    """Raises `BadRequest` where the model was not made for such a feed."""
    for name, of_feed, of_model in (
        ("task", card.task, model.task),
        ("labels", card.labels, tuple(model.labels)),
        ("exclusive", card.exclusive, model.exclusive),
        ("channels", card.image.channels, model.image.channels),
        ("recipe", dict(card.recipe), dict(model.recipe)),
    ):
        if of_feed != of_model:
            raise BadRequest(
                f"feed {card.name} has {name} {of_feed}, the model was trained with {of_model}; evaluate it on a feed built alike"
            )


def evaluate(feed: Feed, reader: Reader, model: Predicts, request: Request, sink: Sink, scratch: Path) -> Result:
    """Evaluates ``model`` on every row of ``reader`` (one rank of one).

    sink : takes rows of ``evaluations`` (without run and batch) in pieces;  scratch : an empty local folder
    """
    check(feed.card, model)
    work = _Work(feed, model, request, sink)
    if feed.card.task == "segmentation":
        _segmentation(work, reader, scratch)
    else:
        _classification(work, reader)
    work.result.pictures |= work.examples.sheets(work.title)
    work.flush()
    return work.result


@dataclass
class _Work:
    """What both tasks share: rows on their way out."""

    feed: Feed
    model: Predicts
    request: Request
    sink: Sink
    result: Result = field(default_factory=Result)
    now: datetime = field(default_factory=lambda: datetime.now(UTC))
    _rows: list[dict[str, Any]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.examples = Examples(self.feed.card, self.request.seed)

    @property
    def title(self) -> str:
        return f"{self.feed.name}@{self.feed.version}, {self.request.part}: {self.result.images} images of {self.result.subjects} subjects"

    @property
    def thresholds(self) -> list[float]:
        return [self.model.thresholds.get(label, 0.5) for label in self.model.labels]

    def row(self, unit: str, unit_id: str | None, label: str | None, metric: str, estimate: Estimate) -> dict[str, Any]:
        where = (self.request.model_uri, self.feed.name, self.feed.version, self.request.part, unit, unit_id, label, metric)
        return {
            "evaluation_id": hashlib.sha256("\0".join(map(str, where)).encode()).hexdigest()[:32],
            "model_uri": self.request.model_uri,
            "feed": self.feed.name,
            "feed_version": self.feed.version,
            "part": self.request.part,
            "unit": unit,
            "unit_id": unit_id,
            "label": label,
            "metric": metric,
            "value": estimate.value,
            "low": estimate.low,
            "high": estimate.high,
            "n": estimate.n,
            "within_subject": self.feed.card.within_subject,
            "evaluated_at": self.now,
        }

    def say(self, unit: str, unit_id: str, label: str, values: Mapping[str, float | None], n: int) -> None:
        self._rows += [self.row(unit, unit_id, label, metric, Estimate(value, None, None, n)) for metric, value in values.items()]
        if len(self._rows) >= ROWS_AT_ONCE:
            self.flush()

    def over_all(self, label: str | None, metric: str, estimate: Estimate) -> None:
        row = self.row("all", None, label, metric, estimate)
        self._rows.append(row)
        self.result.overall.append(row)

    def flush(self) -> None:
        if self._rows:
            self.sink(self._rows)
            self.result.rows += len(self._rows)
            self._rows = []

    def batches(self, reader: Reader) -> Iterator[tuple[list[Place], Batch, np.ndarray]]:
        """(places, batch, probabilities); raises where the reader's order is not the feed's."""
        narrow = places(self.feed, self.request.part)
        for batch in reader.once():
            here = list(islice(narrow, len(batch)))
            if tuple(place.row_id for place in here) != batch.row_ids:
                raise RuntimeError(f"feed {self.feed.name}: the reader does not give the rows of part {self.request.part} in their order")
            yield here, batch, self.model.probabilities(batch.images)
        if next(narrow, None) is not None:
            raise RuntimeError(f"feed {self.feed.name}: the reader ended before part {self.request.part} did")


# ---- masks


def _segmentation(work: _Work, reader: Reader, scratch: Path) -> None:
    labels = work.model.labels
    calibrated = Totals()
    gathered = Gathered(scratch, work.feed.card.parts[work.request.part].rows)
    for here, batch, probabilities in work.batches(reader):
        if batch.masks is None or batch.known is None:
            raise RuntimeError("a feed of masks gave a batch without masks")
        masks, known = np.moveaxis(batch.masks, -1, 1).astype(bool), batch.known[..., 0].astype(bool)
        last = present(probabilities, work.thresholds, work.model.exclusive, background=True)
        work.examples.add(batch, probabilities, last)
        decided = np.moveaxis(last, -1, 1)
        for at, place in enumerate(here):
            gathered.add(place, masks[at], decided[at], known[at])
            for number, label in enumerate(labels):
                bins = reliability(masks[at, number][known[at]], probabilities[at, ..., number][known[at]])
                calibrated.add(place.subject_key, label, bins.sums())
    segmented = _Segmented(work)
    for parent_id, crops in gathered.parents():
        segmented.parent(parent_id, crops)
    segmented.finish(calibrated)


@dataclass
class _Segmented:
    """Measures of masks, parent by parent."""

    work: _Work
    means: Means = field(default_factory=Means)
    pixels: Totals = field(default_factory=Totals)
    lesions: Totals = field(default_factory=Totals)
    shown: dict[str, list[float]] = field(default_factory=dict)
    _seen: dict[str, int] = field(default_factory=dict)
    _random: random.Random = field(default_factory=lambda: random.Random(0))
    _subjects: set[str] = field(default_factory=set)

    def parent(self, parent_id: str, crops: Sequence[Crop]) -> None:
        volumes = len(crops[0].space) == 3
        slices = not volumes and crops[0].place.k >= 0
        self._subjects.update(crop.place.subject_key for crop in crops)
        self.work.result.images += len({crop.place.image_id for crop in crops})
        self.work.result.subjects = len(self._subjects)
        if not volumes:
            self._images(parent_id, crops, slices)
        if volumes or slices:
            self._series(parent_id, crops, volumes)

    def _images(self, parent_id: str, crops: Sequence[Crop], slices: bool) -> None:
        labels = self.work.model.labels
        total = [Counts() for _ in labels]
        n = 0
        for image_id, pieces in segments.images(crops):
            truth, predicted, known = segments.pasted(pieces, len(labels))
            subject, spacing = pieces[0].place.subject_key, self._spacing(parent_id)
            n += 1
            for number, label in enumerate(labels):
                counts, values = segments.overlap(truth[number], predicted[number], known)
                total[number] += counts
                if spacing is not None:
                    values["hd95_mm"] = segments.distance(truth[number], predicted[number], known, spacing[1:])
                if not slices:  # objects of slices are parts of objects of their series
                    found, more = segments.lesions(truth[number], predicted[number], known)
                    values |= more
                    self._found(subject, label, found)
                    self._show(label, values["dice"])
                self.work.say("image", image_id, label, values, 1)
                self.means.add(subject, label, values)
                self.pixels.add(subject, label, (counts.tp, counts.fp, counts.fn, counts.tn))
        if not slices and self.work.feed.card.image.mpp_um is not None:
            for label, counts in zip(labels, total, strict=True):
                self.work.say("slide", parent_id, label, {name: segments.OVERLAP[name](counts) for name in segments.POOLED}, n)

    def _series(self, parent_id: str, crops: Sequence[Crop], volumes: bool) -> None:
        labels = self.work.model.labels
        subject, spacing = crops[0].place.subject_key, self._spacing(parent_id)
        for number, label in enumerate(labels):
            if volumes:
                whole = segments.pasted(crops, len(labels))
                truth, predicted, known = whole[0][number], whole[1][number], whole[2]
            else:
                truth, predicted, known = segments.stacked(crops, number, len(labels))
            counts, values = segments.overlap(truth, predicted, known)
            if spacing is not None and np.isfinite(spacing).all():
                values["hd95_mm"] = segments.distance(truth, predicted, known, spacing)
            found, more = segments.lesions(truth, predicted, known)
            values |= more
            self._found(subject, label, found)
            self._show(label, values["dice"])
            self.work.say("series", parent_id, label, values, len({crop.place.k for crop in crops}))
            self.means.add(subject, label, {f"series_{name}": value for name, value in values.items()})
            if volumes:
                self.pixels.add(subject, label, (counts.tp, counts.fp, counts.fn, counts.tn))

    def _spacing(self, parent_id: str) -> tuple[float, float, float] | None:
        """(slice, row, col) mm of a parent, from the card or else from its series; None where it has none, slice NaN where that alone is not known."""
        of_card = self.work.feed.card.image.spacing_mm
        found = self.work.request.spacing_mm.get(parent_id)
        if of_card is not None and len(of_card) == 3:
            return of_card[0], of_card[1], of_card[2]
        if of_card is not None:
            return (found[0] if found else float("nan")), of_card[0], of_card[1]
        return found

    def _found(self, subject: str, label: str, found: Detection) -> None:
        self.lesions.add(subject, label, (found.found, found.missed, found.false))

    def _show(self, label: str, value: float | None) -> None:
        """Keeps a random choice of the values for the picture."""
        if value is None:
            return
        kept = self.shown.setdefault(label, [])
        seen = self._seen[label] = self._seen.get(label, 0) + 1
        if len(kept) < SHOWN_VALUES:
            kept.append(value)
        elif (place := self._random.randrange(seen)) < SHOWN_VALUES:
            kept[place] = value

    def finish(self, calibrated: Totals) -> None:
        """calibrated : sums of `Reliability` over the pixels of each subject"""
        work, request = self.work, self.work.request

        def over_all(label: str, metric: str, totals: Totals, of: Callable[[np.ndarray], float | None]) -> None:
            work.over_all(label, metric, totals.over_all(label, metric, of, request.seed, request.replicates))

        for label, metric in self.means.names():
            for subject, (value, n) in self.means.of_subjects(label, metric).items():
                work.say("subject", subject, label, {metric: value}, n)
            work.over_all(label, metric, self.means.over_all(label, metric, request.seed, request.replicates))
        for label in work.model.labels:
            for subject, sums in self.pixels.of_subjects(label).items():
                counts = Counts.of(sums)
                work.say("subject", subject, label, {f"{name}_pooled": segments.OVERLAP[name](counts) for name in segments.POOLED}, 1)
            for name in segments.POOLED:
                over_all(label, f"{name}_pooled", self.pixels, partial(_of_pixels, name))
            for name in ("sensitivity", "precision", "f1"):
                over_all(label, f"lesion_{name}_pooled", self.lesions, partial(_of_lesions, name))
            for name in ("ece", "brier"):
                over_all(label, name, calibrated, partial(_of_bins, name))
        within = work.feed.card.within_subject
        bins = {
            label: Reliability.of(sum(calibrated.of_subjects(label).values(), np.zeros(len(Reliability().sums()))))
            for label in work.model.labels
        }
        work.result.pictures["reliability.png"] = pictures.reliability_diagram(bins, f"Pixels of {work.title}", within)
        if self.shown:
            work.result.pictures["dice.png"] = pictures.values_by_subject(self.shown, "Dice", work.title, within)


def _of_pixels(name: str, sums: np.ndarray) -> float | None:
    return segments.OVERLAP[name](Counts.of(sums))


def _of_lesions(name: str, sums: np.ndarray) -> float | None:
    found: float | None = getattr(Detection.of(sums), name)
    return found


def _of_bins(name: str, sums: np.ndarray) -> float | None:
    found: float | None = getattr(Reliability.of(sums), name)
    return found


# ---- classes


def _classification(work: _Work, reader: Reader) -> None:
    model, request = work.model, work.request
    labels = model.labels
    called = {label: Called() for label in labels}
    exact = np.zeros((len(labels), len(labels)))
    means, classes = Means(), _Classes()
    one_row_each = work.feed.card.parts[request.part].images == work.feed.card.parts[request.part].rows
    for here, batch, probabilities in work.batches(reader):
        decided = present(probabilities, work.thresholds, model.exclusive, background=False)
        work.examples.add(batch, probabilities, decided)
        for at, place in enumerate(here):
            subject = means.subjects.number(place.subject_key)
            truth = batch.targets[at]
            for number, label in enumerate(labels):
                if np.isnan(truth[number]):
                    continue
                probability, positive = float(probabilities[at, number]), bool(truth[number])
                called[label].add(positive, probability, subject)
                right = float(bool(decided[at, number]) == positive)
                work.say(
                    "image", place.image_id if one_row_each else place.row_id, label, {"probability": probability, "correct": right}, 1
                )
                means.add(place.subject_key, label, {"accuracy": right})
            if model.exclusive and len(labels) > 1 and not np.isnan(truth).any() and truth.sum() == 1:
                classes.add(int(truth.argmax()), int(probabilities[at].argmax()), subject)
            work.result.images += 1
    work.result.subjects = len(means.subjects.keys)
    for label in labels:
        for subject_key, (value, n) in means.of_subjects(label, "accuracy").items():
            work.say("subject", subject_key, label, {"accuracy": value}, n)
    curves: dict[str, tuple[Ranked, float]] = {}
    bins: dict[str, Reliability] = {}
    for label, threshold in zip(labels, work.thresholds, strict=True):
        kept = called[label]
        for metric, estimate in score_label(kept, threshold, request.seed, label, request.replicates).items():
            work.over_all(label, metric, estimate)
        curves[label] = Ranked.of(kept.truth, kept.probability), threshold
        bins[label] = reliability(kept.truth, kept.probability)
    within = work.feed.card.within_subject
    if len(classes):
        found, exact = score_classes(*classes.arrays(), labels, request.seed, request.replicates)
        for metric, estimate in found.items():
            work.over_all(None, metric, estimate)
        work.result.pictures["confusion.png"] = pictures.confusion_picture(exact, labels, work.title, within)
    elif len(labels) == 1:
        truth, yes = called[labels[0]].truth, called[labels[0]].probability >= work.thresholds[0]
        exact = np.array([[np.sum(~truth & ~yes), np.sum(~truth & yes)], [np.sum(truth & ~yes), np.sum(truth & yes)]], float)
        names = (f"no {labels[0]}", labels[0])
        work.result.pictures["confusion.png"] = pictures.confusion_picture(exact, names, work.title, within)
    work.result.pictures["roc.png"] = pictures.roc_and_pr(curves, work.title, within)
    work.result.pictures["reliability.png"] = pictures.reliability_diagram(bins, work.title, within)


@dataclass
class _Classes:
    """Truth and most probable class of every image."""

    truth: list[int] = field(default_factory=list)
    predicted: list[int] = field(default_factory=list)
    subject: list[int] = field(default_factory=list)

    def add(self, truth: int, predicted: int, subject: int) -> None:
        self.truth.append(truth)
        self.predicted.append(predicted)
        self.subject.append(subject)

    def __len__(self) -> int:
        return len(self.truth)

    def arrays(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        return np.array(self.truth), np.array(self.predicted), np.array(self.subject)
