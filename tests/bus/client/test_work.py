"""The pure part of submitting: keys, specs, messages, values."""

from __future__ import annotations

import contextlib
import random
import uuid
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rigbus.bus.client.work import (
    Task,
    build,
    child_key,
    decode_chunk,
    decode_value,
    in_order,
    messages,
    task_id,
)
from rigbus.bus.core.model import task_id as core_task_id
from rigbus.bus.errors import BadFrame, DefinitionError
from rigbus.bus.wire import MAX_BATCH, MAX_KEY_BYTES, MAX_PAYLOAD_BYTES, Verb, encode, pack


def specs(tasks: list[Task], **options: Any) -> list[dict[str, Any]]:
    return [item.spec for item in build(tasks, **options)]


def test_a_plain_task_is_a_small_spec() -> None:
    assert specs([Task(type="echo")]) == [{"key": "0", "type": "echo"}]


def test_every_field_has_its_name_on_the_wire() -> None:
    task = Task(
        type="t",
        key="k",
        cls="llm",
        priority=8,
        timeout_s=1.5,
        queue_timeout_s=2,
        no_progress_s=3,
        deadline_s=4,
        max_attempts=5,
        backoff_s=0.5,
        policy={"crash": 7},
        name="n",
        needs=["gpu"],
        pool="p",
        meta={"a": 1},
        review=True,
        escalate=True,
        orphan="cancel",
        after=["x", ("y", "end"), ("z", "success")],
    )
    assert specs([task]) == [
        {
            "key": "k",
            "type": "t",
            "class": "llm",
            "name": "n",
            "pool": "p",
            "priority": 8,
            "timeout_s": 1.5,
            "queue_timeout_s": 2,
            "no_progress_s": 3,
            "deadline_s": 4,
            "policy": {"crash": 7, "task": 5, "backoff_s": 0.5},
            "needs": ["gpu"],
            "after": ["x", ["y", "end"], "z"],
            "meta": {"a": 1},
            "review": True,
            "escalate": True,
            "orphan": "cancel",
        }
    ]


def test_made_up_keys_never_meet_given_ones() -> None:
    keys = [s["key"] for s in specs([Task(type="t"), Task(type="t", key="0"), Task(type="t", key="_0")])]
    assert len(set(keys)) == 3
    assert keys[1:] == ["0", "_0"]


def test_the_same_tasks_make_the_same_specs() -> None:
    def make() -> list[Task]:
        first = Task(type="t", payload={"a": [1, 2.5, None, b"x"]})
        return [first, Task(type="t", after=[first])]

    assert build(make()) == build(make())


def test_children_stand_under_their_parents_key() -> None:
    parent = {"id": "P", "token": (1, 2), "key": "h", "batch": "b"}
    a = Task(type="t", key="a")
    out = specs([a, Task(type="t", after=["a", a, "elsewhere"])], parent=parent, first=4)
    assert [s["key"] for s in out] == ["h/a", "h/5"]
    assert out[1]["after"] == ["h/a", "h/a", "elsewhere"]
    assert out[0]["parent"] == {"id": "P", "token": [1, 2]}


@given(depth=st.integers(1, 60), n=st.integers(1, 10**6))
def test_a_childs_key_stays_within_its_bound_and_is_the_same_each_time(depth: int, n: int) -> None:
    key = "handler"
    for _ in range(depth):
        key = child_key(key, n)
    assert len(key.encode()) <= MAX_KEY_BYTES
    assert key.endswith(f"/{n}")
    assert child_key(key, 1) != child_key(key, 2)


def test_the_id_is_the_one_the_broker_makes() -> None:
    assert task_id("b", "k") == core_task_id("b", "k")
    assert uuid.UUID(task_id("b", "k")).version == 5


@given(sizes=st.lists(st.integers(0, 250_000), max_size=40))
def test_messages_keep_every_task_and_every_limit(sizes: list[int]) -> None:
    items = build([Task(type="t", payload=bytes(n)) for n in sizes])
    parts = messages(items)
    assert [i for part in parts for i in part] == items
    for part in parts:
        encode(Verb.SUBMIT, {"tasks": [i.spec for i in part]}, [i.payload for i in part])
        assert sum(len(i.payload) for i in part) <= 4 << 20


def test_many_small_tasks_split_by_count_and_big_specs_by_header() -> None:
    assert [len(p) for p in messages(build([Task(type="t")] * 0))] == []
    assert [len(p) for p in messages(build([Task(type="t") for _ in range(2500)]))] == [1000, 1000, 500]
    heavy = messages(build([Task(type="t", meta={"x": "y" * 10_000}) for _ in range(300)]))
    assert len(heavy) > 1
    for part in heavy:
        assert len(part) <= MAX_BATCH
        encode(Verb.SUBMIT, {"tasks": [i.spec for i in part]}, [i.payload for i in part])


@given(seed=st.integers(0, 10**6), n=st.integers(2, 40))
def test_in_order_puts_every_task_behind_what_it_waits_for(seed: int, n: int) -> None:
    rng = random.Random(seed)
    order = list(range(n))
    rng.shuffle(order)
    rank = {key: place for place, key in enumerate(order)}
    tasks = [
        Task(
            type="t", key=str(k), after=[str(j) for j in range(n) if rank[j] < rank[k] and rng.random() < 0.2]
        )
        for k in range(n)
    ]
    items = build(tasks)
    out = in_order(items)
    assert sorted(i.spec["key"] for i in out) == sorted(i.spec["key"] for i in items)
    place = {i.spec["key"]: p for p, i in enumerate(out)}
    assert all(place[a] < place[i.spec["key"]] for i in out for a in i.spec.get("after", []))


def test_what_is_in_order_already_stays_as_it_is() -> None:
    items = build([Task(type="t", key="a"), Task(type="t", key="b", after=["a"]), Task(type="t", key="c")])
    assert in_order(items) == items


def test_a_cycle_is_named() -> None:
    with pytest.raises(DefinitionError, match="cycle"):
        in_order(build([Task(type="t", key="a", after=["b"]), Task(type="t", key="b", after=["a"])]))


plain = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats(allow_nan=False)
    | st.text()
    | st.binary(),
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.text() | st.integers(0, 9), inner, max_size=4)
    ),
)


@given(value=plain)
def test_values_come_back_as_they_went(value: Any) -> None:
    assert decode_value(pack(value)) == value


@given(data=st.binary())
def test_any_bytes_are_a_value_or_a_named_error(data: bytes) -> None:
    with contextlib.suppress(BadFrame):
        decode_value(data)


def test_a_value_that_is_too_deep_is_refused() -> None:
    deep: Any = 1
    for _ in range(40):
        deep = [deep]
    with pytest.raises(BadFrame, match="32 deep"):
        decode_value(pack(deep))


def test_nothing_is_none_and_chunks_that_are_no_msgpack_stay_bytes() -> None:
    assert decode_value(b"") is None
    assert decode_chunk(pack("text")) == "text"
    assert decode_chunk(b"plain text") == b"plain text"


@pytest.mark.parametrize(
    ("type_", "fix"),
    [
        ("generate", "split its text over several tasks; in a plan `input` names a file"),
        ("echo", "write it to a file and send its path"),
    ],
)
def test_a_payload_that_is_too_large_says_what_helps(type_: str, fix: str) -> None:
    with pytest.raises(DefinitionError, match=fix):
        build([Task(type=type_, payload={"prompt": "x" * MAX_PAYLOAD_BYTES})])
