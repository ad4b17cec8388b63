#!/usr/bin/env python3
"""Makes `.venv` ready for medspark: `make setup` runs it, and so does every target that needs it.

Standard library only, and readable by any Python 3.6 or later: it is what a newcomer's first command starts, before anything is
installed. Seven steps, each left alone where it is done already:

1. check the machine: Linux on x86-64, Python 3.11, Java 17, a C++ compiler, cmake. What is wrong is said in one sentence with the
   command that mends it; exit status 2.
2. `.venv` from Python 3.11, and in it the pinned set of conf/constraints.txt, by pip from whatever index the machine uses.
3. Horovod's wheel: compiled once against the pinned TensorFlow, kept in the user's cache folder, installed from there ever after.
4. Delta's jars, fetched by Spark's own --packages into the same folder and copied into pyspark/jars, where all of Spark finds them.
5. Spark's settings from conf/, with this environment's interpreter, into pyspark/conf.
6. medspark itself, editable, with its C kernel.
7. An archive of the Java classes that a job loads, in the cache folder, so that later jobs map them into memory instead of reading,
   parsing and verifying them (JEP 350). Where it cannot be made, everything works as without it, only slower to start.

A stamp in .venv holds a digest of what the steps read; where it fits, the whole program ends at once. Nothing outside the project's
folder and ${XDG_CACHE_HOME:-~/.cache}/medspark is written (pip keeps its own cache as always).
"""

import argparse
import fcntl
import glob
import hashlib
import os
import platform
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
VENV = os.path.join(ROOT, ".venv")
STAMP = os.path.join(VENV, ".medspark-ready")
UNFINISHED = os.path.join(VENV, ".medspark-installing")  # there while pip installs: a killed pip leaves halves that it takes for whole
LOG = os.path.join(VENV, "setup.log")
PYTHON_WANTED = (3, 11)  # Horovod, TensorFlow 2.15 and pyarrow 14 have no common later version
JAVA_WANTED = 17  # the version that everything here was tried with
DIGESTED = (
    "setup.py",
    "medspark/pixels/kernels.c",
    "conf/constraints.txt",
    "conf/spark-defaults.conf",
    "conf/spark-env.sh",
    "conf/log4j2.properties",
    "tools/setup_env.py",
    "tools/load_classes.py",
)
ARCHIVES_KEPT = 4  # of Java classes, about 100 MB each: one for every environment of this user
HEARTBEAT_S = 30  # a line this often while pip or the compiler is silent


class Refused(Exception):
    """One sentence that names what is wrong and what mends it."""


def say(text):
    print("setup: " + text, flush=True)


# --- 1. the machine -------------------------------------------------------------------------------------------------


def check_platform(system=None, machine=None):
    system, machine = system or platform.system(), machine or platform.machine()
    if system != "Linux" or machine not in ("x86_64", "AMD64"):
        raise Refused(
            "medspark's pinned set exists for Linux on x86-64 and this is {} on {}; use such a machine or a container, for example "
            '`docker run --platform linux/amd64 -it -v "$PWD":/medspark -w /medspark python:3.11-bookworm bash`.'.format(system, machine)
        )


def installer(debian, conda):
    """The command of this machine's package manager."""
    sudo = "" if os.geteuid() == 0 else "sudo "
    if shutil.which("apt-get"):
        return "{}apt-get install -y {}".format(sudo, debian)
    return "conda install -y -c conda-forge {}".format(conda)


def python_version(executable):
    """(major, minor) of an interpreter, None where it does not run (a shim of a version that is not installed, say)."""
    code = "import sys; print('%d.%d' % sys.version_info[:2])"
    try:
        text = subprocess.run([executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, timeout=30).stdout.decode()
    except (OSError, subprocess.TimeoutExpired):
        return None
    found = re.match(r"(\d+)\.(\d+)\s*$", text)
    return (int(found.group(1)), int(found.group(2))) if found else None


def find_python():
    """The path of a Python 3.11 that can make environments: $PYTHON, this interpreter, or `python3.11` on the PATH."""
    given = os.environ.get("PYTHON", "")
    candidates = [given] if given else [sys.executable, "python3.11", "python3"]
    seen = []
    for candidate in candidates:
        path = shutil.which(candidate)
        version = python_version(path) if path else None
        if version == PYTHON_WANTED:
            return path
        if version:
            seen.append("{} is {}.{}".format(path, *version))
    if shutil.which("uv"):
        remedy = 'run `uv python install 3.11 && make setup PYTHON="$(uv python find 3.11)"`'
    elif shutil.which("pyenv"):
        remedy = 'run `pyenv install -s 3.11 && make setup PYTHON="$(pyenv prefix 3.11)/bin/python"`'
    else:
        remedy = "run `{}`".format(installer("python3.11 python3.11-venv", "python=3.11"))
    what = "$PYTHON={} is not one".format(given) if given and not seen else ", ".join(seen[:1]) or "none was found"
    raise Refused("Python 3.11 is needed and {}; {}.".format(what, remedy))


def check_venv_module(python):
    done = subprocess.run([python, "-c", "import venv, ensurepip"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    if done.returncode:
        raise Refused("{} cannot make virtual environments; run `{}`.".format(python, installer("python3.11-venv", "python=3.11")))


def java_major(text):
    """The major version out of what `java -version` prints ("17.0.15" -> 17, "1.8.0_392" -> 8), None where there is none."""
    found = re.search(r'version "(\d+)(?:\.(\d+))?', text)
    if not found:
        return None
    first = int(found.group(1))
    return int(found.group(2) or 0) if first == 1 else first


def java_version(java):
    """The major version of a java program, None where it does not start or does not tell."""
    try:
        done = subprocess.run([java, "-version"], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=60)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return java_major(done.stdout.decode("utf-8", "replace"))


def check_java():
    """The major version of the Java that Spark will start: $JAVA_HOME's, else the PATH's."""
    home = os.environ.get("JAVA_HOME", "")
    java = os.path.join(home, "bin", "java") if home else shutil.which("java")
    what, major = "no java was found on the PATH", None
    if home and not os.access(java, os.X_OK):
        what = "JAVA_HOME={} holds no bin/java".format(home)
    elif java:
        major = java_version(java)
        what = "{} is Java {}".format(java, major) if major else "{} does not tell its version".format(java)
    if major == JAVA_WANTED:
        return major
    beside = [path for path in sorted(glob.glob("/usr/lib/jvm/*17*/bin/java")) if java_version(path) == JAVA_WANTED]
    if beside:
        remedy = "export JAVA_HOME={}".format(os.path.dirname(os.path.dirname(beside[-1])))
    elif home:
        remedy = "unset JAVA_HOME; " + installer("openjdk-17-jre-headless", "openjdk=17")
    else:
        remedy = installer("openjdk-17-jre-headless", "openjdk=17")
    raise Refused("Java 17 is needed and {}; run `{}`.".format(what, remedy))


def check_compiler():
    if not (shutil.which(os.environ.get("CXX") or "g++") or shutil.which("c++")):
        raise Refused("Horovod is compiled here and no C++ compiler was found; run `{}`.".format(installer("g++", "gxx")))
    if not shutil.which(os.environ.get("HOROVOD_CMAKE") or "cmake"):
        raise Refused("Horovod is compiled here and no cmake was found; run `{}`.".format(installer("cmake", "cmake")))
    if not shutil.which("make"):
        raise Refused("Horovod is compiled here and no make was found; run `{}`.".format(installer("make", "make")))


def check_machine():
    check_platform()
    python = find_python()
    check_venv_module(python)
    check_java()
    check_compiler()
    return python


# --- what the steps share -------------------------------------------------------------------------------------------


def cache_dir():
    base = os.environ.get("XDG_CACHE_HOME") or os.path.join(os.path.expanduser("~"), ".cache")
    return os.path.join(base, "medspark")


def digest():
    """Hex digest of the files that the steps read and of the folder they serve (a moved environment does not run)."""
    sha = hashlib.sha256(ROOT.encode())
    for name in DIGESTED:
        with open(os.path.join(ROOT, name), "rb") as stream:
            sha.update(b"\0" + name.encode() + b"\0" + stream.read())
    return sha.hexdigest()


def ready():
    try:
        with open(STAMP) as stream:
            return stream.read().strip() == digest() and os.access(venv_python(), os.X_OK)
    except OSError:
        return False


def venv_python():
    return os.path.join(VENV, "bin", "python")


def site_packages():
    return os.path.join(VENV, "lib", "python{}.{}".format(*PYTHON_WANTED), "site-packages")


def pins():
    """{name: version} of conf/constraints.txt, in its order."""
    found = {}
    with open(os.path.join(ROOT, "conf", "constraints.txt")) as stream:
        for line in stream:
            name, equals, version = line.partition("#")[0].strip().partition("==")
            if equals:
                found[name] = version
    return found


def run(command, what, env=None, cwd=None):
    """Run quietly into the log with a sign of life now and then; a failure is one sentence with the log's last error."""
    merged = dict(os.environ, PIP_DISABLE_PIP_VERSION_CHECK="1", PIP_USER="0", PIP_NO_INPUT="1", **(env or {}))
    merged.pop("PYTHONPATH", None)
    merged.pop("SPARK_HOME", None)
    merged.pop("SPARK_CONF_DIR", None)
    started = beat = time.monotonic()
    with open(LOG, "ab") as log:
        log.write("\n$ {}\n".format(" ".join(command)).encode())
        log.flush()
        mark = log.tell()
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT, env=merged, cwd=cwd)
        while True:
            try:
                status = process.wait(timeout=1)
                break
            except subprocess.TimeoutExpired:
                if time.monotonic() - beat >= HEARTBEAT_S:
                    beat = time.monotonic()
                    say("  ... {} ({:.0f} s)".format(what, beat - started))
            except BaseException:
                process.terminate()
                process.wait()
                raise
    if status:
        with open(LOG, "rb") as log:
            log.seek(mark)
            lines = [line.strip() for line in log.read().decode("utf-8", "replace").splitlines() if line.strip()]
        told = [line for line in lines if line.lower().startswith(("error", "fatal", "::::"))] or lines
        last = told[-1][:300].rstrip(".") if told else "no word"
        raise Refused("{} failed ({}); read .venv/setup.log, mend it and run `make setup` again.".format(what, last))


# --- 2. the environment ---------------------------------------------------------------------------------------------


def belongs_here():
    """Whether .venv was made at this path: one that was moved or copied runs, but its commands start the old place's interpreter."""
    try:
        with open(os.path.join(VENV, "bin", "pip")) as stream:
            return os.path.join(VENV, "bin") in stream.read()
    except OSError:
        return False


def make_venv(python):
    whole = belongs_here() and os.path.exists(os.path.join(site_packages(), "pip")) and not os.path.exists(UNFINISHED)
    if whole and python_version(venv_python()) == PYTHON_WANTED:
        return
    if os.path.lexists(VENV):
        shutil.rmtree(VENV)
    say("making .venv with {}".format(python))
    subprocess.run([python, "-m", "venv", VENV], check=True)


def install_pins():
    open(UNFINISHED, "w").close()
    wanted = pins()
    tools = ["{}=={}".format(name, wanted[name]) for name in ("setuptools", "wheel")]
    run([venv_python(), "-m", "pip", "install", "--progress-bar", "off"] + tools, "installing setuptools and wheel")
    rest = ["{}=={}".format(name, version) for name, version in wanted.items() if name != "horovod"]
    say("installing {} pinned packages (a few minutes where pip's cache is cold)".format(len(rest)))
    with tempfile.NamedTemporaryFile("w", suffix=".txt", dir=VENV) as listed:
        listed.write("\n".join(rest) + "\n")
        listed.flush()
        # The set is complete and known to agree, so nothing is left to resolve; `pip check` below proves it.
        run(
            [venv_python(), "-m", "pip", "install", "--progress-bar", "off", "--no-deps", "-r", listed.name],
            "installing the pinned packages",
        )
    os.remove(UNFINISHED)


# --- 3. Horovod -----------------------------------------------------------------------------------------------------


def horovod_key():
    """Name of the folder that keeps the wheel: it fits one Python, one TensorFlow, one Horovod."""
    wanted = pins()
    return "horovod-{}-tensorflow-cpu-{}-cp{}{}".format(wanted["horovod"], wanted["tensorflow-cpu"], *PYTHON_WANTED)


def install_horovod():
    folder = os.path.join(cache_dir(), "wheels", horovod_key())
    wheels = glob.glob(os.path.join(folder, "horovod-*.whl"))
    if not wheels:
        check_compiler()
        say("compiling Horovod against TensorFlow (once, 3 to 5 minutes on two cores; kept in the cache folder)")
        os.makedirs(os.path.dirname(folder), exist_ok=True)
        jobs = max(1, min(8, os.cpu_count() or 1))
        env = {
            "CMAKE_POLICY_VERSION_MINIMUM": "3.5",  # its CMakeLists is older than what cmake 4 accepts
            "HOROVOD_WITH_TENSORFLOW": "1",
            "HOROVOD_WITHOUT_PYTORCH": "1",
            "HOROVOD_WITHOUT_MXNET": "1",
            "HOROVOD_WITHOUT_MPI": "1",
            "HOROVOD_WITH_GLOO": "1",
            "MAKEFLAGS": "-j{}".format(jobs),
            "PATH": os.path.join(VENV, "bin") + os.pathsep + os.environ.get("PATH", ""),
        }
        building = tempfile.mkdtemp(prefix="building-", dir=os.path.dirname(folder))
        try:
            # pip's own cache would hand out a wheel built against another TensorFlow: --no-cache-dir.
            command = [venv_python(), "-m", "pip", "wheel", "--no-cache-dir", "--no-build-isolation", "--no-deps"]
            run(command + ["--wheel-dir", building, "horovod==" + pins()["horovod"]], "compiling Horovod", env)
            if not os.path.isdir(folder):
                os.rename(building, folder)
        finally:
            shutil.rmtree(building, ignore_errors=True)
        wheels = glob.glob(os.path.join(folder, "horovod-*.whl"))
    mark = os.path.join(site_packages(), "horovod", ".medspark-" + horovod_key())
    if not (os.path.exists(mark) and os.path.exists(os.path.join(site_packages(), "horovod", "__init__.py"))):
        say("installing Horovod from the cache folder")
        run([venv_python(), "-m", "pip", "install", "--no-deps", "--force-reinstall", "--no-cache-dir", wheels[0]], "installing Horovod")
        run([venv_python(), "-c", "import horovod.tensorflow as hvd; assert hvd.gloo_built()"], "importing Horovod with TensorFlow")
        open(mark, "w").close()


# --- 4. Delta's jars ------------------------------------------------------------------------------------------------


def jar_name(path):
    """'io.delta_delta-spark_2.13-4.0.1.jar' (Ivy's name: organisation first) -> 'delta-spark_2.13-4.0.1.jar'."""
    return os.path.basename(path).split("_", 1)[1]


def fetch_jars():
    """Paths of Delta's jars in the cache folder, fetched on first use by Spark's own mechanism."""
    coordinate = "io.delta:delta-spark_2.13:" + pins()["delta-spark"]
    folder = os.path.join(cache_dir(), "jars", coordinate.replace(":", "-"))
    if not glob.glob(os.path.join(folder, "*.jar")):
        say("fetching Delta's jars")
        os.makedirs(os.path.dirname(folder), exist_ok=True)
        scratch = tempfile.mkdtemp(prefix="fetching-", dir=os.path.dirname(folder))
        try:
            script = os.path.join(scratch, "nothing.py")
            open(script, "w").close()
            ivy = os.path.join(cache_dir(), "ivy")
            for stale in glob.glob(os.path.join(ivy, "jars", "*.jar")):
                os.remove(stale)
            spark_submit = os.path.join(site_packages(), "pyspark", "bin", "spark-submit")
            command = [spark_submit, "--master", "local", "--packages", coordinate, "--conf", "spark.jars.ivy=" + ivy]
            env = {
                "PYSPARK_PYTHON": venv_python(),
                "SPARK_HOME": os.path.join(site_packages(), "pyspark"),
                "SPARK_LOCAL_IP": "127.0.0.1",
                "SPARK_SUBMIT_OPTS": "-XX:-UsePerfData -Djava.io.tmpdir=" + scratch,
            }
            run(command + [script], "fetching Delta's jars", env, cwd=scratch)
            ready_jars = os.path.join(scratch, "jars")
            os.mkdir(ready_jars)
            for path in glob.glob(os.path.join(ivy, "jars", "*.jar")):
                shutil.copyfile(path, os.path.join(ready_jars, jar_name(path)))
            if not any(name.startswith("delta-spark") for name in os.listdir(ready_jars)):
                raise Refused(
                    "Delta's jars did not arrive; check the network, or a Maven mirror in spark.jars.ivySettings, and run `make setup` again."
                )
            if not os.path.isdir(folder):
                os.rename(ready_jars, folder)
        finally:
            shutil.rmtree(scratch, ignore_errors=True)
    return sorted(glob.glob(os.path.join(folder, "*.jar")))


def jars_dir():
    return os.path.join(site_packages(), "pyspark", "jars")


def place_jars():
    """Copy them beside Spark's own, where every Spark program finds them, offline and without a flag; older Delta jars go."""
    jars = jars_dir()
    fetched = fetch_jars()
    names = [os.path.basename(path) for path in fetched]
    for path in glob.glob(os.path.join(jars, "delta-s*.jar")):
        if os.path.basename(path) not in names:
            os.remove(path)
    for path, name in zip(fetched, names):
        target = os.path.join(jars, name)
        if not os.path.exists(target) or os.path.getsize(target) != os.path.getsize(path):
            shutil.copyfile(path, target + ".part")
            os.replace(target + ".part", target)


# --- 5. Spark's settings --------------------------------------------------------------------------------------------


def render_conf():
    """conf/ -> pyspark/conf, with this environment's interpreter; and .venv/bin/spark-* find Spark without an activated shell."""
    source, target = os.path.join(ROOT, "conf"), os.path.join(site_packages(), "pyspark", "conf")
    os.makedirs(target, exist_ok=True)
    for name in ("spark-defaults.conf", "spark-env.sh", "log4j2.properties"):
        with open(os.path.join(source, name)) as stream:
            text = stream.read().replace("@PYTHON@", venv_python()).replace("@CLASSES@", class_archive())
        if name == "spark-defaults.conf":
            text += "\n# Added by set-up: drivers and workers run this environment's interpreter.\nspark.pyspark.python {}\n".format(
                venv_python()
            )
            # Java takes an archive of classes only if its class path begins as when it was made, and with no folder such as conf/.
            text += "# Spark's jars come before its conf folder, as the archive of Java classes wants it.\n"
            text += "spark.driver.extraClassPath {}\n".format(os.path.join(jars_dir(), "*"))
        with open(os.path.join(target, name + ".part"), "w") as stream:
            stream.write(text)
        os.replace(os.path.join(target, name + ".part"), os.path.join(target, name))
    launcher = os.path.join(VENV, "bin", "find-spark-home")
    with open(launcher) as stream:
        text = stream.read()
    # pyspark's launchers ask the first python3 on the PATH where Spark lies; ours ask the interpreter beside them.
    mended = text.replace('${PYSPARK_PYTHON:-"python3"}', '${PYSPARK_PYTHON:-"$(dirname "$0")/python"}')
    if mended != text:
        with open(launcher, "w") as stream:
            stream.write(mended)


# --- 6. medspark ----------------------------------------------------------------------------------------------------


def install_medspark():
    run([venv_python(), "-m", "pip", "install", "--no-deps", "--no-build-isolation", "--editable", ROOT], "installing medspark")
    run([venv_python(), "-m", "pip", "check"], "checking that the set agrees")


# --- 7. the archive of Java classes -----------------------------------------------------------------------------------


def java():
    home = os.environ.get("JAVA_HOME", "")
    return os.path.join(home, "bin", "java") if home else (shutil.which("java") or "java")


def class_archive():
    """Path of the archive for this Java and these jars; Java itself refuses one that fits neither."""
    sha = hashlib.sha256(jars_dir().encode())
    sha.update(subprocess.run([java(), "-version"], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=60).stdout)
    for name in sorted(os.listdir(jars_dir())):
        status = os.stat(os.path.join(jars_dir(), name))
        sha.update("{} {} {}\n".format(name, status.st_size, int(status.st_mtime)).encode())
    return os.path.join(cache_dir(), "classes", sha.hexdigest()[:16] + ".jsa")


def archive_fits(path):
    command = [java(), "-Xshare:on", "-XX:SharedArchiveFile=" + path, "-cp", os.path.join(jars_dir(), "*"), "-version"]
    return (
        os.path.exists(path) and subprocess.run(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, timeout=60).returncode == 0
    )


def archive_classes():
    """Runs one small job under a Java that writes down at its end which classes it loaded. A failure is told and costs nothing else."""
    path = class_archive()
    if archive_fits(path):
        return
    say("archiving Java classes for a faster start")
    folder = os.path.dirname(path)
    os.makedirs(folder, exist_ok=True)
    scratch = tempfile.mkdtemp(prefix="classes-", dir=VENV)
    part = path + ".part"
    try:
        env = {
            "SPARK_SUBMIT_OPTS": '-XX:-UsePerfData -Xlog:disable -Xlog:all=error:stderr "-XX:ArchiveClassesAtExit=' + part + '"',
            "XDG_CONFIG_HOME": scratch,
            "SPARK_LOCAL_IP": "127.0.0.1",
        }
        submit = os.path.join(site_packages(), "pyspark", "bin", "spark-submit")
        env["SPARK_HOME"] = os.path.join(site_packages(), "pyspark")
        env["PYSPARK_PYTHON"] = venv_python()
        command = [submit, "--master", "local[2,4]", "--driver-memory", "1g", os.path.join(ROOT, "tools", "load_classes.py"), scratch]
        run(command, "archiving Java classes", env, cwd=scratch)
        if not os.path.exists(part):
            raise Refused("Java wrote no archive.")
        os.replace(part, path)
        kept = sorted(glob.glob(os.path.join(folder, "*.jsa")), key=os.path.getmtime)
        for stale in kept[:-ARCHIVES_KEPT]:
            os.remove(stale)
    except (Refused, OSError) as why:
        say("no archive of Java classes ({}); jobs work without it and start a few seconds later".format(str(why).rstrip(".")))
    finally:
        if os.path.exists(part):
            os.remove(part)
        shutil.rmtree(scratch, ignore_errors=True)


def set_up():
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # as Ctrl-C: the child is stopped too
    started = time.monotonic()
    python = check_machine()
    os.makedirs(cache_dir(), mode=0o700, exist_ok=True)
    with open(os.path.join(cache_dir(), "lock"), "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # two set-ups at once would compile twice
        if ready():
            return
        make_venv(python)
        if os.path.exists(STAMP):
            os.remove(STAMP)
        install_pins()
        install_horovod()
        place_jars()
        render_conf()
        install_medspark()
        archive_classes()
        with open(STAMP, "w") as stream:
            stream.write(digest() + "\n")
    say("ready after {:.0f} s".format(time.monotonic() - started))


def main(argv=None):
    parser = argparse.ArgumentParser(description="Make .venv ready for medspark; a second call ends at once.")
    parser.add_argument("--check", action="store_true", help="only check the machine's prerequisites")
    parser.add_argument("--only", choices=["jars", "conf", "classes"], action="append", help="only this step, in the .venv that is there")
    options = parser.parse_args(argv)
    try:
        if options.check:
            check_machine()
            say("this machine has what set-up needs")
        elif options.only:
            for step in options.only:
                {"jars": place_jars, "conf": render_conf, "classes": archive_classes}[step]()
        elif not ready():
            set_up()
    except Refused as refusal:
        print("setup: " + str(refusal), file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("setup: interrupted; `make setup` goes on where it stopped.", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
