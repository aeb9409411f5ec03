"""A rig that cannot be: each process says what is wrong, where, and the fix, and changes nothing that was there."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from helpers import Processes, processes_of, short_folder, wait_for
from rigs import LiveRig

from rigbus import Client, Task
from rigbus.bus.paths import rig_paths
from rigbus.tools.reach import is_share

NETWORK = """\
import sys
from pathlib import Path
from rigbus.bus import mounts
mounts.MOUNTINFO = Path(sys.argv.pop(1))
from rigbus.tools.cli import main
main()
"""


def rigbus(*words: str | Path, env: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "rigbus", *map(str, words)],
        env={**os.environ, **(env or {})},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def one_line(done: subprocess.CompletedProcess[str], *words: str) -> None:
    """Its last line on stderr is the error, with all of ``words``; there is no traceback."""
    assert "Traceback" not in done.stderr, done.stderr
    last = done.stderr.strip().splitlines()[-1]
    for word in words:
        assert word in last, done.stderr


def digest(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()


@pytest.fixture
def state(rig_dir: Path) -> Path:
    return rig_dir / "state"


@pytest.fixture
def rig(rig_dir: Path, processes: Processes) -> Iterator[LiveRig]:
    """A rig that is up."""
    rig = LiveRig(rig_dir, processes, workers=1)
    rig.start()
    yield rig
    if rig.up is not None and rig.up.poll() is None:
        rig.stop()


# ---------------------------------------------------------------- folders


#: One after the other in one process: what is imported is the same.
IN_TURN = """\
import sys
from rigbus.tools.cli import run
state, *verbs = sys.argv[1:]
for verb in verbs:
    print(run([verb, "--state", state]), flush=True)
"""


def test_a_socket_path_that_is_too_long_is_named_by_every_process(state: Path) -> None:
    verbs = ("up", "broker", "brain", "bridge", "worker")  # a worker ends its process, so it comes last
    env = {**os.environ, "RIGBUS_RUNTIME": "/tmp/" + "x" * 120}
    words = [sys.executable, "-c", IN_TURN, str(state), *verbs]
    done = subprocess.run(words, env=env, capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stdout.split()) == (2, ["2"] * 4), done.stderr
    said = [line for line in done.stderr.splitlines() if "107 are allowed" in line]
    assert len(said) == len(verbs) and all("set RIGBUS_RUNTIME" in line for line in said), done.stderr
    assert "Traceback" not in done.stderr


# Which types are of the network: bus/test_paths.py.
@pytest.mark.parametrize(("verb", "fstype"), [("up", "nfs4"), ("broker", "cifs")])
def test_a_state_folder_on_a_network_file_system_is_refused_before_anything_is_made(
    rig_dir: Path, state: Path, verb: str, fstype: str
) -> None:
    mounts = rig_dir / "mountinfo"
    mounts.write_text(
        "22 1 8:1 / / rw,relatime - ext4 /dev/sda1 rw\n"
        f"40 22 0:41 / {rig_dir} rw,relatime - {fstype} server:/export rw\n"
    )
    words = [sys.executable, "-c", NETWORK, str(mounts), verb, "--state", str(state)]
    done = subprocess.run(words, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 2
    one_line(done, str(state), fstype, "local disk", "--state DIR")
    assert not state.exists()


@pytest.mark.parametrize("verb", ["up", "broker"])
def test_a_state_folder_that_cannot_be_made_is_named(verb: str) -> None:
    done = rigbus(verb, "--state", "/proc/no-rig-here")  # also root cannot make a folder there
    assert done.returncode == 2
    one_line(done, "/proc/no-rig-here", "--state DIR")


@pytest.mark.skipif(os.getuid() == 0, reason="root may write everywhere")
def test_a_state_folder_in_a_place_of_others_is_named(rig_dir: Path) -> None:
    locked = rig_dir / "locked"
    locked.mkdir(mode=0o500)
    state = locked / "state"
    done = rigbus("up", "--state", state)
    assert done.returncode in {2, 8}
    one_line(done, str(state))


def test_a_runtime_folder_that_others_can_open_is_refused(rig_dir: Path, state: Path) -> None:
    open_ = rig_dir / "open"
    runtime = rig_paths(state, None, {**os.environ, "RIGBUS_RUNTIME": str(open_)}).runtime
    runtime.mkdir(parents=True)
    runtime.chmod(0o777)
    done = rigbus("up", "--state", state, env={"RIGBUS_RUNTIME": str(open_)})
    assert done.returncode == 2
    one_line(done, "0777", f"chmod 700 {runtime}")


# ---------------------------------------------------------------- twice


def test_a_second_rig_and_a_second_broker_are_refused_and_the_first_goes_on(rig: LiveRig) -> None:
    assert rig.up is not None
    second = rigbus("up", "--state", rig.state)
    assert second.returncode == 8
    one_line(second, f"pid {rig.up.pid}", "rigbus down", "--state DIR")
    broker = rigbus("broker", "--state", rig.state)
    assert broker.returncode == 8
    one_line(broker, "another broker")
    with rig.client() as client:  # the sockets were not stolen
        assert client.query("status")["broker"]["incarnation"] == 1
        assert next(iter(client.results(client.submit([_echo()]), timeout_s=20))).ok


def test_a_broker_of_its_own_keeps_a_rig_away(state: Path, processes: Processes) -> None:
    alone = processes.python("-m", "rigbus", "broker", "--state", state)
    wait_for((rig_paths(state).runtime / "commands").exists, timeout_s=30, what="the broker")
    done = rigbus("up", "--state", state)
    assert done.returncode == 8
    one_line(done, "another broker")
    assert alone.poll() is None


def _echo() -> Task:
    return Task(type="shell", payload={"command": "echo hello"})


# ---------------------------------------------------------------- a damaged database


def _garbage_header(db: Path) -> None:
    with db.open("r+b") as f:
        f.write(os.urandom(100))


def _cut_short(db: Path) -> None:
    os.truncate(db, db.stat().st_size // 2 + 100)


def _garbage_inside(db: Path) -> None:
    size = db.stat().st_size
    with db.open("r+b") as f:
        for at in range(4096, size, 4096):
            f.seek(at)
            f.write(b"\xa5" * 3000)


def _newer_schema(db: Path) -> None:
    with sqlite3.connect(db) as c:
        c.execute("PRAGMA user_version=999")
    c.close()


def _a_row_that_no_law_allows(db: Path) -> None:
    with sqlite3.connect(db) as c:
        c.execute("UPDATE tasks SET spec=x'c1'")
    c.close()


DAMAGES = [_garbage_header, _cut_short, _garbage_inside, _newer_schema, _a_row_that_no_law_allows]


@pytest.fixture(scope="module")
def filled(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The state folder of a broker that has ended, with 200 tasks in its database."""
    with short_folder() as folder:
        processes, state = Processes(tmp_path_factory.mktemp("processes")), folder / "state"
        try:
            broker = processes.python("-m", "rigbus", "broker", "--state", state)
            wait_for((rig_paths(state).runtime / "commands").exists, timeout_s=30, what="the broker")
            with Client(state=state) as client:
                client.submit([Task(type="nobody", payload="x" * 500) for _ in range(200)])
            broker.terminate()
            assert broker.wait(30) == 0
        finally:
            processes.stop_all()
        yield state


@pytest.mark.parametrize("damage", DAMAGES, ids=lambda f: f.__name__.strip("_"))
def test_a_damaged_database_is_named_and_kept_as_it_is(
    state: Path, filled: Path, damage: Callable[[Path], None]
) -> None:
    shutil.copytree(filled, state)
    db = state / "rigbus.db"
    damage(db)
    before = digest(db)
    # `up` passes on what its broker says: one kind of damage shows it.
    for verb in ("broker", "up")[: 2 if damage is _cut_short else 1]:
        done = rigbus(verb, "--state", state)
        assert done.returncode == 8, done.stderr
        one_line(done, "rigbus.db")
        assert digest(db) == before, f"`rigbus {verb}` changed the damaged file"
    assert not processes_of(state)


def test_a_database_that_is_a_folder_is_named(state: Path) -> None:
    (state / "rigbus.db").mkdir(parents=True)
    done = rigbus("up", "--state", state)
    assert done.returncode == 8
    one_line(done, "rigbus.db")


# ---------------------------------------------------------------- what a crash leaves


def test_after_a_power_cut_the_verbs_say_so_at_once_and_up_takes_over(rig: LiveRig) -> None:
    with rig.client() as client:
        done = client.submit([_echo()])
        assert next(iter(client.results(done, timeout_s=20))).ok
    wait_for(lambda: is_share(rig.shared), what="the bridge to have drawn the share")
    rig.kill_everything()
    assert rig.paths.run_json.exists(), "nothing was there to remove it"
    asked = rigbus("call", "anything", "--state", rig.state)
    assert asked.returncode == 4
    one_line(asked, "no broker answers", "rigbus up")
    status = rigbus("status", "--state", rig.state)
    assert "file mode" in status.stderr
    assert "no broker answers" in status.stderr
    down = rigbus("down", "--state", rig.state)
    assert (down.returncode, "no rig is up" in down.stderr) == (4, True)
    rig.start()
    with rig.client() as client:
        assert client.query("task", id=done[0])["rows"][0]["state"] == "done"
        assert next(iter(client.results(client.submit([_echo()]), timeout_s=20))).ok
    assert rig.stop() == 0


@pytest.mark.parametrize(
    "left",
    [("", "\x00" * 50, "{"), ("[]",), ('{"pids": 5, "endpoints": {"commands": 7}}',)],
    ids=["no JSON", "no object", "of other types"],
)
def test_a_run_json_that_makes_no_sense_does_not_keep_the_rig_down(
    rig_dir: Path, processes: Processes, left: tuple[str, ...]
) -> None:
    rig = LiveRig(rig_dir, processes, workers=0)
    rig.state.mkdir(mode=0o700)
    for text in left:
        rig.paths.run_json.write_text(text)
        found = rigbus("status", "--state", rig.state)
        assert found.returncode in {2, 4}
        assert "Traceback" not in found.stderr
    rig.start()
    assert json.loads(rig.paths.run_json.read_text())["pids"]["broker"]
    assert rig.stop() == 0


def test_a_runtime_folder_that_is_removed_under_the_rig_comes_back(rig: LiveRig) -> None:
    """A cleaner of /tmp does this. Who is connected stays connected; a new client finds the rig again."""
    with rig.client() as before:
        shutil.rmtree(rig.paths.runtime)
        assert next(iter(before.results(before.submit([_echo()]), timeout_s=20))).ok

    wait_for(
        lambda: len(list(rig.paths.runtime.glob("*"))) == 3, timeout_s=5, what="the sockets to come back"
    )
    with rig.client() as client:
        assert next(iter(client.results(client.submit([_echo()]), timeout_s=20))).ok
    assert rig.stop() == 0
