"""What a job says while it works, whoever listens. `runs.MlflowTracker` sends it to MLflow; `Remembered` keeps it, for tests and solo use."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol


class Tracker(Protocol):
    """One run. Only rank 0 holds a tracker that sends; every call is cheap and none may stop the training."""

    run_id: str

    def params(self, values: Mapping[str, Any]) -> None: ...

    def tags(self, values: Mapping[str, str]) -> None: ...

    def metrics(self, values: Mapping[str, float], step: int) -> None:
        """``step`` is the global step (optimiser updates) in training, the epoch where the name begins with ``epoch/``."""
        ...

    def artifact(self, file: Path, folder: str = "") -> None:
        """A file (picture, table, model folder) under ``folder`` of the run."""
        ...

    def text(self, content: str, name: str) -> None: ...


@dataclass
class Remembered:
    """Keeps everything in memory."""

    run_id: str = "remembered"
    said: dict[str, Any] = field(default_factory=dict)
    curves: dict[str, list[tuple[int, float]]] = field(default_factory=dict)
    files: list[tuple[str, str]] = field(default_factory=list)

    def params(self, values: Mapping[str, Any]) -> None:
        self.said.update(values)

    def tags(self, values: Mapping[str, str]) -> None:
        self.said.update(values)

    def metrics(self, values: Mapping[str, float], step: int) -> None:
        for name, value in values.items():
            self.curves.setdefault(name, []).append((step, float(value)))

    def artifact(self, file: Path, folder: str = "") -> None:
        self.files.append((folder, file.name))

    def text(self, content: str, name: str) -> None:
        self.files.append(("", name))
