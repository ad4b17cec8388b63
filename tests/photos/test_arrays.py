"""Arrays of images and labels of whole images."""

from __future__ import annotations

import io
import tracemalloc
import zipfile
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from medspark import pixels
from medspark.config import Guard
from medspark.errors import BadRequest, Rejected
from medspark.keys import PARENT_DIGITS
from medspark.photos import arrays, plan
from medspark.photos.classes import Class, read_classes
from medspark.photos.kind import photos_kind
from tests.phantoms import photos as phantom
from tests.real import shared_data


@pytest.mark.parametrize("compressed", [True, False])
def test_every_image_once_with_its_part_and_class(tmp_path: Path, compressed: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    path, given = phantom.medmnist(tmp_path / "m.npz", compressed)
    monkeypatch.setattr(plan, "SPLIT_BYTES", 60)  # two images a unit: the middle of a member is reached, too
    monkeypatch.setattr(plan, "SPLITS", 99)
    rows, rejections, _ = phantom.ingest([path])
    assert not rejections
    assert len(rows["photos"]) == len(rows["pixels"]) == len(rows["labels"]) == len(rows["subjects"]) == 12
    assert len({row["subject_key"] for row in rows["photos"]}) == 12
    expected = [(part, image) for part in ("train", "val", "test") for image in given[f"{part}_images"]]
    source = rows["photos"][0]["source_id"]
    photos = {row["image_id"]: row for row in rows["photos"]}
    payload = {row["image_id"]: row for row in rows["pixels"]}
    values = np.concatenate([given[f"{part}_labels"][:, 0] for part in ("train", "val", "test")])
    classes = {row["image_id"]: row for row in rows["labels"]}
    for index, (part, image) in enumerate(expected):
        image_id = phantom.IDS.image(source, source, index)
        assert image_id.startswith(source[:PARENT_DIGITS])
        row = payload[image_id]
        assert (pixels.decode(row["bytes"], row["codec"], row["dtype"], row["shape"]) == image).all()
        assert photos[image_id]["source_part"] == part
        assert (classes[image_id]["label"], classes[image_id]["class_value"]) == (f"class_{values[index]}", str(values[index]))


def npz(path: Path, **given: np.ndarray) -> Path:
    np.savez_compressed(path, **given)
    return path


def one_array(path: Path) -> np.ndarray:
    (part,) = arrays.parts(str(path), Guard())
    return np.stack(list(arrays.images(str(path), part, 0, part.count)))


@pytest.mark.parametrize("dtype", ["u1", ">u2", "<i2", "<f4", ">f8", "?"])
@pytest.mark.parametrize("order", ["C", "F"])
def test_any_numbers_in_any_order(tmp_path: Path, dtype: str, order: str) -> None:
    array = np.random.default_rng(1).integers(0, 2, (5, 4, 6)).astype(dtype)
    path = npz(tmp_path / "a.npz", images=np.asarray(array, order=order))
    assert (one_array(path) == array).all()
    rows, rejections, _ = phantom.ingest([path])
    assert not rejections
    row = rows["pixels"][0]
    found = pixels.decode(row["bytes"], row["codec"], row["dtype"], row["shape"])
    by_id = {phantom.IDS.image(row["parent_id"], row["parent_id"], index): array[index] for index in range(5)}
    wanted = by_id[row["image_id"]]
    assert (found == (wanted * 255 if dtype == "?" else wanted)).all()
    assert rows["photos"][0]["source_part"] is None


def test_colour_and_single_channels(tmp_path: Path) -> None:
    path = npz(tmp_path / "a.npz", train_images=np.zeros((2, 4, 5, 3), np.uint8), test_images=np.zeros((1, 4, 5, 1), np.uint8))
    rows, _, _ = phantom.ingest([path])
    assert sorted((row["channels"], row["source_part"]) for row in rows["photos"]) == [(1, "test"), (3, "train"), (3, "train")]


@pytest.mark.parametrize(
    ("given", "code"),
    [
        ({"pictures": np.zeros((2, 3, 4), np.uint8)}, "NO_IMAGE"),
        ({"images": np.zeros((2, 3, 4, 5), np.uint8)}, "PHOTO_UNREADABLE"),
        ({"images": np.zeros((2, 3), np.uint8)}, "PHOTO_UNREADABLE"),
        ({"images": np.array([[["a"]]])}, "PHOTO_UNREADABLE"),
        ({"images": np.zeros((2, 3, 4), np.uint8), "labels": np.zeros((3, 1))}, "LABEL_SIZE"),
        ({"images": np.zeros((2, 3, 4), np.uint8), "labels": np.zeros((2, 1), "M8[s]")}, "LABEL_FORMAT"),
        ({"images": np.zeros((2, 1 << 15, 1 << 14), bool)[:0], "labels": np.zeros(0)}, "TOO_LARGE"),
    ],
)
def test_refusals(tmp_path: Path, given: dict[str, np.ndarray], code: str) -> None:
    with pytest.raises(Rejected) as refused:
        arrays.parts(str(npz(tmp_path / "a.npz", **given)), Guard())
    assert refused.value.code == code


def test_nothing_is_unpickled(tmp_path: Path) -> None:
    class Trap:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return (Path.touch, (tmp_path / "sprung",))  # type: ignore[return-value]

    np.savez(tmp_path / "a.npz", images=np.array([[[Trap()]]], object))
    with pytest.raises(Rejected) as refused:
        arrays.parts(str(tmp_path / "a.npz"), Guard())
    assert refused.value.code == "PHOTO_UNREADABLE"
    assert not (tmp_path / "sprung").exists()


def test_a_header_that_promises_more_than_the_member_holds(tmp_path: Path) -> None:
    stream = io.BytesIO()
    np.lib.format.write_array_header_1_0(stream, {"descr": "|u1", "fortran_order": False, "shape": (1 << 40, 28, 28)})
    with zipfile.ZipFile(tmp_path / "a.npz", "w") as archive:
        archive.writestr("images.npy", stream.getvalue() + bytes(28 * 28))
    with pytest.raises(Rejected) as refused:
        arrays.parts(str(tmp_path / "a.npz"), Guard())
    assert refused.value.code == "PHOTO_UNREADABLE"


def test_damage_in_the_middle_costs_the_file_before_any_image(tmp_path: Path) -> None:
    path, _ = phantom.medmnist(tmp_path / "m.npz", compressed=False)
    data = bytearray(path.read_bytes())
    data[data.index(b"train_images.npy") + 220] ^= 0xFF
    path.write_bytes(data)
    rows, (rejection,), _ = phantom.ingest([path])
    assert not rows.get("photos")
    assert rejection.code == "PHOTO_UNREADABLE"


def test_an_array_is_never_in_memory_whole(tmp_path: Path) -> None:
    path = npz(tmp_path / "a.npz", images=np.zeros((64, 1024, 1024), np.uint8))
    (part,) = arrays.parts(str(path), Guard())
    tracemalloc.start()
    try:
        count = sum(1 for _ in arrays.images(str(path), part, 0, part.count))
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert count == 64
    assert peak < 8 << 20, f"{peak} bytes for images of 1 MB each"


def test_units_of_an_array_cover_it_once() -> None:
    part = arrays.Part("images", "", "", 0, 100_003, 224, 224, 3, "|u1")
    found = list(plan.spans(part))
    assert found[0][0] == 0 and found[-1][1] == part.count
    assert all(stop == start for (_, stop), (start, _) in pairwise(found))
    assert len(found) <= plan.SPLITS + 1


# ---- classes


def test_classes_of_files(tmp_path: Path) -> None:
    table = tmp_path / "labels.csv"
    table.write_text("file,label,value,role\na.png,effusion,,\na.png,mass,0,negative\n/in/cats/b.png,lynx,,\ncats/c.png,puma,,\n")
    classes = read_classes("folder", "^([a-z])", table)
    uri = "file:///in/cats/"
    assert classes.of_file(uri + "a.png") == (
        Class("cats"),
        Class("a"),
        Class("effusion"),
        Class("mass", "0", "negative"),
    )
    assert [one.label for one in classes.of_file(uri + "b.png")] == ["cats", "b", "lynx"]
    assert [one.label for one in classes.of_file(uri + "c.png")] == ["cats", "c", "puma"]
    assert [one.label for one in read_classes("folder").of_file("file:///in/birds.zip!x.png")] == ["birds.zip"]
    assert read_classes().of_file(uri + "a.png") == ()


def test_classes_of_arrays() -> None:
    classes = read_classes(names={1: ("pneumonia", "positive")})
    assert classes.of_labels(np.array([0, 1], np.uint8)) == [(Class("class_0", "0"),), (Class("pneumonia", "1"),)]
    assert classes.of_labels(np.array(["cat", ""])) == [(Class("cat"),), ()]
    found = classes.of_labels(np.array([[1, 0], [0, 1]]))
    assert found[0] == (Class("class_0", "1"), Class("pneumonia", "0", "negative"))
    for wrong in (np.array([0.5]), np.array([np.nan]), np.array([[2, 0]])):
        with pytest.raises(Rejected):
            classes.of_labels(wrong)


def test_wrong_options_are_bad_requests(tmp_path: Path) -> None:
    bad = tmp_path / "bad.csv"
    bad.write_text("file,label,role\nx.png,cat,maybe\n")
    for options, said in (
        ({"class_pattern": "("}, "--class-pattern"),
        ({"class_pattern": "abc"}, "needs a group"),
        ({"labels": str(bad)}, "role must be one of"),
        ({"labels": str(tmp_path / "none.csv")}, "cannot be read"),
        ({"exclude": "("}, "--exclude"),
    ):
        with pytest.raises(BadRequest, match=said):
            photos_kind(**options)  # type: ignore[arg-type]


def test_other_classes_are_other_work(tmp_path: Path) -> None:
    table = tmp_path / "labels.csv"
    table.write_text("file,label\nx.png,cat\n")
    first = photos_kind(labels=table).fingerprint
    table.write_text("file,label\nx.png,dog\n")
    kinds = [first, *(photos_kind(**options).fingerprint for options in ({}, {"labels": table}, {"class_from": "folder"}, {"exclude": ""}))]
    assert len(set(kinds)) == 5 and kinds[1] == ""


def test_known_images_get_their_labels_only(tmp_path: Path) -> None:
    path, _ = phantom.medmnist(tmp_path / "m.npz")
    rows, _, _ = phantom.ingest([path])
    known = [row["image_id"] for row in rows["photos"]]
    again, rejections, _ = phantom.ingest([path], known=known)
    assert not rejections
    assert set(again) == {"labels"} and len(again["labels"]) == 12


def test_pneumoniamnist() -> None:
    path = shared_data("medmnist/pneumoniamnist.npz")
    rows, rejections, _ = phantom.ingest([path], photos_kind(names={0: ("normal", "positive"), 1: ("pneumonia", "positive")}))
    assert not rejections
    parts = [row["source_part"] for row in rows["photos"]]
    assert {part: parts.count(part) for part in set(parts)} == {"train": 3882, "val": 524, "test": 624}
    with np.load(path, allow_pickle=False) as given:
        wanted = np.concatenate([given[f"{part}_labels"][:, 0] for part in ("train", "val", "test")])
        images = np.concatenate([given[f"{part}_images"] for part in ("train", "val", "test")])
    source = rows["photos"][0]["source_id"]
    by_id = {row["image_id"]: row for row in rows["labels"]}
    payload = {row["image_id"]: row for row in rows["pixels"]}
    for index in range(0, 5030, 97):
        image_id = phantom.IDS.image(source, source, index)
        assert by_id[image_id]["label"] == ("pneumonia" if wanted[index] else "normal")
        assert (pixels.decode(payload[image_id]["bytes"], "png", "uint8", [28, 28]) == images[index]).all()
