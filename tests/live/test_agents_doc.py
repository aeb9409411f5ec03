"""docs/agents.md, run as it stands: three agents in a ring, and what it promises when they die."""

from __future__ import annotations

import re
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from rigbus import Task
from rigbus.agents.base import load_agent
from rigbus.agents.testing import Rig

DOC = Path(__file__).parents[2] / "docs" / "agents.md"
ROUNDS = 20
SAID = [
    f"author: rigbus is fast{'er' * n} / critic: the author says: I measured it {n + 1} times"
    for n in range(ROUNDS)
]


def blocks() -> dict[str, str]:
    """The files that the page shows, by the name in their first line."""
    found = re.findall(r"^```python\n# (\S+)\n(.*?)^```", DOC.read_text(), re.MULTILINE | re.DOTALL)
    return dict(found)


@pytest.fixture
def conversation(rig: Rig) -> Rig:
    file = rig.folder / "conversation.py"
    file.write_text(blocks()["conversation.py"])
    for name in ("Author", "Critic", "Checker"):
        rig.add(load_agent(f"{file}:{name}"))
    return rig


def test_the_page_shows_about_forty_lines() -> None:
    code = [line for line in blocks()["conversation.py"].splitlines() if line.strip()]
    assert len(code) <= 40


def test_the_pages_own_test_passes(tmp_path: Path) -> None:
    for name, text in blocks().items():
        (tmp_path / name).write_text(text)
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "test_conversation.py"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_conversation_outlives_its_middle_and_the_broker(conversation: Rig) -> None:
    rig = conversation
    ids = rig.bus.submit([Task(type="author.write", payload={"subject": "rigbus", "rounds": ROUNDS})])

    def answered() -> int:
        rows = rig.bus.query("tasks", batch=ids.batch, limit=500)["rows"]
        return sum(row["type"] == "critic.review" and row["state"] == "done" for row in rows)

    rig.wait(lambda: answered() >= 3, what="three rounds")
    rig.kill("critic-1")
    rig.add(load_agent(f"{rig.folder / 'conversation.py'}:Critic"), name="critic-1")
    rig.wait(lambda: answered() >= 6, what="six rounds")
    rig.restart_broker()
    rig.wait(lambda: answered() >= 8, what="eight rounds")
    rig.kill("author-1")
    rig.add(load_agent(f"{rig.folder / 'conversation.py'}:Author"), name="author-1")
    (result,) = rig.bus.results(ids, timeout_s=60)
    assert result.ok, result.error
    assert result.value["said"] == SAID
    rows = rig.bus.query("tasks", batch=ids.batch, limit=500)["rows"]
    assert {row["state"] for row in rows} == {"done"}
    assert Counter(row["type"] for row in rows) == {
        "author.write": 1,
        "critic.review": ROUNDS,
        "checker.check": ROUNDS,
        "author.meant": ROUNDS,
    }
    assert len({row["key"] for row in rows}) == len(rows)
