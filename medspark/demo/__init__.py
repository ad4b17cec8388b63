"""``make demo``: medspark from files to answers and pictures in about two minutes, on any machine.

Read in this order: `flow` (the seven steps), `samples` (what goes in; `phantom_slide` and `phantom_ct` write what is not at hand),
`questions` (five SQL queries over the tables), `pictures` with `slide_pictures` and `series_pictures` (drawn from the tables alone).
The demo calls the jobs' own engine in this process. It refuses to do anything that a user of the jobs could not do, and to download.
"""

from __future__ import annotations

from medspark.demo.flow import run

__all__ = ["run"]
