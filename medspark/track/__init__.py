"""What experiments leave behind: runs, models, pictures, comparison pages, in MLflow. The only package that knows MLflow.

Read `tracker` (what a job says while it works), then `runs` (MLflow), `model` (a network with everything that it needs), `page` (comparison).
"""
