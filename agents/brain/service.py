"""The brain process: follows the broker, does one piece of work at a time, forgets everything.

Kill it at any moment, start it anywhere: it takes a snapshot and goes on. It executes nothing and never touches the
share: a plan is read from its staged copy, a foreach's list is a recorded result.
"""

from __future__ import annotations

import logging
import os
import signal
import time
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import msgpack
import zmq

from ... import __version__
from ...bus.client.follow import Cursor, Event, event_of
from ...bus.client.link import Connection
from ...bus.errors import BadFrame, Busy, NotFound, Refused, RigbusError, Unreachable
from ...bus.lifeline import Alive, alive_fd
from ...bus.paths import RigPaths, find_rig, view_name
from ...bus.wire import Verb, unpack
from ...plans.errors import PlanInvalid
from ...plans.model import Plan
from ...plans.parser import parse_plan
from ...plans.stage import hash_beside_plan
from . import core, messages
from .catalogue import ModelFiles
from .doing import Doing
from .escalating import AFTER_S, Escalating
from .evaluating import NO_MODELS, Evaluating, Judging, judging_of
from .expanding import Expanding
from .inferring import Asking
from .placements import Placements, placing_of
from .placing import Placing
from .planning import Planning
from .revising import Revising

log = logging.getLogger(__name__)

_CACHED_PLANS: Final = 64
_PLACE: Final = core.PlaceModels()
_LOOK: Final = core.LookAtWorkers()
_REQUEST_S: Final = 30.0


class _Stop(BaseException):
    """SIGTERM or SIGINT."""


class Brain:
    """One brain on one rig. ``run`` returns the exit code."""

    def __init__(
        self,
        paths: RigPaths,
        endpoint: str,
        placing: Placing | None = None,
        judging: Judging = NO_MODELS,
        asking: Asking | None = None,
        files: ModelFiles | None = None,
        *,
        link: Connection | None = None,
        clock: Callable[[], float] = time.monotonic,
        workers_after_s: float = AFTER_S,
    ) -> None:
        """``link``: to be used instead of one to ``endpoint``. ``clock``: monotonic seconds. ``workers_after_s``: the
        setting of that name."""
        self.paths = paths
        self.alive = Alive(alive_fd())
        self.link = link or Connection(
            endpoint, role="brain", name="brain", build=__version__, on_wait=self.alive.say
        )
        self._clock = clock
        self.work: deque[core.Work] = deque()
        self.plans: dict[str, tuple[Plan, str]] = {}  #: by sha256, with the hash of the files beside it
        self.doing = Doing(self)
        self.placements = Placements(self, placing or Placing({}), files)
        self.expanding = Expanding(self, clock=clock)
        self.revising = Revising(self, self.expanding)
        self.planning = Planning(self, self.revising, asking, lambda: self.placements.catalogue)
        self.evaluating = Evaluating(self, judging)
        self.escalating = Escalating(self, workers_after_s)
        self.epoch = 0
        self._revision = 0  #: of the plan that the present work has read
        self._events: zmq.Socket[bytes] | None = None
        self._generation = 0
        self._cursor = Cursor(("a",), 0)

    # -- the loop --------------------------------------------------------------------------------------------

    def run(self) -> int:
        """Serve until SIGTERM, SIGINT or the supervisor's death."""
        wake = self._install_signals()
        lifeline = os.environ.get("RIGBUS_LIFELINE_FD")
        try:
            self._serve(wake, int(lifeline) if lifeline else None)
        except _Stop:
            log.info("asked to stop")
        finally:
            self.close()
        return 0

    def _serve(self, wake: int, lifeline: int | None) -> None:
        while True:
            self.alive.say()
            poller = zmq.Poller()
            poller.register(self.link.socket, self.link.interest)
            poller.register(wake, zmq.POLLIN)
            if self._events is not None:
                poller.register(self._events, zmq.POLLIN)
            if lifeline is not None:
                poller.register(lifeline, zmq.POLLIN)
            ready = dict(poller.poll(0 if self.work else 500))
            if lifeline is not None and lifeline in ready:
                return  # nothing is ever written there: the supervisor has ended
            try:
                self.turn()
            except (Unreachable, BadFrame) as e:
                log.info("the broker is away: %s", e)
                self.link.reconnect()

    def turn(self) -> None:
        """Hear what is new, take the seat if it is ours, do one piece of work."""
        self.link.tend()
        while (env := self.link.recv()) is not None:
            if env.verb is Verb.BYE:
                log.info("the broker ended this session: %s", env.header.get("reason"))
            elif env.verb is Verb.RENEWED:
                self._compare(env.header.get("epoch"))
        self.link.renew()
        if self.link.generation != self._generation:
            self._generation = self.link.generation
            self._seated()
        self._hear_events()
        if self.epoch and self.placements.due(self._clock()):
            self.work.appendleft(_PLACE)
        if self.epoch and not self.work and self.escalating.due(self._clock()):
            self.work.append(_LOOK)
        if self.work and self.epoch:
            self.do(self.work.popleft())

    def _compare(self, epoch: Any) -> None:
        """The broker says whether this brain acts: a WELCOME that was lost must not leave the seat empty."""
        heard = self.link.generation == self._generation
        if isinstance(epoch, int) and heard and epoch != self.epoch:
            log.info("the broker says epoch %d, this brain thought %d: HELLO again", epoch, self.epoch)
            self.link.reconnect()

    def _seated(self) -> None:
        """A WELCOME: with an epoch this brain acts, and begins with a snapshot; without one it waits."""
        welcome = self.link.welcome
        self._forget()
        if welcome.get("standby"):
            self.epoch = 0
            log.info("another brain is seated; this one waits for the epoch")
            return
        self.epoch = int(welcome.get("epoch") or 0)
        self._subscribe(str(welcome["events"]))
        self._snapshot()
        log.info("seated with epoch %d, %d things to do", self.epoch, len(self.work))

    def _forget(self) -> None:
        self.work.clear()
        self.doing.forget()
        self.expanding.clear()
        self.revising.clear()
        self.placements.forget()
        self.escalating.forget()

    def _subscribe(self, endpoint: str) -> None:
        if self._events is not None:
            self._events.close(0)
        events = self.link.context.socket(zmq.SUB)
        events.setsockopt(zmq.LINGER, 0)
        events.setsockopt(zmq.RCVHWM, 10_000)
        for topic in (b"a.", b"tick"):
            events.subscribe(topic)
        events.connect(endpoint)
        self._events = events

    def _snapshot(self) -> None:
        """What is due now; events after the first page's seq come on top."""
        seq, batches, rows = self._read_snapshot()
        self._cursor = Cursor(("a",), seq)
        self.work.extend(core.work_of_snapshot(batches, rows))

    def _read_snapshot(self) -> tuple[int, list[Any], list[Any]]:
        """(the first page's seq, batches, rows) of what the brain acts on, page by page."""
        cursor, first = None, None
        batches: list[Any] = []
        rows: list[Any] = []
        while True:
            page = self.link.request(
                Verb.SNAPSHOT, {"attn": True, "cursor": cursor}, timeout_s=_REQUEST_S
            ).header
            first = page["seq"] if first is None else first
            batches += page["batches"]
            rows += page["rows"]
            cursor = page["cursor"]
            if cursor is None:
                return first or 0, batches, rows

    def _hear_events(self) -> None:
        behind = False
        while self._events is not None:
            try:
                frames = self._events.recv_multipart(zmq.DONTWAIT)
            except zmq.Again:
                break
            try:
                value = unpack(frames[1])
            except (BadFrame, IndexError):
                continue
            if frames[0] == b"tick":
                behind = behind or self._cursor.behind(value.get("channels") or {})
                continue
            event = event_of(value)
            if not self._cursor.fresh(event):
                continue
            if self._cursor.see(event):
                behind = True
            else:
                self._take(event)
        if behind:
            self._catch_up()

    def _take(self, event: Event) -> None:
        self.work.extend(core.work_of_event(event.topic, event.id or "", event.batch or "", event.data))

    def _catch_up(self) -> None:
        """Events were missed: read them from the log; where that is trimmed, take a snapshot."""
        while True:
            answer = self.link.request(
                Verb.EVENTS, {"since": self._cursor.since, "channel": "a"}, timeout_s=_REQUEST_S
            )
            if answer.verb is Verb.RESNAPSHOT:
                self._forget()
                self._snapshot()
                return
            for row in answer.header["events"]:
                event = event_of(row)
                self._cursor.read(event)
                self._take(event)
            if not answer.header["more"]:
                self._cursor.caught_up(int(answer.header["last"]))
                return

    # -- work ------------------------------------------------------------------------------------------------

    def do(self, work: core.Work) -> None:
        """One piece of work; what cannot be done ends its batch with the reason, never this loop."""
        work_epoch = self.epoch
        try:
            self._act(work)
        except Busy as e:
            log.warning("the broker is full: %s; trying again in %.1f s", e, e.retry_after_s)
            self._pause(e.retry_after_s)
            self.work.append(work)  # behind the others: while a disk is full, verdicts still have a way
        except Unreachable:
            self.work.appendleft(work)
            raise
        except NotFound as e:
            log.info("left alone: %s", e)
        except Refused as e:
            if "epoch" not in str(e):
                log.warning("refused: %s", e)
                return
            log.info("not the seated brain any more: %s", e)
            self.epoch = 0
            if int(self.link.welcome.get("epoch") or 0) == work_epoch:
                self.link.reconnect()  # another brain took the seat: HELLO asks for it again
            else:
                self._generation = 0  # a WELCOME with a newer epoch came meanwhile: begin again with it

    def _act(self, work: core.Work) -> None:
        """Do it; or say that its batch fails, and why.

        Raises:
            Busy, Unreachable, NotFound, Refused: what the broker said to the work, or to its end.
        """
        self._revision = 0
        try:
            self.doing.begin(work)
            if not self._begin(work):
                self.doing.end(work)
            return
        except NotFound:
            self.doing.end(work)
            raise
        except (Busy, Unreachable, Refused):
            raise
        except (messages.Unplannable, RigbusError) as e:
            why = str(e)
        except (LookupError, TypeError, ValueError, AttributeError, RecursionError) as e:
            # a recorded value or row that no rule of ours foresaw: one batch may fail for it, not the brain of all
            log.exception("batch %s", work.batch)
            why = f"the brain cannot go on with it ({type(e).__name__}: {e!s:.200}); see brain.log, and submit it again"
        if not work.batch:
            log.warning("%s", why)
            return
        log.warning("batch %s fails: %s", work.batch, why)
        header: dict[str, Any] = {"fail": [{"batch": work.batch, "error": why}], "revision": self._revision}
        if raised := self.escalating.of_plan(work.batch, why):
            header["escalate"] = raised
        self.tell(header, None, work.batch)

    def _begin(self, work: core.Work) -> bool:
        """Do it, or a step of it; whether more steps of it follow."""
        if isinstance(work, core.PlanBatch):
            return self._plan(work)
        elif isinstance(work, core.ExpandTemplate):
            more = self.expanding.step(work)
            self.work.extend(more)
            return work in more
        elif isinstance(work, core.Unblock):
            self.work.extend(self.expanding.unblocked(work))
        elif isinstance(work, core.LookAgain):
            # only what nobody else starts: a dead task that stays so must not abort its batch once more
            _, batches, rows = self._read_snapshot()
            due = core.work_of_snapshot(batches, rows)
            self.work += [w for w in due if isinstance(w, core.ExpandTemplate) and w.batch == work.batch]
        elif isinstance(work, core.PlaceModels):
            self.placements.turn(self._clock())
        elif isinstance(work, core.LookAtWorkers):
            self.escalating.look(self._clock())
        elif isinstance(work, core.Judge):
            self.evaluating.step(work)
        else:
            self.check_end(work)
        return False

    def _plan(self, work: core.PlanBatch) -> bool:
        """Plan a batch, or a message of its new revision."""
        if self.planning.step(work.batch):
            self.work.append(work)
            return True
        if self._revision > 1:
            self.work.append(core.LookAgain(work.batch))  # lists that were recorded meanwhile
        return False

    def _pause(self, pause_s: float) -> None:
        """Wait for the broker's retry time, or for whatever it says meanwhile."""
        self.link.poll(min(pause_s, 1.0))

    def tell(
        self, header: dict[str, Any], message: messages.Message | None = None, batch: str | None = None
    ) -> dict[str, Any]:
        """One atomic BRAIN message; the broker's answer."""
        header = {"epoch": self.epoch, "upto_seq": self._cursor.since, **header}
        body: list[bytes] = []
        if batch is not None:
            header["batch"] = batch
        if message is not None:
            header["tasks"] = message.specs
            body = message.payloads
        declared = len(message.specs) if message is not None else 0
        over = any(name in header for name in ("close", "release", "fail"))
        facts = self.doing.riding(declared, over=over)
        if facts:
            header["facts"] = [*header.get("facts", ()), *facts]
        answer = self.link.request(Verb.BRAIN, header, body, timeout_s=_REQUEST_S).header
        self.doing.rode(facts, declared, over=over)
        return answer

    def write_facts(self, facts: list[dict[str, Any]]) -> None:
        """Facts alone, in a message of their own."""
        header = {"epoch": self.epoch, "upto_seq": self._cursor.since, "facts": facts}
        self.link.request(Verb.BRAIN, header, timeout_s=_REQUEST_S)

    def query(self, what: str, **more: Any) -> dict[str, Any]:
        """The header of QUERY's answer."""
        return self.link.request(Verb.QUERY, {"what": what, **more}, timeout_s=_REQUEST_S).header

    def submit(self, batch: dict[str, Any], specs: list[dict[str, Any]], payloads: list[bytes]) -> None:
        """SUBMIT of the brain's own tasks."""
        self.link.request(Verb.SUBMIT, {"batch": batch, "tasks": specs}, payloads, timeout_s=_REQUEST_S)

    def check_end(self, work: core.CheckAbort) -> None:
        """Apply a plan's `on_failure: abort`, and raise what is beyond the rig; both in one message."""
        rows = self.rows([work.task])
        if not rows or rows[0]["state"] != work.state or rows[0]["dropped"]:
            return
        header: dict[str, Any] = {}
        if core.aborts(rows[0].get("meta") or {}):
            reason = f"aborted: {work.key} ended {work.state}" + (
                f" ({rows[0]['error'][:500]})" if rows[0].get("error") else ""
            )
            header["cancel"] = [{"batch": work.batch, "reason": reason}]
        if raised := self.escalating.of_task(rows[0]):
            header["escalate"] = raised
            log.warning("batch %s: escalated: %s", work.batch, raised[0]["title"])
        if header:
            self.tell({**header, "revision": rows[0]["revision"]}, None, work.batch)

    # -- reading ---------------------------------------------------------------------------------------------

    def run_of(self, row: dict[str, Any]) -> tuple[messages.Run, Plan]:
        """The run and the parsed plan of a batch, from its staged copy, with the classes that were found for it.

        Raises:
            Unplannable: the staged copy is gone or invalid.
        """
        spec = row["spec"] or {}
        sha = str(spec.get("sha256"))
        staged = self.paths.staged / sha
        run = messages.Run(
            batch=row["id"],
            name=str(spec.get("name")),
            state_id=str(self.link.welcome["state_id"]),
            sha256=sha,
            staged=str(staged),
            original=str(spec.get("path")),
            view=str(self.paths.views / view_name(row["id"], row["revision"])),
            batch_path=f"{spec.get('batch_root')}/{row['id']}",
            config=spec.get("config") or {},
            priority=spec.get("priority"),
            revision=row["revision"],
        )
        self._revision = run.revision
        known = self.plans.get(sha)
        if known is None:
            known = self._parse(staged, run.name), self._files(staged)
            if len(self.plans) >= _CACHED_PLANS:
                del self.plans[next(iter(self.plans))]
            self.plans[sha] = known
        plan, run = known[0], replace(run, files=known[1])
        return run, self.planning.settled(plan, run.batch)

    @staticmethod
    def _files(staged: Path) -> str:
        try:
            return hash_beside_plan(staged)
        except OSError as e:
            raise messages.Unplannable(f"{e.filename}: {e.strerror}; submit the plan again") from None

    @staticmethod
    def _parse(staged: Path, name: str) -> Plan:
        try:
            text = (staged / "plan.md").read_bytes()
        except OSError as e:
            raise messages.Unplannable(f"{staged}/plan.md: {e.strerror}; submit the plan again") from None
        try:
            return parse_plan(text, file="plan.md", name=name)
        except PlanInvalid as e:
            raise messages.Unplannable("; ".join(map(str, e.faults))) from None

    def batch_row(self, batch_id: str) -> dict[str, Any]:
        """A batch as QUERY shows it.

        Raises:
            NotFound: it is gone.
        """
        return self.link.request(Verb.QUERY, {"what": "batch", "id": batch_id}, timeout_s=_REQUEST_S).header

    def rows(self, ids: list[str]) -> list[dict[str, Any]]:
        """Tasks as QUERY shows them, those that are gone left out."""
        answer = self.link.request(Verb.QUERY, {"what": "rows", "ids": ids}, timeout_s=_REQUEST_S)
        rows: list[dict[str, Any]] = answer.header["rows"]
        return rows

    def batch_rows(self, batch_id: str) -> list[dict[str, Any]]:
        """All tasks of a batch, without what is in the store only."""
        rows: list[dict[str, Any]] = []
        cursor = None
        while True:
            question = {"what": "tasks", "batch": batch_id, "cursor": cursor}
            page = self.link.request(Verb.QUERY, question, timeout_s=_REQUEST_S).header
            rows += page["rows"]
            cursor = page["cursor"]
            if cursor is None:
                return rows

    def workers(self) -> list[dict[str, Any]]:
        """The workers as QUERY shows them."""
        answer = self.link.request(Verb.QUERY, {"what": "workers"}, timeout_s=_REQUEST_S)
        found: list[dict[str, Any]] = answer.header["workers"]
        return found

    def value(self, task: str) -> Any:
        """A recorded result of our own workers, from its row or its file; the limits of the wire do not fit it.

        Raises:
            NotFound: the task is gone.  Unplannable: the file cannot be read.
        """
        answer = self.link.request(Verb.QUERY, {"what": "rows", "ids": [task]}, timeout_s=_REQUEST_S)
        if not answer.header["rows"]:
            raise NotFound(f"task {task} is gone")
        ref = answer.header["rows"][0].get("ref")
        if not ref:
            return _unpack(answer.body[0])
        path = self.paths.results / ref["sha256"][:2] / ref["sha256"]
        try:
            return _unpack(path.read_bytes())
        except OSError as e:
            raise messages.Unplannable(
                f"the recorded list {path} cannot be read: {e.strerror}; retry the task"
            ) from None

    # -- ending ----------------------------------------------------------------------------------------------

    def _install_signals(self) -> int:
        read, write = os.pipe()
        os.set_blocking(write, False)
        os.set_blocking(read, False)
        signal.set_wakeup_fd(write, warn_on_full_buffer=False)
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._on_signal)
        return read

    def _on_signal(self, number: int, _: Any) -> None:
        # Also out of a request to a broker that is gone: a brain may be cut off anywhere.
        raise _Stop

    def close(self) -> None:
        """End the session."""
        if self._events is not None:
            self._events.close(0)
            self._events = None
        self.link.close()


def _unpack(data: bytes) -> Any:
    """A recorded value.

    Raises:
        Unplannable: it is damaged.
    """
    try:
        return msgpack.unpackb(data, raw=False, strict_map_key=True, max_ext_len=0)
    except (ValueError, TypeError, msgpack.exceptions.UnpackException, RecursionError) as e:
        raise messages.Unplannable(f"a recorded list cannot be read ({e}); retry its task") from None


def main(state: Path | None = None, settings: Mapping[str, Any] | None = None) -> int:
    """One brain process; the exit code. ``settings``: as ``Settings.model_dump`` has them, for its models; None: no models."""
    rig = find_rig(state)
    started = time.monotonic()
    placing, files = placing_of(settings, rig.paths.state) if settings is not None else (Placing({}), None)
    judging = judging_of(placing.catalogue.values())
    wait_s = float(settings["brain"]["infer_wait_s"]) if settings is not None else 0.0
    asking = Asking(judging.expected, wait_s)
    after_s = float(settings["escalation"]["workers_after_s"]) if settings is not None else AFTER_S
    endpoint = rig.endpoints["commands"]
    code = Brain(rig.paths, endpoint, placing, judging, asking, files, workers_after_s=after_s).run()
    log.info("brain ended after %.1f s", time.monotonic() - started)
    return code
