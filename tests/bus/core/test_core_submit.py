"""SUBMIT: idempotent, bounded, checked whole before anything of it is applied; no header of anybody breaks the core."""

from __future__ import annotations

import uuid
from typing import Any

import pytest
from harness import Harness, Peer, error_of, spec
from hypothesis import given, settings
from hypothesis import strategies as st

from rigbus.bus.core.model import task_id
from rigbus.bus.states import TaskState
from rigbus.bus.wire import MAX_BATCH, MAX_KEY_BYTES, MAX_META_BYTES, MAX_PAYLOAD_BYTES, Envelope, Verb


@pytest.fixture
def rig() -> Harness:
    return Harness()


def world(rig: Harness) -> tuple[Any, ...]:
    """What a refused message must leave as it was."""
    core = rig.core
    return (
        [
            (t.no, t.state, t.unmet, t.ending, t.attempt, t.priority, t.error, t.hold)
            for t in core.tasks.values()
        ],
        [(b.no, b.state, b.closed, b.cancelled, b.error, sorted(b.keys)) for b in core.batches.values()],
        [(k, f.rev, repr(f.value)) for k, f in core.facts.items()],
        sorted(core.leases),
        (core.seq, core.next_no, core.next_batch, core.token_seq, core.epoch, core.brain),
        sorted(core.sessions),
        {sid: sorted(tasks) for sid, tasks in core.owned.items()},
    )


@given(st.text(max_size=20), st.text(max_size=20))
def test_a_task_id_is_the_uuid5_of_the_protocol(batch: str, key: str) -> None:
    rigbus = uuid.uuid5(uuid.NAMESPACE_DNS, "rigbus")
    assert task_id(batch, key) == str(uuid.uuid5(rigbus, f"{batch}/{key}"))


# -- idempotence ---------------------------------------------------------------------------------------------


def test_ids_are_made_of_batch_and_key(rig: Harness) -> None:
    answer = rig.client().submit(spec("a"), spec("b"), key="mine")
    batch = answer.header["batch"]
    assert answer.header["ids"] == [task_id(batch, "a"), task_id(batch, "b")]
    assert answer.header["states"] == ["ready", "ready"]


def test_the_same_submit_again_is_the_same_answer_and_nothing_new(rig: Harness) -> None:
    client, other = rig.client(), rig.client()
    first = client.submit(spec("a"), spec("b", "a"), key="mine", payloads=[b"1", b"2"])
    before = world(rig)
    for peer in (client, other):
        again = peer.submit(spec("a"), spec("b", "a"), key="mine", payloads=[b"1", b"2"])
        assert again.header == first.header
    assert world(rig) == before
    worker = rig.worker()
    worker.result(worker.lease())
    worker.result(worker.lease())
    assert [len(p.take(Verb.ENDED)) for p in (client, other)] == [2, 2]  # both asked for them
    assert client.submit(spec("a"), spec("b", "a"), key="mine", payloads=[b"1", b"2"]).header["states"] == [
        "done",
        "done",
    ]


@pytest.mark.parametrize("change", ["payload", "type", "timeout", "edge"])
def test_a_known_key_with_another_content_is_a_conflict(rig: Harness, change: str) -> None:
    client = rig.client()
    client.submit(spec("a"), spec("b"), key="mine", payloads=[b"1", b"2"])
    changed = {
        "type": spec("b", type="other"),
        "timeout": spec("b", timeout_s=5),
        "edge": spec("b", "a"),
    }.get(change, spec("b"))
    before = world(rig)
    payloads = [b"1", b"3" if change == "payload" else b"2"]
    answer = client.submit(spec("a"), changed, key="mine", payloads=payloads)
    assert answer.verb is Verb.CONFLICT and answer.header["key"] == "b"
    assert world(rig) == before


def test_a_known_batch_key_with_more_tasks_is_a_conflict(rig: Harness) -> None:
    client = rig.client()
    client.submit(spec("a"), key="mine")
    before = world(rig)
    answer = client.submit(spec("a"), spec("b"), key="mine")
    assert answer.verb is Verb.CONFLICT and answer.header["key"] == "mine"
    assert world(rig) == before


def test_an_open_batch_takes_more_until_it_is_closed(rig: Harness) -> None:
    client = rig.client()
    batch = client.submit(spec("a"), key="mine", open=True).header["batch"]
    assert client.submit(spec("b"), key="", id=batch, open=True).verb is Verb.ACCEPTED
    assert client.submit(spec("c"), key="", id=batch).verb is Verb.ACCEPTED
    assert error_of(client.submit(spec("d"), key="", id=batch)) == "refused"
    assert client.submit(spec("c"), key="", id=batch).verb is Verb.ACCEPTED
    assert len(rig.core.tasks) == 3


def test_a_batch_that_has_ended_takes_no_more(rig: Harness) -> None:
    client, worker = rig.client(), rig.worker()
    batch = client.submit(spec("a"), key="mine").header["batch"]
    worker.result(worker.lease())
    assert rig.core.batch_ids[batch].ended_at
    assert error_of(client.submit(spec("b"), key="", id=batch)) == "refused"
    assert client.submit(spec("a"), key="mine").header["states"] == ["done"]


def test_an_empty_batch_is_complete_at_once(rig: Harness) -> None:
    answer = rig.client().submit(key="empty")
    assert rig.core.batch_ids[answer.header["batch"]].state.name == "COMPLETE"
    open_ = rig.client().submit(key="open", open=True)
    assert rig.core.batch_ids[open_.header["batch"]].state.name == "RUNNING"


def test_a_plan_is_a_batch_without_tasks_that_the_brain_hears_of(rig: Harness) -> None:
    answer = rig.client().submit(kind="plan", plan={"name": "report", "sha256": "x"}, key="p1")
    batch = rig.core.batch_ids[answer.header["batch"]]
    assert batch.state.name == "PLANNING" and batch.mirror and batch.plan == {"name": "report", "sha256": "x"}
    assert "batch.plan.planning" in rig.topics("a")


# -- bounds --------------------------------------------------------------------------------------------------


def test_a_full_rig_is_busy_but_repeats_of_what_it_accepted_are_not(rig: Harness) -> None:
    rig.core.max_live = 5
    client = rig.client()
    client.submit(*[spec(f"t{i}") for i in range(5)], key="mine", open=True)
    before = world(rig)
    answer = client.submit(spec("more"))
    assert (
        answer.verb is Verb.BUSY and answer.header["bound"] == "tasks" and answer.header["retry_after_s"] > 0
    )
    assert world(rig) == before
    assert client.submit(*[spec(f"t{i}") for i in range(5)], key="mine", open=True).verb is Verb.ACCEPTED


def test_a_batch_has_a_bound_too(rig: Harness) -> None:
    rig.core.max_batch_tasks = 3
    client = rig.client()
    client.submit(*[spec(f"t{i}") for i in range(3)], key="mine", open=True)
    assert error_of(client.submit(spec("more"), key="mine", open=True)) == "definition"
    assert client.submit(*[spec(f"t{i}") for i in range(3)], key="mine", open=True).verb is Verb.ACCEPTED
    assert client.submit(spec("more")).verb is Verb.ACCEPTED


def test_a_message_has_at_most_a_thousand_tasks(rig: Harness) -> None:
    client = rig.client()
    assert error_of(client.submit(*[spec(f"t{i}") for i in range(MAX_BATCH + 1)])) == "definition"
    assert client.submit(*[spec(f"t{i}") for i in range(MAX_BATCH)]).verb is Verb.ACCEPTED


def test_a_payload_has_its_bound(rig: Harness) -> None:
    client = rig.client()
    assert client.submit(spec("a"), payloads=[b"x" * MAX_PAYLOAD_BYTES]).verb is Verb.ACCEPTED
    answer = client.submit(spec("a"), payloads=[b"x" * (MAX_PAYLOAD_BYTES + 1)])
    assert error_of(answer) == "definition" and "send its path" in answer.header["message"]


# -- every bad field -----------------------------------------------------------------------------------------

NAN, INF = float("nan"), float("inf")
BAD_FIELDS: list[tuple[str, Any]] = [
    ("key", None),
    ("key", ""),
    ("key", 5),
    ("key", b"bytes"),
    ("key", ["a"]),
    ("key", {}),
    ("key", "ä" * MAX_KEY_BYTES),
    ("type", None),
    ("type", ""),
    ("type", 5),
    ("type", "t" * 101),
    ("type", "execute_plan"),
    ("class", 5),
    ("class", ["cpu"]),
    ("pool", {}),
    ("view", 1.5),
    ("needs", "cuda"),
    ("needs", [5]),
    ("needs", {"cuda": True}),
    ("priority", "high"),
    ("priority", -1),
    ("priority", 11),
    ("priority", NAN),
    ("priority", True),
    ("deadline_s", -1),
    ("deadline_s", INF),
    ("deadline_s", "soon"),
    ("timeout_s", 0),
    ("timeout_s", -5),
    ("timeout_s", NAN),
    ("timeout_s", [1]),
    ("queue_timeout_s", 2e9),
    ("no_progress_s", {}),
    ("policy", "often"),
    ("policy", [1]),
    ("policy", {"task": 0}),
    ("policy", {"task": 1001}),
    ("policy", {"crash": "x"}),
    ("policy", {"infra": NAN}),
    ("policy", {"backoff_s": -1}),
    ("policy", {"backoff_max_s": 1e6}),
    ("after", 5),
    ("feeds", "x"),
    ("meta", [1]),
    ("meta", "text"),
    ("meta", {"a": "x" * MAX_META_BYTES}),
    ("parent", 5),
    ("parent", {"id": 5}),
    ("parent", {"id": "nobody", "token": [1, 1]}),
]


@pytest.mark.parametrize(("field", "value"), BAD_FIELDS, ids=[f"{f}={v!r:.25}" for f, v in BAD_FIELDS])
def test_a_bad_field_of_the_last_spec_refuses_the_whole_submit(rig: Harness, field: str, value: Any) -> None:
    client = rig.client()
    before = world(rig)
    answer = client.submit(spec("good"), spec("also", "good"), {**spec("bad"), field: value})
    assert error_of(answer) in ("definition", "bad_frame", "not_found") and answer.header["message"]
    assert world(rig) == before and not rig.changes[-1]
    assert client.submit(spec("good")).verb is Verb.ACCEPTED


@pytest.mark.parametrize(
    "header",
    [
        {},
        {"batch": 5},
        {"batch": []},
        {"batch": {"key": 5}},
        {"batch": {"key": "k" * 300}},
        {"batch": {"key": "k", "kind": "other"}},
        {"batch": {"key": "k", "kind": ["plan"]}},
        {"batch": {"key": "k", "kind": "plan"}},
        {"batch": {"key": "k", "kind": "plan", "plan": [1]}},
        {"batch": {"key": "k", "kind": "plan", "plan": {"a": "x" * MAX_META_BYTES}}},
        {"batch": {"key": "k", "name": 5}},
        {"batch": {"key": "k", "priority": "high"}},
        {"batch": {"id": "nobody"}},
        {"batch": {"id": 5}},
        {"batch": {"key": "k"}, "tasks": 5},
        {"batch": {"key": "k"}, "tasks": {"a": 1}},
        {"batch": {"key": "k"}, "tasks": [5]},
        {"batch": {"key": "k"}, "tasks": [None]},
        {"batch": {"key": "k"}, "tasks": [[]]},
        {"batch": {"key": "k"}, "tasks": [spec("a"), spec("a")]},
    ],
)
def test_a_bad_submit_is_refused_with_nothing_applied(rig: Harness, header: dict[str, Any]) -> None:
    client = rig.client()
    before = world(rig)
    assert error_of(client.ask(Verb.SUBMIT, header)) in ("definition", "bad_frame", "not_found")
    assert world(rig) == before and not rig.changes[-1]


def test_children_of_two_parents_in_one_submit_apply_nothing(rig: Harness) -> None:
    worker, client = rig.worker(credit=2, slots=2), rig.client()
    client.tasks(spec("a"))
    client.tasks(spec("b"))
    first, second = worker.leases()
    before = world(rig)
    parents = [{"id": lease["id"], "token": lease["token"]} for lease in (first, second)]
    for bad in (parents[1], {"id": first["id"], "token": [1, 99]}, {"id": first["id"], "token": "x"}):
        answer = worker.submit(spec("a/1", parent=parents[0]), spec("a/2", parent=bad))
        assert error_of(answer) in ("definition", "stale_token", "bad_frame")
        assert world(rig) == before


# -- any header of any verb ----------------------------------------------------------------------------------

leaf = (
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.integers(-2, 3)
    | st.floats()
    | st.text(max_size=8)
    | st.binary(max_size=8)
    | st.sampled_from(
        ["a", "b", "j", "w1", "all", "token", "take", "pause", "success", "end", "b1", "accept"]
    )
)
names = st.sampled_from(
    [
        *(
            "id",
            "ids",
            "batch",
            "key",
            "kind",
            "tasks",
            "tokens",
            "token",
            "results",
            "ok",
            "class",
            "error",
            "ref",
        ),
        *(
            "after",
            "feeds",
            "parent",
            "policy",
            "needs",
            "priority",
            "credit",
            "slots",
            "types",
            "classes",
            "pools",
        ),
        *(
            "what",
            "cursor",
            "limit",
            "states",
            "scope",
            "value",
            "rev",
            "facts",
            "verdicts",
            "verdict",
            "release",
        ),
        *(
            "close",
            "fail",
            "cancel",
            "epoch",
            "reason",
            "worker",
            "action",
            "name",
            "session",
            "role",
            "proto",
        ),
        *(
            "resume",
            "pid",
            "offset",
            "n",
            "pct",
            "not_before_s",
            "deadline_s",
            "type",
            "plan",
            "open",
            "meta",
        ),
        *(
            "sha256",
            "bytes",
            "exit",
            "duration_s",
            "hold",
            "join",
            "review",
            "attn",
            "full",
            "all",
            "why",
            "state_id",
        ),
    ]
)
anything = st.recursive(
    leaf, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(names, inner, max_size=4), max_leaves=10
)
REAL = "<id>"


def busy_rig() -> tuple[Harness, dict[str, Peer]]:
    """A rig in which something is in every state that a message could touch."""
    rig = Harness()
    worker = rig.worker(credit=3, slots=2, name="w1")
    client = rig.client()
    brain = rig.brain()
    client.tasks(
        spec("a"), spec("b", "a"), spec("j", join=True, hold=True), spec("c", "j"), key="b1", open=True
    )
    client.submit(kind="plan", plan={"name": "p"}, key="p1")
    client.tasks(spec("dead"), spec("skipped", "dead"), key="b2")
    for lease in worker.leases():
        if lease["key"] == "dead":
            worker.fail(lease, "definition")
    return rig, {"worker": worker, "client": client, "brain": brain, "supervisor": rig.peer("supervisor")}


def with_real_ids(value: Any, rig: Harness, peer: Peer) -> Any:
    """Put real ids, tokens and the epoch where the strategy left room, so that messages get past the first check."""
    if isinstance(value, dict):
        out = {k: with_real_ids(v, rig, peer) for k, v in value.items()}
        if out.get("epoch") in (0, 1, 2, 3):
            out["epoch"] = rig.core.epoch
        return out
    if isinstance(value, list):
        return [with_real_ids(v, rig, peer) for v in value]
    if value == "a":
        return rig.core.tasks[1].id
    if value == "j":
        return rig.core.tasks[3].id
    if value == "b1":
        return rig.core.batch_keys["b1"].id
    if value == "token":
        return [1, 1]
    return value


@settings(max_examples=200, deadline=None)
@given(
    st.sampled_from(list(Verb)),
    st.sampled_from(["worker", "client", "brain", "supervisor"]),
    st.dictionaries(names, anything, max_size=6),
    st.lists(st.binary(max_size=5), max_size=2),
)
def test_no_header_of_any_verb_raises_or_is_half_applied(
    verb: Verb, who: str, header: dict[str, Any], body: list[bytes]
) -> None:
    rig, peers = busy_rig()
    peer = peers[who]
    rig.matching = False
    before = world(rig)
    rig.inboxes.clear()
    rig.step(Envelope(verb, with_real_ids(header, rig, peer), body, b"q", peer.address))
    refused = [
        s
        for s in rig.inboxes[peer.address]
        if s.corr == b"q" and s.verb in (Verb.ERROR, Verb.CONFLICT, Verb.BUSY)
    ]
    if refused:
        assert world(rig) == before, (verb, header, refused[0].header)
    rig.check()
    rig.wait(1.5)
    rig.check()


SHAPED: dict[Verb, st.SearchStrategy[dict[str, Any]]] = {
    Verb.RESULT: st.fixed_dictionaries(
        {
            "results": st.lists(
                st.fixed_dictionaries(
                    {"token": st.just([1, 1]) | anything},
                    optional={
                        "ok": leaf,
                        "ref": anything,
                        "class": leaf,
                        "error": leaf,
                        "exit": leaf,
                        "duration_s": leaf,
                        "cancelled": leaf,
                    },
                ),
                max_size=3,
            )
        }
    ),
    Verb.SUBMIT: st.fixed_dictionaries(
        {
            "batch": st.fixed_dictionaries(
                {"key": st.sampled_from(["b1", "b2", "new"])},
                optional={"open": leaf, "kind": leaf, "id": leaf, "priority": leaf},
            ),
            "tasks": st.lists(
                st.fixed_dictionaries(
                    {"key": st.sampled_from(["a", "x", "y", "z"]), "type": st.just("noop")},
                    optional={
                        "after": st.lists(
                            st.sampled_from(["x", "y", "z", "a", "j", ["dead", "end"], "dead", ["x", "end"]]),
                            max_size=3,
                        )
                        | anything,
                        "feeds": st.lists(st.sampled_from(["j", "x", "y"]), max_size=2),
                        "join": st.booleans(),
                        "parent": anything,
                        "deadline_s": leaf,
                        "policy": anything,
                    },
                ),
                max_size=4,
            ),
        }
    ),
    Verb.BRAIN: st.fixed_dictionaries(
        {"epoch": st.just(1)},
        optional={
            "batch": st.sampled_from(["b1", "nobody"]),
            "tasks": st.lists(
                st.fixed_dictionaries(
                    {"key": st.sampled_from(["x", "y"]), "type": st.just("noop")},
                    optional={"feeds": st.just(["j"]), "after": anything},
                ),
                max_size=3,
            ),
            "release": st.lists(st.sampled_from(["j", "a", "nobody"]), max_size=2) | anything,
            "close": st.lists(st.sampled_from(["b1", "nobody"]), max_size=2) | anything,
            "verdicts": st.lists(
                st.fixed_dictionaries({"id": st.sampled_from(["a", "j"]), "verdict": leaf}), max_size=2
            )
            | anything,
            "facts": st.lists(
                st.fixed_dictionaries({"scope": leaf, "key": leaf, "rev": leaf, "value": anything}),
                max_size=2,
            )
            | anything,
            "fail": anything,
            "cancel": st.lists(
                st.fixed_dictionaries({"batch": st.sampled_from(["b1", "nobody"])}), max_size=2
            )
            | anything,
        },
    ),
    Verb.HELLO: st.fixed_dictionaries(
        {
            "proto": st.just([1, 0]),
            "role": st.sampled_from(["worker", "client", "brain"]),
            "session": st.text("abc0", min_size=7, max_size=40),
        },
        optional={
            "name": st.sampled_from(["w1", "w2"]) | leaf,
            "pid": leaf,
            "resume": st.lists(st.just([1, 1]) | anything, max_size=3) | anything,
        },
    ),
    Verb.RETURN: st.fixed_dictionaries(
        {"tokens": st.lists(st.sampled_from([[1, 1], [1, 2], [1, 9]]), max_size=4)},
        optional={"not_before_s": leaf, "reason": leaf},
    ),
}


@settings(max_examples=200, deadline=None)
@given(st.sampled_from(sorted(SHAPED)).flatmap(lambda v: st.tuples(st.just(v), SHAPED[v])))
def test_nearly_right_messages_are_applied_whole_or_not_at_all(message: tuple[Verb, dict[str, Any]]) -> None:
    verb, header = message
    rig, peers = busy_rig()
    peer = {Verb.RESULT: peers["worker"], Verb.RETURN: peers["worker"], Verb.BRAIN: peers["brain"]}.get(
        verb, peers["client"]
    )
    rig.matching = False
    before = world(rig)
    rig.inboxes.clear()
    address = b"fresh" if verb is Verb.HELLO else peer.address
    rig.step(Envelope(verb, with_real_ids(header, rig, peer), [b"x", b"y"], b"q", address))
    refused = [
        s for s in rig.inboxes[address] if s.corr == b"q" and s.verb in (Verb.ERROR, Verb.CONFLICT, Verb.BUSY)
    ]
    if refused:
        assert world(rig) == before, refused[0].header
    rig.check()


def test_the_busy_rig_is_as_its_test_wants_it() -> None:
    rig, _ = busy_rig()
    states = {t.key: t.state for t in rig.core.tasks.values()}
    assert states["a"] is TaskState.LEASED and states["j"] is TaskState.WAITING
    assert states["dead"] is TaskState.DEAD and states["skipped"] is TaskState.SKIPPED
    assert rig.core.tasks[1].key == "a" and rig.core.tasks[3].key == "j" and (1, 1) in rig.core.leases


def test_submits_in_one_second_have_ids_of_their_own() -> None:
    """An id that is only a time gives two of them one folder."""
    rig = Harness()
    client = rig.client()
    batches = {client.submit(spec("a"), name="census").header["batch"] for _ in range(300)}
    assert len(batches) == 300
    assert len({batch[:15] for batch in batches}) == 1, "the clock stood still"
