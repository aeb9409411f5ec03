"""Loaded by every Python of a rig that a test starts with this folder on PYTHONPATH: it may die at a named step.

``RIGBUS_TEST_DYING`` is a folder. The file ``armed`` in it says ``ROLE<tab>STEP<tab>N``: the first process of that role that
passes the step for the Nth time since then writes ``died`` and kills itself with SIGKILL. The product knows nothing of this.
"""

from __future__ import annotations

import functools
import importlib.abc
import importlib.machinery
import os
import signal
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from types import ModuleType
from typing import Any

FOLDER = os.environ.get("RIGBUS_TEST_DYING", "")
#: Module, class, method -> what its steps are called: a verb among the arguments (or that of the message that it
#: returns) is a part of the name.
STEPS = {
    "rigbus.bus.store.store": [("Store", "commit")],
    "rigbus.bus.broker.broker": [("Broker", "answer")],
    "rigbus.bus.client.link": [("Connection", "send"), ("Connection", "recv"), ("Connection", "request")],
    "rigbus.bridge.folder.intake.journal": [("Journal", "enter"), ("Journal", "leave")],
    "rigbus.bridge.folder.share.port": [("FolderPort", "request")],
}


def role() -> str:
    """``broker``, ``brain``, ``bridge``, or the name of a worker."""
    words = sys.orig_argv
    if "--name" in words:
        return words[words.index("--name") + 1]
    at = words.index("-m") if "-m" in words else 0
    return words[at + 2] if words[at + 1 : at + 2] == ["rigbus"] and len(words) > at + 2 else ""


class Passages:
    """What this process has passed since a step was armed."""

    def __init__(self) -> None:
        self.role = role()
        self._armed, self._counts = "", Counter[str]()

    def pass_by(self, step: str) -> None:
        """A step; it may be the last."""
        try:
            with open(os.path.join(FOLDER, "armed"), encoding="utf-8") as file:
                armed = file.read()
        except FileNotFoundError:
            return
        if armed != self._armed:
            self._armed, self._counts = armed, Counter()
        self._counts[step] += 1
        who, what, nth = armed.split("\t")
        if step == what and self._counts[step] == int(nth) and self.role.startswith(who):
            try:
                died = os.open(os.path.join(FOLDER, "died"), os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
            except FileExistsError:
                return
            os.write(died, str(os.getpid()).encode())
            os.kill(os.getpid(), signal.SIGKILL)


def watched(real: Callable[..., Any], name: str, passages: Passages) -> Callable[..., Any]:
    """The method, with a step before it and one behind it."""

    @functools.wraps(real)
    def method(self: Any, *given: Any, **named: Any) -> Any:
        verb = getattr(given[0], "value", "") if name in ("send", "request") and given else ""
        if name != "recv":
            passages.pass_by(f"before {name} {verb}".strip())
        out = real(self, *given, **named)
        verb = getattr(getattr(out, "verb", None), "value", "") if name == "recv" else verb
        if name != "recv" or out is not None:
            passages.pass_by(f"after {name} {verb}".strip())
        return out

    return method


class Finder(importlib.abc.MetaPathFinder):
    """Patches a module of :data:`STEPS` when it has been loaded."""

    def __init__(self, passages: Passages) -> None:
        self._passages = passages

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if fullname not in STEPS:
            return None
        spec = None
        for finder in sys.meta_path:
            if finder is not self and (spec := finder.find_spec(fullname, path, target)) is not None:
                break
        if spec is None or spec.loader is None:
            return spec
        load = spec.loader.exec_module

        def exec_module(module: ModuleType) -> None:
            load(module)
            for cls, method in STEPS[fullname]:
                kind = getattr(module, cls)
                setattr(kind, method, watched(getattr(kind, method), method, self._passages))

        spec.loader.exec_module = exec_module  # type: ignore[method-assign]
        return spec


if FOLDER and role():
    sys.meta_path.insert(0, Finder(Passages()))
