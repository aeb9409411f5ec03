"""REVISE: a batch gets a new plan, and what of its tasks is done stays done. Pure (docs/adr/0030).

The verb keeps the new plan, durably, and holds the batch's tasks back. The brain then says in messages that may be
repeated what every task is now; each is checked whole, then applied whole. Between two of them nothing is leased, so it
does not matter that some tasks stand by the old plan yet.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Final

from ..errors import DefinitionError, Refused
from ..states import BATCH_STATE_NAMES, ENDED_BADLY, TaskEvent, TaskState
from ..wire import MAX_META_BYTES, Envelope, pack
from .checks import number, text
from .model import PLACEMENT_ASKS, Batch, Revised, Revision, Session, Task, apart
from .submitting import KeyConflict, Made, Submitting

MAX_REVISIONS: Final = 100
_REASON_CHARS: Final = 500
_SHA256: Final = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True, slots=True)
class _Known:
    """A task that there is, and what a message says that it is now."""

    task: Task
    new: Task
    spec: dict[str, Any]
    raw: bytes
    payload: bytes


class Revising(Submitting):
    """New plans of batches that there are."""

    # -- REVISE ----------------------------------------------------------------------------------------------

    def revise(self, session: Session, env: Envelope) -> dict[str, Any]:
        """Keep a batch's new plan; the header of OK. The same key again is the same answer.

        Raises:
            DefinitionError, NotFound, Conflict, Refused, Busy: nothing was applied.
        """
        h = env.header
        key = text(h, "key")
        if not key:
            raise DefinitionError(
                "REVISE: `key` is missing: make one (uuid4) and keep it when you send again"
            )
        batch = self.find_batch(h.get("batch"))
        if batch.kind != "plan":
            raise Refused(
                f"batch {batch.id} is of kind {batch.kind}: only the run of a plan can be revised; submit a new batch"
            )
        if (batch.plan or {}).get("forgotten"):
            raise Refused(
                f"done tasks of batch {batch.id} are forgotten (retain_tasks) and would run again; submit its plan as a "
                "new batch"
            )
        plan = self._new_plan(batch, h.get("plan"))
        digest = hashlib.sha256(pack([h.get("plan"), h.get("priority")])).hexdigest()[:16]
        for n, known in enumerate(batch.revisions, 2):
            if known.key == key and known.digest != digest:
                raise KeyConflict(f"key {key!r} was revision {n} of batch {batch.id}, with another plan", key)
            if known.key == key:
                return self._revised(batch, n)
        priority = number(h, "priority", 0, 10)
        self._check_disk()
        if batch.revision > MAX_REVISIONS:
            raise Refused(
                f"batch {batch.id} was revised {MAX_REVISIONS} times; submit its plan as a new batch"
            )
        reason = str(h.get("reason") or "")[:_REASON_CHARS]
        replaced = str((batch.plan or {}).get("sha256") or "")
        revision = Revision(key, digest, replaced, self.wall, session.name[:100], reason)
        batch.revisions = (*batch.revisions, revision)
        batch.plan = plan
        batch.priority = batch.priority if priority is None else int(priority)
        batch.closed, batch.cancelled, batch.error, batch.revising = False, False, None, True
        self.keep_batch(batch)
        self.touch_batch(batch)
        self.announce_batch(
            batch, "revised", revision=batch.revision, reason=reason or None, by=revision.by or None
        )
        return self._revised(batch, batch.revision)

    def _revised(self, batch: Batch, revision: int) -> dict[str, Any]:
        return {
            "batch": batch.id,
            "revision": revision,
            "state": BATCH_STATE_NAMES[batch.state],
            "seq": self.seq,
        }

    @staticmethod
    def _new_plan(batch: Batch, given: Any) -> dict[str, Any]:
        """The plan's map as the batch is to have it; where its results lie never changes.

        Raises:
            DefinitionError: it is none.  Refused: of another plan.
        """
        old = batch.plan or {}
        if not isinstance(given, dict) or not isinstance(given.get("name"), str):
            raise DefinitionError("REVISE: `plan` must be a map as in SUBMIT, with its `name`")
        if _SHA256.fullmatch(str(given.get("sha256"))) is None:
            raise DefinitionError("REVISE: plan.sha256 names the staged copy by 64 hex digits")
        if given["name"] != old.get("name"):
            raise Refused(
                f"batch {batch.id} is a run of the plan {str(old.get('name'))!r:.80}, not of {given['name']!r:.80}: "
                "revise it with that plan, or submit the other one as a new batch"
            )
        plan = {**old, **given}
        if "config" not in given:
            plan.pop("config", None)
        if old.get("batch_root") is not None:
            plan["batch_root"] = old["batch_root"]
        if len(pack(plan)) > MAX_META_BYTES:
            raise DefinitionError(f"REVISE: plan must be a map of at most {MAX_META_BYTES} bytes")
        return plan

    # -- the brain's messages: checking ----------------------------------------------------------------------

    def number_of(self, known: Task, spec: dict[str, Any], digest: int, fresh: int) -> int:
        """A done task stays; but a list with another source, and the join of its items, are read and made again."""
        if known.state is not TaskState.DONE:
            return known.no
        again = spec.get("again") is True and (bool(spec.get("join")) or known.digest != digest)
        return fresh if again and not known.policy.aside else 0

    def check_drops(self, batch: Batch, ids: Iterable[str]) -> list[Task]:
        """The tasks of a BRAIN's `drop` that can be: not another batch's, nor the calls of a handler."""
        found = [self.ids[id_] for id_ in ids if id_ in self.ids]
        return [t for t in found if t.batch is batch and not t.parent and not t.policy.aside]

    # -- the brain's messages: applying ----------------------------------------------------------------------

    def drop(self, batch: Batch, tasks: list[Task]) -> None:
        """The plan has them no more."""
        reason = f"revision {batch.revision} of its plan has no such task"
        # from the end: a dependent that goes, too, is not told of each task before it
        for task in reversed(tasks):
            if task.state is TaskState.DONE or task.dropped:
                continue
            self.mark_revised(task, Revised.DROPPED | task.revised & Revised.VOID)
            self.forget_calls(task)
            if task.ended:
                self.announce(task, revised=True)
            else:
                self.cancel_task(task, reason)

    def redefine(self, session: Session, batch: Batch, made: list[Made]) -> list[str]:
        """Every task of a message becomes what its spec says; their ids. Dependencies come before dependents."""
        known: list[_Known] = []
        fresh: list[Made] = []
        for part in made:
            task, spec, raw, payload = part
            if task is not None and task.no in self.tasks:
                known.append(_Known(self.tasks[task.no], task, spec, raw, payload))
                continue
            fresh.append(part)
        same = {k.task.no for k in known if k.task.digest == k.new.digest and k.task.join == k.new.join}
        self._feed_no_more(known)
        linked = [(k.task, self._take_over(k)) for k in known]
        ids, declared = self._index_tasks(session, batch, fresh, watch=False)
        for task, edges in [*linked, *declared]:
            self.link(task, edges)
        ended = {k.task.no: k.task for k in known if k.task.state in ENDED_BADLY}
        coming = self._coming(ended, by_edges=True)
        self._bring_back(coming)
        self._reopen({t.batch.no: t.batch for t in coming.values() if t.batch is not batch}.values())
        for k in known:
            if k.task.no not in coming:
                self._stand(k.task, same=k.task.no in same)
        for task, _ in declared:
            self._enter(task)
        return [*ids, *(k.task.id for k in known)]

    @staticmethod
    def _feed_no_more(known: list[_Known]) -> None:
        """What feeds a join feeds it anew, maybe over another edge."""
        joins = {join.no: join for k in known for join, _ in k.spec["_feeds"]}
        for join in joins.values():
            going = {k.task.no: k.task for k in known if _forget_edge(k.task, join)}
            if going:
                join.after = [edge for edge in join.after if edge[0] not in going]
                join.unmet -= sum(not task.ended for task in going.values())

    def _take_over(self, known: _Known) -> dict[str, Any]:
        """Put the new definition in the place of the old one, without its edges; these, by number."""
        task, new, spec = known.task, known.new, known.spec
        after, feeds = spec.pop("_after"), spec.pop("_feeds")
        for no, _ in task.after:
            _forget_edge(self.tasks.get(no), task)
        task.after, task.unmet = (), 0
        if new.digest != task.digest:
            self.forget_crashes(task)
            self.forget_calls(task, done=True)
        elif task.ended:
            self.forget_calls(task)
        task.shape = apart(new.shape, task.shape.avoid)
        task.policy, task.priority, task.digest = new.policy, new.priority, new.digest
        task.join, task.hold = new.join, new.hold
        if task.shape.type in PLACEMENT_ASKS:
            self.asks[task.no] = task
        edges = {"after": [[t.no, e] for t, e in after], "feeds": [[t.no, e] for t, e in feeds]}
        packed = pack([known.raw, edges, task.digest])
        if task.no in self.changes.new_tasks:
            self.changes.new_tasks[task.no] = (task, packed, known.payload, spec.get("meta"))
        else:
            self.changes.respecs[task.no] = (packed, known.payload, task.priority)
        self.dirty(task)
        return edges

    def _stand(self, task: Task, *, same: bool) -> None:
        """A task with its new definition and edges goes where it belongs now."""
        state = task.state
        if task.ended:
            return
        if state is TaskState.LEASED:
            self._stand_leased(task, same=same)
            return
        if state is TaskState.REVIEW and same:
            return
        if not same or state is TaskState.FAILED:
            task.counts, task.error, task.silences = (0, 0, 0), None, 0
        if state is TaskState.WAITING:
            # as from READY: its edges may have been met, or broken, long ago
            broken = [no for no, on_end in task.after if not on_end and self._is_broken(no)]
            if broken:
                self.skip(task, broken[0])
            elif task.unmet > 0:
                self.announce(task, revised=True)
            else:
                self.settle(task, revised=True)
            return
        if state is TaskState.REVIEW:
            self.drop_judges(task)
            self.move(task, TaskEvent.REJECT)
        elif state is TaskState.FAILED:
            self.move(task, TaskEvent.RETRY)
        elif same and task.not_before and not task.unmet:
            return  # it backs off, and is as far as it was
        self.await_again(task)

    def _stand_leased(self, task: Task, *, same: bool) -> None:
        """What runs goes on, or is ended and comes back."""
        if same and not task.ending:
            return
        if same:  # it is being cancelled: until its tree is dead it may yet end well
            self.mark_revised(task, Revised.GOES_ON | task.revised & Revised.VOID)
            return
        self.cancel_task(
            task, f"revision {task.batch.revision} of its plan has another {task.key}"[:_REASON_CHARS]
        )
        self.mark_revised(task, Revised.ANEW)

    def planned(self, batch: Batch) -> None:
        """The brain has said what every task of the revision is: they are leased again."""
        if not batch.revising:
            return
        batch.revising = False
        for task in batch.keys.values():
            if task.state is TaskState.READY and not task.not_before:
                self.ready.push(task)


def _forget_edge(src: Task | None, dst: Task) -> bool:
    """Take an edge out of its source's list; whether there was one."""
    if src is None or not src.dependents:
        return False
    left = [edge for edge in src.dependents if edge[0] is not dst]
    found = len(left) < len(src.dependents)
    src.dependents = left
    return found
