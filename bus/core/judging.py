"""BRAIN: one atomic message of the brain; verdicts; facts. Pure.

The whole message is checked, then the whole of it is applied.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Final

from ..errors import DefinitionError, Refused
from ..states import TaskEvent, TaskState
from ..wire import MAX_FACT_BYTES, MAX_KEY_BYTES, Envelope, pack
from .checks import MAX_INT, maps, texts, whole
from .escalating import Escalating
from .escalations import SCOPE as ESCALATION
from .escalations import SPENT, Raised, Record
from .fencing import CARDS
from .fencing import SCOPE as FENCE
from .model import Batch, Session, Task
from .quarantine import CRASHED, SCOPE
from .submitting import Made

VERDICTS: Final = frozenset({"accept", "reject", "retry", "dead"})
MAX_EVALUATION_BYTES: Final = 4 << 10
MAX_SAMPLE_BYTES: Final = 24 << 10
_MAX_REASON: Final = 4000
#: What the broker believes blindly when it reads it again.
_OWN_SCOPES: Final = frozenset({SCOPE, CRASHED, FENCE, CARDS, ESCALATION, SPENT})
_NOTHING: Final[dict[str, Any]] = {}


@dataclass(frozen=True, slots=True)
class Verdict:
    """What is said of one task. ``evaluation`` and ``sample`` (what was judged) are kept for whoever asks.

    ``attempt``: whose result it is about, 0 where that is not said.
    """

    task: Task
    word: str
    note: str = ""
    evaluation: dict[str, Any] = field(default_factory=dict)
    sample: dict[str, Any] = field(default_factory=dict)
    attempt: int = 0


@dataclass(slots=True)
class _Order:
    """A checked BRAIN message."""

    batch: Batch | None
    made: list[Made]
    releases: list[tuple[Task, str]]
    closes: list[Batch]
    ends: list[tuple[Batch, str]]
    unfit: list[tuple[Task, str]]
    verdicts: list[Verdict]
    facts: list[tuple[str, str, Any]]
    redefines: bool = False  #: known keys are what the message says of them
    superseded: bool = False  #: it is about another revision of its batch: only its facts count
    drops: list[Task] = field(default_factory=list)
    raised: list[Raised] = field(default_factory=list)
    settled: list[tuple[Record, str]] = field(default_factory=list)


class Judging(Escalating):
    """What the brain may change."""

    epoch: int

    def brain_message(self, session: Session, env: Envelope) -> dict[str, Any]:
        """One atomic message of the brain; the header of OK.

        Raises:
            Refused: an older epoch, or a fact changed meanwhile.  DefinitionError, NotFound, BadFrame: a part is
                wrong. Nothing was applied.
        """
        h = env.header
        if session.id != self.brain or h.get("epoch") != self.epoch:
            raise Refused(
                f"stale_epoch: the brain of epoch {self.epoch} acts now, not of {h.get('epoch')!r:.20}"
            )
        order = self._check_order(session, env)
        self.apply_escalate(order.raised)  # first: what a batch's end closes is closed with it
        self.settle_escalations(order.settled)
        ids: list[str] = []
        if order.batch is not None and order.drops:
            self.drop(order.batch, order.drops)
        if order.batch is not None and order.made:
            if order.redefines:
                ids = self.redefine(session, order.batch, order.made)
            else:
                ids, _ = self._apply_tasks(session, order.batch, order.made, watch=False)
        for batch in order.closes:
            batch.closed = True
            self.planned(batch)
            self.keep_batch(batch)
            self.touch_batch(batch)
        for task, note in order.releases:
            self._release(task, note)
        for task, error in order.unfit:
            if not (task.join and task.hold):
                continue
            if task.state is TaskState.WAITING:
                task.error = error
                self.move(task, TaskEvent.BURY)
                self.conclude(task, None)
            elif task.state is TaskState.SKIPPED:  # for a failed task of the part that was declared
                task.ending = 1
                self.dirty(task)
                self.touch_batch(task.batch)
        for batch, error in order.ends:
            self.cancel_batch(batch, error, failed=True)
        for verdict in order.verdicts:
            self.apply_verdict(verdict)
        for scope, key, value in order.facts:
            if value is None:
                self.drop_fact(scope, key)
            else:
                self.set_fact(scope, key, value, self.epoch)
        if order.batch is not None:
            self.keep_batch(order.batch)
            self.touch_batch(order.batch)
        return {"seq": self.seq, "ids": ids} | ({"superseded": True} if order.superseded else {})

    def _check_order(self, session: Session, env: Envelope) -> _Order:
        h = env.header
        batch = self.find_batch(h["batch"]) if h.get("batch") else None
        specs = maps(h, "tasks")
        if batch is None and any(h.get(name) for name in ("tasks", "drop", "revision")):
            raise DefinitionError("BRAIN with tasks, `drop` or `revision` names their batch")
        revision = whole(h, "revision", 0, MAX_INT, 0)
        over, redefines = batch is not None and _is_over(batch), revision > 1
        # Nor does it plan a part of a revision whose batch was cancelled meanwhile: retried, it is planned from the first.
        cut_off = over and redefines and bool(specs or h.get("drop") or h.get("close"))
        if batch is not None and (cut_off or revision not in (0, batch.revision)):
            facts = self._check_facts(maps(h, "facts"))
            return _Order(batch, [], [], [], [], [], [], facts, superseded=True)
        made: list[Made] = []
        # A batch that has ended, or is about to, gets no more tasks: its end overtook the brain's message.
        if batch is not None and specs and not over:
            made = self._plan_tasks(session, batch, specs, env.body, redefines=redefines)
        fails = maps(h, "fail")
        unfit = [(self.find_task(f["task"]), _reason(f, "error", "failed")) for f in fails if "task" in f]
        ends = [
            (self.find_batch(f.get("batch")), _reason(f, "error", "failed")) for f in fails if "task" not in f
        ]
        aborts = [
            (self.find_batch(f.get("batch")), _reason(f, "reason", "aborted")) for f in maps(h, "cancel")
        ]
        # what its policy says of a task that failed under the older plan does not end the new one
        ends += [(ended, reason) for ended, reason in aborts if not ended.revising]
        return _Order(
            batch=batch,
            made=made,
            releases=self._check_releases(h),
            # nor is it planned to its end then: a person's retry has the rest of it planned
            closes=[b for b in map(self.find_batch, texts(h, "close")) if not _is_over(b)],
            ends=ends,
            unfit=unfit,
            verdicts=[self._check_verdict(v) for v in maps(h, "verdicts")],
            facts=self._check_facts(maps(h, "facts")),
            raised=self.check_escalate(h),
            settled=self.check_settle(h),
            redefines=redefines,
            drops=self.check_drops(batch, texts(h, "drop")) if batch is not None and not over else [],
        )

    def _check_releases(self, h: dict[str, Any]) -> list[tuple[Task, str]]:
        notes = h.get("notes") or {}
        if not isinstance(notes, dict):
            raise DefinitionError("BRAIN: `notes` is a map of released ids to texts")
        tasks = [self.find_task(i) for i in texts(h, "release")]
        # the tasks that the release goes with were dropped: a person's retry makes them wanted again
        return [(t, _reason(notes, t.id, "")) for t in tasks if not _is_over(t.batch)]

    def _release(self, task: Task, note: str) -> None:
        """The last of what feeds a held join is declared; ``note`` is its result where it ends at once."""
        if not task.hold:
            return
        task.hold = False
        task.unmet -= 1
        self.dirty(task)
        if note and task.join and task.unmet <= 0 and task.state is TaskState.WAITING:
            value = self.changes.results[task.no] = pack({"note": note})
            self.move(task, TaskEvent.JOIN)
            self.conclude(task, value, note=note)
            return
        self.settle(task)
        self.touch_batch(task.batch)  # it may have ended before: skipped, for one of the tasks that feed it

    def _check_verdict(self, v: dict[str, Any]) -> Verdict:
        word = v.get("verdict")
        if word not in VERDICTS:
            raise DefinitionError(f"verdict {word!r:.40}: accept, reject, retry or dead")
        task = self.find_task(v.get("id"))
        evaluation = _small_map(v, "evaluation", MAX_EVALUATION_BYTES)
        sample = _small_map(v, "sample", MAX_SAMPLE_BYTES)
        attempt = whole(v, "attempt", 0, MAX_INT, 0)
        return Verdict(task, str(word), _reason(v, "note", ""), evaluation, sample, attempt)

    def _check_facts(self, facts: list[dict[str, Any]]) -> list[tuple[str, str, Any]]:
        out = []
        for f in facts:
            scope, key, value = f.get("scope"), f.get("key"), f.get("value")
            if (
                not isinstance(scope, str)
                or not isinstance(key, str)
                or len((scope + key).encode()) > MAX_KEY_BYTES
            ):
                raise DefinitionError(
                    f"a fact has scope and key of at most {MAX_KEY_BYTES} bytes, not {scope!r:.40}"
                )
            if len(pack(value)) > MAX_FACT_BYTES:
                raise DefinitionError(f"fact {scope}/{key} is over {MAX_FACT_BYTES} bytes")
            if scope in _OWN_SCOPES:
                raise DefinitionError(f"facts of the scope {scope} are the broker's own")
            old = self.facts.get((scope, key))
            present = old.rev if old else 0
            if value is None and old is None:
                continue  # deleted already
            if old and old.epoch == self.epoch and f.get("rev") == present - 1 and old.value == value:
                continue  # the same message again: its answer was lost
            if whole(f, "rev", 0, 2**53, 0) != present:
                raise Refused(f"fact {scope}/{key} has revision {present}, not {f.get('rev')}; read it again")
            out.append((scope, key, value))
        self.check_facts_fit(sum((scope, key) not in self.facts for scope, key, _ in out))
        return out

    # -- verdicts --------------------------------------------------------------------------------------------

    def apply_verdict(self, verdict: Verdict) -> None:
        """A verdict on REVIEW or FAILED; one that comes too late changes nothing."""
        task, note = verdict.task, verdict.note
        if verdict.attempt not in (0, task.attempt):
            return
        if task.state is TaskState.REVIEW and verdict.word in ("accept", "reject", "dead"):
            self._keep_evaluation(verdict)
            data = {"evaluation": verdict.evaluation} if verdict.evaluation else {}
            if verdict.word == "accept":
                self.move(task, TaskEvent.ACCEPT)
                self.conclude(task, None, note=note, **data)
            else:
                self._reject(verdict, data)
        elif task.state is TaskState.FAILED and verdict.word in ("retry", "dead"):
            if verdict.word == "retry":
                self.move(task, TaskEvent.RETRY)
                self.ready_again(task)
                self.announce(task, note=note)
            else:
                self.move(task, TaskEvent.BURY)
                self.conclude(task, None, note=note)

    def _reject(self, verdict: Verdict, data: dict[str, Any]) -> None:
        """The result does not count: an attempt of class ``task`` that ended badly, and again while some are left."""
        task, note = verdict.task, verdict.note or "rejected"
        self.close_attempt(task, "task", note)
        self.drop_judges(task)
        task.error = note
        task.counts = (task.counts[0] + 1, task.counts[1], task.counts[2])
        if verdict.word == "reject" and task.counts[0] < task.policy.task:
            self.move(task, TaskEvent.REJECT)
            self.ready_again(task)
            self.announce(task, "rework", note=note, **data)
            return
        self.move(task, TaskEvent.ESCALATE)
        if verdict.word == "reject" and task.policy.escalate:
            self.timer(self.now + self.verdict_s, "verdict", (task, task.attempt, task.state))
            self.announce(task, note=note, error=note[:2000], **data)
            return
        self.move(task, TaskEvent.BURY)
        self.conclude(task, None, note=note, **data)

    def _keep_evaluation(self, verdict: Verdict) -> None:
        """What was found, for people, for the mirror, and for the next attempt."""
        task = verdict.task
        shown = {"attempt": task.attempt, "note": verdict.note, **verdict.evaluation}
        row = (task.no, task.attempt, verdict.word, self.wall, pack(shown), pack(verdict.sample))
        self.changes.evaluations.append(row)

    def is_being_judged(self, task: Task) -> bool:
        """Whether a judge of its result runs, or waits for workers that there are."""
        return any(
            judge.state is TaskState.LEASED or any(w.accepts(judge.shape) for w in self.workers())
            for judge in self.judges_of(task)
        )

    def why_unjudged(self, task: Task) -> str:
        """What to say of a result in REVIEW whose verdict deadline has passed."""
        waiting = self.judges_of(task)
        if not waiting:
            return "accepted unjudged: no verdict came in time"
        return (
            f"accepted unjudged: for {self.verdict_s:g} s no worker has offered `{waiting[0].shape.type}`, which "
            f"{waiting[0].key} needs"
        )


def _is_over(batch: Batch) -> bool:
    return bool(batch.cancelled or batch.error or batch.ended_at)


def _reason(part: dict[str, Any], name: str, default: str) -> str:
    return str(part.get(name) or default)[:_MAX_REASON]


def _small_map(part: dict[str, Any], name: str, most: int) -> dict[str, Any]:
    """A map of a verdict, as it is to be kept.

    Raises:
        DefinitionError: it is something else, or packs to more than ``most`` bytes.
    """
    value = part.get(name) or _NOTHING
    if not isinstance(value, dict) or len(pack(value)) > most:
        raise DefinitionError(f"`{name}` of a verdict is a map of at most {most} bytes")
    return value
