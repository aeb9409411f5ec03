"""What the broker must hear of those that are dead: the GONEs of one supervisor. Pure."""

from __future__ import annotations

from typing import Any


class Obituaries:
    """The GONEs that the broker must hear: once each, by session where that is known.

    A name may be taken by a new process at any moment, so a GONE by name alone is dropped when that happens; one by
    session hits nobody else and is told again to a broker that was restarted before it answered.
    """

    def __init__(self) -> None:
        self._n = 0
        self._sessions: dict[str, str] = {}
        self._waiting: dict[bytes, tuple[str, dict[str, Any]]] = {}
        self._asked: dict[bytes, tuple[str, dict[str, Any]]] = {}

    def session_of(self, name: str, session: str) -> None:
        """The session of the process that is to be reported."""
        self._sessions[name] = session

    def add(self, name: str, why: str, stuck: bool, *, pid: int = 0, undying: bool = False) -> None:
        """Report it. ``pid``: where its session is not known, this tells it from others of its name; 0: not known."""
        header: dict[str, Any] = {"why": f"{name} {why}"[:300]}
        session = self._sessions.pop(name, None)
        header |= {"session": session} if session else {"name": name, "pid": pid}
        if stuck:
            header["stuck"] = True
        if undying:
            header["undying"] = True
        self._n += 1
        self._waiting[f"gone{self._n}".encode()] = (name, header)

    def nothing_left(self) -> None:
        """Of earlier runs of this rig no process lives on this machine."""
        self._n += 1
        header = {"swept": True, "why": "no process of an earlier run is left"}
        self._waiting[f"gone{self._n}".encode()] = ("", header)

    def taken_over(self, name: str) -> None:
        """A new process has the name."""
        for corr, (other, header) in list(self._waiting.items()):
            if other == name and "session" not in header:
                del self._waiting[corr]

    def untold(self) -> list[tuple[bytes, dict[str, Any]]]:
        """What is to be sent: correlation id and header."""
        return [(corr, header) for corr, (_, header) in self._waiting.items()]

    def told(self, corr: bytes) -> None:
        """It was sent."""
        self._asked[corr] = self._waiting.pop(corr)

    def new_broker(self) -> None:
        """A WELCOME: what the broker before it did not answer is told again, where it cannot hit a newcomer."""
        for corr, (name, header) in list(self._asked.items()):
            del self._asked[corr]
            if "session" in header:
                self._waiting[corr] = (name, header)

    def answered(self, corr: bytes) -> str | None:
        """The name that an answer is about; None when it is no answer to a GONE."""
        return self._asked.pop(corr, ("", {}))[0] or None
