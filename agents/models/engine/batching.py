"""Which tokens go into the next step of a model, and in whose memory: continuous batching. Pure.

A model's memory is a pool of *cells*, one for each token of each sequence. Requests wait in their order until a sequence
and enough cells are free for their prompt and their longest answer; then they take part in every step until they end.
What an ended request leaves in its sequence is kept while nobody needs the room: the next prompt that begins alike goes
on from there.

Laws
- First come, first served: nobody joins before the first that waits, so the longest prompt gets its room, too.
- The cells that running requests may come to need never exceed the pool: a step never finds it full.
- A step has one row for each request that generates, and then rows of prompts, the oldest first, in pieces that take about
  ``ALONE_S``, or ``COMPANY_S`` where others generate: so long a cancel waits, so long those others are held up.
- At least the last token of a prompt is always computed, however much of it is known: its logits are wanted.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Final

ALONE_S: Final = 0.25
COMPANY_S: Final = 0.1
MIN_ROWS: Final = 32  #: a smaller piece wastes what the device computes side by side
FIRST_ROWS: Final = 64  #: as long as nobody knows how fast this model reads


@dataclass(slots=True)
class Member:
    """One request. ``tokens``: the prompt, then what was generated; the first ``done`` of them are in the cells."""

    number: int
    tokens: list[int]
    prompt: int  #: length of the prompt
    cells: int  #: that it may come to need
    seq: int = -1
    done: int = 0
    known: int = 0  #: tokens of the prompt that were in the cells when it began
    reuse: bool = True

    @property
    def generates(self) -> bool:
        return self.done >= self.prompt


@dataclass(frozen=True, slots=True)
class Cut:
    """Before the step: forget what ``seq`` holds from ``start`` on."""

    seq: int
    start: int


@dataclass(frozen=True, slots=True)
class Copy:
    """Before the step: ``to`` shares the first ``count`` cells of ``seq``."""

    seq: int
    to: int
    count: int


@dataclass(frozen=True, slots=True)
class Row:
    """One token of the step. ``logits``: the request ``number`` is sampled from it."""

    number: int
    token: int
    position: int
    seq: int
    logits: bool


@dataclass(slots=True)
class Step:
    """What to do next, in this order. ``begun``: the requests that join with it."""

    begun: list[int] = field(default_factory=list)
    memory: list[Cut | Copy] = field(default_factory=list)
    rows: list[Row] = field(default_factory=list)


class Batcher:
    """See the module's laws.

    ``sequences``: requests at once; ``cells``: tokens in all; ``batch``: rows of a step. ``reuse``: whether the memory can
    be cut (that of a recurrent model can only be cleared).

    Raises:
        ValueError: a step has no room for a row of each sequence.
    """

    def __init__(self, sequences: int, cells: int, batch: int, *, reuse: bool = True) -> None:
        if not 1 <= sequences <= batch or cells < 2:
            raise ValueError(f"{sequences} sequences, {cells} cells and steps of {batch} do not go together")
        self._cells, self._batch, self._reuse = cells, batch, reuse
        self._alone = self._company = min(batch, FIRST_ROWS)
        self._waiting: deque[Member] = deque()
        self._members: dict[int, Member] = {}
        #: What each free sequence holds, the longest idle first.
        self._idle: dict[int, list[int]] = {seq: [] for seq in range(sequences)}
        self._cuts: list[Cut | Copy] = []  # of sequences that hold what nobody is to use

    # ------------------------------------------------------------ requests

    def ask(self, number: int, tokens: Sequence[int], max_tokens: int, *, reuse: bool = True) -> int:
        """Take a request; its place in the queue, 0 for the next one. Without ``reuse`` its whole prompt is computed.

        Raises:
            ValueError: no token, more than there are cells, or a number that is in use.
        """
        if not 0 < len(tokens) < self._cells:
            raise ValueError(f"{len(tokens)} tokens for {self._cells} cells")
        if number in self._members or any(m.number == number for m in self._waiting):
            raise ValueError(f"request {number} is known already")
        need = min(self._cells, len(tokens) + max(1, max_tokens))
        self._waiting.append(Member(number, list(tokens), len(tokens), need, reuse=reuse and self._reuse))
        return len(self._waiting) - 1

    def end(self, number: int) -> None:
        """It is over or cancelled: its sequence is free at once. Unknown numbers are ignored."""
        member = self._members.pop(number, None)
        if member is None:
            self._waiting = deque(m for m in self._waiting if m.number != number)
            return
        self._idle[member.seq] = member.tokens[: member.done] if self._reuse else []
        if not self._reuse:
            self._cuts.append(Cut(member.seq, 0))

    def took(self, number: int, token: int) -> bool:
        """A token was sampled for it; False when its cells are used up, so that no more can follow."""
        member = self._members[number]
        member.tokens.append(token)
        return len(member.tokens) < member.cells

    def pace(self, rows_per_s: float) -> None:
        """How fast prompts are read: the next steps are made as long as they may be."""
        self._alone, self._company = (
            min(self._batch, max(MIN_ROWS, int(rows_per_s * seconds))) for seconds in (ALONE_S, COMPANY_S)
        )

    @property
    def waiting(self) -> list[int]:
        """Who waits, in order."""
        return [member.number for member in self._waiting]

    @property
    def running(self) -> list[int]:
        """Who takes part, the oldest first."""
        return list(self._members)

    def known(self, number: int) -> int:
        """How many tokens of a running request's prompt did not have to be read again."""
        return self._members[number].known

    def forget(self) -> None:
        """What ended requests left is not to be known to those that come."""
        self._cuts += [Cut(seq, 0) for seq, tokens in self._idle.items() if tokens]
        self._idle = {seq: [] for seq in self._idle}

    # ------------------------------------------------------------ steps

    def step(self, *, company: bool = False) -> Step:
        """The next step; one without rows when nobody runs or waits. Its rows count as done.

        ``company``: somebody outside of this batcher is held up by the step, as one who generates here would be.
        """
        step = Step(memory=self._cuts)
        self._cuts = []
        while self._waiting and self._admit(self._waiting[0], step):
            step.begun.append(self._waiting.popleft().number)
        room = self._batch
        members = self._members.values()
        for member in members:
            if member.generates:
                self._add(member, 1, step)
                room -= 1
        room = min(room, self._company if step.rows or company else self._alone)
        for member in members:
            if not member.generates and room > 0:
                count = min(room, member.prompt - member.done)
                self._add(member, count, step)
                room -= count
        return step

    def _add(self, member: Member, count: int, step: Step) -> None:
        last = len(member.tokens) - 1
        for at in range(member.done, member.done + count):
            step.rows.append(Row(member.number, member.tokens[at], at, member.seq, at == last))
        member.done += count

    # ------------------------------------------------------------ joining

    def _admit(self, member: Member, step: Step) -> bool:
        """Give it a sequence and cells, if there are some."""
        if not self._idle:
            return False
        # What is kept is for those who may go on from it: others take an empty sequence, or what is the longest idle.
        own = max(
            self._idle,
            key=lambda seq: (
                _alike(self._idle[seq], member.tokens) if member.reuse else 0,
                not self._idle[seq],
            ),
        )
        promised = sum(m.cells for m in self._members.values()) + member.cells
        if promised > self._cells:
            return False
        held = self._idle.pop(own)
        alike = min(_alike(held, member.tokens), member.prompt - 1) if member.reuse else 0
        kept = sum(map(len, self._idle.values()))
        for seq, tokens in self._idle.items():  # whose prompt is the longest ago goes first
            if promised + kept <= self._cells:
                break
            if tokens:
                kept -= len(tokens)
                self._idle[seq] = []
                step.memory.append(Cut(seq, 0))
        other, shared = self._longest_of_running(member)
        if shared > alike:
            step.memory += [Cut(own, 0), Copy(other, own, shared)]
            alike = shared
        else:
            step.memory.append(Cut(own, alike))
        member.seq, member.done, member.known = own, alike, alike
        self._members[member.number] = member
        return True

    def _longest_of_running(self, member: Member) -> tuple[int, int]:
        """Who that runs has begun with the same tokens: its sequence, and how many."""
        found = (-1, 0)
        for other in self._members.values() if member.reuse else ():
            shared = min(_alike(other.tokens[: other.done], member.tokens), member.prompt - 1)
            if shared > found[1]:
                found = (other.seq, shared)
        return found


def _alike(first: Iterable[int], second: Iterable[int]) -> int:
    """How many tokens two lists have in common at their beginning."""
    count = 0
    for a, b in zip(first, second, strict=False):
        if a != b:
            break
        count += 1
    return count
