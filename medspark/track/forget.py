"""What MLflow keeps that shows a subject who is to be forgotten: pictures of runs, and the pages that hold them. Models stay, and are named.

The stores are those that the lake's runs name, and the lake's own. One that does not answer stops nothing: it is named, and forgetting again clears it.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from medspark.errors import BadRequest
from medspark.lake.files import locate
from medspark.lake.store import Lake
from medspark.lake.upkeep.learnt import records
from medspark.track import page
from medspark.track.runs import client, deliver, hidden, sweep, where

log = logging.getLogger("medspark.track")

PICTURES = "pictures"  # folder of a run's artifacts
FILE = "sqlite:///"
PAGE_OF_RUNS = 1000  # that MLflow returns at once


class TrackedRuns:
    """The runs of one lake, in whichever stores they are (`medspark.lake.upkeep.learnt.Tracked`). Final."""

    def __init__(self, lake: Lake) -> None:
        self.unreached: set[str] = set()
        _, root, _ = locate(lake.uri)
        named = {record.uri for record in records(lake)} - {"", "none"}
        with suppress(BadRequest):  # a lake in an object store, and no server is named: only the runs themselves say where they are
            named.add(where(None, lake.uri))
        self._stores = sorted(uri for uri in named if not uri.startswith(FILE) or Path(uri.removeprefix(FILE)).exists())
        self._own = f"{FILE}{root}/"

    def _each(self, ask: Callable[[Any, str], None]) -> None:
        """Asks every store."""
        from mlflow.exceptions import MlflowException
        from sqlalchemy.exc import SQLAlchemyError

        for uri in self._stores:
            if hidden(uri) in self.unreached:
                continue
            try:
                ask(client(uri), uri)
            except (MlflowException, SQLAlchemyError, OSError) as error:
                log.warning("tracking store %s does not answer (%s)", hidden(uri), type(error).__name__)
                self.unreached.add(hidden(uri))

    def runs(self) -> Mapping[str, str]:
        """Of the store within the lake: a server's runs may be other lakes'."""
        found: dict[str, str] = {}

        def ask(store: Any, uri: str) -> None:
            if uri.startswith(self._own):
                for run in _all_runs(store):
                    tags = run.data.tags
                    if tags.get("feed") and tags.get("feed_version"):
                        found[run.info.run_id] = f"{tags['feed']}@{tags['feed_version']}"

        self._each(ask)
        return found

    def runs_of(self, models: Collection[str]) -> set[str]:
        found: set[str] = set()

        def ask(store: Any, uri: str) -> None:
            for model in models:
                name, slash, version = model.removeprefix("models:/").rpartition("/")
                if model.startswith("runs:/"):
                    found.add(model.removeprefix("runs:/").split("/")[0])
                elif not model.startswith("models:/"):  # a folder: a run's own, ``<run>/model``
                    found.add(Path(model).parent.name)
                elif slash:
                    found.update(one.run_id for one in store.search_model_versions(f"name = '{name}'") if str(one.version) == version)
                else:
                    logged = _there(store.get_logged_model, version)
                    found.add("" if logged is None else logged.source_run_id)

        self._each(ask)
        return {run for run in found if run}

    def models(self, runs: Collection[str]) -> set[str]:
        found: set[str] = set()

        def ask(store: Any, uri: str) -> None:
            for run in runs:
                if _there(store.get_run, run) is not None:
                    found.update(f"models:/{one.name}/{one.version}" for one in store.search_model_versions(f"run_id = '{run}'"))

        self._each(ask)
        return found

    def clear(self, runs: Collection[str]) -> int:
        gone = 0

        def ask(store: Any, uri: str) -> None:
            nonlocal gone
            deliver(uri)  # what waits on this machine would come later
            experiments: set[str] = set()
            for run_id in sorted(runs):
                run = _there(store.get_run, run_id)
                if run is not None:
                    gone += _remove(store, run, uri)
                    experiments.add(run.info.experiment_id)
            names = {store.get_experiment(one).name for one in experiments}
            for name in sorted(names & page.published(store)):
                page.publish(uri, name)  # anew, without the pictures

        sweep()
        self._each(ask)
        return gone


def _there(get: Callable[[str], Any], name: str) -> Any:
    """MLflow's run or model of that id; None where the store does not have it."""
    from mlflow.exceptions import MlflowException

    try:
        return get(name)
    except MlflowException as error:
        if error.error_code in (
            "RESOURCE_DOES_NOT_EXIST",
            "INVALID_PARAMETER_VALUE",
        ):  # no such run; no id of MLflow's (training without it)
            return None
        raise


def _all_runs(store: Any) -> Iterator[Any]:
    from mlflow.entities import ViewType

    for experiment in store.search_experiments(view_type=ViewType.ALL):
        token = None
        while True:
            found = store.search_runs([experiment.experiment_id], run_view_type=ViewType.ALL, max_results=PAGE_OF_RUNS, page_token=token)
            yield from found
            token = found.token
            if not token:
                break


def _remove(store: Any, run: Any, uri: str) -> int:
    from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository

    files = _files(store, run.info.run_id, PICTURES)
    if files:
        get_artifact_repository(run.info.artifact_uri, tracking_uri=uri).delete_artifacts(PICTURES)
    return files


def _files(store: Any, run_id: str, folder: str) -> int:
    return sum(_files(store, run_id, item.path) if item.is_dir else 1 for item in store.list_artifacts(run_id, folder))
