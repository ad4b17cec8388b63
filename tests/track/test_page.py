"""The comparison page: what differs is shown, what is the same is said once, and the file needs nothing else."""

from __future__ import annotations

import io
import re
import xml.etree.ElementTree as ET
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from medspark.track import charts, page, runs
from medspark.track.page import Shown
from medspark.track.runs import MlflowTracker
from tests.track.test_identity import who


def picture(value: int = 90) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(np.full((40, 2000, 3), value, np.uint8)).save(buffer, "PNG")
    return buffer.getvalue()


def shown(name: str = "one", **changes: object) -> Shown:
    run = Shown(
        "a" * 32,
        name,
        "finished",
        datetime(2026, 1, 2, 3, 4, tzinfo=UTC),
        90.0,
        {"rate": "0.1", "feed": "lungs"},
        {},
        {"test/dice": 0.8, "test/dice_low": 0.7, "test/dice_high": 0.9, "test/iou": 0.6},
        {"loss": [(0.0, 1.0), (10.0, 0.5)], "epoch/val_dice": [(0.0, 0.3), (1.0, 0.8)]},
        {"after the last epoch": picture()},
    )
    return replace(run, **changes)  # type: ignore[arg-type]


def test_what_differs_is_in_the_table_and_the_rest_is_said_once() -> None:
    two = [shown(), shown("two", params={"rate": "0.2", "feed": "lungs"})]
    common, differing = page.split_params(two)
    assert common == {"feed": "lungs"} and differing == ["rate"]
    text = page.html("segmentation: disc", two)
    assert "<th>rate</th>" in text and "<th>feed</th>" not in text
    assert "0.8<br><small>0.7 to 0.9</small>" in text and "dice low" not in text
    assert text == page.html("segmentation: disc", two), "the same runs give the same page"


def test_the_measures_that_matter_stand_first_and_the_rest_is_folded_away() -> None:
    run = shown(metrics={"test/zeal": 1.0, "test/dice/disc": 0.7, "test/iou": 0.6, "test/dice": 0.8, "test/auc": 0.9})
    assert list(page.results([run])) == ["test/auc", "test/dice", "test/iou", "test/zeal", "test/dice/disc"]
    text = page.html("x", [run])
    assert "1 further measures" in text and text.index("<th>dice</th>") < text.index("further measures") < text.index("<th>zeal</th>")


def test_runs_that_differ_in_their_seed_alone_are_taken_together() -> None:
    three = [shown(f"s{seed}", params={"rate": "0.1", "seed": str(seed)}, metrics={"test/dice": 0.7 + 0.1 * seed}) for seed in range(3)]
    other = shown("other", params={"rate": "0.2", "seed": "0"})
    found = page.repeated([*three, other], page.results([*three, other]))
    assert found == {"mean of 3 seeds (lowest to highest), first s0": {"test/dice": "0.8<br><small>0.7 to 0.9</small>"}}
    assert "<td>mean of 3 seeds (lowest to highest), first s0</td><td>0.8<br>" in page.html("x", [*three, other])
    assert page.repeated([three[0], other], page.results([three[0], other])) == {}


def test_the_page_stands_alone_and_its_drawings_are_sound() -> None:
    text = page.html("a <b> & c", [shown("<script>alert(1)</script>"), shown("two")])
    assert "<script>" not in text and "a &lt;b&gt; &amp; c" in text
    assert not re.findall(r'(?:src|href)="(?!data:)', text), "nothing is fetched from elsewhere"
    drawings = re.findall(r"<svg.*?</svg>", text)
    assert len(drawings) == 4, "two measures, two curves"
    for drawing in drawings:
        ET.fromstring(drawing)
    data = re.search(r'src="data:image/webp;base64,([^"]+)"', text)
    assert data is not None
    import base64

    assert max(Image.open(io.BytesIO(base64.b64decode(data[1]))).size) <= page.PICTURE_PX


def test_before_a_test_is_evaluated_validation_is_shown_and_within_subject_is_said() -> None:
    run = shown(metrics={"epoch/val_dice": 0.75}, tags={"within_subject": "WITHIN-SUBJECT"})
    text = page.html("x", [run])
    assert "no test was evaluated yet" in text and "0.75" in text and "say nothing about new subjects" in text
    assert "No run yet" in page.html("x", [])


@given(st.floats(-1e6, 1e6), st.floats(0, 1e6))
def test_axes_reach_around_what_they_show(low: float, width: float) -> None:
    axis = charts.ticks(low, low + width)
    assert 2 <= len(axis) <= charts.TICKS + 3
    slack = 1e-6 * max(1.0, abs(low) + width)
    assert axis[0] <= low + slack and axis[-1] >= low + width - slack


def test_long_curves_are_thinned_to_their_means() -> None:
    points = [(float(step), float(step % 2)) for step in range(10_000)]
    few = charts.thinned(points)
    assert len(few) <= charts.MOST_POINTS and abs(np.mean([y for _, y in few]) - 0.5) < 0.01
    assert charts.curves("x", [charts.Curve("a", [(0, float("nan"))], 0)], "epoch") == ""


def test_a_page_is_made_from_runs_and_lies_beside_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    for seed in (1, 2):
        run_id = runs.begin(uri, replace(who(), seed=seed), [], {}, f"seed {seed}")
        with runs.running(MlflowTracker(uri, run_id, machine=False)) as tracker:
            for epoch in range(3):
                tracker.metrics({"epoch/val_auc": 0.5 + 0.1 * epoch}, epoch)
                (tmp_path / f"epoch_{epoch:04d}.png").write_bytes(picture(40 * epoch))
                tracker.artifact(tmp_path / f"epoch_{epoch:04d}.png", "pictures")
            (tmp_path / "confusion.png").write_bytes(picture(200))
            tracker.artifact(tmp_path / "confusion.png", "pictures/evaluation")
    (name,) = page.experiments(uri)
    text = page.publish(uri, name, tmp_path / "pages")
    assert page.publish(uri, name) == text and page.experiments(uri) == [name]
    assert (tmp_path / "pages" / "classification-opacity.html").read_text() == text
    assert text.index("seed 1") < text.index("seed 2") and "<th>seed</th>" in text and "<th>feed</th>" not in text
    assert text.count("data:image/webp") == 4 and "evaluation: confusion" in text
    store = runs.client(uri)
    (of_page,) = store.search_runs([store.get_experiment_by_name(page.PAGES).experiment_id])
    assert [item.path for item in store.list_artifacts(of_page.info.run_id)] == [page.NAME]
    assert of_page.info.run_id in store.get_experiment_by_name(name).tags[page.NOTE]
