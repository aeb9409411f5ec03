"""The bridge's only way to the shared folder: two helper processes, batches with a deadline, no blocking
call.

A call on a dead mount cannot be interrupted, not even by SIGKILL, and one process per operation costs 50 ms
of CPU. So helpers live long, one for intake and one for the mirror. The laws:

- One batch at a time per helper; its deadline runs from the moment it is sent.
- A helper past its deadline is *abandoned*: killed as far as the kernel allows, never waited for, replaced.
- Two in a row without an answer in between, or two that cannot die, and the share is UNAVAILABLE: queued
  batches fail at once, and one probe at a time looks again, at growing intervals. A probe that succeeds
  becomes a helper.
- A missing share, a missing or foreign sentinel: UNAVAILABLE, at once.
- While three helpers hang unkillably no further one is started, until one has gone or the mount is another.

Everything runs in the bridge's one thread, which must be the main one: the parent-death signal follows it.
"""

from __future__ import annotations

import logging
import os
import select
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ....bus.mounts import Mount, mount_of
from .child import Batch, Helper, keep, recall, start_helper
from .frames import MAX_BODY_BYTES, leave_blobs, pack, take_blobs
from .ops import Op, Result, unlink, write
from .owner import LOOK_AGAIN_S, Claim

log = logging.getLogger(__name__)

KINDS = ("intake", "mirror")
MAX_STUCK = 3
ABANDONED_LIMIT = 2
DIED_LIMIT = 3
# A mount can still answer reads from its cache when writes hang. Whether these succeed does not matter (the share
# may be read-only or full), only that they come back.
PROBE = (write(".rigbus-probe", b""), unlink(".rigbus-probe"))
REMEMBERED = "share.json"  #: in the state folder: the ids of its shares
WORK_SHARE = 0.7  # of a deadline; a slow share then answers with "not tried" instead of being taken for dead


@dataclass(frozen=True)
class FolderState:
    """AVAILABLE or not; ``reason`` says why not and what to do, ``since_at`` is wall clock for people."""

    available: bool
    reason: str
    since_at: float


@dataclass(frozen=True)
class Fault:
    """Why a whole batch has no results. ``code``: HUNG or DIED (it may be done in part), UNAVAILABLE (not
    begun), or the errno name of what the helper met at the share's root."""

    code: str
    what: str


@dataclass(frozen=True)
class Reply:
    """One answered batch: a result for each operation in order, or a fault."""

    ticket: int
    kind: str
    results: list[Result]
    fault: Fault | None = None


class FolderPort:
    """See the module. Poll :meth:`fds` and :meth:`timeout_s`, then call :meth:`poll`; again after each.

    ``remember`` is a local file that keeps the share's id over restarts: without it a share that is unmounted
    while the bridge restarts looks like a new, empty one. ``create_root`` makes the folder itself on first
    use. With a ``claim`` the folder has to be that rig's (`owner`). Without ``make_id`` a folder that has no sentinel is
    used as it is: for who only reads.
    """

    def __init__(
        self,
        root: Path | str,
        *,
        remember: Path | None = None,
        create_root: bool = False,
        claim: Claim | None = None,
        make_id: bool = True,
        probe_s: float = 5.0,
        backoff_s: tuple[float, float] = (1.0, 30.0),
        start_grace_s: float = 2.0,
    ) -> None:
        # Lexical on purpose: resolving links would ask the share itself, and that may hang.
        self.root = os.path.abspath(root)
        self._remember, self._create_root, self._make_id = remember, create_root, make_id
        self.claim = claim
        self._probe_s, self._backoff, self._grace = probe_s, backoff_s, start_grace_s
        self._folder_id = recall(remember, self.root)
        self.state = FolderState(False, "the share was not looked at yet", time.time())
        self._looked = False
        self._helpers: dict[str, Helper] = {}
        self._abandoned: list[Helper] = []
        self._queue: deque[Batch] = deque()
        self._replies: list[Reply] = []
        self._tickets = 0
        self._streak = dict.fromkeys((*KINDS, "probe"), 0)
        self._died = 0
        self._wait_s = backoff_s[0]
        self._probe_at = 0.0
        self._stuck_mount: Mount | None = None

    # -- what the bridge calls

    def request(self, kind: str, ops: Sequence[Op], deadline_s: float = 10.0) -> int:
        """Queue a batch for the ``intake`` or ``mirror`` helper; its :class:`Reply` bears the returned
        ticket.

        ``deadline_s`` runs from when the batch is sent. Operations that a slow share leaves no time for
        answer EAGAIN and are the caller's to send again.

        Raises:
            ValueError: an unknown kind, or more than 256 MiB of data in one batch.
        """
        if kind not in KINDS:
            raise ValueError(f"{kind!r} is no helper; use one of {', '.join(KINDS)}")
        if sum(len(op["data"]) for op in ops if "data" in op) > MAX_BODY_BYTES:
            raise ValueError(f"a batch holds at most {MAX_BODY_BYTES} bytes; send it in parts")
        self._tickets += 1
        self._queue.append(Batch(self._tickets, kind, ops, deadline_s))
        return self._tickets

    def load(self, kind: str) -> int:
        """Batches of this kind that have no reply yet."""
        helper = self._helpers.get(kind)
        return sum(b.kind == kind for b in self._queue) + (helper is not None and helper.batch is not None)

    def fds(self) -> list[tuple[int, bool]]:
        """What to poll: (descriptor, want to write too). Ask again after each :meth:`poll`; they change."""
        return [(h.out_fd, False) for h in self._helpers.values()] + [
            (h.in_fd, True) for h in self._helpers.values() if h.outgoing
        ]

    def timeout_s(self) -> float | None:
        """When :meth:`poll` has something to do even if no descriptor fires; None = never."""
        now = time.monotonic()
        if self._replies or (self._queue and self._can_start_now(now)):
            return 0.0
        times = [h.due for h in self._helpers.values() if h.batch]
        if not self.state.available and "probe" not in self._helpers:
            times.append(self._probe_at if self._may_probe() else now + self._backoff[1])
        return max(0.0, min(times) - now) if times else None

    def poll(self) -> list[Reply]:
        """Do what can be done without waiting; the batches answered since the last call."""
        now = time.monotonic()
        self._reap()
        for helper in list(self._helpers.values()):
            self._attend(helper, now)
        if not self.state.available:
            self._look_again(now)
            if self._looked:
                self._fail_queued()
        self._dispatch(now)
        replies, self._replies = self._replies, []
        return replies

    def call(self, kind: str, ops: Sequence[Op], deadline_s: float = 10.0) -> Reply:
        """Request and wait: for tools and tests, not for the bridge's loop. Replies to others stay queued."""
        ticket = self.request(kind, ops, deadline_s)
        others: list[Reply] = []
        while True:
            for reply in self.poll():
                if reply.ticket == ticket:
                    self._replies = others + self._replies
                    return reply
                others.append(reply)
            self.wait(self.timeout_s())

    def wait(self, timeout_s: float | None) -> None:
        """Block until a descriptor fires or ``timeout_s`` is over."""
        readers = [fd for fd, writing in self.fds() if not writing]
        writers = [fd for fd, writing in self.fds() if writing]
        select.select(readers, writers, [], timeout_s)

    @property
    def folder_id(self) -> str | None:
        """The share's id, once it has answered; None before, and where it has none."""
        return self._folder_id

    def pids(self) -> dict[str, int]:
        """The helpers by kind; ``probe`` while one looks."""
        return {kind: helper.process.pid for kind, helper in self._helpers.items()}

    def stuck(self) -> list[int]:
        """Abandoned helpers that have not died yet."""
        return [helper.process.pid for helper in self._abandoned]

    def leave(self, timeout_s: float = 1.0) -> None:
        """Write into the owner's record that this rig goes, so that another need not wait. Drops what is queued."""
        if self.claim is None or not self.claim.held or not self.state.available:
            return
        self.claim.leaving = True
        self._queue.clear()
        self.request("mirror", [], timeout_s)
        until = time.monotonic() + timeout_s
        while self.load("mirror") and self.state.available and (left := until - time.monotonic()) > 0:
            self.poll()
            due_s = self.timeout_s()
            self.wait(left if due_s is None else min(left, due_s))

    def close(self) -> None:
        """End the helpers. Batches without a reply are lost: poll until idle first if they matter."""
        for helper in self._helpers.values():
            helper.process.kill()
            # A healthy one is gone in a moment; one that hangs must not keep us.
            select.select([helper.out_fd], [], [], 0.5)
            self._abandoned.append(helper)
        self._helpers.clear()
        for helper in self._abandoned:
            helper.process.poll()
            helper.close()

    def __enter__(self) -> FolderPort:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # -- helpers: start, feed, listen, give up

    def _start(self, kind: str) -> Helper:
        helper = self._helpers[kind] = start_helper(kind, self.root)
        return helper

    def _send(self, helper: Helper, batch: Batch, now: float) -> None:
        ops, blobs = leave_blobs(list(batch.ops))
        header: dict[str, Any] = {
            "ticket": batch.ticket,
            "folder_id": self._folder_id,
            "create_root": self._create_root and self._folder_id is None,
            "make_id": self._make_id,
            "budget_s": batch.deadline_s * WORK_SHARE,
            "ops": ops,
        }
        if self.claim is not None:
            header["claim"] = self.claim.header(now)
        helper.batch = batch
        helper.due = now + batch.deadline_s + (self._grace if helper.fresh else 0.0)
        helper.fresh = False
        helper.outgoing = memoryview(pack(header, blobs))
        helper.write_some()

    def _attend(self, helper: Helper, now: float) -> None:
        helper.write_some()
        alive = helper.read_some()
        if (answer := helper.answer()) is not None:
            self._answered(helper, *answer)
        if self._helpers.get(helper.kind) is not helper:
            return
        if not alive:
            self._lost(helper)
        elif helper.batch and now >= helper.due:
            self._abandon(helper)

    def _answered(self, helper: Helper, header: dict[str, Any], body: bytes) -> None:
        batch, helper.batch = helper.batch, None
        if batch is None:
            return
        if (fault := header.get("fault")) is not None:
            what = f"{self.root}: {fault['what'].removeprefix(f'{self.root}: ')}"
            if self.claim is not None and (record := fault.get("owner")) is not None:
                what = f"{self.root}: {self.claim.refused(record, time.monotonic())}"
                self._wait_s = min(self._wait_s, LOOK_AGAIN_S)
            self._reply(batch, Fault(fault["errno"], what))
            self._unavailable(self._explain(fault["errno"], what))
            if helper.kind == "probe":
                self._drop(helper)
            return
        self._streak[helper.kind] = self._died = 0
        if self.claim is not None:
            self.claim.passed()
        take_blobs(header["results"], body)
        if helper.kind == "probe":
            self._adopt(helper, header["folder_id"])
        else:
            self._replies.append(Reply(batch.ticket, batch.kind, header["results"]))

    def _lost(self, helper: Helper) -> None:
        """A helper died by itself: somebody killed it, or it crashed (its traceback is on stderr)."""
        batch, self._died = helper.batch, self._died + 1
        self._drop(helper)
        code = helper.process.returncode
        log.warning("folder helper %s (pid %d) died with %s", helper.kind, helper.process.pid, code)
        if batch:
            self._reply(batch, Fault("DIED", f"the {helper.kind} helper died (exit {code}); send it again"))
        if helper.kind == "probe" or self._died >= DIED_LIMIT:
            self._unavailable(f"folder helpers die (exit {code}); the bridge's log has the reason")

    def _abandon(self, helper: Helper) -> None:
        batch = helper.batch
        self._streak[helper.kind] += 1
        self._drop(helper)
        log.warning("folder helper %s (pid %d) hangs; abandoned", helper.kind, helper.process.pid)
        if batch:
            self._reply(batch, Fault("HUNG", f"{self.root} gave no answer within {batch.deadline_s:g} s"))
        hung = max(sum(self._streak.values()), len(self._abandoned))
        if helper.kind == "probe" or not self.state.available or hung >= ABANDONED_LIMIT:
            self._unavailable(f"{self.root} does not answer (mount hung?); looked at again by itself")
        else:
            self._start(helper.kind)  # now, not with the next batch: its start is off the path then

    def _drop(self, helper: Helper) -> None:
        self._helpers.pop(helper.kind, None)
        helper.batch = None
        helper.process.kill()
        helper.close()
        if helper.process.poll() is None:
            self._abandoned.append(helper)

    def _reap(self) -> None:
        before = len(self._abandoned)
        self._abandoned = [h for h in self._abandoned if h.process.poll() is None]
        if len(self._abandoned) < before >= MAX_STUCK:
            self._probe_at = 0.0  # one that hung came free: the share may be back

    def _reply(self, batch: Batch, fault: Fault) -> None:
        if batch.kind in KINDS:
            self._replies.append(Reply(batch.ticket, batch.kind, [], fault))

    # -- the queue

    def _can_start_now(self, now: float) -> bool:
        if not self.state.available:
            return self._looked or ("probe" not in self._helpers and now >= self._probe_at)
        busy = {kind for kind, helper in self._helpers.items() if helper.batch}
        return any(batch.kind not in busy for batch in self._queue)

    def _dispatch(self, now: float) -> None:
        if not self.state.available:
            return
        waiting: deque[Batch] = deque()
        while self._queue:
            batch = self._queue.popleft()
            helper = self._helpers.get(batch.kind) or self._start(batch.kind)
            if helper.batch:
                waiting.append(batch)
            else:
                self._send(helper, batch, now)
        self._queue = waiting

    def _fail_queued(self) -> None:
        while self._queue:
            self._reply(self._queue.popleft(), Fault("UNAVAILABLE", self.state.reason))

    # -- availability

    def _look_again(self, now: float) -> None:
        if "probe" in self._helpers or now < self._probe_at or not self._may_probe():
            return
        self._probe_at = now + self._wait_s
        self._wait_s = min(self._wait_s * 2, self._backoff[1])
        self._send(self._start("probe"), Batch(0, "probe", PROBE, self._probe_s), now)

    def _may_probe(self) -> bool:
        """Not while too many hang, unless the mount is another one than they hang on."""
        return len(self._abandoned) < MAX_STUCK or self._mount() != self._stuck_mount

    def _unavailable(self, reason: str) -> None:
        self._looked = True
        if self.state.available or self.state.reason != reason:
            log.warning("share unavailable: %s", reason)
            self.state = FolderState(
                False, reason, time.time() if self.state.available else self.state.since_at
            )
        self._probe_at = max(self._probe_at, time.monotonic() + self._backoff[0])
        self._stuck_mount = self._mount()

    def _adopt(self, probe: Helper, folder_id: str) -> None:
        """The share answers: the probe goes on as a helper in an empty place."""
        self._helpers.pop("probe", None)
        place = next((kind for kind in KINDS if kind not in self._helpers), None)
        if place is None:
            self._drop(probe)
        else:
            probe.kind = place
            self._helpers[place] = probe
        self._streak = dict.fromkeys(self._streak, 0)
        self._wait_s, self._looked = self._backoff[0], True
        if self._folder_id is None and folder_id:
            self._folder_id = folder_id
            keep(self._remember, self.root, folder_id)
        self.state = FolderState(True, "", time.time())
        log.info("share available: %s", self.root)

    def _explain(self, code: str, what: str) -> str:
        if code in ("ENOENT", "EXDEV") and self._folder_id is not None:
            forget = (
                f"; if this is a new folder on purpose, remove {self._remember}" if self._remember else ""
            )
            return f"{what}; is the share mounted?{forget}"
        if code in ("EROFS", "EACCES", "EPERM"):
            return f"{what}; mount it writable for the rig's user"
        return what

    def _mount(self) -> Mount | None:
        return mount_of(Path(self.root), resolve=False)
