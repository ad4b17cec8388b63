"""How good a prediction is: pure measures over arrays, with intervals over subjects. No TensorFlow, no Spark, no files.

Each measure names its source and says what it does with empty masks. Read `counts` (overlap and everything else that four numbers give),
`surface` (millimetres), `lesions` (objects), `ranking`, `calibration` and `confusion` (classes), `threshold` (how a probability becomes a yes),
`intervals` (subjects, not images), then `stream` and `classes` (a whole test part in bounded memory), `pictures`.
"""
