"""describe-feed on feeds of known content: the card in words, pictures that show what is there, feeds and versions that are not."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from medspark.__main__ import main
from medspark.errors import BadRequest
from medspark.feed import describe
from medspark.feed.leaks import gate
from medspark.feed.open import open_feed
from tests.phantoms import feeds


@pytest.mark.parametrize(("kind", "task"), [("slices", "segmentation"), ("tiles", "classification")])
def test_the_page_shows_every_part_and_class(tmp_path: Path, kind: feeds.Kind, task: str, capsys: pytest.CaptureFixture[str]) -> None:
    made = feeds.write_feed(tmp_path / "lake", "phantom", kind, task, {"train": 20, "test": 8}, ("disc", "square"))  # type: ignore[arg-type]
    assert main(["describe-feed", "--lake", str(tmp_path / "lake"), "--feed", "phantom@0", "--out", str(tmp_path / "page")]) == 0
    said = capsys.readouterr().out
    counts = made.card.parts["train"]
    assert f"feed phantom@0: {task} of disc, square" in said and f"train: {counts.rows} samples of {counts.images} images" in said
    assert f"disc: {counts.positives['disc']} show it, {counts.negatives['disc']} do not" in said
    names = {path.name for path in (tmp_path / "page").iterdir()}
    assert names == {"index.html", "balance.png", *(f"{what}-{part}.png" for what in ("samples", "values") for part in made.card.parts)}
    page = (tmp_path / "page" / "index.html").read_text()
    assert page.count("<img") == 5 and "http" not in page, "a page needs nothing from elsewhere"
    sheet = np.asarray(Image.open(tmp_path / "page" / "samples-train.png").convert("RGB")).astype(int)
    red = (sheet[..., 0] - sheet[..., 1:].max(axis=-1) > 100).sum()  # the first class's outline
    assert (red > 50) == (task == "segmentation")


def test_the_slice_of_a_volume_that_is_shown_is_the_one_with_most_truth(tmp_path: Path) -> None:
    made = feeds.write_feed(tmp_path, kind="volumes", labels=("disc",))
    feed = open_feed(str(tmp_path), "phantom")
    row = next(row for rows in describe.groups(feed, "train") for row in rows if row["target"] == [1.0])
    values, masks, known = describe.picture(feed.card, row)
    truth = made.truth[row["row_id"]].masks
    assert masks is not None and known is not None and truth is not None
    assert masks[0].sum() == truth[..., 0].sum(axis=(1, 2)).max() and values.shape == known.shape and 0 <= values.min() <= values.max() <= 1
    assert (describe.image_of(feed.card, row) == made.truth[row["row_id"]].image).all()


def test_what_is_not_there_is_said(tmp_path: Path) -> None:
    feeds.write_feed(tmp_path, "lungs")
    with pytest.raises(BadRequest, match="it has lungs"):
        open_feed(str(tmp_path), "livers")
    with pytest.raises(BadRequest, match="at version 7: not in lake"):
        open_feed(str(tmp_path), "lungs@7")
    with pytest.raises(BadRequest, match="NAME@VERSION"):
        open_feed(str(tmp_path), "lungs@last")


def test_the_gate_reads_the_rows_themselves(tmp_path: Path) -> None:
    made = feeds.write_feed(tmp_path, "lungs")
    feed = open_feed(str(tmp_path), "lungs")
    gate(made.card, *feed.store())
    one, other = made.card.files_of("train")[0], made.card.files_of("test")[0]
    (tmp_path / "feeds" / "lungs" / other.path).write_bytes((tmp_path / "feeds" / "lungs" / one.path).read_bytes())
    with pytest.raises(BadRequest, match="feed lungs: subjects in two parts"):
        gate(made.card, *feed.store())
