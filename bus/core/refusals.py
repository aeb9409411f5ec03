"""Who was turned away of late, and why: peers of another version, floods. For `status` and `why`. Pure."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from typing import Any, Final

#: A peer of another version asks again every 30 s (:data:`.client.link.REFUSED_S`); one that does not is forgotten after this.
KEEP_S: Final = 120.0
MAX_KEPT: Final = 64


@dataclass(slots=True)
class Refusal:
    """One peer. ``why`` says what it did, ``fix`` what a person can do; ``times`` it was turned away since ``since_at``."""

    kind: str  #: version | flood | connections
    who: str
    why: str
    fix: str
    since_at: float
    last_at: float
    times: int
    until: float  #: monotonic


class Refusals:
    """At most :data:`MAX_KEPT`, the latest ones."""

    def __init__(self) -> None:
        self._kept: OrderedDict[tuple[str, str], Refusal] = OrderedDict()
        self._news: list[Refusal] = []

    def note(self, kind: str, who: str, why: str, fix: str, now: float, wall: float) -> None:
        """Remember it."""
        self._drop(now)
        known = self._kept.pop((kind, who), None)
        fresh = Refusal(kind, who, why, fix, wall, wall, 0, 0.0) if known is None else known
        fresh.why, fresh.fix, fresh.last_at, fresh.until = why, fix, wall, now + KEEP_S
        fresh.times += 1
        self._kept[kind, who] = fresh
        while len(self._kept) > MAX_KEPT:
            self._kept.popitem(last=False)
        if known is None and len(self._news) < MAX_KEPT:
            self._news.append(fresh)

    def take_news(self) -> list[Refusal]:
        """Those that nobody has been told of; for the log."""
        news, self._news = self._news, []
        return news

    def forget(self, who: str) -> None:
        """It was let in after all (it was updated)."""
        self._kept.pop(("version", who), None)

    def present(self, now: float) -> list[Refusal]:
        """Those of late, the oldest first."""
        self._drop(now)
        return list(self._kept.values())

    def rows(self, now: float) -> list[dict[str, Any]]:
        """For QUERY ``status``."""
        return [
            {
                "kind": r.kind,
                "who": r.who,
                "why": r.why,
                "fix": r.fix,
                "since_at": r.since_at,
                "last_at": r.last_at,
                "times": r.times,
            }
            for r in self.present(now)
        ]

    def _drop(self, now: float) -> None:
        for key in [key for key, r in self._kept.items() if r.until <= now]:
            del self._kept[key]


def who_says(header: dict[str, Any], fallback: str) -> str:
    """``worker gpu1 (pid 12 on rig2)``, of a HELLO that may hold anything."""
    role, name, pid, host = (header.get(k) for k in ("role", "name", "pid", "host"))
    text = " ".join(_shown(word) for word in (role or "a peer", name) if word)
    where = [f"pid {pid}"] if isinstance(pid, int) and not isinstance(pid, bool) else []
    where += [f"on {_shown(host)}"] if isinstance(host, str) and host else []
    if not role and not where:
        return fallback
    return text + (f" ({' '.join(where)})" if where else "")


def _shown(word: Any) -> str:
    """A word of a peer as it may stand in a log or on a terminal: no second line, nothing that the terminal obeys."""
    return word[:64] if isinstance(word, str) and word.isprintable() else f"{word!r:.64}"
