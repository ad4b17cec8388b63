"""A model as a service: plain JSON or image bytes in, labels, probabilities and masks out. Pure; MLflow calls it (`medspark.track.model`).

One record is one whole image: ``image`` (a JPEG or PNG, as base64 text) or ``pixels`` (nested lists), and ``pixel_spacing_mm`` where the model's
recipe resamples by it. What was done to the training images is done to it by the same code (`sample.Recipe`). Masks come back in the
size of the image that was sent.
"""

from __future__ import annotations

import base64
import binascii
import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, Protocol, get_args

import numpy as np

from medspark.config import Guard
from medspark.errors import BadRequest, Rejected
from medspark.feed.card import ImageSpec
from medspark.feed.sample import Recipe, resized
from medspark.feed.stitch import stitched
from medspark.photos import read
from medspark.pixels.functions import mask_to_coco_rle
from medspark.pixels.masks import pack

MaskForm = Literal["rle", "lists", "none"]
LUMINANCE = np.array([0.299, 0.587, 0.114], np.float32)  # ITU-R BT.601
GUARD = Guard(max_pixels=1 << 26)  # 67 megapixels in one request: a server shares its memory among many
HALF = 0.5  # threshold of a label that has none of its own


class Predictor(Protocol):
    """What serving and evaluating ask of a network (`medspark.train.predictor.Predictor`)."""

    @property
    def task(self) -> Any: ...

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


class Served:
    """A predictor that answers records. first : called once, after the first answer."""

    def __init__(self, predictor: Predictor, first: Callable[[], None] = lambda: None) -> None:
        self.predictor, self._first = predictor, first
        self._answered = False

    def predict(self, data: Any, params: Mapping[str, Any] | None = None) -> list[dict[str, Any]]:
        """One answer for each record; see `answers`. ``params``: ``masks`` = rle, lists or none."""
        found = answers(self.predictor, records(data), (params or {}).get("masks", "rle"))
        if not self._answered:
            self._answered = True
            self._first()
        return found


def answers(predictor: Predictor, given: Sequence[Mapping[str, Any]], masks: MaskForm = "rle") -> list[dict[str, Any]]:
    """``{"labels": present ones, "probabilities": {label: value}}``, for segmentation also ``"masks": {label: mask}``.

    probabilities : of the image; in segmentation the largest of any pixel
    masks : COCO's compressed run lengths ({"size", "counts"}; a list of them, slice by slice, for volumes), or nested lists of 0 and 1
    Raises `BadRequest` for a record that is no image of this model's kind; the sentence names its place among the records.
    """
    if masks not in get_args(MaskForm):
        raise BadRequest(f"masks: expected one of {', '.join(get_args(MaskForm))}, got {masks!r}")
    values, sizes = [], []
    for place, record in enumerate(given):
        try:
            made, size = parse(record, predictor)
        except BadRequest as error:
            raise BadRequest(f"record {place}: {error}") from None
        values.append(made)
        sizes.append(size)
    found = list(_probabilities(predictor, values))
    return [_answer(predictor, one, size, masks) for one, size in zip(found, sizes)]


def parse(record: Mapping[str, Any], predictor: Predictor) -> tuple[np.ndarray, tuple[int, ...]]:
    """((*space, C) feed values, space of the image as it was sent) of one record; raises `BadRequest`."""
    recipe = recipe_of(predictor)
    image, pixels = _given(record, "image"), _given(record, "pixels")
    if (image is None) == (pixels is None):
        raise BadRequest("expected either image (JPEG or PNG, base64) or pixels (nested lists)")
    stored = _decoded(image, recipe) if image is not None else _numbers(pixels, recipe)
    spacing = _given(record, "pixel_spacing_mm")
    row: dict[str, Any] = {"pixel_spacing_mm": None if spacing is None else _spacing(spacing)}
    if recipe.spacing_mm is not None and spacing is None:
        raise BadRequest(
            f"pixel_spacing_mm is missing: this model resamples images to {recipe.spacing_mm[0]:g} x {recipe.spacing_mm[1]:g} mm a pixel"
        )
    planes = _planes(stored, recipe)
    return recipe.values(planes, [row] * len(planes)), stored.shape[: len(predictor.image.space)]


def recipe_of(predictor: Predictor) -> Recipe:
    """The model's recipe; what it leaves unsaid follows from the image that the network takes."""
    image = predictor.image
    implied: dict[str, Any] = {"kind": image.kind, "dtype": image.dtype, "mode": "stored" if image.dtype == "uint8" else "values"}
    if image.kind == "context":
        implied["context"] = (image.shape[-1] - 1) // 2
    else:
        implied |= {"channels": image.shape[-1], "depth": image.shape[0] if image.kind == "volume" else 0}
    return Recipe.parse({**implied, **predictor.recipe})


def records(data: Any) -> list[dict[str, Any]]:
    """Records of what MLflow hands over: a data frame, a list of records, one record, or columns of lists."""
    if hasattr(data, "to_dict"):
        rows = [dict(record) for record in data.to_dict("records")] or [{}] * len(data)  # without a column that MLflow knows it leaves none
        # {"inputs": {"image": [...]}} reaches a model as one row whose cell holds the whole column
        return [{"image": one} for one in rows[0]["image"]] if len(rows) == 1 and isinstance(rows[0].get("image"), np.ndarray) else rows
    if isinstance(data, np.ndarray) and data.dtype != object:
        return [{"pixels": image} for image in data]
    if isinstance(data, Mapping):
        columns = {name: values for name, values in data.items() if values is not None}
        single = "image" in columns and isinstance(columns["image"], (str, bytes))
        if single or not columns:
            return [dict(columns)]
        return [dict(zip(columns, values)) for values in zip(*columns.values(), strict=True)]
    return [dict(record) for record in data]


def _spacing(given: Any) -> list[float]:
    try:
        row, col = (float(side) for side in given)
    except (TypeError, ValueError):
        raise BadRequest("pixel_spacing_mm: expected [row, column] in mm") from None
    if not (0 < row < np.inf and 0 < col < np.inf):
        raise BadRequest(f"pixel_spacing_mm [{row:g}, {col:g}]: expected two lengths above 0")
    return [row, col]


def _given(record: Mapping[str, Any], name: str) -> Any:
    """None where a data frame has filled a hole with NaN."""
    value = record.get(name)
    return None if value is None or (isinstance(value, float) and value != value) else value


def _decoded(image: str | bytes, recipe: Recipe) -> np.ndarray:
    """(rows, cols) or (rows, cols, 3) of a JPEG or PNG, decoded as `ingest_photos` does."""
    if recipe.planes != 1:
        raise BadRequest(f"this model takes {recipe.planes} slices at once; send them as pixels")
    if recipe.mode in ("values", "window"):
        raise BadRequest("this model takes measured values (such as Hounsfield units), which a picture does not hold; send them as pixels")
    if isinstance(image, str):
        try:
            image = base64.b64decode(image.partition(",")[2] if image.startswith("data:") else image, validate=True)
        except binascii.Error:
            raise BadRequest("image is not base64") from None
    form = read.sniff(image[: read.HEAD_BYTES])
    if form not in ("jpeg", "png"):
        raise BadRequest("image is neither a JPEG nor a PNG")
    try:
        array = read.photo(image, form, GUARD).array
    except Rejected as error:
        raise BadRequest(f"image cannot be read ({error.reason})") from None
    if recipe.channels == 3 and array.ndim == 2:
        return np.repeat(array[..., None], 3, axis=2)
    if recipe.channels == 1 and array.ndim == 3:
        return np.rint(array @ LUMINANCE).astype(array.dtype)
    return array


def _numbers(pixels: Any, recipe: Recipe) -> np.ndarray:
    """Nested lists as an array; integers where the recipe takes stored values."""
    try:
        array = np.asarray(pixels.tolist() if isinstance(pixels, np.ndarray) and pixels.dtype == object else pixels, np.float32)
    except (TypeError, ValueError):
        raise BadRequest("pixels are not nested lists of numbers, all rows of one length") from None
    if not array.size or not np.isfinite(array).all():
        raise BadRequest("pixels are empty or hold values that are no numbers")
    if recipe.mode in ("stored", "display"):
        info = np.iinfo(np.uint8 if recipe.dtype == "uint8" else np.int16)
        if array.min() < info.min or array.max() > info.max:
            raise BadRequest(f"pixels reach from {array.min():g} to {array.max():g}; this model takes {info.min} to {info.max}")
        return np.rint(array).astype(info.dtype)
    return array


def _planes(stored: np.ndarray, recipe: Recipe) -> list[np.ndarray]:
    """The stored planes of one sample."""
    if recipe.kind == "volume":
        wanted = f"({recipe.depth}, rows, cols)" + (" or with 3 channels" if recipe.channels == 3 else "")
        squeezed = stored[..., 0] if stored.ndim == 4 and stored.shape[-1] == 1 else stored
        if squeezed.ndim < 3 or len(squeezed) != recipe.depth:
            raise BadRequest(f"pixels have the shape {stored.shape}; this model takes {wanted}")
        return list(squeezed)
    if recipe.kind == "context":
        if stored.ndim != 3 or stored.shape[2] != recipe.planes:
            raise BadRequest(
                f"pixels have the shape {stored.shape}; this model takes (rows, cols, {recipe.planes}): slices {', '.join(recipe.channel_names)}"
            )
        return [np.ascontiguousarray(stored[..., place]) for place in range(recipe.planes)]
    channels = stored.shape[2] if stored.ndim == 3 else 1
    if stored.ndim not in (2, 3) or channels != recipe.channels:
        raise BadRequest(f"pixels have the shape {stored.shape}; this model takes (rows, cols, {recipe.channels})")
    return [stored if recipe.channels == 3 else stored.reshape(stored.shape[:2])]


def _probabilities(predictor: Predictor, values: Sequence[np.ndarray]) -> list[np.ndarray]:
    """(*space, L) or (L,) of each sample: those of the feed's own size in one pass, others from windows of that size."""
    space = predictor.image.space
    own = [place for place, one in enumerate(values) if one.shape[:-1] == space]
    found = dict(zip(own, predictor.probabilities(np.stack([values[place] for place in own])))) if own else {}
    for place, one in enumerate(values):
        if place in found:
            continue
        if predictor.task != "segmentation" or len(space) != 2:
            raise BadRequest(f"record {place}: the image has {one.shape[:-1]} px after the model's recipe; it was trained on {space}")
        found[place] = stitched(one, (space[0], space[1]), predictor.probabilities)
    return [found[place] for place in range(len(values))]


def _answer(predictor: Predictor, found: np.ndarray, size: tuple[int, ...], masks: MaskForm) -> dict[str, Any]:
    segmented = predictor.task == "segmentation"
    of_image = found.reshape(-1, found.shape[-1]).max(axis=0) if segmented else found
    said: dict[str, Any] = {"probabilities": {label: float(value) for label, value in zip(predictor.labels, of_image)}}
    if not segmented:
        present = (found == found.max()) if predictor.exclusive and len(found) > 1 else found >= _thresholds(predictor)
        return {"labels": [label for label, there in zip(predictor.labels, present) if there], **said}
    planes = present_masks(predictor, found, size)
    said = {"labels": [label for label, plane in zip(predictor.labels, planes) if plane.any()], **said}
    if masks != "none":
        form = _rle if masks == "rle" else lambda plane: plane.astype(int).tolist()
        said["masks"] = {label: form(plane) for label, plane in zip(predictor.labels, planes)}
    return said


def present_masks(predictor: Predictor, found: np.ndarray, size: tuple[int, ...]) -> np.ndarray:
    """(L, *size) bool from (*space, L) probabilities. Exclusive labels: the most probable one, where it is more probable than the background."""
    scaled = _at_size(found, size)
    if not predictor.exclusive:
        return np.moveaxis(scaled >= _thresholds(predictor), -1, 0)
    background = 1.0 - scaled.sum(axis=-1)
    best = np.argmax(np.concatenate([background[..., None], scaled], axis=-1), axis=-1)
    return np.stack([best == place for place in range(1, scaled.shape[-1] + 1)])


def _at_size(found: np.ndarray, size: tuple[int, ...]) -> np.ndarray:
    """Probabilities on the grid of the image that was sent: planes are resampled, the number of slices stays."""
    if found.shape[:-1] == size:
        return found
    if found.ndim == 4:
        return np.stack([_at_size(plane, size[1:]) for plane in found])
    return np.stack([resized(np.ascontiguousarray(found[..., place]), (size[0], size[1])) for place in range(found.shape[-1])], axis=-1)


def _thresholds(predictor: Predictor) -> np.ndarray:
    return np.array([predictor.thresholds.get(label, HALF) for label in predictor.labels], np.float32)


def _rle(plane: np.ndarray) -> Any:
    if plane.ndim == 3:
        return [_rle(one) for one in plane]
    return json.loads(mask_to_coco_rle(pack(plane), *plane.shape))
