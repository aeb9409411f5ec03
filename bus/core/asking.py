"""QUERY and SNAPSHOT: what the core knows, as plain rows. Pure; it changes nothing (but who waits)."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, Final

from ..errors import DefinitionError, NotFound
from ..states import BATCH_ENDED, BATCH_STATE_NAMES, STATE_NAMES, BatchState, TaskState
from ..wire import MAX_BATCH, MAX_FRAME_BYTES, MAX_PAYLOAD_BYTES, MAX_RESULT_BYTES, Envelope, Verb, pack
from .bounds import WORKER_LEASES, usage
from .checks import MAX_INT, texts, whole
from .model import Batch, Send, Session, Task
from .placements import Placements

PAGE: Final = 500
_ETA_TASKS: Final = 10_000  #: that a list of batches looks at for its ETAs, a tenth of them for each batch
_BATCHES_BYTES: Final = 512 << 10  #: of batch rows in one answer; the spec of each has up to 16 KiB


class Asking(Placements):
    """The questions."""

    build: str
    retain_tasks: int
    #: what only the shell can count: name -> (used, bound)
    gauges: Mapping[str, tuple[int, int]] = {}
    durability: str

    def _query(self, session: Session, env: Envelope) -> dict[str, Any] | None:
        what = env.header.get("what")
        questions: dict[str, Callable[[Session, Envelope], dict[str, Any] | None]] = {
            "status": self._status,
            "batches": self._batches,
            "batch": self._batch,
            "tasks": self._tasks,
            "rows": self._rows,
            "task": self._task,
            "why": lambda s, e: self.why(e.header.get("id")),
            "workers": lambda s, e: {"workers": [self.worker_row(w) for w in self.workers()]},
            "evaluations": self._evaluations,
            "escalations": lambda s, e: self.escalation_rows(e.header),
            "facts": self._facts,
            "placement": self.placement_view,
            "wait": self._wait,
            "result": self._result,
        }
        question = questions.get(str(what))
        if question is None:
            raise DefinitionError(f"QUERY what={what!r:.40}: one of {', '.join(sorted(questions))}")
        return question(session, env)

    # -- rows ------------------------------------------------------------------------------------------------

    def batch_row(self, batch: Batch) -> dict[str, Any]:
        """A batch for people and mirrors; ``plan`` is what its submitter gave."""
        done = sum(batch.counts[s] for s in range(TaskState.DONE, len(TaskState)))
        state = batch.state
        if batch.kind == "calls" and batch.total and not batch.live:
            # never closed, so never ended; but nobody should read "running" where nothing lives
            state = BatchState.COMPLETE if batch.counts[TaskState.DONE] == batch.total else BatchState.FAILED
        return {
            "id": batch.id,
            "key": batch.key,
            "name": batch.name,
            "plan": batch.plan.get("name") if batch.plan else None,
            "kind": batch.kind,
            "state": BATCH_STATE_NAMES[state],
            "priority": batch.priority,
            "mirror": batch.mirror,
            "created_at": batch.created_at,
            "ended_at": batch.ended_at,
            "tasks": dict(zip(STATE_NAMES, batch.counts, strict=True)),
            "total": batch.total,
            "closed": batch.closed,
            "cancelled": batch.cancelled,
            "progress": done / batch.total if batch.total else float(batch.state in BATCH_ENDED),
            "error": batch.error,
            "escalations": self.open_escalations(batch.id),
            "spec": batch.plan,
            "revision": batch.revision,
            "revising": batch.revising,
            "revised": batch.revisions[-1].row() if batch.revisions else None,
            "seq": batch.seq,
        }

    def _batch_lines(self, batches: Iterable[Batch]) -> list[dict[str, Any]]:
        """Batches in a list: without what their submitters gave, which may have 16 KiB each."""
        rows = []
        est = self.estimator()
        room = _ETA_TASKS
        for batch in batches:
            row = self.batch_row(batch)
            del row["spec"], row["key"]
            if batch.live and room > 0:
                row["eta_s"] = est.batch(batch, _ETA_TASKS // 10).end_s
                room -= min(batch.total, _ETA_TASKS // 10)
            rows.append(row)
        return rows

    def worker_row(self, worker: Session) -> dict[str, Any]:
        """A worker for people and mirrors; ``telemetry`` is its last heartbeat."""
        beat_at, telemetry = self.heartbeats.get(worker.name, (0.0, {}))
        return {
            "id": worker.name,
            "session": worker.id,
            "pid": worker.pid,
            "state": self.worker_word(worker),
            "held": worker.held or None,
            "quarantine": self._quarantine_row(worker),
            "fenced": self.fenced(worker) or None,
            "unkillable": list(worker.unkillable),
            "vram_mb": worker.vram_mb,
            "vram_leased_mb": worker.vram_leased_mb,
            "slots": worker.slots,
            "credit": worker.credit,
            "types": sorted(worker.types),
            "classes": sorted(worker.classes),
            "needs": sorted(worker.needs),
            "model": telemetry.get("model") or worker.info.get("model"),
            "heartbeat_age_s": round(self.now - beat_at, 3) if beat_at else None,
            "tasks": [t.id for t in worker.leases.values()][:100],
            "gpu": telemetry.get("gpu"),
            "placement": telemetry.get("placement"),
            "telemetry": telemetry,
        }

    def _quarantine_row(self, worker: Session) -> dict[str, Any] | None:
        place = self.quarantined(worker)
        if place is None:
            return None
        return {
            "why": place.why,
            "since_at": place.since_at,
            "until_at": self.wall + place.until - self.now,
            "tasks": list(dict.fromkeys(c.task for c in place.crashes if not c.past)),
        }

    # -- questions -------------------------------------------------------------------------------------------

    def _status(self, session: Session, env: Envelope) -> dict[str, Any]:
        seat = self.sessions.get(self.brain)
        bridges = [s for s in self.sessions.values() if s.role == "bridge"]
        # The one that serves the folder first; among those that wait for its end none does.
        bridges.sort(key=lambda s: bool(s.info.get("standby")))
        return {
            "as_of": self.wall,
            "seq": self.seq,
            "broker": {
                "build": self.build,
                "incarnation": self.incarnation,
                "state_id": self.state_id,
                "durability": self.durability,
                "paused": self.paused("all"),
                "stale_results": self.stale_results,
                "contradictions": self.contradictions,
            },
            "brain": {
                "state": "seated" if seat else "absent",
                "epoch": self.epoch,
                "pid": seat.pid if seat else None,
            },
            "bridge": {
                "state": "attached" if bridges else "absent",
                "pid": bridges[0].pid if bridges else None,
                "standby": [s.pid for s in bridges if s.info.get("standby")],
                "share": self.heartbeats.get("bridge", (0.0, {}))[1].get("share") if bridges else None,
                "mirror": self.heartbeats.get("bridge", (0.0, {}))[1].get("mirror") if bridges else None,
                "alerts": self.heartbeats.get("bridge", (0.0, {}))[1].get("alerts") if bridges else None,
            },
            "workers": sorted((self.worker_row(w) for w in self.workers()), key=lambda r: str(r["id"])),
            "tasks": dict(zip(STATE_NAMES, self.counts, strict=True)),
            "batches": self._batch_lines(self._recent_batches()[-PAGE:]),
            "unrunnable": self._unrunnable(),
            "disk": self.room.row() if self.room.folder else None,
            "limits": self._usage(),
            "refused": self.refusals.rows(self.now),
        }

    def _usage(self) -> dict[str, dict[str, Any]]:
        """How full everything is that may fill up."""
        fullest = max((b.total for b in self.batches.values() if b.kind == "client"), default=0)
        leases = max((len(w.leases) for w in self.workers()), default=0)
        return usage(
            {
                "live_tasks": (self.live, self.max_live),
                "batch_tasks": (fullest, self.max_batch_tasks),
                "ended_tasks": (len(self.tasks) - self.live, self.retain_tasks),
                "sessions": (len(self.sessions), self.bounds.sessions),
                "facts": (len(self.facts), self.bounds.facts),
                "worker_leases": (leases, WORKER_LEASES),
                **self.gauges,
            }
        )

    def limits(self) -> dict[str, int]:
        """What a peer must keep to (PROTOCOL §9)."""
        return {
            "frame_bytes": MAX_FRAME_BYTES,
            "message_tasks": MAX_BATCH,
            "payload_bytes": MAX_PAYLOAD_BYTES,
            "result_bytes": MAX_RESULT_BYTES,
            "live_tasks": self.max_live,
            "batch_tasks": self.max_batch_tasks,
            "worker_leases": WORKER_LEASES,
        }

    def _recent_batches(self) -> list[Batch]:
        """Live ones and the last 20 ended; the calls of sessions only while something of them lives or died."""
        shown = [b for b in self.batches.values() if b.kind != "calls" or b.live or b.counts[TaskState.DEAD]]
        live = [b for b in shown if b.state not in BATCH_ENDED]
        ended = sorted((b for b in shown if b.state in BATCH_ENDED), key=lambda b: b.ended_at)[-20:]
        return sorted(live + ended, key=lambda b: b.no)

    def _unrunnable(self) -> list[dict[str, Any]]:
        """Shapes with ready tasks that no present worker accepts."""
        workers = list(self.workers())
        return [
            {
                "type": s.type,
                "class": s.cls,
                "pool": s.pool,
                "needs": list(s.needs),
                "vram_mb": s.vram_mb or None,
            }
            for s in self.ready.waiting_shapes()
            if not any(w.accepts(s) for w in workers)
        ]

    def _batches(self, session: Session, env: Envelope) -> dict[str, Any]:
        shown = list(self.batches.values()) if env.header.get("all") else self._recent_batches()
        # the newest where not all fit
        return {"batches": self._fitting(reversed(shown[-PAGE:]))[::-1]}

    def _batch(self, session: Session, env: Envelope) -> dict[str, Any]:
        batch = self.find_batch(env.header.get("id"))
        eta = self.estimator().batch(batch, _ETA_TASKS // 10).end_s if batch.live else None
        return self.batch_row(batch) | {"eta_s": eta}

    def _tasks(self, session: Session, env: Envelope) -> dict[str, Any]:
        h = env.header
        batch = self.find_batch(h["batch"]) if h.get("batch") else None
        states = {i for i, name in enumerate(STATE_NAMES) if name in (texts(h, "states") or STATE_NAMES)}
        after = whole(h, "cursor", 0, MAX_INT, 0)
        limit = min(whole(h, "limit", 1, MAX_INT, PAGE), PAGE)
        calls = bool(h.get("calls"))  # those that have ended, too
        rows: list[dict[str, Any]] = []
        for task in self._in_order(after, batch):
            named = batch is not None or calls or task.batch.kind != "calls"
            if task.state in states and (named or not task.ended):
                rows.append(task.row())
                if len(rows) >= limit:
                    break
        return {
            "rows": rows,
            "cursor": rows[-1]["no"] if len(rows) >= limit else None,
            "_fill": bool(h.get("full")),
        }

    def _in_order(self, after: int, batch: Batch | None = None) -> Iterator[Task]:
        """Tasks with a no above ``after``, of a batch or all, by no; a page costs what it passes, not what there is."""
        source = batch.keys if batch is not None else self.tasks
        if self.next_no - after > 2 * len(source):  # a few among many, or most of it purged
            # both dicts are in the order of the numbers
            yield from (t for t in source.values() if t.no > after)
            return
        for no in range(after + 1, self.next_no):
            task = self.tasks.get(no)
            if task is not None and (batch is None or task.batch is batch):
                yield task

    def _rows(self, session: Session, env: Envelope) -> dict[str, Any]:
        ids = texts(env.header, "ids")
        if len(ids) > PAGE:
            raise DefinitionError(f"rows: at most {PAGE} ids a question")
        rows = [self.ids[i].row() for i in ids if i in self.ids]
        return {"rows": rows, "_fill": True, "_history": bool(env.header.get("history"))}

    def _task(self, session: Session, env: Envelope) -> dict[str, Any]:
        task = self.find_task(env.header.get("id"))
        return {"rows": [task.row()], "_fill": True, "_attempts": task.no}

    def _evaluations(self, session: Session, env: Envelope) -> dict[str, Any]:
        """Every judgement of a task's results, with what was judged."""
        task = self.find_task(env.header.get("id"))
        return {"id": task.id, "_evaluations": task.no}

    def _facts(self, session: Session, env: Envelope) -> dict[str, Any]:
        scope, key = env.header.get("scope"), env.header.get("key")
        return {
            "facts": [
                {"scope": s, "key": k, "rev": f.rev, "epoch": f.epoch, "value": f.value}
                for (s, k), f in self.facts.items()
                if (scope is None or s == scope) and (key is None or k == key)
            ]
        }

    def _wait(self, session: Session, env: Envelope) -> dict[str, Any] | None:
        """Register for ENDED of these ids; the ended ones are told right after this answer."""
        states: dict[str, str] = {}
        ended: list[Task] = []
        for ref in texts(env.header, "ids"):
            task = self.ids.get(ref)
            if task is None:
                states[ref] = "unknown"
                continue
            states[ref] = STATE_NAMES[task.state]
            if task.ended:
                ended.append(task)
            else:
                self.listen(task, session)
                if task.owner and task.owner != session.id:
                    self._rejoin(task, session, watch=False)
        self.fx.sends.append(Send(env.peer, Verb.OK, {"states": states}, corr=env.corr))
        for task in ended:
            send = Send(env.peer, Verb.ENDED, self.ended_header(task), [b""])
            send.header["rows"] = [{"no": task.no}]
            send.rows_of = [task.no]
            self.fx.sends.append(send)
        return None  # answered above, so that the states come before the ends

    def _result(self, session: Session, env: Envelope) -> dict[str, Any]:
        """Part of a result that went by reference: the shell reads the file."""
        task = self.find_task(env.header.get("id"))
        if not task.ended:
            raise NotFound(f"task {task.key} has no result yet: it is {STATE_NAMES[task.state]}")
        return {
            "rows": [task.row()],
            "_fill": True,
            "offset": whole(env.header, "offset", 0, MAX_RESULT_BYTES, 0),
            "chunk": True,
        }

    def _snapshot(self, session: Session, env: Envelope) -> dict[str, Any]:
        """A page of the mirrored world, or with ``attn`` of what the brain acts on: the batches first, then tasks.

        The cursor is negative among the batches, a task's no among the tasks.
        """
        h = env.header
        cursor = whole(h, "cursor", -MAX_INT, MAX_INT, 0)
        limit = min(whole(h, "limit", 1, MAX_INT, PAGE), PAGE)
        attn = bool(h.get("attn"))
        page: dict[str, Any] = {"seq": self.seq, "batches": [], "rows": [], "workers": [], "cursor": None}
        if cursor <= 0:
            shown = [b for b in self._shown_batches(attn=attn) if b.no > -cursor]
            page["batches"] = self._fitting(shown)
            if not cursor and not attn:
                page["workers"] = [self.worker_row(w) for w in self.workers()]
            if len(page["batches"]) < len(shown):
                return page | {"cursor": -shown[len(page["batches"]) - 1].no}
        rows: list[dict[str, Any]] = []
        for task in self._in_order(max(cursor, 0)):
            batch = task.batch
            if self._is_due(task) if attn else (batch.mirror and not task.policy.aside):
                if len(rows) == limit:
                    page["cursor"] = rows[-1]["no"]
                    break
                rows.append(task.row())
        return page | {"rows": rows, "_fill": bool(h.get("full", not attn))}

    def _is_due(self, task: Task) -> bool:
        """Whether the brain has something to do about a task: of batches that are no plans, only to judge it."""
        batch = task.batch
        if batch.kind != "plan":
            return task.state in (TaskState.REVIEW, TaskState.FAILED)
        if batch.state in BATCH_ENDED:
            return task.state is TaskState.DEAD and not task.parent and self.unraised(batch)
        return self.wants_brain(task) or task.hold

    def _fitting(self, batches: Iterable[Batch]) -> list[dict[str, Any]]:
        """The rows of the first batches that go into one message; at least one."""
        rows: list[dict[str, Any]] = []
        room = _BATCHES_BYTES
        for batch in batches:
            row = self.batch_row(batch)
            room -= len(pack(row))
            if rows and room < 0:
                break
            rows.append(row)
        return rows

    def _shown_batches(self, *, attn: bool) -> list[Batch]:
        """For the brain the plans that go on; for the mirror all mirrored ones, and of the others those of `status`."""
        if attn:
            return [b for b in self.batches.values() if b.kind == "plan" and b.state not in BATCH_ENDED]
        recent = {b.no: b for b in self._recent_batches()}
        recent.update((b.no, b) for b in self.batches.values() if b.mirror)
        return [recent[no] for no in sorted(recent)]
