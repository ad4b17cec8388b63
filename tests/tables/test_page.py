"""docs/tables.md says what the catalogue says."""

from __future__ import annotations

from pathlib import Path

from medspark.errors import REJECTION_CODES
from medspark.tables import page
from medspark.tables.catalog import ALL
from medspark.tables.verdicts import SEVERITY

DOCS = Path(__file__).resolve().parents[2] / "docs" / "tables.md"


def test_page_is_fresh() -> None:
    assert DOCS.read_text(encoding="utf-8") == page.page(), f"docs/tables.md is stale; run: {page.COMMAND}"


def test_page_names_everything() -> None:
    text = page.page()
    for table in ALL:
        assert f"\n## {table.name}\n" in text
        for column in table.columns:
            assert f"| `{column.name}` | `{column.dtype}{'?' if column.null else ''}` |" in text
    for code in [*SEVERITY, *REJECTION_CODES]:
        assert f"| `{code}` |" in text


def test_check_tells_a_stale_page(tmp_path: Path, monkeypatch, capsys) -> None:  # type: ignore[no-untyped-def]
    monkeypatch.chdir(tmp_path)
    assert page.main(["--check"]) == 1
    assert "stale" in capsys.readouterr().err
    assert page.main([]) == 0
    assert page.main(["--check"]) == 0
    (tmp_path / page.PAGE).write_text("old")
    assert page.main(["--check"]) == 1
