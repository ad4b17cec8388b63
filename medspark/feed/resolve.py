"""What a request means for the images that its cohort has: one recipe for all of them, and what the card says of a sample's image. Pure."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from medspark.errors import BadRequest
from medspark.feed.card import ImageSpec
from medspark.feed.request import Request
from medspark.feed.sample import Mode, Recipe


def resolve(request: Request, facts: Sequence[Mapping[str, Any]]) -> Recipe:
    """The recipe that a request means for the images of its cohort; raises `BadRequest` where they have nothing in common.

    facts : `Cohort.facts`
    """
    channels = {fact["channels"] for fact in facts}
    kinds = {fact["kind"] for fact in facts}
    if len(channels) > 1:
        raise BadRequest("--query: some images are grey and some are colour; a feed holds one kind")
    slices = kinds == {"slice"}
    if (request.context or request.volume) and not slices:
        raise BadRequest("--context and --volume are for slices of series")
    if request.spacing_mm and any(fact["n_spacing"] < fact["n"] for fact in facts):
        raise BadRequest("--spacing-mm: an image of the cohort has no pixel spacing; use --size, or leave it out by the query")
    channel = channels.pop()
    if (request.context or request.volume) and channel != 1:
        raise BadRequest("--context and --volume are for grey slices")
    bytes_only = all(fact["dtype"] == "uint8" for fact in facts)
    whole = all(fact["whole"] for fact in facts)
    hu = all(fact["is_hu"] for fact in facts)
    mode: Mode
    if channel == 3 or not slices:
        if isinstance(request.window, tuple):
            raise BadRequest("--window CENTRE,WIDTH is for slices with values; photos and tiles are taken as they are")
        floats = any(np.dtype(fact["dtype"]).kind == "f" for fact in facts)
        if bytes_only:
            mode, dtype = "stored", "uint8"
        else:
            mode, dtype = ("values", "float32") if floats or request.window == "raw" else ("display", "uint8")
    elif isinstance(request.window, tuple):
        mode, dtype = "window", "uint8"
    elif request.window == "raw" or hu:
        mode, dtype = "values", "int16" if whole else "float32"
    else:
        mode, dtype = "display", "uint8"
    size = request.volume[1:] if request.volume else request.size
    return Recipe(
        kind="volume" if request.volume else "context" if request.context else "image",
        mode=mode,
        dtype=dtype,
        window=request.window if isinstance(request.window, tuple) else None,
        size=size,
        spacing_mm=request.spacing_mm,
        context=request.context,
        depth=request.volume[0] if request.volume else 0,
        channels=channel,
    )


def image_spec(recipe: Recipe, shape: tuple[int, ...], codec: str, facts: Sequence[Mapping[str, Any]]) -> ImageSpec:
    """What the card says of a sample's image. Spacing and µm per pixel only where all samples share them."""
    spacing: tuple[float, ...] | None = recipe.spacing_mm
    said = {fact[name] for fact in facts for name in ("spacing_min", "spacing_max")}
    if spacing is None and recipe.size is None and len(said) == 1 and None not in said:
        spacing = tuple(float(value) for value in json.loads(said.pop()))
    mpp = {fact[name] for fact in facts for name in ("mpp_min", "mpp_max")}
    units = {fact["value_unit"] for fact in facts}
    return ImageSpec(
        kind=recipe.kind,
        shape=shape,
        dtype=recipe.dtype,  # type: ignore[arg-type]  # `resolve` gives one of the three
        codec=codec,
        channels=recipe.channel_names,
        value_unit=(units.pop() or "") if len(units) == 1 and recipe.mode in ("values", "window") else "",
        window=recipe.window,
        spacing_mm=spacing,
        mpp_um=mpp.pop() if len(mpp) == 1 and recipe.size is None else None,
    )
