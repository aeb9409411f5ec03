"""The process that holds a model: ``python -m rigbus.agents.model_child``, started by ``model_host.py``.

Messages over the pipe, maps with one key that names them:
  to us    {"load": options} once · {"generate": id, "request": map} · {"cancel": id}
  from us  {"loading": share} · {"ready": info} · {"begun": id} · {"chunk": id, "text"} · {"usage": id, …}
           · {"refused": id | None, "message"} (definition; None: the model itself) · {"broken": message}
Requests wait here in their order; one runs at a time. The pipe's end ends the process, also in the middle of a step.
"""

from __future__ import annotations

import faulthandler
import os
import queue
import sys
import threading
from collections.abc import Mapping
from time import monotonic
from typing import Any, Final

from ..bus.errors import DefinitionError
from .model import Chunk, GenerateRequest, LoadOptions, Usage
from .pipe import ChildPipe

SIGN_OF_LIFE_S: Final = 0.5  #: at most so long without a message while tokens are made
LOADING_STEP: Final = 0.02


class Child:
    """Reads requests in one thread, generates in the main one."""

    def __init__(self, pipe: ChildPipe) -> None:
        self._pipe = pipe
        self._requests: queue.SimpleQueue[tuple[int, Mapping[str, Any]]] = queue.SimpleQueue()
        self._cancelled: set[int] = set()

    def run(self) -> int:
        """Until the pipe or the model breaks; the exit code."""
        first = self._pipe.receive()
        if first is None:
            return 0
        # After the first message: who waits for the model may speak before it is loaded.
        threading.Thread(target=self._listen, daemon=True).start()
        from .model_engine import Engine, EngineBroken

        try:
            engine = Engine(LoadOptions(**first["load"]), self._loading())
        except DefinitionError as e:
            self._pipe.send({"refused": None, "message": str(e)})
            return 0
        except EngineBroken as e:
            self._pipe.send({"broken": f"it loads, but cannot generate: {e}"})
            return 1
        self._pipe.send({"ready": engine.info().to_map()})
        while True:
            number, request = self._requests.get()
            self._pipe.send({"begun": number})
            try:
                self._answer(engine, number, request)
            except DefinitionError as e:
                self._pipe.send({"refused": number, "message": str(e)})
            except EngineBroken as e:
                self._pipe.send({"broken": str(e)})
                return 1
            finally:
                self._cancelled.discard(number)

    def _answer(self, engine: Any, number: int, request: Mapping[str, Any]) -> None:
        said_at = monotonic()
        for item in engine.generate(GenerateRequest(**request), lambda: number in self._cancelled):
            match item:
                case Chunk(text) if text or monotonic() - said_at > SIGN_OF_LIFE_S:
                    self._pipe.send({"chunk": number, "text": text})
                    said_at = monotonic()
                case Usage():
                    self._pipe.send(
                        {"usage": number, **{name: getattr(item, name) for name in Usage.__slots__}}
                    )

    def _loading(self) -> Any:
        said = -1.0

        def share(value: float) -> None:
            nonlocal said
            if value - said >= LOADING_STEP or value >= 1.0 > said:
                said = value
                self._pipe.send({"loading": value})

        return share

    def _listen(self) -> None:
        while True:
            message = self._pipe.receive()
            if message is None:
                os._exit(0)  # the worker is gone or wants us gone; a step in llama.cpp may take long
            if "generate" in message:
                self._requests.put((message["generate"], message["request"]))
            elif "cancel" in message:
                self._cancelled.add(message["cancel"])


def main() -> int:
    """Serve one model until the pipe ends."""
    faulthandler.enable()  # a crash in llama.cpp leaves the Python side of its stack in the log
    return Child(ChildPipe()).run()


if __name__ == "__main__":
    code = main()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)  # llama.cpp's own threads and destructors have nothing to say any more
