"""What to do about what lies in the inbox: the READY and settle rules. Pure: (state, scan, now) -> decisions.

A drop is a folder with a ``plan.md`` or one ``name.md``. It starts at once when it holds a file ``READY``,
else when two equal looks (names, sizes, mtimes) lie ``settle_s`` apart. Times of files are only ever
compared for equality: the Pi's clock is not trusted. Every drop gets a receipt at once, and every refusal
says what, where and the fix.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from ...batchfile.names import belongs
from ..contract.receipts import PLAIN_NAME, Problem
from ..share.ops import Entry, shown

REQUESTS = ".requests"
READY = "READY"
PLAN = "plan.md"
NEVER_SUFFIXES = (".receipt.md", ".receipt.json", "~", ".tmp", ".part")
MAX_SETTINGS_BYTES = 64 * 1024
_JSON_FIX = {
    READY: 'write {"config": {"KEY": "value"}}, or leave it empty',
    "config.json": 'write {"KEY": "value"}, or remove it',
}
_UUID = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}\Z")
_ARCHIVES = (".zip", ".tar", ".gz", ".tgz", ".xz", ".bz2", ".zst", ".7z")

Signature = tuple[Entry, ...]


@dataclass(frozen=True)
class Scan:
    """The inbox as it was seen: entries of every top-level name, its folder's content below it.

    The pages of a long listing make one scan; without its last page it is not ``complete``, and what is
    missing from it does not count as gone. ``cut`` names entries that hold more than was listed.
    """

    entries: tuple[Entry, ...]
    cut: frozenset[str] = frozenset()
    complete: bool = True


@dataclass(frozen=True)
class WriteReceipt:
    """Say that the drop was seen; ``settling`` (it starts by itself) or ``waiting`` (it needs something)."""

    name: str
    state: Literal["settling", "waiting"]
    note: str


@dataclass(frozen=True)
class StartIntake:
    """Take the drop in. ``inode`` is its own, ``listing`` a hash of all names, sizes and mtimes in it."""

    name: str
    why: Literal["READY", "settled"]
    inode: int
    listing: str
    is_folder: bool


@dataclass(frozen=True)
class Refuse:
    """Write a refusal. ``move``: put it into ``.refused`` (not where something foreign only happens to
    lie).
    """

    name: str
    problem: Problem
    move: bool = True


@dataclass(frozen=True)
class Request:
    """A request file without a receipt; ``path`` is relative to the inbox."""

    path: str


Decision = WriteReceipt | StartIntake | Refuse | Request


@dataclass(frozen=True)
class Drop:
    """What is known of one name: its last look, since when it looks so, and what was done about it."""

    signature: Signature
    since_s: float
    told: str = ""
    handled: Signature | None = None


@dataclass(frozen=True)
class IntakeState:
    """All that the intake remembers; losing it costs one more settle time, never a second run."""

    drops: Mapping[str, Drop] = field(default_factory=dict)
    requests: Mapping[str, Entry] = field(default_factory=dict)


def step(state: IntakeState, scan: Scan, now_s: float, settle_s: float) -> tuple[IntakeState, list[Decision]]:
    """One look at the inbox. ``now_s`` is monotonic; decisions come in name order and are given once each."""
    decisions: list[Decision] = []
    drops = {} if scan.complete else dict(state.drops)
    for name, signature in _by_name(scan.entries).items():
        if name.startswith(".") or name.endswith(NEVER_SUFFIXES) or _is_batch_file(signature[0]):
            continue
        before = state.drops.get(name)
        if before is None or before.signature != signature:
            handled = before.handled if before else None
            told = before.told if before else ""
            before = Drop(signature, now_s, told, handled)
        if before.handled == signature:
            drops[name] = before
            continue
        drops[name], decision = _judge(name, before, name in scan.cut, now_s, settle_s)
        if decision is not None:
            decisions.append(decision)
    requests, asked = _requests(state.requests, scan)
    return IntakeState(drops, requests), decisions + asked


def again(state: IntakeState, name: str) -> IntakeState:
    """The intake of a drop or request failed for a reason that passes (share or broker away): decide it
    anew.
    """
    drops = dict(state.drops)
    if name in drops:
        drops[name] = replace(drops[name], handled=None)
    return IntakeState(drops, {path: e for path, e in state.requests.items() if path != name})


def drop_id(name: str, inode: int, content: str) -> str:
    """The key of the SUBMIT: the same folder seen again is the same run, a copy or an edit is a new one."""
    return hashlib.sha256(b"\0".join((_raw(name), str(inode).encode(), content.encode()))).hexdigest()


def listing_hash(signature: Iterable[Entry]) -> str:
    """Names, types, sizes and mtimes of a drop as one hash."""
    whole = hashlib.sha256()
    for entry in signature:
        fields = (_raw(entry.path), entry.type.encode(), entry.size, entry.mtime_ns)
        whole.update(b"%s\0%s\0%d\0%d\n" % fields)
    return whole.hexdigest()


def _judge(name: str, drop: Drop, cut: bool, now_s: float, settle_s: float) -> tuple[Drop, Decision | None]:
    """The decision on one drop that is not handled yet."""
    top = drop.signature[0]
    inside = {entry.path.partition("/")[2]: entry for entry in drop.signature[1:]}
    refusal = _refusal(name, top, inside)
    done = replace(drop, handled=drop.signature, told="")
    if refusal is not None:
        return done, refusal
    folder = top.type == "dir"
    ready = folder and READY in inside and inside[READY].type == "file"
    if ready and not _ready_is_old(drop):
        return done, StartIntake(name, "READY", top.inode, listing_hash(drop.signature), folder)
    settled = now_s - drop.since_s >= settle_s
    if folder and PLAN not in inside:
        return _tell(drop, name, "waiting", f"there is no {PLAN} in it yet; it starts when there is one")
    if cut:
        return _tell(drop, name, "waiting", f"too many files to watch; put an empty file {READY} into it")
    if not folder and not name.endswith(".md"):
        problem = _not_a_plan(name)
        return (done, Refuse(name, problem, move=False)) if settled else (drop, None)
    if settled:
        return done, StartIntake(name, "settled", top.inode, listing_hash(drop.signature), folder)
    hint = f"; put an empty file {READY} into it to start at once" if folder else ""
    return _tell(drop, name, "settling", f"it starts when nothing in it has changed for {settle_s:g} s{hint}")


def _tell(
    drop: Drop, name: str, state: Literal["settling", "waiting"], note: str
) -> tuple[Drop, WriteReceipt | None]:
    """A receipt, unless the same one stands already."""
    if drop.told == note:
        return drop, None
    return replace(drop, told=note), WriteReceipt(name, state, note)


def _ready_is_old(drop: Drop) -> bool:
    """An edit in place under the READY of an earlier run settles like any other drop."""
    mine = f"{drop.signature[0].path}/{READY}"
    return any(e.path == mine and e in drop.signature for e in drop.handled or ())


def _refusal(name: str, top: Entry, inside: Mapping[str, Entry]) -> Refuse | None:
    where = f"inbox/{shown(name)}"
    if top.type == "unreadable":
        return Refuse(name, Problem("it cannot be read", where, "chmod -R g+rX it"), move=False)
    if top.type == "link":
        return Refuse(name, Problem("it is a link", where, "copy the folder itself (cp -rL)"))
    if top.type not in ("file", "dir"):
        return Refuse(name, Problem(f"it is a {top.type}, not a folder or file", where, "remove it"))
    if top.type == "dir" or name.endswith(".md"):
        stem = name.removesuffix(".md") if top.type == "file" else name
        if not PLAIN_NAME.match(stem):
            fix = "rename it: letters, digits, . _ - (64 at most), a letter or digit first"
            return Refuse(name, Problem("its name cannot name a plan", where, fix))
    plan = inside.get(PLAN)
    if plan is not None and plan.type != "file":
        what = f"{PLAN} is a {plan.type}, not a regular file"
        return Refuse(name, Problem(what, f"{where}/{PLAN}", f"put the real {PLAN} there"))
    if READY in inside and plan is None:
        return Refuse(name, Problem(f"there is no {PLAN} in it", where, f"add {PLAN}, then drop it again"))
    return None


def _not_a_plan(name: str) -> Problem:
    where, fix = f"inbox/{shown(name)}", f"drop a folder with a {PLAN}, or one name.md"
    if name.endswith(_ARCHIVES):
        return Problem("it is an archive, not a plan", where, "unpack it and drop the folder")
    return Problem("it is not a plan", where, fix)


def _requests(known: Mapping[str, Entry], scan: Scan) -> tuple[dict[str, Entry], list[Decision]]:
    """Request files that have no receipt and were not given out before."""
    here = {e.path: e for e in scan.entries if e.path.startswith(f"{REQUESTS}/") and e.path.count("/") == 1}
    out = {} if scan.complete else dict(known)
    asked: list[Decision] = []
    for path in sorted(here):
        stem = path.partition("/")[2].removesuffix(".json")
        if here[path].type != "file" or not path.endswith(".json") or not _UUID.match(stem):
            continue
        if f"{REQUESTS}/{stem}.receipt.json" in here:
            continue
        out[path] = here[path]
        if known.get(path) != here[path]:
            asked.append(Request(path))
    return out, asked


def _by_name(entries: Iterable[Entry]) -> dict[str, Signature]:
    """Top-level name -> its entry and what lies below it, in path order. Directory mtimes and sizes are
    kept out of the comparison: writing a receipt or a linked folder must not look like an edit."""
    groups: dict[str, list[Entry]] = {}
    for entry in sorted(entries):
        plain = entry._replace(size=0, mtime_ns=0) if entry.type == "dir" else entry
        groups.setdefault(entry.path.partition("/")[0], []).append(plain)
    return {
        name: tuple(sorted(group, key=lambda e: (e.path.count("/") > 0, e.path)))
        for name, group in groups.items()
        if any(e.path == name for e in group)
    }


def grows(entry: Entry) -> bool:
    """Whether what stands there is written by the rig all the time, and says nothing of drops: receipts, results."""
    return entry.path.endswith(NEVER_SUFFIXES) and entry.type == "file"


def _is_batch_file(entry: Entry) -> bool:
    """It has a door of its own (`batchfiles`)."""
    return entry.type != "dir" and belongs(entry.path)


def _raw(name: str) -> bytes:
    return name.encode("utf-8", "surrogateescape")


# -- what stands in READY, config.json and request files


@dataclass(frozen=True)
class Settings:
    """What a drop asks for beside its plan."""

    config: Mapping[str, Any]
    priority: str | None = None
    base: Mapping[str, Any] = field(default_factory=dict)  #: what holds where neither says something


def drop_settings(files: Mapping[str, bytes]) -> Settings | Problem:
    """The settings in ``READY`` and ``config.json`` (both optional; READY's win), or what is wrong with
    them.
    """
    config: dict[str, Any] = {}
    priority: str | None = None
    for name in ("config.json", READY):
        data = files.get(name, b"")
        if not data.strip():
            continue
        parsed = parse_object(data, name)
        if isinstance(parsed, Problem):
            return parsed
        wrapped = "config" in parsed or "priority" in parsed
        if not wrapped and name == READY:
            continue  # a manifest of another tool: only its presence counts
        given = parsed.get("config", {}) if wrapped else parsed
        if not isinstance(given, dict):
            return Problem('"config" is not an object', name, 'write {"config": {"KEY": "value"}}')
        config |= given
        if (wish := parsed.get("priority") if wrapped else None) is not None:
            if wish not in ("low", "normal", "high", "urgent"):
                return Problem(f"priority {str(wish)[:40]!r} is unknown", name, "low, normal, high or urgent")
            priority = str(wish)
    return Settings(config, priority)


def parse_object(data: bytes, where: str, max_bytes: int = MAX_SETTINGS_BYTES) -> dict[str, Any] | Problem:
    """A JSON object from bytes that anybody may have written."""
    if len(data) > max_bytes:
        return Problem(f"it is larger than {max_bytes} bytes", where, "put data into the plan's files")
    try:
        value = json.loads(data.decode("utf-8-sig"), parse_int=_wire_int, object_pairs_hook=_once)
        json.dumps(value, ensure_ascii=False, allow_nan=False).encode()  # what the bus could not carry
    except UnicodeError:
        return Problem("it is not UTF-8 text", where, "save it as UTF-8")
    except json.JSONDecodeError as error:
        line = data.decode("utf-8-sig").split("\n")[error.lineno - 1]
        what = f"it is no valid JSON: {error.msg}, at column {error.colno} (is it half written?)"
        return Problem(what, where, _JSON_FIX.get(where, "write valid JSON"), error.lineno, shown(line[:200]))
    except RecursionError:
        return Problem("it is nested too deeply", where, "write a flat object")
    except ValueError as error:  # NaN, a number with thousands of digits, a key that stands twice
        return Problem(str(error), where, "write valid JSON")
    if not isinstance(value, dict):
        return Problem("it is not a JSON object", where, _JSON_FIX.get(where, "write { … }"))
    return value


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object whose keys stand once: of two, nobody knows which was meant."""
    found = dict(pairs)
    if len(found) < len(pairs):
        seen: set[str] = set()
        for name, _ in pairs:
            if name in seen:
                raise ValueError(f"the key {shown(name[:80])!r} stands twice in one object")
            seen.add(name)
    return found


def _wire_int(text: str) -> int:
    value = int(text)
    if not -(2**63) <= value < 2**64:
        raise ValueError("a whole number has more than 64 bits")
    return value


@dataclass(frozen=True)
class FileRequest:
    """``rigbus.request/1``: what a verb in file mode asks the rig for."""

    id: str
    verb: str
    args: Mapping[str, Any]
    batch_id: str | None


def parse_request(path: str, data: bytes) -> FileRequest | Problem:
    """The request in ``.requests/<uuid>.json``, or what is wrong with it."""
    parsed = parse_object(data, path)
    if isinstance(parsed, Problem):
        return parsed
    stem = path.rpartition("/")[2].removesuffix(".json")
    verb, args, batch = parsed.get("verb"), parsed.get("args", {}), parsed.get("batch_id")
    if parsed.get("schema") != "rigbus.request/1":
        return Problem("its schema is not rigbus.request/1", path, "use a rigbus of the rig's version")
    if parsed.get("id") != stem:
        return Problem("its id is not its file's name", path, f'write "id": "{stem}"')
    if not isinstance(verb, str) or not isinstance(args, dict) or not isinstance(batch, str | None):
        what = "verb, args or batch_id has the wrong type"
        return Problem(what, path, "verb and batch_id are texts, args is an object")
    return FileRequest(stem, verb, args, batch)
