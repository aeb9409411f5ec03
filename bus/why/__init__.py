"""Why something does not move, and when it will: answers about tasks, batches, workers and the rig. Pure.

``explaining`` and ``surveying`` are layers of the broker's core, ``reasons`` and ``model_reasons`` their sentences;
``durations``, ``lineup`` and ``estimating`` say when a task will start and end.
"""
