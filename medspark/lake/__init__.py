"""The lake: the only part that knows Spark and Delta. It runs the four steps for every kind of data and never looks into one.

Read ``ingest.py`` top to bottom (scan -> plan -> explode -> commit), then ``batch.py`` (what survives a kill), ``store.py`` (transactions) with
``files.py`` and ``create.py``, ``tasks.py`` and ``explode.py`` (what runs in Spark's tasks), ``stage.py`` and ``derive.py`` (rows on their way
into tables), ``meetings.py`` and ``link.py`` (labels), ``status.py``. What users ask: ``views.py`` (as data), ``sql.py``, ``register.py`` and
``thrift.py`` (with Spark), ``open.py`` with ``duck.py`` and ``volume.py`` (without).

It refuses to move pixels through the JVM, to collect data on the driver beyond a batch's narrow columns, and to repair what a kind reports.
"""
