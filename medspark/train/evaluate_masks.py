"""Masks of a part of a feed, measured parent by parent (`gathered`): images, series or slides, subjects, all."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from medspark.feed.reader import Reader
from medspark.scores import pictures
from medspark.scores.calibration import Reliability, reliability
from medspark.scores.counts import Counts
from medspark.scores.lesions import Detection
from medspark.scores.stream import Means, Totals
from medspark.scores.threshold import present
from medspark.train import segments
from medspark.train.evaluation import Work
from medspark.train.gathered import Crop, Gathered

SHOWN_VALUES = 1500  # dots of a picture, a random choice of all values


def segmentation(work: Work, reader: Reader, scratch: Path) -> None:
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

    work: Work
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
        keyed = [] if self.work.request.objects is None else self.work.request.objects.of(parent_id)
        if not volumes:
            self._images(parent_id, crops, slices, keyed)
        if volumes or slices:
            self._series(parent_id, crops, volumes, keyed)

    def _numbered(self, keyed: list[dict[str, Any]], label: str, crops: Sequence[Crop], deep: bool) -> np.ndarray | None:
        return (
            self.work.request.objects.painted(keyed, label, crops, *segments.frame(crops, deep))
            if keyed and self.work.request.objects
            else None
        )

    def _images(self, parent_id: str, crops: Sequence[Crop], slices: bool, keyed: list[dict[str, Any]]) -> None:
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
                    numbered = self._numbered(keyed, label, pieces, deep=False)
                    found, more = segments.lesions(truth[number], predicted[number], known, numbered)
                    values |= more
                    self._found(subject, label, found)
                    self._show(label, values["dice"])
                self.work.say("image", image_id, label, values, 1)
                self.means.add(subject, label, values)
                self.pixels.add(subject, label, (counts.tp, counts.fp, counts.fn, counts.tn))
        if not slices and self.work.feed.card.image.mpp_um is not None:
            for label, counts in zip(labels, total, strict=True):
                self.work.say("slide", parent_id, label, {name: segments.OVERLAP[name](counts) for name in segments.POOLED}, n)

    def _series(self, parent_id: str, crops: Sequence[Crop], volumes: bool, keyed: list[dict[str, Any]]) -> None:
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
            found, more = segments.lesions(truth, predicted, known, self._numbered(keyed, label, crops, deep=True))
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
