"""The client of the bus: submit tasks, hear how they end, call a handler, follow events.

    with Client() as bus:
        value = bus.call("shout", {"text": "hi"}, timeout_s=5)

Synchronous and of one thread: open one client in each thread. What it asks may be asked again without harm, so every
question is repeated over a restart of the broker until its time is over (PROTOCOL §8).
"""

from __future__ import annotations

import os
import time
import uuid
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import zmq

from ..errors import Busy, Conflict, NotFound, RigbusError, TaskFailed, Unreachable, WaitTimeout
from ..wire import Envelope, Verb
from .follow import Event, EventStream
from .hearing import PATIENCE_S, Listener, Waiter, log, some
from .work import Item, Progress, Result, Task, build, decode_chunk, messages

__all__ = ["Client", "Event", "EventStream", "Progress", "Result", "Submitted", "Task"]

_PROGRESS_KEPT: Final = 10_000


class Submitted(list[str]):
    """The ids of the tasks, in the order in which they were given; ``batch`` is the id of their batch."""

    batch: str = ""


class Client(Listener):
    """A session with the rig.

    Args:
        endpoint: the broker's ``commands`` endpoint; None finds the rig as the command line does.
        state: the rig's state folder, when it is not the default.
        parent: ``{"id", "token", "key", "batch"}`` of the task whose handler uses this client: what it submits are
            children of that task, and a rerun of the handler gets the answers that are recorded.
        on_wait: called with True when a blocking wait begins and with False when it ends (a worker lends the slot).
            What it raises ends the wait.
        stop: asked a few times a second during such a wait; when it says True the wait ends with TaskFailed.
        ctx: a zmq context to share.
        timeout_s: how long to look for the broker.

    Raises:
        Unreachable: no broker answers.
        ConfigError: the rig's folders are unusable.
    """

    def __init__(
        self,
        endpoint: str | None = None,
        state: Path | str | None = None,
        *,
        parent: Mapping[str, Any] | None = None,
        on_wait: Callable[[bool], None] | None = None,
        stop: Callable[[], bool] | None = None,
        ctx: zmq.Context[zmq.Socket[bytes]] | None = None,
        timeout_s: float = 5.0,
        name: str | None = None,
    ) -> None:
        super().__init__(endpoint, state, on_wait=on_wait, stop=stop, ctx=ctx, timeout_s=timeout_s, name=name)
        self._parent = dict(parent) if parent is not None else None
        self._calls = 0
        self._streams: list[EventStream] = []

    # --- the session --------------------------------------------------------------------------------------

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def close(self) -> None:
        """End the session: tasks submitted with ``orphan="cancel"`` that still run are cancelled. Safe twice."""
        for stream in list(self._streams):
            stream.close()
        self._link.close()

    # --- submitting ---------------------------------------------------------------------------------------

    def submit(
        self,
        tasks: Iterable[Task],
        *,
        batch: str | None = None,
        orphan: str = "keep",
        mirror: bool = False,
        name: str = "",
        priority: int | None = None,
        keep_open: bool = False,
        timeout_s: float = 60.0,
    ) -> Submitted:
        """Submit tasks as one batch; when this returns they are on stable storage. Any number of them.

        Args:
            batch: an id of an open batch, to join it, or a key of your own: the same key (and the same task keys) is
                the same batch, however often it is submitted. None: a new batch.
            orphan: ``"cancel"`` ends the tasks with this session (6 s after the client last waited, asked or called
                :meth:`tend`), ``"keep"`` lets them go on.
            mirror: show each task in the shared folder.
            keep_open: more tasks will join; a last submit without it closes the batch.

        Raises:
            DefinitionError: a task can never run as it is written; nothing of its message was accepted.
            Conflict: a key is known with another content.
            Busy: a bound of the rig was reached all the time.
            Unreachable, Refused, NotFound, LeaseLost: see :mod:`.errors`.
        """
        given = list(tasks)
        if self._parent is not None and batch is None:
            return self._submit_children(given, timeout_s)
        head: dict[str, Any] = {"kind": "client", "name": name, "orphan": orphan}
        auto_key = ""
        if batch is None:
            head["key"] = str(uuid.uuid4())
        elif _is_batch_id(batch):
            head["id"] = batch
            # Numbers alone would be the keys of an earlier submit into this batch.
            auto_key = os.urandom(6).hex() + "-"
        else:
            head["key"] = batch
        if priority is not None:
            head["priority"] = priority
        if mirror:
            head["mirror"] = True
        items = build(given, auto_key=auto_key, orphan=orphan)
        return self._send_items(head, given, items, keep_open=keep_open, timeout_s=timeout_s)

    def _submit_children(self, given: list[Task], timeout_s: float) -> Submitted:
        items = build(given, parent=self._parent, first=self._calls + 1)
        self._calls += len(given)
        head = {"id": (self._parent or {}).get("batch", ""), "kind": "client"}
        try:
            return self._send_items(head, given, items, keep_open=True, timeout_s=timeout_s)
        except Conflict as e:
            raise Conflict(
                f"{e}: this handler is non-deterministic: an earlier attempt made another call at this place. Make the "
                "same calls in the same order with the same payloads, or give such tasks a key of their own"
            ) from None

    def _send_items(
        self,
        head: dict[str, Any],
        given: Sequence[Task],
        items: Sequence[Item],
        *,
        keep_open: bool,
        timeout_s: float,
    ) -> Submitted:
        deadline = time.monotonic() + timeout_s
        ids: dict[str, str] = {}
        batch = ""
        parts = messages(items) or [[]]
        for n, part in enumerate(parts):
            if batch:
                head = {**head, "id": batch}
            open_ = keep_open or n + 1 < len(parts)
            header = {"batch": {**head, "open": True} if open_ else head, "tasks": [i.spec for i in part]}
            try:
                answer = self._accepted(header, [i.payload for i in part], deadline)
            except RigbusError as e:
                if batch and not isinstance(e, Unreachable):
                    # Half a batch is nobody's wish: what was accepted of it ends now.
                    self._cancel_quietly(batch=batch, reason="the rest of its submit was refused")
                raise
            batch = str(answer["batch"])
            ids.update(zip((i.spec["key"] for i in part), answer["ids"], strict=True))
        out = Submitted(ids[item.spec["key"]] for item in items)
        out.batch = batch
        for task, id_ in zip(given, out, strict=True):
            task.id = id_
            self._tasks[id_] = task
        return out

    def _accepted(self, header: dict[str, Any], body: list[bytes], deadline: float) -> dict[str, Any]:
        """The header of ACCEPTED; waits while the broker is BUSY."""
        answer, before = self._patiently(Verb.SUBMIT, header, body, deadline)
        if before == self._link.generation:
            # This session hears their ends unasked; over a reconnect it has to ask.
            for id_, state in zip(answer["ids"], answer.get("states") or (), strict=False):
                if state in _LIVE:
                    self._expected[id_] = before
        return answer

    def _patiently(
        self, verb: Verb, header: dict[str, Any], body: list[bytes], deadline: float
    ) -> tuple[dict[str, Any], int]:
        """(the answer's header, the connection that was asked over); waits while the broker is BUSY."""
        while True:
            before = self._link.generation
            try:
                answer = self.request(verb, header, body, max(0.1, deadline - time.monotonic()))
                return answer.header, before
            except Busy as e:
                until = min(deadline, time.monotonic() + e.retry_after_s)
                if until >= deadline:
                    raise
                while (left := until - time.monotonic()) > 0:
                    self.tend(left)

    def submit_plan(
        self, plan: dict[str, Any], key: str, priority: int | None = None, *, timeout_s: float = 60.0
    ) -> str:
        """Hand a staged plan to the brain (PROTOCOL §5, ``plan``); the id of its batch. The same key is the same run."""
        head: dict[str, Any] = {
            "key": key,
            "kind": "plan",
            "name": str(plan.get("name", "plan")),
            "plan": plan,
        }
        if priority is not None:
            head["priority"] = priority
        answer = self._accepted({"batch": head, "tasks": []}, [], time.monotonic() + timeout_s)
        return str(answer["batch"])

    def revise(
        self,
        batch: str,
        plan: dict[str, Any],
        key: str | None = None,
        *,
        reason: str = "",
        priority: int | None = None,
        timeout_s: float = 60.0,
    ) -> dict[str, Any]:
        """Give a plan's batch a new copy of its plan, staged as for :meth:`submit_plan`: ``{batch, revision, state}``.

        What is done stays done; all else becomes what the new plan says, and a batch that has ended goes on. With ``key``
        of the sender's own the same question again is the same revision; None: one is made for this call.

        Raises:
            NotFound: no such batch.  Refused: not a plan's batch, or another plan's.  Conflict: the key was of another plan.
            Busy: a bound of the rig was reached all the time.  DefinitionError, Unreachable: see :mod:`.errors`.
        """
        header: dict[str, Any] = {
            "batch": batch,
            "key": key or str(uuid.uuid4()),
            "plan": plan,
            "reason": reason,
        }
        if priority is not None:
            header["priority"] = priority
        return self._patiently(Verb.REVISE, header, [], time.monotonic() + timeout_s)[0]

    # --- results ------------------------------------------------------------------------------------------

    def results(self, ids: Iterable[str], timeout_s: float | None = None) -> Iterator[Result]:
        """Each task's :class:`Result`, in the order in which they end. Survives a restart of the broker.

        Raises:
            WaitTimeout: some have not ended within ``timeout_s`` seconds; ``.ids`` has them.
            NotFound: the broker knows no such task.
            Unreachable: no broker for :data:`PATIENCE_S` seconds.
        """
        deadline = None if timeout_s is None else time.monotonic() + timeout_s
        return self._results(dict.fromkeys(ids), deadline, timeout_s)

    def _results(
        self, left: dict[str, None], deadline: float | None, timeout_s: float | None
    ) -> Iterator[Result]:
        total = len(left)
        queue = self._watch(left)
        waiter = Waiter(self._on_wait)
        asked = -1
        try:
            while left:
                self.tend()
                while queue:
                    envelope = queue.popleft()
                    id_ = str(envelope.header["id"])
                    if id_ in left:
                        del left[id_]
                        self._unwatch(id_, queue)
                        waiter.end()
                        yield self._result(envelope, deadline)
                if not left:
                    break
                if deadline is not None and time.monotonic() >= deadline:
                    raise _too_late(list(left), total, timeout_s or 0.0)
                waiter.begin()
                if self._link.ready and asked != self._link.generation:
                    asked = self._link.generation
                    self._ask_wait([i for i in left if self._expected.get(i) != asked], deadline)
                else:
                    self._wait(deadline, waiter.since)
        finally:
            waiter.end()
            for id_ in left:
                self._unwatch(id_, queue)
            for envelope in queue:
                self._keep(str(envelope.header["id"]), envelope)

    # --- calls --------------------------------------------------------------------------------------------

    def call(self, type: str, payload: Any = None, *, timeout_s: float | None = 60.0, **options: Any) -> Any:
        """Have one task done and return its value. ``options`` are fields of :class:`Task`.

        When the wait ends first (or Ctrl-C comes), the task is cancelled, unless ``orphan="keep"`` is given.

        Raises:
            TaskFailed: it ended badly.  WaitTimeout: it has not ended in time.
        """
        task = Task(type=type, payload=payload, **options)
        id_ = self._start(task, timeout_s)
        try:
            for result in self.results([id_], timeout_s):
                return _value_of(result, type)
        except (KeyboardInterrupt, WaitTimeout):
            self._give_up(task)
            raise
        raise NotFound(f"task {id_} did not end")

    def stream(
        self,
        type: str,
        payload: Any = None,
        *,
        timeout_s: float | None = 60.0,
        **options: Any,
    ) -> Iterator[Progress | Result]:
        """As :meth:`call`, but yields its :class:`Progress` as it comes and its :class:`Result` at the end.

        A caller that stops early cancels the task, unless ``orphan="keep"``. ``timeout_s`` is for all of it.
        """
        task = Task(type=type, payload=payload, **options)
        id_ = self._start(task, timeout_s)
        deadline = None if timeout_s is None else time.monotonic() + timeout_s
        news = self._progress.setdefault(id_, deque(maxlen=_PROGRESS_KEPT))
        ended = self._watch([id_])
        waiter = Waiter(self._on_wait)
        asked = -1
        done = False
        try:
            while not done:
                self.tend()
                while news:
                    waiter.end()
                    yield _progress(news.popleft())
                if ended:
                    waiter.end()
                    done = True
                    yield self._result(ended[0], deadline)
                    continue
                if deadline is not None and time.monotonic() >= deadline:
                    raise _too_late([id_], 1, timeout_s or 0.0)
                waiter.begin()
                if self._link.ready and asked != self._link.generation:
                    asked = self._link.generation
                    self._ask_wait([id_] if self._expected.get(id_) != asked else [], deadline)
                else:
                    self._wait(deadline, waiter.since)
        except (KeyboardInterrupt, GeneratorExit, WaitTimeout):
            if not done:
                self._give_up(task)
            raise
        finally:
            waiter.end()
            self._progress.pop(id_, None)
            self._unwatch(id_, ended)

    def _start(self, task: Task, timeout_s: float | None) -> str:
        """Submit one call: a child of the handler's task, or a task of this session's batch of calls."""
        limit_s = PATIENCE_S if timeout_s is None else timeout_s
        if self._parent is not None:
            return self._submit_children([task], limit_s)[0]
        self._calls += 1
        if task.key is None:
            task.key = f"{self._calls}"
        if task.orphan is None:
            task.orphan = "cancel"
        head = {"key": f"calls:{self.session}", "kind": "calls", "name": "calls"}
        try:
            return self._send_items(head, [task], build([task]), keep_open=True, timeout_s=limit_s)[0]
        except KeyboardInterrupt:
            self._take_back(head, task)
            raise

    def _take_back(self, head: dict[str, Any], task: Task) -> None:
        """End a call whose submit was interrupted: it may have been accepted, and asked again the broker says as what."""
        try:
            self._send_items(head, [task], build([task]), keep_open=True, timeout_s=2.0)
        except RigbusError as e:
            log.info("the call %s: %s; if it was accepted, it ends with this session", task.key, e)
            return
        self._give_up(task)

    def _give_up(self, task: Task) -> None:
        # A handler's child ends with its parent: cancelling it here would record CANCELLED for the parent's rerun.
        if self._parent is None and task.orphan == "cancel":
            self._cancel_quietly(ids=[task.id], reason="its caller stopped waiting")

    def _cancel_quietly(self, *, ids: list[str] | None = None, batch: str | None = None, reason: str) -> None:
        try:
            self.request(Verb.CANCEL, _named(ids, batch, reason=reason), (), 2.0)
        except RigbusError as e:
            log.info("could not cancel %s: %s; it ends with this session", batch or ids, e)

    # --- operating ----------------------------------------------------------------------------------------

    def cancel(
        self,
        ids: Iterable[str] | None = None,
        batch: str | None = None,
        reason: str = "",
        timeout_s: float = 30.0,
    ) -> dict[str, Any]:
        """Cancel tasks or a whole batch: ``{cancelled, ending, already}`` (counts). Running ones follow when dead."""
        return dict(self.request(Verb.CANCEL, _named(ids, batch, reason=reason), (), timeout_s).header)

    def requeue(
        self, ids: Iterable[str] | None = None, batch: str | None = None, timeout_s: float = 30.0
    ) -> dict[str, Any]:
        """Run dead, expired or cancelled tasks again: ``{requeued, revived}``, the latter what they had skipped."""
        return dict(self.request(Verb.REQUEUE, _named(ids, batch), (), timeout_s).header)

    def query(self, what: str, timeout_s: float = 30.0, **fields: Any) -> dict[str, Any]:
        """QUERY (PROTOCOL §6): ``status``, ``batches``, ``task`` …; body frames come as the list ``body``."""
        answer = self.request(Verb.QUERY, {"what": what, **fields}, (), timeout_s)
        return {**answer.header, "body": list(answer.body)} if answer.body else dict(answer.header)

    def control(self, action: str, worker: str = "all", timeout_s: float = 30.0) -> dict[str, Any]:
        """``pause`` or ``resume`` a worker or ``"all"``; a pause outlives restarts. ``stop`` ends the rig."""
        return dict(self.request(Verb.CONTROL, {"action": action, "worker": worker}, (), timeout_s).header)

    def drain(self, worker: str = "all", timeout_s: float = 30.0) -> dict[str, Any]:
        """No new work for a worker until ``resume``; what runs there finishes."""
        return dict(self.request(Verb.DRAIN, {"worker": worker}, (), timeout_s).header)

    def events(self, patterns: Iterable[str] | str, since: int | None = None) -> EventStream:
        """Follow events whose topic matches a glob such as ``task.*.dead``: an iterator that also has ``poll()``.

        It sees everything after event number ``since`` (None: from now on). Where the log no longer reaches back, an
        event with the topic ``rig.resnapshot`` says so.
        """
        stream = EventStream(self, patterns, since, ctx=self._link.context)
        self._streams.append(stream)
        stream.on_close = lambda: self._streams.remove(stream) if stream in self._streams else None
        return stream


_LIVE: Final = frozenset({"waiting", "ready", "leased", "review", "failed"})


def _is_batch_id(text: str) -> bool:
    """``YYYYMMDD_HHMMSS_<6 hex>`` (DESIGN §5)."""
    day, _, rest = text.partition("_")
    clock, _, tail = rest.partition("_")
    digits = day.isdecimal() and clock.isdecimal() and len(day) == 8 and len(clock) == 6
    return digits and len(tail) == 6 and set(tail) <= set("0123456789abcdef")


def _named(ids: Iterable[str] | None, batch: str | None, **more: Any) -> dict[str, Any]:
    header = {k: v for k, v in more.items() if v}
    if ids is not None:
        header["ids"] = [ids] if isinstance(ids, str) else list(ids)
    if batch is not None:
        header["batch"] = batch
    return header


def _too_late(left: list[str], total: int, timeout_s: float) -> WaitTimeout:
    who = f"{len(left)} of {total} tasks have" if total > 1 else "it has"
    return WaitTimeout(
        f"{who} not ended after {timeout_s:g} s: {some(left)}; `rigbus why {left[0] if left else 'all'}` tells why",
        ids=left,
    )


def _progress(envelope: Envelope) -> Progress:
    h = envelope.header
    data = tuple(decode_chunk(part) for part in envelope.body)
    return Progress(
        str(h.get("id")), int(h.get("n") or 0), h.get("pct"), h.get("note"), data, int(h.get("attempt") or 1)
    )


def _value_of(result: Result, type_: str) -> Any:
    if result.ok:
        return result.value
    why = result.error or "no reason was given"
    raise TaskFailed(
        f"{type_} (task {result.id}) ended {result.state}: {why}",
        task_id=result.id,
        state=result.state,
        error_class=result.error_class,
    )
