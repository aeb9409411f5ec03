"""The framework without a rig: signatures, values, references."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from rigbus import Agent, handler
from rigbus.agents.attempts.threads import failure_of
from rigbus.agents.attempts.values import NotKept, outcome_of, pack_value
from rigbus.agents.base import agent_ref, load_agent
from rigbus.agents.handlers import specs_of
from rigbus.bus.errors import ConfigError, DefinitionError
from rigbus.bus.paths import log_path
from rigbus.bus.wire import MAX_RESULT_BYTES, pack, unpack

# Found by their file, as a worker process finds them: tests are no package.
Sampler = load_agent(f"{Path(__file__).with_name('sample_agents.py')}:Sampler")

# ---------------------------------------------------------------- signatures


class Typed(Agent):
    @handler("typed")
    def typed(self, a: int, b: str = "x", *, c: list[int] | None = None) -> None: ...

    @handler("open")
    def open(self, a: int, **rest: int) -> None: ...

    @handler("untyped")
    def untyped(self, a, b=2): ...  # type: ignore[no-untyped-def]

    @handler("nothing")
    def nothing(self) -> None: ...


@pytest.mark.parametrize(
    ("type", "payload", "expected"),
    [
        ("typed", {"a": 1}, {"a": 1, "b": "x", "c": None}),
        ("typed", {"a": 1, "b": "y", "c": [1]}, {"a": 1, "b": "y", "c": [1]}),
        ("open", {"a": 1, "z": 2}, {"a": 1, "z": 2}),
        ("untyped", {"a": "anything"}, {"a": "anything"}),
        ("nothing", {}, {}),
        ("nothing", None, {}),
    ],
)
def test_the_signature_binds_the_payload(type: str, payload: Any, expected: dict[str, Any]) -> None:
    assert specs_of(Typed)[type].arguments(pack(payload)) == expected


@pytest.mark.parametrize(
    ("type", "payload", "named"),
    [
        ("typed", {}, '"a"'),
        ("typed", {"a": "no number"}, '"a"'),
        ("typed", {"a": 1, "c": [1, "no"]}, '"c.1"'),
        ("typed", {"a": 1, "d": 2}, '"d"'),
        ("untyped", {}, '"a"'),
        ("untyped", {"a": 1, "d": 2}, '"d"'),
        ("nothing", {"a": 1}, '"a"'),
        ("typed", [1, 2], "map"),
        ("untyped", "text", "map"),
    ],
)
def test_a_wrong_payload_names_the_field(type: str, payload: Any, named: str) -> None:
    with pytest.raises(DefinitionError, match=named) as e:
        specs_of(Typed)[type].arguments(pack(payload))
    assert str(e.value).startswith(f"{type}: ")


def test_bytes_that_are_no_payload_are_a_definition_error() -> None:
    with pytest.raises(DefinitionError, match="unreadable"):
        specs_of(Typed)["typed"].arguments(b"\xc1\xff")


def test_a_handler_without_annotations_needs_no_pydantic() -> None:
    code = (
        "import sys; sys.path.insert(0, sys.argv[1]); from rigbus import Agent, handler\n"
        "class A(Agent):\n    @handler('n')\n    def n(self): return 1\n"
        "A.specs(); sys.exit('pydantic' in sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code, str(Path(__file__).parent)], check=True)


@pytest.mark.parametrize("type", ["", "a b", "x" * 65, "shell", "expand"])
def test_a_type_that_cannot_be_is_refused_where_it_is_written(type: str) -> None:
    with pytest.raises(TypeError, match="@handler"):
        handler(type)


def test_two_handlers_of_one_type_are_refused() -> None:
    class Twice(Agent):
        @handler("same")
        def one(self) -> None: ...

        @handler("same")
        def two(self) -> None: ...

    with pytest.raises(TypeError, match="both handle 'same'"):
        Twice.specs()


def test_parameters_that_no_payload_can_fill_are_refused() -> None:
    class Star(Agent):
        @handler("star")
        def star(self, *all: int) -> None: ...

    with pytest.raises(TypeError, match="all"):
        Star.specs()


# ---------------------------------------------------------------- values


@dataclass
class Pair:
    a: int
    b: Path


def test_models_dataclasses_and_paths_become_plain_data() -> None:
    assert unpack(pack_value({"pair": Pair(1, Path("/x")), "t": (1, 2)})) == {
        "pair": {"a": 1, "b": "/x"},
        "t": [1, 2],
    }


@pytest.mark.parametrize("value", [object(), {"a": {1, 2}}, {"deep": lambda: 0}, "\ud800", 2**70])
def test_what_cannot_be_sent_is_a_definition_error(value: Any) -> None:
    with pytest.raises(DefinitionError, match="the handler returned"):
        pack_value(value)


def test_a_value_that_is_too_deep_is_refused() -> None:
    deep: Any = []
    for _ in range(2000):
        deep = [deep]
    with pytest.raises(DefinitionError):
        pack_value(deep)


def test_a_large_value_lies_in_the_results_folder_under_its_hash(tmp_path: Path) -> None:
    first = outcome_of("x" * 300_000, tmp_path, 0.0)
    again = outcome_of("x" * 300_000, tmp_path, 0.0)
    assert first.ref == again.ref
    assert first.body == b""
    assert first.ref is not None
    sha = first.ref["sha256"]
    assert (tmp_path / sha[:2] / sha).stat().st_size == first.ref["bytes"]
    assert [p.name for p in (tmp_path / sha[:2]).iterdir()] == [sha]


def test_a_large_value_without_room_is_not_held_against_the_task(tmp_path: Path) -> None:
    (tmp_path / "results").write_text("no folder")
    with pytest.raises(NotKept) as caught:
        outcome_of("x" * 300_000, tmp_path / "results", 0.0)
    out = failure_of(caught.value, specs_of(Typed)["nothing"], 0.1)
    assert not out.ok and out.cls == "infra"
    assert "cannot be kept" in (out.error or "") and "free some space" in (out.error or "")


def test_a_value_over_the_limit_is_refused() -> None:
    with pytest.raises(DefinitionError, match="the limit is"):
        pack_value(b"x" * (MAX_RESULT_BYTES + 1))


@pytest.mark.parametrize("key", ["plain", "a/b", "../../etc/passwd", "ü \n", "x" * 200, ".hidden", ""])
def test_a_log_never_leaves_its_folder(tmp_path: Path, key: str) -> None:
    path = log_path(tmp_path, "b1", key, 1)
    assert path.parent == tmp_path / "b1"
    path.parent.mkdir()
    path.write_text("x")
    assert path.resolve().parent == (tmp_path / "b1").resolve()


def test_different_keys_have_different_logs(tmp_path: Path) -> None:
    keys = ["a/b", "a%2Fb", "a b", "x" * 300 + "1", "x" * 300 + "2", "A"]
    assert len({log_path(tmp_path, "b", k, 1) for k in keys}) == len(keys)


# ---------------------------------------------------------------- references


def test_a_class_is_found_again_by_its_file_and_name() -> None:
    assert load_agent(agent_ref(Sampler)).__name__ == "Sampler"


def test_a_local_class_has_no_reference() -> None:
    class Local(Agent): ...

    with pytest.raises(ConfigError, match="local to a function"):
        agent_ref(Local)


@pytest.mark.parametrize(
    "ref", ["nonsense", "no_such_module:X", "/no/such/file.py:X", f"{__file__}:Nobody", "os:getcwd"]
)
def test_a_wrong_reference_says_what_to_correct(ref: str) -> None:
    with pytest.raises(ConfigError):
        load_agent(ref)
