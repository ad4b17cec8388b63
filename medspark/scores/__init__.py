"""How good a prediction is: pure measures over arrays, with intervals over subjects. No TensorFlow, no Spark, no files.

Each measure names its source and says what it does with empty masks.
"""
