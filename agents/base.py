"""The framework: subclass :class:`Agent`, mark methods with ``@handler`` and ``@on``, call ``main()``.

    class Shouter(Agent):
        @handler("shout")
        def shout(self, text: str, times: int = 1) -> dict:
            return {"text": text.upper() * times}

One agent object serves all its slots: ``self.task`` and ``self.bus`` are each handler's own, everything else that
handlers share is the agent's to guard.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import zmq

from ..bus.errors import ConfigError
from .context import Buses, TaskContext, current_task
from .handlers import Spec, events_of, handler, on, specs_of

if TYPE_CHECKING:
    from ..bus.client.client import Client
    from ..bus.client.follow import Event

__all__ = ["Agent", "agent_ref", "handler", "load_agent", "on"]


class Agent:
    """A process that runs tasks of its own types. One object a process; handlers run in threads beside the bus.

    Class attributes: ``slots`` handlers run at once (a handler that waits for the bus lends its slot); ``kill_grace_s`` is
    what a cancelled handler has to return; ``needs`` and ``pools`` it offers beside those of its handlers.
    """

    slots: ClassVar[int] = 1
    kill_grace_s: ClassVar[float] = 10.0
    needs: ClassVar[Sequence[str]] = ()
    pools: ClassVar[Sequence[str]] = ()

    _state: Path | None = None
    _endpoint: str | None = None
    _ctx: zmq.Context[zmq.Socket[bytes]] | None = None
    _buses: Buses | None = None

    # ------------------------------------------------------------ to override

    def on_start(self) -> None:
        """Called once before the first task (in an isolated child: before its one task). An exception ends it."""

    def on_stop(self) -> None:
        """Called once when the agent has drained; not when it is killed."""

    def offers(self) -> Sequence[str]:
        """The capabilities that it offers when it joins, after ``on_start``: ``needs``. For those known only then."""
        return self.needs

    # ------------------------------------------------------------ for handlers

    @property
    def task(self) -> TaskContext:
        """The attempt that this handler runs: ``.id .attempt .batch_id .cancelled .progress() .log()`` …

        Raises:
            RuntimeError: outside a handler.
        """
        return current_task()

    @property
    def bus(self) -> Client:
        """This thread's client. In a handler its calls are children of the task, answered from the record in a rerun.

        Raises:
            RuntimeError: the agent is not connected to a rig.
        """
        if self._buses is None:
            raise RuntimeError(
                "self.bus exists only in an agent that runs; start it with main() or in a test's rig"
            )
        return self._buses.get()

    # ------------------------------------------------------------ starting

    @classmethod
    def specs(cls) -> dict[str, Spec]:
        """The handlers by task type.

        Raises:
            TypeError: a signature cannot be a schema, or two methods serve one type.
        """
        return specs_of(cls)

    @classmethod
    def subscriptions(cls) -> dict[str, tuple[str, ...]]:
        """The ``@on`` methods and their topics."""
        return events_of(cls)

    def join_rig(self, rig: Mapping[str, Any], ctx: zmq.Context[zmq.Socket[bytes]] | None = None) -> None:
        """Say where the rig is: ``{"endpoint", "state"}``. The worker does it before ``on_start``."""
        self._endpoint = rig.get("endpoint")
        state = rig.get("state")
        self._state = Path(state) if state else None
        self._ctx = ctx
        self._buses = Buses(self._open_client)

    def _open_client(self, task: TaskContext | None) -> Client:
        from ..bus.client.client import Client

        if task is None:
            return Client(self._endpoint, self._state, ctx=self._ctx)
        parent = {"id": task.id, "token": task.token, "key": task.key, "batch": task.batch_id}
        return Client(
            self._endpoint,
            self._state,
            ctx=self._ctx,
            parent=parent,
            on_wait=task.waiting,
            stop=lambda: task.cancelled,
        )

    @classmethod
    def main(cls, argv: Sequence[str] | None = None) -> None:
        """Run this agent as a process until it is stopped: ``--state DIR --name NAME --slots N --thermal W:C:H``.

        Without ``--thermal`` its cards have the limits of ``[thermal]`` in the configuration. Never returns.
        """
        from .worker.parent import run_alone

        sys.exit(run_alone(agent_ref(cls), argv, program=Path(sys.argv[0]).name or cls.__name__))


def event_methods(agent: Agent) -> list[tuple[tuple[str, ...], Any]]:
    """Topics and bound method of each ``@on``."""
    return [(patterns, getattr(agent, name)) for name, patterns in agent.subscriptions().items()]


def dispatch(methods: list[tuple[tuple[str, ...], Any]], event: Event) -> list[Any]:
    """The methods that want this event."""
    from ..bus.client.follow import topic_filter

    return [method for patterns, method in methods if topic_filter(patterns)(event.topic)]


def agent_ref(cls: type) -> str:
    """How another process finds this class: ``package.module:Name``, else ``/path/file.py:Qualified.Name``.

    Raises:
        ConfigError: it is local to a function, or was not read from a file.
    """
    if "<locals>" in cls.__qualname__:
        raise ConfigError(
            f"{cls.__qualname__} is local to a function, so no other process can find it; move it to a module's top"
        )
    if _package_root(cls) is not None:
        return f"{cls.__module__}:{cls.__qualname__}"
    file = getattr(sys.modules.get(cls.__module__), "__file__", None)
    if file is None:
        raise ConfigError(f"{cls.__qualname__} was not read from a file; write it into one")
    return f"{Path(file).resolve()}:{cls.__qualname__}"


def agent_path(cls: type) -> dict[str, str]:
    """What another process needs in its environment to import the class's package, if it has one."""
    root = _package_root(cls)
    if root is None or cls.__module__.startswith("rigbus."):
        return {}
    known = os.environ.get("PYTHONPATH")
    return {"PYTHONPATH": os.pathsep.join([root, known] if known else [root])}


def _package_root(cls: type) -> str | None:
    """The folder that holds the class's top package; None for a module without one (pytest names tests as it likes)."""
    top = sys.modules.get(cls.__module__.partition(".")[0])
    if "." not in cls.__module__ or not getattr(top, "__file__", None):
        return None
    return str(Path(str(getattr(top, "__file__", ""))).resolve().parent.parent)


def load_agent(ref: str) -> type[Agent]:
    """The class of ``module:Class`` or ``path/file.py:Class``.

    Raises:
        ConfigError: no such file, module or class, or it is no Agent; the message has the fix.
    """
    where, _, name = ref.rpartition(":")
    if not where or not name:
        raise ConfigError(f"--agent {ref!r}: write module:Class or path/file.py:Class")
    try:
        module = _load_file(Path(where)) if where.endswith(".py") else _import(where)
        found: Any = module
        for part in name.split("."):
            found = getattr(found, part)
    except (ImportError, OSError) as e:
        raise ConfigError(
            f"--agent {ref}: {where} cannot be loaded ({e}); correct the name or the path"
        ) from e
    except AttributeError:
        raise ConfigError(f"--agent {ref}: {where} has no {name}; correct the class's name") from None
    if not (isinstance(found, type) and issubclass(found, Agent)):
        raise ConfigError(f"--agent {ref}: {name} is no subclass of rigbus.Agent")
    return found


def _import(name: str) -> Any:
    here = os.getcwd()
    if here not in sys.path:
        sys.path.insert(0, here)  # as `python -m` would: the agent's module lies where the user stands
    return importlib.import_module(name)


def _load_file(path: Path) -> Any:
    file = path.resolve()
    name = f"rigbus_agent_{file.stem}"
    loaded = sys.modules.get(name)
    if loaded is not None and getattr(loaded, "__file__", None) == str(file):
        return loaded
    folder = str(file.parent)
    if folder not in sys.path:
        sys.path.insert(0, folder)  # as `python file.py` would
    spec = importlib.util.spec_from_file_location(name, file)
    if spec is None or spec.loader is None:
        raise ImportError(f"{file} is no Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module
