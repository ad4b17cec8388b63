"""Memory: a slide of 60,000 x 60,000 px under local[2] with 4 GiB for everything, pass-through and resampled."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from benchmarks import peer, phantoms
from benchmarks.peer import Given, Ratio, Report

SIDES = {"small": 40, "medium": 120, "full": 235}  # stored tiles along a side: 10,240 to 60,160 px
LIMIT_BYTES = 4 << 30
EVERY_S = 0.1
GRIDS = {
    "the file's own tiles": [],
    "tiles of 224 px (re-encoded)": ["--set", "tiling.tile_px=224"],
    "0.5 µm/px (level 0 halved, re-encoded)": ["--set", "tiling.mpp_um=0.5"],
}


@dataclass
class Peak:
    """Largest sums over the process tree, bytes: resident (shared pages counted in every process), proportional (counted once)."""

    resident: int = 0
    proportional: int = 0
    processes: int = 0


def bench(given: Given) -> Report:
    side = SIDES[given.size]
    path = phantoms.slide(given.work, side, side)
    bounded = limit_command()
    report = Report(f"Memory: one slide of {side * 256:,} x {side * 256:,} px, local[{peer.CORES}], JVM -Xmx1g")
    for name, chosen in GRIDS.items():
        seconds, peak, said = watched(given.work, path, chosen, bounded)
        tiles = said["written"].get("pixels", 0)
        note = (
            f"{tiles:,} tiles in {seconds:.0f} s; at most {peak.processes} processes; "
            f"{peak.resident / 2**30:.2f} GiB where pages shared by processes count in each"
        )
        value = peak.proportional / 2**30
        report.ratios.append(Ratio(name, value, None, "GiB", value, LIMIT_BYTES / 2**30, at_least=False, note=note))
    how = (
        "a control group stops the job at 4 GiB"
        if bounded
        else "no control group could be made here: nothing but the measure bounds the job"
    )
    report.remarks.append(f"peak of the proportional set sizes of the whole process tree, every {EVERY_S:g} s; {how}")
    return report


def limit_command() -> list[str]:
    """Prefix that bounds a command's memory; empty where systemd does not run."""
    if not Path("/run/systemd/system").exists() or shutil.which("systemd-run") is None:
        return []
    scope = [] if os.geteuid() == 0 else ["--user"]
    command = ["systemd-run", *scope, "--scope", "--quiet", "-p", f"MemoryMax={LIMIT_BYTES}", "-p", "MemorySwapMax=0"]
    tried = subprocess.run([*command, "true"], capture_output=True, check=False)
    return command if tried.returncode == 0 else []


def watched(work: Path, path: Path, chosen: list[str], bounded: list[str]) -> tuple[float, Peak, dict]:
    """(seconds, peak, summary) of one tile_slides job, its process tree sampled as it runs."""
    import psutil

    lake, log = peer.fresh(work, "memory"), work / "out" / "memory.log"
    command = [sys.executable, str(peer.ROOT / "jobs" / "tile_slides.py"), "--lake", str(lake), "--input", str(path)]
    environment = peer.environment(work, memory="1g")
    peak, started = Peak(), time.monotonic()
    with open(log, "w") as errors:
        job = subprocess.Popen(
            [*bounded, *command, "--set", "tiling.min_tissue=0", *chosen],
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
            env=environment,
            cwd=work,
        )
        root = psutil.Process(job.pid)
        while job.poll() is None:
            resident, proportional, count = sample(root)
            peak.resident, peak.processes = max(peak.resident, resident), max(peak.processes, count)
            peak.proportional = max(peak.proportional, proportional)
            time.sleep(EVERY_S)
        out = job.stdout.read() if job.stdout is not None else ""
    if job.returncode:
        raise RuntimeError(f"status {job.returncode}: {log.read_text()[-3000:]}")
    return time.monotonic() - started, peak, json.loads(out.strip().splitlines()[-1])


def sample(root: object) -> tuple[int, int, int]:
    """(resident bytes, proportional bytes, processes) of a process and all below it."""
    import psutil

    assert isinstance(root, psutil.Process)
    resident = proportional = count = 0
    try:
        tree = [root, *root.children(recursive=True)]
    except psutil.NoSuchProcess:
        return 0, 0, 0
    for process in tree:
        try:
            own = process.memory_info().rss
            shared = getattr(process.memory_full_info(), "pss", own)  # Linux; elsewhere the resident size
        except (psutil.NoSuchProcess, psutil.AccessDenied):
            continue
        resident, proportional, count = resident + own, proportional + shared, count + 1
    return resident, proportional, count


if __name__ == "__main__":
    peer.main("memory", peer.options("memory", __doc__, 1), bench)
