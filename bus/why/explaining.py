"""`why` of tasks and batches: what holds them up, and which command changes it. Pure; changes nothing.

Every answer has ``kind id name state summary reasons position eta_s eta predicates``; of a task also ``workers``, the
scheduler's tests one worker at a time, of a batch ``ready`` and ``failed``, of the rig ``stuck`` (``surveying``).
"""

from __future__ import annotations

from itertools import islice
from typing import Any, Final

from ..core.judging import Judging
from ..core.matching import Predicate, predicates
from ..core.model import PLACEMENT, PLACEMENT_ASKS, Batch, Session, Shape, Task, of_model
from ..states import BATCH_ENDED, BATCH_STATE_NAMES, STATE_NAMES, TaskState
from .durations import template_of
from .estimating import Estimator
from .model_reasons import load_fix, row_of_ask, row_of_shape, with_fix, words
from .reasons import (
    Verdicts,
    as_dicts,
    attempts_used,
    blockers,
    chain_text,
    fitting,
    funnel,
    handed_back,
    open_before,
    seconds,
    some,
    taking,
)

_LOOKED_AT: Final = 20_000  #: tasks of a batch that are sorted into groups
_GROUPS: Final = 8
_READY: Final = 2
_FAILED: Final = 5
_WORKERS: Final = 50
_ERROR: Final = 300
_MODELS: Final = 1000  #: of what is said of each model worker
_NO_BRAIN: Final = "no brain is attached: start `rigbus brain`"


class Explaining(Judging):
    """The answers to `why`."""

    heartbeats: dict[str, tuple[float, dict[str, Any]]]  #: by worker's name: when (monotonic), telemetry

    def estimator(self) -> Estimator:
        """Estimates as of now; keep it for one answer."""
        rig_paused = self.paused("all") or not self.room.starts_tasks
        workers = [] if rig_paused else [w for w in self.workers() if self._gets_leases(w)]
        return Estimator(self.tasks, self.ready, workers, self.durations, self.now, self.wall)

    def _gets_leases(self, w: Session) -> bool:
        if self.quarantined(w) is not None or self.fenced(w):
            return False
        return bool(w.peer) and w.credit > 0 and not (w.draining or w.suspect or self.paused(w.name))

    def worker_word(self, worker: Session) -> str:
        """A worker's state in a word."""
        if worker.suspect:
            return "suspect"
        if self.paused(worker.name) or self.paused("all"):
            return "paused"
        if worker.draining:
            return "draining"
        if self.quarantined(worker) is not None:
            return "quarantined"
        if self.fenced(worker):
            return "fenced"
        if worker.held:
            return "held"
        return "busy" if worker.leases else "idle"

    def quarantine_words(self, worker: Session) -> str:
        """Why a worker is quarantined and for how long; empty while it is not."""
        place = self.quarantined(worker)
        return f"{place.why}; tried again in {seconds(place.until - self.now)}" if place is not None else ""

    # -- a task ----------------------------------------------------------------------------------------------

    def _why_task(self, task: Task, est: Estimator) -> dict[str, Any]:
        out = answer_of("task", task.id, task.key, STATE_NAMES[task.state])
        out["batch"] = task.batch.id
        eta = est.task(task)
        out["eta"], out["eta_s"] = eta.as_dict(), rounded(eta.end_s)
        tell = {
            TaskState.WAITING: self._waiting,
            TaskState.READY: self._ready,
            TaskState.LEASED: self._leased,
            TaskState.REVIEW: self._judged,
            TaskState.FAILED: self._judged,
        }.get(task.state)
        if tell is None:
            error = f" ({task.error[:_ERROR]})" if task.error else ""
            out["summary"] = f"it has ended: {STATE_NAMES[task.state]}{error}"
            out["reasons"].append(out["summary"])
            return out
        tell(task, out, est)
        reasons = out["reasons"]
        out["summary"] = out["summary"] or reasons[0]
        if task.deadline:
            left = task.deadline - self.now
            near = eta.end_s is not None and eta.end_s > left
            reasons.append(
                f"its deadline is in {seconds(left)}" + (": it will hardly be done by then" if near else "")
            )
        if (used := attempts_used(task)) and task.state is not TaskState.FAILED:
            reasons.append(used)
        if eta.why and task.state in (TaskState.WAITING, TaskState.READY, TaskState.LEASED):
            reasons.append(f"no estimate: {eta.why}")
        return out

    def _waiting(self, task: Task, out: dict[str, Any], est: Estimator) -> None:
        open_ = list(open_before(task, self.tasks))
        met = len(task.after) - len(open_)
        reasons = out["reasons"]
        chain = blockers(task, self.tasks)
        fix = ""
        if open_:
            out["summary"] = chain_text(chain, self.tasks)
            named = ", ".join(f"{t.key} ({STATE_NAMES[t.state]})" for t in open_[:5])
            reasons.append(f"waits for {len(open_)} of {len(task.after)} tasks: {named}")
            root = chain[-1]
            fix = f"rigbus why {root.batch.id}/{root.key}"
            if root.state is not TaskState.WAITING:
                inner = self._why_task(root, est)
                reasons.append(f"`{root.key}`: {inner['summary']}")
        tests = [Predicate("dependencies met", not open_, f"{met} of {len(task.after)}", "all", fix)]
        if task.hold and not (open_ and task.shape.type in PLACEMENT_ASKS):
            self._held(task, out, tests)
        out["waits_for"] = [
            {"id": t.id, "name": t.key, "state": STATE_NAMES[t.state]} for t in (chain or open_)[:20]
        ]
        out["predicates"] = as_dicts(tests)

    def _held(self, task: Task, out: dict[str, Any], tests: list[Predicate]) -> None:
        """A foreach whose items the brain has not declared yet, or a model that is asked for."""
        if task.shape.type in PLACEMENT_ASKS:
            fact = self.facts.get((PLACEMENT, ""))
            row = row_of_ask(fact, task)
            said = (row and words(row, self.wall)) or (fact.value.get("why") if fact else "")
            text = "waits for its model" + (f": {said}" if said and self.brain else "")
            text += "" if self.brain else f"; {_NO_BRAIN}"
            out["reasons"].append(text)
            out["summary"] = out["summary"] or text
            fix = str((row or {}).get("fix") or "") if self.brain else "rigbus brain"
            tests.append(Predicate("placed", False, "not yet", "yes", fix))
            return
        text = "waits for the brain to expand its foreach" + ("" if self.brain else f"; {_NO_BRAIN}")
        out["reasons"].append(text)
        out["summary"] = out["summary"] or text
        disk = self._disk_tests()
        out["reasons"] += [f"{test.value}: {self.room.meaning}" for test in disk]
        tests += disk
        tests.append(
            Predicate("foreach expanded", False, "not yet", "yes", "" if self.brain else "rigbus brain")
        )

    def _ready(self, task: Task, out: dict[str, Any], est: Estimator) -> None:
        verdicts = self._verdicts(task)
        line = est.line(task)
        out["position"] = line.position
        reasons = out["reasons"]
        full = self._disk_tests(starting=True)
        if full:
            out["summary"] = f"{self.room.value}: {self.room.meaning}"
            reasons.append(out["summary"])
            out["predicates"] = as_dicts(full)
            return
        if task.batch.revising and not (task.policy.aside or task.parent):
            out["summary"] = self._revising(task.batch)
            reasons.append(out["summary"])
            fix = "" if self.brain else "rigbus brain"
            out["predicates"] = as_dicts([Predicate("revision planned", False, "not yet", "yes", fix)])
            return
        left = max(0.0, task.not_before - self.now) if task.not_before else 0.0
        if task.hold_reason:
            reasons.append(handed_back(task.hold_reason, task.batch.id)[0])
        if left:
            failed = f"; attempt {task.attempt} failed: {task.error[:_ERROR]}" if task.error else ""
            reasons.append(f"waits {seconds(left)} before its next attempt (back-off{failed})")
        elif task.error:
            reasons.append(f"its last attempt failed: {task.error[:_ERROR]}")
        out["summary"] = "; ".join(reasons if left or not task.error else reasons[:-1])
        who = taking(verdicts) + self._models_now(task.shape, verdicts)
        reasons.append(f"then {who}" if left else who)
        if not left:
            out["summary"] += f"; {who}" if out["summary"] else who
        if not left and fitting(verdicts):
            ahead = line.position - 1
            say = f"{some(ahead, 'task')} before it" if ahead else "it is the next"
            out["summary"] += f"; {say}{soon(out['eta'])}"
        if task.policy.queue_timeout_s:
            end = task.ready_at + task.policy.queue_timeout_s - self.now
            reasons.append(
                "its queue_timeout_s does not end it while all workers that can run it are held"
                if self.only_held(task)
                else f"it expires in {seconds(end)} if nobody takes it by then (queue_timeout_s)"
            )
        fix = handed_back(task.hold_reason, task.batch.id)[1] if task.hold_reason else ""
        gates = [
            Predicate("dependencies met", True, f"{len(task.after)} of {len(task.after)}", "all"),
            Predicate("back-off over", not left, seconds(left) + " left" if left else "yes", "yes", fix),
        ]
        out["predicates"] = as_dicts([*gates, *funnel(verdicts)])
        out["workers"] = [
            {"worker": w.name, "predicates": as_dicts(tests)} for w, tests in verdicts[:_WORKERS]
        ]

    def _disk_tests(self, *, starting: bool = False) -> list[Predicate]:
        """The test of the state folder's disk where it fails: for new tasks, or for ``starting`` those accepted."""
        room = self.room
        if room.starts_tasks if starting else room.takes_tasks:
            return []
        return [Predicate("room on the disk", False, room.value, "room", room.fix)]

    def _models_now(self, shape: Shape, verdicts: Verdicts) -> str:
        """What the brain says of its models, where a task wants one that nobody holds now."""
        fact = self.facts.get((PLACEMENT, ""))
        if fact is None or not of_model(shape) or fitting(verdicts):
            return ""
        row = row_of_shape(fact, shape)
        said = (words(row, self.wall) if row is not None else "") or str(fact.value.get("why"))
        return f" ({said[:_MODELS]})"

    def _leased(self, task: Task, out: dict[str, Any], est: Estimator) -> None:
        timing = self.durations.of(task)
        usual = f", it usually takes {seconds(timing.mean)}" if timing else ""
        if task.started_at:
            ran = max(0.0, self.wall - task.started_at)
            text = f"runs on {task.worker}, attempt {task.attempt}, for {seconds(ran)}{usual}"
            if timing and ran > timing.mean + 4 * timing.spread + 1:
                text += ": longer than usual"
        else:
            text = f"is with {task.worker}, attempt {task.attempt}, not started yet"
        out["reasons"].append(text)
        worker = self.sessions.get(task.session)
        tests = [Predicate("started", bool(task.started_at), "yes" if task.started_at else "not yet", "yes")]
        if worker is None or worker.suspect:
            left = seconds(task.lease_deadline - self.now)
            out["reasons"].append(f"{task.worker} is silent; the task goes to another in {left}")
            tests.append(Predicate("heard of lately", False, "silent", "alive", "rigbus status"))
        if task.ending:
            text = "its end was asked for; it follows when its processes are dead"
            out["reasons"].append(text)
            out["summary"] = f"{out['reasons'][0]}; {text}"
            tests.append(Predicate("no end asked for", False, task.error or "cancelled", "nobody asked"))
        out["predicates"] = as_dicts(tests)

    def _judged(self, task: Task, out: dict[str, Any], est: Estimator) -> None:
        text = "waits for the brain's verdict" + ("" if self.brain else f"; {_NO_BRAIN}")
        out["reasons"].append(text)
        judges = self.judges_of(task)
        if judges:
            why = self._why_task(judges[0], est)
            out["reasons"].append(f"{judges[0].key} judges it, which is {why['state']}: {why['summary']}")
            out["summary"] = out["reasons"][-1]
        left = self._verdict_left(task)
        if left is not None and self.brain and not (judges and self.is_being_judged(task)):
            becomes = "accepted" if task.state is TaskState.REVIEW else "dead"
            out["reasons"].append(f"without one it is {becomes} in {seconds(left)}")
        if task.state is TaskState.FAILED and task.error:
            out["reasons"].append(f"its last attempt failed: {task.error[:_ERROR]}")
        fix = "" if self.brain else "rigbus brain"
        seat = Predicate("a brain is attached", bool(self.brain), "yes" if self.brain else "no", "yes", fix)
        out["predicates"] = as_dicts([seat, Predicate("verdict", False, "none yet", "one")])

    def _verdict_left(self, task: Task) -> float | None:
        for at, _, kind, ref in self.timers:
            if kind == "verdict" and ref[0] is task and ref[1] == task.attempt and ref[2] is task.state:
                return max(0.0, at - self.now)
        return None

    def _verdicts(self, task: Task) -> Verdicts:
        """Every test of every worker; who passes the most comes first."""
        rig_paused = self.paused("all")
        shape = task.shape
        rows = [
            (
                w,
                predicates(
                    shape,
                    w,
                    paused=self.paused(w.name),
                    rig_paused=rig_paused,
                    quarantined=self.quarantine_words(w),
                    fenced=self.fenced(w) if self.any_fenced else None,
                    kept_off=bool(shape.avoid) and self.kept_off(w, shape, task.ready_at),
                ),
            )
            for w in self.workers()
        ]
        fix = self.model_fix(shape)
        return sorted(
            with_fix(rows, fix) if fix else rows, key=lambda r: (-sum(p.ok for p in r[1]), r[0].name)
        )

    def model_fix(self, shape: Shape) -> str:
        """What would give the rig the model that tasks of this shape want; "" where that is nothing of this rig's own."""
        if not of_model(shape):
            return ""
        row = row_of_shape(self.facts.get((PLACEMENT, "")), shape)
        return load_fix(row, shape, self.workers())

    # -- a batch ---------------------------------------------------------------------------------------------

    def _revising(self, batch: Batch) -> str:
        text = f"revision {batch.revision} of its plan is not planned yet, until then nothing of it is leased"
        return text if self.brain else f"{text}; {_NO_BRAIN}"

    def _why_batch(self, batch: Batch, est: Estimator) -> dict[str, Any]:
        out = answer_of("batch", batch.id, batch.name, BATCH_STATE_NAMES[batch.state])
        reasons = out["reasons"]
        if batch.error:
            reasons.append(batch.error)
        out["escalations"] = self._escalation_rows(batch)
        reasons += [one["summary"] for one in out["escalations"]]
        out["failed"] = self._failed_rows(batch)
        out["ready"] = []
        if not batch.live and batch.state in BATCH_ENDED:
            out["summary"] = f"it has ended: {out['state']}"
            return out
        eta = est.batch(batch)
        out["eta"], out["eta_s"] = eta.as_dict(), rounded(eta.end_s)
        done = batch.total - batch.live
        out["summary"] = f"{done} of {some(batch.total, 'task')} ended" + soon(out["eta"], end=True)
        tests = []
        if batch.revising:
            reasons.append(self._revising(batch))
            out["summary"] = reasons[-1]
        elif batch.revisions:
            last = batch.revisions[-1]
            reasons.append(
                f"it has revision {batch.revision} of its plan" + (f": {last.reason}" if last.reason else "")
            )
        if not batch.total and batch.kind == "plan":
            asks = any(task.policy.aside and not task.ended for task in batch.keys.values())
            text = "the brain has not declared its tasks yet" + (
                ": it asks a model for their classes" if asks else ""
            )
            text += "" if self.brain else f"; {_NO_BRAIN}"
            reasons.append(text)
            out["summary"] = text
            fix = "" if self.brain else "rigbus brain"
            disk = self._disk_tests()
            reasons += [f"{test.value}: {self.room.meaning}" for test in disk]
            tests = [*disk, Predicate("tasks declared", False, "not yet", "yes", fix)]
        if not batch.live and batch.expands:
            reasons.append(
                "waits for the brain to expand its foreach" + ("" if self.brain else f"; {_NO_BRAIN}")
            )
        groups = self._groups(batch)
        for name, state, n, first in groups[:_GROUPS]:
            why = self._why_task(first, est)
            if first.state is TaskState.READY and len(out["ready"]) < _READY:
                out["ready"].append(why)
            what = f"{n} `{name}` {state}" if n > 1 else f"`{first.key}` {state}"
            reasons.append(f"{what}: {why['summary']}")
        if len(groups) > _GROUPS:
            reasons.append(
                f"and {len(groups) - _GROUPS} more kinds of tasks: rigbus task list --batch {batch.id}"
            )
        if eta.why and batch.total:
            reasons.append(f"no estimate: {eta.why}")
        if out["ready"]:
            out["position"] = out["ready"][0]["position"]
        out["predicates"] = as_dicts(tests) or (out["ready"][0]["predicates"] if out["ready"] else [])
        return out

    def _groups(self, batch: Batch) -> list[tuple[str, str, int, Task]]:
        """(name, state, how many, the first of them) of what is left, those that wait last."""
        tally: dict[tuple[str, TaskState, bool], list[Any]] = {}
        live = (t for t in batch.keys.values() if not t.ended and not (t.join and not t.hold))
        for task in islice(live, _LOOKED_AT):
            name = template_of(task) if batch.plan else task.shape.type
            key = (name, task.state, bool(task.hold_reason or task.not_before))
            found = tally.get(key)
            if found is None:
                tally[key] = [1, task]
            else:
                found[0] += 1
        order = (TaskState.FAILED, TaskState.REVIEW, TaskState.READY, TaskState.LEASED, TaskState.WAITING)
        rows = sorted(tally.items(), key=lambda r: (order.index(r[0][1]), r[1][1].no))
        return [(name, STATE_NAMES[state], n, first) for (name, state, _), (n, first) in rows]

    def _escalation_rows(self, batch: Batch) -> list[dict[str, Any]]:
        """What nobody has settled yet, and the file that would."""
        return [
            {
                "id": one.id,
                "cause": one.cause,
                "status": one.status,
                "answer_to": f"brain/escalations/{one.id}.answer.json",
                "summary": f"escalated ({one.cause}, {one.status}): {one.title}; the answer goes into "
                f"brain/escalations/{one.id}.answer.json",
            }
            for one in self.escalations.open_of(batch.id)
        ]

    def _failed_rows(self, batch: Batch) -> list[dict[str, Any]]:
        """The first tasks that ended badly by themselves."""
        bad = (TaskState.DEAD, TaskState.EXPIRED)
        if not any(batch.counts[s] for s in bad):
            return []
        rows = (t for t in batch.keys.values() if t.state in bad and not t.policy.aside)
        return [
            {"id": t.id, "name": t.key, "state": STATE_NAMES[t.state], "error": (t.error or "")[:_ERROR]}
            for t in islice(rows, _FAILED)
        ]


def answer_of(kind: str, id_: str, name: str, state: str) -> dict[str, Any]:
    return {
        "kind": kind,
        "id": id_,
        "name": name,
        "state": state,
        "summary": "",
        "reasons": [],
        "position": None,
        "eta_s": None,
        "eta": None,
        "predicates": [],
    }


def rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 3)


def soon(eta: dict[str, Any] | None, *, end: bool = False) -> str:
    """``, starts in about 12 s`` or ``, done in 3 min``; empty when nothing can be said."""
    at = (eta or {}).get("end_s" if end else "start_s")
    if at is None:
        return ""
    if not end and at < 0.05:
        return ", starts any moment"
    about = "about " if (eta or {}).get("about") else ""
    return f", {'done' if end else 'starts'} in {about}{seconds(at)}"
