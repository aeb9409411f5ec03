"""What former runs left: processes, socket folders, unfinished drops, and how large the state folder has grown."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from ..render import clean, duration
from .findings import Finding, size
from .rig import listens
from .share import ShareFacts
from .state import StateFacts

GROUP: Final = "Leftovers"
OLD_S: Final = 3600.0
_SHOWN: Final = 5
_NAME: Final = re.compile(r"(?:rigbus-)?[0-9a-f]{8}\Z")


@dataclass(frozen=True, slots=True)
class Bearer:
    """A living process with RIGBUS_TOKEN in its environment. ``ours``: of this state folder; ``rig_lives``: the rig
    of its token runs, None when that cannot be told; ``below``: it descends from a process of rigbus that bears no
    token, such as a worker that was started alone.
    """

    pid: int
    cmdline: str
    ours: bool
    rig_lives: bool | None
    below: bool = False

    @property
    def orphan(self) -> bool:
        return self.rig_lives is False and not self.below


@dataclass(frozen=True, slots=True)
class LeftFacts:
    """``bearers`` is None where there is no /proc. ``dead_sockets``: runtime folders that nobody listens in."""

    bearers: Sequence[Bearer] | None = ()
    dead_sockets: Sequence[str] = ()


def gather(runtime: Path, state_id: str, rig_lives: bool, environ: Mapping[str, str]) -> LeftFacts:
    """Looks through /proc and the places of runtime folders. ``rig_lives``: of this state folder's rig."""
    return LeftFacts(_bearers(state_id, rig_lives), _dead_sockets(runtime, environ))


def _bearers(state_id: str, rig_lives: bool) -> list[Bearer] | None:
    if not os.path.exists("/proc/self/environ"):
        return None
    from ...agents.process import tree as proctree

    found = []
    marked = [(proc, proctree.as_orphan(proc)) for proc in proctree.bearers(lambda token: True)]
    supervised = {orphan.token.partition(":")[0] for _, orphan in marked if _is_supervised(orphan.pid)}
    for proc, orphan in marked:
        rig, _, rest = orphan.token.partition(":")
        ours = bool(state_id) and rig == state_id
        lives: bool | None = rig_lives if ours else rig in supervised
        found.append(
            Bearer(orphan.pid, orphan.cmdline, ours, lives, not rest.startswith("rig:") and _below(proc.ppid))
        )
    return found


def _is_supervised(pid: int) -> bool:
    """Whether an ancestor is a process of rigbus without a token: the supervisor."""
    return _below(pid)


def _below(pid: int) -> bool:
    """Whether ``pid`` or one above it is rigbus and bears no token."""
    from ...agents.process import tree as proctree

    seen: set[int] = set()
    while pid > 1 and pid not in seen:
        seen.add(pid)
        proc = proctree.read_proc(pid)
        if proc is None or not proc.alive:
            return False
        if not proctree.read_token(pid) and "rigbus" in proctree.as_orphan(proc).cmdline:
            return True
        pid = proc.ppid
    return False


def _dead_sockets(runtime: Path, environ: Mapping[str, str]) -> list[str]:
    """Runtime folders of ours that have sockets and no listener; the present rig's is among them when it is dead."""
    places = {Path(f"/tmp/rigbus-{os.getuid()}"), runtime.parent}
    if environ.get("XDG_RUNTIME_DIR", "").startswith("/"):
        places.add(Path(environ["XDG_RUNTIME_DIR"]))
    found = []
    for place in sorted(places):
        try:
            names = sorted(os.listdir(place))
        except OSError:
            continue
        for name in filter(_NAME.match, names):
            socket = place / name / "commands"
            if os.path.lexists(socket) and not listens(f"ipc://{socket}"):
                found.append(str(place / name))
    return found


def judge(
    facts: LeftFacts, state: StateFacts | None, share: ShareFacts | None, *, rig_lives: bool
) -> list[Finding]:
    """One finding a kind of leftover; those without any are one line."""
    found = [*_processes(facts), *_sockets(facts), *_drops(state, share, rig_lives), *_probes(state, share)]
    if not any(finding.status == "warn" for finding in found):
        found.insert(0, Finding(GROUP, "former runs", "ok", "nothing of them needs you"))
    return [*found, *_sizes(state)]


def _processes(facts: LeftFacts) -> Iterable[Finding]:
    if facts.bearers is None:
        yield Finding(GROUP, "processes", "info", "not looked for: this system has no /proc")
        return
    orphans = [bearer for bearer in facts.bearers if bearer.orphan]
    for title, members, fix in (
        ("processes", [b for b in orphans if b.ours], "rigbus up ends them at its start; or: kill"),
        ("other rigs'", [b for b in orphans if not b.ours], "their rig is gone: kill"),
    ):
        if members:
            shown = ", ".join(f"{b.pid} ({clean(b.cmdline)[:30]})" for b in members[:_SHOWN])
            more = f" and {len(members) - _SHOWN} more" if len(members) > _SHOWN else ""
            pids = " ".join(str(b.pid) for b in members[:_SHOWN])
            yield Finding(
                GROUP, title, "warn", f"{len(members)} without their rig: {shown}{more}", f"{fix} {pids}"
            )


def _sockets(facts: LeftFacts) -> Iterable[Finding]:
    if facts.dead_sockets:
        first = facts.dead_sockets[0]
        said = f"{len(facts.dead_sockets)} folders without a listener, such as {first}: harmless"
        yield Finding(GROUP, "sockets", "info", said, f"rm -r {first}")


def _drops(state: StateFacts | None, share: ShareFacts | None, rig_lives: bool) -> Iterable[Finding]:
    if state is not None and state.journal and (not rig_lives or state.journal_age_s > OLD_S):
        said = f"{state.journal} not yet submitted, the oldest {duration(state.journal_age_s)} old"
        fix = (
            "the bridge goes on with them: rigbus up"
            if not rig_lives
            else "see logs/bridge.log for the reason"
        )
        yield Finding(GROUP, "drops", "warn", said, fix)
    if state is not None and state.copies and not rig_lives:
        yield Finding(
            GROUP, "copies", "info", f"{state.copies} unfinished in incoming/", "rigbus up removes them"
        )
    if share is not None and share.incoming:
        said = f"{len(share.incoming)} half-copied plans in inbox/, such as {share.incoming[0]}"
        fix = f"submit them again, then: rm -r {share.real or '.'}/inbox/{share.incoming[0]}"
        yield Finding(GROUP, "half copies", "warn", said, fix)


def _probes(state: StateFacts | None, share: ShareFacts | None) -> Iterable[Finding]:
    for facts in (state, share):
        if facts is not None and facts.doctor_left:
            first = f"{facts.real}/{facts.doctor_left[0]}"
            said = f"{len(facts.doctor_left)} of an earlier doctor that was killed, such as {first}"
            yield Finding(GROUP, "probes", "warn", said, f"rm -r {first}")


def _sizes(state: StateFacts | None) -> Iterable[Finding]:
    if state is None or not state.sizes:
        return
    total = sum(int(part["bytes"]) for part in state.sizes.values())
    said = ", ".join(f"{name} {_part(part)}" for name, part in state.sizes.items())
    if state.free_bytes is not None and total > state.free_bytes:
        fix = f"more than is left on the disk: remove old batches' folders in {state.real}/logs and /views"
        yield Finding(GROUP, "sizes", "warn", said, fix)
    else:
        yield Finding(GROUP, "sizes", "info", said)


def _part(part: Mapping[str, Any]) -> str:
    return f"{'over ' if part['cut'] else ''}{size(int(part['bytes']))} in {int(part['files']):,} files"
