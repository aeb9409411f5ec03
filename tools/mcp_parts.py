"""What the MCP server's answers are made of: checked arguments, parts of files and texts, none larger than a client reads."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from ..bridge.folder.share import beneath
from ..bus.errors import ConfigError, NotFound

MAX_ID: Final = 300
MAX_TEXT: Final = 4000
MAX_CONFIG: Final = 64 << 10
READ_BYTES: Final = 64 << 10
MAX_READ: Final = 256 << 10
FILES_SHOWN: Final = 200

Fields = dict[str, Any]


# -- arguments -----------------------------------------------------------------------------------------------


def checked_id(text: str, name: str) -> str:
    """An id, or a name.

    Raises:
        ConfigError: it cannot be one.
    """
    if not text or len(text) > MAX_ID or not text.isprintable():
        raise ConfigError(f"{name}: 1 to {MAX_ID} printable characters")
    return text


def checked_text(text: str, name: str) -> str:
    """A text of a bounded length.

    Raises:
        ConfigError: it is longer.
    """
    if len(text) > MAX_TEXT:
        raise ConfigError(f"{name}: {len(text)} characters, at most {MAX_TEXT}")
    return text


def checked_number(number: int, low: int, high: int, name: str) -> int:
    """
    Raises:
        ConfigError: outside of its bounds.
    """
    if not low <= number <= high:
        raise ConfigError(f"{name}: {number}; give {low} to {high}")
    return number


def checked_config(config: Mapping[str, Any] | None) -> Fields:
    """Values of a plan.

    Raises:
        ConfigError: JSON cannot carry them, or they are too many.
    """
    values = dict(config or {})
    try:
        size = len(json.dumps(values, allow_nan=False))
    except (ValueError, TypeError, RecursionError) as e:
        raise ConfigError(f"config: {e}; give values that JSON has") from None
    if size > MAX_CONFIG:
        raise ConfigError(f"config: {size} bytes, at most {MAX_CONFIG}")
    return values


# -- files ---------------------------------------------------------------------------------------------------


def split(path: str) -> list[str]:
    """The names of a path below a batch's folder.

    Raises:
        ConfigError: it leads out of it.
    """
    try:
        return beneath.split(path)
    except beneath.OpError as e:
        raise ConfigError(f"path: {e}; give one that the batch's folder has") from None


def read_part(shared: Path, base: Path, names: Sequence[str], offset: int, most: int) -> tuple[str, int]:
    """A part of the file ``names`` below ``base``, a folder of the share, and its size; ``offset`` below 0 counts from its
    end. Links on the way to ``base`` may stay in the share; below it none is followed.

    Raises:
        NotFound: there is none, or it is a link, a FIFO, a folder.
    """
    shown = "/".join([*base.relative_to(shared).parts, *names])
    try:
        handle, info = _opened(shared, base, names)
    except (OSError, beneath.OpError) as e:
        why = e.strerror if isinstance(e, OSError) else str(e)
        raise NotFound(f"{shown} cannot be read: {why}") from None
    with os.fdopen(handle, "rb") as opened:
        opened.seek(offset if offset >= 0 else max(0, info.st_size + offset))
        return opened.read(most).decode("utf-8", "backslashreplace"), info.st_size


def _opened(shared: Path, base: Path, names: Sequence[str]) -> tuple[int, os.stat_result]:
    if not names:
        raise beneath.OpError("EISDIR", "it is a folder")
    root = os.open(shared, beneath.DIR_FLAGS & ~os.O_NOFOLLOW)
    try:
        folder = beneath.open_dir(root, list(base.relative_to(shared).parts), follow=True)
    finally:
        os.close(root)
    try:
        below = beneath.open_dir(folder, list(names[:-1]))
    finally:
        os.close(folder)
    try:
        return beneath.open_regular(names[-1], below, beneath.READ_FLAGS, names[-1])
    finally:
        os.close(below)


def files_below(place: Path) -> list[str]:
    """Names of the files below a batch's folder; no link is followed."""
    found = []
    for below, _, names in os.walk(place):
        found += [
            os.path.relpath(os.path.join(below, name), place) for name in names if not name.startswith(".")
        ]
        if len(found) > 100 * FILES_SHOWN:
            break
    return found


# -- bounds --------------------------------------------------------------------------------------------------


def whole_or_part(value: Any, offset: int, most: int) -> Fields:
    """A result: whole, or where it is large as JSON text of which this is a part."""
    text = json.dumps(value, ensure_ascii=False, default=str)
    if offset == 0 and len(text) <= most:
        return {"result": value}
    end = offset + most
    next_offset = end if end < len(text) else None
    return {"result_json": text[offset:end], "characters": len(text), "next_offset": next_offset}


def within(rows: Sequence[Fields], key: str, most: int) -> list[Fields]:
    """The rows, of which those that come last are without ``key`` where all of them would be too large."""
    out = []
    for row in rows:
        most -= len(json.dumps(row.get(key), default=str))
        out.append(row if most >= 0 else {**row, key: None})
    return out
