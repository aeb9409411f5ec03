"""What a task is, in 14 hex digits: two specs with the same definition are the same work (docs/adr/0030). Pure.

A new revision of a plan has another copy on the disk and another view, and other lines in its plan.md; what of its tasks
is the same work as before must not depend on any of these. Where a task stands in the plan (its edges, its priority, what
people read of it) is no part of it either.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any, Final

from .messages import Run

_WORK: Final = (
    "type",
    "class",
    "view",
    "pool",
    "needs",
    "vram_mb",
    "timeout_s",
    "queue_timeout_s",
    "no_progress_s",
    "policy",
    "review",
)


def definition(spec: Mapping[str, Any], payload: Mapping[str, Any], run: Run) -> str:
    """Of a spec with its payload.

    What may see the plan's files may use any of them, so it is another work when one of them has changed; a list only
    where it is one of them.
    """
    work = {name: spec[name] for name in _WORK if name in spec}
    said = {name: value for name, value in payload.items() if name != "plan"}
    model = (spec.get("meta") or {}).get("model")
    text = json.dumps([work, said, model], sort_keys=True, default=repr)
    view = json.dumps(run.view)[1:-1]
    if spec.get("view") and (spec["type"] != "expand" or view in text):
        text += run.files
    placed = text.replace(view, "{PLAN_PATH}") if view else text
    return hashlib.blake2b(placed.encode(), digest_size=7).hexdigest()
