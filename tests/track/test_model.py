"""A model goes into MLflow and comes out again: as a folder, by `mlflow.pyfunc`, and over HTTP from ``mlflow models serve``."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from medspark.errors import BadRequest
from medspark.track import model, runs
from tests.feed.test_served import half, sent
from tests.track import tiny
from tests.track.test_runs import begin, free_port, server

__all__ = ["server"]  # a fixture
LOADER = "tests.track.tiny"


@pytest.fixture(scope="module")
def logged(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str, str]:
    """(store, run id, name of the registered version) of a tiny segmenter."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    place = tmp_path_factory.mktemp("model")
    uri = runs.where(f"sqlite:///{place}/lake/mlflow.db", "")
    (place / "lake").mkdir()
    run_id = begin(uri)
    name = model.log(uri, run_id, tiny.save(place / "predictor", tiny.Tiny()), tiny.Tiny(), loader=LOADER)
    return uri, run_id, name


def test_a_model_is_found_by_every_name(logged: tuple[str, str, str], tmp_path: Path) -> None:
    uri, run_id, name = logged
    assert name == "models:/segmentation-bright-dark/1"
    for asked in (name, "models:/segmentation-bright-dark@candidate"):
        found = model.find(asked, uri)
        assert found.uri == name and found.run_id == run_id and found.registered_at is not None
        assert tiny.load(found.folder) == tiny.Tiny()
    assert tiny.load(model.find(f"runs:/{run_id}", uri).folder) == tiny.Tiny()
    folder = tiny.save(tmp_path / "own", tiny.Tiny())
    assert model.find(str(folder), uri) == model.Found(str(folder), folder)
    for wrong in ("models:/segmentation-bright-dark/9", "models:/none@candidate", "no/such/folder", f"runs:/{'0' * 32}"):
        with pytest.raises(BadRequest, match="--model"):
            model.find(wrong, uri)


def test_what_is_registered_says_where_it_comes_from(logged: tuple[str, str, str]) -> None:
    uri, run_id, _ = logged
    store = runs.client(uri)
    version = store.get_model_version("segmentation-bright-dark", "1")
    assert version.run_id == run_id and version.tags["feed"] == "lungs" and version.tags["commit"]
    again = model.register(uri, run_id, version.tags[model.MODEL_TAG], version.name, "candidate")
    assert again.endswith("/2") and model.find(f"models:/{version.name}@candidate", uri).uri == again


def test_it_loads_as_a_pyfunc_and_answers(logged: tuple[str, str, str]) -> None:
    from mlflow import pyfunc

    uri, _, name = logged
    found = model.find(name, uri)
    loaded = pyfunc.load_model(str(found.folder.parents[1]))
    assert [column.name for column in loaded.metadata.signature.inputs] == ["image", "pixels", "pixel_spacing_mm"]
    image = half()
    answers = loaded.predict(pd.DataFrame({"pixels": [image.tolist()]}), {"masks": "lists"})
    assert np.array_equal(answers[0]["masks"]["bright"], image > 128)
    assert loaded.predict(pd.DataFrame({"image": [sent(image)]}), {"masks": "lists"}) == answers
    shown = loaded.predict(pd.DataFrame([model.example(tiny.Tiny())]))
    assert set(shown[0]) == {"labels", "probabilities", "masks"}


@pytest.mark.slow
def test_a_model_goes_through_a_tracking_server(server: tuple[str, Any, Any], tmp_path: Path) -> None:
    address, _, _ = server
    run_id = begin(address)
    name = model.log(address, run_id, tiny.save(tmp_path / "predictor", tiny.Tiny()), tiny.Tiny(), loader=LOADER)
    for asked in (name, "models:/segmentation-bright-dark@candidate", f"runs:/{run_id}"):
        found = model.find(asked, address)
        assert found.run_id == run_id and tiny.load(found.folder) == tiny.Tiny()


def ask(address: str, content: dict[str, Any]) -> Any:
    request = urllib.request.Request(address, json.dumps(content).encode(), {"Content-Type": "application/json"})
    return json.loads(urllib.request.urlopen(request, timeout=60).read())


@pytest.mark.slow
def test_it_is_served_over_http(logged: tuple[str, str, str], tmp_path: Path) -> None:
    uri, run_id, name = logged
    port = free_port()
    command = [
        sys.executable,
        "-m",
        "mlflow",
        "models",
        "serve",
        "-m",
        name,
        "--env-manager",
        "local",
        "--port",
        str(port),
        "--workers",
        "1",
    ]
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])  # MLflow starts uvicorn by its name
    with (tmp_path / "log").open("w") as log:
        process = subprocess.Popen(
            command,
            env={**os.environ, "MLFLOW_TRACKING_URI": uri, "PATH": path},
            stdout=log,
            stderr=log,
            start_new_session=True,
            cwd=tmp_path,
        )
    address = f"http://127.0.0.1:{port}"
    try:
        for _ in range(600):
            try:
                urllib.request.urlopen(f"{address}/ping", timeout=2).read()
                break
            except OSError:
                assert process.poll() is None, (tmp_path / "log").read_text()[-3000:]
                time.sleep(0.2)
        image = half()
        wanted = (image > 128).astype(int).tolist()
        as_lists = {"params": {"masks": "lists"}}
        for content in (
            {"dataframe_records": [{"pixels": image.tolist()}]},
            {"dataframe_records": [{"image": sent(image)}]},
            {"dataframe_split": {"columns": ["image"], "data": [[sent(image, "JPEG")]]}},
            {"inputs": {"image": [sent(image)]}},
        ):
            answer = ask(f"{address}/invocations", {**content, **as_lists})["predictions"]
            assert answer[0]["masks"]["bright"] == wanted and answer[0]["labels"] == ["bright", "dark"]
        with pytest.raises(urllib.error.HTTPError) as refused:
            ask(f"{address}/invocations", {"dataframe_records": [{"image": "!"}]})
        assert "record 0: image is not base64" in json.loads(refused.value.read())["message"]
        store = runs.client(uri)
        for _ in range(100):
            if model.TTMIP in store.get_run(run_id).data.metrics:
                break
            time.sleep(0.1)
        assert store.get_run(run_id).data.metrics[model.TTMIP] > 0, "time from registration to the first answer"
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGTERM)
        process.wait(20)
