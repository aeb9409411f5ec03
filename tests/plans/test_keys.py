"""Names of plans, and the keys of tasks made from lists."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rigbus.plans import (
    BadName,
    ItemsError,
    batch_key,
    item_groups,
    item_id,
    item_key,
    item_keys,
    plan_name,
    select_items,
)
from rigbus.plans.keys import MAX_KEY_CHARS


def test_a_plain_id_stands_in_its_key_as_it_is():
    assert item_key("measure", "json.decoder") == "measure_json.decoder"
    assert item_keys("t", [{"id": 7}, {"id": "b"}, {"x": 1}, "word"]) == ["t_7", "t_b", "t_2", "t_3"]


@given(st.text(max_size=200))
def test_any_id_gives_a_plain_and_stable_key(text):
    key = item_key("t", text)
    assert key == item_key("t", text)
    assert len(key) <= MAX_KEY_CHARS
    assert all(sign.isascii() and (sign.isalnum() or sign in "._-") for sign in key)


def test_evil_ids_are_told_apart_by_their_hash():
    evil = [
        "a b; rm -rf x",
        "a b; rm -rf y",
        "../x",
        "..",
        "",
        "a/b",
        "ü",
        "日本",
        "日本語",
        "\n",
        "x" * 65,
        "-n",
    ]
    keys = item_keys("t", [{"id": one} for one in evil])
    assert len(set(keys)) == len(evil)
    assert keys[0].startswith("t_a-b-rm-rf-x_")


def test_the_keys_of_two_templates_never_meet():
    others = ["a", "a_b", "a_b_c", "a_x"]
    pairs = [
        ("a", "b_c"),
        ("a_b", "c"),
        ("a", "b"),
        ("a", "x"),
        ("a", "b_c_d"),
        ("a_b", "c_d"),
        ("a_b_c", "d"),
    ]
    keys = [item_key(template, item, [one for one in others if one != template]) for template, item in pairs]
    assert len({*keys, *others}) == len(pairs) + len(others)
    assert item_keys("a", [{"id": "b_c"}], others) == [keys[0]]


def test_duplicate_ids_are_named_with_their_places():
    with pytest.raises(ItemsError, match=r"'x' \(elements 0 and 2\); give each element its own 'id'"):
        item_keys("t", [{"id": "x"}, {"id": "y"}, {"id": "x"}])
    with pytest.raises(ItemsError, match="'1'"):
        item_keys("t", [{"id": 1}, {"id": "1"}])


def test_an_id_of_another_type_is_text():
    assert [item_id(one, 5) for one in ({"id": None}, {"id": True}, {"id": {"b": 1, "a": 2}}, [1], None)] == [
        "5",
        "True",
        '{"a":2,"b":1}',
        "5",
        "5",
    ]


def test_groups_cover_all_items_once():
    assert [list(group) for group in item_groups(5, 2)] == [[0, 1], [2, 3], [4]]
    assert item_groups(0, 8) == []
    assert batch_key("measure", 1, 8) == "measure_batch_0001_0008"


def test_a_list_is_found_by_its_path():
    document = {"a": {"b": [[1], [2, 3]]}, "none": []}
    assert select_items(document, "a.b") == [[1], [2, 3]]
    assert select_items(document, "a.b[1]") == [2, 3]
    assert select_items(document, "$.a.b.1") == [2, 3]
    assert select_items(document, "none") == []
    assert select_items([1], "") == [1]
    assert select_items([1], "$") == [1]


@pytest.mark.parametrize(
    ("path", "words"),
    [
        ("a.c", r"nothing at 'a.c': \$.a has no 'c'; the lists there are: b"),
        ("a", "'a' is an object, not a list; the lists there are: b"),
        ("", r"'\$' is an object"),
        ("s", "'s' is a text, not a list"),
        ("a.b.9", "nothing at"),
        ("s.x", "nothing at"),
    ],
)
def test_a_wrong_path_is_never_an_empty_list(path, words):
    with pytest.raises(ItemsError, match=words):
        select_items({"a": {"b": []}, "s": "x"}, path)


def test_too_many_items_are_refused():
    with pytest.raises(ItemsError, match="100001 elements"):
        select_items([0] * 100_001, "")


def test_plain_plan_names_pass():
    assert [plan_name(one) for one in ("a", "code_census", "v1.2-x", "7")] == [
        "a",
        "code_census",
        "v1.2-x",
        "7",
    ]


@pytest.mark.parametrize("name", [
    "../x", "x/y", "..", ".", "", ".x", "a b", "x~", "a.tmp", "a.part", "a\0b", "a" * 65, "-x", "é",
])  # fmt: skip
def test_an_evil_plan_name_is_refused_with_a_name_that_works(name):
    with pytest.raises(BadName) as caught:
        plan_name(name)
    suggestion = caught.value.fix.split("'")[1]
    assert plan_name(suggestion) == suggestion
