"""One training run, on one rank or many: the same lines, the same meetings. What it does can be read in `Run.run`.

Everything that a run needs to go on after a kill is in its checkpoints: weights, the optimiser's state, the place in the epoch, what was
counted so far, the schedule. Only rank 0 writes; every rank takes the same number of steps.
"""

from __future__ import annotations

import json
import logging
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np

from medspark.config import Train
from medspark.errors import MedsparkError
from medspark.feed.card import Card
from medspark.feed.reader import Batch, Reader
from medspark.scores.threshold import Rule, choose
from medspark.track.tracker import Tracker
from medspark.train import checkpoint, losses, measures, memory, pictures, predictor, schedule
from medspark.train import network as networks
from medspark.train.feeding import Readers, Waited, ahead, sound
from medspark.train.step import Stepper
from medspark.train.world import World, prepare

log = logging.getLogger("medspark.train")

CANDIDATES = 128  # validation rows that the pictures are chosen from
NAMED_ROWS = 20  # bad rows of an epoch that are told by name in the log
BAD_ROWS = "bad_rows"  # folder of a run: a file of names and reasons for each rank
WITHIN_SUBJECT = "WITHIN-SUBJECT"

Beat = Callable[[str], None]
First = Callable[[Batch, Tracker], None]


class Diverged(MedsparkError):
    """The loss is no number any more."""


class Mismatch(MedsparkError):
    """A checkpoint that belongs to another run than the one that wants to go on."""


@dataclass(frozen=True)
class Plan:
    """What is to be trained. Pickles; the same on every rank.

    folder : URI of the run's folder (`checkpoint.run_folder`)
    card, feed, version : what it learns from
    said : what else identifies the run; goes into the model
    """

    run: str
    folder: str
    feed: str
    version: int
    card: Card
    epochs: int
    batch_size: int
    seed: int
    train: Train
    train_part: str = "train"
    val_part: str | None = "val"
    resume: bool = False
    said: Mapping[str, Any] = field(default_factory=dict)

    def identity(self, world: int) -> dict[str, Any]:
        """What must not change between a run and its continuation."""
        names = ("run", "feed", "version", "epochs", "batch_size", "seed", "train_part", "val_part")
        return {**{name: getattr(self, name) for name in names}, "world": world, "network": networks.of(self.card, self.train).to_dict()}


@dataclass
class State:
    """Where a run is. step : batches of ``epoch`` that are done; sums, counts : of this epoch's training so far, over all ranks"""

    epoch: int = 0
    step: int = 0
    update: int = 0
    sums: list[float] = field(default_factory=lambda: [0.0, 0.0])
    counts: list[list[int]] = field(default_factory=list)
    watch: dict[str, Any] = field(default_factory=dict)
    best_update: int | None = None
    thresholds: dict[str, float] = field(default_factory=dict)
    history: list[dict[str, float]] = field(default_factory=list)
    stopped: str = ""


@dataclass(frozen=True)
class Result:
    """What a run has come to. updates : optimiser steps in all; model : URI of the predictor's folder; history : measures of each epoch"""

    run: str
    updates: int
    epochs: int
    best_epoch: int
    history: tuple[dict[str, float], ...]
    thresholds: Mapping[str, float]
    model: str
    stopped: str
    bad_rows: Mapping[str, str]
    resumed_at: int
    images_per_s: float
    waited_s: float
    seconds: float


def run(
    plan: Plan, readers: Readers, world: World, tracker: Tracker, beat: Beat = lambda phase: None, first: First | None = None
) -> Result:
    """Trains; returns the same `Result` on every rank. Raises `Diverged`, `feeding.Unusable`, `BadRequest` (too little memory).

    beat : is told what this rank is doing      first : is shown the first batch of a run, by rank 0
    """
    return Run(plan, readers, world, tracker, beat, first).run()


class Run:
    """The one loop."""

    def __init__(self, plan: Plan, readers: Readers, world: World, tracker: Tracker, beat: Beat, first: First | None) -> None:
        import tensorflow as tf

        self.plan, self.world, self.tracker, self.beat, self.first = plan, world, tracker, beat, first
        self.settings, self.card = plan.train, plan.card
        self.started = time.monotonic()
        beat("starting")
        self.machine = prepare(world, plan.train)
        tf.keras.utils.set_random_seed(plan.seed)
        self.network = networks.of(plan.card, plan.train)
        loss = losses.of(plan.card, plan.train)
        self.stepper = Stepper(self.network, loss, plan.train, world, plan.batch_size)
        self.stepper.begin_at(losses.prior(plan.card, loss))
        gpu = self.machine["device"] == "gpu"
        needed = memory.estimate(self.stepper.model, self.network, plan.card, plan.batch_size, plan.train, gpu)
        memory.check(needed, memory.available(world.local_size, gpu), plan.train)
        log.info("a rank takes about %s", needed)
        self.training: Reader = readers(plan.train_part, plan.batch_size, world.rank, world.size, plan.seed, plan.train.augment)
        self.validation: Reader | None = None
        if plan.val_part is not None:
            self.validation = readers(plan.val_part, plan.batch_size, world.rank, world.size, plan.seed, False)
        steps = self.training.steps_per_epoch
        self.updates_per_epoch = -(-steps // plan.train.accumulate)
        self.rate = schedule.rate(plan.train, plan.epochs, self.updates_per_epoch, world.size)
        self.monitor: Literal["loss", "dice", "auc", "accuracy"] = _monitor(plan)
        self.watch = schedule.Watch(higher=self.monitor != "loss")
        self.state = State(counts=np.zeros((len(plan.card.labels), 4), int).tolist())
        self.checkpoints = checkpoint.Checkpoints(plan.folder)
        self.waited = Waited()
        self.images = 0
        self.reported = (time.monotonic(), 0, 0.0)  # time, images and seconds waited at the last report
        self.bad: dict[str, str] = {}  # found by `sound`
        self.noted: dict[str, str] = {}  # and by the readers, told already
        self.samples: pictures.Samples | None = None

    # --- the whole

    def run(self) -> Result:
        resumed_at = self._begin()
        try:
            while self.state.epoch < self.plan.epochs and not self.state.stopped:
                self._train_epoch()
                self._end_epoch()
            return self._finish(resumed_at)
        finally:
            self.training.close()
            if self.validation is not None:
                self.validation.close()

    def _begin(self) -> int:
        """Weights that are the same everywhere, from the newest checkpoint where the run goes on; returns the update that it goes on from."""
        import tensorflow as tf

        found = self.checkpoints.newest() if self.plan.resume and self.world.rank == 0 else None
        if found is not None:
            if found.state["identity"] != json.loads(json.dumps(self.plan.identity(self.world.size))):
                raise Mismatch(
                    f"run {self.plan.run} was made with other settings, another feed or another number of ranks; start a new one"
                )
            self.stepper.restore(dict(found.arrays))
        said = self.world.share(None if found is None else found.state)
        self.world.same(self.stepper.variables())
        self.noted = json.loads(checkpoint.get(self.plan.folder, self._bad_file()) or b"{}") if said is not None else {}
        if said is not None:
            self.state = State(**said["state"])
            self.watch = schedule.Watch(**self.state.watch)
        tf.random.set_seed(
            self.plan.seed + 1_000_003 * self.world.rank + self.state.update
        )  # of dropout: differs by rank, goes on after a kill
        if self._leads:
            self.tracker.params(self._params())
            self.tracker.tags({"within_subject": WITHIN_SUBJECT if self.card.within_subject else "no"})
        if self.validation is not None and self._leads and self.settings.pictures:
            self.samples = self._choose()
        return self.state.update

    @property
    def _leads(self) -> bool:
        return self.world.rank == 0

    def _params(self) -> dict[str, Any]:
        return {
            **{f"train.{name}": value for name, value in asdict(self.settings).items()},
            "feed": self.plan.feed,
            "feed_version": self.plan.version,
            "epochs": self.plan.epochs,
            "batch_size": self.plan.batch_size,
            "seed": self.plan.seed,
            "ranks": self.world.size,
            "network.depth": self.network.depth,
            "network.weights": self.stepper.model.count_params(),
            "monitor": self.monitor,
            "updates_per_epoch": self.updates_per_epoch,
            **self.machine,
        }

    # --- training

    def _batches(self, reader: Reader) -> Iterator[Batch]:
        state, steps = self.state, reader.steps_per_epoch
        self.beat(f"reading batch {state.step} of epoch {state.epoch}")
        for batch in ahead(reader.epoch(state.epoch, state.step), self.waited):
            if self.first is not None and self._leads and not state.update and not state.step:
                self.first(batch, self.tracker)
            self.beat(f"training on batch {state.step} of epoch {state.epoch}")
            yield sound(batch, self.settings.bad_rows, self.bad)
            state.step += 1
            self.beat(f"reading batch {state.step} of epoch {state.epoch}")
        if state.step != steps:
            raise RuntimeError(f"the reader gave {state.step} batches of epoch {state.epoch}, its plan says {steps}")

    def _train_epoch(self) -> None:
        state, accumulate, steps = self.state, self.settings.accumulate, self.training.steps_per_epoch
        for batch in self._batches(self.training):
            self.images += len(batch)
            if accumulate == 1:
                self.stepper.update(batch, self._rate())
            else:
                self.stepper.add(batch)
                done = state.step + 1
                if done % accumulate and done < steps:
                    continue
                self.stepper.spend(done % accumulate or accumulate, self._rate())
            state.update += 1
            within = self.settings.checkpoint_updates
            due = bool(within) and state.update % within == 0 and state.step + 1 < steps
            if state.update % self.settings.report_updates == 0 or due:
                self._report()
            if due:
                state.step += 1  # the checkpoint goes on after this batch
                self._save()
                state.step -= 1

    def _rate(self) -> float:
        return self.rate.at(self.state.update, self.watch.halvings)

    def _gather(self) -> np.ndarray:
        """Adds what all ranks counted since the last meeting to the epoch's sums; returns [sum of losses, samples] of that stretch."""
        sums, counts = self.stepper.taken()
        self.beat("waiting for the other ranks")
        everywhere = self.world.total(np.concatenate([sums, counts.reshape(-1).astype(np.float64)]))
        self.state.sums = [a + float(b) for a, b in zip(self.state.sums, everywhere[:2])]
        self.state.counts = (np.array(self.state.counts) + everywhere[2:].reshape(counts.shape).astype(int)).tolist()
        if not np.isfinite(everywhere[0]):
            raise Diverged(
                f"the loss is no number any more, at update {self.state.update} (epoch {self.state.epoch}); go on from an earlier checkpoint with "
                "a smaller train.learning_rate, or set train.clip_norm"
            )
        return everywhere[:2]

    def _report(self) -> None:
        sums = self._gather()
        if not self._leads:
            return
        now, (then, images, waited) = time.monotonic(), self.reported
        self.reported = (now, self.images, self.waited.seconds)
        seconds = max(1e-9, now - then)
        self.tracker.metrics(
            {
                "loss": sums[0] / max(sums[1], 1.0),
                "learning_rate": self._rate(),
                "images_per_s": (self.images - images) * self.world.size / seconds,
                "waiting": (self.waited.seconds - waited) / seconds,  # part of the time that the network waited for batches
            },
            self.state.update,
        )

    # --- after an epoch

    def _end_epoch(self) -> None:
        self._gather()
        self.stepper.even_out()
        state = self.state
        counts = np.array(state.counts)
        measured = {"loss": state.sums[0] / max(state.sums[1], 1.0), **self._of(counts, "")}
        thresholds = dict.fromkeys(self.card.labels, 0.5)
        if self.validation is not None:
            found, thresholds = self._validate(self.validation)
            measured |= found
        value = measured.get(f"val_{self.monitor}", measured["loss"])
        if not np.isfinite(value):  # nothing of any label in the part: no progress can be seen by this measure
            value = float("-inf") if self.watch.higher else float("inf")
        better = self.watch.see(value, state.epoch, self.settings.patience if self.settings.schedule == "plateau" else 0)
        if better or state.best_update is None or self.validation is None:
            state.best_update, state.thresholds = state.update, thresholds
        state.history.append({"epoch": float(state.epoch), "learning_rate": self._rate(), **measured})
        if self.watch.over(self.settings.stop_after):
            state.stopped = f"no progress of validation {self.monitor} for {self.settings.stop_after} epochs"
        if self._leads:
            read = self.training.metrics()  # seconds waited for the store, hits of the cache, ...
            said = {**measured, **{name if "/" in name else f"reader/{name}": value for name, value in read.items()}}
            self.tracker.metrics({f"epoch/{name}": value for name, value in said.items() if np.isfinite(value)}, state.epoch)
            log.info("epoch %d of %d", state.epoch + 1, self.plan.epochs, extra={"said": {"measures": _rounded(measured)}})
            self._draw(measured)
        state.epoch, state.step, state.sums, state.counts = state.epoch + 1, 0, [0.0, 0.0], np.zeros_like(counts).tolist()
        self._note_bad()
        self._save()

    def _of(self, counts: np.ndarray, prefix: str) -> dict[str, float]:
        """The measures of one `measures.confusion`."""
        if self.card.task == "classification":
            return {f"{prefix}accuracy": measures.accuracy(counts, self.card.exclusive)}
        each = measures.dice(counts)
        found = {f"{prefix}dice": _mean(each)}
        return found | ({f"{prefix}dice/{label}": float(value) for label, value in zip(self.card.labels, each)} if len(each) > 1 else {})

    def _validate(self, reader: Reader) -> tuple[dict[str, float], dict[str, float]]:
        """(measures, thresholds) over every row of the validation part, all ranks together."""
        labels = len(self.card.labels)
        sums, counts = np.zeros(2), np.zeros((labels, 4))
        scores = np.zeros((labels, 2, measures.BINS))
        for number, batch in enumerate(reader.once()):
            self.beat(f"validating, batch {number} of epoch {self.state.epoch}")
            found = self.stepper.evaluate(sound(batch, self.settings.bad_rows, self.bad))
            sums, counts, scores = sums + found[0], counts + found[1], scores + found[2]
        self.beat("waiting for the other ranks")
        everywhere = self.world.total(np.concatenate([sums, counts.reshape(-1), scores.reshape(-1)]))
        sums, rest = everywhere[:2], everywhere[2:]
        counts, scores = rest[: counts.size].reshape(counts.shape), rest[counts.size :].reshape(scores.shape)
        areas = measures.auc(scores)
        found_ = {"val_loss": float(sums[0] / sums[1]) if sums[1] else float("nan"), **self._of(counts, "val_"), "val_auc": _mean(areas)}
        rule: Rule = "f1" if self.card.task == "segmentation" else "youden"
        cuts = measures.edges()
        chosen = {
            label: choose(positive, negative, cuts, rule) for label, (negative, positive) in zip(self.card.labels, scores, strict=True)
        }
        return found_, chosen

    def _choose(self) -> pictures.Samples | None:
        assert self.validation is not None
        candidates, rows = [], 0
        for batch in self.validation.once():
            candidates.append(sound(batch, "skip", {}))
            rows += len(batch)
            if rows >= CANDIDATES:
                break
        return pictures.choose(candidates, self.settings.pictures)

    def _draw(self, measured: Mapping[str, float]) -> None:
        if self.samples is None:
            return
        self.beat("drawing pictures")
        batch = self.samples.batch
        parts = [
            self.stepper.evaluate(_slice(batch, start, start + self.plan.batch_size))[3]
            for start in range(0, len(batch), self.plan.batch_size)
        ]
        wanted = f"val_{self.monitor}"
        value = f" · {self.monitor} {measured[wanted]:.3f}" if wanted in measured else ""
        mark = f"{WITHIN_SUBJECT} · " if self.card.within_subject else ""
        title = f"{mark}epoch {self.state.epoch + 1}{value}"
        name = f"epoch_{self.state.epoch + 1:04d}.png"
        data = pictures.png(pictures.sheet(self.samples, np.concatenate(parts), self.card, title))
        checkpoint.put(self.plan.folder, f"pictures/{name}", data)
        self._artifact(name, data, "pictures")

    def _artifact(self, name: str, data: bytes, folder: str) -> None:
        with tempfile.TemporaryDirectory(prefix="medspark-") as place:
            file = Path(place) / name
            file.write_bytes(data)
            self.tracker.artifact(file, folder)

    def _note_bad(self) -> None:
        """What this rank could not use, by name: in the log, and in a file of its own in the run's folder."""
        found = {**self.bad, **self.training.bad, **(self.validation.bad if self.validation is not None else {})}
        new = {row: reason for row, reason in found.items() if row not in self.noted}
        if not new:
            return
        for row, reason in list(new.items())[:NAMED_ROWS]:
            log.warning("row %s takes no part: %s", row, reason)
        self.noted |= new
        checkpoint.put(self.plan.folder, self._bad_file(), json.dumps(self.noted).encode())

    def _bad_file(self) -> str:
        return f"{BAD_ROWS}/{self.world.rank}.json"

    def _all_bad(self) -> dict[str, str]:
        """What any rank could not use, the same on every rank."""
        self.beat("waiting for the other ranks")
        self.world.total(np.zeros(1))  # all have written
        found: dict[str, str] = {}
        for name in checkpoint.names(self.plan.folder, BAD_ROWS):
            found |= json.loads(checkpoint.get(self.plan.folder, f"{BAD_ROWS}/{name}") or b"{}")
        return found

    def _save(self) -> None:
        if not self._leads:
            return
        self.beat("writing a checkpoint")
        self.state.watch = asdict(self.watch)
        said = {"identity": self.plan.identity(self.world.size), "state": asdict(self.state)}
        self.checkpoints.save(self.state.update, self.stepper.arrays(), said)
        self.checkpoints.prune(self.settings.keep, self.state.best_update)

    # --- the end

    def _finish(self, resumed_at: int) -> Result:
        state, bad = self.state, self._all_bad()
        model = f"{self.plan.folder}/model"
        best = min(self.watch.best_epoch if self.validation is not None else state.epoch - 1, state.epoch - 1)
        if self._leads:
            self.beat("writing the model")
            if state.best_update is not None and state.best_update != state.update:
                found = self.checkpoints.load(state.best_update)
                if found is None:
                    raise RuntimeError(f"the checkpoint of the best epoch ({best}) is gone")
                self.stepper.restore(dict(found.arrays))
            self._write_model(best)
            self._write_animation()
            self.tracker.tags({"stopped": state.stopped or "done", "bad_rows": str(len(bad))})
        seconds = time.monotonic() - self.started
        return Result(
            run=self.plan.run,
            updates=state.update,
            epochs=state.epoch,
            best_epoch=best,
            history=tuple(state.history),
            thresholds=state.thresholds,
            model=model,
            stopped=state.stopped,
            bad_rows=bad,
            resumed_at=resumed_at,
            images_per_s=self.images * self.world.size / max(seconds, 1e-9),
            waited_s=self.waited.seconds,
            seconds=seconds,
        )

    def _write_model(self, best: int) -> None:
        state = self.state
        said = {
            **self.plan.said,
            "run": self.plan.run,
            "feed": self.plan.feed,
            "feed_version": self.plan.version,
            "epoch": best,
            "updates": state.update,
            "thresholds_from": self.plan.val_part or "none: one half",
            "measures": _rounded(state.history[best]) if 0 <= best < len(state.history) else {},
        }
        made = predictor.of(self.network, self.stepper.model.get_weights(), self.card, state.thresholds, said)
        with tempfile.TemporaryDirectory(prefix="medspark-") as place:
            for file in predictor.save(place, made):
                checkpoint.put(self.plan.folder, f"model/{file.name}", file.read_bytes())

    def _write_animation(self) -> None:
        sheets = [name for name in checkpoint.names(self.plan.folder, "pictures") if name.startswith("epoch_") and name.endswith(".png")]
        found = [data for name in sheets if (data := checkpoint.get(self.plan.folder, f"pictures/{name}")) is not None]
        if found:
            data = pictures.animation(found)
            checkpoint.put(self.plan.folder, "pictures/progress.gif", data)
            self._artifact("progress.gif", data, "pictures")


def _monitor(plan: Plan) -> Literal["loss", "dice", "auc", "accuracy"]:
    if plan.train.monitor != "auto":
        masks = plan.card.task == "segmentation"
        return (
            "dice"
            if masks and plan.train.monitor == "accuracy"
            else "accuracy"
            if not masks and plan.train.monitor == "dice"
            else plan.train.monitor
        )
    return "dice" if plan.card.task == "segmentation" else "loss"


def _mean(values: np.ndarray) -> float:
    """Over labels that have a value; NaN where none has."""
    fine = values[np.isfinite(values)]
    return float(fine.mean()) if len(fine) else float("nan")


def _rounded(values: Mapping[str, float]) -> dict[str, float | None]:
    return {name: round(float(value), 5) if np.isfinite(value) else None for name, value in values.items()}


def _slice(batch: Batch, start: int, stop: int) -> Batch:
    def cut(values: np.ndarray | None) -> Any:
        return None if values is None else values[start:stop]

    return Batch(cut(batch.images), cut(batch.masks), cut(batch.known), cut(batch.targets), cut(batch.weights), batch.row_ids[start:stop])
