"""What a model takes of its cards, and whether that is back when it has gone. Pure: readings in, MB (2^20 bytes) out.

Laws
- What the driver says of the model's own process is believed before anything else.
- Where it does not say that, the difference from before counts: less what the others on the card have come to take, and
  not at all where somebody came or left and nobody tells with how much.
- A process that the driver lists by a number we do not know is the model's where it is the only new one: in a container
  the driver counts processes as its host does.
- A model that is not seen on a card by its process, and was not built for one, takes nothing of it that we know.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

from ..gpu.readings import GpuReading

#: Memory counts as back within so much of what was used before. CUDA keeps more than that for a process that does nothing
#: (93 MB on a K80, 107 on an RTX 4060 Ti, 555 on the largest, as people report), so no model hides in it; an idle desktop
#: or a driver's own tables move by less.
TOLERANCE_MB: Final = 64
#: Or when the model's process has left the card, and this part of what it took is free: the rest may be a stranger's.
RETURNED: Final = 0.9


@dataclass(frozen=True, slots=True)
class Returned:
    """``back_mb``: what is free again, of all cards. ``missing``: what is not, in words; "": nothing.

    ``unknown``: why a card could not be judged; "": all could.
    """

    back_mb: int = 0
    missing: str = ""
    unknown: str = ""


@dataclass(frozen=True, slots=True)
class _Held:
    """What a model took of one card in ``reading``; ``ours``: its processes as the driver counts them."""

    reading: GpuReading
    ours: frozenset[int]
    mb: int


@dataclass(slots=True)
class CardMemory:
    """One model, from before it is opened until its memory is back.

    ``before``: its cards as they were then; empty where nobody knows. ``peak_mb``: the most that it was measured to take
    of all of them while it was hot; 0: not measured.
    """

    model: str
    before: Sequence[GpuReading] = ()
    peak_mb: int = 0
    _held: dict[str, _Held] = field(default_factory=dict)

    @property
    def takes_mb(self) -> int:
        """What it took of all its cards when it was measured last; 0: not measured."""
        return sum(held.mb for held in self._held.values())

    def note(
        self, readings: Sequence[GpuReading], pid: int | None, *, on_card: bool = False, hot: bool = False
    ) -> None:
        """Its cards now. ``pid``: its process; None: there is none at present. ``on_card``: its engine uses a card."""
        if pid is None:
            return
        listed = any(pid in reading.pids for reading in readings)
        whole = bool(readings)
        for reading in readings:
            if listed and pid not in reading.pids and not reading.error:
                self._held.pop(_name(reading), None)  # it is on another of its cards
                continue
            held = self._measured(reading, pid, on_card=on_card)
            if held is None:
                whole = False  # what was measured before stays the best that is known
            else:
                self._held[_name(reading)] = held
        if hot and whole:
            self.peak_mb = max(self.peak_mb, self.takes_mb)

    def returned(self, readings: Sequence[GpuReading]) -> Returned:
        """Its cards after its process has gone."""
        now = {_name(reading): reading for reading in readings}
        back_mb, missing, unknown = 0, list[str](), list[str]()
        for name, held in self._held.items():
            freed_mb = self._freed(held, now.get(name))
            if freed_mb is None:
                unknown.append(f"card {held.reading.index}: {_why_unknown(now.get(name))}")
                continue
            back_mb += freed_mb
            if freed_mb < held.mb and not self._as_before(held, now[name]):
                missing.append(self._words(held, now[name], freed_mb))
        if missing:
            missing[-1] += "; nvidia-smi shows who holds them"
        return Returned(back_mb, "; ".join(missing), "; ".join(unknown))

    # -- one card --------------------------------------------------------------------------------------------

    def _measured(self, reading: GpuReading, pid: int, *, on_card: bool) -> _Held | None:
        """What the process takes of a card; None where that cannot be said."""
        told, seen = dict(reading.process_mb), pid in reading.pids
        if pid in told:
            return _Held(reading, frozenset({pid}), told[pid])
        before = self._before(reading)
        if before is None or not (seen or on_card):
            return None
        ours = {pid}
        new = set(reading.pids) - set(before.pids)
        if not seen and len(new) == 1:
            ours |= new
            (alias,) = new
            if alias in told:
                return _Held(reading, frozenset(ours), told[alias])
        more_mb = _more_used(before, reading, ours)
        if more_mb is None or more_mb <= TOLERANCE_MB:
            return None
        return _Held(reading, frozenset(ours), more_mb)

    def _freed(self, held: _Held, now: GpuReading | None) -> int | None:
        """MB of what it took of a card that are free now; None where that cannot be said."""
        if now is None:
            return None
        more_mb = _more_used(held.reading, now, held.ours)
        if more_mb is None:
            return held.mb if self._as_before(held, now) else None
        freed_mb = min(held.mb, max(0, -more_mb))
        left = not held.ours & set(now.pids)
        return held.mb if left and freed_mb >= RETURNED * held.mb else freed_mb

    def _as_before(self, held: _Held, now: GpuReading) -> bool:
        """Is as much free as before the model came?"""
        before = self._before(now)
        more_mb = None if before is None else _more_used(before, now, held.ours)
        return more_mb is not None and more_mb <= TOLERANCE_MB

    def _before(self, reading: GpuReading) -> GpuReading | None:
        return next((b for b in self.before if _name(b) == _name(reading)), None)

    def _words(self, held: _Held, now: GpuReading, freed_mb: int) -> str:
        before = self._before(now)
        used = f"{now.memory_used_mb} MB used"
        if before is not None and before.memory_used_mb is not None:
            used += f", {before.memory_used_mb} before it was loaded"
        if now.pids:
            used += f", by {'process' if len(now.pids) == 1 else 'processes'} {', '.join(map(str, now.pids))}"
        return f"card {now.index}: {held.mb - freed_mb} of {held.mb} MB of {self.model} are not back ({used})"


def _more_used(then: GpuReading, now: GpuReading, ours: set[int] | frozenset[int]) -> int | None:
    """How much more of a card is used than then, without what the others take more; None where that cannot be said."""
    if then.memory_used_mb is None or now.memory_used_mb is None:
        return None
    told_then, told_now = dict(then.process_mb), dict(now.process_mb)
    others_mb = 0
    for pid in {*then.pids, *now.pids} - ours:
        was, is_ = _mb_of(pid, then, told_then), _mb_of(pid, now, told_now)
        if was is not None and is_ is not None:
            others_mb += is_ - was
        elif (pid in then.pids) != (pid in now.pids):
            return None
        # else it is there as before, and is taken to need what it needed
    return now.memory_used_mb - then.memory_used_mb - others_mb


def _mb_of(pid: int, reading: GpuReading, told: Mapping[int, int]) -> int | None:
    return told.get(pid) if pid in reading.pids else 0


def _why_unknown(now: GpuReading | None) -> str:
    if now is None or now.error or now.memory_used_mb is None:
        return (now.error if now is not None else "") or "it tells nothing"
    return "others came onto it or left, and the driver does not say what they take"


def _name(reading: GpuReading) -> str:
    return reading.uuid or str(reading.index)
