"""Alerts as rows, from the files of a share or from the rig's own journal. Standard library only."""

from __future__ import annotations

import json
import os
import stat
from collections import Counter
from pathlib import Path
from typing import Any, Final

from ..bus.alerting.core import Alert, State
from ..bus.alerting.rules import RULES, Severity, is_key
from .file_rows import unix

FOLDER: Final = "alerts"
MAX_FILES: Final = 1000
MAX_BYTES: Final = 256 << 10
_TIMES: Final = ("first_at", "raised_at", "acked_at", "cleared_at")


def of_share(root: Path) -> list[Alert]:
    """The alerts in ``<root>/alerts``; what is no alert is left out.

    Raises:
        OSError: the folder is there and cannot be read.
    """
    out = []
    try:
        names = sorted(name for name in os.listdir(root / FOLDER) if name.endswith(".json"))[:MAX_FILES]
    except FileNotFoundError:
        return []
    for name in names:
        alert = _of_file(root / FOLDER / name)
        if alert is not None:
            out.append(alert)
    return out


def _of_file(file: Path) -> Alert | None:
    try:
        fd = os.open(file, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        return None
    with os.fdopen(fd, "rb") as opened:
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            return None
        try:
            fields = json.loads(opened.read(MAX_BYTES + 1))
        except (OSError, ValueError, RecursionError):
            return None
    return alert_of(fields) if isinstance(fields, dict) and fields.get("key") == file.stem else None


def alert_of(fields: dict[str, Any]) -> Alert | None:
    """The alert of a ``rigbus.alert/1``; None where it is none. A rule that this version does not know is one, too."""
    try:
        times: dict[str, Any] = {t: unix(fields[t]) or 0.0 for t in _TIMES if t in fields}
        known = fields["rule"] if fields.get("rule") in RULES else "test"
        alert = Alert.of({**fields, **times, "rule": known, "changed_at": max(times.values(), default=0.0)})
        rule = fields["rule"]
    except (ValueError, TypeError, KeyError, AttributeError):
        return None
    return alert if known == rule else _renamed(alert, rule)


def _renamed(alert: Alert, rule: Any) -> Alert | None:
    from dataclasses import replace

    return replace(alert, rule=rule) if isinstance(rule, str) and is_key(rule) else None


def of_journal(state: Path) -> list[Alert] | None:
    """Those of the rig on this state folder; None where no bridge has kept any."""
    try:
        kept = json.loads((state / "alerts.json").read_bytes())
        rows = kept["alerts"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    out = []
    for row in rows if isinstance(rows, list) else ():
        try:
            out.append(Alert.of(row))
        except (ValueError, TypeError, KeyError, AttributeError):
            continue
    return out


def counts(alerts: list[Alert]) -> dict[str, int]:
    """As the bridge's heartbeat has them."""
    raised = Counter(a.severity for a in alerts if a.state is State.RAISED)
    acked = sum(a.state is State.ACKED for a in alerts)
    return {"raised": raised.total(), "acked": acked} | {s.value: raised[s] for s in Severity}


def ordered(alerts: list[Alert]) -> list[Alert]:
    """Live ones first, the gravest of them first; then by time, the newest first."""
    return sorted(alerts, key=lambda a: (not a.live, -a.severity.rank if a.live else 0, -a.changed_at, a.key))
