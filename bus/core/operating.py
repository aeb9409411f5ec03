"""A person's verbs, and the supervisor's: cancel, requeue, pause, drain, GONE, TOKEN, BYE. Pure."""

from __future__ import annotations

from typing import Any

from ..errors import DefinitionError, NotFound, Refused
from ..wire import Envelope, Verb
from .checks import MAX_INT, texts, tokens_by_id, whole
from .escalations import OVER
from .forgetting import Forgetting
from .model import Session


class Operating(Forgetting):
    """What people do to a running rig."""

    def cancel(self, session: Session, env: Envelope) -> dict[str, Any]:
        """CANCEL of tasks, of a batch, or of runs whose tasks are to run again."""
        h = env.header
        reason = str(h.get("reason") or f"cancelled by {session.name}")[:500]
        answered = self.answers_escalation(h)
        if answered is not None and answered.status in OVER:
            return {"cancelled": 0, "ending": 0, "already": True}
        if h.get("batch"):
            batch = self.find_batch(h["batch"])
            self.end_escalation(answered, "closed")
            return dict(self.cancel_batch(batch, reason))
        if h.get("again") is not None:
            runs = [(self.find_task(id_), token) for id_, token in tokens_by_id(h, "again").items()]
            self.end_escalation(answered, "closed")
            done = [(task.id, self.run_again(task, token, reason)) for task, token in runs]
            return {"again": [id_ for id_, yes in done if yes], "left": [id_ for id_, yes in done if not yes]}
        tally = {"cancelled": 0, "ending": 0, "already": 0}
        tasks = [self.find_task(i) for i in texts(h, "ids")]
        self.end_escalation(answered, "closed")
        for task in tasks:
            tally[self.cancel_task(task, reason)] += 1
        return dict(tally)

    def requeue_asked(self, session: Session, env: Envelope) -> dict[str, Any]:
        """REQUEUE of tasks or of what ended badly in a batch."""
        h = env.header
        answered = self.answers_escalation(h)
        if answered is not None and answered.status in OVER:
            return {"requeued": 0, "revived": 0, "already": True}
        batch = self.find_batch(h["batch"]) if h.get("batch") else None
        if batch is not None:
            tasks = list(batch.keys.values())
            dying = [t for t in tasks if t.ending and not t.ended]
            if dying:  # ended after the others came back, it would take them down with it
                raise Refused(
                    f"batch {batch.id} is still being ended ({dying[0].key}, {len(dying)} in all); ask again when its "
                    "processes are dead"
                )
        else:
            tasks = [self.find_task(i) for i in texts(h, "ids")]
        self.end_escalation(answered, "applied")
        requeued, revived = self.requeue(tasks, batch)
        return {"requeued": requeued, "revived": revived}

    # -- workers ---------------------------------------------------------------------------------------------

    def _named_worker(self, header: dict[str, Any]) -> str:
        name = str(header.get("worker") or "")
        known = name == "all" or self.worker_named(name) is not None
        known = known or any((scope, name) in self.facts for scope in ("pause", "drain"))
        if not known and not self.knows_quarantined(name) and not self.fences_of(name):
            raise NotFound(
                f"no worker {name!r:.80}; there are: {', '.join(sorted(w.name for w in self.workers())) or 'none'}"
            )
        return name

    def control(self, session: Session, env: Envelope) -> dict[str, Any]:
        """CONTROL: pause and resume (facts, so that they outlive restarts), forget, stop, kill."""
        action = env.header.get("action")
        if action == "kill":
            return self._kill(env.header)
        if action == "forget":
            return self.forget(session, env.header)
        if action == "escalation":
            return self.control_escalation(session, env.header)
        if action == "stop":
            found = [s for s in self.sessions.values() if s.role == "supervisor"]
            for s in found:
                self.send(s, Verb.CONTROL, {"action": "stop"})
            return {"supervisors": len(found)}
        if action not in ("pause", "resume"):
            raise DefinitionError(
                f"CONTROL action {action!r:.40}: pause, resume, forget, escalation, stop or kill"
            )
        name = self._named_worker(env.header)
        if action == "pause":
            self.set_fact("pause", name, {"by": session.name, "at": self.wall})
        else:
            for scope in ("pause", "drain"):
                for key in [k for s, k in self.facts if s == scope and name in ("all", k)]:
                    self.drop_fact(scope, key)
            self.lift_quarantine(name, session.name)
            self.unfence(self.fences_on(name), f"resumed by {session.name}")
        for worker in self.workers():
            if name in ("all", worker.name):
                worker.draining = ("drain", worker.name) in self.facts or ("drain", "all") in self.facts
                self.send(worker, Verb.CONTROL, {"action": action})
        topic = f"worker.{name}.{action}d" if name != "all" else f"rig.{action}d"
        self.emit("p", topic, "", "", {"by": session.name})
        return {"worker": name, "action": action}

    def _kill(self, header: dict[str, Any]) -> dict[str, Any]:
        """End a worker hard: its supervisor does it, and says GONE when its tree is dead. With ``session`` only
        that process is meant, so that a repeat does not hit the one that came after it."""
        name = str(header.get("worker") or "")
        worker = self.worker_named(name)
        if worker is None:
            there = ", ".join(sorted(w.name for w in self.workers())) or "none"
            raise NotFound(f"no worker {name!r:.80}; there are: {there}")
        if header.get("session") not in (None, worker.id):
            return {"worker": name, "pid": worker.pid, "supervisors": 0}
        found = [s for s in self.sessions.values() if s.role == "supervisor"]
        if not found:
            raise Refused(f"nobody supervises {name}: end its process (pid {worker.pid}) where it runs")
        for s in found:
            self.send(s, Verb.CONTROL, {"action": "kill", "worker": name, "pid": worker.pid})
        return {"worker": name, "pid": worker.pid, "supervisors": len(found)}

    def drain(self, session: Session, env: Envelope) -> dict[str, Any]:
        """DRAIN: no new leases until resume; running work finishes."""
        name = self._named_worker(env.header)
        self.set_fact("drain", name, {"by": session.name, "at": self.wall})
        running = 0
        for worker in self.workers():
            if name in ("all", worker.name):
                worker.draining = True
                running += len(worker.leases)
                self.send(worker, Verb.CONTROL, {"action": "drain"})
        self.emit("p", f"worker.{name}.draining", "", "", {"by": session.name})
        return {"worker": name, "running": running}

    def gone(self, session: Session, env: Envelope) -> dict[str, Any]:
        """GONE: a process is dead and its tree swept, its leases end now.

        It is named by its ``session``, or by ``name`` and ``pid`` where nobody has heard its session: of several processes
        of a name, as a brain and those that stand by, only that one is dead. With ``undying`` something of the tree cannot
        be killed: its cards stay fenced until another GONE says that it has ended. With ``swept`` nothing of an earlier run
        lives, whatever was fenced.
        """
        if session.role != "supervisor":
            raise Refused("GONE is believed only from a supervisor")
        why = str(env.header.get("why") or "its process is gone")[:500]
        if env.header.get("swept"):
            self.unfence([s for s in self.fences if s not in self.sessions], why)
            return {"sessions": 0, "leases": 0}
        sid, name = env.header.get("session"), env.header.get("name")
        pids = {0, whole(env.header, "pid", 0, MAX_INT, 0)}  # 0: not said
        dead = [
            s
            for s in self.sessions.values()
            if s.id == sid or (name and s.name == name and (pids == {0} or s.pid in pids))
        ]
        leases, undying = 0, bool(env.header.get("undying"))
        for s in dead:
            leases += len(s.leases)
            if undying and s.role == "worker":
                self.fence(s.id, s.name, list(s.leases), why, undying=True)
            self.end_session(s, why, stuck=bool(env.header.get("stuck")), dead=not undying)
        if not undying:
            self.unfence([sid] if isinstance(sid, str) else self.fences_of(str(name)), why)
        if not dead:
            # the broker was restarted too: the dead worker never said HELLO to this incarnation
            absent = {
                t.session
                for t in self.leases.values()
                if t.session not in self.sessions and (t.session == sid or (name and t.worker == name))
            }
            leases = sum(self.lose_absent(lost, why, dead=not undying) for lost in sorted(absent))
            for lost in absent if undying else ():
                self.fence(lost, str(name or ""), (), why, undying=True)
        return {"sessions": len(dead), "leases": leases}

    def token_asked(self, session: Session, env: Envelope) -> dict[str, Any]:
        """TOKEN: take or release a named exclusive lease, bound to the session."""
        name, action = env.header.get("name"), env.header.get("action")
        if not isinstance(name, str) or not 0 < len(name) <= 100 or action not in ("take", "release"):
            raise DefinitionError(
                f"TOKEN wants a name of at most 100 characters and take or release, not {name!r:.60}"
            )
        holder = self.facts.get(("token", name))
        if action == "release":
            if holder is not None and holder.value == session.id:
                self.drop_fact("token", name)
            return {"held": False}
        if holder is None:
            self.check_facts_fit(1)
            self.set_fact("token", name, session.id)
        elif holder.value != session.id:
            other = self.sessions.get(holder.value)
            return {"held": False, "by": other.name if other else holder.value}
        return {"held": True}

    def bye(self, session: Session, env: Envelope) -> None:
        """BYE: the session ends; a worker's leases return at once."""
        reason = str(env.header.get("reason") or f"{session.name} left")[:500]
        self.end_session(session, reason, dead=not session.unkillable, bye=True)
