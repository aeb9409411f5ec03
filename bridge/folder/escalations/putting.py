"""The files of an answer in the plan's folder of the share, once a batch goes on with them.

So the next run of the plan has them too, and whoever answers next reads what runs. A file that somebody has changed since
it was submitted stays his.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any, Final

from ....bus.paths import RigPaths
from ..intake.moves import KIND
from ..loop.flows import Flow, share
from ..share.ops import Op, read, shown, write

log = logging.getLogger(__name__)

_MAX_BYTES: Final = 1 << 20


def put_into_share(deed: Mapping[str, Any], paths: RigPaths) -> Flow[str]:
    """A sentence about what was left as it is; empty where all stand. May be repeated."""
    home = _home(deed.get("path"), paths)
    if not home:
        return "The plan's own folder is not in the share: mend it there, too."
    files: Mapping[str, str] = deed["files"]
    results = yield from share(KIND, [read(f"{home}/{path}", _MAX_BYTES + 1) for path in files])
    kept: dict[str, Op] = {}  #: of the files that are replaced: what they were
    ops: dict[str, Op] = {}
    left = []
    for (path, text), found in zip(files.items(), results, strict=True):
        new = text.encode("utf-8", "replace")
        ran = _ran(paths, str(deed["base"]), path)
        now = bytes(found["data"]) if found["ok"] else None
        if now == new:
            continue
        if now != ran or (not found["ok"] and found["errno"] != "ENOENT"):
            left.append(path)
            continue
        if now is not None:
            kept[path] = write(f"{home}/.rigbus-revisions/{deed['id']}/{path}", now, fsync=True)
        place = f"{home}/{path}"
        known = None if now is None else [found["size"], found["mtime_ns"]]
        runs = _runs(paths, str(deed["header"]["plan"]["sha256"]), path)
        ops[path] = write(place, new, keep={place: known}, runs=runs)
    left += yield from _written(kept)
    left += yield from _written({path: op for path, op in ops.items() if path not in left})
    if not left:
        return ""
    named = ", ".join(shown(path) for path in left[:5])
    return f"In {home}/ these are not as the batch has them, since they were changed there or cannot be written: {named}."


def _written(ops: Mapping[str, Op]) -> Flow[list[str]]:
    """The paths whose file could not be written."""
    results = yield from share(KIND, list(ops.values()))
    bad = [(path, r) for path, r in zip(ops, results, strict=True) if not r["ok"]]
    for _, result in bad:
        log.warning("the mended plan: %s", result["what"])
    return [path for path, _ in bad]


def _home(path: Any, paths: RigPaths) -> str:
    """The plan's folder as a path in the share; empty where it lies elsewhere."""
    root = f"{paths.shared}/"
    inside = path[len(root) :] if isinstance(path, str) and path.startswith(root) else ""
    return inside if inside.startswith("plans/") and ".." not in inside.split("/") else ""


def _runs(paths: RigPaths, sha256: str, path: str) -> bool:
    """The staged copy of a file is executable; so is the plan's own then."""
    try:
        return bool((paths.staged / sha256 / path).stat().st_mode & 0o100)
    except OSError:
        return False


def _ran(paths: RigPaths, sha256: str, path: str) -> bytes | None:
    """A file of the staged copy; None where it has none."""
    try:
        return (paths.staged / sha256 / path).read_bytes()
    except OSError:
        return None
