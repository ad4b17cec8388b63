"""``make demo``: medspark from files to answers and pictures in about two minutes, on any machine.

Read in this order: `flow` (the eight steps), `samples` (what goes in; `phantom_slide`, `phantom_ct` and `phantom_xray` write what is not at
hand, `derived` masks by thresholds), `questions` (six SQL queries over the tables), `pictures` with `kind_pictures`, `slide_pictures`,
`series_pictures` and what they share, `drawing` (drawn from the tables alone).
The demo calls the jobs' own engine in this process. It refuses to do anything that a user of the jobs could not do, and to download.
"""

from __future__ import annotations

from medspark.demo.flow import run

__all__ = ["run"]
