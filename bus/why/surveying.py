"""`why` of workers and of the whole rig: who is idle, and everything that does not move. Pure; changes nothing."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from heapq import nlargest
from itertools import islice
from typing import Any, Final

from ..core.matching import FREE_CREDIT, OFFERED, Predicate, predicates
from ..core.model import Batch, Session, Shape
from ..errors import NotFound
from ..states import BATCH_ENDED, TaskState
from .estimating import Estimator
from .explaining import Explaining, answer_of
from .model_reasons import MODEL_TESTS
from .reasons import as_dicts, handed_back, more_workers, seconds, some

_BATCHES: Final = 50
_SHOWN: Final = 8
_LOOKED_AT: Final = 20_000  #: tasks of one batch
_STEPS: Final = 200_000  #: of tasks and queues, in one answer: the broker does nothing else meanwhile
_KINDS: Final = 100  #: of tasks that are asked for what they want
_IDLE_WORDS: Final = frozenset({"idle", "busy"})


class Surveying(Explaining):
    """`why` itself."""

    def why(self, ref: Any) -> dict[str, Any]:
        """The answer for a task's or batch's id, a worker's name, or None (``all``) for the whole rig.

        Raises:
            NotFound: nothing has this id.
        """
        est = self.estimator()
        if ref in (None, "", "all"):
            return self._why_rig(est)
        try:
            return self._why_task(self.find_task(ref), est)
        except NotFound:
            pass
        worker = self.worker_named(str(ref))
        if worker is not None:
            return self._why_worker(worker, est)
        refused = self._why_refused(str(ref))
        if refused is not None:
            return refused
        return self._why_batch(self.find_batch(ref), est)

    # -- a worker --------------------------------------------------------------------------------------------

    def _why_worker(self, worker: Session, est: Estimator) -> dict[str, Any]:
        word = self.worker_word(worker)
        out = answer_of("worker", worker.name, worker.name, word)
        reasons = out["reasons"]
        held = list(worker.leases.values())
        of = f" of {worker.credit}" if worker.credit else ""  # none while it is paused or drains
        reasons.append(
            f"it is {word}, holds {len(held)}{of} {'lease' if len(held) == 1 and not of else 'leases'}"
        )
        if worker.held:
            reasons.append(f"held: {worker.held}")
        quarantine = self.quarantine_words(worker)
        if quarantine:
            reasons.append(f"quarantined: {quarantine}")
            reasons += self._crashed_there(worker)
        fenced = self.fenced(worker)
        if fenced:
            reasons.append(f"fenced: {fenced}")
        reasons += [f"keeps a slot, it cannot be killed: {text}" for text in worker.unkillable]
        if worker.lent:
            reasons.append(
                f"{some(worker.lent, 'slot is', 'slots are')} lent: its handlers wait for calls of their own"
            )
        for task in held[: worker.slots][:_SHOWN]:
            left = est.remaining(task)
            ran = f"for {seconds(self.wall - task.started_at)}" if task.started_at else "not started yet"
            reasons.append(
                f"runs `{task.key}` {ran}" + (f", about {seconds(left)} left" if left is not None else "")
            )
        if len(held) > worker.slots:
            reasons.append(f"{some(len(held) - worker.slots, 'task')} more fetched ahead")
        fits, missing, ready = self._unfit(worker, est)
        if missing:
            texts = (f"{some(n, 'wants', 'want')} {what}" for what, n in missing.most_common(_SHOWN))
            reasons.append(f"of {some(ready, 'ready task')} {fits} fit it: " + ", ".join(texts))
        elif not ready:
            reasons.append("no ready task: everything waits, runs or has ended")
        disk = self._disk_tests(starting=True)
        out["predicates"] = as_dicts([*disk, *self._worker_tests(worker, fits, missing, ready)])
        bad = [p for p in out["predicates"] if not p["ok"]]
        fix = next((p["fix"] for p in bad if p["fix"]), "")
        if word == "idle" and bad:
            out["summary"] = f"idle: {bad[0]['value']}"
        elif word in _IDLE_WORDS:
            out["summary"] = reasons[0]
        elif word == "held":
            out["summary"] = f"held: {worker.held}"
        elif word == "quarantined":
            out["summary"] = f"quarantined: {quarantine}"
        elif word == "fenced":
            out["summary"] = f"fenced: {fenced}"
        else:
            out["summary"] = f"{word}, gets no new work" + (f": {fix}" if fix else "")
        return out

    def _why_refused(self, name: str) -> dict[str, Any] | None:
        """Of a worker that was turned away: why. None of any other name."""
        named = [r for r in self.refusals.present(self.now) if name in r.who.split()]
        if not named:
            return None
        last = named[-1]
        out = answer_of("worker", name, name, "refused")
        out["summary"] = f"refused: {last.why}: {last.fix}"
        out["reasons"] = [f"{last.why} ({some(last.times, 'time')})"]
        out["predicates"] = as_dicts(
            [Predicate("it is let in", False, last.why, "the broker's version", last.fix)]
        )
        return out

    def _crashed_there(self, worker: Session) -> list[str]:
        """The tasks for which a worker is quarantined."""
        place = self.quarantined(worker)
        crashes = {c.task: c for c in (place.crashes if place is not None else ()) if not c.past}
        shown = list(crashes.values())[-_SHOWN:]
        names = [(self.ids[c.task].key if c.task in self.ids else c.task[:8], c) for c in shown]
        return [f"`{name}` crashed on {c.worker} {seconds(self.now - c.at)} ago" for name, c in names]

    def _unfit(self, worker: Session, est: Estimator) -> tuple[int, Counter[str], int]:
        """Of the ready tasks: how many fit a worker's offer, what the others want, how many there are.

        Of very many kinds only the most frequent ones are asked for what they want.
        """
        shapes = est.ready_shapes()
        others = {shape: n for shape, n in shapes.items() if not worker.accepts(shape)}
        missing: Counter[str] = Counter()
        for shape in nlargest(_KINDS, others, key=others.__getitem__):
            tests = predicates(shape, worker, paused=False, rig_paused=False)
            test = next(p for p in tests if not p.ok)
            missing[f"a worker that {test.wanted}"] += others[shape]
        ready = sum(shapes.values())
        return ready - sum(others.values()), missing, ready

    def _worker_tests(self, worker: Session, fits: int, missing: Counter[str], ready: int) -> list[Predicate]:
        """What stands between a worker and its next task, in the scheduler's order."""
        wants = "".join(f", {some(n, 'wants', 'want')} {what}" for what, n in missing.most_common(1))
        value = "nothing is ready" if not ready else f"{fits} of {some(ready, 'ready task')} fit{wants}"
        shape = Shape(type="shell")  # of it only the worker's own tests are used
        own = predicates(
            shape,
            worker,
            paused=self.paused(worker.name),
            rig_paused=self.paused("all"),
            quarantined=self.quarantine_words(worker),
            fenced=self.fenced(worker) if self.any_fenced else None,
        )[len(OFFERED) :]
        more = more_workers(self.workers())
        own = [replace(p, fix=p.fix.replace("--workers N", more)) for p in own]
        tests = [Predicate("a ready task fits", fits > 0, value, "one or more"), *own]
        if worker.credit == 0:
            tests.pop()
            if all(p.ok for p in tests[1:]):  # who is paused or drains asks for no work
                tests.append(Predicate(FREE_CREDIT, False, "it asks for no work", "room", "rigbus status"))
        return tests

    # -- the rig ---------------------------------------------------------------------------------------------

    def _why_rig(self, est: Estimator) -> dict[str, Any]:
        """Everything that does not move."""
        out = answer_of("rig", "all", "the rig", "paused" if self.paused("all") else "running")
        tests = self._rig_tests(est)
        stuck = self._stuck_workers(est) + self._stuck_batches(est)
        bad = [p for p in tests if not p.ok]
        out["reasons"] = [f"{p.name}: {p.value}" for p in bad] + [
            f"{s['kind']} {s['name']}: {s['summary']}" for s in stuck
        ]
        live = sum(b.live > 0 for b in self.batches.values())
        running = self.counts[TaskState.LEASED]
        head = f"{some(live, 'live batch', 'live batches')}, {some(running, 'task')} with workers"
        n = len(bad) + len(stuck)
        out["summary"] = f"{head}; " + (
            f"{some(n, 'thing does', 'things do')} not move" if n else "nothing is stuck"
        )
        out["predicates"] = as_dicts(tests)
        out["stuck"] = stuck
        return out

    def _rig_tests(self, est: Estimator) -> list[Predicate]:
        workers = list(self.workers())
        paused = self.paused("all")
        bridges = any(s.role == "bridge" for s in self.sessions.values())
        share = self.heartbeats.get("bridge", (0.0, {}))[1].get("share") if bridges else None
        away = isinstance(share, dict) and share.get("available") is False
        tests = [
            Predicate(
                "rig not paused",
                not paused,
                "paused" if paused else "running",
                "running",
                "rigbus resume all",
            ),
            Predicate(
                "workers attached",
                bool(workers),
                str(len(workers)),
                "one or more",
                "rigbus up, or rigbus worker",
            ),
            Predicate(
                "a brain is attached",
                bool(self.brain)
                or not any(b.plan and b.state not in BATCH_ENDED for b in self.batches.values()),
                "yes" if self.brain else "no",
                "yes, where plans run",
                "rigbus brain",
            ),
        ]
        tests += self._disk_tests()
        tests += [
            Predicate("nobody is refused", False, r.why, "the same version, no floods", r.fix)
            for r in self.refusals.present(self.now)
        ]
        if bridges:
            value = str(share.get("reason") or "away") if away and isinstance(share, dict) else "yes"
            tests.append(Predicate("share available", not away, value, "yes", "mount the share again"))
        nobody = {s: n for s, n in est.ready_shapes().items() if not any(w.accepts(s) for w in workers)}
        shown = nlargest(_SHOWN, nobody, key=nobody.__getitem__)
        tests += [self._nobody_runs(shape, nobody[shape], workers) for shape in shown]
        if len(nobody) > len(shown):
            left = some(len(nobody) - len(shown), "more kind of tasks waits", "more kinds of tasks wait")
            value = f"{left} for workers that are not there"
            tests.append(Predicate("somebody runs the others", False, value, "workers", "rigbus why BATCH"))
        return tests

    def _nobody_runs(self, shape: Shape, n: int, workers: list[Session]) -> Predicate:
        """The predicate that fails for the worker that comes nearest."""
        words = [f"{k} {v}" for k, v in (("class", shape.cls), ("pool", shape.pool)) if v]
        words += [f"needs {', '.join(shape.needs)}"] if shape.needs else []
        words += [f"VRAM {shape.vram_mb} MiB"] if shape.vram_mb else []
        name = f"somebody runs {shape.type}" + (f" ({', '.join(words)})" if words else "")
        tests = [predicates(shape, w, paused=False, rig_paused=False)[: len(OFFERED)] for w in workers]
        nearest = max(tests, key=lambda ps: sum(p.ok for p in ps), default=None)
        failed = next((p for p in nearest if not p.ok), None) if nearest else None
        fix = failed.fix if failed else "rigbus up, or rigbus worker"
        if failed and failed.name in MODEL_TESTS:
            fix = self.model_fix(shape) or fix
        wanted = f"a worker that {failed.wanted}" if failed else "a worker"
        return Predicate(
            name, False, f"{some(n, 'ready task waits', 'ready tasks wait')} for {wanted}", wanted, fix
        )

    def _stuck_workers(self, est: Estimator) -> list[dict[str, Any]]:
        out = []
        ready = list(self.ready.waiting_shapes()) if self.room.starts_tasks else []
        for worker in sorted(self.workers(), key=lambda w: w.name):
            word = self.worker_word(worker)
            fits = word == "idle" and any(worker.accepts(s) for s in ready)
            if word == "paused" and self.paused("all"):
                continue  # said once, of the rig
            if word not in _IDLE_WORDS or fits:
                text = "idle, though a ready task fits it" if fits else f"{word}, gets no new work"
                text += f": {worker.held}" if word == "held" else ""
                text += f": {self.quarantine_words(worker)}" if word == "quarantined" else ""
                text += f": {self.fenced(worker)}" if word == "fenced" else ""
                out.append(_stuck(self._why_worker(worker, est), text))
        return out

    def _stuck_batches(self, est: Estimator) -> list[dict[str, Any]]:
        """Live batches of which nothing runs, or with tasks that wait for somebody: a verdict, the share."""
        out = []
        live = (
            b for b in self.batches.values() if b.live or (b.state not in BATCH_ENDED and b.kind == "plan")
        )
        # what every answer costs, whatever the batch: the queue is lined up for it
        ready = self.counts[TaskState.READY] // 4
        ready += 3 * sum(len(level.queues) for ls in self.ready.shapes.values() for level in ls.values())
        looked = 0
        for n, batch in enumerate(islice(live, _BATCHES)):
            if looked > _STEPS:
                left = sum(b.live > 0 for b in self.batches.values())
                said = f"{n} of {some(left, 'live batch', 'live batches')} looked at: rigbus why BATCH"
                out.append(_stuck(answer_of("rig", "all", "others", "unknown"), said))
                break
            looked += min(batch.total, _LOOKED_AT) + ready
            why = self._why_batch(batch, est)
            if not batch.counts[TaskState.LEASED]:
                out.append(_stuck(why, why["reasons"][0] if why["reasons"] else why["summary"]))
            elif (text := self._held_up(batch)) is not None:
                out.append(_stuck(why, text))
        return out

    @staticmethod
    def _held_up(batch: Batch) -> str | None:
        for state, text in ((TaskState.REVIEW, "in review"), (TaskState.FAILED, "escalated")):
            if n := batch.counts[state]:
                return f"{some(n, 'task')} {text}: the brain's verdict is awaited"
        if not batch.counts[TaskState.READY]:
            return None
        back = [
            t for t in islice(batch.keys.values(), _LOOKED_AT) if t.state is TaskState.READY and t.hold_reason
        ]
        if not back:
            return None
        return f"{some(len(back), 'task')}: {handed_back(back[0].hold_reason, batch.id)[0]}"


def _stuck(why: dict[str, Any], summary: str | None = None) -> dict[str, Any]:
    fix = next((p["fix"] for p in why["predicates"] if not p["ok"] and p["fix"]), "")
    return {
        "kind": why["kind"],
        "id": why["id"],
        "name": why["name"],
        "state": why["state"],
        "summary": summary or why["summary"],
        "fix": fix,
    }
