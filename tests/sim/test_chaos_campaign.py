"""What a chaos campaign does by its seed, and its history in a file: all of it that needs no rig."""

from __future__ import annotations

from pathlib import Path

from chaos.history import History, read
from chaos.schedule import plan_round
from chaos.work import BAD, FATES, PLANS, job, plan_files, tasks_of

from rigbus.plans.parser import load_plan


def test_one_seed_is_one_campaign() -> None:
    assert [job(7, n) for n in range(30)] == [job(7, n) for n in range(30)]
    assert [plan_round(7, n) for n in range(30)] == [plan_round(7, n) for n in range(30)]
    assert [job(7, n) for n in range(30)] != [job(8, n) for n in range(30)]


def test_every_fate_and_every_kind_of_job_comes() -> None:
    jobs = [job(7, n) for n in range(400)]
    assert {c.fate for j in jobs for c in j.commands} == set(FATES)
    assert {j.kind for j in jobs} == {"client", "plan", "drop"}
    assert PLANS / 2 < sum(j.kind != "client" for j in jobs) / len(jobs) < PLANS * 2
    assert any(not {c.fate for c in j.commands} & BAD for j in jobs)
    assert {(), None} < {j.cancel for j in jobs}


def test_the_plans_of_a_campaign_are_plans(tmp_path: Path) -> None:
    given = next(j for j in (job(7, n) for n in range(400)) if j.kind == "plan" and len(j.commands) > 10)
    for name, content in plan_files(given, tmp_path / "act.sh").items():
        (tmp_path / name).write_text(content)
    plan, _ = load_plan(tmp_path)
    assert [t.id for t in plan.tasks] == ["first-ok", "each", "last-ok"]


def test_a_graph_names_only_what_stands_before_it(tmp_path: Path) -> None:
    for n in range(50):
        given = job(7, n)
        if given.kind == "client":
            assert len(tasks_of(given.commands, tmp_path)) == len(given.commands)


def test_a_history_is_read_as_it_was_written_and_a_torn_line_shows(tmp_path: Path) -> None:
    history = History(tmp_path / "history.jsonl")
    history.add("campaign", seed=1)
    history.add("batch", kind="plan")
    history.close()
    with history.path.open("ab") as f:
        f.write(b'{"k": "sta')
    found = list(read(history.path))
    assert [r["k"] for r in found] == ["campaign", "batch", "torn"]
    assert found[1]["kind"] == "plan"
