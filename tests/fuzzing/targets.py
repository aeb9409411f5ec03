"""Each target takes any bytes. It returns when they were taken or refused as they should be, and raises otherwise."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any, Final

from harness import Harness

from rigbus.bridge.folder.contract.receipts import Invalid, Problem
from rigbus.bridge.folder.control.signals_core import wish_of
from rigbus.bridge.folder.intake.core import FileRequest, drop_settings, parse_request
from rigbus.bridge.folder.queue.core import read_order
from rigbus.bus.config.settings import load
from rigbus.bus.errors import BadFrame, ConfigError
from rigbus.bus.wire import Verb, corr_of, decode, encode, hello_of, other_major
from rigbus.plans.errors import PlanInvalid
from rigbus.plans.parser import parse_plan

ROOT: Final = Path(__file__).resolve().parent.parent.parent
UUID: Final = "01234567-89ab-cdef-0123-456789abcdef"
_ROLES: Final = ("client", "worker", "brain", "supervisor", "bridge")
_STEPS: Final = 300  #: of one core, before it begins anew
ENVIRONMENT: Final = b"environment\n"  #: data that begins so is variables, not a file


class Wrong(AssertionError):
    """A refusal that does not say what it should."""


# -- the wire ------------------------------------------------------------------------------------------------


def joined(role: int, frames: Sequence[bytes]) -> bytes:
    """A message as one text of bytes: who says it, then each frame behind its length."""
    return bytes([role]) + b"".join(len(f).to_bytes(2, "big") + f for f in frames if len(f) < 1 << 16)


def split(data: bytes) -> tuple[int, list[bytes]]:
    """Its opposite, of any bytes."""
    role, at, frames = data[0] if data else 0, 1, []
    while at + 2 <= len(data):
        n = int.from_bytes(data[at : at + 2], "big")
        frames.append(data[at + 2 : at + 2 + n])
        at += 2 + n
    return role, frames


class _Rig:
    """A core with one peer of each role, one leased task and one that waits."""

    def __init__(self) -> None:
        self.left = 0
        self.rig: Harness
        self.peers: list[Any]

    def at(self, role: int) -> tuple[Harness, bytes]:
        if not self.left:
            self.left = _STEPS
            self.rig = Harness()
            self.peers = [self.rig.peer(role, role) for role in _ROLES]
            self.peers[1].offer(credit=2, slots=1)
            self.peers[0].submit(
                {"key": "a", "type": "noop"}, {"key": "b", "type": "noop", "after": ["a"]}, key="k"
            )
        self.left -= 1
        return self.rig, self.peers[role % len(_ROLES)].address


_rig = _Rig()


def wire(data: bytes) -> None:
    """A message from a peer, through the broker's core; every one is answered or does nothing."""
    role, frames = split(data)
    corr_of(frames)
    if other_major(frames) is not None:
        hello_of(frames)
    rig, address = _rig.at(role)
    try:
        env = decode([address, *frames], routed=True)
    except BadFrame as e:
        if not e.rule or not str(e):
            raise Wrong(f"no paragraph or no words: {e!r}") from None
        return
    fx = rig.step(env)
    rig.check()
    for send in fx.sends:
        encode(send.verb, send.header, send.body, send.corr)


def wire_seeds() -> list[bytes]:
    """One message of each verb that a peer says."""
    token = [1, 1]
    spec = {
        "key": "x",
        "type": "shell",
        "after": ["a"],
        "policy": {"task": 2},
        "meta": {"m": 1},
        "timeout_s": 5.0,
    }
    messages: list[tuple[int, Verb, dict[str, Any], list[bytes]]] = [
        (0, Verb.HELLO, {"proto": [1, 0], "role": "client", "session": "c" * 32, "name": "n", "pid": 3}, []),
        (
            1,
            Verb.HELLO,
            {"proto": [1, 0], "role": "worker", "session": "w" * 32, "name": "w", "resume": [token]},
            [],
        ),
        (1, Verb.OFFER, {"credit": 3, "slots": 2, "types": ["shell"], "classes": ["cpu"], "vram_mb": 9}, []),
        (1, Verb.RENEW, {"tokens": [token]}, []),
        (1, Verb.STARTED, {"tokens": [token]}, []),
        (1, Verb.RESULT, {"results": [{"token": token, "ok": True, "duration_s": 0.1}]}, [b"\xc0"]),
        (1, Verb.RETURN, {"tokens": [token], "reason": "drain", "not_before_s": 1.0}, []),
        (1, Verb.PROGRESS, {"token": token, "n": 1, "pct": 0.5}, [b"\xc0"]),
        (0, Verb.SUBMIT, {"batch": {"key": "z", "kind": "client", "name": "n"}, "tasks": [spec]}, [b"\x80"]),
        (0, Verb.CANCEL, {"batch": "z", "reason": "r"}, []),
        (0, Verb.REQUEUE, {"ids": ["abcdef"]}, []),
        (0, Verb.QUERY, {"what": "tasks", "limit": 5, "states": ["ready"], "cursor": 0}, []),
        (0, Verb.QUERY, {"what": "why", "id": None}, []),
        (0, Verb.SNAPSHOT, {"cursor": None, "limit": 3}, []),
        (0, Verb.CONTROL, {"action": "pause", "worker": "all"}, []),
        (0, Verb.DRAIN, {"worker": "all"}, []),
        (3, Verb.GONE, {"name": "worker", "why": "killed", "stuck": True}, []),
        (0, Verb.TOKEN, {"name": "t", "action": "take"}, []),
        (2, Verb.BRAIN, {"epoch": 1, "facts": [{"scope": "s", "key": "k", "rev": 0, "value": 1}]}, []),
        (0, Verb.BYE, {"reason": "closed"}, []),
    ]
    return [joined(role, encode(verb, header, body, b"q")) for role, verb, header, body in messages]


# -- plans ---------------------------------------------------------------------------------------------------


def plan(data: bytes) -> None:
    """A plan.md: a plan, or each problem with its words."""
    try:
        parse_plan(data, file="plan.md", name="fuzzed")
    except PlanInvalid as e:
        if not e.faults or not all(str(fault) for fault in e.faults):
            raise Wrong("a refusal without a reason") from None


def plan_seeds() -> list[bytes]:
    """The example plans."""
    return [file.read_bytes() for file in sorted((ROOT / "plans" / "examples").glob("*/plan.md"))]


# -- the share's JSON ----------------------------------------------------------------------------------------


def share_json(data: bytes) -> None:
    """A file that somebody laid into the share: a task, a request, a signal, a drop's settings."""
    for read in (_order, _signal):
        try:
            read(data)
        except Invalid as e:
            if not e.problems or not all(p.what and p.fix for p in e.problems):
                raise Wrong(f"a refusal without a reason or a fix: {e!r}") from None
    found = parse_request(f".requests/{UUID}.json", data)
    if not isinstance(found, FileRequest):
        _told(found)
    for name in ("READY", "config.json"):
        settings = drop_settings({name: data})
        if isinstance(settings, Problem):
            _told(settings)


def _order(data: bytes) -> None:
    order = read_order("x.json", data)
    for part in ("spec", "payload"):
        json.dumps(getattr(order, part, None))


def _signal(data: bytes) -> None:
    wish_of(data, "signals/worker-1.stop")


def _told(problem: Problem) -> None:
    if not problem.what or not problem.fix:
        raise Wrong(f"a refusal without a reason or a fix: {problem!r}")


def share_seeds() -> list[bytes]:
    """A file of each kind."""
    files: list[Mapping[str, Any]] = [
        {"task_id": UUID, "type": "shell", "command": "echo 'a b'", "timeout_seconds": 7, "priority": "high"},
        {
            "task_id": UUID,
            "type": "shell",
            "command": "true",
            "batch_id": "B",
            "depends_on": ["a", "b"],
            "name": "n",
        },
        {
            "task_id": UUID,
            "type": "execute_plan",
            "plan_path": "/x/plans/p",
            "config": {"LIMIT": 3},
            "priority": 10,
        },
        {
            "task_id": UUID,
            "type": "load_llm",
            "llm_model": "m",
            "worker": "gpu1",
            "created_at": "2026-01-01T00:00:00",
        },
        {
            "task_id": UUID,
            "type": "generate",
            "prompt": "p",
            "json_schema": {"type": "object"},
            "max_tokens": 9,
        },
        {"schema": "rigbus.request/1", "id": UUID, "verb": "cancel", "args": {"why": "w"}, "batch_id": "b"},
        {"schema": "rigbus.request/1", "id": UUID, "verb": "submit", "args": {"plan": "p", "config": {}}},
        {"task_id": "t", "reason": "stuck", "requeue": True, "timestamp": 1},
        {"config": {"A": [1, 2.5, None, "x"]}, "priority": "urgent"},
    ]
    return [json.dumps(file).encode() for file in files]


# -- configuration -------------------------------------------------------------------------------------------


def config(data: bytes) -> None:
    """A rigbus.toml, or variables: settings, or an error that names the place."""
    file = _file()
    kept = {name: value for name, value in os.environ.items() if name.startswith("RIGBUS_")}
    try:
        if data.startswith(ENVIRONMENT):
            file.write_bytes(b"")
            for name, value in _variables(data[len(ENVIRONMENT) :]):
                os.environ[name] = value
        else:
            file.write_bytes(data)
        load(config=file)
    except ConfigError as e:
        if str(file) not in str(e) and "RIGBUS_" not in str(e):
            raise Wrong(f"it does not say where: {e}") from None
    finally:
        for name in [name for name in os.environ if name.startswith("RIGBUS_")]:
            del os.environ[name]
        os.environ.update(kept)


@cache
def _file() -> Path:
    folder = tempfile.mkdtemp(prefix="rigbus-fuzz-", dir="/dev/shm" if Path("/dev/shm").is_dir() else None)
    return Path(folder) / "rigbus.toml"


def _variables(data: bytes) -> list[tuple[str, str]]:
    """``NAME=value`` a line, as far as an environment takes them."""
    found = []
    for line in data.split(b"\n")[:20]:
        name, _, value = line.partition(b"=")
        text = name.decode("ascii", "ignore").upper()
        if text.replace("_", "a").isalnum() and b"\0" not in value:
            found.append(("RIGBUS_" + text, os.fsdecode(value)))
    return found


def config_seeds() -> list[bytes]:
    """What a configuration may hold."""
    return [
        b'workers = 3\nlease_s = 7\ndurability = "normal"\nenv_pass = ["LANG"]\n[retention]\nevents = 50_000\n',
        b'[[agents]]\nspec = "mine:Shouter"\nslots = 2\n[limits]\nsessions = 100\ninflow_mb = 64\nfree_mb = 0\n',
        b'[models.small]\npath = "m.gguf"\nctx = 4096\n[gpus.0]\nmodel = "small"\n[logs]\nlevel = "debug"\n',
        b'[models.far]\nurl = "http://127.0.0.1:9/v1"\n[placement]\n[thermal]\n[brain]\ninfer_wait_s = 0\n[bridge]\n',
        b'share_gpus = true\nworker_gpus = [0]\nbrain_gpus = [1]\nshared = "/srv/x"\nstate = "st"\nsettle_s = 3.5\n',
        ENVIRONMENT
        + b'LEASE_S=8\nLOGS__LEVEL=debug\nENV_PASS=["LANG"]\nMODELS={"a": {"path": "b"}}\nLIMITS__FACTS=9\n',
    ]


TARGETS: Final[Mapping[str, tuple[Callable[[bytes], None], Callable[[], list[bytes]]]]] = {
    "wire": (wire, wire_seeds),
    "plan": (plan, plan_seeds),
    "share": (share_json, share_seeds),
    "config": (config, config_seeds),
}
