"""The benches without a rig: figures, the page, limits of the machine, profiles, nonsense."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from helpers import ROOT, short_folder, wait_for

from rigbus.agents.process.tree import peak_rss_bytes
from rigbus.bus.errors import ConfigError, RigbusError
from rigbus.tools.bench import hops, limits, llm, machine, mirror, page, profiled, series, soak
from rigbus.tools.bench.dag import chain_of, fan_of
from rigbus.tools.bench.figures import Figure, Outcome, Spread, cpu_a_task, lines_of, number
from rigbus.tools.bench.recovery import holder, hung
from rigbus.tools.bench.rig import BenchRig, Setup
from rigbus.tools.cli import run

BENCHES = tuple(page.ABOUT)


def outcome(bench: str = "bus", **settings) -> Outcome:
    said = {
        "durability": "full",
        "python": "3.11.7",
        "system": "Linux 6.1",
        "platform": "Linux-6.1-x86_64-with-glibc2.36",
        "cpu": "A Processor With A Rather Long Name @ 2.50GHz",
        "cores": 2,
        "load_before": 0.1,
        "commit": "1234567",
        **settings,
    }
    figures = [
        Figure("no-op tasks", "tasks/s", Spread.of([7000.0, 6500.0, 7100.0]), 6000.0, True, 0.07, "SQLite"),
        Figure("one at a time, p50", "ms", Spread.of([2.5]), target=1.28),
        Figure("cost with the long queue", "× the short one", Spread.of([1.01, 1.03])),
    ]
    return Outcome(
        bench,
        figures,
        said,
        fsync_p50_us=141.0,
        cpu={"broker": 61.0, "workers": 26.0, "client": None, "sum": None},
        limits={"pyzmq echo/s": 66_762.0, "SQLite FULL, tasks/s in groups of 100": 160_146.0},
        notes=["A note that is long enough to be broken " * 5],
    )


# -- figures -------------------------------------------------------------------------------------------------


def test_a_spread_is_median_and_range():
    assert Spread.of([3.0, 1.0, 2.0]) == Spread(2.0, 1.0, 3.0, 3)
    assert Spread.of([1.0, 2.0]).as_dict() == {"median": 1.5, "min": 1.0, "max": 2.0}


@pytest.mark.parametrize(
    ("median", "target", "at_least", "met"),
    [(6000, 6000, True, True), (5999, 6000, True, False), (1.5, 1.5, False, True), (1.6, 1.5, False, False)],
)
def test_a_target_has_a_side(median, target, at_least, met):
    assert Figure("x", "s", Spread.of([median]), target, at_least).met is met


def test_without_a_target_nothing_is_met_or_missed():
    assert Figure("x", "s", Spread.of([1.0])).met is None


def test_the_cpu_a_task_has_a_sum_only_where_all_is_known():
    before, after = {"broker": 1.0, "client": 2.0}, {"broker": 1.5, "client": 2.1}
    assert cpu_a_task(before, after, 1000) == {"broker": 500.0, "client": 100.0, "sum": 600.0}
    assert cpu_a_task({}, {}, 1000) == {"sum": None}


@pytest.mark.parametrize(
    ("value", "said"),
    [
        (6012.4, "6,012"),
        (12.34, "12.3"),
        (0.873, "0.87"),
        (0.0511, "0.051"),
        (0.0, "0.00"),
        (-0.02, "-0.020"),
    ],
)
def test_a_number_has_the_digits_that_mean_something(value, said):
    assert number(value) == said


def test_the_lines_for_people_are_at_most_100_columns():
    lines = lines_of(outcome(load_before=9.9))
    assert max(map(len, lines)) <= 100, max(lines, key=len)
    text = "\n".join(lines)
    assert "≥ 6,000 ok" in text
    assert "≤ 1.28 MISSED" in text
    assert "0.070 SQLite" in text
    assert "6,500 to 7,100" in text
    assert "client ?" in text


def test_a_busy_machine_is_said():
    assert "was busy before" in " ".join(lines_of(outcome(load_before=1.5)))
    assert "was busy before" not in " ".join(lines_of(outcome(load_before=0.9)))


def test_the_json_form_has_its_schema_and_every_figure():
    found = json.loads(json.dumps(outcome().as_json()))
    assert (found["schema"], found["bench"], found["fsync_p50_us"]) == ("rigbus.bench/1", "bus", 141.0)
    first = found["figures"][0]
    assert (first["median"], first["min"], first["max"], first["rounds"]) == (7000.0, 6500.0, 7100.0, 3)
    assert (first["target"], first["target_is"], first["met"], first["ratio"]) == (
        6000.0,
        "at_least",
        True,
        0.07,
    )


def test_the_quantile_is_of_nearest_rank():
    values = [float(n) for n in range(100)]
    assert (mirror.quantile(values, 0.5), mirror.quantile(values, 0.99)) == (50.0, 99.0)
    assert mirror.quantile([7.0], 0.99) == 7.0


# -- the page ------------------------------------------------------------------------------------------------


def whole_page(learned: str = "") -> str:
    return page.page([outcome(b) for b in BENCHES], date="2026-01-02", took_s=123.0, learned=learned)


@pytest.mark.parametrize("bench", BENCHES)
def test_the_page_says_how_to_repeat_each_figure(bench):
    title, command, _ = page.ABOUT[bench]
    text = whole_page()
    assert f"## {title}\n" in text
    assert f"\n    {command}\n" in text
    assert re.search(r"\| no-op tasks \| 7,000 tasks/s \| 6,500 to 7,100 \| ≥ 6,000 \| 0.070 SQLite \|", text)


def test_the_page_has_date_machine_and_commit_and_what_it_does_not_say():
    text = whole_page()
    for part in (
        "2026-01-02",
        "commit: 1234567",
        "2 cores",
        "Python 3.11.7",
        "another machine",
        "do not say",
    ):
        assert part in text


def test_what_people_wrote_survives_a_new_page(tmp_path):
    file = tmp_path / "benchmarks.md"
    file.write_text(whole_page("Commits of a hundred tasks\n\n- are cheap"), "utf-8")
    series.write_page(file, [outcome("bus")], 60.0)
    text = file.read_text("utf-8")
    assert page.learned_in(text) == "Commits of a hundred tasks\n\n- are cheap"
    assert text.count(page.BEGIN) == text.count(page.END) == 1
    assert sorted(p.name for p in tmp_path.iterdir()) == ["benchmarks.md"]


@pytest.mark.parametrize("bench", page.APART)
def test_what_is_measured_by_itself_is_put_into_the_page_and_kept(tmp_path, bench):
    file = tmp_path / "benchmarks.md"
    file.write_text(whole_page(), "utf-8")
    series.write_apart(file, outcome(bench))
    section = page.section_in(file.read_text("utf-8"), bench)
    assert "- targets: no-op tasks: reached" in section
    assert "- commit: 1234567" in section
    series.write_page(file, [outcome("bus")], 60.0)
    text = file.read_text("utf-8")
    assert page.section_in(text, bench) == section
    assert text.count(f"## {page.ABOUT[bench][0]}\n") == 1


def test_a_page_without_such_sections_gets_them_in_their_order(tmp_path):
    file = tmp_path / "benchmarks.md"
    series.write_page(file, [outcome("bus")], 60.0)
    for bench in reversed(page.APART):
        series.write_apart(file, outcome(bench))
    for bench in page.APART:  # and once more, in their places
        series.write_apart(file, outcome(bench))
    heads = re.findall(r"^## (.+)$", file.read_text("utf-8"), re.M)
    wanted = [*(page.ABOUT[bench][0] for bench in page.APART), "Others"]
    assert [head for head in heads if head in wanted] == wanted


@pytest.mark.parametrize("bench", page.APART)
def test_figures_that_are_measured_by_themselves_need_their_page(tmp_path, bench):
    file = tmp_path / "notes.md"
    file.write_text("# Notes\n", "utf-8")
    with pytest.raises(ConfigError, match="not a page of figures"):
        series.write_apart(file, outcome(bench))
    assert file.read_text("utf-8") == "# Notes\n"


def test_a_page_without_markers_has_nothing_to_keep():
    assert page.learned_in("# Benchmarks\n") == ""
    assert page.learned_in(f"{page.BEGIN}\nno end") == ""


def test_the_shipped_page_is_one_of_ours():
    text = (ROOT / "docs" / "benchmarks.md").read_text("utf-8")
    assert page.learned_in(text), "its part for people is empty"
    for title, command, _ in page.ABOUT.values():
        assert f"## {title}\n" in text
        assert f"\n    {command}\n" in text


@pytest.mark.parametrize("words", [command.split() for _, command, _ in page.ABOUT.values()], ids=" ".join)
def test_the_commands_of_the_page_exist(words, capsys):
    assert run([*words[1:], "--help"]) == 0
    assert "Usage: rigbus bench" in capsys.readouterr().out


# -- nonsense ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "words",
    [
        "bus --tasks 0",
        "bus --tasks many",
        "bus --workers 0",
        "bus --payload -1",
        "bus --durability none",
        "shell --tasks 1",
        "shell --repeats 0",
        "dag --items 1000000",
        "dag --chain 0",
        "scale --tasks 1000000",
        "scale --tasks 1000 --part 600 --repeats 2",
        "mirror --rate 0",
        "mirror --for 0",
        "mirror --for nan",
        "all --repeats 0",
        "recovery --only everything",
        "recovery --quick --write pyproject.toml",
        "recovery --only share --write pyproject.toml",
        "soak --tasks 0",
        "soak --part 1000000",
        "nothing",
    ],
)
def test_nonsense_ends_with_2(words, capsys):
    assert run(["bench", *words.split()]) == 2
    assert capsys.readouterr().err


# -- the machine ---------------------------------------------------------------------------------------------


def test_the_settings_name_the_machine_but_no_host_and_no_path():
    text = json.dumps(machine.machine())
    assert os.uname().nodename not in text.replace("Linux", "")
    assert str(ROOT) not in text
    assert {"python", "cpu", "cores", "load_before", "commit"} <= set(machine.machine())


@pytest.mark.skipif(not Path("/proc/self/schedstat").exists(), reason="no /proc of Linux")
def test_the_cpu_of_a_process_is_counted_finely_and_with_its_children():
    before = machine.cpu_s(os.getpid())
    until = time.process_time() + 0.02
    while time.process_time() < until:
        pass
    assert 0.015 <= machine.cpu_s(os.getpid()) - before < 1.0
    code = "import time\nwhile time.process_time() < 0.1: pass\nprint(flush=True)\ninput()"
    child = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    try:
        assert child.stdout.readline()
        assert machine.tree_cpu_s(os.getpid()) - machine.cpu_s(os.getpid()) > 0.09
    finally:
        child.communicate(b"\n")
    assert machine.rss_bytes(os.getpid()) > 1 << 20


def test_of_a_process_that_is_gone_nothing_is_known():
    child = subprocess.Popen([sys.executable, "-c", ""])
    child.wait()
    assert machine.cpu_s(child.pid) is None
    assert machine.rss_bytes(child.pid) is None


def test_each_limit_of_the_machine_is_measured(tmp_path):
    assert limits.fsync_p50_us(tmp_path, 5) > 0
    db = limits.Sqlite(tmp_path)
    grouped, single = db.tasks_per_s(100, 0.05), db.tasks_per_s(1, 0.05)
    db.close()
    assert grouped > single > 0
    assert limits.bash_loop(0.1) > 0
    with short_folder() as folder, limits.echo(folder) as echo:
        assert echo(50, 0.05) > 0
        assert echo(1, 0.05) > 0


@pytest.mark.parametrize(
    ("step_ms", "cancel_ms", "target", "met"),
    [(50.0, 54.9, 55.0, True), (50.0, 55.5, 55.0, False), (10.0, 14.0, 15.0, True), (2.0, 90.0, None, None)],
)
def test_a_cancel_has_one_step_and_the_way_of_a_message(step_ms, cancel_ms, target, met):
    rate = [1000 / step_ms]
    rounds = llm.Rounds(one=rate, many=rate, spread=[1.0], first_ms=[step_ms])
    bare = dict.fromkeys(("one", "many", "locked"), rate)
    (found,) = (f for f in llm._figures(bare, rounds, rounds, [cancel_ms]) if f.name == "cancel to free")
    assert (found.unit, found.target, found.at_least, found.met) == ("ms", target, False, met)
    assert found.ratio == pytest.approx(cancel_ms / step_ms)


# -- parts ---------------------------------------------------------------------------------------------------


def test_a_chain_is_a_row_and_a_fan_is_two_ends():
    assert [list(t.after) for t in chain_of(3)] == [[], ["c0"], ["c1"]]
    first, *middle, last = fan_of(3)
    assert not first.after
    assert [list(t.after) for t in middle] == [["first"]] * 3
    assert list(last.after) == ["m0", "m1", "m2"]


def test_the_hops_of_a_call_are_the_times_between_its_stamps():
    calls = [(10.0, 10.010), (11.0, 11.010)]
    stamps = [
        ("SUBMIT", 9.0),  # of a call before
        *(("SUBMIT", t + 0.001) for t in [10.0]),
        ("LEASE", 10.003),
        ("RESULT", 10.006),
        ("ENDED", 10.008),
        ("SUBMIT", 11.001),  # of the second call the tap has dropped the rest
    ]
    taken = hops._medians(calls, stamps)
    assert [round(v) for v in taken.values()] == [1000, 2000, 3000, 2000, 2000]
    assert list(taken) == [name for name, _ in hops.HOPS]


def test_the_reader_notes_each_file_once_and_ends_with_its_stdin(tmp_path):
    folder, out = tmp_path / "complete", tmp_path / "out"
    folder.mkdir()
    (folder / "a.json").write_text("{}")
    (folder / ".b.json.tmp~").write_text("{}")
    began = time.monotonic()
    with out.open("wb") as stdout:
        reader = subprocess.Popen(
            [sys.executable, "-P", "-m", "rigbus.tools.bench.reader", str(folder), "5"],
            stdin=subprocess.PIPE,
            stdout=stdout,
        )
    wait_for(lambda: mirror._all_seen(out, {"a": 0.0}), what="the first file")
    (folder / "c.json").write_text("{}")
    seen = wait_for(lambda: mirror._all_seen(out, {"a": 0.0, "c": 0.0}), what="the second file")
    reader.communicate()
    assert reader.returncode == 0
    assert set(seen) == {"a", "c"}
    assert began < seen["a"] < seen["c"] < time.monotonic()
    assert len(out.read_text().splitlines()) == 2


def test_a_profile_is_written_however_the_process_ends(tmp_path):
    (tmp_path / "probe.py").write_text(
        "import os, threading\n"
        "def work():\n    sum(n * n for n in range(20000))\n"
        "def in_a_thread():\n    work()\n"
        "work()\nt = threading.Thread(target=in_a_thread)\nt.start()\nt.join()\nos._exit(3)\n"
    )
    file = tmp_path / "probe.pstats"
    done = subprocess.run(
        [sys.executable, "-m", "rigbus.tools.bench.profiled", str(file), "probe"], cwd=tmp_path, check=False
    )
    assert done.returncode == 3
    rows = {row.function.rpartition(" ")[2]: row for row in profiled.top(file, 50)}
    assert rows["work"].calls == 2  # the main thread's and the other's
    lines = profiled.lines_of_tops(profiled.tops(tmp_path), tmp_path)
    assert lines[0].startswith("probe: ")
    assert max(map(len, lines)) <= 100 + len(str(tmp_path))


@pytest.mark.parametrize("content", [b"", b"no profile at all", b"\xfb\x01\x00"])
def test_what_is_no_profile_is_named(tmp_path, content):
    (tmp_path / "x.pstats").write_bytes(content)
    with pytest.raises(ConfigError, match=r"x\.pstats: is no profile"):
        profiled.tops(tmp_path)


def test_a_rig_whose_process_cannot_start_says_why_and_leaves_nothing(monkeypatch, tmp_path):
    with short_folder() as folder:
        monkeypatch.setattr("tempfile.tempdir", str(folder))
        monkeypatch.setattr("rigbus.tools.bench.rig.sys.executable", str(tmp_path / "no-python"))
        with pytest.raises(OSError, match="no-python"), BenchRig(Setup(agents=1)):
            pass
        assert not list(folder.iterdir())


def test_a_rig_notices_that_a_process_has_ended(monkeypatch):
    with short_folder() as folder:
        monkeypatch.setattr("tempfile.tempdir", str(folder))
        with BenchRig(Setup()) as rig:
            os.kill(rig.pid("broker"), signal.SIGKILL)
            with pytest.raises(RigbusError, match="broker ended with -9"):
                rig.wait(lambda: False, "the end of the broker", 10.0)
        assert not list(folder.iterdir())


# -- recovery and soak ---------------------------------------------------------------------------------------


def test_what_a_holder_began_is_read_back_and_half_a_line_is_not(tmp_path):
    file = tmp_path / "holder-1.starts"
    assert holder.starts_in(file) == []
    file.write_text("12.500000 abc 1 3\n13.000000 abc 2 4\n13.1")
    assert holder.starts_in(file) == [holder.Start(12.5, "abc", 1, 3), holder.Start(13.0, "abc", 2, 4)]


def test_growth_is_the_slope_of_the_last_half():
    assert soak.slope([1.0], [5.0]) == 0.0
    assert soak.slope([0.0, 1.0, 2.0], [1.0, 3.0, 5.0]) == pytest.approx(2.0)
    series_ = soak._Series()
    for n in range(1, 101):  # grows until a third of it, then stays
        size = min(n, 33) << 20
        series_.samples.append(soak.Sample(n * 1000, {"broker": size}, {"broker": 9}, size, n, 1.0))
    assert series_.growth(lambda s: s.rss["broker"]) == 0
    for sample in series_.samples:
        sample.database += sample.tasks * 100
    assert series_.growth(lambda s: s.database) == pytest.approx(100 * soak.MILLION)


def test_only_a_whole_soak_is_held_to_its_targets():
    samples = [soak.Sample(n, dict.fromkeys(soak.WATCHED, 1 << 20), {"broker": 9}, 1, n, 1.0) for n in (1, 2)]
    for tasks, judged in ((1000, False), (soak.MILLION, True)):
        found = soak._figures(soak._Series(samples), soak.Options(tasks), 1000.0)
        assert any(f.target is not None for f in found) is judged
        assert all(f.met is not False for f in found)


def test_a_stopped_process_is_seen_as_such_and_one_that_is_gone_as_nothing():
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    try:
        hung._signal([child.pid], signal.SIGSTOP)
        wait_for(lambda: hung._state(child.pid) == "T", what="the child to stop")
        hung._signal([child.pid], signal.SIGCONT)
    finally:
        child.communicate(b"\n")
    assert hung._state(child.pid) == ""
    hung._signal([child.pid], signal.SIGCONT)  # nobody's any more: ignored


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="no /proc of Linux")
def test_the_peak_of_memory_is_told_after_it_has_gone():
    code = "a = bytearray(64 << 20); del a; print(flush=True); input()"
    child = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    try:
        assert child.stdout.readline()
        assert peak_rss_bytes(child.pid) - machine.rss_bytes(child.pid) > 32 << 20
        assert machine.open_files(child.pid) >= 3
    finally:
        child.communicate(b"\n")
    assert machine.open_files(child.pid) is None


def test_what_up_does_not_run_just_now_is_not_killed(monkeypatch):
    killed = []
    rig = BenchRig(Setup(up=True, workers=1))
    try:
        monkeypatch.setattr(os, "kill", lambda *given: killed.append(given))
        with pytest.raises(RigbusError, match="worker-1 does not run just now"):
            rig.kill("worker-1")
    finally:
        rig.__exit__()
    assert not killed, "pid 0 is the bench's own process group"
