"""rigbus: a message bus for agents on a GPU rig.

The public face, imported lazily (PEP 562): ``import rigbus`` loads nothing else, so that a verb
that works on files only never pays for (or needs) zmq, pydantic or llama.cpp.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .agents.base import Agent, handler, on
    from .bus.client.client import Client, Result, Task

__version__ = "0.1.0"
__all__ = ["Agent", "Client", "Result", "Task", "__version__", "handler", "on"]

_HOME = {
    "Agent": ".agents.base",
    "handler": ".agents.base",
    "on": ".agents.base",
    "Client": ".bus.client.client",
    "Result": ".bus.client.client",
    "Task": ".bus.client.client",
}


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(import_module(_HOME[name], __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
