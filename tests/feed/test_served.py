"""Requests to a served model: what is asked, what is answered, and what is refused in a sentence."""

from __future__ import annotations

import base64
import io
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from pycocotools import mask as coco

from medspark.errors import BadRequest
from medspark.feed.card import ImageSpec
from medspark.feed.served import Served, answers, parse, recipe_of, records


@dataclass(frozen=True)
class Threshold:
    """Two labels: what is brighter than 128, and what is darker. A formula in place of a network."""

    task: str = "segmentation"
    labels: tuple[str, ...] = ("bright", "dark")
    exclusive: bool = False
    image: ImageSpec = ImageSpec("image", (16, 16, 1), "uint8", "png", ("value",))
    recipe: dict[str, Any] = field(default_factory=lambda: {"size": [16, 16]})
    thresholds: dict[str, float] = field(default_factory=lambda: {"bright": 0.5})

    def probabilities(self, images: np.ndarray) -> np.ndarray:
        bright = 1 / (1 + np.exp(-(images.astype(np.float32).mean(axis=-1) - 128) / 4))
        both = np.stack([bright, 1 - bright], axis=-1)
        return both if self.task == "segmentation" else both.mean(axis=tuple(range(1, both.ndim - 1)))


def half(rows: int = 32, cols: int = 16) -> np.ndarray:
    """Upper half dark, lower half bright."""
    image = np.full((rows, cols), 20, np.uint8)
    image[rows // 2 :] = 220
    return image


def sent(image: np.ndarray, form: str = "PNG") -> str:
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, form, **({"quality": 95} if form == "JPEG" else {}))
    return base64.b64encode(buffer.getvalue()).decode()


def test_pixels_and_picture_give_the_same_answer_in_the_size_that_was_sent() -> None:
    image = half()
    given = [{"pixels": image.tolist()}, {"image": sent(image)}, {"image": "data:image/jpeg;base64," + sent(image, "JPEG")}]
    found = answers(Threshold(), given, "lists")
    assert found[0] == found[1]
    for one in found:
        assert one["labels"] == ["bright", "dark"] and one["probabilities"]["bright"] > 0.99
        assert np.array_equal(one["masks"]["bright"], (image > 128).astype(int))


def test_masks_are_cocos_run_lengths() -> None:
    image = half()
    (found,) = answers(Threshold(), [{"pixels": image.tolist()}])
    assert np.array_equal(coco.decode(found["masks"]["bright"]), image > 128)
    assert "masks" not in answers(Threshold(), [{"pixels": image.tolist()}], "none")[0]


def test_colours_and_grey_meet_the_models_channels() -> None:
    grey = half(16, 16)
    colour = np.repeat(grey[..., None], 3, axis=2)
    three = replace(Threshold(), image=ImageSpec("image", (16, 16, 3), "uint8", "jpeg", ("R", "G", "B")), recipe={})
    assert np.array_equal(parse({"image": sent(grey)}, three)[0], colour)
    assert np.array_equal(parse({"image": sent(colour)}, Threshold())[0][..., 0], grey)


def test_what_a_recipe_leaves_unsaid_follows_from_the_image() -> None:
    slices = replace(Threshold(), image=ImageSpec("context", (16, 16, 5), "int16", "blosc2", ("a", "b", "c", "d", "e"), "HU"), recipe={})
    assert (recipe_of(slices).context, recipe_of(slices).mode, recipe_of(slices).dtype) == (2, "values", "int16")
    volume = replace(Threshold(), image=ImageSpec("volume", (4, 16, 16, 1), "int16", "blosc2", ("value",), "HU"), recipe={"mode": "stored"})
    assert (recipe_of(volume).depth, recipe_of(volume).planes, recipe_of(volume).mode) == (4, 4, "stored")


def test_classes() -> None:
    two = replace(Threshold(), task="classification", exclusive=True)
    (found,) = answers(two, [{"pixels": np.full((16, 16), 200).tolist()}])
    assert found["labels"] == ["bright"] and set(found) == {"labels", "probabilities"}
    one_each = replace(two, exclusive=False, thresholds={"bright": 1.01, "dark": 0.0})
    assert answers(one_each, [{"pixels": np.full((16, 16), 200).tolist()}])[0]["labels"] == ["dark"]


def test_exclusive_labels_give_way_to_the_background() -> None:
    class Weak(Threshold):
        def probabilities(self, images: np.ndarray) -> np.ndarray:
            return super().probabilities(images) * 0.4  # background 0.6

    (found,) = answers(Weak(exclusive=True), [{"pixels": half(16, 16).tolist()}])
    assert found["labels"] == [] and coco.area(found["masks"]["bright"]) == 0


def test_an_image_of_another_size_is_put_together_from_windows() -> None:
    wide = half(40, 50)
    (found,) = answers(replace(Threshold(), recipe={}), [{"pixels": wide.tolist()}], "lists")
    assert np.array_equal(found["masks"]["bright"], wide > 128)
    with pytest.raises(BadRequest, match="was trained on"):
        answers(replace(Threshold(), recipe={}, task="classification"), [{"pixels": wide.tolist()}])


def test_measured_values_and_slices() -> None:
    slices = replace(
        Threshold(),
        image=ImageSpec("context", (16, 16, 3), "uint8", "blosc2", ("k-1", "k", "k+1"), "HU"),
        recipe={"kind": "context", "context": 1, "mode": "window", "window": [40, 400]},
    )
    hu = np.full((16, 16, 3), 240.0)
    assert (parse({"pixels": hu.tolist()}, slices)[0] == 255).all()
    with pytest.raises(BadRequest, match="3 slices"):
        parse({"image": sent(half())}, slices)
    spaced = replace(Threshold(), recipe={"spacing_mm": [1.0, 1.0]})
    values, size = parse({"pixels": half(32, 32).tolist(), "pixel_spacing_mm": [0.5, 0.5]}, spaced)
    assert values.shape == (16, 16, 1) and size == (32, 32)
    for spacing, said in (
        ({}, "pixel_spacing_mm is missing: .* 1 x 1 mm"),
        ([0.5], "expected .row"),
        ("a", "expected .row"),
        ([0.5, 0], "above 0"),
    ):
        record = {"pixels": half(32, 32).tolist(), **({} if spacing == {} else {"pixel_spacing_mm": spacing})}
        with pytest.raises(BadRequest, match=said):
            parse(record, spaced)


@pytest.mark.parametrize(
    ("record", "said"),
    [
        ({}, "either image"),
        ({"image": "x", "pixels": [[1]]}, "either image"),
        ({"image": "no base64!"}, "not base64"),
        ({"image": base64.b64encode(b"hello").decode()}, "neither a JPEG"),
        ({"image": sent(half())[:-40]}, "cannot be read|not base64"),
        ({"pixels": [[1, 2], [3]]}, "not nested lists"),
        ({"pixels": [["a"]]}, "not nested lists"),
        ({"pixels": []}, "empty"),
        ({"pixels": [[float("nan")]]}, "no numbers"),
        ({"pixels": [[-1.0, 300.0]]}, "takes 0 to 255"),
        ({"pixels": np.zeros((4, 4, 3)).tolist()}, "takes \\(rows, cols, 1\\)"),
    ],
)
def test_what_is_refused(record: dict[str, Any], said: str) -> None:
    with pytest.raises(BadRequest, match=said):
        answers(Threshold(), [{"pixels": half(16, 16).tolist()}, record])


def test_a_frame_without_a_known_column_is_refused() -> None:
    """MLflow strikes columns that the signature does not name, and leaves rows without any."""
    with pytest.raises(BadRequest, match="record 0: expected either image"):
        answers(Threshold(), records(pd.DataFrame(index=range(2))))


def test_records_of_all_forms() -> None:
    image = half(16, 16).tolist()
    one = [{"pixels": image}]
    frame = pd.DataFrame({"pixels": [image, None], "image": [None, sent(half())]})
    assert records({"pixels": [image]}) == records(one) == one
    assert records({"image": "abc"}) == [{"image": "abc"}]
    assert len(answers(Threshold(), records(frame))) == 2
    assert len(records(np.zeros((3, 4, 4, 1)))) == 3


def test_the_first_answer_is_noted_once() -> None:
    noted: list[int] = []
    model = Served(Threshold(), lambda: noted.append(1))
    for _ in range(3):
        model.predict(pd.DataFrame({"pixels": [half().tolist()]}), {"masks": "none"})
    assert noted == [1]
