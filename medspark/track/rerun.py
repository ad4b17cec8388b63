"""``medspark rerun RUN_ID``: the same job on the same feed version with the same options and settings, and what came out otherwise.

The feed must be the one of the logged card (which names every file's SHA-256), the first batch must have the logged hash: the job stops
there if not. Code and packages may differ, and are named: to see what they change is what one repeats a run for.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from medspark.config import from_tree
from medspark.errors import BadRequest, MedsparkError
from medspark.feed.open import open_feed
from medspark.lake.card import key_of
from medspark.track import identity
from medspark.track.runs import DATABASE, REPEAT, REPEATS, client, found_run, where

JOBS = identity.ROOT / "jobs"
STDERR = 2  # where the job's output goes: its last line is none of ours
UNCOMPARED = ("system/", "kpi/", "images_per_s", "waiting", "reader/", "cache/", "machine", "epoch/reader/", "epoch/cache/")
"""Beginnings of metrics that measure the machine, not the model."""


class RerunFailed(MedsparkError):
    """The repeated run did not end."""


@dataclass(frozen=True)
class Logged:
    """What a run has logged that it can be repeated from. batch : hash of its first batch; identity : its parameters feed_card, code, package/*"""

    run_id: str
    job: str
    arguments: tuple[str, ...]
    settings: Mapping[str, Mapping[str, Any]]
    feed: str
    feed_version: int
    batch: str
    identity: Mapping[str, str]


@dataclass(frozen=True)
class Change:
    """A metric's last value in both runs; apart : largest distance along the curve, None where the steps differ."""

    metric: str
    old: float
    new: float
    apart: float | None


@dataclass(frozen=True)
class Comparison:
    """old, new : run ids;  differs : what is not the same about the two (code, packages);  only : metrics that one of them lacks"""

    old: str
    new: str
    batch: str
    differs: tuple[str, ...]
    changes: tuple[Change, ...]
    only: tuple[str, ...]

    @property
    def equal(self) -> bool:
        return not self.only and all(change.apart == 0.0 for change in self.changes)


def rerun(run_id: str, lake: str = "", tracking_uri: str | None = None, more: Sequence[str] = ()) -> Comparison:
    """Repeats a run. ``more``: further words for the job, such as ``--set spark.executor.memory=8g``.

    Raises `BadRequest` where the run, its feed or its job is not there, `RerunFailed` where the job ends otherwise than with status 0.
    """
    if not lake and not tracking_uri and not os.environ.get("MLFLOW_TRACKING_URI"):
        raise BadRequest("--lake: name the lake of the run (its runs are in mlflow.db there), or --tracking-uri and the lake")
    uri = where(tracking_uri, lake)
    logged = read(uri, run_id)
    lake = lake or lake_beside(uri)
    differs = check(logged, lake)
    with tempfile.TemporaryDirectory(prefix="medspark-") as work:
        summary = Path(work) / "summary.json"
        words = [*command(logged, lake, uri), *more, "--summary", str(summary)]
        environment = {**os.environ, REPEATS: run_id, identity.EXPECTED: logged.batch}
        status = subprocess.run(words, env=environment, stdout=STDERR, check=False).returncode
        if status:
            raise RerunFailed(f"the repeated run ended with status {status}; see above")
        new = json.loads(summary.read_text())["run_id"]
    return compare(uri, run_id, new, differs)


def read(uri: str, run_id: str) -> Logged:
    """Raises `BadRequest` for a run that was not begun by `runs.begin`."""
    from mlflow.exceptions import MlflowException

    store = client(uri)
    run = found_run(store, uri, run_id)
    with tempfile.TemporaryDirectory(prefix="medspark-") as work:
        try:
            said = json.loads(Path(store.download_artifacts(run_id, REPEAT, work)).read_text())
        except (MlflowException, OSError):
            raise BadRequest(f"run {run_id}: has no {REPEAT}, from which it could be repeated") from None
    known = {name: value for name, value in run.data.params.items() if name in ("feed_card", "code") or name.startswith("package/")}
    return Logged(
        run_id,
        said["job"],
        tuple(said["arguments"]),
        said["settings"],
        said["feed"],
        said["feed_version"],
        run.data.tags.get(identity.BATCH_TAG, ""),
        known,
    )


def lake_beside(uri: str) -> str:
    """The lake that a SQLite store lies in; raises `BadRequest` for any other store."""
    folder = os.path.dirname(uri.removeprefix("sqlite:///"))
    if uri.startswith("sqlite:///") and uri.endswith(f"/{DATABASE}") and key_of(folder) is not None:
        return folder
    raise BadRequest("--lake: name the lake of the run; runs hold no addresses, and this tracking store lies in none")


def check(logged: Logged, lake: str) -> tuple[str, ...]:
    """Sentences on what is not as it was then (code, packages); raises `BadRequest` for another feed than the logged one."""
    if not (JOBS / f"{logged.job}.py").exists():
        raise BadRequest(f"run {logged.run_id}: job {logged.job} is not here ({JOBS})")
    feed = open_feed(lake, logged.feed, logged.feed_version, verify=True)
    digest = identity.card_digest(feed.card)
    if logged.identity.get("feed_card") != digest:
        raise BadRequest(f"run {logged.run_id}: feed {feed.name}@{feed.version} of {lake} is not the one it was trained on; name its lake")
    code = identity.code()
    now = {"code": code.short, **{f"package/{name}": version for name, version in identity.packages().items()}}
    names = sorted({*now, *logged.identity} - {"feed_card"})
    return tuple(
        f"{name}: {logged.identity.get(name, 'none')} then, {now.get(name, 'none')} now" for name in names if _other(name, logged, now)
    )


def _other(name: str, logged: Logged, now: Mapping[str, str]) -> bool:
    return logged.identity.get(name) != now.get(name)


def command(logged: Logged, lake: str, uri: str) -> list[str]:
    """The job's command line: logged options, the feed pinned at its version, settings that are not the defaults."""
    submit = Path(sys.executable).with_name("spark-submit")
    starter = str(submit) if submit.exists() else shutil.which("spark-submit")
    if starter is None:
        raise BadRequest("spark-submit is not on the PATH; run this from medspark's environment")
    pinned = [f"--feed={logged.feed}@{logged.feed_version}" if word.startswith("--feed=") else word for word in logged.arguments]
    settings = [word for item in overrides(logged.settings) for word in ("--set", item)]
    return [starter, str(JOBS / f"{logged.job}.py"), "--lake", lake, "--tracking-uri", uri, *pinned, *settings]


def overrides(settings: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """``section.key=value`` of every setting that is not its default, as ``--set`` reads it."""
    default = from_tree({})
    said = []
    for section, values in settings.items():
        ordinary = getattr(default, section)
        for name, value in values.items():
            was = ordinary.get(name) if isinstance(ordinary, dict) else getattr(ordinary, name, None)
            if json.dumps(was) != json.dumps(value):
                said.append(f"{section}.{name}={'' if value is None else json.dumps(value)}")
    return said


def compare(uri: str, old: str, new: str, differs: tuple[str, ...]) -> Comparison:
    """Both runs' metrics, but those of the machine."""
    store = client(uri)
    runs = {run_id: found_run(store, uri, run_id) for run_id in (old, new)}
    names = {run_id: {name for name in run.data.metrics if not name.startswith(UNCOMPARED)} for run_id, run in runs.items()}
    changes = []
    for name in sorted(names[old] & names[new]):
        curves = [{point.step: point.value for point in store.get_metric_history(run_id, name)} for run_id in (old, new)]
        apart = max(abs(value - curves[1][step]) for step, value in curves[0].items()) if curves[0].keys() == curves[1].keys() else None
        changes.append(Change(name, runs[old].data.metrics[name], runs[new].data.metrics[name], apart))
    batch = runs[new].data.tags.get(identity.BATCH_TAG, "")
    return Comparison(old, new, batch, differs, tuple(changes), tuple(sorted(names[old] ^ names[new])))


def render(found: Comparison) -> str:
    """The comparison as text for people."""
    lines = [f"run {found.old} repeated as {found.new}; the first batch is the same ({found.batch or 'not logged'})"]
    lines += [f"  differs: {item}" for item in found.differs]
    lines += ["", f"{'metric':<32}{'then':>14}{'now':>14}{'difference':>14}{'along curve':>14}"]
    for change in found.changes:
        apart = "other steps" if change.apart is None else f"{change.apart:.3g}"
        lines.append(f"{change.metric:<32}{change.old:>14.6g}{change.new:>14.6g}{change.new - change.old:>+14.3g}{apart:>14}")
    lines += [f"{name:<32}{'only in one of the runs':>30}" for name in found.only]
    return "\n".join([*lines, "", "equal, to the last bit" if found.equal else "not equal; differences as above"])
