"""The requests of one model that are not answered yet, and whose fault a child's death was. No process, no clock.

Laws
- A child says which request it takes in hand before it looks into it: what dies then is that request's fault alone.
- A child that dies under a single running request dies by it, as by the one that it names; under several nobody knows by
  which. All of these are suspects: when they come again, each runs alone, so that the next death names one.
- First come, first served: nobody passes a suspect that waits to be alone.
- Who only waited goes to the next child, but not for ever: after ``MAX_RESENDS`` deaths it is told.
"""

from __future__ import annotations

from array import array
from collections.abc import Collection, Iterable, Iterator, Mapping
from typing import Any, Final

from ....bus.errors import DefinitionError
from ..protocol import Chunk, ModelBusy, ModelCrashed, Usage, Vector
from .generation import Hosted, HostedEmbedding, HostedGeneration

MAX_RESENDS: Final = 2
MAX_SUSPECTS: Final = 128  #: the oldest is forgotten beyond it


class OpenRequests:
    """In the order in which they were asked. ``running`` and ``waiting`` bound how many there may be."""

    def __init__(self, model: str, running: int, waiting: int) -> None:
        self._model = model
        self._running, self._waiting = running, waiting
        self._open: dict[int, Hosted[Any]] = {}
        self._taking: int | None = None
        self._suspects: dict[bytes, None] = {}  # by what they ask for: who comes again is another request

    def __iter__(self) -> Iterator[Hosted[Any]]:
        """Of a copy: while it goes on, requests may be answered."""
        return iter(list(self._open.values()))

    def __contains__(self, request: Hosted[Any]) -> bool:
        return request.number in self._open

    def add(self, request: Hosted[Any]) -> bool:
        """Take it, or answer it with ModelBusy and return False."""
        if len(self._open) >= self._running + self._waiting:
            request.put(
                ModelBusy(
                    f"model {self._model}: {self._running} requests may run and {self._waiting} wait, and all these "
                    "places are taken; ask again later"
                )
            )
            return False
        self._open[request.number] = request
        return True

    def answer(self, number: int, item: Usage | Exception) -> None:
        """The last word on a request; unknown numbers are ignored."""
        request = self._open.pop(number, None)
        if number == self._taking:
            self._taking = None
        if request is None:
            return
        if self._suspects and isinstance(item, Usage) and item.finish != "cancelled":
            self._suspects.pop(request.fingerprint, None)
        request.put(item)

    def answer_all(self, error: Exception) -> None:
        for number in list(self._open):
            self.answer(number, error)

    def to_send(self) -> list[Hosted[Any]]:
        """Who may go to the child now, in their order: a suspect only when nobody else is there, and then nobody else."""
        unsent = [request for request in self._open.values() if not request.sent]
        there = [request for request in self._open.values() if request.sent] if unsent else []
        alone = any(map(self._suspected, there))
        found: list[Hosted[Any]] = []
        for request in unsent:
            suspected = self._suspected(request)
            if alone or (suspected and (there or found)):
                break
            found.append(request)
            alone = suspected
        for place, request in enumerate(unsent[len(found) :]):
            request.place(place)
        return found

    def _suspected(self, request: Hosted[Any]) -> bool:
        return bool(self._suspects) and request.fingerprint in self._suspects

    @property
    def at_work(self) -> bool:
        """Has a child something to answer?"""
        return any(request.sent for request in self._open.values())

    def next_cancel_by(self) -> float | None:
        """When the first of the cancels that were sent must have been obeyed."""
        return min((r.cancel_by for r in self._open.values() if r.cancel_by is not None), default=None)

    # ------------------------------------------------------------ the child speaks

    def heard(self, message: Mapping[str, Any]) -> bool:
        """Whether a message of the child was about a request.

        Raises:
            KeyError, TypeError, ValueError: it is no message of PROTOCOL's kind (see ``child.py``).
        """
        match message:
            case {"chunk": number, "text": text}:
                request = self._open.get(number)
                if isinstance(request, HostedGeneration) and text:
                    request.put(Chunk(text))
            case {"vector": number, "index": index, "data": data}:
                request = self._open.get(number)
                if isinstance(request, HostedEmbedding):
                    request.put(Vector(index, array("f", data).tolist()))
            case {"usage": number, **usage}:
                self.answer(number, Usage(**usage))
            case {"refused": int(number), "message": text}:
                self.answer(number, DefinitionError(str(text)))
            case {"taking": number}:
                self._taking = number
            case {"taken": number}:
                self._taking = None
            case {"begun": number}:
                if (request := self._open.get(number)) is not None:
                    request.begun = True
            case {"waiting": lines}:
                self._place(lines)
            case _:
                return False
        return True

    def _place(self, lines: list[list[int]]) -> None:
        places = {number: at for line in lines for at, number in enumerate(line)}
        for number, request in self._open.items():
            if request.sent:
                request.place(places.get(number))

    # ------------------------------------------------------------ the child dies

    def died(self, what: str, *, loading: bool, by: Collection[int] = ()) -> None:
        """Answer those that the dead child had in hand; the others are to be sent again. ``by``: whom it suspected itself."""
        taking, self._taking = self._taking, None
        begun = [] if loading else [r for r in self if r.begun]
        suspects = [r for r in begun if r.number in by] or begun
        if taking in self._open:
            suspects = [self._open[taking]]
        self._suspect(suspects)
        culprit = suspects[0].number if len(suspects) == 1 else None
        told = (
            f"{what}; {len(suspects)} requests ran, so each of them is tried alone next"
            if len(suspects) > 1
            else what
        )
        for request in self:
            if request.cancel_by is not None:
                self.answer(request.number, Usage(finish="cancelled"))
            elif request.number == culprit:
                taken = "; it was taking this request in hand" if culprit == taking else ""
                self.answer(request.number, ModelCrashed(what + taken))
            elif request.begun or loading:
                ours = told if request in suspects else what
                self.answer(request.number, ModelCrashed(ours, alone=False))
            elif request.sent and request.resends == MAX_RESENDS:
                waited = f"{what}; this request has waited through {MAX_RESENDS + 1} such ends"
                self.answer(request.number, ModelCrashed(waited, alone=False))
            else:
                request.resends += request.sent
                request.sent = False
                request.place(None)

    def _suspect(self, requests: Iterable[Hosted[Any]]) -> None:
        for request in requests:
            self._suspects.pop(request.fingerprint, None)
            self._suspects[request.fingerprint] = None
        while len(self._suspects) > MAX_SUSPECTS:
            del self._suspects[next(iter(self._suspects))]
