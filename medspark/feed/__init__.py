"""Feeds: from a SQL cohort to batches. A feed is a frozen Delta table of ready samples, with a card that says what it is.

Read in this order: `rows` (what one row holds), `card` (what a feed says of itself), `build` (how it is made: `request`, `cohort`, `leaks`, `resolve`, `sample`,
`truth`, `choose`, `order`, `write`, `table`), `describe`; then `open`, `reader` (what a batch is), `plan` (who reads what when; pure arithmetic), `stream` (the
reader: loads and decodes ahead), `disk` (over `pages`), `arrow` and `petastorm` (three sources, tested equal), `decode`, `cache` and `shelf` (copies on the local disk), `augment`, `tfdata`.

What it refuses: subjects in two parts, feeds that were changed after they were built, and any step that would differ between two ranks.
"""
