"""A failed batch of a real plan in the broker's own core, its escalation, and the bridge's flows on a real share."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from flowing import Killed
from folders import Share
from harness import Harness, spec

from rigbus.bridge.folder.contract.layout import File
from rigbus.bridge.folder.escalations.answers import Answers
from rigbus.bridge.folder.escalations.escalations import Escalations
from rigbus.bridge.folder.intake.journal import Journal
from rigbus.bridge.folder.intake.taking import Taker
from rigbus.bridge.folder.loop.clock import Clock
from rigbus.bridge.folder.loop.flows import Ask, Flow, Idle, Ops
from rigbus.bus.core.escalations import Guards
from rigbus.bus.paths import RigPaths, log_path, rig_paths
from rigbus.bus.wire import Envelope, Verb
from rigbus.plans.stage import stage_plan

FOLDER = "brain/escalations"
PLAN = """# Plan: p

## Inputs

- **WORD**: what (default: `hi`)

## Tasks

### one

- **command**: `python3 {PLAN_PATH}/scripts/one.py {WORD}`

### two

- **command**: `true`
- **depends_on**: one
"""
ONCE = {"task": 1, "backoff_s": 0}


class Rig:
    """The core as the bridge sees it. ``said`` are the verbs that change something, as they came."""

    def __init__(self, spec_of_plan: dict[str, Any], guards: Guards | None = None) -> None:
        self.core = Harness()
        self.core.core.escalations.guards = guards or Guards(max_per_batch=9, cooldown_s=0.0)
        self.seat = self.core.brain()
        self.bridge = self.core.peer("bridge")
        self.said: list[Ask] = []
        self.revise: Callable[[dict[str, Any]], Envelope] = self._revised
        self.revisions: dict[str, dict[str, Any]] = {}
        head = {"key": "k", "kind": "plan", "name": "p", "plan": spec_of_plan}
        self.batch = str(self.bridge.ask(Verb.SUBMIT, {"batch": head, "tasks": []}).header["batch"])
        specs = [spec("one", policy=ONCE), spec("two", "one", policy=ONCE), spec("three", policy=ONCE)]
        self.tell(batch=self.batch, tasks=specs, close=[self.batch])
        self.worker = self.core.worker(name="w1", credit=1)
        for _ in range(2):  # one, and three
            self.worker.fail(self.worker.lease())
        self.raise_("k1")

    def tell(self, **header: Any) -> None:
        answer = self.seat.ask(Verb.BRAIN, {"epoch": self.core.core.epoch, "upto_seq": 0, **header})
        assert answer.verb is Verb.OK, answer.header

    def raise_(self, key: str, *, rig: bool = False, cause: str = "repeated_failures") -> str:
        task = self.core.core.batch_ids[self.batch].keys["one"]
        one = {"key": key, "cause": cause, "type": "execute_plan_failure", "title": "one failed: no"}
        about = {} if rig else {"batch": self.batch, "task": task.id}
        self.tell(escalate=[one | about])
        return list(self.core.core.escalations.records)[-1]

    @property
    def id(self) -> str:
        return next(iter(self.core.core.escalations.records))

    def record(self, id_: str = "") -> dict[str, Any]:
        return self.core.core.escalations.records[id_ or self.id].row()

    def attempts(self, key: str = "one") -> int:
        """How often a task was begun."""
        return self.core.core.batch_ids[self.batch].keys[key].attempt

    def verbs(self) -> list[str]:
        return [ask.verb.value for ask in self.said if ask.verb is not Verb.CONTROL]

    def _revised(self, header: dict[str, Any]) -> Envelope:
        self.revisions.setdefault(header["key"], header)
        return Envelope(Verb.OK, {"batch": header["batch"], "revision": 1 + len(self.revisions)})

    def __call__(self, ask: Ask) -> Envelope:
        if ask.verb is not Verb.QUERY:
            self.said.append(ask)
        if ask.verb is Verb.REVISE:
            return self.revise(ask.header)
        send = self.bridge.ask(ask.verb, ask.header, list(ask.body))
        if ask.header.get("what") == "task" and send.verb is Verb.OK:  # the shell adds them
            no = self.core.core.ids[ask.header["id"]].no
            found = [a for changes in self.core.changes for a in changes.attempts if a[0] == no]
            names = ("n", "worker", "started_at", "ended_at", "class", "error")
            send.header["attempts"] = [dict(zip(names, a[1:], strict=True)) for a in found]
        return Envelope(send.verb, send.header, send.body)


class World:
    """Rig, share and bridge. ``now`` is the bridge's clock."""

    def __init__(self, share: Share, state: Path, guards: Guards | None = None) -> None:
        self.share, self.now = share, 1000.0
        self.paths: RigPaths = rig_paths(state, share.root)
        self.paths.state.mkdir()
        plan = share.root / "plans/p"
        (plan / "scripts").mkdir(parents=True)
        (plan / "plan.md").write_text(PLAN)
        (plan / "scripts/one.py").write_text("raise SystemExit(3)\n")
        (plan / "scripts/gone").symlink_to("one.py")
        (plan / "notes.txt").write_text("notes\n")
        share.do()
        staged = stage_plan(plan, self.paths.staged)
        self.spec = {
            "name": "p",
            "sha256": staged.sha256,
            "path": str(plan),
            "batch_root": f"{plan}/batches",
            "config": {"WORD": "ho"},
            "priority": None,
        }
        self.folder = share.root / FOLDER
        self.folder.mkdir(parents=True)
        self.rig = Rig(self.spec, guards)
        self.files: dict[str, File] = {}
        self.clock = Clock(lambda: self.now, lambda: 1_770_576_370.0 + self.now, lambda _: 3600.0)
        self.begin()

    def begin(self) -> None:
        """As a bridge process starts."""
        taker = Taker(self.paths, self.clock, Journal(self.paths.state / "doors/answers"))
        self.answers = Answers(self.share.port, taker, self.paths, self.clock)
        self.escalations = Escalations(self.share.port, self.paths, self.clock, self._want)
        self.flow = self.answers.run()

    def _want(self, file: File) -> None:
        self.files[file.path] = file

    # -- flows -----------------------------------------------------------------------------------------------

    def turn(self, flow: Flow[None] | None = None, *, die_at: int = 0) -> int:
        """Until it pauses; how many steps it took. With ``die_at`` it is killed after so many were done."""
        flow = flow or self.flow
        value: Any = None
        steps = 0
        while True:
            step = flow.send(value)
            if isinstance(step, Idle):
                return steps
            steps += 1
            value = self.answer_to(step)
            if steps == die_at:
                raise Killed

    def answer_to(self, step: Ops | Ask) -> Any:
        """Of the share, or of the broker."""
        if isinstance(step, Ops):
            return self.share.port.call(step.kind, step.ops, step.deadline_s)
        return self.rig(step)

    def later(self, seconds: float) -> None:
        self.now += seconds
        self.turn()

    def draw(self) -> None:
        self.turn(self.escalations.run())

    # -- files -----------------------------------------------------------------------------------------------

    def answer(self, action: str, id_: str = "", **fields: Any) -> Path:
        """An answer file, written as people's programs write: in place."""
        id_ = id_ or self.rig.id
        file = self.folder / f"{id_}.answer.json"
        file.write_text(json.dumps({"escalation_id": id_, "action": action, **fields}))
        return file

    def receipt(self, id_: str = "") -> dict[str, Any]:
        file = self.folder / f"{id_ or self.rig.id}.answer.receipt.json"
        found: dict[str, Any] = json.loads(file.read_text())
        return found

    def problems(self) -> str:
        said = self.receipt()
        assert said["state"] == "refused", said
        return "; ".join(
            f"{p.get('file')}:{p.get('line')}: {p['what']}; {p['fix']}" for p in said["problems"]
        )

    def journal(self) -> list[str]:
        return [p.name for p in (self.paths.state / "doors/answers").iterdir()]

    def log(self, key: str, n: int, text: str) -> Path:
        path = log_path(self.paths.logs, self.rig.batch, key, n)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        return path


__all__ = ["FOLDER", "PLAN", "Killed", "Rig", "World"]
