"""The rules: one row each, and what a configuration changes of them. Pure, standard library only."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from hashlib import blake2b
from typing import Any, Final

MAX_ALERTS: Final = 200  #: files in `alerts/`, those that are over included
KEEP_S: Final = 604_800.0  #: an alert that is over stays so long
KEY_CHARS: Final = 100
_PLAIN: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*\Z")


class Severity(StrEnum):
    """How much it matters; in this order."""

    INFO = "info"
    WARNING = "warning"
    CRITICAL = "critical"

    @property
    def rank(self) -> int:
        """0 for info, 2 for critical."""
        return list(Severity).index(self)


@dataclass(frozen=True, slots=True)
class Rule:
    """One thing that is looked for. A condition that lasts ``raise_after_s`` raises an alert, one that has been over for
    ``clear_after_s`` clears it.

    ``happening``: it is no state but something that has happened. It lasts until somebody has seen it (`ack`) or it has
    been made good, not until nobody speaks of it any more.
    """

    name: str
    severity: Severity
    what: str
    fix: str
    raise_after_s: float = 0.0
    clear_after_s: float = 30.0
    happening: bool = False


_I, _W, _C = Severity.INFO, Severity.WARNING, Severity.CRITICAL
_ALL: Final = (
    Rule("no-worker", _C, "tasks wait and no worker is in order", "rigbus why", 60.0),
    Rule("unrunnable", _W, "tasks wait that no present worker can run", "rigbus why", 120.0),
    Rule(
        "worker-lost",
        _W,
        "a worker went without a word and did not come back",
        "rigbus status",
        15.0,
        0.0,
        True,
    ),
    Rule("worker-quarantined", _W, "a worker gets no work after crashes", "rigbus resume WORKER"),
    Rule("worker-hung", _W, "a process that nothing can kill keeps slots of a worker", "rigbus status", 30.0),
    Rule("batch-failed", _C, "a batch has failed", "rigbus batch show BATCH", 0.0, 0.0, True),
    Rule(
        "task-dead", _W, "a task has failed for good, its batch goes on", "rigbus dead list", 0.0, 0.0, True
    ),
    Rule("thermal-hold", _W, "a worker takes no work: a card of it is hot", "rigbus gpu", 5.0, 60.0),
    Rule("card-hot", _W, "a card is hotter than hot_c", "rigbus gpu", 30.0, 60.0),
    Rule(
        "disk-low",
        _W,
        "little room for the rig's state: no new tasks are taken",
        "free some space",
        10.0,
        60.0,
    ),
    Rule("disk-full", _C, "no room for the rig's state: nothing is started", "free some space", 5.0, 60.0),
    Rule("share-away", _C, "the shared folder is unavailable", "rigbus doctor", 30.0, 10.0),
    Rule("broker-away", _C, "the broker does not answer", "rigbus doctor", 30.0, 5.0),
    Rule("brain-away", _W, "no brain is there: plans wait", "rigbus status", 60.0),
    Rule("rig-lost", _C, "the database lost something, or was made anew", "docs/rebuild.md", 0.0, 0.0, True),
    Rule("backlog-stuck", _W, "tasks wait, and for long none has begun or ended", "rigbus why", 0.0),
    Rule("model-failing", _W, "a model cannot be loaded", "rigbus why WORKER", 60.0),
    Rule("escalation-human", _W, "an escalation waits for a person", "rigbus escalations list", 0.0, 0.0),
    # Judged where the rig's files are read (`rigbus notify`), not by the rig itself.
    Rule(
        "rig-silent", _C, "the rig's files are not renewed any more: it is dead", "look at the rig", 0.0, 0.0
    ),
    Rule(
        "mount-away", _C, "the shared folder is not there, or does not answer", "look at the mount", 0.0, 0.0
    ),
    Rule("clocks-apart", _I, "the clocks of rig and reader disagree", "run NTP on both", 0.0, 300.0),
    Rule("test", _I, "somebody tries the way of an alert", "nothing to do", 0.0, 0.0, True),
)
RULES: Final[Mapping[str, Rule]] = {rule.name: rule for rule in _ALL}
READERS: Final = frozenset(
    {"rig-silent", "mount-away", "clocks-apart"}
)  #: rules of those who read the folder


@dataclass(frozen=True, slots=True)
class Policy:
    """What a configuration says of alerts (table ``[alerts]``)."""

    enabled: bool = True
    off: frozenset[str] = frozenset()
    severity: Mapping[str, Severity] = field(default_factory=dict)
    raise_after_s: Mapping[str, float] = field(default_factory=dict)
    clear_after_s: Mapping[str, float] = field(default_factory=dict)
    hot_c: float = 85.0
    cool_c: float = 80.0
    backlog_s: float = 3600.0
    pending_s: float = 3600.0
    keep_s: float = KEEP_S
    most: int = MAX_ALERTS

    @classmethod
    def of(cls, table: Mapping[str, Any]) -> Policy:
        """From ``[alerts]`` as plain data, checked before (`bus.config.alerts`)."""
        given = dict(table)
        given["off"] = frozenset(given.get("off") or ())
        given["severity"] = {k: Severity(v) for k, v in (given.get("severity") or {}).items()}
        return cls(**given)

    def rule(self, name: str) -> Rule | None:
        """The rule as configured; None where it is turned off."""
        rule = RULES[name]
        if not self.enabled or name in self.off:
            return None
        return Rule(
            name,
            self.severity.get(name, rule.severity),
            rule.what,
            rule.fix,
            self.raise_after_s.get(name, rule.raise_after_s),
            self.clear_after_s.get(name, rule.clear_after_s),
            rule.happening,
        )


def key_of(rule: str, subject: str = "") -> str:
    """What an alert is known by, and its file's name: the rule, and what it is about. A subject that is no plain file
    name, or a long one, becomes a hash."""
    if not subject:
        return rule
    plain = _PLAIN.match(subject) and len(rule) + 1 + len(subject) <= KEY_CHARS
    return f"{rule}.{subject if plain else blake2b(subject.encode('utf-8', 'replace'), digest_size=6).hexdigest()}"


def is_key(text: str) -> bool:
    """Whether it may be the key of an alert (so it is a plain file name too)."""
    return len(text) <= KEY_CHARS and _PLAIN.match(text) is not None
