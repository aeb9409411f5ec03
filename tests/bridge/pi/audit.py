"""``audit.py [--decisions | --evaluations]``."""

from __future__ import annotations

import json
from pathlib import Path

from .status import config_of


def audit_decisions(config: Path) -> list[str]:
    """The log of decisions."""
    path = Path(config_of(config)["shared_path"]) / "logs" / "brain_decisions.log"
    lines = []
    for line in path.read_text().splitlines():
        d = json.loads(line)
        lines.append(f"{d['timestamp'][-8:]} {d['type']:<20} {d['message'][:80]}")
    return lines


def audit_evaluations(config: Path) -> list[str]:
    """What the brain has judged."""
    path = Path(config_of(config)["shared_path"]) / "logs" / "training_samples.jsonl"
    lines = []
    for line in path.read_text().splitlines():
        s = json.loads(line)
        if s["sample_type"] != "worker_evaluation":
            continue
        m = s["metadata"]
        stars = "*" * m["brain_rating"] + "." * (5 - m["brain_rating"])
        mark = {"good": "+", "bad": "-"}[s["outcome"]]
        lines.append(f"{mark} {stars} {m['worker']}: {s['prompt'][:60]} -> {s['response'][:60]}")
        lines.append(f"  {m['brain_feedback'][:100]} {', '.join(m['issues'])}")
    return lines
