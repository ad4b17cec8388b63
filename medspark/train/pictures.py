"""What the network makes of a few validation images after each epoch, as contact sheets, and all sheets as one animated picture.

Each sample is a row of three: the image, the image with the truth's outlines, the image with what is predicted (filled by probability, outlined
where it counts as present). Classes: the image, and a bar per label with the truth marked.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from medspark.feed.card import Card
from medspark.feed.reader import Batch
from medspark.pixels.picture import COLOURS, border, rgb

PANEL_PX = 192  # of one picture: large enough to see, small enough for a sheet of six rows on a screen
GAP_PX, TITLE_PX, FONT_PX = 6, 26, 14
GREY_SPAN = 2.5  # standard deviations about the mean that a picture of values without a window shows
FRAME_MS, LAST_MS = 500, 2500
FRAMES = 60  # of the animation; longer runs leave out epochs evenly
TILT = 0.55  # opacity of what is certain


@dataclass(frozen=True)
class Samples:
    """The images that are drawn after every epoch: the same ones, none of them trained on."""

    batch: Batch


def choose(candidates: Sequence[Batch], count: int) -> Samples | None:
    """The first ``count`` rows that show something of each label in turn, then the first of the rest; None where there are none."""
    rows = [(batch, place) for batch in candidates for place in range(len(batch)) if batch.weights[place] > 0]
    if not rows or not count:
        return None
    labels = rows[0][0].targets.shape[1]

    def shown(label: int) -> list[int]:
        return [number for number, (batch, place) in enumerate(rows) if _amount(batch, place)[label] > 0]

    queues = [shown(label) for label in range(labels)] + [[n for n, (batch, place) in enumerate(rows) if not _amount(batch, place).any()]]
    picked: list[int] = []
    while len(picked) < min(count, len(rows)):
        before = len(picked)
        for waiting in queues:
            while waiting and waiting[0] in picked:
                waiting.pop(0)
            if waiting and len(picked) < count:
                picked.append(waiting.pop(0))
        if len(picked) == before:
            break
    chosen = [rows[number] for number in sorted(picked)]

    def joined(name: str) -> Any:
        parts = [getattr(batch, name) for batch, _ in chosen]
        return None if parts[0] is None else np.stack([values[place] for values, (_, place) in zip(parts, chosen)])

    ids = tuple(batch.row_ids[place] for batch, place in chosen)
    return Samples(Batch(joined("images"), joined("masks"), joined("known"), joined("targets"), joined("weights"), ids))


def _amount(batch: Batch, place: int) -> np.ndarray:
    if batch.masks is None:
        return np.nan_to_num(batch.targets[place])
    return batch.masks[place].reshape(-1, batch.masks.shape[-1]).sum(axis=0)


def visible(image: np.ndarray, card: Card) -> np.ndarray:
    """(rows, cols, 3) uint8 of one image's feed values: colours as they are; the middle of context slices and of volumes, grey by mean and spread."""
    middle = image[image.shape[0] // 2] if card.image.kind == "volume" else image
    if card.image.kind == "image" and middle.shape[-1] == 3 and card.image.dtype == "uint8":
        return middle
    channel = middle.shape[-1] // 2
    values = middle[..., channel].astype(np.float64)
    if card.image.dtype != "uint8":
        span = GREY_SPAN * max(card.std[channel], 1e-6)
        values = (values - card.mean[channel] + span) / (2 * span) * 255.0
    return np.repeat(np.clip(values, 0, 255).astype(np.uint8)[..., None], 3, axis=-1)


def sheet(samples: Samples, probabilities: np.ndarray, card: Card, title: str) -> Any:
    """A PIL image: one row per sample. probabilities : (B, *space, L) or (B, L)"""
    from PIL import Image, ImageDraw, ImageFont

    batch = samples.batch
    columns = 3 if card.task == "segmentation" else 2
    rows = len(batch)
    across = 1 if rows <= 4 else 2  # pairs of rows beside each other keep a sheet near the shape of a screen
    down = -(-rows // across)
    wide = columns * (PANEL_PX + GAP_PX) + GAP_PX
    whole = Image.new("RGB", (across * wide, TITLE_PX + down * (PANEL_PX + GAP_PX) + GAP_PX), (24, 24, 24))
    draw, font = ImageDraw.Draw(whole), ImageFont.load_default(FONT_PX)
    draw.text((GAP_PX, 5), title, (240, 240, 240), font)
    legend = sum(draw.textlength(label, font) + 16 for label in card.labels)
    x = whole.width - legend
    for label, colour in zip(card.labels, _colours(card)):
        if x > draw.textlength(title, font) + 3 * GAP_PX:
            draw.text((x, 5), label, colour, font)
        x += draw.textlength(label, font) + 16
    for number in range(rows):
        left = (number % across) * wide + GAP_PX
        top = TITLE_PX + (number // across) * (PANEL_PX + GAP_PX)
        picture = visible(batch.images[number], card)
        panels = [picture]
        if batch.masks is not None:
            panels += [_truth(picture, batch, number, card), _predicted(picture, probabilities[number], card)]
        for place, panel in enumerate(panels):
            whole.paste(_scaled(panel), (left + place * (PANEL_PX + GAP_PX), top))
        if batch.masks is None:
            _bars(draw, font, (left + PANEL_PX + GAP_PX, top), batch.targets[number], probabilities[number], card)
    return whole


def _colours(card: Card) -> list[tuple[int, int, int]]:
    return [rgb(COLOURS[place % len(COLOURS)]) for place in range(len(card.labels))]


def _scaled(panel: np.ndarray) -> Any:
    """The panel as a square of `PANEL_PX`, its sides kept in proportion; whole pixels where it is small."""
    from PIL import Image

    picture = Image.fromarray(panel)
    factor = PANEL_PX / max(picture.size)
    size = (max(1, round(picture.width * factor)), max(1, round(picture.height * factor)))
    square = Image.new("RGB", (PANEL_PX, PANEL_PX), (24, 24, 24))
    grown = picture.resize(size, Image.Resampling.NEAREST if factor > 1 else Image.Resampling.LANCZOS)
    square.paste(grown, ((PANEL_PX - size[0]) // 2, (PANEL_PX - size[1]) // 2))
    return square


def _flat(values: np.ndarray, card: Card) -> np.ndarray:
    return values[values.shape[0] // 2] if card.image.kind == "volume" else values


def _truth(picture: np.ndarray, batch: Batch, number: int, card: Card) -> np.ndarray:
    assert batch.masks is not None and batch.known is not None
    masks, known = _flat(batch.masks[number], card) > 0, _flat(batch.known[number], card)[..., 0] > 0
    drawn = np.where(known[..., None], picture, picture // 3)  # what is not known lies in the dark
    for place, colour in enumerate(_colours(card)):
        drawn[border(masks[..., place])] = colour
    return drawn


def _predicted(picture: np.ndarray, p: np.ndarray, card: Card) -> np.ndarray:
    p = _flat(p, card)
    drawn = picture.astype(np.float64)
    if card.exclusive:
        first = np.concatenate([1.0 - p.sum(axis=-1, keepdims=True), p], axis=-1).argmax(axis=-1)
    for place, colour in enumerate(_colours(card)):
        opacity = TILT * p[..., place, None]
        drawn = drawn * (1.0 - opacity) + np.array(colour) * opacity
    for place, colour in enumerate(_colours(card)):
        drawn[border(first == place + 1 if card.exclusive else p[..., place] > 0.5)] = colour
    return drawn.astype(np.uint8)


def _bars(draw: Any, font: Any, corner: tuple[int, int], target: np.ndarray, p: np.ndarray, card: Card) -> None:
    """A bar per label: its length the probability; the label is bright where it is true, and marked ? where that is not known."""
    height = min(30, PANEL_PX // max(1, len(card.labels)))
    for place, (label, colour) in enumerate(zip(card.labels, _colours(card))):
        x, y = corner[0], corner[1] + place * height
        known, true = not np.isnan(target[place]), target[place] > 0.5
        draw.rectangle((x, y + height - 12, x + PANEL_PX - 2, y + height - 6), outline=(90, 90, 90))
        draw.rectangle((x, y + height - 12, x + round((PANEL_PX - 2) * float(p[place])), y + height - 6), fill=colour)
        said = f"{label} {'' if known else '? '}{float(p[place]):.2f}{'  (true)' if true else ''}"
        draw.text((x, y), said, (255, 255, 255) if true else (150, 150, 150), font)


def png(picture: Any) -> bytes:
    raw = io.BytesIO()
    picture.save(raw, "PNG", optimize=False)
    return raw.getvalue()


def animation(sheets: Sequence[bytes]) -> bytes:
    """The sheets (PNG, in order) as one animated GIF: how the network becomes better. The last one stays longer."""
    from PIL import Image

    places = np.unique(np.linspace(0, len(sheets) - 1, min(FRAMES, len(sheets))).round().astype(int))
    frames = [Image.open(io.BytesIO(sheets[place])).convert("RGB") for place in places]
    raw = io.BytesIO()
    times = [FRAME_MS] * (len(frames) - 1) + [LAST_MS]
    frames[0].save(raw, "GIF", save_all=True, append_images=frames[1:], duration=times, loop=0)
    return raw.getvalue()
