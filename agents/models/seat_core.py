"""Which model a worker holds, and the way from one to the next. Pure: events in, actions out.

    cold ──placed──► asking ──token──► loading ──ready──► hot
      ▲                                   │ failed           │ placed elsewhere
      └────────── unloading ◄─────────────┴── emptying ◄─────┘ (nobody uses it any more)

Laws
- What the broker last placed here counts, by its generation; an older one changes nothing.
- A model is offered only while it is hot. Before it goes, the offer goes, and then everything that uses it ends:
  nothing is unloaded under a live lease. One that does not answer (it crashed, or hangs in its next load) is used by nobody:
  it goes at once, and the leases that wait for it fail as ``infra``.
- One load at a time in a group of cards: the group's token is held from before the load until it has ended.
- A model that cannot be loaded as it is stays ``failed`` until it is placed anew.
- What a model was measured to take of its cards must be back before the next thing is done: for ``BACK_S`` it is waited
  for. What then is still missing is said, and said again by a load that begins over it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, Literal

Phase = Literal["cold", "asking", "loading", "hot", "emptying", "unloading", "failed"]
RETRY_S: Final = 0.5  #: between two questions for a token that somebody else holds
ANSWER_S: Final = 3.0  #: after it, a question for the token is lost
#: How long memory of a card is waited for. A driver frees it before the process is gone for good, so what is seen to be
#: used later than this is somebody else's, or will not come back by itself.
BACK_S: Final = 5.0


@dataclass(frozen=True, slots=True)
class Wanted:
    """What is placed here. ``model`` None: nothing. ``spec``: what a back end needs to open it."""

    generation: int
    model: str | None = None
    spec: Mapping[str, Any] | None = None

    @classmethod
    def of(cls, header: Mapping[str, Any]) -> Wanted | None:
        """What CONTROL ``place`` says; None where it says nothing that can be."""
        generation, model, spec = header.get("generation"), header.get("model"), header.get("spec")
        if not isinstance(generation, int) or isinstance(generation, bool) or generation < 1:
            return None
        if model is None:
            return cls(generation)
        return cls(generation, model, spec) if isinstance(model, str) and isinstance(spec, dict) else None


# -- events


@dataclass(frozen=True, slots=True)
class Placed:
    wanted: Wanted


@dataclass(frozen=True, slots=True)
class Token:
    """The answer about the group's token."""

    held: bool
    by: str = ""


@dataclass(frozen=True, slots=True)
class Loads:
    """How far the model is; ``failed`` says why it never will be ready."""

    share: float = 0.0
    ready: bool = False
    failed: str = ""
    message: str = ""


@dataclass(frozen=True, slots=True)
class Unused:
    """No lease of this worker is live."""


@dataclass(frozen=True, slots=True)
class Closed:
    """The model's process is gone. ``took_mb``: what it was measured to take of its cards; 0: nobody knows, nobody waits."""

    took_mb: int = 0


@dataclass(frozen=True, slots=True)
class Memory:
    """The cards after that: MB that are free again, and in words what is not, "" where nothing is known to be missing.

    ``judged``: every card could be.
    """

    back_mb: int = 0
    missing: str = ""
    judged: bool = True


# -- actions


@dataclass(frozen=True, slots=True)
class TakeToken:
    pass


@dataclass(frozen=True, slots=True)
class DropToken:
    pass


@dataclass(frozen=True, slots=True)
class Open:
    wanted: Wanted


@dataclass(frozen=True, slots=True)
class Close:
    pass


@dataclass(frozen=True, slots=True)
class Offer:
    """Offer the model's tasks; None: nothing."""

    wanted: Wanted | None


@dataclass(frozen=True, slots=True)
class Warn:
    """Memory of a card is not back, and nobody waits for it any more."""

    text: str


Event = Placed | Token | Loads | Unused | Closed | Memory
Action = TakeToken | DropToken | Open | Close | Offer | Warn


class SeatCore:
    """See the module's laws. ``now`` in monotonic seconds."""

    def __init__(self) -> None:
        self.phase: Phase = "cold"
        self.wanted = Wanted(0)
        self.held: Wanted | None = None  #: opened, and not closed yet
        self.share = 0.0
        self.message = ""
        self.answers = False  #: what is held here is ready
        self.ask_at: float | None = None  #: when to ask for the token (again)
        self.back_by: float | None = None  #: until when memory is waited for; None: it is not
        self.missing = ""  #: which memory is not back
        self._freed_mb = 0
        self._since: float | None = None

    def report(self, now: float) -> dict[str, Any]:
        """For the heartbeat: ``{generation, phase, model, share, since_s, message?, freed_mb?}``; ``model`` is the one that is
        here, or on its way here; ``freed_mb`` what was measured to be back when the last one went."""
        self._since = now if self._since is None else self._since
        model = self.held.model if self.held is not None else self.wanted.model
        said: dict[str, Any] = {
            "generation": self.wanted.generation,
            "phase": self.phase,
            "model": model if self.phase != "cold" else None,
            "share": round(self.share, 3),
            "since_s": round(now - self._since, 1),
        }
        if message := "; ".join(text for text in (self.message, self.missing) if text):
            said["message"] = message[:500]
        if self._freed_mb:
            said["freed_mb"] = self._freed_mb
        return said

    def step(self, event: Event, now: float) -> list[Action]:
        """What to do about ``event``."""
        match event:
            case Placed(wanted):
                return self._placed(wanted, now) if wanted.generation > self.wanted.generation else []
            case Token(held, by):
                return self._token(held, by, now)
            case Loads():
                return self._loads(event, now)
            case Unused():
                return self._close(now) if self.phase == "emptying" else []
            case Closed(took_mb):
                return self._closed(took_mb, now)
            case Memory():
                return self._memory(event, now)

    @property
    def looks_back(self) -> bool:
        """Is it of interest whether the last model's memory is back?"""
        return self.back_by is not None or (bool(self.missing) and self.held is None)

    def due(self, now: float) -> list[Action]:
        """What time asks for."""
        if self.phase == "asking" and self.ask_at is not None and now >= self.ask_at:
            self.ask_at = now + ANSWER_S
            return [TakeToken()]
        if self.back_by is not None and now >= self.back_by:
            said = [Warn(f"{self.missing} (waited {BACK_S:g} s)")] if self.missing else []
            return [*said, *self._gone(now)]
        return []

    def _set(self, phase: Phase, now: float, message: str = "") -> None:
        if phase != self.phase:
            self._since = now
        self.phase, self.message = phase, message

    def _placed(self, wanted: Wanted, now: float) -> list[Action]:
        self.wanted = wanted
        same = self.held is not None and (wanted.model, wanted.spec) == (self.held.model, self.held.spec)
        if self.phase in ("cold", "failed") and self.held is None:
            return self._begin(now)
        if self.phase == "asking":
            if wanted.model is None:
                self._set("cold", now)
                return [DropToken()]
            return []
        if same and self.phase in ("loading", "hot", "emptying"):
            self.held = wanted
            if self.phase != "emptying":
                return []
            self._set("hot", now)
            return [Offer(wanted)]
        if self.phase == "hot":
            self._set("emptying", now)
            return [Offer(None), *([] if self.answers else self._close(now))]
        return self._close(now) if self.phase == "loading" else []

    def _begin(self, now: float) -> list[Action]:
        """With nothing here: what is wanted next."""
        self.share = 0.0
        if self.wanted.model is None:
            self._set("cold", now)
            return [DropToken()]
        self._set("asking", now)
        self.ask_at = now
        return []

    def _token(self, held: bool, by: str, now: float) -> list[Action]:
        if self.phase != "asking":
            # too late: nobody waits for it here
            return [DropToken()] if held and self.held is None else []
        if not held:
            self.ask_at = now + RETRY_S
            self.message = f"{by or 'another worker'} loads a model over the same link"
            return []
        self.ask_at = None
        self.held = self.wanted
        self._set("loading", now)
        self._freed_mb = 0
        over = [Warn(f"{self.wanted.model} is loaded all the same: {self.missing}")] if self.missing else []
        return [*over, Open(self.wanted)]

    def _loads(self, event: Loads, now: float) -> list[Action]:
        if self.phase not in ("loading", "hot", "emptying"):
            return []
        self.answers = event.ready
        if self.phase == "emptying":
            return [] if event.ready else self._close(now)
        self.share = event.share
        if event.failed:
            was_hot = self.phase == "hot"
            self._set("failed", now, event.failed)
            return [*([Offer(None)] if was_hot else []), Close()]
        self.message = event.message
        if event.ready and self.phase == "loading":
            self._set("hot", now)
            self.share, self.missing = 1.0, ""
            return [DropToken(), Offer(self.held)]
        return []

    def _close(self, now: float) -> list[Action]:
        self._set("unloading", now)
        return [Close()]

    def _closed(self, took_mb: int, now: float) -> list[Action]:
        if not took_mb:
            return self._gone(now)
        self.back_by, self.missing = now + BACK_S, ""
        return []

    def _memory(self, event: Memory, now: float) -> list[Action]:
        if not self.looks_back or (self.missing and not event.judged):
            return []  # what was known last counts until it is known better, or time is up
        self._freed_mb, self.missing = event.back_mb, event.missing
        return self._gone(now) if self.back_by is not None and not event.missing else []

    def _gone(self, now: float) -> list[Action]:
        """The model is, and nobody waits for its memory any more."""
        self.back_by = None
        failed = self.phase == "failed"
        said, at = self.message, self.held
        self.held = None
        if failed and at is not None and at.generation == self.wanted.generation:
            self.message = said
            return [DropToken()]
        return self._begin(now)
