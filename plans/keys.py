"""Names and keys: what a plan folder may be called, and what each task of a batch is called.

Keys are deterministic: the same plan and the same list give the same keys, so a repeated expansion finds
the tasks it made the first time. Item ids are arbitrary data: only plain names go into a key as they are.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Collection, Iterable, Sequence
from typing import Any, Final

PLAIN_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
MAX_KEY_CHARS: Final = 128
MAX_ITEMS: Final = 100_000
#: Endings of receipts and unfinished copies: never a plan.
NOT_A_PLAN: Final = (".receipt.md", ".receipt.json", "~", ".tmp", ".part")


class BadName(ValueError):
    """A name that cannot be a plan's or a task's; ``what`` and ``fix`` are for people."""

    def __init__(self, what: str, fix: str) -> None:
        super().__init__(f"{what}; {fix}")
        self.what = what
        self.fix = fix


class ItemsError(ValueError):
    """A ``foreach`` source that gives no usable list; ``what`` and ``fix`` are for people."""

    def __init__(self, what: str, fix: str) -> None:
        super().__init__(f"{what}; {fix}")
        self.what = what
        self.fix = fix


def is_plain_name(text: str) -> bool:
    """Whether ``text`` is 1 to 64 of ``A-Z a-z 0-9 . _ -``, the first a letter or digit."""
    return PLAIN_NAME.fullmatch(text) is not None


def slug(text: str, limit: int = 40) -> str:
    """The nearest plain name: other characters become ``-``; ``item`` where nothing is left."""
    plain = re.sub(r"(?:[^A-Za-z0-9._-]|--)+-?", "-", text[:200]).strip("-._")[:limit].rstrip("-._")
    return plain or "item"


def plan_name(text: str) -> str:
    """``text`` where it is a valid plan folder name.

    Raises:
        BadName: a path, a hidden or unfinished file's name, or characters outside the rule.
    """
    if is_plain_name(text) and not text.endswith(NOT_A_PLAN):
        return text
    suggestion = slug(text.replace("\\", "/").rstrip("/").rpartition("/")[2])
    for ending in NOT_A_PLAN:
        suggestion = suggestion.removesuffix(ending)
    if any(sign in text for sign in ("/", "\\", "\0")) or text in ("", ".", ".."):
        what = f"{text!r} is no plan name: a name is one folder, not a path"
    elif text.endswith(NOT_A_PLAN):
        what = f"{text!r} is no plan name: that ending marks a receipt or an unfinished copy"
    else:
        what = f"{text[:80]!r} is no plan name: use 1 to 64 of A-Z a-z 0-9 . _ -, a letter or digit first"
    raise BadName(what, f"rename it, for example to {suggestion or 'plan'!r}")


def item_id(item: Any, index: int) -> str:
    """The id of a list element: its ``id`` where it is an object that has one, else its place from 0."""
    value = item.get("id") if isinstance(item, dict) else None
    return str(index) if value is None else id_text(value)


def id_text(value: Any) -> str:
    """A value as the text of an id; lists and objects as compact JSON with sorted keys."""
    if isinstance(value, dict | list):
        return json.dumps(value, ensure_ascii=False, separators=(",", ":"), sort_keys=True)
    return str(value)


def item_key(template: str, item: str, others: Collection[str] = ()) -> str:
    """The key of one task of a ``foreach``: ``<template>_<id>``, else ``<template>_<slug>_<hash>``.

    The second form is for ids that are no plain name, and where the first could be read as a task of
    another template: ``others`` are the other task ids of the plan (``a`` with the item ``b_1`` beside
    a task ``a_b``).
    """
    plain = f"{template}_{item}"
    ambiguous = any(plain == other or _claims(other, template, plain) for other in others)
    if is_plain_name(item) and len(plain) <= MAX_KEY_CHARS and not ambiguous:
        return plain
    digest = hashlib.sha256(f"{template}\0{item}".encode("utf-8", "surrogatepass")).hexdigest()[:12]
    return f"{template}_{slug(item)}_{digest}"


def item_keys(template: str, items: Sequence[Any], others: Collection[str] = ()) -> list[str]:
    """The keys of all ``items`` in order.

    Raises:
        ItemsError: two elements have the same id; the message names the ids and their places.
    """
    ids = [item_id(item, index) for index, item in enumerate(items)]
    _refuse_duplicates(ids, "id")
    # Only these can claim one of our keys; filtering once keeps 100,000 items cheap.
    rivals = [other for other in others if other != template and other.startswith(f"{template}_")]
    keys = [item_key(template, one, rivals) for one in ids]
    _refuse_duplicates(keys, "key")
    return keys


def task_keys(
    template: str, items: Sequence[Any], batch_size: int, others: Collection[str] = ()
) -> list[str]:
    """The key of the task that holds each of ``items``, in order: its own, or that of its micro-batch.

    Raises:
        ItemsError: as :func:`item_keys`.
    """
    keys = item_keys(template, items, others)
    if batch_size == 1:
        return keys
    for group in item_groups(len(items), batch_size):
        keys[group.start : group.stop] = [batch_key(template, group[0] + 1, group[-1] + 1)] * len(group)
    return keys


def batch_key(template: str, first: int, last: int) -> str:
    """The key of a task over several items; places count from 1: ``measure_batch_0001_0008``."""
    return f"{template}_batch_{first:04d}_{last:04d}"


def item_groups(count: int, batch_size: int) -> list[range]:
    """``count`` items cut into runs of ``batch_size``; ranges of places from 0, the last may be shorter."""
    return [range(start, min(start + batch_size, count)) for start in range(0, count, batch_size)]


def select_items(document: Any, json_path: str) -> list[Any]:
    """The list at ``json_path`` (dotted, ``$`` or empty for the document itself); an empty list is a list.

    Raises:
        ItemsError: the path is not there, is no list, or holds more than MAX_ITEMS elements.
    """
    here: Any = document
    seen = "$"
    for part in _path_parts(json_path):
        if isinstance(here, dict) and part in here:
            here = here[part]
        elif isinstance(here, list) and part.isdecimal() and int(part) < len(here):
            here = here[int(part)]
        else:
            raise ItemsError(f"nothing at {json_path!r}: {seen} has no {part!r}", _offer(here))
        seen = f"{seen}.{part}"
    if not isinstance(here, list):
        raise ItemsError(f"{json_path or '$'!r} is {_kind(here)}, not a list", _offer(here))
    if len(here) > MAX_ITEMS:
        raise ItemsError(
            f"{json_path or '$'!r} holds {len(here)} elements, the limit is {MAX_ITEMS}",
            "split the list over several plans, or put several elements into one",
        )
    return here


def _claims(other: str, template: str, key: str) -> bool:
    """Whether ``key`` of ``template`` could also be made by the longer template ``other``."""
    return len(other) > len(template) and key.startswith(f"{other}_")


def _refuse_duplicates(names: Iterable[str], word: str) -> None:
    seen: dict[str, int] = {}
    twice = []
    for index, name in enumerate(names):
        if name in seen:
            twice.append(f"{name[:60]!r} (elements {seen[name]} and {index})")
        else:
            seen[name] = index
    if twice:
        more = f" and {len(twice) - 5} more" if len(twice) > 5 else ""
        raise ItemsError(
            f"the same {word} stands twice in the list: {', '.join(twice[:5])}{more}",
            "give each element its own 'id'",
        )


def _path_parts(json_path: str) -> list[str]:
    path = re.sub(r"\[(\d{1,9})\]", r".\1", json_path.strip())
    return [part for part in path.removeprefix("$").split(".") if part]


def _kind(value: Any) -> str:
    names = {dict: "an object", str: "a text", bool: "true or false", type(None): "null", list: "a list"}
    return names.get(type(value), "a number")


def _offer(value: Any) -> str:
    if isinstance(value, dict):
        lists = sorted(str(key) for key, one in value.items() if isinstance(one, list))[:8]
        if lists:
            return f"the lists there are: {', '.join(lists)}"
        keys = ", ".join(sorted(str(key) for key in value)[:8]) or "none"
        return f"point the path at a list (keys there: {keys})"
    return "point the path at a list"
