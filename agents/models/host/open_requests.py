"""The requests of one model that are not answered yet, and whose fault a child's death was. No process, no clock.

Laws
- A child says which request it takes in hand before it looks into it: what dies then is that request's fault alone.
- A child that dies under a single running request dies by it; under several, nobody knows by which.
- Who only waited goes to the next child, but not for ever: after ``MAX_RESENDS`` deaths it is told.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterator, Mapping
from typing import Any, Final

from ....bus.errors import DefinitionError
from ..protocol import Chunk, ModelBusy, ModelCrashed, Usage, Vector
from .generation import Hosted, HostedEmbedding, HostedGeneration

MAX_RESENDS: Final = 2


class OpenRequests:
    """In the order in which they were asked. ``running`` and ``waiting`` bound how many there may be."""

    def __init__(self, model: str, running: int, waiting: int) -> None:
        self._model = model
        self._running, self._waiting = running, waiting
        self._open: dict[int, Hosted[Any]] = {}
        self._taking: int | None = None

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
        if request is not None:
            request.put(item)

    def answer_all(self, error: Exception) -> None:
        for number in list(self._open):
            self.answer(number, error)

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
            request.place(places.get(number))

    # ------------------------------------------------------------ the child dies

    def died(self, what: str, *, loading: bool) -> None:
        """Answer those that the dead child had in hand; the others are to be sent again."""
        culprit, self._taking = self._taking, None
        alone = culprit is None and not loading and sum(r.begun for r in self) == 1
        for request in self:
            if request.cancel_by is not None:
                self.answer(request.number, Usage(finish="cancelled"))
            elif request.number == culprit:
                self.answer(request.number, ModelCrashed(f"{what}; it was taking this request in hand"))
            elif request.begun or loading:
                self.answer(request.number, ModelCrashed(what, alone=alone))
            elif request.sent and request.resends == MAX_RESENDS:
                told = f"{what}; this request has waited through {MAX_RESENDS + 1} such ends"
                self.answer(request.number, ModelCrashed(told, alone=False))
            else:
                request.resends += request.sent
                request.sent = False
                request.place(None)
