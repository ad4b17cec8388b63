"""Evaluations of phantom feeds whose truth is known, by rules that stand for networks: what is said must follow from them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import ndimage

from medspark.errors import BadRequest
from medspark.feed.card import ImageSpec
from medspark.feed.open import Feed, open_feed
from medspark.feed.reader import Batch
from medspark.scores import counts as measure
from medspark.scores.surface import hausdorff_mm
from medspark.tables.rows import Rows
from medspark.track.tracker import Remembered
from medspark.train import evaluate, evaluate_said
from medspark.train.examples import KEPT, Examples, goodness
from tests.phantoms.feeds import CONTRAST, Made, write_feed

SPACING_MM = (2.5, 0.7, 0.7)


@dataclass(frozen=True)
class Bright:
    """Calls every pixel by its brightness; an image by its brightest patch."""

    image: ImageSpec
    task: str = "segmentation"
    labels: tuple[str, ...] = ("disc",)
    exclusive: bool = False
    recipe: Mapping[str, Any] = field(default_factory=dict)
    thresholds: Mapping[str, float] = field(default_factory=lambda: {"disc": 0.5})

    def probabilities(self, images: np.ndarray) -> np.ndarray:
        ground = 120 if images.dtype == np.uint8 else 40
        smooth = ndimage.uniform_filter(images.mean(axis=-1).astype(np.float32), (0, *(3,) * (images.ndim - 2)))
        p = 1 / (1 + np.exp(-(smooth - ground - CONTRAST / 2) / 8))
        return (p if self.task == "segmentation" else p.reshape(len(p), -1).max(axis=1))[..., None].astype(np.float32)


@dataclass
class FromMemory:
    """The reader's `once` over a phantom's own samples."""

    made: Made
    part: str
    batch_size: int = 5

    def once(self) -> Iterator[Batch]:
        order = self.made.order[self.part]
        for start in range(0, len(order), self.batch_size):
            ids = order[start : start + self.batch_size]
            samples = [self.made.truth[row_id] for row_id in ids]
            masks = None if samples[0].masks is None else np.stack([sample.masks for sample in samples])
            known = None if samples[0].known is None else np.stack([sample.known for sample in samples])
            images, targets = np.stack([sample.image for sample in samples]), np.stack([sample.target for sample in samples])
            yield Batch(images, masks, known, targets, np.array([sample.weight for sample in samples], np.float32), ids)


def run(made: Made, model: Bright, scratch: Path, **more: Any) -> tuple[evaluate.Result, list[dict[str, Any]], Feed]:
    feed, rows = open_feed(made.lake, made.name), []
    request = evaluate.Request("file:/model", "test", seed=1, replicates=50, **more)
    scratch.mkdir()
    return evaluate.evaluate(feed, FromMemory(made, "test"), model, request, rows.extend, scratch), rows, feed  # type: ignore[arg-type]


def value(rows: list[dict[str, Any]], unit: str, metric: str, unit_id: str | None = None) -> float | None:
    (found,) = [row for row in rows if (row["unit"], row["metric"], row["unit_id"]) == (unit, metric, unit_id)]
    return found["value"]


def test_tiles(tmp_path: Path) -> None:
    made = write_feed(tmp_path, parts={"train": 8, "test": 26})
    model = Bright(made.card.image)
    result, rows, _ = run(made, model, tmp_path / "scratch")
    assert (result.images, result.subjects, result.rows) == (26, 7, len(rows))
    dices = {}
    for row_id in made.order["test"]:
        sample = made.truth[row_id]
        predicted = model.probabilities(sample.image[None])[0, ..., 0] >= 0.5
        counts = measure.count(sample.masks[..., 0] > 0, predicted, sample.known[..., 0] > 0)
        dices[row_id[::-1]] = measure.dice(counts)
        assert value(rows, "image", "dice", row_id[::-1]) == dices[row_id[::-1]]
        assert value(rows, "image", "false_alarm", row_id[::-1]) == measure.false_alarm(counts)
    there = [dice for dice in dices.values() if dice is not None]
    assert value(rows, "all", "dice") == pytest.approx(np.mean(there)) and np.mean(there) > 0.8
    (overall,) = [row for row in rows if row["unit"] == "all" and row["metric"] == "dice"]
    assert overall["low"] < overall["value"] < overall["high"] and overall["n"] == 7
    assert {row["unit"] for row in rows} == {"image", "slide", "subject", "all"}
    assert len({row["evaluation_id"] for row in rows}) == len(rows)
    assert set(result.pictures) == {"reliability.png", "dice.png", "worst.png", "random.png"}
    assert "hd95_mm" not in {row["metric"] for row in rows}  # tiles have no millimetres
    assert not list((tmp_path / "scratch").iterdir())
    Rows.of("evaluations", rows).to_arrow("run", "batch")


def test_slices_come_together_as_series(tmp_path: Path) -> None:
    made = write_feed(tmp_path, kind="slices", parts={"train": 8, "test": 24})
    model = Bright(made.card.image)
    order = made.order["test"]
    parents: dict[int, list[str]] = {}
    for number, row_id in enumerate(order):
        parents.setdefault(number // 4, []).append(row_id)
    _, rows, feed = run(made, model, tmp_path / "scratch")
    assert "hd95_mm" in {row["metric"] for row in rows if row["unit"] == "image"}
    assert "hd95_mm" not in {row["metric"] for row in rows if row["unit"] == "series"}  # nobody said how far slices are apart
    ids = sorted({row["unit_id"] for row in rows if row["unit"] == "series"})
    spacing = dict.fromkeys(ids, SPACING_MM)
    made_again, rows, _ = run(made, model, tmp_path / "again", spacing_mm=spacing)
    assert len(ids) == 6 and "WITHIN" not in made_again.said(feed.card.within_subject)
    distances = []
    for row_ids in parents.values():
        samples = [made.truth[row_id] for row_id in row_ids]
        known = np.stack([sample.known[..., 0] > 0 for sample in samples])
        truth = np.stack([sample.masks[..., 0] > 0 for sample in samples]) & known
        predicted = np.stack([model.probabilities(sample.image[None])[0, ..., 0] >= 0.5 for sample in samples]) & known
        distances.append(hausdorff_mm(truth, predicted, SPACING_MM))
    found = [row["value"] for row in rows if row["unit"] == "series" and row["metric"] == "hd95_mm"]
    assert sorted(found) == pytest.approx(sorted(distances))
    assert value(rows, "all", "series_hd95_mm") == pytest.approx(np.mean(distances))


def test_volumes(tmp_path: Path) -> None:
    made = write_feed(tmp_path, kind="volumes", parts={"train": 4, "test": 8})
    result, rows, _ = run(made, Bright(made.card.image), tmp_path / "scratch")
    assert {row["unit"] for row in rows} == {"series", "subject", "all"}
    assert value(rows, "all", "series_dice") > 0.8 and value(rows, "all", "series_hd95_mm") < 3
    (dice,) = [row for row in result.overall if row["metric"] == "series_dice"]
    assert (dice["low"], dice["n"]) == (None, 2) and "no interval: 2 subjects" in result.said(False)


def test_classes(tmp_path: Path) -> None:
    made = write_feed(tmp_path, task="classification", parts={"train": 8, "test": 40})
    model = Bright(made.card.image, task="classification", thresholds={"disc": 0.9})
    result, rows, _ = run(made, model, tmp_path / "scratch")
    truth = np.array([made.truth[row_id].target[0] > 0 for row_id in made.order["test"]])
    probability = model.probabilities(np.stack([made.truth[row_id].image for row_id in made.order["test"]]))[:, 0]
    assert value(rows, "all", "accuracy") == np.mean((probability >= 0.9) == truth)
    assert value(rows, "all", "auc") > 0.9
    assert sum(row["unit"] == "image" for row in rows) == 2 * 40
    assert set(result.pictures) == {"confusion.png", "roc.png", "reliability.png", "worst.png", "random.png"}


def test_marks_what_shares_subjects(tmp_path: Path) -> None:
    made = write_feed(tmp_path)
    feed = open_feed(made.lake, made.name)
    feed = replace(feed, card=replace(feed.card, within_subject=True))
    rows: list[dict[str, Any]] = []
    (tmp_path / "scratch").mkdir()
    request = evaluate.Request("m", "test", replicates=10)
    result = evaluate.evaluate(feed, FromMemory(made, "test"), Bright(made.card.image), request, rows.extend, tmp_path / "scratch")  # type: ignore[arg-type]
    assert all(row["within_subject"] for row in rows) and result.said(True).startswith("WITHIN-SUBJECT")


def test_the_worst_samples_are_the_worst(tmp_path: Path) -> None:
    made = write_feed(tmp_path, parts={"test": 40, "train": 4})
    model, kept = Bright(made.card.image), Examples(made.card)
    scores = {}
    for batch in FromMemory(made, "test").once():
        probabilities = model.probabilities(batch.images)
        kept.add(batch, probabilities, probabilities >= 0.5)
        found = [goodness(batch, place, probabilities[place], probabilities[place] >= 0.5) for place in range(len(batch))]
        scores |= {row_id: score for row_id, score in zip(batch.row_ids, found, strict=True) if score is not None}
    worst = sorted(scores, key=lambda row_id: scores[row_id])[:KEPT]
    assert {sample.row_id for _, _, sample in kept._worst} == set(worst)
    assert len({sample.row_id for sample in kept._random}) == KEPT
    assert set(kept.sheets("a phantom")) == {"worst.png", "random.png"} and not Examples(made.card).sheets("nothing")


def test_a_model_for_other_labels_is_refused(tmp_path: Path) -> None:
    made = write_feed(tmp_path)
    with pytest.raises(BadRequest, match="labels"):
        run(made, Bright(made.card.image, labels=("square",)), tmp_path / "scratch")
    with pytest.raises(BadRequest, match="recipe"):
        run(made, Bright(made.card.image, recipe={"mode": "window"}), tmp_path / "other")


def test_a_reader_that_leaves_rows_out_is_a_bug(tmp_path: Path) -> None:
    made = write_feed(tmp_path)
    short = replace(made, order={"test": made.order["test"][:-1]})
    mixed = replace(made, order={"test": made.order["test"][::-1]})
    for number, (wrong, said) in enumerate(((short, "ended before"), (mixed, "order"))):
        scratch = tmp_path / str(number)
        scratch.mkdir()
        with pytest.raises(RuntimeError, match=said):
            evaluate.evaluate(
                open_feed(made.lake, made.name),
                FromMemory(wrong, "test"),  # type: ignore[arg-type]
                Bright(made.card.image),
                evaluate.Request("m", "test"),
                lambda rows: None,
                scratch,
            )


def test_what_mlflow_hears(tmp_path: Path) -> None:
    made = write_feed(tmp_path, parts={"train": 4, "test": 24})
    result, _, _ = run(made, Bright(made.card.image), tmp_path / "scratch")
    tracker = Remembered()
    evaluate_said.tell(result, tracker, True, "test")
    (dice,) = [row for row in result.overall if row["metric"] == "dice"]
    assert tracker.curves["test/dice/disc"] == [(0, dice["value"])]
    assert tracker.curves["test/dice/disc_low"][0][1] == dice["low"] < dice["high"] == tracker.curves["test/dice/disc_high"][0][1]
    assert "WITHIN-SUBJECT" in tracker.said and ("pictures/evaluation", "test-dice.png") in tracker.files
    assert {("", "evaluation/test.txt"), ("", "evaluation/test.json")} <= set(tracker.files)
    assert evaluate_said.headline(result)["dice/disc"]["value"] == dice["value"]
