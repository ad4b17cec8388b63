"""Networks on Spark clusters: Horovod ranks started by Spark, one loop for one rank or many. The only package (with synth and robust) that knows TensorFlow.

Read `world` (who else trains), `unet`, `resnet`, `losses`, then `loop` (one run), `checkpoint`, `launch` (ranks on Spark), `predictor` (what a finished
network needs to be used elsewhere).
"""
