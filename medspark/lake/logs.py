"""Logs as JSON lines on standard error, with run ids and source ids; progress for people when standard error is a terminal.

Paths go to the terminal only: a log line that is kept or shipped names a source by its id.
"""

from __future__ import annotations

import json
import logging
import sys
import time
from datetime import UTC, datetime


class JsonLines(logging.Formatter):
    """One JSON object a line: time, level, logger, run, message, and what the call gave as ``extra={"said": {...}}``."""

    def __init__(self, run_id: str) -> None:
        super().__init__()
        self.run_id = run_id

    def format(self, record: logging.LogRecord) -> str:
        entry = {
            "at": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "run_id": self.run_id,
            "message": record.getMessage(),
            **getattr(record, "said", {}),
        }
        if record.exc_info:
            entry["trace"] = self.formatException(record.exc_info)
        return json.dumps(entry, default=str)


def configure(run_id: str, level: str = "INFO") -> None:
    """Sends medspark's log to standard error as JSON lines."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonLines(run_id))
    logger = logging.getLogger("medspark")
    logger.handlers[:] = [handler]
    logger.setLevel(level)
    logger.propagate = False


class Progress:
    """What the job is doing: a line for people on a terminal, a log line elsewhere."""

    def __init__(self, job: str) -> None:
        self.job, self.started = job, time.monotonic()
        self.log = logging.getLogger("medspark.progress")

    def __call__(self, text: str) -> None:
        if sys.stderr.isatty():
            print(f"[{time.monotonic() - self.started:6.1f} s] {self.job}: {text}", file=sys.stderr, flush=True)
        else:
            self.log.info(text)
