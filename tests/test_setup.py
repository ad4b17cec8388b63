"""Set-up and doctor: what they say on machines that lack something, and that they agree with the files they stand for."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from medspark import config, doctor

ROOT = Path(__file__).resolve().parents[1]
PROGRAM = ROOT / "tools" / "setup_env.py"


def _load():
    spec = importlib.util.spec_from_file_location("setup_env", PROGRAM)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


setup_env = _load()


def _script(folder: Path, name: str, body: str) -> Path:
    path = folder / name
    path.write_text("#!/bin/sh\n" + body + "\n")
    path.chmod(0o755)
    return path


@pytest.fixture
def machine(tmp_path):
    """A PATH with everything that set-up asks for, all of it fake; tests take away or change one thing."""
    folder = tmp_path / "bin"
    folder.mkdir()
    _script(folder, "java", "echo 'openjdk version \"17.0.9\" 2023-10-17' >&2")
    for name in ("g++", "cmake", "make"):
        _script(folder, name, "exit 0")
    (folder / "sh").symlink_to("/bin/sh")
    return folder


def _check(folder: Path, **environment: str) -> tuple[int, str, str]:
    env = {"PATH": str(folder), "HOME": str(folder.parent), **environment}
    done = subprocess.run([sys.executable, str(PROGRAM), "--check"], env=env, capture_output=True, text=True, timeout=60)
    return done.returncode, done.stdout, done.stderr


def _one_sentence(status: int, out: str, err: str) -> str:
    assert status == 2 and out == ""
    assert len(err.splitlines()) == 1 and err.startswith("setup: ") and err.rstrip().endswith(".")
    assert "Traceback" not in err
    assert err.count("`") == 2, f"names exactly one command: {err}"
    return err


def test_a_complete_machine_passes(machine):
    status, out, err = _check(machine)
    assert (status, err) == (0, "")
    assert "has what set-up needs" in out


@pytest.mark.parametrize(
    ("banner", "found"),
    [
        ('openjdk version "11.0.22" 2024-01-16', "Java 11"),
        ('java version "1.8.0_392"', "Java 8"),
        ("no such thing", "does not tell its version"),
    ],
)
def test_another_java(machine, banner, found):
    _script(machine, "java", f"echo '{banner}' >&2")
    assert found in _one_sentence(*_check(machine))


def test_no_java(machine):
    (machine / "java").unlink()
    assert "Java 17 is needed and no java was found" in _one_sentence(*_check(machine))


def test_java_home_without_java(machine, tmp_path):
    assert "holds no bin/java" in _one_sentence(*_check(machine, JAVA_HOME=str(tmp_path / "nothing")))


@pytest.mark.parametrize(("tool", "word"), [("g++", "C++ compiler"), ("cmake", "cmake"), ("make", "make")])
def test_no_compiler(machine, tool, word):
    (machine / tool).unlink()
    assert f"no {word} was found" in _one_sentence(*_check(machine))


def test_another_python(machine):
    old = _script(machine, "python3.9", "echo 3.9")
    assert "is 3.9" in _one_sentence(*_check(machine, PYTHON=str(old)))


def test_a_python_that_does_not_run(machine):
    shim = _script(machine, "shim", "exit 127")
    assert "Python 3.11 is needed" in _one_sentence(*_check(machine, PYTHON=str(shim)))


@pytest.mark.parametrize(("system", "processor"), [("Darwin", "arm64"), ("Linux", "aarch64"), ("Windows", "AMD64")])
def test_another_platform(system, processor):
    with pytest.raises(setup_env.Refused, match=f"this is {system} on {processor}"):
        setup_env.check_platform(system, processor)


@pytest.mark.parametrize(
    ("text", "major"),
    [('openjdk version "17.0.15" 2025-04-15', 17), ('openjdk version "21" 2023-09-19', 21), ('java version "1.8.0_392"', 8), ("", None)],
)
def test_java_versions_are_read_alike(text, major):
    assert setup_env.java_major(text) == doctor.java_major(text) == major


def test_a_second_call_ends_at_once(monkeypatch, tmp_path):
    monkeypatch.setattr(setup_env, "STAMP", str(tmp_path / "stamp"))
    monkeypatch.setattr(setup_env, "venv_python", lambda: sys.executable)
    assert not setup_env.ready()
    (tmp_path / "stamp").write_text(setup_env.digest() + "\n")
    assert setup_env.ready()
    monkeypatch.setattr(setup_env, "set_up", lambda: pytest.fail("set up again"))
    assert setup_env.main([]) == 0
    (tmp_path / "stamp").write_text("another\n")
    assert not setup_env.ready()


def test_an_environment_that_was_moved_is_made_anew(monkeypatch, tmp_path):
    (tmp_path / "here" / "bin").mkdir(parents=True)
    monkeypatch.setattr(setup_env, "VENV", str(tmp_path / "here"))
    assert not setup_env.belongs_here()
    _script(tmp_path / "here" / "bin", "pip", f"exec {tmp_path}/here/bin/python -m pip")
    assert setup_env.belongs_here()
    (tmp_path / "here").rename(tmp_path / "there")
    monkeypatch.setattr(setup_env, "VENV", str(tmp_path / "there"))
    assert not setup_env.belongs_here()


@pytest.mark.parametrize(
    ("arguments", "address"),
    [
        ("org.apache.spark.deploy.SparkSubmit jobs/x.py", "127.0.0.1"),
        ("SparkSubmit --master local[2] jobs/x.py", "127.0.0.1"),
        ("SparkSubmit --conf spark.master=local[4] x.py", "127.0.0.1"),
        ("SparkSubmit --master yarn x.py", ""),
        ("SparkSubmit --conf spark.master=spark://h:7077 x.py", ""),
    ],
)
def test_spark_listens_on_loopback_in_local_mode_only(arguments, address):
    text = f'set -- {arguments}; . {ROOT}/conf/spark-env.sh; echo "[${{SPARK_LOCAL_IP:-}}]"'
    done = subprocess.run(["bash", "-c", text], env={"PATH": os.environ["PATH"]}, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == f"[{address}]"


@pytest.mark.parametrize(
    ("there", "given", "wanted"),
    [
        (True, "", True),
        (True, "-Dx=1", True),
        (False, "", False),
        (True, "-XX:ArchiveClassesAtExit=/new.jsa", False),  # set-up makes a new one: an old one must not be under it
        (True, "-XX:SharedArchiveFile=/own.jsa", False),
    ],
)
def test_an_archive_of_classes_is_used_where_it_is_there(tmp_path, there, given, wanted):
    archive = tmp_path / "some.jsa"
    if there:
        archive.touch()
    script = tmp_path / "spark-env.sh"
    script.write_text((ROOT / "conf" / "spark-env.sh").read_text().replace("@CLASSES@", str(archive)))
    env = {"PATH": os.environ["PATH"], "SPARK_SUBMIT_OPTS": given}
    text = f'. {script}; echo "$SPARK_SUBMIT_OPTS"'
    said = subprocess.run(["bash", "-c", text], env=env, capture_output=True, text=True, check=True).stdout.strip()
    assert (f"-XX:SharedArchiveFile={archive}" in said) is wanted
    assert given in said


@pytest.mark.parametrize(
    ("arguments", "wanted"),
    [
        ("SparkSubmit --master local[2] jobs/tile_slides.py --lake x", True),
        ("SparkSubmit /opt/medspark/jobs/import_labels.py", True),
        ("SparkSubmit --name 'medspark explode_series' pyspark-shell", True),
        ("SparkSubmit jobs/maintain_lake.py", False),
        ("SparkSubmit --class org.apache.spark.sql.hive.thriftserver.SparkSQLCLIDriver", False),
    ],
)
def test_only_ingest_jobs_do_with_the_first_compiler(arguments, wanted):
    text = f'set -- {arguments}; . {ROOT}/conf/spark-env.sh; echo "${{SPARK_SUBMIT_OPTS:-}}"'
    done = subprocess.run(["bash", "-c", text], env={"PATH": os.environ["PATH"]}, capture_output=True, text=True, check=True)
    assert ("TieredStopAtLevel=1" in done.stdout) is wanted


def test_no_archive_is_no_failure(monkeypatch, tmp_path, capsys):
    """A Java that cannot write one: set-up says so in one line and goes on."""
    (tmp_path / "jars").mkdir()
    for name, value in {"VENV": str(tmp_path), "LOG": str(tmp_path / "log")}.items():
        monkeypatch.setattr(setup_env, name, value)
    monkeypatch.setattr(setup_env, "jars_dir", lambda: str(tmp_path / "jars"))
    monkeypatch.setattr(setup_env, "java", lambda: str(_script(tmp_path, "java", "exit 1")))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    setup_env.archive_classes()  # there is no spark-submit either
    assert "no archive of Java classes" in capsys.readouterr().out
    assert not list((tmp_path / "cache" / "medspark" / "classes").iterdir())


def test_another_java_or_other_jars_have_another_archive(monkeypatch, tmp_path):
    monkeypatch.setattr(setup_env, "jars_dir", lambda: str(tmp_path))
    java = _script(tmp_path.parent, "some-java", "echo one")
    monkeypatch.setattr(setup_env, "java", lambda: str(java))
    (tmp_path / "a.jar").write_bytes(b"1")
    names = {setup_env.class_archive()}
    assert names == {setup_env.class_archive()}
    (tmp_path / "b.jar").write_bytes(b"2")
    names.add(setup_env.class_archive())
    _script(tmp_path.parent, "some-java", "echo two")
    names.add(setup_env.class_archive())
    assert len(names) == 3


def test_a_failing_step_is_one_sentence(monkeypatch, tmp_path):
    monkeypatch.setattr(setup_env, "LOG", str(tmp_path / "log"))
    with pytest.raises(setup_env.Refused, match=r"^fetching failed \(ERROR: no route\); read .venv/setup.log"):
        setup_env.run([sys.executable, "-c", "import sys; print('ERROR: no route'); print('more'); sys.exit(1)"], "fetching")


def test_the_pins_cover_what_setup_py_asks_for():
    from packaging.requirements import Requirement

    text = (ROOT / "setup.py").read_text()
    pins = doctor.pins()
    for quoted in re.findall(r'^\s+"([A-Za-z][^"]*[<>=]=?[^"]*)",', text, re.MULTILINE):
        wanted = Requirement(quoted)
        pinned = pins.get(re.sub(r"[-_.]+", "-", wanted.name).lower())
        if pinned is not None:
            assert wanted.specifier.contains(pinned), f"{quoted} excludes the pinned {pinned}"
    for name in doctor.PINNED:
        assert name in pins
    assert pins["horovod"] == "0.28.1" and int(pins["setuptools"].split(".")[0]) < 70
    assert setup_env.pins().keys() and all(re.fullmatch(r"[\w.+!-]+", version) for version in pins.values())


def test_makefile_has_its_targets():
    text = (ROOT / "Makefile").read_text()
    targets = set(re.findall(r"^([a-z]+):", text, re.MULTILINE))
    assert targets >= {"setup", "demo", "test", "check", "bench", "doctor", "clean", "help"}
    for name in ("demo", "test", "check", "bench"):
        assert re.search(rf"^{name}: setup\b", text, re.MULTILINE), f"{name} does its own set-up"


@pytest.mark.parametrize(
    "name", ["local.toml", "cluster.toml", *(f"datasets/{p.name}" for p in (ROOT / "conf" / "datasets").glob("*.toml"))]
)
def test_settings_files_load(name):
    loaded = config.load(ROOT / "conf" / name)
    if name == "local.toml":
        assert loaded == config.Config(), "local.toml shows the defaults"


def test_doctor_names_one_command_for_each_wrong_thing(monkeypatch, capsys):
    findings = [doctor.Finding("Java 17", False, "no java on the PATH", "apt-get install x"), doctor.Finding("memory", True, "8 GiB")]
    monkeypatch.setattr(doctor, "examine", lambda: findings)
    assert doctor.main([]) == 1
    out = capsys.readouterr().out
    assert "WRONG  Java 17" in out and "mend it with: apt-get install x" in out and "ok     memory" in out
    monkeypatch.setattr(doctor, "examine", lambda: findings[1:])
    assert doctor.main(["--json"]) == 0
    assert json.loads(capsys.readouterr().out)[0]["what"] == "memory"


def test_doctor_works_with_nothing_installed():
    """-I -S: no site packages at all; every package is missing, and each wrong line has its command."""
    code = f"import sys; sys.path.insert(0, {str(ROOT)!r}); from medspark import doctor; sys.exit(doctor.main(['--json']))"
    env = {"PATH": "/nowhere", "HOME": os.environ.get("HOME", "/")}
    done = subprocess.run([sys.executable, "-I", "-S", "-c", code], env=env, capture_output=True, text=True, timeout=60)
    assert done.returncode == 1, done.stderr
    findings = json.loads(done.stdout)
    wrong = {finding["what"]: finding for finding in findings if not finding["ok"]}
    assert set(wrong) >= {"Java 17", "pyspark", "numpy", "horovod", "Delta's jars", "Horovod with TensorFlow", "OpenSlide"}
    assert all(finding["remedy"] for finding in wrong.values())


def test_doctor_sees_another_version_and_a_foreign_spark(monkeypatch):
    assert not doctor.check_pin("numpy", "0.0.1").ok
    assert "0.0.1" in doctor.check_pin("numpy", "0.0.1").remedy
    monkeypatch.setenv("SPARK_HOME", "/opt/spark")
    assert doctor.check_spark_settings().remedy == "unset SPARK_HOME"


def test_doctor_misses_the_archive_of_classes(monkeypatch, tmp_path):
    monkeypatch.setattr(doctor, "_pyspark_home", lambda: tmp_path)
    (tmp_path / "conf").mkdir()
    script = tmp_path / "conf" / "spark-env.sh"
    script.write_text((ROOT / "conf" / "spark-env.sh").read_text().replace("@CLASSES@", str(tmp_path / "none.jsa")))
    assert "none" in doctor.check_classes().found and "--only classes" in doctor.check_classes().remedy
    (tmp_path / "none.jsa").write_bytes(b"no archive")
    assert "another Java" in doctor.check_classes().found
