"""Runs in MLflow: where they are kept, how one is begun, and the tracker that speaks of it from any process.

Logging is explicit (``autolog`` warns on this TensorFlow and logs what nobody asked for). Everything but the beginning of a run goes through
`outbox.Outbox`, so that a server that is away stops nothing. Times are taken where a metric is said: sent twice it is one point.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from medspark.errors import BadRequest
from medspark.lake import owner
from medspark.lake.files import locate
from medspark.track.identity import Identity
from medspark.track.machine import Machine
from medspark.track.outbox import BATCH_WORDS, LEFT, PATIENCE_S, Entry, Outbox, Refused, kept

log = logging.getLogger("medspark.track")

DATABASE, ARTIFACTS = "mlflow.db", "mlflow-artifacts"  # beside each other, in the lake
SCHEMES = ("sqlite", "postgresql", "mysql", "mssql", "http", "https", "databricks", "file")
TIMEOUT_S, RETRIES = "20", "1"  # of MLflow's own client: `Outbox` tries again itself, and knows when to stop
LONGEST_PARAM, LONGEST_TAG = 6000, 8000  # MLflow cuts or refuses what is longer
AWAY = frozenset({"TEMPORARILY_UNAVAILABLE", "INTERNAL_ERROR", "REQUEST_LIMIT_EXCEEDED", "BAD_REQUEST", "DEADLINE_EXCEEDED", "ABORTED"})
"""MLflow's codes behind which a server may be well again (a locked SQLite file is BAD_REQUEST, a proxy's 502 INTERNAL_ERROR)."""
KIND_TAG = "mlflow.experimentKind"  # the UI then shows the pages for training, not those for chats
OLD_S = 30 * 86_400.0  # a folder of another boot or machine: no run takes a month
REPEATS = "MEDSPARK_REPEATS"  # environment: the run that this one repeats (`medspark rerun`)
REPEAT = "repeat.json"  # artifact of every run: job, options, settings


def where(given: str | None, lake: str) -> str:
    """The tracking store: ``--tracking-uri``, else MLFLOW_TRACKING_URI, else ``mlflow.db`` in the lake. Raises `BadRequest`."""
    uri = given or os.environ.get("MLFLOW_TRACKING_URI", "")
    if uri:
        scheme = uri.split(":", 1)[0].split("+", 1)[0] if ":" in uri else ""
        if scheme not in SCHEMES:
            raise BadRequest(f"tracking URI {uri}: expected sqlite:///FILE or http(s)://HOST (known: {', '.join(SCHEMES)})")
        if uri.startswith("sqlite:///") and not uri.startswith("sqlite:////"):  # ranks work in other folders
            uri = "sqlite:///" + os.path.abspath(uri.removeprefix("sqlite:///"))
        return uri
    _, root, address = locate(lake)
    if "://" in address:
        raise BadRequest(f"--lake {lake}: runs of a lake that is not a folder need a server; give --tracking-uri or MLFLOW_TRACKING_URI")
    os.makedirs(root, exist_ok=True)
    return f"sqlite:///{root}/{DATABASE}"


def artifacts_beside(uri: str) -> str | None:
    """Root of the artifacts of a SQLite store; None where a server decides."""
    return (Path(uri.removeprefix("sqlite:///")).parent / ARTIFACTS).as_uri() if uri.startswith("sqlite:///") else None


def client(uri: str) -> Any:
    """MLflow's client for runs and models of one store."""
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", TIMEOUT_S)
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", RETRIES)
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")  # MLflow would report to its makers what is used here
    for name in ("mlflow.store.db.utils", "alembic"):  # what they say while they make tables is no news
        logging.getLogger(name).setLevel(logging.WARNING)
    from mlflow.tracking import MlflowClient

    return MlflowClient(tracking_uri=uri, registry_uri=uri)


def experiment(store: Any, uri: str, name: str) -> str:
    """Id of the experiment ``name``, which is made where it is missing and restored where it was deleted."""
    from mlflow.exceptions import MlflowException

    found = store.get_experiment_by_name(name)
    if found is None:
        beside = artifacts_beside(uri)
        folder = "".join(letter if letter.isalnum() else "-" for letter in name).strip("-")
        try:
            tags = {KIND_TAG: "custom_model_development"}
            return str(store.create_experiment(name, artifact_location=f"{beside}/{folder}" if beside else None, tags=tags))
        except MlflowException as error:  # another run made it meanwhile
            found = store.get_experiment_by_name(name)
            if found is None:
                raise error
    if found.lifecycle_stage == "deleted":
        store.restore_experiment(found.experiment_id)
    return str(found.experiment_id)


def begin(
    uri: str,
    who: Identity,
    arguments: Sequence[str],
    settings: Mapping[str, Any],
    name: str = "",
    config: Mapping[str, Any] | None = None,
) -> str:
    """Makes a run and says who it is; returns its id, from which every process makes its `MlflowTracker`.

    arguments : the job's own options (`identity.arguments`), for `medspark rerun`
    settings : config as nested dictionaries (section -> key -> value), ditto; Spark's own and the key's file are left out
    config : flat values that are shown as parameters (learning rate, batch, ...)
    Raises `BadRequest` where the store does not answer: nothing has been trained yet.
    """
    from mlflow.exceptions import MlflowException
    from sqlalchemy.exc import SQLAlchemyError

    kept_settings = {
        section: {key: value for key, value in values.items() if key != "key_file"}
        for section, values in settings.items()
        if section != "spark"  # changes no number, and may hold a store's secrets
    }
    repeat = {"job": who.job, "arguments": list(arguments), "settings": kept_settings, "feed": who.feed, "feed_version": who.feed_version}
    try:
        store = client(uri)
        run = store.create_run(experiment(store, uri, who.experiment), run_name=name or default_name(who), tags=_tags(who))
    except (MlflowException, SQLAlchemyError, OSError) as error:
        raise BadRequest(f"tracking store {hidden(uri)}: does not answer ({type(error).__name__}); start it or name another") from None
    tracker = MlflowTracker(uri, run.info.run_id, machine=False)
    tracker.params({**(config or {}), **who.params()})
    tracker.dataset(who.feed, f"{who.feed_version}:{who.card}", who.task)
    tracker.text(json.dumps(repeat, indent=1), REPEAT)
    tracker.close()
    deliver(uri)
    sweep()
    return str(run.info.run_id)


def default_name(who: Identity) -> str:
    """Says what a run is, and differs from all others; MLflow's own names are drawn from a generator that training seeds: they repeat."""
    return f"{who.feed}@{who.feed_version} seed {who.seed} {uuid.uuid4().hex[:4]}"


def again(uri: str, run_id: str) -> None:
    """Opens a run that was begun before, for ``--resume``; raises `BadRequest` where there is none."""
    store = client(uri)
    found_run(store, uri, run_id)
    store.update_run(run_id, "RUNNING")


def found_run(store: Any, uri: str, run_id: str) -> Any:
    """MLflow's run; raises `BadRequest` where the store does not have it."""
    from mlflow.exceptions import MlflowException

    try:
        return store.get_run(run_id)
    except MlflowException as error:
        raise BadRequest(
            f"run {run_id}: not in the tracking store {hidden(uri)} ({error.error_code}); name the store by --tracking-uri"
        ) from None


def _tags(who: Identity) -> dict[str, str]:
    return {
        **who.tags(),
        "mlflow.source.name": f"jobs/{who.job}.py",
        "mlflow.source.type": "JOB",
        "mlflow.source.git.commit": who.code.commit,
        **({"repeats": os.environ[REPEATS]} if os.environ.get(REPEATS) else {}),
    }


def hidden(uri: str) -> str:
    """Without user and password."""
    scheme, slashes, rest = uri.partition("://")
    return scheme + slashes + rest.rpartition("@")[2]


class MlflowTracker:
    """One run of MLflow (`tracker.Tracker`). Final. May be made in any process that reaches the store, and pickled between them.

    machine : whether the load of this machine is measured and logged
    """

    def __init__(self, uri: str, run_id: str, machine: bool = True) -> None:
        self.uri, self.run_id = uri, run_id
        self._store = client(uri)
        self._machine_wanted = machine
        self._outbox = Outbox(self._send, self._alive, _waiting() / f"{run_id}-{uuid.uuid4().hex[:8]}")
        _note(self._outbox.folder, uri, run_id)
        self._machine = Machine(self.metrics) if machine else None

    def __reduce__(self) -> tuple[type[MlflowTracker], tuple[str, str, bool]]:
        return MlflowTracker, (self.uri, self.run_id, self._machine_wanted)

    # ---- Tracker

    def params(self, values: Mapping[str, Any]) -> None:
        """A parameter is said once: one that a resumed run says otherwise becomes the tag ``resumed.<name>``."""
        self._words("params", {_name(name): str(value)[:LONGEST_PARAM] for name, value in values.items()})

    def tags(self, values: Mapping[str, str]) -> None:
        self._words("tags", {_name(name): str(value)[:LONGEST_TAG] for name, value in values.items()})

    def metrics(self, values: Mapping[str, float], step: int) -> None:
        now = int(time.time() * 1000)
        self._outbox.put(Entry("metrics", [[_name(name), float(value), now, int(step)] for name, value in values.items()]))

    def artifact(self, file: Path, folder: str = "") -> None:
        try:
            self._outbox.put_file(Path(file), folder)
        except OSError as error:
            log.warning("artifact %s is not logged: %s", Path(file).name, error.strerror or type(error).__name__)

    def text(self, content: str, name: str) -> None:
        folder, _, last = name.rpartition("/")
        place = self._outbox.folder / uuid.uuid4().hex / last
        try:
            place.parent.mkdir()
            place.write_text(content, encoding="utf-8")
            self.artifact(place, folder)
        except OSError as error:
            log.warning("text %s is not logged: %s", name, error.strerror)
        shutil.rmtree(place.parent, ignore_errors=True)

    # ---- besides

    def dataset(self, name: str, digest: str, task: str) -> None:
        """What the run read, for MLflow's column and filter ``dataset.name``."""
        self._outbox.put(Entry("inputs", {"name": name, "digest": digest[:36], "task": task}))

    def flush(self, patience_s: float = PATIENCE_S) -> bool:
        return self._outbox.flush(patience_s)

    def close(self, status: str = "", patience_s: float = PATIENCE_S) -> bool:
        """Sends what is left. ``status`` (FINISHED, FAILED, KILLED) ends the run; without one another process goes on with it."""
        if self._machine is not None:
            self._machine.stop()
        if status:
            self._outbox.put(Entry("end", {"status": status, "ms": int(time.time() * 1000)}))
        return self._outbox.close(patience_s)

    def _words(self, kind: Any, values: dict[str, str]) -> None:
        items = list(values.items())
        for start in range(0, len(items), BATCH_WORDS):
            self._outbox.put(Entry(kind, dict(items[start : start + BATCH_WORDS])))

    def _send(self, entry: Entry, folder: Path) -> None:
        send(self._store, self.run_id, entry, folder)

    def _alive(self) -> bool:
        try:
            self._store.get_run(self.run_id)
        except Exception:  # of whatever kind: the question is whether it answers
            return False
        return True


@contextmanager
def running(tracker: MlflowTracker) -> Iterator[MlflowTracker]:
    """Ends the run as it went: FINISHED, KILLED (interrupted), FAILED."""
    try:
        yield tracker
    except BaseException as error:
        tracker.close("KILLED" if isinstance(error, (KeyboardInterrupt, SystemExit)) else "FAILED")
        raise
    tracker.close("FINISHED")


# ---- sending


def send(store: Any, run_id: str, entry: Entry, folder: Path) -> None:
    """One entry to MLflow; raises `outbox.Refused` where it is no use to try again."""
    from mlflow.exceptions import MlflowException

    try:
        _SENDERS[entry.kind](store, run_id, entry.content, folder)
    except MlflowException as error:
        if error.error_code in AWAY:
            raise
        raise Refused(f"{error.error_code}: {str(error)[:300]}") from None


def _params(store: Any, run_id: str, content: dict[str, str], folder: Path) -> None:
    from mlflow.entities import Param
    from mlflow.exceptions import MlflowException

    try:
        store.log_batch(run_id, params=[Param(name, value) for name, value in content.items()])
    except MlflowException as error:
        if error.error_code != "INVALID_PARAMETER_VALUE":
            raise
        # MLflow says which parameter has another value, but only in prose, and takes none of the batch: ask for what is there.
        there = store.get_run(run_id).data.params
        fresh = [Param(name, value) for name, value in content.items() if name not in there]
        if len(fresh) == len(content):
            raise
        store.log_batch(run_id, params=fresh)
        changed = {f"resumed.{name}": value for name, value in content.items() if name in there and there[name] != value}
        _sent_tags(store, run_id, changed, folder)


def _sent_tags(store: Any, run_id: str, content: dict[str, str], folder: Path) -> None:
    from mlflow.entities import RunTag

    store.log_batch(run_id, tags=[RunTag(name, value) for name, value in content.items()])


def _metrics(store: Any, run_id: str, content: list[tuple[str, float, int, int]], folder: Path) -> None:
    from mlflow.entities import Metric

    store.log_batch(run_id, metrics=[Metric(*point) for point in content])


def _file(store: Any, run_id: str, content: dict[str, str], folder: Path) -> None:
    place = folder / content["name"]
    if place.is_dir():
        store.log_artifacts(run_id, str(place), "/".join(filter(None, [content["folder"], place.name])))
    else:
        store.log_artifact(run_id, str(place), content["folder"] or None)


def _inputs(store: Any, run_id: str, content: dict[str, str], folder: Path) -> None:
    from mlflow.entities import Dataset, DatasetInput

    source = json.dumps({"feed": content["name"]})
    data = Dataset(name=content["name"], digest=content["digest"], source_type="feed", source=source, profile=json.dumps(content))
    store.log_inputs(run_id, [DatasetInput(dataset=data, tags=[])])


def _end(store: Any, run_id: str, content: dict[str, Any], folder: Path) -> None:
    store.set_terminated(run_id, content["status"], content["ms"])


_SENDERS: dict[str, Callable[[Any, str, Any, Path], None]] = {
    "params": _params,
    "tags": _sent_tags,
    "metrics": _metrics,
    "file": _file,
    "inputs": _inputs,
    "end": _end,
}


def _name(name: str) -> str:
    """MLflow's names hold letters, digits, ``_ - . /``, spaces and colons."""
    return "".join(letter if letter.isalnum() or letter in "_-./ :" else "_" for letter in name)[:250]


# ---- what was left behind


def _waiting() -> Path:
    """Where files wait: the user's cache folder, or the temporary one where there is no such (executors may have no home)."""
    base = Path(os.environ.get("XDG_CACHE_HOME") or os.path.join(os.path.expanduser("~"), ".cache"))
    with suppress(OSError):
        base.mkdir(parents=True, exist_ok=True)
    if not os.access(base, os.W_OK):
        base = Path(tempfile.gettempdir()) / f"medspark-{os.getuid()}"
    return base / "medspark" / "unsent"


def _note(folder: Path, uri: str, run_id: str) -> None:
    (folder / "run.json").write_text(json.dumps({"uri": uri, "run_id": run_id, "owner": str(owner.current())}))


def sweep() -> int:
    """Removes copies of files that killed processes were to send (they show pixels); returns the number of folders."""
    done = 0
    for note in _waiting().glob("*/run.json"):
        if (note.parent / LEFT).exists():
            continue
        old = time.time() - note.stat().st_mtime > OLD_S
        if old or owner.Owner.parse(json.loads(note.read_text())["owner"]).dead():
            shutil.rmtree(note.parent, ignore_errors=True)
            done += 1
    return done


def deliver(uri: str) -> int:
    """Sends what earlier runs of this user on this machine could not send to the store; returns the number of runs. Stops at the first failure."""
    done = 0
    for left in sorted(_waiting().glob(f"*/{LEFT}")):
        said = json.loads((left.parent / "run.json").read_text())
        if said["uri"] != uri:
            continue
        store = client(uri)
        try:
            for entry in kept(left.parent):
                try:
                    send(store, said["run_id"], entry, left.parent)
                except Refused as error:
                    log.warning("the tracking server refuses %s of run %s: %s", entry.kind, said["run_id"], error)
        except Exception as error:  # away again: the next run tries
            log.warning("what run %s left is not sent yet (%s)", said["run_id"], type(error).__name__)
            return done
        shutil.rmtree(left.parent, ignore_errors=True)
        done += 1
    return done
