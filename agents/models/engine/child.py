"""The process that holds a model: ``python -m rigbus.agents.models.engine.child``, started by ``keeper.py``.

Messages over the pipe, maps with one key that names them:
  to us    {"load": options} once · {"generate" | "embed": id, "request": map} · {"cancel": id}
  from us  {"loading": share} · {"probing": 0}, when it is loaded · {"ready": info} · {"taking": id}, then {"taken": id}: what
           kills us between them is that request · {"waiting": [ids that generate, ids that embed]} when it changes
           · {"begun": id} · {"chunk": id, "text"} · {"vector": id, "index", "data"} (32-bit floats) · {"usage": id, …}
           · {"alive": 0} · {"refused": id | None, "message"} (definition; None: the model itself)
           · {"broken": message, "by": [ids]}
           (by one of these; none: by any)
Between any two steps of the model requests join and leave. The pipe's end ends the process, also in the middle of a step.
"""

from __future__ import annotations

import faulthandler
import os
import queue
import sys
import threading
import traceback
from array import array
from collections.abc import Mapping
from time import monotonic
from typing import TYPE_CHECKING, Any, Final

from ....bus.errors import DefinitionError
from ...attempts.pipe import ChildPipe
from ..protocol import (
    Begun,
    Chunk,
    Declined,
    EmbedRequest,
    GenerateRequest,
    LoadOptions,
    Usage,
    Vector,
)
from .context import EngineBroken

if TYPE_CHECKING:
    from .engine import Engine

SIGN_OF_LIFE_S: Final = 0.5  #: at most so long without a message while tokens are made
LOADING_STEP: Final = 0.02
LOADING_SAID_S: Final = 5.0  #: at most so long without a message while a load goes on, however slowly
TAKING_S: Final = (
    0.1  #: requests are taken so long between two steps, or a single one: a step and a cancel wait for it
)


class Child:
    """Reads requests in one thread, computes in the main one."""

    def __init__(self, pipe: ChildPipe) -> None:
        self._pipe = pipe
        self._inbox: queue.SimpleQueue[Mapping[str, Any]] = queue.SimpleQueue()
        self._asked: dict[int, Mapping[str, Any]] = {}  # not taken yet, in their order
        self._waiting: list[list[int]] = [[], []]  # as it was said last
        self._said_at = 0.0

    def run(self) -> int:
        """Until the pipe or the model breaks; the exit code."""
        first = self._pipe.receive()
        if first is None:
            return 0
        # After the first message: who waits for the model may speak before it is loaded.
        threading.Thread(target=self._listen, daemon=True).start()
        try:
            from .engine import Engine
        except ImportError as e:
            self._send(
                {"refused": None, "message": f"llama-cpp-python is not whole: {e}; pip install 'rigbus[llm]'"}
            )
            return 0
        try:
            engine = Engine(LoadOptions(**first["load"]), self._loading(), lambda: self._send({"probing": 0}))
        except DefinitionError as e:
            self._send({"refused": None, "message": str(e)})
            return 0
        except EngineBroken as e:
            self._send({"broken": f"it loads, but cannot generate: {e}"})
            return 1
        self._send({"ready": engine.info().to_map()})
        try:
            while True:
                self._take(engine)
                self._step(engine)
        except EngineBroken as e:
            self._send({"broken": str(e), "by": sorted(e.by)})
            return 1

    def _take(self, engine: Engine) -> None:
        """Requests, for a moment; where there is nothing to do, until there is. Cancels pass all requests."""
        since = monotonic()
        while True:
            self._sort(engine, wait=not engine.busy and not self._asked)
            if self._asked:
                number = next(iter(self._asked))
                self._ask(engine, number, self._asked.pop(number))
            if engine.busy and (not self._asked or monotonic() - since > TAKING_S):
                return

    def _sort(self, engine: Engine, *, wait: bool) -> None:
        """All that has been said to us: cancels are obeyed, requests are kept."""
        while wait or not self._inbox.empty():
            message = self._inbox.get()
            wait = False
            number = message.get("cancel")
            if number is None:
                self._asked[message["generate"] if "generate" in message else message["embed"]] = message
            elif self._asked.pop(number, None) is not None:
                self._send_usage(number, Usage(finish="cancelled"))
            else:
                engine.cancel(number)

    def _ask(self, engine: Engine, number: int, message: Mapping[str, Any]) -> None:
        self._send({"taking": number})
        try:
            if "generate" in message:
                engine.ask(number, GenerateRequest(**message["request"]))
            else:
                engine.embed(number, EmbedRequest(**message["request"]))
        except DefinitionError as e:
            self._send({"refused": number, "message": str(e)})
        except EngineBroken:
            raise
        except (
            Exception
        ) as e:  # whatever a request leads llama.cpp's Python side to: it must not end the others
            traceback.print_exc()
            self._send({"refused": number, "message": f"the engine cannot take this request: {e!r:.300}"})
        else:
            self._send({"taken": number})

    def _step(self, engine: Engine) -> None:
        texts: dict[int, str] = {}
        for number, item in engine.step():
            match item:
                case Begun():
                    self._send({"begun": number})
                case Chunk(text):
                    texts[number] = texts.get(number, "") + text
                case Vector(index, values):
                    self._send({"vector": number, "index": index, "data": array("f", values).tobytes()})
                case Declined(message):
                    self._say(number, texts)
                    self._send({"refused": number, "message": message})
                case Usage():
                    self._say(number, texts)
                    self._send_usage(number, item)
        for number in list(texts):
            self._say(number, texts)
        self._say_who_waits(engine)
        if monotonic() - self._said_at > SIGN_OF_LIFE_S:
            self._send({"alive": 0})

    def _say_who_waits(self, engine: Engine) -> None:
        """Only after a step: who could begin with it has begun."""
        generate, embed = engine.waiting
        generate += [n for n, message in self._asked.items() if "generate" in message]
        embed += [n for n, message in self._asked.items() if "embed" in message]
        if [generate, embed] != self._waiting:
            self._waiting = [generate, embed]
            self._send({"waiting": self._waiting})

    def _send_usage(self, number: int, usage: Usage) -> None:
        self._send({"usage": number, **{name: getattr(usage, name) for name in Usage.__slots__}})

    def _say(self, number: int, texts: dict[int, str]) -> None:
        if text := texts.pop(number, ""):
            self._send({"chunk": number, "text": text})

    def _send(self, message: dict[str, Any]) -> None:
        self._said_at = monotonic()
        self._pipe.send(message)

    def _loading(self) -> Any:
        said = -1.0

        def share(value: float) -> None:
            nonlocal said
            slow = monotonic() - self._said_at > LOADING_SAID_S
            if value - said >= LOADING_STEP or value >= 1.0 > said or slow:
                said = value
                self._send({"loading": value})

        return share

    def _listen(self) -> None:
        try:
            while (message := self._pipe.receive()) is not None:
                self._inbox.put(message)
        except Exception as e:  # without this thread nobody would hear a request or a cancel any more
            print(f"the pipe from the worker is broken: {e!r}", file=sys.stderr, flush=True)
            os._exit(1)
        os._exit(0)  # the worker is gone or wants us gone; a step in llama.cpp may take long


def main() -> int:
    """Serve one model until the pipe ends."""
    faulthandler.enable()  # a crash in llama.cpp leaves the Python side of its stack in the log
    return Child(ChildPipe()).run()


if __name__ == "__main__":
    code = main()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)  # llama.cpp's own threads and destructors have nothing to say any more
