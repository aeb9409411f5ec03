"""Plans that are revised again and again, by a seed, over killed brains and brokers: what is done stays done."""

from __future__ import annotations

from pathlib import Path
from random import Random

import pytest
from durable import Durable
from revisable import Rig, command

from rigbus.bus.core.model import Task
from rigbus.bus.states import BatchState, TaskState
from rigbus.bus.wire import Verb

#: The later ones are those with which every branch of core, store, brain and plans is taken that any of the first 60 takes.
SEEDS = (*range(14), 16, 21, 38, 50, 53, 55)
KEYS = "abcdef"
ITEMS = ("i1", "i2", "i3")
SHARES = {
    "finish": 9,
    "fail": 3,
    "revise": 4,
    "cancel": 1,
    "retry": 2,
    "brain": 2,
    "broker": 1,
    "dead": 3,
}


def plan_of(dice: Random, n: int) -> str:
    """Some of the tasks, each after some of those before it; `f` may be a list."""
    chosen = [key for key in KEYS if dice.random() < 0.75] or ["a"]
    text = ""
    for at, key in enumerate(chosen):
        after = dice.sample(chosen[:at], min(at, dice.choice((0, 1, 1, 2))))
        run = f"v{n}" if dice.random() < 0.4 else "v0"
        part = command(key, *after, run=run, on_failure=dice.choice(("abort", "continue")))
        if key == "f" and dice.random() < 0.7:
            source = dice.choice(("l", "m"))
            part += f"- foreach: {{BATCH_PATH}}/{source}.json:items\n"
            part = part.replace(f"`{run}`", f"`{run} {{ITEM.id}}`")
        text += part
    return text


class Story:
    """One batch, and what happens to it; ``done`` is every task that was recorded."""

    def __init__(self, seed: int, path: Path) -> None:
        self.dice = Random(seed)
        lists = {"f": [{"id": name} for name in ITEMS]}
        self.rig = Rig(plan_of(self.dice, 0), lists, harness=Durable(path, durability="normal"))
        self.done: dict[str, tuple[int, int]] = {}
        self.n = 0

    def step(self) -> None:
        rig, dice = self.rig, self.dice
        (what,) = dice.choices(tuple(SHARES), tuple(SHARES.values()))
        leased = sorted(rig.take())
        ending = [key for key in leased if rig.task(key).ending]
        if what in ("finish", "fail") and leased:
            rig.finish(dice.choice(leased), fails=what == "fail")
        elif what == "dead" and ending:
            rig.worker.take(Verb.CONTROL)
            rig.worker.fail(rig.held.pop(dice.choice(ending)), "task", cancelled=True)
            rig.settle()
        elif what == "revise":
            self.n += 1
            rig.revise(plan_of(dice, self.n), settle=False)
            rig.kill_after = dice.choice((-1, 0, 1, 2))
            if dice.random() < 0.7:
                rig.settle()
        elif what == "cancel":
            rig.client.ask(Verb.CANCEL, {"batch": rig.batch})
        elif what == "retry":
            rig.client.ask(Verb.REQUEUE, {"batch": rig.batch})
            rig.settle()
        elif what == "brain":
            rig.start()
            rig.settle()
        elif what == "broker":
            rig.restart()
        self.look()

    def look(self) -> None:
        self.rig.rig.check()
        for key, task in self.rig.row.keys.items():
            if key in self.done and not structural(task):
                assert task.state is TaskState.DONE and self.done[key] == (task.no, task.attempt), key
            elif task.state is TaskState.DONE:
                self.done[key] = (task.no, task.attempt)
            else:
                self.done.pop(key, None)

    def end(self) -> None:
        """A last plan, and everything of it runs."""
        rig = self.rig
        rig.kill_after = -1
        rig.start()
        last = "".join(command(key, run="last") for key in KEYS[:3])
        rig.revise(last)
        for _ in range(50):
            for key in sorted(rig.take()):
                if rig.task(key).ending:
                    rig.worker.take(Verb.CONTROL)
                    rig.worker.fail(rig.held.pop(key), "task", cancelled=True)
                else:
                    rig.finish(key)
                rig.settle()
            self.look()
            if rig.row.state is BatchState.COMPLETE:
                break
        assert rig.row.state is BatchState.COMPLETE, rig.states()
        left = {
            key for key, task in rig.row.keys.items() if not task.dropped and task.state is not TaskState.DONE
        }
        assert not left
        for key in KEYS[:3]:
            assert rig.task(key).state is TaskState.DONE


def structural(task: Task) -> bool:
    """A list, or the join of its items: read and made again."""
    return task.join or task.shape.type == "expand"


@pytest.mark.parametrize("seed", SEEDS)
def test_whatever_happens_meanwhile_done_stays_done_and_the_last_plan_is_what_ends(
    seed: int, tmp_path: Path
) -> None:
    story = Story(seed, tmp_path / "rig.db")
    for _ in range(40):
        story.step()
    story.end()
    story.rig.rig.store.close()  # type: ignore[attr-defined]
