"""docs/jobs.md lists every option of every job with its default. ``python -m tests.test_jobs_help`` writes its option tables anew."""

from __future__ import annotations

import argparse
import importlib
import json
import re
import sys
from itertools import pairwise
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "jobs.md"
JOBS = sorted(path.stem for path in (ROOT / "jobs").glob("*.py") if not path.name.startswith("_"))
SHARED = "shared"  # name of the table of what all ingest jobs take
BLOCK = re.compile(r"(<!-- options: (\w+) -->\n)(.*?)(<!-- end -->)", re.DOTALL)


def load(name: str):  # type: ignore[no-untyped-def]
    """A module of ``jobs``, as spark-submit starts it: with its folder on the path."""
    sys.path.insert(0, str(ROOT / "jobs"))
    try:
        return importlib.import_module(name)
    finally:
        sys.path.remove(str(ROOT / "jobs"))


def options(parser: argparse.ArgumentParser) -> dict[str, argparse.Action]:
    return {action.option_strings[-1]: action for action in parser._actions if action.option_strings and action.dest != "help"}


def row(action: argparse.Action) -> str:
    value = "" if action.nargs == 0 else " " + str(action.metavar or "\\|".join(map(str, action.choices or ("VALUE",))))
    if action.nargs == "+":
        value += "..."
    if action.required:
        default = "required"
    elif action.default in (None, "", False, []):
        default = ""
    else:
        default = f"`{action.default}`".replace("|", "\\|")
    return f"| `{action.option_strings[-1]}{value}` | {default} | {action.help} |"


def tables() -> dict[str, str]:
    """Name of a table -> its Markdown."""
    own = {job: options(load(job).options()) for job in JOBS}
    shared = options(load("_entry").ingest_parser("job", ""))
    head = "| option | default | |\n|---|---|---|\n"
    found = {SHARED: head + "\n".join(map(row, shared.values())) + "\n"}
    for job, listed in own.items():
        found[job] = head + "\n".join(row(action) for name, action in listed.items() if name not in shared) + "\n"
    return found


def test_options_on_the_page_are_those_of_the_jobs() -> None:
    on_page = {name: text for _, name, text, _ in BLOCK.findall(PAGE.read_text(encoding="utf-8"))}
    assert on_page == tables(), "docs/jobs.md is stale; run: python -m tests.test_jobs_help"


@pytest.mark.parametrize("job", JOBS)
def test_every_option_is_explained(job: str) -> None:
    parser = load(job).options()
    assert parser.prog == f"{job}.py"
    assert all(action.help for action in parser._actions)
    assert "pyspark" not in (load(job).__dict__), "a job's options need no Spark"


@pytest.mark.parametrize("job", JOBS)
def test_a_wrong_option_is_one_sentence_and_status_2(job: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        load(job).options().parse_args(["--lake", "x", "--input", "y", "--no-such-option"])
    assert ended.value.code == 2
    said = capsys.readouterr()
    assert said.out == "" and said.err.startswith(f"{job}.py: ") and said.err.count("\n") == 1


def commands(text: str) -> list[list[str]]:
    """The words of every ``spark-submit jobs/...`` line of a page, without line continuations."""
    lines = text.replace("\\\n", " ").splitlines()
    return [line.split("spark-submit", 1)[1].split() for line in lines if "spark-submit jobs/" in line and "<" not in line]


@pytest.mark.parametrize("page", ["README.md", *sorted(str(path.relative_to(ROOT)) for path in (ROOT / "docs").glob("*.md"))])
def test_command_lines_in_documents_use_real_options(page: str) -> None:
    for words in commands((ROOT / page).read_text(encoding="utf-8")):
        job = Path(words[0]).stem
        assert job in JOBS, f"{page}: {words[0]}"
        known = options(load(job).options())
        used = {word.split("=", 1)[0].strip("`") for word in words if word.startswith("--")}
        assert used <= set(known), f"{page}: {sorted(used - set(known))}"
        settings = [word.strip("`'\"") for before, word in pairwise(words) if before == "--set"]
        if settings:
            from medspark.config import load as load_settings

            load_settings(None, settings)


def test_the_summary_example_names_all_fields() -> None:
    from medspark.lake.ingest import Summary

    text = PAGE.read_text(encoding="utf-8")
    example = json.loads(re.search(r"```json\n(.*?)```", text, re.DOTALL).group(1))  # type: ignore[union-attr]
    said = Summary("tile_slides", "run", "lake").json()
    assert set(said) <= set(example)
    assert set(said["stages"]) == set(example["stages"])


def write() -> None:
    fresh = tables()
    text = PAGE.read_text(encoding="utf-8")
    PAGE.write_text(BLOCK.sub(lambda found: found[1] + fresh[found[2]] + found[4], text), encoding="utf-8")


if __name__ == "__main__":
    write()
