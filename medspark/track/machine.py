"""Load of the machine that a run works on, as metrics ``system/...``: processors, memory, network, disk, GPUs."""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Callable, Mapping
from typing import Any

log = logging.getLogger("medspark.track")

SAMPLE_S = 5.0
SAMPLES = 3  # averaged into one point: four points a minute, 6,000 a day


class Machine:
    """Samples on a thread of its own until `stop`. MLflow's own monitors measure, but what they find goes the way of all metrics: the one that
    MLflow runs itself stops for good when the server does not answer once.

    say : (values, step)    step counts points
    """

    def __init__(self, say: Callable[[Mapping[str, float], int], None]) -> None:
        self._say, self._step = say, 0
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._work, name="medspark machine", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        self._stopped.set()
        self._thread.join(SAMPLE_S)

    def _work(self) -> None:
        monitors = _monitors()
        seconds = float(os.environ.get("MLFLOW_SYSTEM_METRICS_SAMPLING_INTERVAL", SAMPLE_S))
        samples = int(os.environ.get("MLFLOW_SYSTEM_METRICS_SAMPLES_BEFORE_LOGGING", SAMPLES))
        while True:
            for _ in range(samples):
                for monitor in monitors:
                    monitor.collect_metrics()
                if self._stopped.wait(seconds):
                    return
            values: dict[str, float] = {}
            for monitor in monitors:
                values |= {f"system/{name}": float(value) for name, value in monitor.aggregate_metrics().items()}
                monitor.clear_metrics()
            self._say(values, self._step)
            self._step += 1


def _monitors() -> list[Any]:
    from mlflow.system_metrics.metrics.cpu_monitor import CPUMonitor
    from mlflow.system_metrics.metrics.disk_monitor import DiskMonitor
    from mlflow.system_metrics.metrics.gpu_monitor import GPUMonitor
    from mlflow.system_metrics.metrics.network_monitor import NetworkMonitor

    monitors: list[Any] = [CPUMonitor(), DiskMonitor(), NetworkMonitor()]
    try:
        monitors.append(GPUMonitor())
    except Exception as error:  # no pynvml, no driver, no device: each has its own error
        log.debug("no GPU is measured: %s", type(error).__name__)
    return monitors
