"""The file habits of the three scripts: whole files or none, and names that are safe to use and to show.

Any script may be killed at any moment and run again, also beside an older run of itself that is still alive.
So a file appears by rename only, its bytes are on the disk before that, and temporary names are never shared.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import tempfile
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, NoReturn

PLAIN_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")


class CensusError(Exception):
    """The script cannot go on; the text says what, where and the fix."""


def fail(script: str, error: Exception) -> NoReturn:
    """End the script with one line on stderr and exit status 1."""
    raise SystemExit(f"{script}: {error}")


def write_atomic(path: Path, text: str) -> None:
    """Write UTF-8 text so that ``path`` is the old file or the whole new one, also after a power cut."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(prefix=f".{path.name[:80]}.", suffix=".tmp", dir=path.parent)
    try:
        with os.fdopen(handle, "w", encoding="utf-8", newline="\n") as stream:
            stream.write(text)
            stream.flush()
            os.fsync(stream.fileno())
        # mkstemp makes 0600; the report is for whoever may read the share.
        os.chmod(temporary, 0o664 & ~_umask())
        os.replace(temporary, path)
    except BaseException:
        with suppress(FileNotFoundError):
            os.unlink(temporary)
        raise


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def write_json(path: Path, value: Mapping[str, Any]) -> None:
    """Write sorted, ASCII-only JSON: the same value is always the same bytes."""
    write_atomic(path, json.dumps(value, indent=1, sort_keys=True) + "\n")


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object.

    Raises:
        CensusError: the file is missing, unreadable, or not one JSON object.
    """
    try:
        value = json.loads(path.read_bytes())
    except FileNotFoundError:
        raise CensusError(f"{path}: missing; run the task that writes it again") from None
    except (OSError, ValueError) as error:
        raise CensusError(f"{path}: {error}; remove it and run the task that writes it again") from None
    if not isinstance(value, dict):
        raise CensusError(f"{path}: not a JSON object; remove it and run the task that writes it again")
    return value


def item_id(name: str, taken: set[str]) -> str:
    """A plain, unique id for the file ``name`` (relative, with ``/``); adds its lower-case form to ``taken``.

    The dotted module name where that is plain and free, else a slug of it and a hash of the whole name. Ids
    become file names, so they also differ on a file system that ignores case.
    """
    dotted = module_name(name)
    if not PLAIN_ID.fullmatch(dotted) or dotted.lower() in taken:
        slug = re.sub(r"[^A-Za-z0-9]+", "-", dotted).strip("-")[:48] or "file"
        dotted = f"{slug}-{hashlib.sha256(name.encode()).hexdigest()[:10]}"
    taken.add(dotted.lower())
    return dotted


def module_name(name: str) -> str:
    """``json/decoder.py`` → ``json.decoder``, ``json/__init__.py`` → ``json``."""
    parts = name.removesuffix(".py").split("/")
    if parts[-1] == "__init__" and len(parts) > 1:
        parts.pop()
    return ".".join(parts)


def shown(text: str) -> str:
    """``text`` on one line, every character that a page or a terminal cannot show written as an escape."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text)
