"""The list of a foreach: every row of "Foreach rules", and what a list can have wrong."""

from __future__ import annotations

import json
import re
import unicodedata
from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rigbus.plans import ItemsError, parse_plan
from rigbus.plans.errors import PlanInvalid
from rigbus.plans.items import MAX_ITEM_DEPTH, Counterparts, check_items, read_document, read_list
from rigbus.plans.keys import MAX_ITEMS, item_keys, task_keys


def _bytes(value: object) -> bytes:
    return json.dumps(value).encode()


def _fault(call, *given) -> str:
    with pytest.raises(ItemsError) as caught:
        call(*given)
    return str(caught.value)


# -- reading ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "data",
    [
        b'{"items": [{"id": "a"}, {"id": "b"}]}',
        b'\xef\xbb\xbf{"items": [{"id": "a"}, {"id": "b"}]}',
        b'{"items": [\r\n{"id": "a"},\r\n\t{"id": "b"}\r\n]}\r\n',
    ],
    ids=["plain", "with a BOM", "CRLF and tabs"],
)
def test_a_list_is_read_however_its_lines_end(data):
    assert read_list(data, "items", ["id"]) == [{"id": "a"}, {"id": "b"}]


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b'{"items": [NaN]}', r"NaN is no JSON number"),
        (b'{"items": [-Infinity]}', r"-Infinity is no JSON number"),
        (b"", "it is empty"),
        (b'{"items": [1, 2', r"no JSON \(.*line 1 column"),
        (b'{"id": 1}\n{"id": 2}\n', "JSON Lines is none"),
        (b"[" * 100_000, "nested too deep"),
        ("[1]".encode("utf-16"), "UTF-16"),
        (b'["\xff"]', "no UTF-8"),
        (b'{"items": [["' + b"x" * 10 + b'\\ud800"]]}', "element 0 holds half a surrogate pair"),
    ],
)
def test_what_is_no_json_is_refused_with_its_fix(data, words):
    fault = _fault(read_list, data, "items")
    assert re.search(words, fault), fault
    assert "; " in fault


def test_numbers_too_large_for_the_machine_stay_what_was_written():
    big = (
        b"[123456789012345678901234567890, 18446744073709551615, 1e400, -1E+999, 1e30, 12345678901234567890]"
    )
    assert read_document(big) == [
        "123456789012345678901234567890",
        18446744073709551615,
        "1e400",
        "-1E+999",
        1e30,
        12345678901234567890,
    ]


def test_whole_surrogate_pairs_are_fine():
    assert read_list(b'["\\ud83d\\ude00"]', "") == ["\U0001f600"]


@pytest.mark.parametrize(
    ("document", "path", "words"),
    [
        ({"itmes": []}, "items", "nothing at 'items': $ has no 'items'; the lists there are: itmes"),
        ({"a": {"b": 1}}, "a.c", "$.a has no 'c'; point the path at a list (keys there: b)"),
        ({"items": {"x": 1}}, "items", "'items' is an object, not a list"),
        ({"items": None}, "items", "'items' is null, not a list"),
        ({"items": "[]"}, "items", "'items' is a text, not a list"),
    ],
)
def test_a_wrong_path_names_what_is_there(document, path, words):
    assert words in _fault(read_list, _bytes(document), path)


# -- elements --------------------------------------------------------------------------------------------------


def test_a_hundred_thousand_elements_are_checked_and_one_more_is_refused():
    items = [{"id": n} for n in range(MAX_ITEMS)]
    assert len(read_list(_bytes(items), "", ["id"])) == MAX_ITEMS
    assert "100001 elements" in _fault(read_list, _bytes([0] * (MAX_ITEMS + 1)), "")


def test_duplicate_ids_are_named_with_both_places():
    assert "'x' (elements 1 and 3)" in _fault(check_items, [{"id": 1}, {"id": "x"}, {"id": 2}, {"id": "x"}])


def test_an_element_without_the_field_that_the_command_wants_is_named():
    fault = _fault(check_items, [{"id": "a", "path": "p"}, {"id": "b", "file": "q"}], ["path"])
    assert fault == "element 1 ('b'): {ITEM.path}: ITEM has no path; its fields are: file, id"


@pytest.mark.parametrize(
    ("value", "words"), [("a\0b", "NUL"), ("x" * 70_000, "at most 65536")], ids=["NUL", "70 kB"]
)
def test_a_value_that_no_command_can_get_is_named_with_its_element(value, words):
    fault = _fault(check_items, [{"id": "ok", "v": 1}, {"id": "bad", "v": value}], ["v"])
    assert fault.startswith("element 1 ('bad'): {ITEM.v}: ")
    assert words in fault


def test_depth_is_bounded_and_the_element_named():
    def nested(depth):
        return json.loads("[" * depth + "]" * depth)

    check_items([{"id": 1, "v": nested(MAX_ITEM_DEPTH - 1)}])
    fault = _fault(check_items, [0, {"id": 1, "v": nested(MAX_ITEM_DEPTH)}])
    assert fault.startswith("element 1 is nested over 24 deep; ")


def test_evil_ids_get_keys_of_their_own():
    nfc, nfd = unicodedata.normalize("NFC", "é"), unicodedata.normalize("NFD", "é")
    evil = [nfc, nfd, "x" * 10_000, "x" * 10_001, "../../etc", "a b", "-rf", "$(x)", "\n", "CON", "a:b", ""]
    items = [{"id": one} for one in evil]
    check_items(items, ["id"])
    keys = item_keys("t", items)
    assert len(set(keys)) == len(evil)
    assert all(len(key) <= 128 and "/" not in key and ":" not in key for key in keys)


@given(
    st.recursive(st.none() | st.booleans() | st.integers() | st.floats() | st.text(), st.lists, max_leaves=20)
)
def test_any_document_gives_a_list_or_a_fault(value):
    with suppress(ItemsError):
        assert isinstance(read_list(json.dumps(value).encode(), "", ["id"]), list)


# -- items that depend on items --------------------------------------------------------------------------------


def test_the_same_id_in_two_lists_is_the_same_item():
    before = Counterparts("tmpl", [{"id": "a"}, {"id": "b c"}, {"id": 7}])
    assert before.key_of({"id": 7}, 0, "id") == "tmpl_7"
    assert before.key_of({"parent": "a"}, 1, "parent") == "tmpl_a"
    assert before.key_of({"id": "b c"}, 2, "id").startswith("tmpl_b-c_")


def test_a_plain_element_is_found_by_its_text_and_then_by_an_id():
    assert Counterparts("t", ["x", "y"]).key_of("y", 0, "") == "t_1"
    assert Counterparts("t", [{"id": "x"}]).key_of("x", 0, "") == "t_x"
    assert Counterparts("t", [3, 1, 2]).key_of(3, 2, "") == "t_0"


def test_an_item_of_a_micro_batch_is_found_in_its_batch():
    before = Counterparts("t", [{"id": n} for n in range(5)], 2)
    assert [before.key_of({"id": n}, n, "id") for n in (0, 1, 4)] == [
        "t_batch_0001_0002",
        "t_batch_0001_0002",
        "t_batch_0005_0005",
    ]
    assert task_keys("t", [1, 2, 3], 2) == ["t_batch_0001_0002", "t_batch_0001_0002", "t_batch_0003_0003"]


@pytest.mark.parametrize(
    ("items", "item", "path", "words"),
    [
        (
            [{"id": "a"}],
            {"id": "x"},
            "id",
            "element 4 ('x') has no counterpart: 't' has no task for 'x'; put",
        ),
        ([{"id": "a"}], {"name": "x"}, "id", "ITEM has no id; its fields are: name"),
        (["a", "a"], "a", "", "'t' has several elements 'a'"),
        ([], {"id": "a"}, "id", "no counterpart"),
    ],
)
def test_an_item_without_a_counterpart_is_named_with_the_template(items, item, path, words):
    assert words in _fault(Counterparts("t", items).key_of, item, 4, path)


# -- at submit -------------------------------------------------------------------------------------------------

_PLAN = "# Plan: p\n\n## Tasks\n\n### a\n- command: `x {ITEM.id}`\n- foreach: /m.json:items\n"


@pytest.mark.parametrize("more", ["", "- batch_size: 4\n"])
def test_items_may_depend_on_items_of_a_template_with_or_without_a_batch_size(more):
    plan = parse_plan(
        f"{_PLAN}{more}### b\n- command: `y {{ITEM.id}}`\n- foreach: /n.json:\n- depends_on: a_{{ITEM.id}}\n{more}",
        name="p",
    )
    assert [d.template for d in plan.by_id()["b"].item_depends_on] == ["a"]


def test_items_cannot_depend_on_items_of_a_task_without_a_list():
    text = "# Plan: p\n\n## Tasks\n\n### a\n- command: `x`\n### b\n- command: `y {ITEM.id}`\n- foreach: /n.json:\n"
    with pytest.raises(
        PlanInvalid, match="'a' has no tasks for single items; depend on 'a', or give it a foreach"
    ):
        parse_plan(f"{text}- depends_on: a_{{ITEM.id}}\n", name="p")


def test_a_foreach_without_a_colon_is_refused_at_submit():
    with pytest.raises(
        PlanInvalid, match=r"plan\.md:7: foreach .* no JSON path behind a colon; write path:jsonpath"
    ):
        parse_plan(_PLAN.replace(":items", ""), name="p")
