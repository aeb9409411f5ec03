"""The process that holds a model: ``python -m rigbus.agents.models.child``, started by ``keeper.py``.

Messages over the pipe, maps with one key that names them:
  to us    {"load": options} once · {"generate": id, "request": map} · {"cancel": id}
  from us  {"loading": share} · {"ready": info} · {"begun": id} · {"chunk": id, "text"} · {"usage": id, …} · {"alive": 0}
           · {"refused": id | None, "message"} (definition; None: the model itself) · {"broken": message}
Between any two steps of the model requests join and leave. The pipe's end ends the process, also in the middle of a step.
"""

from __future__ import annotations

import faulthandler
import os
import queue
import sys
import threading
from collections.abc import Mapping
from time import monotonic
from typing import TYPE_CHECKING, Any, Final

from ...bus.errors import DefinitionError
from ..pipe import ChildPipe
from .protocol import Begun, Chunk, GenerateRequest, LoadOptions, Usage

if TYPE_CHECKING:
    from .engine import Engine

SIGN_OF_LIFE_S: Final = 0.5  #: at most so long without a message while tokens are made
LOADING_STEP: Final = 0.02


class Child:
    """Reads requests in one thread, computes in the main one."""

    def __init__(self, pipe: ChildPipe) -> None:
        self._pipe = pipe
        self._inbox: queue.SimpleQueue[Mapping[str, Any]] = queue.SimpleQueue()
        self._said_at = 0.0

    def run(self) -> int:
        """Until the pipe or the model breaks; the exit code."""
        first = self._pipe.receive()
        if first is None:
            return 0
        # After the first message: who waits for the model may speak before it is loaded.
        threading.Thread(target=self._listen, daemon=True).start()
        try:
            from .engine import Engine, EngineBroken
        except ImportError as e:
            self._send(
                {"refused": None, "message": f"llama-cpp-python is not whole: {e}; pip install 'rigbus[llm]'"}
            )
            return 0
        try:
            engine = Engine(LoadOptions(**first["load"]), self._loading())
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
            self._send({"broken": str(e)})
            return 1

    def _take(self, engine: Engine) -> None:
        """What was asked since the last step; where there is nothing to do, the next thing that is."""
        while not engine.busy or not self._inbox.empty():
            message = self._inbox.get()
            if "generate" not in message:
                engine.cancel(message["cancel"])
                continue
            try:
                engine.ask(message["generate"], GenerateRequest(**message["request"]))
            except DefinitionError as e:
                self._send({"refused": message["generate"], "message": str(e)})

    def _step(self, engine: Engine) -> None:
        texts: dict[int, str] = {}
        for number, item in engine.step():
            match item:
                case Begun():
                    self._send({"begun": number})
                case Chunk(text):
                    texts[number] = texts.get(number, "") + text
                case Usage():
                    self._say(number, texts)
                    self._send({"usage": number, **{name: getattr(item, name) for name in Usage.__slots__}})
        for number in list(texts):
            self._say(number, texts)
        if monotonic() - self._said_at > SIGN_OF_LIFE_S:
            self._send({"alive": 0})

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
            if value - said >= LOADING_STEP or value >= 1.0 > said:
                said = value
                self._send({"loading": value})

        return share

    def _listen(self) -> None:
        while True:
            message = self._pipe.receive()
            if message is None:
                os._exit(0)  # the worker is gone or wants us gone; a step in llama.cpp may take long
            self._inbox.put(message)


def main() -> int:
    """Serve one model until the pipe ends."""
    faulthandler.enable()  # a crash in llama.cpp leaves the Python side of its stack in the log
    return Child(ChildPipe()).run()


if __name__ == "__main__":
    code = main()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)  # llama.cpp's own threads and destructors have nothing to say any more
