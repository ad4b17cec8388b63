"""The narrow waist: tables, rows, verdicts and units of work, as data. Everything that crosses between parts of medspark is defined here.

Read ``catalog.py`` (all tables), then ``rows.py`` and ``work.py`` (what the engine and the kinds hand each other), ``verdicts.py``.
Knows neither Spark nor any file format; ``page.py`` renders docs/tables.md.
"""
