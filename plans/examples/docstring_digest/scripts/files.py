"""Whole files or none: what both scripts write appears by a rename."""

from __future__ import annotations

import json
import os
import tempfile
from pathlib import Path
from typing import Any


class DigestError(Exception):
    """The script cannot go on; the text says what, where and the fix."""


def write_text(path: Path, text: str) -> None:
    """Write UTF-8 text so that ``path`` is the old file or the whole new one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(prefix=f".{path.name[:80]}.", suffix=".tmp", dir=path.parent)
    try:
        with os.fdopen(handle, "w", encoding="utf-8", newline="\n") as stream:
            stream.write(text)
        mask = os.umask(0)
        os.umask(mask)
        os.chmod(temporary, 0o664 & ~mask)  # mkstemp makes 0600; the share is for others, too
        os.replace(temporary, path)
    except BaseException:
        os.unlink(temporary)
        raise


def write_json(path: Path, value: Any) -> None:
    """Write JSON that is the same bytes for the same value."""
    write_text(path, json.dumps(value, indent=1, ensure_ascii=False, sort_keys=True) + "\n")
