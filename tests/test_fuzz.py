"""The fuzzers' targets with hypothesis: any bytes, and what is nearly right. ``make fuzz`` plays them for longer."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

import pytest
from fuzzing.targets import TARGETS, config, plan, share_json, share_seeds, wire
from helpers import ROOT
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

NAMES = sorted(TARGETS)
_slow = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])

json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=12),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=12,
)


@pytest.mark.parametrize("name", NAMES)
def test_every_seed_is_taken_or_refused_as_it_should_be(name: str) -> None:
    target, seeds = TARGETS[name]
    assert seeds()
    for seed in seeds():
        target(seed)


@pytest.mark.parametrize("name", NAMES)
@_slow
@given(data=st.binary(max_size=300))
def test_any_bytes(name: str, data: bytes) -> None:
    TARGETS[name][0](data)


@pytest.mark.parametrize("name", NAMES)
@_slow
@given(data=st.data())
def test_a_good_one_with_some_bytes_changed(name: str, data: st.DataObject) -> None:
    target, seeds = TARGETS[name]
    good = bytearray(data.draw(st.sampled_from(seeds())))
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(good)))
        new = data.draw(st.binary(max_size=6))
        good[at : at + data.draw(st.integers(0, 6))] = new
    target(bytes(good))


@_slow
@given(value=json_values)
def test_any_json_in_the_share(value: Any) -> None:
    share_json(json.dumps(value).encode())


@_slow
@given(data=st.data())
def test_a_task_request_or_signal_with_a_field_of_any_kind(data: st.DataObject) -> None:
    fields = json.loads(data.draw(st.sampled_from(share_seeds())))
    key = data.draw(st.sampled_from(sorted(fields)) | st.text(max_size=8))
    fields[key] = data.draw(json_values)
    share_json(json.dumps(fields).encode())


KEYS = [
    "workers", "slots", "lease_s", "renew_s", "durability", "env_pass", "state", "shared", "model", "settle_s",
    "share_gpus", "worker_gpus", "agents", "models", "gpus", "limits.facts", "limits.free_mb", "limits.inflow_mb",
    "logs.level", "retention.tasks", "thermal", "placement", "brain.infer_wait_s", "bridge.reconcile_s",
]  # fmt: skip
TOML = st.one_of(
    st.integers().map(str),
    st.floats().map(str),
    st.booleans().map(lambda b: str(b).lower()),
    st.text(max_size=10).map(json.dumps),
    st.sampled_from(
        ['"5"', "[]", "{}", "[1, 'x']", "{a = 1}", "[{}]", "1979-05-27", "'full '", "0x10", "1e400", "''"]
    ),
)


PLAN_LINES = ["## Tasks", "### a", "- **type**: shell", "- **command**: `true`", "- **depends_on**: a", "```"]


@_slow
@given(key=st.sampled_from(KEYS), value=TOML)
def test_a_setting_with_nearly_the_right_value(key: str, value: str) -> None:
    config(f"{key} = {value}\n".encode())


@_slow
@given(key=st.sampled_from(KEYS), value=TOML | st.text(max_size=12))
def test_a_variable_with_nearly_the_right_value(key: str, value: str) -> None:
    config(b"environment\n" + f"{key.replace('.', '__')}={value}\n".encode("utf-8", "surrogatepass"))


@_slow
@given(name=st.sampled_from(["shell", "expand", "load_llm", ""]), header=json_values)
def test_a_header_of_any_json(name: str, header: Any) -> None:
    from fuzzing.targets import joined

    from rigbus.bus.wire import PROTOCOL, Verb, pack

    fields = header if isinstance(header, dict) else {"tasks": header, "type": name}
    for verb in Verb:
        try:
            packed = pack(fields)
        except (ValueError, OverflowError):
            return  # a number that msgpack has no room for
        wire(joined(len(name), [PROTOCOL, verb.encode(), b"c", packed, b"\x80"]))


@_slow
@given(lines=st.lists(st.sampled_from(PLAN_LINES) | st.text(max_size=30)))
def test_a_plan_of_lines(lines: list[str]) -> None:
    plan("\n".join(["# P", *lines]).encode("utf-8", "surrogatepass"))


# -- memory --------------------------------------------------------------------------------------------------

_BOMB = """
import sys
from rigbus.bus.errors import BadFrame
from rigbus.bus.wire import MAX_FRAME_BYTES, unpack

def array(n): return b"\\xdd" + n.to_bytes(4, "big")
def filled(piece):
    out, n = b"", MAX_FRAME_BYTES // (60_000 * len(piece) + 5)
    for _ in range(n): out += array(60_000) + piece * 60_000
    return array(n) + out

bombs = {
    "maps": filled(b"\\x80"), "lists": filled(b"\\x90"), "texts": filled(b"\\xa2ab"), "floats": filled(b"\\xcb" + b"\\x3f" * 8),
    "numbers": filled(b"\\xcd\\xff\\xff"), "nil": filled(b"\\xc0"), "nested": b"\\x91" * 1_000_000, "claims": array(2**32 - 1),
    "pairs": filled(b"\\x81\\xa1a\\x80"), "bytes": filled(b"\\xc4\\x02xy"),
}
def peak_kib():
    return int(open("/proc/self/status").read().partition("VmHWM:")[2].split()[0])

data = bombs[sys.argv[1]]
del bombs
open("/proc/self/clear_refs", "w").write("5")
before = peak_kib()
try:
    unpack(data)
    word = "taken"
except BadFrame as e:
    word = f"refused: {e}"
print((peak_kib() - before) // 1024, word)
"""
_KINDS = ("maps", "lists", "texts", "floats", "numbers", "nil", "nested", "claims", "pairs", "bytes")


@pytest.mark.skipif(sys.platform != "linux", reason="the peak is read from /proc")
@pytest.mark.parametrize("kind", _KINDS)
def test_no_frame_of_msgpack_takes_over_64_mib(kind: str) -> None:
    said = subprocess.run(
        [sys.executable, "-c", _BOMB, kind], cwd=ROOT, capture_output=True, text=True, check=True, timeout=60
    ).stdout
    grown_mib = int(said.split()[0])
    assert grown_mib <= 64, f"{kind}: {said}"
