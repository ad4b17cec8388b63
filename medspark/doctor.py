"""What is in order on this machine, line by line, and for each thing that is not the one command that mends it.

``python -m medspark doctor`` and ``make doctor``. Works with nothing installed: versions are read from package metadata and whatever
may be broken natively (TensorFlow under Horovod, OpenSlide) is imported in a process of its own with a time limit. Exit status 0 or 1.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import importlib.util
import json
import os
import platform
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
SETUP = "make setup"
REPAIR = "make clean setup"
JAVA_MAJOR = 17  # the version that everything was tried with
PYTHON_SERIES = (3, 11)  # TensorFlow 2.15, Horovod and pyarrow 14 have no later one in common
PINNED = (
    "pyspark",
    "delta-spark",
    "deltalake",
    "pyarrow",
    "numpy",
    "pandas",
    "pydicom",
    "petastorm",
    "tensorflow-cpu",
    "horovod",
    "mlflow",
)
MIN_FREE_DISK = 10 << 30  # environment, caches and the demo take about 5 GiB; the rest is for a first lake
MIN_MEMORY = 6 << 30  # the driver's 4 GiB heap beside two Python workers
IMPORT_S = 60.0  # a cold TensorFlow import on a loaded machine takes 20 s


@dataclass(frozen=True)
class Finding:
    """One line of the table: ``remedy`` is a command, empty where all is well."""

    what: str
    ok: bool
    found: str
    remedy: str = ""


def check_python() -> Finding:
    version = sys.version_info
    ok = (version.major, version.minor) == PYTHON_SERIES and platform.system() == "Linux" and platform.machine() == "x86_64"
    found = f"{platform.python_version()} on {platform.system()} {platform.machine()}"
    return Finding("Python 3.11, Linux x86-64", ok, found, "" if ok else SETUP)


def java_major(text: str) -> int | None:
    """Major version out of what ``java -version`` prints ("17.0.15" gives 17, "1.8.0_392" gives 8), None where there is none."""
    match = re.search(r'version "(\d+)(?:\.(\d+))?', text)
    if match is None:
        return None
    return int(match[2] or 0) if match[1] == "1" else int(match[1])


def check_java() -> Finding:
    home = os.environ.get("JAVA_HOME")
    java = os.path.join(home, "bin", "java") if home else shutil.which("java")
    major, found = None, "JAVA_HOME holds no bin/java" if home else "no java on the PATH"
    if java and os.access(java, os.X_OK):
        status, text = _run([java, "-version"], 30.0)
        major = java_major(text)
        found = (text.splitlines() or [""])[0] if status == 0 else "java does not start"
    ok = major == JAVA_MAJOR
    return Finding("Java 17", ok, found, "" if ok else _java_remedy())


def _java_remedy() -> str:
    for java in sorted(Path("/usr/lib/jvm").glob("*17*/bin/java"), reverse=True):
        if java_major(_run([str(java), "-version"], 30.0)[1]) == JAVA_MAJOR:
            return f"export JAVA_HOME={java.parents[1]}"
    if not shutil.which("apt-get"):
        return "conda install -y -c conda-forge openjdk=17"
    return ("" if os.geteuid() == 0 else "sudo ") + "apt-get install -y openjdk-17-jre-headless"


def pins(path: Path | None = None) -> dict[str, str]:
    """Name (normalised) to version of the pinned set; empty where the file is not there (an installed package without its project)."""
    path = path or ROOT / "conf" / "constraints.txt"
    if not path.is_file():
        return {}
    rows = (line.partition("#")[0].strip().partition("==") for line in path.read_text().splitlines())
    return {_normal(name): version for name, equals, version in rows if equals}


def check_pin(name: str, wanted: str | None) -> Finding:
    try:
        have = importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return Finding(name, False, "not installed", SETUP)
    ok = wanted is None or have == wanted
    return Finding(
        name, ok, have if ok else f"{have}, pinned is {wanted}", "" if ok else f"{sys.executable} -m pip install {name}=={wanted}"
    )


def check_all_pins(wanted: dict[str, str]) -> Finding:
    """The rest of the set in one line."""
    wrong = [finding.what for finding in (check_pin(name, version) for name, version in wanted.items()) if not finding.ok]
    if not wanted:
        return Finding(
            "pinned set", False, "conf/constraints.txt not found", "run doctor in the project's folder: cd PROJECT && make doctor"
        )
    if not wrong:
        return Finding("pinned set", True, f"all {len(wanted)} packages as pinned")
    listed = ", ".join(wrong[:4]) + (" ..." if len(wrong) > 4 else "")
    return Finding("pinned set", False, f"{len(wrong)} of {len(wanted)} differ: {listed}", f"rm -f .venv/.medspark-ready && {SETUP}")


def check_horovod() -> Finding:
    """Importable together with the TensorFlow that is installed, which is what its build depends on."""
    cache = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    code = (
        "import horovod.tensorflow as hvd, tensorflow as tf\n"
        "assert hvd.gloo_built(), 'built without Gloo'\n"
        "print('SAYS with TensorFlow', tf.__version__)"
    )
    return _by_import("Horovod with TensorFlow", ("horovod", "tensorflow"), code, f"rm -rf {cache}/medspark/wheels && {REPAIR}")


def check_openslide() -> Finding:
    return _by_import("OpenSlide", ("openslide",), "import openslide; print('SAYS library', openslide.__library_version__)", REPAIR)


def check_jars() -> Finding:
    home = _pyspark_home()
    if home is None:
        return Finding("Delta's jars", False, "pyspark not installed", SETUP)
    names = [path.name for path in (home / "jars").glob("*.jar")]
    missing = [stem for stem in ("delta-spark_", "delta-storage-", "antlr4-runtime-") if not any(name.startswith(stem) for name in names)]
    found = next((name for name in names if name.startswith("delta-spark_")), "")
    if missing:
        return Finding(
            "Delta's jars", False, f"{', '.join(stem.rstrip('-_') for stem in missing)} missing", f"rm -f .venv/.medspark-ready && {SETUP}"
        )
    return Finding("Delta's jars", True, found)


def check_spark_settings() -> Finding:
    what, again = "Spark's settings", f"rm -f .venv/.medspark-ready && {SETUP}"
    foreign = [name for name in ("SPARK_HOME", "SPARK_CONF_DIR") if os.environ.get(name)]
    if foreign:
        return Finding(what, False, f"{' and '.join(foreign)} point elsewhere", f"unset {' '.join(foreign)}")
    home = _pyspark_home()
    if home is None:
        return Finding(what, False, "pyspark not installed", SETUP)
    try:
        text = (home / "conf" / "spark-defaults.conf").read_text()
    except OSError:
        return Finding(what, False, "pyspark/conf/spark-defaults.conf missing", again)
    match = re.search(r"^spark\.pyspark\.python\s+(\S+)", text, re.MULTILINE)
    if match is None or not os.access(match[1], os.X_OK):
        return Finding(what, False, "name no interpreter that runs (was the folder moved?)", again)
    return Finding(what, True, "in pyspark/conf")


def check_classes() -> Finding:
    """The archive of Java classes that spark-env.sh names: Java is asked to take it or to fail, where in a job it would silently do without."""
    what, remedy = "Java classes archived", "python3 tools/setup_env.py --only conf --only classes"
    home = _pyspark_home()
    script = home / "conf" / "spark-env.sh" if home else None
    if home is None or script is None or not script.is_file():
        return Finding(what, False, "Spark's settings missing", f"rm -f .venv/.medspark-ready && {SETUP}")
    match = re.search(r'-XX:SharedArchiveFile=(/[^"\\]+)', script.read_text())
    if match is None or not os.path.isfile(match[1]):
        return Finding(what, False, "none: every job starts some seconds later", remedy)
    java = os.path.join(os.environ["JAVA_HOME"], "bin", "java") if os.environ.get("JAVA_HOME") else "java"
    status, _ = _run([java, "-Xshare:on", f"-XX:SharedArchiveFile={match[1]}", "-cp", f"{home}/jars/*", "-version"], 30.0)
    if status:
        return Finding(what, False, "made with another Java or other jars: every job starts some seconds later", remedy)
    return Finding(what, True, f"{os.path.getsize(match[1]) / 2**20:.0f} MiB in the cache folder")


def check_kernel() -> Finding:
    """The one C file, compiled."""
    found = list((ROOT / "medspark" / "pixels").glob("kernels*.so"))
    remedy = f"{sys.executable} setup.py build_ext --inplace"
    return Finding(
        "C kernel", bool(found), "compiled" if found else "not compiled: re-encoded tiles take a quarter longer", remedy * (not found)
    )


def check_disk(folder: Path | None = None) -> Finding:
    folder = folder or Path.cwd()
    free = shutil.disk_usage(folder).free
    ok = free >= MIN_FREE_DISK
    return Finding(
        "disk space", ok, f"{free / 2**30:.0f} GiB free here", "" if ok else f"du -xh --max-depth=2 {folder} | sort -h | tail -20"
    )


def check_memory() -> Finding:
    """Memory of the machine, or of the control group that this process is confined to."""
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    for name in ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"):
        try:
            total = min(total, int(Path(name).read_text()))
        except (OSError, ValueError):
            continue  # no such hierarchy, or "max"
    ok = total >= MIN_MEMORY
    remedy = "" if ok else "sed -i -E 's/^(spark.driver.memory +).*/\\11g/' conf/spark-defaults.conf && make setup"
    return Finding("memory", ok, f"{total / 2**30:.0f} GiB, {len(os.sched_getaffinity(0))} cores", remedy)


def examine() -> list[Finding]:
    """All findings in the table's order; the slow checks run side by side."""
    wanted = pins()
    checks: list[Callable[[], Finding]] = [check_python, check_java, check_jars, check_spark_settings, check_classes, check_kernel]
    checks += [lambda name=name: check_pin(name, wanted.get(_normal(name))) for name in PINNED]  # type: ignore[misc]
    checks += [lambda: check_all_pins(wanted), check_horovod, check_openslide, check_disk, check_memory]
    with ThreadPoolExecutor(4) as pool:
        return [job.result() for job in [pool.submit(check) for check in checks]]


def render(findings: list[Finding]) -> str:
    """The table as text: state, what, what was found; the remedy on a line of its own below."""
    width = max(len(finding.what) for finding in findings)
    lines = []
    for finding in findings:
        lines.append(f"{'ok   ' if finding.ok else 'WRONG'}  {finding.what:<{width}}  {finding.found}")
        if not finding.ok:
            lines.append(f"       {'':<{width}}  mend it with: {finding.remedy}")
    wrong = sum(not finding.ok for finding in findings)
    lines.append("all is well" if not wrong else f"{wrong} of {len(findings)} lines are wrong")
    return "\n".join(lines)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="medspark doctor", description="What is in order on this machine, and how to mend what is not.")
    parser.add_argument("--json", action="store_true", help="the findings as one JSON array (default: a table)")
    options = parser.parse_args(argv)
    findings = examine()
    print(json.dumps([asdict(finding) for finding in findings]) if options.json else render(findings))
    return 0 if all(finding.ok for finding in findings) else 1


def _normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def _pyspark_home() -> Path | None:
    """Where pyspark lies, without importing it."""
    try:
        files = importlib.metadata.distribution("pyspark")
    except importlib.metadata.PackageNotFoundError:
        return None
    return Path(str(files.locate_file("pyspark")))


def _run(command: list[str], limit_s: float) -> tuple[int, str]:
    """Exit status and everything printed; status 1 where it does not start or end in time."""
    environment = os.environ | {"TF_CPP_MIN_LOG_LEVEL": "3", "CUDA_VISIBLE_DEVICES": os.environ.get("CUDA_VISIBLE_DEVICES", "")}
    try:
        done = subprocess.run(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=limit_s, text=True, env=environment
        )
    except subprocess.TimeoutExpired:
        return 1, f"no answer within {limit_s:.0f} s"
    except OSError as error:
        return 1, error.strerror or str(error)
    return done.returncode, done.stdout


def _by_import(what: str, modules: tuple[str, ...], code: str, remedy: str) -> Finding:
    """Run ``code`` in a process of its own; it reports by a line ``SAYS ...``."""
    missing = [name for name in modules if importlib.util.find_spec(name) is None]
    if missing:
        return Finding(what, False, f"{' and '.join(missing)} not installed", SETUP)
    status, text = _run([sys.executable, "-W", "ignore", "-c", code], IMPORT_S)
    lines = [line for line in text.strip().splitlines() if line.strip()]
    said = [line.removeprefix("SAYS ") for line in lines if line.startswith("SAYS ")]
    if status == 0 and said:
        return Finding(what, True, said[-1])
    return Finding(what, False, lines[-1][:160] if lines else f"exit status {status}", remedy)


if __name__ == "__main__":
    sys.exit(main())
