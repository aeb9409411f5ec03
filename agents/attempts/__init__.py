"""How attempts run: a command, a thread, a Python child of its own; what they print and what they leave.

``shell`` and ``expand`` are the task types of every worker, ``threads`` runs handlers, ``children`` watches processes
for the loop; ``spawned`` and ``isolated`` are the two ends of a pipe (``pipe``) to a Python child, ``view_child`` is
what such a child does on the share.
"""
