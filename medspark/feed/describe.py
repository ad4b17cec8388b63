"""A feed for people: its card as text, and a page with samples, outlines and histograms. Reads no more than a few row groups of each part; no Spark."""

from __future__ import annotations

import base64
import html
import io
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq

from medspark.feed.card import Card
from medspark.feed.open import Feed
from medspark.feed.rows import unpack_masks
from medspark.keys import rng
from medspark.pixels import decode

GROUPS_READ = 6  # row groups of each part that pictures and histograms are made from
PICTURES = 6  # samples in a row of the sheet
BINS = 80
COLOURS = ("#e6194b", "#3cb44b", "#4363d8", "#f58231", "#911eb4", "#42d4f4", "#f032e6", "#bfef45")
"""Of labels: outlines on images and lines on white alike, which the bright ones of `medspark.pixels.picture` are not made for."""


def as_text(feed: Feed) -> str:
    """The card as lines to read."""
    card, image = feed.card, feed.card.image
    lines = [f"feed {card.name}@{feed.version}: {card.task} of {', '.join(card.labels)}{' (exclusive)' if card.exclusive else ''}"]
    if card.within_subject:
        lines.append("WITHIN-SUBJECT: parts share subjects; what is measured on them says nothing about new subjects")
    if card.amended:
        lines.append(f"amended: {card.amended}")
    lines.append(
        f"image: {image.kind} {' x '.join(map(str, image.shape))} {image.dtype} {image.codec}, channels {' '.join(image.channels)}"
    )
    if image.value_unit or image.window:
        lines.append(f"values: {image.value_unit or '-'}{f', window {image.window[0]:g}, {image.window[1]:g}' if image.window else ''}")
    if image.spacing_mm or image.mpp_um:
        lines.append(
            f"pixel: {' x '.join(f'{side:g}' for side in image.spacing_mm) + ' mm' if image.spacing_mm else f'{image.mpp_um:g} µm'}"
        )
    lines.append(f"mean {_numbers(card.mean)}, std {_numbers(card.std)}")
    lines.append(f"query: {card.query}")
    lines.append(
        f"split: {', '.join(f'{key} {value}' for key, value in card.split.items())}; seed {card.seed}; runs {card.runs}; world {card.world}"
    )
    lines.append(f"tables: {', '.join(f'{table}@{version}' for table, version in card.tables.items())}")
    options = {name: value for name, value in card.options.items() if value not in (None, [], {}, "", 0)}
    lines.append("options: " + ", ".join(f"{name} {value}" for name, value in sorted(options.items())))
    for name in in_order(card):
        part, files = card.parts[name], card.files_of(name)
        groups = [rows for file in files for rows in file.row_groups]
        size = sum(file.bytes for file in files)
        lines.append(
            f"{name}: {part.rows} samples of {part.images} images, {part.subjects} subjects; {len(files)} files, {len(groups)} row groups of"
            f" {min(groups)} to {max(groups)} rows, {size / len(groups) / 1e6:.2f} MB each"
        )
        for label in card.labels:
            pixels = f", {part.positive_px[label] / max(1, part.known_px):.3%} of the known pixels" if part.positive_px else ""
            lines.append(f"  {label}: {part.positives.get(label, 0)} show it, {part.negatives.get(label, 0)} do not{pixels}")
    if card.doubles:
        lines.append(f"equal images under different subjects or parts: {len(card.doubles)} groups, the first {', '.join(card.doubles[0])}")
    return "\n".join(lines)


def _numbers(values: tuple[float, ...]) -> str:
    return " ".join(f"{value:.4g}" for value in values)


# ---- a few samples


def groups(feed: Feed, part: str) -> Iterator[list[dict[str, Any]]]:
    """Rows of a few row groups of a part, the same ones every time."""
    places = [(file, group) for file in feed.card.files_of(part) for group in range(len(file.row_groups))]
    filesystem, root = feed.store()
    for place in rng(feed.card.seed, "describe", part).permutation(len(places))[:GROUPS_READ]:
        file, group = places[int(place)]
        with filesystem.open_input_file(f"{root}/{file.path}") as stream:
            yield pq.ParquetFile(stream).read_row_group(group).to_pylist()


@dataclass
class Seen:
    """What the page is made from. samples : kind (label, or none) -> rows;  histogram : (channels, BINS) counts between ``edges``"""

    samples: dict[str, list[dict[str, Any]]]
    histogram: np.ndarray
    edges: np.ndarray
    areas: dict[str, list[float]]


def look(feed: Feed, part: str) -> Seen:
    """Reads a few row groups: samples that show each label and none, values, areas."""
    card = feed.card
    low, high = (0.0, 256.0) if card.image.dtype == "uint8" else _range(card)
    edges = np.linspace(low, high, BINS + 1)
    seen = Seen(
        {label: [] for label in [*card.labels, NONE]}, np.zeros((card.image.shape[-1], BINS)), edges, {label: [] for label in card.labels}
    )
    for rows in groups(feed, part):
        for row in rows:
            shown = [label for label, value in zip(card.labels, row["target"], strict=True) if value == 1]
            kind = min(shown or [NONE], key=lambda label: len(seen.samples[label]))  # a sample is shown once, where there are fewest
            if len(seen.samples[kind]) < PICTURES:
                seen.samples[kind].append(row)
        for row in rows[:: max(1, len(rows) // 8)]:  # eight of a group are enough for a histogram
            values = image_of(card, row).reshape(-1, card.image.shape[-1])
            for channel in range(values.shape[1]):
                seen.histogram[channel] += np.histogram(values[:, channel], edges)[0]
        if card.task == "segmentation":
            for row in rows:
                drawn, known = unpack_masks(row["mask"], len(card.labels), card.image.space)
                for label, plane in zip(card.labels, drawn, strict=True):
                    if plane.any():
                        seen.areas[label].append(float(plane.sum() / max(1, known.sum())))
    return seen


NONE = "none of the labels"


def _range(card: Card) -> tuple[float, float]:
    low = min(mean - 4 * std for mean, std in zip(card.mean, card.std, strict=True))
    high = max(mean + 4 * std for mean, std in zip(card.mean, card.std, strict=True))
    return (low, high) if high > low else (low - 0.5, high + 0.5)


def image_of(card: Card, row: Mapping[str, Any]) -> np.ndarray:
    """Feed values of a sample, in the card's shape."""
    return decode(row["image"], card.image.codec, card.image.dtype, card.image.shape)


def picture(card: Card, row: Mapping[str, Any]) -> tuple[np.ndarray, np.ndarray | None, np.ndarray | None]:
    """(rows, cols[, 3]) in 0..1 of a sample (of a volume the slice with most of its truth), (L, rows, cols) masks, (rows, cols) known."""
    values = image_of(card, row)
    masks, known = unpack_masks(row["mask"], len(card.labels), card.image.space) if card.task == "segmentation" else (None, None)
    if card.image.kind == "volume":
        at = values.shape[0] // 2 if masks is None or not masks.any() else int(masks.sum(axis=(0, 2, 3)).argmax())
        values = values[at]
        masks, known = (None, None) if masks is None or known is None else (masks[:, at], known[at])
    if card.image.kind == "context":
        values = values[..., values.shape[-1] // 2]
    if values.ndim == 3 and values.shape[-1] == 1:
        values = values[..., 0]
    if card.image.dtype == "uint8":
        return values / 255.0, masks, known
    low, high = np.percentile(values, [1, 99])
    return np.clip((values - low) / max(high - low, 1e-6), 0, 1), masks, known


# ---- the page


def write_page(feed: Feed, folder: Path) -> Path:
    """``index.html`` with its pictures (also as PNG files beside it) in a folder that is made; returns the page's path."""
    import matplotlib

    matplotlib.use("Agg")
    folder.mkdir(parents=True, exist_ok=True)
    pictures = {"balance": _balance(feed.card)}
    for part in in_order(feed.card):
        seen = look(feed, part)
        pictures[f"samples-{part}"] = _sheet(feed.card, part, seen)
        pictures[f"values-{part}"] = _histograms(feed.card, part, seen)
    for name, data in pictures.items():
        (folder / f"{name}.png").write_bytes(data)
    title = html.escape(f"feed {feed.name}@{feed.version}")
    mark = "<p class=warn>WITHIN-SUBJECT</p>" if feed.card.within_subject else ""
    shown = "".join(
        f"<h2>{name}</h2><img alt='{name}' src='data:image/png;base64,{base64.b64encode(data).decode()}'>"
        for name, data in pictures.items()
    )
    style = "body{font:15px sans-serif;margin:2em auto;max-width:1100px}pre{background:#f4f4f4;padding:1em;white-space:pre-wrap}"
    style += "img{max-width:100%}.warn{background:#b00;color:#fff;padding:.5em 1em;font-weight:bold}"
    text = f"<!doctype html><meta charset=utf-8><title>{title}</title><style>{style}</style><h1>{title}</h1>{mark}"
    page = folder / "index.html"
    page.write_text(f"{text}<pre>{html.escape(as_text(feed))}</pre>{shown}\n", encoding="utf-8")
    return page


def _png(figure: Any) -> bytes:
    import matplotlib.pyplot as plt

    stream = io.BytesIO()
    figure.savefig(stream, format="png", dpi=100, bbox_inches="tight")
    plt.close(figure)
    return stream.getvalue()


def _title(card: Card, text: str) -> str:
    return f"{text} (WITHIN-SUBJECT)" if card.within_subject else text


def _balance(card: Card) -> bytes:
    """Samples that show each label and that do not, by part."""
    import matplotlib.pyplot as plt

    names, high = in_order(card), 0.6 + 0.35 * len(card.labels) + 1
    figure, axes = plt.subplots(1, len(names), figsize=(3.3 * len(names), high), squeeze=False, sharey=True)
    for axis, name in zip(axes[0], names, strict=True):
        part, at = card.parts[name], np.arange(len(card.labels))
        positive = [part.positives.get(label, 0) for label in card.labels]
        negative = [part.negatives.get(label, 0) for label in card.labels]
        axis.barh(at, positive, color="#3c78b4", label="show it")
        axis.barh(at, negative, left=positive, color="#cccccc", label="do not")
        axis.xaxis.get_major_locator().set_params(integer=True)
        axis.set_title(_title(card, f"{name}: {part.rows} samples, {part.subjects} subjects"), fontsize=9)
    axes[0][0].set_yticks(np.arange(len(card.labels)), card.labels)
    axes[0][0].invert_yaxis()
    axes[0][-1].legend(fontsize=8, loc="center left", bbox_to_anchor=(1, 0.5))
    figure.tight_layout()
    return _png(figure)


def in_order(card: Card) -> list[str]:
    """Parts as people say them: train, val, test, then the others."""
    usual = ("train", "val", "test")
    return sorted(card.parts, key=lambda part: (usual.index(part) if part in usual else len(usual), part))


def _sheet(card: Card, part: str, seen: Seen) -> bytes:
    """Samples by label, the truth outlined; what is unknown is hatched."""
    import matplotlib.pyplot as plt

    kinds = [kind for kind in seen.samples if seen.samples[kind]]
    figure, axes = plt.subplots(len(kinds), PICTURES, figsize=(1.7 * PICTURES, 2 * len(kinds) + 0.3), squeeze=False)
    for line, kind in zip(axes, kinds, strict=True):
        for axis in line:
            axis.set_xticks([])
            axis.set_yticks([])
            axis.set_frame_on(False)
        colour = COLOURS[card.labels.index(kind) % len(COLOURS)] if kind in card.labels and card.task == "segmentation" else "black"
        line[0].set_ylabel(kind, fontsize=9, color=colour)
        for axis, row in zip(line, seen.samples[kind], strict=False):
            values, masks, known = picture(card, row)
            axis.imshow(values, cmap="gray", vmin=0, vmax=1, interpolation="nearest")
            axis.set_title(f"{row['subject_key'][:6]} {row['image_id'][-6:]}", fontsize=6)
            if masks is None or known is None:
                continue
            for place, mask in enumerate(masks):
                if mask.any() and not mask.all():
                    axis.contour(mask, [0.5], colors=[COLOURS[place % len(COLOURS)]], linewidths=1)
            if not known.all():
                axis.contourf(~known, [0.5, 1.5], colors="none", hatches=["////"])
    figure.suptitle(_title(card, f"{part}: samples by label"), fontsize=10)
    figure.tight_layout()
    return _png(figure)


def _histograms(card: Card, part: str, seen: Seen) -> bytes:
    """Feed values by channel, and how large the truth is."""
    import matplotlib.pyplot as plt

    figure, (left, right) = plt.subplots(1, 2, figsize=(9, 2.8))
    centres = (seen.edges[:-1] + seen.edges[1:]) / 2
    for channel, counts in zip(card.image.channels, seen.histogram, strict=True):
        left.plot(centres, counts / max(1.0, counts.sum()), label=channel, drawstyle="steps-mid")
    left.set_xlabel(f"feed values {card.image.value_unit}".strip())
    left.set_yscale("log")
    left.legend(fontsize=8)
    left.set_title(_title(card, f"{part}: values"), fontsize=9)
    for place, (label, areas) in enumerate(seen.areas.items()):
        if areas:
            right.hist(areas, bins=30, range=(0, 1), histtype="step", color=COLOURS[place % len(COLOURS)], label=label)
    if card.task == "segmentation":
        right.set_xlabel("part of the known pixels, where it is shown")
        right.legend(fontsize=8)
    else:
        right.axis("off")
    figure.tight_layout()
    return _png(figure)
