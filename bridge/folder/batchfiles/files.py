"""The door for OpenAI Batch files: ``inbox/NAME.jsonl`` becomes one batch, its results come to stand beside it.

A file is read once, in slices, into the spool; from then on it runs from there, whatever becomes of the file. The intake
lists the inbox, and tells what it saw.
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from typing import Final, Literal

from ....bus.errors import NotFound, RigbusError
from ....bus.paths import RigPaths
from ....bus.tags import MODEL
from ....bus.wire import Verb
from ...batchfile import names
from ...batchfile.lines import Line, Splitter
from ...batchfile.names import Due, Settling, Unusable, Watch, looks_of, results_of
from ...batchfile.requests import BadLine, Reader
from ..contract.receipts import Invalid, Problem, Receipt, receipt_stem
from ..intake import core
from ..intake.moves import KIND, Later
from ..intake.taking import INBOX, Taker
from ..loop.clock import Clock
from ..loop.flows import Flow, Flows, Idle, ShareAway, ask, share
from ..share.ops import Entry, read, shown, stat, unlink
from ..share.port import FolderPort
from .run import WINDOW, BatchRun
from .shown import Shown
from .spool import Run, Spool, Taking

log = logging.getLogger(__name__)

NAME: Final = "batch files"
SLICE_BYTES: Final = 256 << 10  #: parsed in one go: some 30 ms, and the bridge has more to do
LARGE_BYTES: Final = 1 << 20
READ_S: Final = 10.0
AGAIN_S: Final = 2.0
FAULT_S: Final = 60.0
MAX_ACTIVE: Final = 8  #: files that are read or run at once; further ones wait
MAX_TOLD: Final = 100  #: of those that wait, so many are told so
MAX_BAD: Final = 100_000  #: unusable lines; with more it is no batch file
SHOWN_PROBLEMS: Final = 20
_FIX: Final = 'a line is {"custom_id": "…", "method": "POST", "url": "/v1/chat/completions", "body": {…}}'


class _Changed(Exception):
    """The file is another one than was seen."""


@dataclass
class _Read:
    """What the reading of a file found."""

    name: str
    reader: Reader
    lines: int = 0
    problems: list[BadLine] = field(default_factory=list)


class BatchFiles:
    """See the module. ``models``: names that the rig's configuration has; ``window``: see `run`."""

    def __init__(
        self,
        port: FolderPort,
        flows: Flows,
        taker: Taker,
        paths: RigPaths,
        clock: Clock,
        *,
        settle_s: float,
        models: Collection[str] = (),
        window: int = WINDOW,
    ) -> None:
        self._port, self._flows, self._taker, self._clock = port, flows, taker, clock
        self._settle_s, self._models = settle_s, frozenset(models)
        self._window = window
        self._spool = Spool(paths.state / "doors/batches")
        self._looks: dict[str, names.Look] | None = None
        self._watch = Watch()
        self._runs: dict[str, Run] = {}  #: by name: what runs, or was answered and still lies there
        self._active: set[str] = set()
        self._waiting: set[str] = set()  #: told that they are not begun yet
        self._opened = False

    def told(self, entries: Sequence[Entry]) -> None:
        """What lies in the inbox (its top level)."""
        self._looks = looks_of((e.path, e.type, e.size, e.mtime_ns, e.inode) for e in entries)
        self._flows.poke(NAME)

    def run(self) -> Flow[None]:
        """Take in what is due, and go on with what was; for ever."""
        while True:
            wait: float | None = None
            try:
                if not self._opened:
                    self._open()
                if self._port.state.available and self._looks is not None:
                    wait = yield from self._look(self._looks)
            except ShareAway as e:
                log.warning("batch files wait: %s", e)
                wait = AGAIN_S
            except OSError as e:
                log.warning("batch files wait: the state folder refuses: %s; make room there", e)
                wait = AGAIN_S
            yield Idle(wait)

    def _open(self) -> None:
        for run in sorted(self._spool.open(), key=lambda run: run.phase != "done"):
            if (before := self._runs.get(run.name)) is not None:
                self._spool.forget(before)  # a bridge was killed when the next content had been accepted
            self._runs[run.name] = run
        self._watch = self._watch.handled({name: run.look for name, run in self._runs.items()})
        for run in self._runs.values():
            if run.phase != "done":
                self._start(run)
        self._opened = True

    def _look(self, looks: dict[str, names.Look]) -> Flow[float | None]:
        for name in [n for n, run in self._runs.items() if run.phase == "done" and n not in looks]:
            self._spool.forget(self._runs.pop(name))
        self._watch, decisions, wait = names.step(self._watch, looks, self._clock.now(), self._settle_s)
        undone = dict.fromkeys(decision.name for decision in decisions)
        try:
            for decision in decisions:
                if (yield from self._decide(decision)):
                    del undone[decision.name]
        finally:
            self._watch = self._watch.again(undone)
        return AGAIN_S if undone else wait

    def _decide(self, decision: names.Decision) -> Flow[bool]:
        """False: not now."""
        name = decision.name
        if isinstance(decision, Settling):
            note = f"it starts when it has not changed for {self._settle_s:g} s; put an empty file "
            yield from self._tell(
                name, "settling", f"{note}{shown(name)}{names.READY} beside it to start at once"
            )
            return True
        if isinstance(decision, Unusable):
            problem = Problem(decision.what, f"{INBOX}/{shown(name)}", decision.fix)
            yield from self._taker.refuse(name, (problem,))
            return True
        if name in self._active:
            run = self._runs.get(name)
            if run is None or run.look != decision.look:
                return False  # another content: after this one
            yield from self._take_ready_away(decision)
            return True
        if len(self._active) >= MAX_ACTIVE:
            if name not in self._waiting and len(self._waiting) < MAX_TOLD:
                self._waiting.add(name)
                yield from self._tell(
                    name, "waiting", f"{MAX_ACTIVE} other files run; it is the turn of this one then"
                )
            return False
        self._waiting.discard(name)
        self._active.add(name)
        self._flows.start(f"reading of {shown(name)}", self._take(decision))
        return True

    # -- one file --------------------------------------------------------------------------------------------

    def _take(self, due: Due) -> Flow[None]:
        """From the inbox to a run, or a refusal."""
        name = due.name
        run: Run | None = None
        note = ""
        try:
            run = yield from self._read(due)
        except _Changed:
            note = "it changed while it was read; it starts when it stays as it is"
        except ShareAway as e:
            log.warning("%s waits: %s", shown(name), e)
            yield Idle(AGAIN_S)
            self._watch = self._watch.again([name])
        except Later as e:
            note = e.note
        except OSError as e:
            note = f"the rig's own disk refuses ({e.strerror or e})"
        except RigbusError as e:
            note = f"the broker: {e}"
        except Invalid as e:
            yield from self._refuse(name, e.problems)
        except Exception:
            log.exception("%s is refused because of a fault in rigbus", shown(name))
            fix = "see bridge.log in the rig's log folder, and report it"
            where = f"{INBOX}/{shown(name)}"
            yield from self._refuse(name, (Problem("rigbus itself failed on it", where, fix),))
        finally:
            self._active.discard(name)
        if note:
            log.info("%s waits: %s", shown(name), note)
            yield from self._tell_safely(name, note)
            yield Idle(AGAIN_S)
            self._watch = self._watch.again([name])
        if run is not None:
            self._start(run)
        self._flows.poke(NAME)

    def _start(self, run: Run) -> None:
        self._runs[run.name] = run
        self._active.add(run.name)
        show = Shown(self._spool, self._clock)
        made = BatchRun(run, self._spool, show, self._clock, window=self._window)
        self._flows.start(f"batch file {shown(run.name)}", self._to_its_end(run, made))

    def _to_its_end(self, run: Run, made: BatchRun) -> Flow[None]:
        """Whatever fails: a fault of ours must not leave what was accepted without an end until the next restart."""
        while True:
            try:
                yield from made.go()
                break
            except Exception:
                log.exception("%s stopped by a fault in rigbus; please report this", shown(run.name))
                yield Idle(FAULT_S)
        self._active.discard(run.name)
        self._flows.poke(NAME)

    def _read(self, due: Due) -> Flow[Run | None]:
        """Read it into the spool; None where there is nothing to do: it was answered, or has gone.

        Raises:
            Invalid, Later, ShareAway, OSError.  _Changed: it is being written.
        """
        priority = yield from self._priority(due)
        models = yield from self._known_models()
        found = _Read(due.name, Reader(models))
        if due.look[1] > LARGE_BYTES:  # it takes a while: nobody should think that it was not seen
            yield from self._tell(due.name, "waiting", f"it is being read ({due.look[1]:,} bytes)")
        taking = self._spool.take(due.name)
        accepted = False
        try:
            if not (yield from self._read_lines(due, taking, found)):
                return None
            sha256 = taking.end()
            if found.reader.requests == 0:
                raise Invalid(*_problems(found))
            reader, before = found.reader, self._runs.get(due.name)
            run = Run(due.name, sha256, due.look, found.lines, reader.requests, reader.bad, priority)
            if before is not None and before.id == run.id and (yield from self._stands(before)):
                before.look = due.look
                self._spool.save(before)
                yield from self._take_ready_away(due)
                yield from Shown(self._spool, self._clock).say_again(before)
                return None
            over = before is None and (yield from self._was_answered(run))
            self._spool.accept(taking, run)
            accepted = True
            self._runs[run.name] = run
            yield from self._take_ready_away(due)
            if over:
                self._spool.close(run)
                return None
            if before is not None and before.id != run.id:
                self._spool.forget(before)
            return run
        finally:
            if not accepted:
                taking.drop()

    def _read_lines(self, due: Due, taking: Taking, found: _Read) -> Flow[bool]:
        """False: the file has gone."""
        splitter, path, size = Splitter(), f"{INBOX}/{due.name}", due.look[1]
        while taking.offset < size:
            (result,) = yield from share(KIND, [read(path, SLICE_BYTES, taking.offset)], READ_S)
            if not result["ok"]:
                if result["errno"] == "ENOENT":
                    return False
                if result["errno"] in ("EACCES", "EPERM"):
                    # Its look stays as it is with that: only READY says that it is to be read again.
                    fix = f"chmod g+r {shown(due.name)}, then touch {shown(due.name)}{names.READY}"
                    raise Invalid(Problem(str(result["what"]), path, fix))
                raise Later(str(result["what"]))
            if (result["size"], result["mtime_ns"], result["inode"]) != due.look[1:] or not result["data"]:
                raise _Changed
            data = result["data"]
            self._put(taking, found, data, splitter.feed(data))
        self._put(taking, found, b"", splitter.end())
        return True

    def _put(self, taking: Taking, found: _Read, data: bytes, lines: Sequence[Line]) -> None:
        what = [one for line in lines if (one := found.reader.read(line)) is not None]
        taking.put(data, what)
        found.lines = lines[-1].number if lines else found.lines
        if len(found.problems) < SHOWN_PROBLEMS:
            found.problems += [one for one in what if isinstance(one, BadLine)][:SHOWN_PROBLEMS]
        if found.reader.bad > MAX_BAD:
            raise Invalid(*_problems(found, f"over {MAX_BAD:,} of its lines cannot be used"))

    def _priority(self, due: Due) -> Flow[int]:
        """What READY asks for; without it the batch is a low one: it may have 100,000 tasks."""
        from ....plans.model import PRIORITY_LEVELS

        word: str | None = None
        if due.ready:
            path = f"{INBOX}/{due.name}{names.READY}"
            (result,) = yield from share(KIND, [read(path, core.MAX_SETTINGS_BYTES + 1)])
            found = core.drop_settings({core.READY: result["data"] if result["ok"] else b""})
            if isinstance(found, Problem):
                raise Invalid(found)
            word = found.priority
        return next(level for name, level in PRIORITY_LEVELS.items() if name == (word or "low"))

    def _known_models(self) -> Flow[Collection[str]]:
        """The names that a line may ask for: configured ones, and those that a worker has now."""
        answer = yield from ask(Verb.QUERY, {"what": "workers"})
        offered = {
            need.removeprefix(MODEL)
            for worker in answer.header.get("workers") or ()
            for need in worker.get("needs") or ()
            if need.startswith(MODEL)
        }
        return self._models | offered

    def _stands(self, run: Run) -> Flow[bool]:
        """Whether a file that was answered before needs nothing: its results are there, and its batch is gone or as it was.

        Where the broker still has the batch it is read again: somebody may have revived what had failed.
        """
        if run.phase != "done":
            return False
        (found,) = yield from share(KIND, [stat(f"{INBOX}/{results_of(run.name)}")])
        if not found["ok"] or found["entry"] is None:
            return False
        try:
            yield from ask(Verb.QUERY, {"what": "batch", "id": run.batch})
        except NotFound:
            return True
        return False

    def _was_answered(self, run: Run) -> Flow[bool]:
        """Whether a rig that was here before has answered this very content: then ``run`` is filled from its receipt.

        A folder may outlive its rig; what lies in the inbox must not run again for that.
        """
        stem = f"{INBOX}/{receipt_stem(run.name)}.receipt.json"
        ops = [read(stem, core.MAX_SETTINGS_BYTES), stat(f"{INBOX}/{results_of(run.name)}")]
        said, results = yield from share(KIND, ops)
        if not said["ok"] or not results["ok"] or results["entry"] is None:
            return False
        fields = core.parse_object(said["data"], stem)
        if isinstance(fields, Problem) or fields.get("drop_id") != run.sha256:
            return False
        counts = fields.get("request_counts")
        if fields.get("status") not in ("complete", "failed", "cancelled") or not isinstance(counts, dict):
            return False
        log.info("%s was answered before, as %s", shown(run.name), fields.get("batch_id"))
        run.batch, run.state = str(fields.get("batch_id") or ""), str(fields["status"])
        run.done, run.failed = (
            n if isinstance(n, int) else 0 for n in map(counts.get, ("completed", "failed"))
        )
        return True

    def _take_ready_away(self, due: Due) -> Flow[None]:
        """One that stays is seen again, and taken away then."""
        if due.ready:
            try:
                yield from share(KIND, [unlink(f"{INBOX}/{due.name}{names.READY}")])
            except ShareAway as e:
                log.info("%s%s stays: %s", shown(due.name), names.READY, e)

    # -- saying ----------------------------------------------------------------------------------------------

    def _tell(self, name: str, state: Literal["settling", "waiting"], note: str) -> Flow[None]:
        yield from self._taker.answer(Receipt(name, state, self._clock.wall(), note=note))

    def _tell_safely(self, name: str, note: str) -> Flow[None]:
        try:
            yield from self._tell(name, "waiting", note)
        except ShareAway as e:
            log.warning("no receipt for %s: %s", shown(name), e)

    def _refuse(self, name: str, problems: tuple[Problem, ...]) -> Flow[None]:
        try:
            yield from self._taker.refuse(name, problems)
            yield from share(KIND, [unlink(f"{INBOX}/{name}{names.READY}")])
        except ShareAway as e:
            log.warning("%s waits: %s", shown(name), e)
            self._watch = self._watch.again([name])


def _problems(found: _Read, what: str = "") -> list[Problem]:
    """Why nothing of a file can run."""
    said = what or ("it has no line that can be used" if found.lines else "it is empty")
    out = [Problem(said, found.name, _FIX)]
    return out + [Problem(bad.message, found.name, "", bad.line) for bad in found.problems[:SHOWN_PROBLEMS]]
