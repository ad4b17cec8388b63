"""Ratios against peers, side by side in one run on the same cores: ``python -m benchmarks`` runs all, ``python -m benchmarks.tiles`` one.

Why: absolute rates of a machine drift from run to run, ratios taken in one run count. Every bench prints a Markdown table of ratios with the
target beside each (and ``--json FILE``); ``--size small`` shows within minutes that a bench works, ``full`` is what the targets are about;
``--profile`` says where our time goes, without Spark.

Read `peer` first (sessions, tables, phantoms), then any bench:

- `tiles`       aligned tiles against the same Spark job through OpenSlide, and against ``vips dzsave``
- `reencoded`   tiles of a grid that is not the file's
- `ct`          CT slices against a pydicom script in a process pool; bytes stored
- `fixed_cost`  a job with next to nothing to do
- `scaling`     one core, two cores
- `memory`      a 60,000 x 60,000 px slide within 4 GiB
- `layout`      clustering of 3 million narrow rows against Delta's OPTIMIZE
- `stream`      batches of a feed against bare decoding, tf.data, stock Petastorm, TFRecords; a slow store

They refuse to tune anything: no option here makes medspark faster than a user's own call of it.
"""
