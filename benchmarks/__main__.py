"""All benches, one table each, then one of all ratios: ``python -m benchmarks [--size small] [--only tiles ct]``."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
from pathlib import Path

from benchmarks import peer
from benchmarks.peer import Ratio, Report

BENCHES = ("tiles", "reencoded", "ct", "fixed_cost", "scaling", "memory", "layout", "ranks", "stream")


def main() -> None:
    parser = peer.options("", __doc__, 0)
    parser.add_argument("--only", nargs="+", choices=BENCHES, default=list(BENCHES), help="some of them")
    given = parser.parse_args()
    every = Report(
        f"All ratios ({given.size}; {os.cpu_count()} cores, {platform.system()} {platform.machine()}, Python {platform.python_version()})"
    )
    said, failed = [], []
    with peer.work_folder(given.work) as work:
        for name in given.only:
            # A process each: the memory and the Spark session of one bench are no part of the next.
            out = work / f"{name}.json"
            out.unlink(missing_ok=True)
            command = [sys.executable, "-m", f"benchmarks.{name}", "--size", given.size, "--work", str(work), "--json", str(out)]
            command += ["--repeat", str(given.repeat)] if given.repeat else []
            command += ["--profile"] if given.profile else []
            if given.profile and name not in ("tiles", "reencoded", "ct"):
                continue
            if subprocess.run(command, cwd=peer.ROOT, check=False).returncode or not (out.exists() or given.profile):
                failed.append(name)
                continue
            if given.profile:
                continue
            found = json.loads(out.read_text())
            said.append(found)
            for ratio in found["ratios"]:
                ratio.pop("met")
                every.ratios.append(Ratio(**{**ratio, "what": f"{name}: {ratio['what']}", "note": ""}))
    if said:
        print(every.markdown(), flush=True)
    if given.json:
        Path(given.json).write_text(json.dumps(said, indent=1) + "\n")
    if failed:
        raise SystemExit(f"these did not end: {', '.join(failed)}")


if __name__ == "__main__":
    main()
