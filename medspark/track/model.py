"""A trained network in MLflow: logged with what it needs, registered under a name, found again by any of its names, served over HTTP.

The model is `train.predictor`'s folder of data; no pickle and no code travels with it: it loads wherever medspark is installed.
"""

from __future__ import annotations

import logging
import os
import re
import tempfile
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from medspark import __version__
from medspark.errors import BadRequest
from medspark.feed.served import Predictor, Served, recipe_of
from medspark.track.identity import packages
from medspark.track.runs import client

log_ = logging.getLogger("medspark.track")

LOADER = "medspark.train.predictor"
NEEDED = ("tensorflow-cpu", "tensorflow", "numpy", "pyarrow", "pandas", "pillow")  # what a server of the model must have, besides medspark
FIRST_TAG = "first_served_ms"  # of the registered version, or of the run where none is registered
MODEL_TAG = "model_id"
TTMIP = "kpi/ttmip_s"
EXAMPLE_PX = 32  # side of the example image: larger ones only swell the model's folder


@dataclass(frozen=True)
class Found:
    """A model that lies in a local folder.

    uri : its exact name: an alias moves, ``models:/NAME/3`` stays
    folder : what `train.predictor.load` reads
    run_id : of its training, where MLflow knows it;  registered_at : where it is registered
    """

    uri: str
    folder: Path
    run_id: str = ""
    registered_at: datetime | None = None


def log(
    uri: str, run_id: str, folder: str | Path, predictor: Predictor, name: str = "", alias: str = "candidate", loader: str = LOADER
) -> str:
    """Logs a predictor's folder as the run's model, registers it, points ``alias`` at it; returns ``models:/NAME/VERSION``.

    loader : module whose ``_load_pyfunc(folder)`` returns a `Served`
    """
    from mlflow import pyfunc
    from mlflow.entities import LoggedModelOutput, LoggedModelStatus
    from mlflow.models import Model

    store = client(uri)
    run = store.get_run(run_id)
    name = name or default_name(predictor)
    params = {"task": str(predictor.task), "labels": ", ".join(predictor.labels)}
    made = store.create_logged_model(
        run.info.experiment_id, name="model", source_run_id=run_id, model_type=str(predictor.task), params=params
    )
    with tempfile.TemporaryDirectory(prefix="medspark-") as work:
        place = Path(work) / "model"
        pyfunc.save_model(
            path=str(place),
            loader_module=loader,
            data_path=str(folder),
            mlflow_model=Model(artifact_path=made.artifact_location, model_uuid=made.model_id, run_id=run_id, model_id=made.model_id),
            signature=signature(predictor),
            input_example=[example(predictor)],
            pip_requirements=requirements(),
            metadata={"medspark": __version__, "image": list(predictor.image.shape), "value_unit": predictor.image.value_unit},
        )
        store.log_model_artifacts(made.model_id, str(place))
    store.finalize_logged_model(made.model_id, LoggedModelStatus.READY)
    store.log_outputs(run_id, [LoggedModelOutput(model_id=made.model_id, step=0)])
    return register(uri, run_id, made.model_id, name, alias)


def register(uri: str, run_id: str, model_id: str, name: str, alias: str) -> str:
    """A new version of the registered model ``name``; its tags are the run's."""
    from mlflow.exceptions import MlflowException

    store = client(uri)
    try:
        store.create_registered_model(name)
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise
    tags = {key: value for key, value in store.get_run(run_id).data.tags.items() if not key.startswith("mlflow.")}
    # By its place: a source models:/<id> is looked up in the store that this process has as its default, not in this one.
    source = store.get_logged_model(model_id).artifact_location
    tags[MODEL_TAG] = model_id  # a SQL store forgets the argument model_id
    version = store.create_model_version(name, source=source, run_id=run_id, tags=tags, model_id=model_id)
    if alias:
        store.set_registered_model_alias(name, alias, version.version)
    return f"models:/{name}/{version.version}"


def default_name(predictor: Predictor) -> str:
    words = "-".join(re.sub(r"[^A-Za-z0-9_.]+", "-", label).strip("-") for label in predictor.labels[:3])
    return f"{predictor.task}-{words}" + ("" if len(predictor.labels) <= 3 else f"-and-{len(predictor.labels) - 3}-more")


def find(name: str, uri: str) -> Found:
    """A model by its folder, ``models:/NAME/VERSION``, ``models:/NAME@ALIAS``, ``models:/<model id>`` or ``runs:/<run id>`` in the store ``uri``.

    Remote models are copied into a temporary folder. Raises `BadRequest` where there is none.
    """
    from mlflow.artifacts import download_artifacts
    from mlflow.exceptions import MlflowException

    if not name.startswith(("models:/", "runs:/")):
        if not Path(name).is_dir():
            raise BadRequest(f"--model {name}: no such folder; a registered model is named models:/NAME/VERSION or models:/NAME@ALIAS")
        return Found(str(Path(name).resolve()), _data(Path(name)))
    store = client(uri)
    try:
        exact, location, run_id, registered = _exact(store, name)
        place = download_artifacts(artifact_uri=location, dst_path=tempfile.mkdtemp(prefix="medspark-model-"), tracking_uri=uri)
    except MlflowException as error:
        raise BadRequest(f"--model {name}: not in the tracking store ({str(error).splitlines()[0][:200]})") from None
    return Found(exact, _data(Path(place)), run_id, registered)


def _exact(store: Any, name: str) -> tuple[str, str, str, datetime | None]:
    """(exact name, where its files lie, run id, time of registration)."""
    if name.startswith("runs:/"):
        run_id = name.removeprefix("runs:/").split("/")[0]
        outputs = store.get_run(run_id).outputs
        if outputs is None or not outputs.model_outputs:
            raise BadRequest(f"--model {name}: this run has logged no model")
        return f"runs:/{run_id}", store.get_logged_model(outputs.model_outputs[-1].model_id).artifact_location, run_id, None
    said = name.removeprefix("models:/")
    if "@" in said:
        version = store.get_model_version_by_alias(*said.split("@", 1))
    elif "/" in said:
        version = store.get_model_version(*said.split("/", 1))
    else:
        found = store.get_logged_model(said)
        return name, found.artifact_location, found.source_run_id or "", None
    location = store.get_model_version_download_uri(version.name, version.version)
    at = datetime.fromtimestamp(version.creation_timestamp / 1000, UTC)
    return f"models:/{version.name}/{version.version}", location, version.run_id or "", at


def _data(folder: Path) -> Path:
    """The predictor's folder within an MLflow model; a folder that is none of MLflow's is the predictor's own."""
    if not (folder / "MLmodel").exists():
        return folder
    from mlflow.models import Model

    return folder / Model.load(str(folder)).flavors["python_function"]["data"]


# ---- what a request and an answer look like


def signature(predictor: Predictor) -> Any:
    from mlflow.models import ModelSignature
    from mlflow.types.schema import AnyType, Array, ColSpec, DataType, Map, ParamSchema, ParamSpec, Schema

    inputs = Schema(
        [
            ColSpec(DataType.string, "image", required=False),
            ColSpec(AnyType(), "pixels", required=False),
            ColSpec(Array(DataType.double), "pixel_spacing_mm", required=False),
        ]
    )
    outputs: list[Any] = [ColSpec(Array(DataType.string), "labels"), ColSpec(Map(DataType.double), "probabilities")]
    if predictor.task == "segmentation":
        outputs.append(ColSpec(AnyType(), "masks", required=False))
    return ModelSignature(inputs, Schema(outputs), ParamSchema([ParamSpec("masks", DataType.string, "rle")]))


def example(predictor: Predictor) -> dict[str, Any]:
    """A record of grey noise in this model's size: what a request looks like. It shows nobody."""
    recipe = recipe_of(predictor)
    rows, cols = (EXAMPLE_PX, EXAMPLE_PX) if recipe.size is not None else predictor.image.space[-2:]
    noise = np.random.default_rng(0).integers(0, 200, (rows, cols, *predictor.image.shape[-1:]))
    if recipe.kind == "volume":
        noise = np.stack([noise] * recipe.depth)
    record: dict[str, Any] = {"pixels": noise.tolist()}
    if recipe.spacing_mm is not None:
        record["pixel_spacing_mm"] = [float(side) for side in recipe.spacing_mm]
    return record


def requirements() -> list[str]:
    found = packages(NEEDED)
    return [f"medspark=={__version__}", *(f"{name}=={found[name]}" for name in NEEDED if name in found)]


# ---- serving


class OverMlflow(Served):
    """Says what is wrong with a record in the answer's message: of other errors MLflow's server tells the stack alone."""

    def predict(self, data: Any, params: Mapping[str, Any] | None = None) -> list[dict[str, Any]]:
        from mlflow.exceptions import MlflowException

        try:
            return super().predict(data, params)
        except BadRequest as error:
            raise MlflowException.invalid_parameter_value(str(error)) from None


def served(path: str, predictor: Predictor) -> Served:
    """What ``_load_pyfunc`` returns: answers requests, and notes when the model answered its first one (TTMIP)."""
    return OverMlflow(predictor, lambda: threading.Thread(target=note_first, args=(Path(path),), daemon=True).start())


def note_first(path: Path) -> float | None:
    """Seconds from the registration of a model to now, noted once in the store that MLFLOW_TRACKING_URI names; None where that is not to be had.

    path : the data within an MLflow model's folder (``data/<name>``). Runs beside the first answer; a store that is away costs the note, not the answer.
    """
    from mlflow.models import Model

    uri = os.environ.get("MLFLOW_TRACKING_URI", "")
    if not uri:
        return None
    try:
        meta = Model.load(str(next(folder for folder in path.parents if (folder / "MLmodel").exists())))
        if not meta.model_id or not meta.run_id:
            return None
        store = client(uri)
        versions = [one for one in store.search_model_versions(f"run_id = '{meta.run_id}'") if one.tags.get(MODEL_TAG) == meta.model_id]
        if not versions or FIRST_TAG in versions[0].tags:
            return None
        now_ms = int(datetime.now(UTC).timestamp() * 1000)
        seconds = (now_ms - versions[0].creation_timestamp) / 1000
        store.set_model_version_tag(versions[0].name, versions[0].version, FIRST_TAG, str(now_ms))
        store.log_metric(meta.run_id, TTMIP, seconds)
    except Exception as error:  # no store, no MLmodel beside it, no right to write: serving goes on
        log_.info("the first answer of this model is not noted (%s)", type(error).__name__)
        return None
    return seconds
