"""Classes of a part of a feed: a few bytes an image and label are kept, curves and intervals come at the end."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from medspark.feed.reader import Reader
from medspark.scores import pictures
from medspark.scores.calibration import Reliability, reliability
from medspark.scores.classes import score_classes, score_label
from medspark.scores.ranking import Ranked
from medspark.scores.stream import Called, Means
from medspark.scores.threshold import present
from medspark.train.evaluation import Work


def classification(work: Work, reader: Reader) -> None:
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
