"""What `rigbus doctor` makes of the facts: each judgement row by row. The probes and the verb: test_doctor.py."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from helpers import wait_for

from rigbus.bus.mounts import Mount, parse_mountinfo
from rigbus.bus.wire import IPC_PATH_MAX
from rigbus.tools.doctor_checks import gpu, leftovers, limits, rig, share, sockets, software, state
from rigbus.tools.doctor_checks.children import Answer, ask
from rigbus.tools.doctor_checks.findings import Finding
from rigbus.tools.doctor_checks.leftovers import Bearer, LeftFacts
from rigbus.tools.doctor_checks.share import Here, ShareFacts
from rigbus.tools.doctor_checks.state import StateFacts

GIB = 1 << 30
ROOM = {"free_bytes": 50 * GIB, "free_inodes": 10**6}
EXT4 = Mount("/", "ext4", "/dev/sda1", ("rw",))


def one(findings, check: str) -> Finding:
    """The finding of that name."""
    (found,) = [finding for finding in findings if finding.check == check]
    return found


def told(findings, check: str, status: str, value: str, fix: str) -> None:
    """That the finding of ``check`` has this status, and these words in its value and fix."""
    found = one(findings, check)
    assert found.status == status, found
    assert value in found.value
    assert fix in found.fix
    assert bool(found.fix) or status in ("ok", "info"), "what is wrong has a fix"


# -- software ------------------------------------------------------------------------------------------------

NEEDED = {"pyzmq": "26", "msgpack": "1.0"}
HAVE = {"pyzmq": "27.1.0", "msgpack": "1.1.2"}
SOFT = software.SoftwareFacts(versions=HAVE, minimums=NEEDED, llama="0.3.36")


@pytest.mark.parametrize(
    ("facts", "check", "status", "value", "fix"),
    [
        ({}, "python", "ok", "64 bit, venv /venv", ""),
        ({"python": (3, 10, 4)}, "python", "fail", "3.10.4", "3.11"),
        ({"bits": 32}, "python", "warn", "32 bit", "64-bit system"),
        ({"in_venv": False, "prefix": "/usr"}, "python", "ok", "no venv (/usr)", ""),
        ({}, "libraries", "ok", "pyzmq 27.1.0, msgpack 1.1.2", ""),
        (
            {"versions": {**HAVE, "msgpack": None}},
            "msgpack",
            "fail",
            "not installed",
            "pip install 'msgpack>=1.0'",
        ),
        (
            {"versions": {**HAVE, "pyzmq": "25.1.2"}},
            "pyzmq",
            "fail",
            "25.1.2, 26 is needed",
            "pip install 'pyzmq>=26'",
        ),
        ({}, "libzmq", "ok", "4.3.5", ""),
        ({"libzmq": "4.1.8"}, "libzmq", "fail", "4.1.8, 4.3 is needed", "pip install"),
        (
            {"libzmq": "", "load_error": "Illegal instruction"},
            "libzmq",
            "fail",
            "Illegal",
            "--force-reinstall",
        ),
        ({"ipc": False}, "libzmq", "fail", "without ipc://", "Linux"),
        ({}, "sqlite", "ok", "3.45.0", ""),
        ({"sqlite": "3.7.17"}, "sqlite", "fail", "3.24 is needed", "newer SQLite"),
        ({}, "llama", "ok", "0.3.36", ""),
        ({"llama": None}, "llama", "info", "not installed", "rigbus[llm]"),
        ({"pynvml_clash": True}, "nvml", "warn", "both pynvml", "pip uninstall pynvml"),
    ],
)
def test_software_is_judged(facts, check, status, value, fix):
    told(software.judge(replace(SOFT, **facts)), check, status, value, fix)


@pytest.mark.parametrize(
    ("version", "least", "older"),
    [
        ("26", "26", False),
        ("26.0.0", "26", False),
        ("25.9", "26", True),
        ("3.9.1", "3.24", True),
        ("27.0rc1", "26", False),
    ],
)
def test_versions_are_compared_by_their_numbers(version, least, older):
    assert software.older(version, least) is older


def test_what_the_base_install_needs_is_read_from_our_own_metadata():
    needed = software.needed()
    assert set(needed) >= {"pyzmq", "msgpack", "pydantic", "click"}
    assert "llama-cpp-python" not in needed


def test_a_library_that_cannot_be_loaded_is_a_finding_not_a_crash():
    broken = ask([sys.executable, "-c", "import os; os.kill(os.getpid(), 4)"], 10)
    told(software.judge(software.gather(broken)), "libzmq", "fail", "ended with -4", "reinstall")
    told(software.judge(software.gather(Answer(None))), "libzmq", "fail", "no answer", "reinstall")
    good = ask([sys.executable, "-P", "-c", software.LOAD], 10)
    assert one(software.judge(software.gather(good)), "libzmq").status == "ok"


# -- the state folder ----------------------------------------------------------------------------------------

HOME = Path("/home/pi/state")
STATE = StateFacts(uid=1000, fsync_us=(900, 1000, 1100), **ROOM)


@pytest.mark.parametrize(
    ("facts", "check", "status", "value", "fix"),
    [
        ({}, "folder", "ok", "mode 0700", ""),
        ({"exists": False}, "folder", "info", "no rig has run here", "rigbus up"),
        (
            {"exists": False, "above": "/srv", "above_writable": False},
            "folder",
            "fail",
            "in /srv",
            "--state DIR",
        ),
        ({"exists": False, "error": "EACCES"}, "folder", "fail", "EACCES", "--state DIR"),
        ({"is_dir": False}, "folder", "fail", "no folder", "--state DIR"),
        ({"uid": 0}, "folder", "fail", "belongs to user 0, you are 1000", "run as that user"),
        ({"mode": 0o755}, "folder", "warn", "0755", "chmod 700"),
        ({"write_error": "EROFS"}, "folder", "fail", "cannot be written: EROFS", "writable"),
        ({"write_error": "ENOSPC"}, "folder", "fail", "is full", "free some space"),
        ({}, "free space", "ok", "50.0 GiB", ""),
        ({"free_bytes": 900 << 20}, "free space", "warn", "900 MiB", "free some space"),
        ({"free_bytes": 1 << 20}, "free space", "fail", "1.0 MiB", "free some space"),
        ({}, "free inodes", "ok", "1,000,000", ""),
        ({"free_inodes": 5_000}, "free inodes", "warn", "5,000", "df -i"),
        ({"free_inodes": 10}, "free inodes", "fail", "10", "df -i"),
        ({}, "fsync", "ok", "1 ms", ""),
        ({"fsync_us": (40_000,) * 3}, "fsync", "warn", "40 ms", "durability"),
        ({"fsync_us": (5,) * 3}, "fsync", "info", "nothing may reach a disk", ""),
    ],
)
def test_the_state_folder_is_judged(facts, check, status, value, fix):
    told(state.judge(replace(STATE, **facts), HOME, EXT4, me=1000), check, status, value, fix)


@pytest.mark.parametrize(
    ("fstype", "options", "status", "value"),
    [
        ("ext4", ("rw",), "ok", "ext4"),
        ("overlay", ("rw",), "ok", "overlay"),
        ("nfs4", ("rw", "hard"), "fail", "cannot be kept safe"),
        ("cifs", ("rw",), "fail", "cannot be kept safe"),
        ("9p", ("rw",), "fail", "cannot be kept safe"),
        ("fuse.sshfs", ("rw",), "fail", "cannot be kept safe"),
        ("fuse.mergerfs", ("rw",), "fail", "cannot be kept safe"),
        ("vfat", ("rw",), "fail", "no private modes"),
        ("ntfs3", ("rw",), "fail", "no private modes"),
        ("tmpfs", ("rw",), "warn", "lost at a reboot"),
        ("ext4", ("ro",), "fail", "read-only"),
    ],
)
def test_the_file_system_of_the_state_is_judged(fstype, options, status, value):
    mount = Mount("/data", fstype, "somewhere", options)
    fix = "" if status == "ok" else "remount" if "ro" in options else "--state DIR"
    told(state.judge(STATE, HOME, mount, me=1000), "file system", status, value, fix)


def test_a_state_folder_that_hangs_or_a_system_that_tells_no_mounts_is_said():
    findings = state.judge(None, HOME, None, me=1000)
    told(findings, "folder", "fail", "does not answer", "--state DIR")
    told(findings, "file system", "info", "does not say", "")


# -- sockets -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("facts", "check", "status", "value", "fix"),
    [
        ({}, "path", "ok", "of 107 bytes", ""),
        ({"path": Path("/r") / ("x" * 100)}, "path", "fail", "107 are allowed", "RIGBUS_RUNTIME"),
        ({}, "folder", "ok", "mode 0700", ""),
        ({"exists": False}, "folder", "ok", "not there yet", ""),
        ({"is_dir": False}, "folder", "fail", "no folder", "RIGBUS_RUNTIME"),
        ({"uid": 0}, "folder", "fail", "belongs to user 0", "RIGBUS_RUNTIME"),
        ({"mode": 0o750}, "folder", "fail", "others could send commands", "chmod 700 /run/rb"),
    ],
)
def test_the_socket_folder_is_judged(facts, check, status, value, fix):
    base = sockets.RuntimeFacts(Path("/run/rb"), uid=1000)
    told(sockets.judge(replace(base, **facts), me=1000), check, status, value, fix)


def test_the_limit_is_that_of_the_wire():
    assert sockets.PATH_MAX == IPC_PATH_MAX
    assert max(("commands", "heartbeats", "events"), key=len) == sockets.LONGEST


def test_the_socket_folder_is_looked_at_without_following_links(tmp_path):
    tmp_path.chmod(0o755)
    (tmp_path / "link").symlink_to(tmp_path)
    assert sockets.gather(tmp_path).mode == 0o755
    assert not sockets.gather(tmp_path / "link").is_dir
    assert not sockets.gather(tmp_path / "none").exists


# -- the rig -------------------------------------------------------------------------------------------------

RUN = {
    "pids": {"broker": 1, "worker-1": 2},
    "started_at": "2026-11-21T08:00:00",
    "version": "0.1.0",
    "pid": 3,
}
WELL = {
    "broker": {"incarnation": 4, "build": "0.1.0"},
    "brain": {"state": "seated"},
    "bridge": {},
    "workers": [{}],
}
UP = rig.RigFacts(
    run=RUN,
    lock=3,
    alive={"broker": True, "worker-1": True},
    listening=True,
    status=WELL,
    ours="0.1.0",
    logs="/s/logs",
)
DISK = {"level": "full", "free_bytes": 3 << 20, "low_bytes": 512 << 20, "folder": "/s"}
AWAY = {**WELL, "bridge": {"share": {"available": False, "reason": "HUNG"}}}


@pytest.mark.parametrize(
    ("facts", "check", "status", "value", "fix"),
    [
        ({}, "up", "ok", "pid 3", ""),
        ({}, "processes", "ok", "broker, worker-1", ""),
        ({}, "broker", "ok", "incarnation 4", ""),
        ({}, "versions", "ok", "0.1.0", ""),
        ({"run": None, "lock": None, "listening": False}, "up", "info", "not running", "rigbus up"),
        ({"lock": None, "listening": False}, "up", "warn", "ended without cleaning up", "rigbus up"),
        ({"lock": None}, "up", "ok", "started alone", ""),
        ({"run_error": "run.json: unusable; remove it"}, "run.json", "fail", "unusable", "remove it"),
        (
            {"alive": {"broker": True, "worker-1": False}},
            "processes",
            "warn",
            "gone: worker-1",
            "/s/logs/worker-1.log",
        ),
        ({"listening": False, "status": None}, "broker", "fail", "no broker listens", "broker.log"),
        (
            {"status": None, "broker_error": "no answer; x"},
            "broker",
            "fail",
            "does not answer: no answer",
            "-CONT",
        ),
        ({"status": {**WELL, "workers": []}}, "workers", "warn", "none is attached", "rigbus worker"),
        ({"status": {**WELL, "brain": {"state": "absent"}}}, "brain", "warn", "plans wait", "rigbus brain"),
        ({"status": AWAY}, "bridge", "warn", "unavailable: HUNG", "when it is back"),
        ({"status": {**WELL, "disk": DISK}}, "disk", "fail", "full: 3.0 MiB free of 512", "disk of /s"),
        ({"status": {**WELL, "disk": {**DISK, "level": "low"}}}, "disk", "fail", "no new tasks", "goes on"),
        ({"ours": "0.2.0"}, "versions", "warn", "the broker is 0.1.0; this command is 0.2.0", "rigbus up"),
    ],
)
def test_the_rig_is_judged(facts, check, status, value, fix):
    told(rig.judge(replace(UP, **facts)), check, status, value, fix)


def test_a_socket_without_a_listener_is_told_from_one_with(rig_dir):
    path = rig_dir / "commands"
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as s:
        s.bind(str(path))
        s.listen()
        assert rig.listens(f"ipc://{path}")
    assert path.exists()
    assert not rig.listens(f"ipc://{path}")
    assert rig.listens("tcp://127.0.0.1:1")


def test_only_living_pids_live():
    child = subprocess.Popen([sys.executable, "-c", ""])
    child.wait()
    assert rig.lives(os.getpid())
    assert not any(rig.lives(pid) for pid in (child.pid, 0, -1, None, "7", 2**40))


# -- the shared folder ---------------------------------------------------------------------------------------

AT = Path("/mnt/rig")
SHARE = ShareFacts(uid=1000, gid=100, news_age_s=1.0, **ROOM)
NAMES = {(1000, 100): ("pi", "users")}


def judged(facts, *, mount=EXT4, rig_here=True, own=False):
    return share.judge(facts, AT, mount, Here(rig_here, own, "pi"), lambda uid, gid: NAMES[uid, gid])


@pytest.mark.parametrize(
    ("facts", "check", "status", "value", "fix"),
    [
        ({}, "folder", "ok", "/mnt/rig", ""),
        ({"exists": False}, "folder", "fail", "is not there", "mount it"),
        ({"error": "ESTALE"}, "folder", "fail", "ESTALE", "mount it again"),
        ({"error": "EACCES"}, "folder", "fail", "EACCES", "read access"),
        ({"is_dir": False}, "folder", "fail", "no folder", "--shared DIR"),
        ({"sentinel": False}, "folder", "warn", "no .rigbus-folder-id", "mounted?"),
        ({"is_share": False, "news_age_s": None}, "folder", "warn", "no rig has used it", "mounted?"),
        ({}, "writable", "ok", "by pi", ""),
        ({"write_error": "EROFS"}, "writable", "fail", "read-only", "remount,rw"),
        ({"write_error": "EACCES"}, "writable", "fail", "not by pi: EACCES", "chmod g+w"),
        ({"write_error": "EDQUOT"}, "writable", "fail", "quota", "remove old batches"),
        ({"left": "/mnt/rig/x"}, "probe", "warn", "could not be removed", "rm -r /mnt/rig/x"),
        ({}, "trust", "info", "pi can write (mode 0755), and so run commands as pi here", ""),
        ({"mode": 0o775}, "trust", "info", "pi and group users can write", ""),
        ({"mode": 0o777}, "trust", "warn", "everybody", "chmod o-w /mnt/rig"),
        ({}, "clock", "ok", "within 0.1 s", ""),
        ({"skew_s": 90.0}, "clock", "warn", "1 min 30 s ahead of ours", "timedatectl"),
        ({"skew_s": -7.0}, "clock", "warn", "7.0 s behind ours", "timedatectl"),
        ({"skew_s": 7.0, "round_s": 4.0}, "clock", "ok", "within 7.0 s", ""),
        ({}, "rename", "ok", "atomic", ""),
        ({"rename_error": "EEXIST"}, "rename", "fail", "EEXIST", "another kind of mount"),
        ({}, "names", "ok", "kept", ""),
        ({"case_folds": True}, "names", "warn", "capital", "case-sensitive"),
        ({"names": "changed"}, "names", "warn", "normalised", "plain letters"),
        ({"names": "folded"}, "names", "warn", "normalised", "plain letters"),
        ({"names": "refused"}, "names", "warn", "refused", "iocharset=utf8"),
        ({}, "news", "ok", "1.0 s ago", ""),
        ({"news_age_s": 7200.0}, "news", "warn", "2 h ago", "rigbus up"),
        ({"news_age_s": None}, "news", "info", "no bridge", "rigbus up"),
        ({"unanswered": 2, "unanswered_age_s": 90.0}, "requests", "warn", "2 requests", ".requests"),
        ({}, "free space", "ok", "50.0 GiB", ""),
        ({"free_bytes": 1 << 20}, "free space", "warn", "1.0 MiB", "old batches"),
    ],
)
def test_the_share_is_judged(facts, check, status, value, fix):
    told(judged(replace(SHARE, **facts)), check, status, value, fix)


@pytest.mark.parametrize(
    ("fstype", "options", "check", "status", "value", "fix"),
    [
        ("ext4", ("rw",), "mount", "ok", "local", ""),
        ("nfs4", ("rw", "hard"), "mount", "ok", "network", ""),
        ("nfs4", ("rw", "hard"), "soft or hard", "ok", "hard", ""),
        ("nfs", ("rw", "soft"), "soft or hard", "warn", "I/O error", "mount with hard"),
        ("nfs", ("rw", "softerr"), "soft or hard", "warn", "I/O error", "mount with hard"),
        ("nfs4", ("rw", "noac"), "attributes", "info", "every look", "actimeo=3"),
        ("nfs4", ("rw", "acregmax=3", "acdirmax=3"), "attributes", "ok", "at most 3 s", ""),
        ("nfs4", ("rw", "acregmin=3", "acdirmax=600"), "attributes", "warn", "up to 600 s", "actimeo=3"),
        ("nfs4", ("rw",), "attributes", "info", "up to 60 s", "actimeo=3"),
        ("cifs", ("rw", "cache=loose"), "cache", "warn", "different files", "cache=strict"),
        ("fuse.sshfs", ("rw",), "sshfs", "info", "reconnects", "reconnect"),
        ("exfat", ("rw",), "file system", "warn", "no Unix file system", "ext4"),
        ("tmpfs", ("rw",), "file system", "info", "reboot", "disk"),
    ],
)
def test_the_mount_of_the_share_is_judged(fstype, options, check, status, value, fix):
    told(judged(SHARE, mount=Mount("/mnt", fstype, "nas:/export", options)), check, status, value, fix)


def test_a_share_that_hangs_is_a_finding_with_its_mount():
    findings = judged(None, mount=Mount("/mnt", "nfs4", "nas:/x", ("soft",)))
    told(findings, "folder", "fail", "does not answer", "umount -l /mnt")
    told(findings, "soft or hard", "warn", "soft", "hard")
    told(judged(SHARE, mount=None), "mount", "info", "does not say", "")


def test_a_machine_that_only_reads_the_share_is_not_ill():
    told(
        judged(replace(SHARE, write_error="EROFS"), rig_here=False),
        "writable",
        "warn",
        "read-only",
        "submitted",
    )
    told(judged(replace(SHARE, is_share=False), rig_here=False), "folder", "info", "no rig", "mounted?")
    told(judged(replace(SHARE, news_age_s=99), rig_here=False), "news", "warn", "ago", "look at the rig")
    told(judged(SHARE, rig_here=False), "trust", "info", "run commands on the rig", "")
    told(judged(replace(SHARE, exists=False), own=True), "folder", "info", "not there yet", "rigbus up")


def test_options_of_a_mount_come_from_both_sides_of_its_line():
    line = "30 27 0:25 / /mnt rw,nosuid,relatime shared:1 - nfs4 nas:/x rw,vers=4.2,soft,acregmax=9\n"
    (mount,) = parse_mountinfo(line)
    assert mount.options == ("rw", "nosuid", "relatime", "vers=4.2", "soft", "acregmax=9")
    assert mount == replace(mount, options=()), "they tell no two mounts apart"


# -- leftovers -----------------------------------------------------------------------------------------------

LOST = Bearer(7, "sleep 1000", ours=True, rig_lives=False)
SIZES = {"logs": {"bytes": 3 * GIB, "files": 1200, "cut": True}}


def left(facts=LeftFacts(), *, of_state=None, of_share=None, rig_lives=False):  # noqa: B008 - frozen
    state_facts = replace(STATE, real="/s", **(of_state or {}))
    return leftovers.judge(
        facts, state_facts, replace(SHARE, real="/r", **(of_share or {})), rig_lives=rig_lives
    )


@pytest.mark.parametrize(
    ("given", "check", "status", "value", "fix"),
    [
        ({}, "former runs", "ok", "nothing", ""),
        ({"facts": LeftFacts(bearers=None)}, "processes", "info", "no /proc", ""),
        ({"facts": LeftFacts([LOST])}, "processes", "warn", "7 (sleep 1000)", "kill 7"),
        ({"facts": LeftFacts([replace(LOST, ours=False)])}, "other rigs'", "warn", "7 (sleep", "kill 7"),
        ({"facts": LeftFacts([replace(LOST, rig_lives=True)])}, "former runs", "ok", "nothing", ""),
        ({"facts": LeftFacts([replace(LOST, below=True)])}, "former runs", "ok", "nothing", ""),
        (
            {"facts": LeftFacts([replace(LOST, pid=n) for n in range(9)])},
            "processes",
            "warn",
            "and 4 more",
            "kill 0 1",
        ),
        ({"facts": LeftFacts(dead_sockets=["/tmp/r/1"])}, "sockets", "info", "1 folders", "rm -r /tmp/r/1"),
        ({"of_state": {"journal": 2, "journal_age_s": 5}}, "drops", "warn", "2 not yet", "rigbus up"),
        (
            {"of_state": {"journal": 2, "journal_age_s": 9000}, "rig_lives": True},
            "drops",
            "warn",
            "2 h 30 min old",
            "bridge.log",
        ),
        (
            {"of_state": {"journal": 2, "journal_age_s": 5}, "rig_lives": True},
            "former runs",
            "ok",
            "nothing",
            "",
        ),
        ({"of_state": {"copies": 1}}, "copies", "info", "1 unfinished", "rigbus up"),
        (
            {"of_share": {"incoming": [".incoming-a"]}},
            "half copies",
            "warn",
            "1 half-copied",
            "rm -r /r/inbox/.incoming-a",
        ),
        (
            {"of_share": {"doctor_left": [".rigbus-doctor-1~"]}},
            "probes",
            "warn",
            "killed",
            "rm -r /r/.rigbus-doctor-1~",
        ),
        ({"of_state": {"sizes": SIZES}}, "sizes", "info", "logs over 3.0 GiB in 1,200 files", ""),
        (
            {"of_state": {"sizes": SIZES, "free_bytes": GIB}},
            "sizes",
            "warn",
            "logs over 3.0 GiB",
            "remove old",
        ),
    ],
)
def test_leftovers_are_judged(given, check, status, value, fix):
    told(left(**given), check, status, value, fix)


def test_a_process_whose_rig_is_gone_is_found_by_its_token():
    token = "ab" * 16
    env = {**os.environ, "RIGBUS_TOKEN": f"{token}:session:1.2"}
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE, env=env)
    try:

        def seen() -> list[Bearer]:
            facts = leftovers.gather(Path("/none/x"), token, False, {})
            return [b for b in facts.bearers if b.pid == child.pid]

        (found,) = wait_for(seen)
        assert found.ours
        assert found.rig_lives is False
        (alive,) = [
            b for b in leftovers.gather(Path("/none/x"), token, True, {}).bearers if b.pid == child.pid
        ]
        assert not alive.orphan
    finally:
        child.communicate(b"\n")


def test_socket_folders_that_nobody_listens_in_are_found(rig_dir):
    for name in ("0a0a0a0a", "0b0b0b0b", "else"):
        (rig_dir / name).mkdir()
    with socket.socket(socket.AF_UNIX) as dead, socket.socket(socket.AF_UNIX) as well:
        dead.bind(str(rig_dir / "0a0a0a0a" / "commands"))
        well.bind(str(rig_dir / "0b0b0b0b" / "commands"))
        well.listen()
        found = leftovers.gather(rig_dir / "0b0b0b0b", "", False, {}).dead_sockets
    assert [path for path in found if path.startswith(str(rig_dir))] == [str(rig_dir / "0a0a0a0a")]


# -- limits and cards ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("facts", "check", "status", "value", "fix"),
    [
        ({"files": 65536}, "open files", "ok", "65,536", ""),
        ({"files": None}, "open files", "ok", "no limit", ""),
        ({"files": 512}, "open files", "warn", "512", "ulimit -n"),
        ({"files": 64}, "open files", "fail", "64", "ulimit -n"),
        ({"processes": None}, "processes", "ok", "no limit", ""),
        ({"processes": 4096, "running": 100}, "processes", "ok", "4,096, 100 running", ""),
        ({"processes": 1024, "running": 1000}, "processes", "warn", "1,000 running", "ulimit -u"),
        ({"processes": 10, "running": 100, "root": True}, "processes", "ok", "no limit", ""),
        ({"root": True}, "user", "warn", "root", "user of its own"),
    ],
)
def test_limits_are_judged(facts, check, status, value, fix):
    told(list(limits.judge(limits.LimitFacts(**facts))), check, status, value, fix)


@pytest.mark.parametrize(
    ("facts", "check", "status", "value", "fix"),
    [
        ({}, "cards", "info", "none here", ""),
        ({"devices": 1}, "driver", "warn", "no nvidia-smi", "install"),
        ({"smi": True, "hung": True}, "driver", "fail", "no answer", "dmesg"),
        (
            {"smi": True, "devices": 1, "error": "version mismatch"},
            "driver",
            "warn",
            "version mismatch",
            "reboot",
        ),
        ({"smi": True, "error": "no devices were found"}, "driver", "info", "no devices", ""),
        ({"rows": [["GTX 1060", "580.1", "6.1", "1"]]}, "gpu-0", "ok", "GTX 1060, driver 580.1", ""),
        ({"rows": [["GTX 1060", "580.1", "6.1", "16"]]}, "gpu-0 cuda", "info", "Pascal", "CUDA 12"),
        ({"rows": [["GTX 1060", "580.1", "6.1", "1"]]}, "gpu-0 pcie", "info", "x1", "keep models loaded"),
        ({"wsl": True}, "wsl", "info", "WSL2", ""),
        (
            {"rows": [["GTX 1060", "580.1", "6.1", "1"]], "nvml": False},
            "readings",
            "info",
            "pynvml",
            "rigbus[gpu]",
        ),
    ],
)
def test_cards_are_judged(facts, check, status, value, fix):
    told(list(gpu.judge(gpu.GpuFacts(**facts))), check, status, value, fix)


@pytest.mark.parametrize(
    ("source", "status", "value"),
    [
        (
            "synthetic:2:7",
            "info",
            "RIGBUS_GPU_SOURCE=synthetic:2:7: 2 cards of readings that no driver gives",
        ),
        ("none", "warn", "readings are switched off"),
        ("file:/nowhere.log", "warn", "/nowhere.log"),
        ("tarot", "warn", "is no source of readings"),
    ],
)
def test_readings_of_no_driver_are_said(monkeypatch, source, status, value):
    monkeypatch.setenv("RIGBUS_GPU_SOURCE", source)
    (found,) = [f for f in gpu.judge(gpu.gather(None)) if f.check in ("readings", "cards")]
    assert (found.check, found.status) == ("readings", status)
    assert value in found.value


def test_a_modern_card_on_a_wide_slot_has_one_line():
    facts = gpu.gather(
        Answer(0, "NVIDIA H100 80GB HBM3, 570.86.15, 9.0, 16\nNVIDIA H100, [N/A], [N/A], [N/A]\n")
    )
    assert [(f.check, f.status) for f in gpu.judge(facts)] == [("gpu-0", "ok"), ("gpu-1", "ok")]
    assert gpu.gather(Answer(9, "", "NVRM: no\nmismatch\n")).error == "mismatch"
    assert gpu.gather(Answer(None)).hung
