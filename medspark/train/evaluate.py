"""A model on one part of a feed: rows of ``evaluations`` per image, series or slide, subject and over all, and the pictures that belong to them.

Thresholds come with the model, which fixed them on validation; nothing is chosen here. Every row of the part is read exactly once, in any amount of data:
masks are measured parent by parent (`gathered`), classes keep a few bytes an image (`medspark.scores.stream`), and rows leave through a sink.
Intervals are over subjects; with fewer than five there are none.
"""

from __future__ import annotations

from pathlib import Path

from medspark.errors import BadRequest
from medspark.feed.card import Card
from medspark.feed.open import Feed
from medspark.feed.reader import Reader
from medspark.feed.sample import Recipe
from medspark.feed.served import Predictor
from medspark.lake.store import Lake
from medspark.train.evaluate_classes import classification
from medspark.train.evaluate_masks import segmentation
from medspark.train.evaluation import Request, Result, Sink, Work

__all__ = ["Request", "Result", "check", "evaluate", "spacing_of_series"]


def check(card: Card, model: Predictor) -> None:
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


def evaluate(feed: Feed, reader: Reader, model: Predictor, request: Request, sink: Sink, scratch: Path) -> Result:
    """Evaluates ``model`` on every row of ``reader`` (one rank of one).

    sink : takes rows of ``evaluations`` (without run and batch) in pieces;  scratch : an empty local folder
    """
    check(feed.card, model)
    work = Work(feed, model, request, sink)
    if feed.card.task == "segmentation":
        segmentation(work, reader, scratch)
    else:
        classification(work, reader)
    work.result.pictures |= work.examples.sheets(work.title)
    work.flush()
    return work.result


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
