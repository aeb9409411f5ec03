"""Process control with real processes: every way in which a command tries to outlive its attempt."""

from __future__ import annotations

import ctypes
import os
import re
import select
import signal
import subprocess
import sys
import textwrap
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from time import monotonic, perf_counter

import pytest
from helpers import open_descriptors

from rigbus.agents.attempts.environment import task_environment
from rigbus.agents.attempts.output import OutputSummary
from rigbus.agents.process.linux import (
    PYTHON_LAUNCHER,
    Child,
    ExitStatus,
    LinuxProcesses,
    PortableProcesses,
    Processes,
    Spawn,
    SpawnError,
    default_launcher,
    processes,
    shell_argv,
)
from rigbus.agents.process.tree import Proc, all_procs, children_of, kill_exactly, read_proc

linux = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="needs Linux's /proc and pidfds")
RIG = f"test-{os.getpid()}"
PR_SET_CHILD_SUBREAPER = 36


class Rig:
    """A process control with a loop around it, as a worker has one."""

    def __init__(self, procs: Processes, folder: Path) -> None:
        self.procs = procs
        self.folder = folder
        self.children: list[Child] = []

    def spawn(self, command: str | list[str], **more: object) -> Child:
        argv = shell_argv(command) if isinstance(command, str) else command
        token = more.pop("token", f"{RIG}:w1:1.{len(self.children)}")
        env = {**task_environment(os.environ, {}), **more.pop("env", {})}  # type: ignore[dict-item]
        spec = Spawn(argv=argv, env=env, token=token, cwd=self.folder, **more)  # type: ignore[arg-type]
        child = self.procs.spawn(spec)
        self.children.append(child)
        return child

    def wait(self, child: Child, until: Callable[[], object], timeout_s: float = 10.0) -> None:
        """Serves the child's descriptors until the condition holds."""
        deadline = monotonic() + timeout_s
        while not until():
            assert monotonic() < deadline, "the condition did not come true in time"
            poller = select.poll()
            for fd in child.fds:
                poller.register(fd, select.POLLIN)
            poller.poll(5)
            child.read_output()
            child.read_entry()

    def exit(self, child: Child, timeout_s: float = 10.0) -> ExitStatus:
        self.wait(child, child.poll_exit, timeout_s)
        assert child.status is not None
        return child.status

    def sweep(self, child: Child, timeout_s: float = 10.0) -> None:
        sweep = self.procs.kill_tree(child)
        self.wait(child, sweep.step, timeout_s)
        assert sweep.done

    def run(self, command: str | list[str], **more: object) -> tuple[ExitStatus, OutputSummary]:
        child = self.spawn(command, **more)
        status = self.exit(child)
        self.sweep(child)
        summary = child.finish_output()
        child.close()
        return status, summary

    def pids_printed(self, child: Child, count: int) -> list[int]:
        """The child's log holds that many complete lines, each a pid."""
        path = self.folder / "out.log"
        self.wait(child, lambda: path.exists() and path.read_bytes().count(b"\n") >= count)
        return [int(word) for word in path.read_text().split()]

    @property
    def log(self) -> Path:
        return self.folder / "out.log"

    def end(self) -> None:
        for child in self.children:
            sweep = self.procs.kill_tree(child)
            self.wait(child, sweep.step)
            child.close()


def linux_rig(folder: Path, launcher: list[str] | None = None) -> Iterator[Rig]:
    procs = LinuxProcesses(launcher)
    assert procs.become_subreaper()
    rig = Rig(procs, folder)
    yield rig
    rig.end()
    procs.sweep_prefix(RIG)
    ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 0, 0, 0, 0)


@pytest.fixture(params=["linux", "linux-python-launcher", "portable"])
def rig(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Rig]:
    """Everything that both implementations promise."""
    if request.param == "portable":
        rig = Rig(PortableProcesses(), tmp_path)
        yield rig
        rig.end()
    elif not sys.platform.startswith("linux"):
        pytest.skip("needs Linux")
    else:
        yield from linux_rig(tmp_path, PYTHON_LAUNCHER if "python" in request.param else None)


@pytest.fixture
def lrig(tmp_path: Path) -> Iterator[Rig]:
    yield from linux_rig(tmp_path)


def gone(pid: int) -> bool:
    proc = read_proc(pid)
    return proc is None or not proc.alive


def zombies() -> list[int]:
    """Dead children of this process that nobody has reaped."""
    mine = [read_proc(int(name)) for name in os.listdir("/proc") if name.isdigit()]
    return [proc.pid for proc in mine if proc and proc.ppid == os.getpid() and not proc.alive]


# -- how a command ends -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("command", "code", "error_class"),
    [("true", 0, ""), ("exit 7", 7, "task"), ("no-such-program-x", 127, "task")],
)
def test_an_exit_code_arrives_as_it_is(rig: Rig, command: str, code: int, error_class: str) -> None:
    status, _ = rig.run(command)
    assert (status.code, status.signal, status.error_class) == (code, None, error_class)
    assert status.entered
    assert 0 < status.duration_s < 10


def test_a_signal_from_elsewhere_is_a_crash(rig: Rig) -> None:
    status, _ = rig.run("kill -SEGV $$")
    assert (status.code, status.signal, status.sent_by_us) == (None, signal.SIGSEGV, False)
    assert status.error_class == "crash"


def test_a_signal_of_ours_is_not_a_crash(rig: Rig) -> None:
    child = rig.spawn("exec sleep 60")
    rig.wait(child, lambda: child.entered)
    rig.procs.terminate(child)
    status = rig.exit(child)
    assert (status.signal, status.sent_by_us, status.error_class) == (signal.SIGTERM, True, "killed")


def test_a_command_that_ignores_sigterm_dies_in_the_sweep(rig: Rig) -> None:
    child = rig.spawn("trap '' TERM; echo $$; while :; do sleep 60; done", log_path=rig.log)
    rig.pids_printed(child, 1)
    rig.procs.terminate(child)
    assert child.poll_exit() is None
    rig.sweep(child)
    assert child.status is not None
    assert (child.status.signal, child.status.error_class) == (signal.SIGKILL, "killed")


def test_a_command_may_answer_sigterm_with_its_own_exit_code(rig: Rig) -> None:
    child = rig.spawn("trap 'exit 3' TERM; echo $$; while :; do sleep 0.05; done", log_path=rig.log)
    rig.pids_printed(child, 1)
    rig.procs.terminate(child)
    status = rig.exit(child)
    assert (status.code, status.sent_by_us) == (3, True)


def test_the_attempt_ends_with_the_process_though_a_grandchild_holds_its_output(rig: Rig) -> None:
    started = monotonic()
    status, summary = rig.run("echo before; sleep 60 & echo after")
    assert status.code == 0
    assert monotonic() - started < 30, "the grandchild was waited for"
    assert summary.text() == "before\nafter\n"


def test_output_of_both_streams_arrives_in_order_and_in_the_log(rig: Rig) -> None:
    _, summary = rig.run("echo one; echo two >&2; echo three", log_path=rig.log)
    assert summary.text() == "one\ntwo\nthree\n"
    assert rig.log.read_text() == summary.text()


def test_binary_output_is_kept_byte_by_byte(rig: Rig) -> None:
    _, summary = rig.run(r"printf '\000\377\376\r\n\303'", log_path=rig.log)
    assert summary.head == b"\x00\xff\xfe\r\n\xc3" == rig.log.read_bytes()
    assert summary.text() == "\x00\ufffd\ufffd\r\n\ufffd"


def test_a_flood_is_bounded_in_file_and_memory(rig: Rig) -> None:
    _, summary = rig.run("yes | head -c 8000000", log_path=rig.log, max_log_bytes=100_000)
    assert summary.total_bytes == 8_000_000
    assert summary.discarded_bytes == 7_900_000
    assert 100_000 <= rig.log.stat().st_size < 100_300
    assert len(summary.head) + len(summary.tail) == (64 + 256) * 1024


def test_a_child_may_write_its_log_itself(rig: Rig) -> None:
    child = rig.spawn("echo out; echo err >&2", log_path=rig.log, capture=False)
    assert child.output_fd is None
    assert rig.exit(child).ok
    assert rig.log.read_text() == "out\nerr\n"
    assert child.finish_output().total_bytes == 0


def test_a_status_is_not_taken_by_an_unrelated_wait(rig: Rig) -> None:
    child = rig.spawn("exit 7")
    other = subprocess.run(["true"], check=False)
    assert other.returncode == 0
    assert rig.exit(child).code == 7


# -- how a command starts -----------------------------------------------------------------------------


def test_the_child_makes_and_enters_its_folder_itself(rig: Rig) -> None:
    folder = rig.folder / "a share" / "it's $HOME" / "-x"
    child = rig.spawn("pwd; touch made", enter=folder, log_path=rig.log)
    rig.wait(child, lambda: child.entered)
    assert rig.exit(child).ok
    rig.sweep(child)
    assert child.finish_output().text() == f"{folder}\n"
    assert (folder / "made").exists()


# What a command may see of how it was started. Left out: BASH_ARGC and PIPESTATUS, which bash fills when it reads a file before
# the command, RIGBUS_TOKEN, RANDOM and their like, which differ from start to start.
SEEN = r"""
echo "$0|$?|$#|$-|$_|$LINENO|$!|$OLDPWD|$PWD"
declare -p | grep -vE ' (BASH_ARGC|PIPESTATUS|BASHPID|EPOCH[A-Z]*|PPID|RANDOM|SECONDS|SRANDOM|RIGBUS_TOKEN)='
declare -F; alias; shopt; set -o; umask; trap; ulimit -a; hash; jobs; dirs
for fd in /proc/self/fd/*; do echo "${fd##*/} $(readlink "$fd" | sed 's/[0-9]\+/N/g')"; done
grep -E '^(Sig|Shd)(Blk|Ign|Cgt)' /proc/self/status
env | grep -v RIGBUS_TOKEN | sort; tr '\0' '|' </proc/$$/cmdline
cd /; cd -; env | grep PWD | sort
nosuchprogram; ${unset?boom}
"""


@linux
@pytest.mark.parametrize("folder", ["there", "to be/made"])
def test_a_command_sees_the_same_whichever_way_it_enters_its_folder(
    lrig: Rig, tmp_path: Path, folder: str
) -> None:
    (tmp_path / "there").mkdir()
    enter = tmp_path / folder
    seen = []
    for death_signal in (True, False):  # behind setpriv and sh, and bash by itself
        status, summary = lrig.run(SEEN, enter=enter, death_signal=death_signal, umask=0o002)
        assert (status.code, status.entered) == (127, True)
        # dash exports where it came from, which a plain bash does not know
        text = summary.text().replace(f'declare -x OLDPWD="{tmp_path}"', "declare -x OLDPWD")
        text = text.replace(f"|{tmp_path}|", "||").replace(f"OLDPWD={tmp_path}\n", "")
        # glibc's posix_spawn leaves its own two signals ignored (32 and 33), which no program can use
        text = re.sub(r"(?<=SigIgn:\t)\w{16}", lambda m: f"{int(m[0], 16) & ~(0b11 << 31):016x}", text)
        seen.append(text.splitlines())
        if folder != "there":
            enter.rmdir()
    assert seen[0] == seen[1]
    assert len(seen[0]) > 100


@linux
@pytest.mark.parametrize(
    ("env", "command"),
    [
        ({"POSIXLY_CORRECT": "1"}, "pwd"),
        ({"SHELLOPTS": "posix"}, "pwd"),
        ({"SHELLOPTS": "xtrace"}, "pwd"),
        ({"SHELLOPTS": "verbose"}, "pwd"),
        ({"SHELLOPTS": "noexec"}, "pwd"),
        ({"BASH_FUNC_cd%%": "() { :; }"}, "pwd"),
        ({"BASH_ENV": "/nosuch"}, "pwd"),
        ({"RIGBUS_ENTER": "a task's own"}, 'pwd; echo "$RIGBUS_ENTER"'),
        ({}, "-x"),
        ({}, "+x"),
        ({}, "if"),
        ({}, "echo 'open"),
        ({}, "exec >&- 2>&-; exit 4"),
        ({}, "kill -TERM $$"),
    ],
    ids=str,
)
def test_a_command_ends_the_same_whichever_way_it_enters_its_folder(
    lrig: Rig, tmp_path: Path, env: dict[str, str], command: str
) -> None:
    ends = []
    for death_signal in (True, False):
        status, summary = lrig.run(command, enter=tmp_path / "in", env=env, death_signal=death_signal)
        ends.append((status.code, status.signal, status.entered, status.message, summary.text()))
    assert ends[0] == ends[1]
    assert ends[0][2]


@linux
@pytest.mark.parametrize("name", ["a\nb", "nl\n", " sp  ", "q'\"$x`;*", "-n", "ü\t+"])
def test_any_folder_is_entered_whichever_way(lrig: Rig, tmp_path: Path, name: str) -> None:
    for death_signal in (True, False):
        status, summary = lrig.run('printf %s "$PWD"', enter=tmp_path / name, death_signal=death_signal)
        assert (status.code, summary.text()) == (0, str(tmp_path / name))


@linux
def test_a_complaint_of_bash_about_the_folder_names_no_descriptor(lrig: Rig, tmp_path: Path) -> None:
    (tmp_path / "loop").symlink_to("loop")
    (tmp_path / "file").write_text("")
    for bad in (tmp_path / "loop", tmp_path / "file" / "in"):
        status, _ = lrig.run("true", enter=bad, death_signal=False)
        assert (status.code, status.entered) == (125, False)
        assert status.message
        assert "/proc/self" not in status.message


def test_a_folder_is_only_made_where_the_one_that_it_needs_is_there(rig: Rig) -> None:
    plan = rig.folder / "share" / "plan"
    status, _ = rig.run("true", enter=plan / "batch", enter_needs=plan)
    assert not status.entered
    assert f"{plan}: no such file" in status.message
    assert not plan.parent.exists()
    plan.mkdir(parents=True)
    status, _ = rig.run("true", enter=plan / "batch", enter_needs=plan)
    assert status.ok


def test_a_folder_that_cannot_be_made_is_an_infra_failure_with_its_reason(rig: Rig) -> None:
    (rig.folder / "file").write_text("in the way")
    status, summary = rig.run("echo ran", enter=rig.folder / "file" / "batch")
    assert (status.entered, status.ok, status.error_class) == (False, False, "infra")
    assert "Not a directory" in status.message
    assert summary.total_bytes == 0


def test_a_child_killed_before_it_has_entered_is_an_infra_failure(rig: Rig) -> None:
    fifo = rig.folder / "mkdir"  # a share that hangs: the child waits inside its own start-up
    fifo.write_text("#!/bin/sh\necho $$; exec sleep 60\n")
    fifo.chmod(0o755)
    path = f"{rig.folder}:{os.environ['PATH']}"
    child = rig.spawn("echo ran", enter=rig.folder / "new", env={"PATH": path}, log_path=rig.log)
    rig.pids_printed(child, 1)
    assert not child.entered
    rig.sweep(child)
    assert child.status is not None
    assert (child.status.error_class, child.status.entered) == ("infra", False)


def test_argv_reaches_the_program_byte_by_byte(rig: Rig) -> None:
    words = ["", "a b", "$(touch x)", "'\"", "*", "-n", "é\n", "\udcff"]
    code = "import sys,os; sys.stdout.buffer.write(b'|'.join(map(os.fsencode, sys.argv[1:])))"
    _, summary = rig.run([sys.executable, "-c", code, *words])
    assert summary.head == b"|".join(map(os.fsencode, words))


def test_the_command_text_is_read_by_one_shell_only(rig: Rig) -> None:
    _, summary = rig.run("""echo "$V" '$V' "$0" "$#" """, env={"V": "$(echo no) `no` \\"})
    assert summary.text() == "$(echo no) `no` \\ $V bash 0\n"


def test_a_command_inherits_its_token_and_no_descriptor_but_those_passed(rig: Rig) -> None:
    keep, other = os.pipe()
    os.set_inheritable(other, True)
    try:
        child = rig.spawn(
            "echo $RIGBUS_TOKEN; readlink /proc/self/fd/0; ls /proc/self/fd | wc -l; umask",
            pass_fds=(keep,),
            token=f"{RIG}:x:1.1",
            umask=0o002,
        )
        rig.exit(child)
    finally:
        os.close(keep)
        os.close(other)
    token, stdin, count, umask = child.finish_output().text().split()
    assert (token, stdin, umask) == (f"{RIG}:x:1.1", "/dev/null", "0002")
    assert int(count) == 3 + 1 + 1  # the standard ones, the one passed, and ls's own


@pytest.mark.parametrize(
    ("more", "word", "error_class"),
    [
        ({"command": []}, "argv is empty", "definition"),
        ({"token": ""}, "token", "definition"),
        ({"enter": Path("relative")}, "absolute", "definition"),
        ({"command": ["true", "a\0b"]}, "NUL", "definition"),
        ({"command": ["true", "x" * 3_000_000]}, "too long", "definition"),
    ],
)
def test_what_cannot_start_is_a_named_error(rig: Rig, more: dict, word: str, error_class: str) -> None:  # type: ignore[type-arg]
    before = open_descriptors()
    with pytest.raises(SpawnError, match=word) as caught:
        rig.spawn(**{"command": "true", **more})
    assert caught.value.error_class == error_class
    assert not open_descriptors() - before


def test_a_missing_state_folder_is_an_infra_error(rig: Rig) -> None:
    rig.folder = rig.folder / "missing"
    with pytest.raises(SpawnError, match="missing") as caught:
        rig.spawn("true")
    assert caught.value.error_class == "infra"


def test_the_pipe_signal_has_its_default_in_a_command(rig: Rig) -> None:
    _, summary = rig.run("set -o pipefail; yes | head -n 1; echo $?")
    assert summary.text() == "y\n141\n"


# -- what is left of it -------------------------------------------------------------------------------


def test_the_whole_group_dies_with_the_attempt(rig: Rig) -> None:
    child = rig.spawn("sleep 60 & echo $!; sleep 60 & echo $!; wait", log_path=rig.log)
    pids = rig.pids_printed(child, 2)
    rig.sweep(child)
    rig.wait(child, lambda: all(map(gone, pids)))


def test_a_released_child_leaves_no_descriptor_open(rig: Rig) -> None:
    before = open_descriptors()
    for _ in range(5):
        child = rig.spawn("echo x")
        rig.exit(child)
        rig.procs.release(child)
        child.close()
    assert not open_descriptors() - before


def test_a_running_child_is_not_released(rig: Rig) -> None:
    child = rig.spawn("sleep 60")
    with pytest.raises(ValueError, match="still runs"):
        rig.procs.release(child)


@pytest.mark.parametrize(
    "leftover",
    [
        "setsid sleep 60 & echo $!",
        "nohup setsid sleep 60 >/dev/null 2>&1 & echo $!",
        "(setsid bash -c 'echo $$; exec env -i sleep 60' &)",
        "(setsid bash -c '(setsid env -i bash -c \"echo \\$\\$; exec sleep 60\" &)' &)",
    ],
    ids=["setsid", "nohup", "double-fork-cleared-env", "twice-cleared-env"],
)
@pytest.mark.parametrize("end", ["exit", "kill"])
@linux
def test_nothing_that_a_command_leaves_behind_outlives_it(lrig: Rig, leftover: str, end: str) -> None:
    command = f"{leftover}; sleep {0.2 if end == 'exit' else 60}"
    child = lrig.spawn(command, log_path=lrig.log)
    (pid,) = lrig.pids_printed(child, 1)
    if end == "exit":
        assert lrig.exit(child).code == 0
    assert not gone(pid)
    lrig.sweep(child)
    assert gone(pid)
    assert zombies() == []


@linux
def test_an_attempts_end_leaves_its_neighbours_leftovers_alone(lrig: Rig) -> None:
    marked = "(setsid bash -c 'echo $$; exec sleep 60' &)"
    cleared = "(setsid env -i bash -c 'echo $$; exec sleep 60' &)"
    neighbour = lrig.spawn(f"{marked}; {cleared}; exec sleep 60", log_path=lrig.log)
    pids = lrig.pids_printed(neighbour, 2)
    lrig.wait(neighbour, lambda: len(lrig.procs.adopted_children()) == 2)
    assert lrig.run("exit 7")[0].code == 7
    assert not any(map(gone, pids))
    lrig.sweep(neighbour)
    assert all(map(gone, pids))


@linux
def test_an_unmarked_orphan_dies_when_no_running_attempt_can_have_made_it(lrig: Rig) -> None:
    older = lrig.spawn("exec sleep 60")
    maker = lrig.spawn("(setsid env -i bash -c 'echo $$; exec sleep 60' &)", log_path=lrig.log)
    (pid,) = lrig.pids_printed(maker, 1)
    lrig.exit(maker)
    lrig.wait(maker, lambda: [one.pid for one in lrig.procs.adopted_children()] == [pid])
    lrig.sweep(maker)
    assert not gone(pid)  # the older one could be its maker
    lrig.sweep(older)
    assert gone(pid)


@linux
def test_a_child_that_gathers_its_own_orphans_is_never_taken_for_their_maker(lrig: Rig) -> None:
    worker = lrig.spawn("exec sleep 60", subreaper=True)
    maker = lrig.spawn("(setsid env -i bash -c 'echo $$; exec sleep 60' &)", log_path=lrig.log)
    (pid,) = lrig.pids_printed(maker, 1)
    lrig.exit(maker)
    lrig.sweep(maker)
    assert gone(pid)
    assert worker.poll_exit() is None


@linux
def test_exit_seven_is_seven_while_adopted_orphans_die_around(lrig: Rig) -> None:
    for _ in range(20):
        child = lrig.spawn("for i in 1 2 3 4 5; do (setsid true &); done; exit 7")
        deadline = monotonic() + 10
        while child.poll_exit() is None:
            assert monotonic() < deadline
            lrig.procs.reap_adopted()
        assert child.status is not None
        assert child.status.code == 7
        lrig.sweep(child)
        child.close()
    assert zombies() == []


@linux
def test_two_hundred_hostile_tasks_leave_no_zombie_and_no_descriptor(lrig: Rig) -> None:
    before = open_descriptors()
    running: list[Child] = []
    for number in range(200):
        running.append(lrig.spawn(f"(setsid sleep 60 &); sleep 60 & exit {number}"))
        if len(running) == 4:
            child = running.pop(0)
            assert lrig.exit(child).code == number - 3
            lrig.sweep(child)
            child.close()
    for child in running:
        lrig.sweep(child)
        child.close()
    lrig.procs.reap_adopted()
    assert zombies() == []
    assert lrig.procs.orphans(RIG) == []
    assert not open_descriptors() - before


@linux
def test_a_small_fork_bomb_is_swept(lrig: Rig) -> None:
    bomb = "f() { setsid bash -c 'sleep 60' & }; for i in $(seq 60); do f; done; echo 0; wait"
    child = lrig.spawn(bomb, log_path=lrig.log)
    lrig.pids_printed(child, 1)
    lrig.sweep(child)
    assert lrig.procs.orphans(child.token) == []


@linux
def test_a_dead_workers_tasks_are_swept_by_prefix_and_its_neighbours_are_not(lrig: Rig) -> None:
    mine = [lrig.spawn("exec sleep 60", token=f"{RIG}:w1:1.{n}") for n in range(3)]
    other = lrig.spawn("exec sleep 60", token=f"{RIG}:w10:1.1")
    for child in [*mine, other]:
        lrig.wait(child, lambda child=child: child.entered)
    assert {one.token for one in lrig.procs.orphans(f"{RIG}:w1:")} == {child.token for child in mine}
    report = lrig.procs.sweep_prefix(f"{RIG}:w1:")
    assert (report.killed, report.survivors) == (3, ())
    assert all(lrig.exit(child).signal == signal.SIGKILL for child in mine)
    assert other.poll_exit() is None
    assert lrig.procs.sweep_token(other.token).killed == 1


@linux
def test_orphans_are_named_with_their_command_line(lrig: Rig) -> None:
    child = lrig.spawn(["sleep", "61"])
    lrig.wait(child, lambda: child.entered and "sleep 61" in [o.cmdline for o in lrig.procs.orphans(RIG)])
    (orphan,) = lrig.procs.orphans(RIG)
    assert (orphan.pid, orphan.token) == (child.pid, child.token)


def test_a_sweep_without_a_name_is_refused(rig: Rig) -> None:
    with pytest.raises(ValueError, match="every rig"):
        rig.procs.orphans("")
    with pytest.raises(ValueError, match="every rig"):
        rig.procs.sweep_prefix("")


@linux
def test_a_process_of_a_handlers_thread_is_nobodys_orphan(lrig: Rig) -> None:
    started: list[subprocess.Popen[bytes]] = []
    release = threading.Event()

    def handler() -> None:
        started.append(subprocess.Popen(["sleep", "60"], start_new_session=True, env={}))
        ready.set()
        release.wait(10)

    ready = threading.Event()
    thread = threading.Thread(target=handler)
    thread.start()
    assert ready.wait(10)
    try:
        assert lrig.run("true")[0].ok
        assert lrig.procs.adopted_children() == []
        started[0].terminate()
        lrig.procs.reap_adopted()
        assert started[0].wait(10) == -signal.SIGTERM
    finally:
        release.set()
        thread.join()


@linux
def test_children_from_before_and_of_our_own_session_are_not_adopted(tmp_path: Path) -> None:
    before = subprocess.Popen(["sleep", "60"], start_new_session=True)
    try:
        for lrig in linux_rig(tmp_path):
            after = subprocess.Popen(["sleep", "60"])
            assert lrig.run("true")[0].ok
            assert lrig.procs.adopted_children() == []
            after.kill()
            lrig.procs.reap_adopted()
            assert after.wait(10) == -signal.SIGKILL
            assert before.poll() is None
    finally:
        before.kill()
        before.wait()


@linux
def test_the_kernels_list_of_children_agrees_with_a_scan_of_all_processes(lrig: Rig) -> None:
    child = lrig.spawn("sleep 60 & sleep 60 & echo 0; wait", log_path=lrig.log)
    lrig.pids_printed(child, 1)
    below = {proc.pid for proc in children_of(child.pid)}
    assert len(below) == 2
    assert below == {proc.pid for proc in all_procs() if proc.ppid == child.pid}


@linux
def test_a_reused_pid_is_not_signalled() -> None:
    process = subprocess.Popen(["sleep", "60"])
    try:
        now = read_proc(process.pid)
        assert now is not None
        earlier = Proc(now.pid, now.ppid, now.pgrp, now.session, now.state, now.start - 1)
        assert kill_exactly(earlier) is None
        assert process.poll() is None
    finally:
        process.kill()
        process.wait()
    assert kill_exactly(now) is None


PARENT = textwrap.dedent(
    """
    import os, sys
    from pathlib import Path
    from rigbus.agents.process.linux import LinuxProcesses, PYTHON_LAUNCHER, Spawn
    procs = LinuxProcesses(PYTHON_LAUNCHER if sys.argv[1] == "python" else None)
    env = {"PATH": os.environ["PATH"]}
    child = procs.spawn(Spawn(argv=["sleep", "60"], env=env, token=sys.argv[2], cwd=Path("/")))
    while not child.read_entry():
        pass
    print(child.pid, flush=True)
    sys.stdin.read()
    """
)


@linux
@pytest.mark.parametrize("launcher", ["default", "python"])
def test_kill_9_of_the_parent_kills_the_direct_child(launcher: str) -> None:
    token = f"{RIG}:pd:1.1"
    with subprocess.Popen(
        [sys.executable, "-c", PARENT, launcher, token], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as parent:
        assert parent.stdout is not None
        pidfd = os.pidfd_open(int(parent.stdout.readline()))
        parent.kill()
        poller = select.poll()
        poller.register(pidfd, select.POLLIN)
        try:
            assert poller.poll(5000), "the child outlived its parent"
        finally:
            os.close(pidfd)
            LinuxProcesses().sweep_token(token)


def test_the_platforms_implementation_is_one_per_process() -> None:
    assert processes() is processes()
    assert isinstance(processes(), LinuxProcesses) == sys.platform.startswith("linux")


@linux
def test_spawn_rate_is_printed(lrig: Rig, capsys: pytest.CaptureFixture[str]) -> None:
    count = 100
    started = perf_counter()
    for _ in range(count):
        status, _ = lrig.run(":")
        assert status.ok
    rate = count / (perf_counter() - started)
    with capsys.disabled():
        print(
            f"\n{default_launcher()[0]}: {rate:.0f} bash -c : one after the other, spawn to swept, per second"
        )
