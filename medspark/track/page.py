"""The comparison page of an experiment: one self-contained HTML file with curves, results with their intervals, and pictures side by side.

`gather` asks MLflow, `html` draws (pure). The page is an artifact of a run in the experiment `PAGES`, which the description of its own experiment links to.
"""

from __future__ import annotations

import base64
import io
import re
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from html import escape
from pathlib import Path
from typing import Any

from medspark.track import charts
from medspark.track.charts import Curve, Interval
from medspark.track.identity import WITHIN_SUBJECT
from medspark.track.kpis import EXPERIMENT as KPI_EXPERIMENT
from medspark.track.runs import client, experiment

PAGES = "comparison pages"  # experiment with one run for each page: among the runs that it compares it would be in the way
NOTE = "mlflow.note.content"  # description of an experiment, Markdown
NAME = "comparison.html"
MOST_RUNS = 20  # on one page, the newest: more cannot be told apart
PICTURE_PX = 1100  # longer side of a picture on the page
UNSHOWN = ("system/", "kpi/", "test/", "machine", "reader/", "cache/", "epoch/reader/", "epoch/cache/")
FIRST = ("epoch/val_dice", "epoch/val_auc", "epoch/val_accuracy", "epoch/val_loss", "epoch/loss", "loss")
"""Curves in this order, then the others of the validation by name; the rest is folded away."""
MEASURES = (
    "auc",
    "accuracy",
    "balanced_accuracy",
    "macro_f1",
    "f1",
    "dice",
    "series_dice",
    "iou",
    "hd95_mm",
    "series_hd95_mm",
    "lesion_f1_pooled",
    "ece",
    "brier",
)
"""Results in this order; the others are folded away."""
SEEDS = frozenset({"seed"})  # runs that differ in these parameters alone are repetitions of one another
LOW, HIGH = "_low", "_high"  # ends of an interval: test/dice, test/dice_low, test/dice_high
STATUS = {"FINISHED": "finished", "RUNNING": "running", "FAILED": "failed", "KILLED": "interrupted", "SCHEDULED": "waiting"}


@dataclass(frozen=True)
class Shown:
    """A run on the page. started : UTC;  curves : metric -> (step, value) by step;  pictures : caption -> bytes of a PNG, JPEG or GIF"""

    run_id: str
    name: str
    status: str
    started: datetime
    seconds: float | None
    params: Mapping[str, str]
    tags: Mapping[str, str]
    metrics: Mapping[str, float]
    curves: Mapping[str, Sequence[tuple[float, float]]] = field(default_factory=dict)
    pictures: Mapping[str, bytes] = field(default_factory=dict)


# ---- from MLflow


def publish(uri: str, name: str, folder: str | Path | None = None) -> str:
    """Makes the page of the experiment ``name`` anew, as an artifact in MLflow and (where given) as a file in ``folder``; returns its HTML."""
    store = client(uri)
    found = store.get_experiment_by_name(name)
    text = html(name, gather(store, found.experiment_id))
    pages = experiment(store, uri, PAGES)
    runs = store.search_runs([pages], f"tags.of_experiment = '{found.experiment_id}'", max_results=1)
    run_id = (
        runs[0].info.run_id if runs else store.create_run(pages, run_name=name, tags={"of_experiment": found.experiment_id}).info.run_id
    )
    with tempfile.TemporaryDirectory(prefix="medspark-") as work:
        (Path(work) / NAME).write_text(text, encoding="utf-8")
        store.log_artifact(run_id, str(Path(work) / NAME))
    store.set_terminated(run_id, "FINISHED")
    store.set_experiment_tag(found.experiment_id, NOTE, f"[Comparison of its runs](#/experiments/{pages}/runs/{run_id}/artifacts/{NAME})")
    if folder is not None:
        Path(folder).mkdir(parents=True, exist_ok=True)
        (Path(folder) / f"{slug(name)}.html").write_text(text, encoding="utf-8")
    return text


def experiments(uri: str) -> list[str]:
    """Names of the experiments that hold runs of training."""
    store = client(uri)
    names = [found.name for found in store.search_experiments() if found.name not in ("Default", PAGES, KPI_EXPERIMENT)]
    return sorted(name for name in names if _runs(store, store.get_experiment_by_name(name).experiment_id, 1))


def published(store: Any) -> set[str]:
    """Names of the experiments that have a page."""
    pages = store.get_experiment_by_name(PAGES)
    if pages is None:
        return set()
    of = {run.data.tags.get("of_experiment") for run in store.search_runs([pages.experiment_id])}
    return {found.name for found in store.search_experiments() if found.experiment_id in of}


def slug(name: str) -> str:
    return re.sub(r"[^A-Za-z0-9]+", "-", name).strip("-")


def gather(store: Any, experiment_id: str) -> list[Shown]:
    """The newest runs, oldest of them first."""
    return [_shown(store, run) for run in reversed(_runs(store, experiment_id, MOST_RUNS))]


def _runs(store: Any, experiment_id: str, most: int) -> list[Any]:
    return list(store.search_runs([experiment_id], "tags.job != ''", max_results=most, order_by=["attributes.start_time DESC"]))


def _shown(store: Any, run: Any) -> Shown:
    run_id, data = run.info.run_id, run.data
    wanted = [name for name in data.metrics if not name.startswith(UNSHOWN)]
    history = {name: sorted((float(p.step), p.value) for p in store.get_metric_history(run_id, name)) for name in wanted}
    took = (run.info.end_time - run.info.start_time) / 1000 if run.info.end_time else None
    return Shown(
        run_id,
        run.info.run_name or run_id[:8],
        STATUS.get(run.info.status, run.info.status.lower()),
        datetime.fromtimestamp(run.info.start_time / 1000, UTC),
        took,
        data.params,
        {name: value for name, value in data.tags.items() if not name.startswith("mlflow.")},
        data.metrics,
        history,
        _pictures(store, run_id),
    )


def _pictures(store: Any, run_id: str) -> dict[str, bytes]:
    """The last picture of the training and those of the evaluation."""
    files = [item.path for item in store.list_artifacts(run_id, "pictures") if not item.is_dir]
    epochs = sorted(path for path in files if Path(path).stem.startswith("epoch"))
    chosen = {"after the last epoch": epochs[-1]} if epochs else {}
    chosen |= {Path(path).stem.replace("_", " "): path for path in files if path not in epochs and path.endswith((".png", ".jpg"))}
    for item in store.list_artifacts(run_id, "pictures/evaluation"):
        if item.path.endswith((".png", ".jpg")):
            chosen["evaluation: " + Path(item.path).stem.replace("_", " ")] = item.path
    with tempfile.TemporaryDirectory(prefix="medspark-") as work:
        return {caption: Path(store.download_artifacts(run_id, path, work)).read_bytes() for caption, path in chosen.items()}


# ---- drawing


def html(title: str, runs: Sequence[Shown]) -> str:
    """The page. Pure: the same runs give the same bytes."""
    common, differing = split_params(runs)
    within = any(run.tags.get("within_subject") == WITHIN_SUBJECT for run in runs)
    parts = [
        f"<h1>{escape(title)}</h1>",
        f'<p class="warning">{WITHIN_SUBJECT}: training and test share subjects; these figures say nothing about new subjects.</p>'
        if within
        else "",
        f"<h2>Runs</h2>{_run_table(runs, differing)}" if runs else "<p>No run yet.</p>",
        _results(runs),
        _curves(runs),
        _side_by_side(runs),
        f"<h2>The same in all runs</h2>{_common(common)}" if runs else "",
    ]
    body = "\n".join(part for part in parts if part)
    return f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{escape(title)}</title><style>{STYLE}</style></head><body>\n{body}\n</body></html>\n'


def split_params(runs: Sequence[Shown]) -> tuple[dict[str, str], list[str]]:
    """(parameters that are the same in all runs, names of those that differ)."""
    names = sorted({name for run in runs for name in run.params})
    values = {name: {run.params.get(name, "") for run in runs} for name in names}
    return {name: next(iter(values[name])) for name in names if len(values[name]) == 1}, [name for name in names if len(values[name]) > 1]


def results(runs: Sequence[Shown]) -> dict[str, list[Interval]]:
    """Measure -> one value for each run that has it: ``test/`` metrics with their intervals, or the last of validation where there is none.

    The measures of `MEASURES` stand first, over all labels before those of single ones.
    """
    tested = {name for run in runs for name in run.metrics if name.startswith("test/") and not name.endswith((LOW, HIGH))}
    names = sorted(tested, key=_rank) or [
        name for name in FIRST if name.startswith("epoch/val_") and any(name in run.metrics for run in runs)
    ]
    return {
        name: [
            Interval(run.name, run.metrics[name], run.metrics.get(name + LOW), run.metrics.get(name + HIGH), place)
            for place, run in enumerate(runs)
            if name in run.metrics
        ]
        for name in names
    }


def _rank(name: str) -> tuple[bool, int, str]:
    measure, _, label = name.removeprefix("test/").partition("/")
    return bool(label), MEASURES.index(measure) if measure in MEASURES else len(MEASURES), name


def _leads(name: str) -> bool:
    """Whether a measure is shown at once."""
    return name.startswith("epoch/") or _rank(name)[1] < len(MEASURES)


def _run_table(runs: Sequence[Shown], differing: Sequence[str]) -> str:
    head = ["run", "started (UTC)", "minutes", "status", *(escape(name) for name in differing)]
    rows = []
    for place, run in enumerate(runs):
        took = "" if run.seconds is None else f"{run.seconds / 60:.1f}"
        cells = [
            f"{_dot(place)}{escape(run.name)}<br><small>{run.run_id[:8]}</small>",
            f"{run.started:%Y-%m-%d %H:%M}",
            took,
            escape(run.status),
        ]
        rows.append([*cells, *(escape(_short(run.params.get(name, "–"))) for name in differing)])
    return _table(head, rows)


def _results(runs: Sequence[Shown]) -> str:
    found = results(runs)
    if not found:
        return ""
    tested = next(iter(found)).startswith("test/")
    first = {name: values for name, values in found.items() if _leads(name)} or found
    rest = {name: values for name, values in found.items() if name not in first}
    said = (
        "Test part; 95 % intervals over subjects where they were computed."
        if tested
        else "Last epoch, validation part; no test was evaluated yet."
    )
    more = f"<details><summary>{len(rest)} further measures</summary>{_measured(runs, rest)}</details>" if rest else ""
    return f"<h2>Results</h2><p>{said}</p>{_measured(runs, first)}{more}"


def _measured(runs: Sequence[Shown], found: Mapping[str, Sequence[Interval]]) -> str:
    """A table of runs and measures, and a drawing for each measure."""
    head = ["run", *(escape(_plain(name)) for name in found)]
    rows = []
    for place, run in enumerate(runs):
        by_name = {name: next((one for one in values if one.place == place), None) for name, values in found.items()}
        rows.append([f"{_dot(place)}{escape(run.name)}", *(_with_interval(one) for one in by_name.values())])
    rows += [[escape(name), *(values.get(metric, "–") for metric in found)] for name, values in repeated(runs, found).items()]
    drawn = "".join(
        f"<figure><figcaption>{escape(_plain(name))}</figcaption>{charts.intervals(values)}</figure>" for name, values in found.items()
    )
    return f'{_table(head, rows)}<div class="grid-of">{drawn}</div>'


def repeated(runs: Sequence[Shown], found: Mapping[str, Sequence[Interval]]) -> dict[str, dict[str, str]]:
    """Repetitions (runs that differ in their seed alone), by what they have in common -> measure -> mean, lowest and highest (HTML)."""
    _, differing = split_params(runs)
    groups: dict[tuple[str, ...], list[int]] = {}
    for place, run in enumerate(runs):
        groups.setdefault(tuple(run.params.get(name, "") for name in differing if name not in SEEDS), []).append(place)
    said = {}
    for places in groups.values():
        if len(places) < 2:
            continue
        values = {name: [one.value for one in drawn if one.place in places] for name, drawn in found.items()}
        of_runs = f"mean of {len(places)} seeds (lowest to highest), first {runs[places[0]].name}"
        said[of_runs] = {name: _ranged(sum(some) / len(some), min(some), max(some)) for name, some in values.items() if some}
    return said


def _with_interval(one: Interval | None) -> str:
    if one is None:
        return "–"
    if one.low is None or one.high is None:
        return f"{one.value:.3g}"
    return _ranged(one.value, one.low, one.high)


def _ranged(value: float, low: float, high: float) -> str:
    """Three digits, its range below it."""
    return f"{value:.3g}<br><small>{low:.3g} to {high:.3g}</small>"


def _curves(runs: Sequence[Shown]) -> str:
    names = {name for run in runs for name, points in run.curves.items() if len(points) > 1}
    first = [*(name for name in FIRST if name in names), *sorted(name for name in names - set(FIRST) if name.startswith("epoch/val_"))]
    if not names:
        return ""
    legend = " ".join(f"<span>{_dot(place)}{escape(run.name)}</span>" for place, run in enumerate(runs))
    rest = sorted(names - set(first))
    more = f"<details><summary>{len(rest)} further curves</summary>{_drawn(runs, rest)}</details>" if rest else ""
    return f'<h2>Curves</h2><p class="legend">{legend}</p>{_drawn(runs, first)}{more}'


def _drawn(runs: Sequence[Shown], names: Sequence[str]) -> str:
    figures = []
    for name in names:
        drawn = [Curve(run.name, run.curves[name], place) for place, run in enumerate(runs) if name in run.curves]
        svg = charts.curves(name, drawn, "epoch" if name.startswith("epoch/") else "update")
        figures.append(f"<figure><figcaption>{escape(_plain(name))}</figcaption>{svg}</figure>")
    return f'<div class="grid-of">{"".join(figures)}</div>'


def _side_by_side(runs: Sequence[Shown]) -> str:
    captions = list(dict.fromkeys(caption for run in runs for caption in run.pictures))
    parts = []
    for caption in captions:
        figures = "".join(
            f'<figure><figcaption>{_dot(place)}{escape(run.name)}</figcaption><img alt="{escape(run.name)}" src="{embedded(run.pictures[caption])}"></figure>'
            for place, run in enumerate(runs)
            if caption in run.pictures
        )
        parts.append(f'<h3>{escape(caption)}</h3><div class="pictures">{figures}</div>')
    return f"<h2>Pictures</h2>{''.join(parts)}" if parts else ""


def embedded(data: bytes) -> str:
    """A picture as a data URI, no side longer than `PICTURE_PX`."""
    from PIL import Image

    with Image.open(io.BytesIO(data)) as image:
        image.load()
        small = image.convert("RGB")
        small.thumbnail((PICTURE_PX, PICTURE_PX), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    small.save(buffer, "WEBP", quality=85, method=4)
    return "data:image/webp;base64," + base64.b64encode(buffer.getvalue()).decode()


def _common(common: Mapping[str, str]) -> str:
    rows = [[escape(name), escape(_short(value, 300))] for name, value in sorted(common.items())]
    return f"<details><summary>{len(rows)} parameters</summary>{_table(['parameter', 'value'], rows)}</details>"


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = ["<tr>" + "".join(f"<th>{cell}</th>" for cell in head) + "</tr>"]
    lines += ["<tr>" + "".join(f"<td>{cell}</td>" for cell in row) + "</tr>" for row in rows]
    return f'<div class="wide"><table>{"".join(lines)}</table></div>'


def _dot(place: int) -> str:
    return f'<i class="dot" style="background:{charts.colour(place)}"></i>'


def _plain(name: str) -> str:
    """test/dice/disc -> dice disc; epoch/val_dice -> validation dice; epoch/dice -> training dice."""
    words = name.removeprefix("test/")
    if words.startswith("epoch/"):
        words = words.removeprefix("epoch/")
        words = "validation " + words.removeprefix("val_") if words.startswith("val_") else "training " + words
    return words.replace("/", " ").replace("_", " ")


def _short(value: str, most: int = 60) -> str:
    return value if len(value) <= most else value[: most - 1] + "…"


STYLE = """
body{font:15px/1.45 system-ui,sans-serif;margin:24px auto;max-width:1480px;padding:0 20px;color:#1d2733}
h1{font-size:26px;margin:0 0 4px} h2{font-size:19px;margin:30px 0 8px;border-bottom:1px solid #d8dee6;padding-bottom:3px} h3{font-size:15px;margin:16px 0 6px}
table{border-collapse:collapse;font-variant-numeric:tabular-nums} th,td{padding:5px 12px 5px 0;text-align:left;vertical-align:top;border-bottom:1px solid #e8ecf1}
th{font-weight:600;color:#475364;white-space:nowrap} small{color:#69788a;white-space:nowrap} .wide{overflow-x:auto} td:first-child{white-space:nowrap}
.dot{display:inline-block;width:10px;height:10px;border-radius:5px;margin-right:7px} .legend span{margin-right:18px;white-space:nowrap}
.grid-of{display:grid;grid-template-columns:repeat(auto-fill,minmax(380px,1fr));gap:14px 22px;margin-top:10px}
.pictures{display:grid;grid-template-columns:repeat(auto-fill,minmax(460px,1fr));gap:14px 18px}
figure{margin:0} figcaption{font-weight:600;font-size:14px;margin-bottom:3px} figure img{width:100%;border:1px solid #d8dee6} svg{width:100%;height:auto}
svg text{font:11px system-ui,sans-serif;fill:#5a6778} svg .grid{stroke:#e3e8ee;stroke-width:1}
.warning{background:#fff1d6;border-left:5px solid #e0a030;padding:8px 14px;font-weight:600}
"""
