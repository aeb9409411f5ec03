"""The list of a ``foreach``: read from JSON, checked before any task is made of it, matched with another list. Pure.

Everything that an element can have wrong is found here, for the whole list at once: a template fails as a whole, with
the place of the fault, and never with half of its tasks run.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Collection, Iterable, Sequence
from typing import Any, Final

from .environment import encode_value, lookup
from .keys import ItemsError, id_text, item_id, item_keys, select_items, task_keys
from .placeholders import ValueFault

#: Lists and objects in one element; the bus carries 32 levels, some of which are around the element.
MAX_ITEM_DEPTH: Final = 24
#: Only where a number may be too large for the machine's kinds does reading it cost a call of ours.
_LONG_NUMBER: Final = re.compile(rb"\d{19}|[eE]\+?\d{3}")
#: How JSON writes half a surrogate pair; whole pairs look alike, so a hit only asks for a closer look.
_SURROGATE: Final = re.compile(rb"\\u[dD][89a-fA-F]")
_SHOWN: Final = 60


def read_document(data: bytes) -> Any:
    """The JSON document in ``data``: UTF-8 with or without a BOM, any line ends.

    A number that fits neither 64 bits nor a float stays the text that was written: a command sees text anyway.

    Raises:
        ItemsError: it is no JSON, or too deep; the message names line and column.
    """
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError:
        kind = "UTF-16 text" if data[:2] in (b"\xff\xfe", b"\xfe\xff") else "no UTF-8 text"
        raise ItemsError(f"it is {kind}", "let its task write JSON in UTF-8") from None
    if not text.strip():
        raise ItemsError("it is empty", "let its task write JSON, `[]` where there is nothing to do")
    numbers: dict[str, Any] = {}
    if _LONG_NUMBER.search(data):
        numbers = {"parse_int": _integer, "parse_float": _number}
    try:
        return json.loads(text, parse_constant=_refuse_constant, **numbers)
    except ItemsError:
        raise
    except RecursionError:
        raise ItemsError("it is no JSON that can be read: nested too deep", "make it flatter") from None
    except ValueError as e:
        fix = "let its task write valid JSON"
        if isinstance(e, json.JSONDecodeError) and e.msg == "Extra data":
            fix = "write one JSON document (JSON Lines is none: put the lines into one list)"
        raise ItemsError(f"it is no JSON ({e})", fix) from None


def read_list(data: bytes, json_path: str, fields: Collection[str] = ()) -> list[Any]:
    """The checked list at ``json_path`` of the JSON document ``data``; see :func:`check_items` for ``fields``.

    Raises:
        ItemsError: no JSON, nothing or no list at the path, or an element that cannot become a task.
    """
    items = select_items(read_document(data), json_path)
    if _SURROGATE.search(data):
        _refuse_half_characters(items)
    check_items(items, fields)
    return items


def check_items(items: Sequence[Any], fields: Collection[str] = ()) -> None:
    """Refuse a list of which not every element can become a task.

    ``fields`` are the dotted paths that the template's texts ask of ``{ITEM}``, ``""`` for the element itself.

    Raises:
        ItemsError: an element is nested too deep, lacks a field, has a value that no command can get, or has the id of
            another one.
    """
    _refuse_depth(items)
    item_keys("x", items)
    for index, item in enumerate(items):
        for path in fields:
            if _is_plain(item.get(path) if isinstance(item, dict) else None if path else item):
                continue
            try:
                encode_value(lookup(item, path))
            except ValueFault as fault:
                what = fault.what if fault.what.startswith("{") else f"{_written(path)}: {fault.what}"
                raise ItemsError(f"{_element(item, index)}: {what}", fault.fix) from None


class Counterparts:
    """The tasks of an expanded template by the elements they hold: what ``template_{ITEM.x}`` names."""

    def __init__(
        self, template: str, items: Sequence[Any], batch_size: int = 1, others: Collection[str] = ()
    ) -> None:
        self.template = template
        keys = task_keys(template, items, batch_size, others)
        self._by_id = {item_id(item, i): key for i, (item, key) in enumerate(zip(items, keys, strict=True))}
        #: plain elements by their text; None where several look alike
        self._by_text: dict[str, str | None] = {}
        for item, key in zip(items, keys, strict=True):
            if not isinstance(item, dict):
                text = id_text(item)
                self._by_text[text] = None if self._by_text.get(text, key) != key else key

    def key_of(self, item: Any, index: int, path: str) -> str:
        """The key of the task of this template for another list's ``item``, by its field ``path``.

        ``path`` is the dotted field of ``{ITEM.path}``, empty for ``{ITEM}``: the same plain element (a text, a
        number) in both lists, else the id.

        Raises:
            ItemsError: the element has no such field, or the template no (single) task for it.
        """
        try:
            value = lookup(item, path)
        except ValueFault as fault:
            raise ItemsError(f"{_element(item, index)}: {fault.what}", fault.fix) from None
        text = id_text(value)
        if not path and not isinstance(item, dict) and text in self._by_text:
            found = self._by_text[text]
            if found is None:
                raise ItemsError(
                    f"{_element(item, index)}: {self.template!r} has several elements {text[:_SHOWN]!r}",
                    f"give the elements of both lists ids, and depend on {self.template}_{{ITEM.id}}",
                )
            return found
        key = self._by_id.get(text)
        if key is None:
            raise ItemsError(
                f"{_element(item, index)} has no counterpart: {self.template!r} has no task for {text[:_SHOWN]!r}",
                f"put an element with that id into the list of {self.template!r}, or depend on "
                f"{self.template!r} as a whole",
            )
        return key


def _is_plain(value: Any) -> bool:
    """Whether a value is surely one that a command can get; most are, and the full look costs five times as much."""
    return isinstance(value, int) or (isinstance(value, str) and len(value) < 10_000 and "\0" not in value)


def _written(path: str) -> str:
    return "{ITEM." + path + "}" if path else "{ITEM}"


def _element(item: Any, index: int) -> str:
    """How messages name an element: its place, and its id where it has one."""
    named = (
        item.get("id") if isinstance(item, dict) else item if isinstance(item, str | int | float) else None
    )
    return f"element {index}" if named is None else f"element {index} ({id_text(named)[:_SHOWN]!r})"


def _refuse_depth(items: Iterable[Any]) -> None:
    """Level by level: what is deep must not be walked by recursion."""
    level: list[tuple[int, Any]] = [
        (i, item) for i, item in enumerate(items) if isinstance(item, dict | list)
    ]
    for _ in range(MAX_ITEM_DEPTH):
        level = [
            (i, inner)
            for i, outer in level
            for inner in (outer.values() if isinstance(outer, dict) else outer)
            if isinstance(inner, dict | list)
        ]
        if not level:
            return
    raise ItemsError(
        f"element {level[0][0]} is nested over {MAX_ITEM_DEPTH} deep",
        "write the deep part to a file and put its path into the list",
    )


def _refuse_half_characters(items: Iterable[Any]) -> None:
    for index, item in enumerate(items):
        try:
            json.dumps(item, ensure_ascii=False).encode()
        except UnicodeEncodeError:
            raise ItemsError(
                f"element {index} holds half a surrogate pair, which is no text", "write it as plain text"
            ) from None


def _refuse_constant(word: str) -> Any:
    raise ItemsError(f"it is no JSON ({word} is no JSON number)", "write null, or leave the field out")


def _integer(text: str) -> int | str:
    if len(text) > 20:
        return text
    value = int(text)
    return value if -(2**63) <= value < 2**64 else text


def _number(text: str) -> float | str:
    value = float(text)
    return value if math.isfinite(value) else text
