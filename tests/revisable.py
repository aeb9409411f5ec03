"""A batch of a plan that can be revised: the broker's core, the brain's parts, one worker; all of it by hand."""

from __future__ import annotations

import itertools
from dataclasses import replace
from typing import Any

from brainparts import BrainPart
from durable import Durable
from harness import STATE_ID, Harness, Peer, Send

from rigbus.agents.brain import core, messages
from rigbus.agents.brain.expanding import Expanding
from rigbus.agents.brain.planning import Planning
from rigbus.agents.brain.revising import Revising
from rigbus.bus.core.model import Batch, Task
from rigbus.bus.errors import Unreachable
from rigbus.bus.paths import view_name
from rigbus.bus.wire import Verb, unpack
from rigbus.plans import parse_plan
from rigbus.plans.model import Plan

HEAD = "# Plan: p\n\n## Tasks\n\n"


def command(key: str, *after: str, run: str = "true", **fields: str) -> str:
    """A task of a plan."""
    lines = [f"### {key}", "- task_class: cpu", f"- command: `{run}`"]
    lines += [f"- depends_on: {', '.join(after)}"] if after else []
    return "\n".join([*lines, *(f"- {name}: {value}" for name, value in fields.items())]) + "\n"


class Rig(BrainPart):
    """``kill_after``: so many messages of the brain until it dies; ``files``: hash of a plan's files, by its sha256."""

    def __init__(
        self,
        text: str,
        lists: dict[str, list[Any]] | None = None,
        slots: int = 1000,
        harness: Harness | None = None,
    ) -> None:
        self.rig = harness or Harness()
        self.numbers = itertools.count(1)
        self.plans: dict[str, Plan] = {}
        self.files: dict[str, str] = {}
        self.lists = lists or {}
        self.client = self.rig.client()
        self.brain: Peer = self.rig.brain()
        self.offer = {"credit": slots, "slots": slots, "types": ["shell", "expand"], "state_id": STATE_ID}
        self.worker = self.rig.worker(**self.offer)
        self.held: dict[str, dict[str, Any]] = {}
        self.ran: list[str] = []
        self.kill_after = -1
        self.batch = self.client.submit(kind="plan", plan=self.plan(text)).header["batch"]
        self.start()
        self.settle()

    def plan(
        self, text: str, config: dict[str, Any] | None = None, files: str = "", **more: Any
    ) -> dict[str, Any]:
        """The map of a staged plan."""
        sha = f"{next(self.numbers):064x}"
        self.plans[sha], self.files[sha] = parse_plan(more.pop("head", HEAD) + text, name="p"), files
        return {"name": "p", "sha256": sha, "config": config or {}, "batch_root": "/b", **more}

    def revise(
        self, text: str, key: str = "", settle: bool = True, lists: dict[str, Any] | None = None, **how: Any
    ) -> Send:
        self.lists |= lists or {}
        head = {"batch": self.batch, "key": key or f"k{next(self.numbers)}", "reason": "mended"}
        answer = self.client.ask(Verb.REVISE, head | {"plan": self.plan(text, **how)})
        if settle:
            assert answer.verb is Verb.OK, answer.header
            self.settle()
        return answer

    # -- what the brain's process offers ---------------------------------------------------------------------

    def tell(
        self, header: dict[str, Any], message: messages.Message | None = None, batch: str | None = None
    ) -> dict[str, Any]:
        if self.kill_after == 0:
            raise Unreachable("killed before it said so")
        self.kill_after -= 1
        answer = super().tell(header, message, batch)
        self.rig.check()
        return answer

    def rows(self, ids: list[str]) -> list[dict[str, Any]]:
        return list(self.query("rows", ids=ids)["rows"])

    def value(self, task: str) -> Any:
        return {"items": self.lists[core.template_of(self.rig.core.ids[task].key)]}

    def run_of(self, row: dict[str, Any]) -> tuple[messages.Run, Plan]:
        spec = row["spec"]
        view = f"/views/{view_name(row['id'], row['revision'])}"
        run = messages.Run(
            row["id"],
            "p",
            STATE_ID,
            spec["sha256"],
            f"/s/{spec['sha256']}",
            "/o",
            view,
            "/b/x",
            spec["config"],
        )
        run = replace(run, revision=row["revision"], files=self.files[spec["sha256"]])
        return run, self.plans[spec["sha256"]]

    # -- the brain's life ------------------------------------------------------------------------------------

    def start(self) -> None:
        """A process: it knows what a snapshot says."""
        self.expanding = Expanding(self)
        self.revising = Revising(self, self.expanding)
        self.planning = Planning(self, self.revising)
        self.begin()

    def restart(self) -> None:
        """The broker is killed and started again; everybody says HELLO, and the worker what it runs."""
        assert isinstance(self.rig, Durable)
        self.take()
        self.rig = self.rig.restart()
        self.client, self.brain = self.rig.client(), self.rig.brain()
        self.worker.rig = self.rig
        self.worker.reconnect(resume=[lease["token"] for lease in self.held.values()])
        self.worker.offer(**self.offer)
        self.start()

    def do_work(self, work: core.Work) -> None:
        try:
            self._do(work)
        except Unreachable:
            self.kill_after = -1
            self.start()

    def _do(self, work: core.Work) -> None:
        if isinstance(work, core.PlanBatch):
            revises = self.batch_row(work.batch)["revising"]
            if self.planning.step(work.batch):
                self.work.append(work)
            elif revises:
                self.work.append(core.LookAgain(work.batch))
        elif isinstance(work, core.ExpandTemplate):
            self.work.extend(self.expanding.step(work))
        elif isinstance(work, core.Unblock):
            self.work.extend(self.expanding.unblocked(work))
        elif isinstance(work, core.LookAgain):
            page = self.brain.ask(Verb.SNAPSHOT, {"attn": True}).header
            due = core.work_of_snapshot(page["batches"], page["rows"])
            self.work += [w for w in due if isinstance(w, core.ExpandTemplate)]

    # -- the worker ------------------------------------------------------------------------------------------

    def take(self) -> dict[str, dict[str, Any]]:
        """What is leased and not answered, by key; its command under ``command``."""
        for send in [s for s in self.worker.inbox if s.verb is Verb.LEASE]:
            for lease, no in zip(send.header["leases"], send.payload_of or (), strict=True):
                self.held[lease["key"]] = lease | {"payload": self.payload(no)}
        self.worker.take(Verb.LEASE)
        return self.held

    def payload(self, no: int) -> Any:
        """As the store has it."""
        if isinstance(self.rig, Durable):
            return unpack(self.rig.store.payloads([no])[no][1])
        for changes in reversed(self.rig.changes):
            if no in changes.respecs:
                return unpack(changes.respecs[no][1])
            if no in changes.new_tasks:
                return unpack(changes.new_tasks[no][2])
        raise LookupError(no)

    def finish(self, *keys: str, fails: bool = False, **result: Any) -> None:
        """These leases are answered; the brain acts on it."""
        self.take()
        for key in keys:
            lease = self.held.pop(key)
            if fails:
                self.worker.fail(lease, "definition")
            else:
                self.ran.append(f"{key}: {lease['payload'].get('command')}")
                self.worker.result(lease, **result)
            self.settle()

    def finish_all(self) -> None:
        while keys := list(self.take()):
            self.finish(*keys)

    def cancelled_on_worker(self, *keys: str) -> None:
        """Their trees are dead: the worker says so."""
        told = {tuple(t) for h in self.worker.take(Verb.CONTROL) for t in h.get("tokens", ())}
        for key in keys:
            lease = self.take().pop(key)
            assert tuple(lease["token"]) in told, f"nobody told the worker to end {key}"
            self.worker.fail(lease, "task", cancelled=True)
        self.settle()

    # -- looking ---------------------------------------------------------------------------------------------

    @property
    def row(self) -> Batch:
        return self.rig.core.batch_ids[self.batch]

    def task(self, key: str) -> Task:
        return self.row.keys[key]

    def states(self) -> dict[str, str]:
        return {key: task.state.name for key, task in self.row.keys.items() if not task.dropped}
