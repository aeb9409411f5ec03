"""A Pi that only reads and writes files: the earlier system's scripts, naive exactly where they were naive.

They glob, open and slice; nothing here checks for None, a missing key, an aware time or a file that has gone, because they did
not. Whatever makes one of them raise is a defect of what the rig has drawn. Tests of ``tests/bridge`` write ``from pi import
…``; others put that folder on ``sys.path`` first, as its conftest does.

``config.json`` is how each of them finds the share: give it the path of the one that the mirror draws.
"""

from .audit import audit_decisions, audit_evaluations
from .dashboard import Dashboard
from .review import Review, export
from .status import status, status_task, status_tasks
from .submit import submit
from .watch import BrainTail, CompleteTail, watch_once

__all__ = [
    "BrainTail",
    "CompleteTail",
    "Dashboard",
    "Review",
    "audit_decisions",
    "audit_evaluations",
    "export",
    "status",
    "status_task",
    "status_tasks",
    "submit",
    "watch_once",
]
