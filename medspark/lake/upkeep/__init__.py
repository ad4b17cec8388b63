"""What a lake needs besides ingest. Read `layout`, `vacuum`, `verify` and `mend`, `forget` with `needles`, `migrate`; `medspark.lake.maintain`
puts them in order.

All of it works beside running ingest jobs, or refuses to start beside them and says so; killed at any point, running it again completes it.
It never re-encodes an image, never turns on deletion vectors or column mapping, and removes nothing that a version in use, a pin or an open
batch still needs; `forget` alone overrides pins, because that is what it is for.
"""
