"""How a value becomes text, and which environment variable carries it."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from .placeholders import ValueFault, is_item

MAX_VALUE_BYTES: Final = 64 * 1024


@dataclass(frozen=True, slots=True)
class Slot:
    """One environment variable of a rewritten command and the value that it carries.

    ``item`` is the index of the foreach item in a batch, None elsewhere; ``element`` the index in a
    list-valued key that becomes several words, None for the value as a whole.
    """

    env: str
    name: str
    item: int | None = None
    element: int | None = None


def env_name(name: str, *, item: int | None = None) -> str:
    """The environment variable that carries ``name``, with ``item`` the index (from 0) in a batch.

    The mapping is injective. A plain name and one field of the item stay readable: ``RIGBUS_V_PLAN_PATH``,
    ``RIGBUS_V_ITEM_id``. All other names (deeper fields, and plain names that begin with ``ITEM_`` or ``_``
    and could be taken for one of the former) begin with one more ``_`` and have ``.`` as ``_`` and ``_`` as
    ``__u``, which can be read back in one way only, since no field is empty. An item's index begins with a
    digit, which no name does.
    """
    first, *fields = name.split(".")
    if not fields and not first.startswith(("_", "ITEM_")):
        encoded = first
    elif first == "ITEM" and len(fields) == 1:
        encoded = f"ITEM_{fields[0]}"
    else:
        encoded = "_" + name.replace("_", "__u").replace(".", "_")
    return f"RIGBUS_V_{encoded}" if item is None else f"RIGBUS_V_{item}_{encoded}"


def list_env_name(name: str, element: int, *, item: int | None = None) -> str:
    """The environment variable of one element of a list-valued key; never that of a plain value."""
    return env_name(name, item=item).replace("RIGBUS_V_", "RIGBUS_L_", 1) + f"_{element}"


def encode_value(value: object) -> str:
    """The text of a value as a command sees it.

    Text stays as it is, booleans are ``True`` and ``False``, None is empty, numbers as Python prints them,
    lists and objects compact JSON.

    Raises:
        ValueFault: longer than 64 KiB in UTF-8, a NUL or half a surrogate pair in it, or no JSON value.
    """
    try:
        if isinstance(value, str):
            text = value
        elif value is None:
            text = ""
        elif isinstance(value, bool | int | float):
            text = str(value)
        elif isinstance(value, dict | list | tuple):
            text = json.dumps(value, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
        else:
            raise TypeError(type(value).__name__)
        size = len(text.encode())
    except UnicodeEncodeError:
        raise ValueFault(
            "a value with half a surrogate pair, which is no text", "write it as plain text"
        ) from None
    except (TypeError, ValueError, RecursionError) as error:
        what = f"a value that is not text, number, list or object ({str(error)[:80]})"
        raise ValueFault(what, "use the values that JSON has") from None
    if size > MAX_VALUE_BYTES:
        what = f"a value of {size} bytes; one value has at most {MAX_VALUE_BYTES}"
        raise ValueFault(what, "write it to a file and pass the path")
    if "\0" in text:
        raise ValueFault(
            "a value with a NUL character, which no environment or argument can carry", "remove it"
        )
    return text


def lookup(item: object, path: str) -> object:
    """The part of a foreach item that ``{ITEM.a.b}`` names; ``path`` is ``"a.b"``, empty for the whole item.

    A number picks an element of a list, from 0.

    Raises:
        ValueFault: there is no such part; the fix names what there is.
    """
    here = item
    walked = "ITEM"
    for part in path.split(".") if path else []:
        if isinstance(here, Mapping) and part in here:
            here = here[part]
        elif isinstance(here, list | tuple) and part.isdecimal() and int(part[:9]) < len(here):
            here = here[int(part)]
        else:
            raise ValueFault(f"{{ITEM.{path}}}: {walked} has no {part}", _available(here, walked))
        walked += f".{part}"
    return here


def _available(here: object, walked: str) -> str:
    if isinstance(here, Mapping):
        names = sorted(str(key)[:40] for key in here)
        shown = ", ".join(names[:12]) + (", …" if len(names) > 12 else "")
        return f"its fields are: {shown}" if names else "it is an empty object"
    if isinstance(here, list | tuple):
        return f"it is a list of {len(here)} elements, numbered from 0"
    return f"it is {'a text' if isinstance(here, str) else 'a plain value'}; write {{{walked}}}"


def fill(slots: Sequence[Slot], values: Mapping[str, object], items: Sequence[object] = ()) -> dict[str, str]:
    """The environment of a rewritten command.

    ``values`` are the plan's values by name; ``items`` the foreach items of the task, one unless it is a
    batch.

    Raises:
        ValueFault: a name without a value, a field that an item lacks, or a value that cannot be passed.
    """
    return {slot.env: _slot_value(slot, values, items) for slot in slots}


def _slot_value(slot: Slot, values: Mapping[str, object], items: Sequence[object]) -> str:
    first, _, path = slot.name.partition(".")
    if is_item(slot.name) and slot.name not in values:
        index = slot.item or 0
        if index >= len(items):
            raise ValueFault(f"{{{slot.name}}} outside a foreach task", "add a foreach field to the task")
        value = lookup(items[index], path)
    elif slot.name in values:
        value = values[slot.name]
    elif first in values:
        value = lookup(values[first], path)
    else:
        raise ValueFault(f"{{{slot.name}}} has no value", f"give it one with --set {first}=…")
    if slot.element is not None:
        if not isinstance(value, list | tuple) or slot.element >= len(value):
            raise ValueFault(
                f"{{{slot.name}}} is not the list that the command was made for", "submit the plan again"
            )
        value = value[slot.element]
    try:
        return encode_value(value)
    except ValueFault as fault:
        raise ValueFault(f"{{{slot.name}}}: {fault.what}", fault.fix) from None
