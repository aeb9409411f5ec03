"""SUBMIT: a message is checked whole, then applied whole. Pure.

Nothing of a refused message is applied. The same message again gives the same answer (keys are the identity).
"""

from __future__ import annotations

import hashlib
import re
import time
from collections.abc import Sequence
from typing import Any, Final

from ..errors import Conflict, DefinitionError, NotFound, Refused
from ..states import STATE_NAMES, TaskState
from ..store.room import RETRY_S
from ..tags import smaller_payload_fix
from ..wire import MAX_BATCH, MAX_META_BYTES, MAX_PAYLOAD_BYTES, Envelope, pack
from .bounds import Busy
from .checks import edge_refs, number, policy_of, shape_of, text, token
from .edges import behind, find_cycle
from .leasing import Leasing
from .model import PLACEMENT_ASKS, Batch, Session, Task, called_from

KINDS: Final = frozenset({"client", "calls", "plan"})
#: A plan may have several lists of the size that bounds a client's batch, and must not fail in the midst of one.
PLAN_FACTOR: Final = 10
_PLAIN_ID: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{5,63}")
#: task or None where it exists, spec, spec bytes, payload
Made = tuple[Task | None, dict[str, Any], bytes, bytes]
Edges = dict[str, list[tuple[Task, bool]]]
_DEFINITION: Final = re.compile(r"[0-9a-f]{14}")


class KeyConflict(Conflict):
    """A known key with another content; ``key`` names it (PROTOCOL §5, CONFLICT)."""

    def __init__(self, message: str, key: str) -> None:
        super().__init__(message)
        self.key = key


class Submitting(Leasing):
    """Batches and tasks come into being."""

    max_live = 1_000_000
    max_batch_tasks = 100_000
    brain: str  #: session that holds the epoch

    def number_of(self, known: Task, spec: dict[str, Any], digest: int, fresh: int) -> int:
        """Of a task that is redefined: its own number, ``fresh`` where a new one takes its place, 0 where it stays."""
        raise NotImplementedError

    # -- SUBMIT ----------------------------------------------------------------------------------------------

    def submit(self, session: Session, env: Envelope) -> dict[str, Any]:
        """Apply a SUBMIT; the header of ACCEPTED.

        Raises:
            DefinitionError, NotFound, Conflict, Refused, Busy: nothing was applied.
        """
        head = env.header.get("batch") or {}
        specs = env.header.get("tasks") or []
        if not isinstance(head, dict) or not isinstance(specs, list):
            raise DefinitionError("SUBMIT wants `batch`, a map, and `tasks`, a list")
        batch, is_new = self._batch_for(head, specs)
        if batch.own and session.id != self.brain:
            raise Refused(f"batch {batch.key:.80} is the brain's own; submit a batch with another key")
        made = self._plan_tasks(session, batch, specs, env.body)
        if is_new:
            self.next_batch += 1
            self.add_batch(batch)
        ids, states = self._apply_tasks(session, batch, made, watch=session.role == "client")
        last = batch.kind == "client" and not head.get("open")
        closes = not batch.closed and (last or (batch.kind == "calls" and head.get("open") is False))
        if closes:
            batch.closed = True
        if is_new:
            self.announce_batch(batch)
        elif closes:
            self.keep_batch(batch)  # its counts are in no row: nothing else of it has changed
        self.touch_batch(batch)
        return {"batch": batch.id, "ids": ids, "states": states, "seq": self.seq}

    def _batch_for(self, head: dict[str, Any], specs: list[Any]) -> tuple[Batch, bool]:
        """The batch that a SUBMIT names, or a new one (not yet indexed)."""
        parents = [s["parent"] for s in specs if isinstance(s, dict) and s.get("parent")]
        if parents:
            return self._parent(parents[0]).batch, False
        if head.get("id"):
            batch = self.find_batch(head["id"])
            if (batch.closed or batch.ended_at) and _has_new(batch, specs):
                raise Refused(f"batch {batch.id} is closed; submit a new one")
            return batch, False
        key = text(head, "key")
        if not key:
            raise DefinitionError("batch.key is missing: make one (uuid4) and keep it when you send again")
        known = self.batch_keys.get(key)
        if known is not None:
            if (known.closed or known.ended_at) and _has_new(known, specs):
                raise KeyConflict(f"batch key {key!r} was submitted before, without these tasks", key)
            return known, False
        self._check_disk()
        kind = head.get("kind", "client")
        if kind not in KINDS:
            raise DefinitionError(f"batch.kind {kind!r:.40}: client, calls or plan")
        id_ = self._wanted_id(head) or self._batch_id(key)
        batch = Batch(self.next_batch, id_, key, kind, text(head, "name") or kind, self.wall)
        priority = number(head, "priority", 0, 10)
        batch.priority = 5 if priority is None else int(priority)
        batch.mirror = kind == "plan" or bool(head.get("mirror"))
        if kind == "plan":
            plan = head.get("plan")
            if not isinstance(plan, dict) or len(pack(plan)) > MAX_META_BYTES:
                raise DefinitionError(f"batch.plan must be a map of at most {MAX_META_BYTES} bytes")
            batch.plan = plan
        return batch, True

    def _wanted_id(self, head: dict[str, Any]) -> str | None:
        """The id that the submitter asks for; it names a folder, and nobody else may have it."""
        wanted = head.get("want_id")
        if wanted is None:
            return None
        if not isinstance(wanted, str) or _PLAIN_ID.fullmatch(wanted) is None:
            raise DefinitionError(f"batch.want_id {wanted!r:.80}: 6 to 64 of letters, digits, . _ -")
        if wanted in self.batch_ids:
            raise KeyConflict(f"there is a batch {wanted} already; ask for another id, or for none", wanted)
        return wanted

    def _batch_id(self, key: str) -> str:
        """``YYYYMMDD_HHMMSS_<6 hex>``: the time is for people, the hex is of the key (DESIGN §5)."""
        stamp = time.strftime("%Y%m%d_%H%M%S", time.localtime(self.wall))
        n = 0
        while True:
            hexes = hashlib.sha256(f"{key}/{n}".encode()).hexdigest()[:6]
            if f"{stamp}_{hexes}" not in self.batch_ids:
                return f"{stamp}_{hexes}"
            n += 1

    def _parent(self, ref: Any) -> Task:
        """The task whose handler calls; it must show its current token."""
        if not isinstance(ref, dict):
            raise DefinitionError("parent must be {id, token}")
        task = self.find_task(ref.get("id"))
        shown = token(ref.get("token"))
        if self.leases.get(shown) is not task:
            raise Refused(f"stale_token: {task.key} is not held under {list(shown)} any more")
        if task.ending:  # what it had called was ended at once, and nobody would end this
            raise Refused(
                f"{task.key} is to end ({task.error or 'no reason was given'}): it calls nothing more"
            )
        return task

    # -- checking --------------------------------------------------------------------------------------------

    def _plan_tasks(
        self,
        session: Session,
        batch: Batch,
        specs: list[Any],
        body: Sequence[bytes],
        *,
        redefines: bool = False,
    ) -> list[Made]:
        """Check every spec; what :meth:`_apply_tasks` applies, in order. Nothing is applied.

        ``redefines``: a known key is what its spec says now (revising.py); its task here is that definition.
        """
        if len(specs) > MAX_BATCH:
            raise DefinitionError(f"{len(specs)} tasks in one message; at most {MAX_BATCH}")
        self._check_room(batch, specs)
        made: list[Made] = []
        keys: dict[str, int] = {}
        no = self.next_no
        for i, spec in enumerate(specs):
            payload = body[i] if i < len(body) else b""
            try:
                by_brain = session.role == "brain"
                task, raw = self._check_spec(batch, spec, payload, no, by_brain=by_brain, redefines=redefines)
            except (DefinitionError, NotFound) as e:
                name = spec.get("key", i) if isinstance(spec, dict) else i
                raise type(e)(f"task {name!r:.80}: {e}") from None
            key = spec["key"]
            if key in keys:
                raise DefinitionError(f"task {key!r}: this key is given twice in one submit")
            keys[key] = i
            made.append((task, spec, raw, payload))
            no += task is not None and task.no == no
        self._check_edges(batch, made, keys)
        return made

    def _check_room(self, batch: Batch, specs: list[Any]) -> None:
        """The bounds, for what is really new: a repeat of what was accepted is never refused."""
        fresh = _new_specs(batch, specs)
        if fresh:
            self._check_disk()
        if fresh and self.live + fresh > self.max_live:
            raise Busy("tasks", f"{self.live} tasks are live, the bound is {self.max_live}", 5.0)
        most = self.max_batch_tasks * (PLAN_FACTOR if batch.kind == "plan" else 1)
        if fresh and batch.kind != "calls" and batch.total + fresh > most:
            raise DefinitionError(f"batch {batch.id} would have over {most} tasks; split it")

    def _check_disk(self) -> None:
        """A task that is accepted must have room for its end.

        Raises:
            Busy: there is little left.
        """
        if not self.room.takes_tasks:
            raise Busy("disk", f"{self.room.value}: {self.room.meaning}; {self.room.fix}", RETRY_S)

    def _check_spec(
        self, batch: Batch, spec: Any, payload: bytes, no: int, *, by_brain: bool, redefines: bool = False
    ) -> tuple[Task | None, bytes]:
        if not isinstance(spec, dict):
            raise DefinitionError("a task spec is a map")
        key = text(spec, "key")
        type_ = text(spec, "type", limit=100)
        if not key or not type_:
            raise DefinitionError("`key` and `type` are wanted")
        if type_ == "execute_plan":
            raise DefinitionError(
                "a plan is not a task: submit it as a batch of kind `plan` (`rigbus submit PLAN`)"
            )
        if len(payload) > MAX_PAYLOAD_BYTES:
            raise DefinitionError(
                f"a payload of {len(payload)} bytes, at most {MAX_PAYLOAD_BYTES}: {smaller_payload_fix(type_)}"
            )
        meta = spec.get("meta")
        if meta is not None and (not isinstance(meta, dict) or len(pack(meta)) > MAX_META_BYTES):
            raise DefinitionError(f"meta must be a map of at most {MAX_META_BYTES} bytes")
        if spec.get("judges") is not None:
            self._check_judge(batch, spec, by_brain=by_brain)
        if spec.get("aside") and not (by_brain and batch.kind == "plan"):
            raise DefinitionError(
                "`aside` is for what the brain asks about a plan before it declares its tasks"
            )
        parent = spec.get("parent")
        if parent and self._parent(parent).batch is not batch:
            raise DefinitionError(
                "its parent is in another batch: the calls of two handlers are two messages"
            )
        raw = pack({k: v for k, v in spec.items() if k != "parent"} if parent else spec)
        digest = (definition(spec) if by_brain else None) or digest_of(raw, payload)
        known = batch.keys.get(key)
        if known is not None and redefines:
            no = self.number_of(known, spec, digest, no)
            if not no:
                return None, raw
        elif known is not None and known.dropped and known.parent:
            # a call of what its handler was: this one is another, once nothing of that runs
            if not known.ended:
                raise Busy("calls", f"the earlier call {key!r:.80} is still being ended", RETRY_S)
        elif known is not None:
            # the brain's keys are derived from the plan; another build of it may word a spec differently
            if known.digest != digest and not by_brain:
                raise KeyConflict(
                    f"key {key!r} of batch {batch.id} was submitted before with another content", key
                )
            return None, raw
        task = Task(no, batch, key, shape_of(spec, type_), policy_of(spec), self.wall)
        priority = number(spec, "priority", 0, 10)
        task.priority = batch.priority if priority is None else int(priority)
        asks = type_ in PLACEMENT_ASKS  # nobody runs it: it ends when the brain says so
        task.join = asks or bool(spec.get("join"))
        task.hold = asks or bool(spec.get("hold"))
        deadline_s = number(spec, "deadline_s", 0, 1e9)
        if deadline_s is not None:
            task.deadline = self.now + deadline_s
        task.digest = digest
        return task, raw

    @staticmethod
    def _check_judge(batch: Batch, spec: dict[str, Any], *, by_brain: bool) -> None:
        """``judges``: the key of a task of the batch whose result waits for a verdict."""
        if not by_brain:
            raise DefinitionError("only the brain lets a task judge another")
        key = spec["judges"]
        judged = batch.keys.get(key) if isinstance(key, str) else None
        if judged is None or judged.state is not TaskState.REVIEW:
            raise NotFound(f"no result of {key!r:.80} waits for a verdict")

    def _check_edges(self, batch: Batch, made: list[Made], keys: dict[str, int]) -> None:
        """Resolve ``after`` and ``feeds`` to tasks (put into the spec as ``_after``/``_feeds``); refuse cycles."""
        # what is redefined has its place in the graph already
        local = {spec["key"]: self.tasks.get(task.no, task) for task, spec, _, _ in made if task is not None}
        graph: dict[int, list[int]] = {}
        names = {task.no: task for task in local.values()}
        joins: dict[int, Task] = {}
        sources: set[int] = set()
        for task, spec, _, _ in made:
            if task is None:
                continue
            after = [(self._named(batch, local, keys, ref), end) for ref, end in edge_refs(spec, "after")]
            feeds = [(self._named(batch, local, keys, ref), end) for ref, end in edge_refs(spec, "feeds")]
            spec["_after"], spec["_feeds"] = after, feeds
            if after:
                graph.setdefault(task.no, []).extend(src.no for src, _ in after)
                sources.update(src.no for src, _ in after)
            for dst, _ in feeds:
                # a held one may have ended already: skipped for a task of the part that came before
                if not dst.join or (dst.ended and not dst.hold and dst.no in self.tasks):
                    raise DefinitionError(f"task {task.key!r} feeds {dst.key!r}, which is not an open join")
                graph.setdefault(dst.no, []).append(task.no)
                joins[dst.no] = names[dst.no] = dst
        accepted = [join for no, join in joins.items() if no in self.tasks]
        if accepted and (wanted := {no for no in sources if no in self.tasks}):
            for no, waits_for in behind(accepted, wanted).items():
                graph.setdefault(no, []).extend(j for j in waits_for if j != no)
                names[no] = self.tasks[no]
        cycle = find_cycle(graph)
        if cycle:
            raise DefinitionError(
                "the tasks wait for each other: " + " -> ".join(names[no].key for no in cycle)
            )

    def _named(self, batch: Batch, local: dict[str, Task], keys: dict[str, int], ref: str) -> Task:
        """The task that an edge names: of the same submit, of the same batch, or by public id."""
        task = (local.get(ref) if ref in keys else None) or batch.keys.get(ref) or self.ids.get(ref)
        if task is None:
            raise DefinitionError(
                f"waits for {ref!r:.80}, which is neither a key of this submit nor the id of a task"
            )
        return task

    # -- applying --------------------------------------------------------------------------------------------

    def _apply_tasks(
        self, session: Session, batch: Batch, made: list[Made], *, watch: bool
    ) -> tuple[list[str], list[str]]:
        ids, fresh = self._index_tasks(session, batch, made, watch=watch)
        for task, edges in fresh:
            self.link(task, edges)
        for task, _ in fresh:
            self._enter(task)
        return ids, [STATE_NAMES[self.ids[i].state] for i in ids]

    def _index_tasks(
        self, session: Session, batch: Batch, made: list[Made], *, watch: bool
    ) -> tuple[list[str], list[tuple[Task, dict[str, Any]]]]:
        """Put new tasks into the index, without their edges: (the ids of all, the new ones with their edges by number)."""
        ids: list[str] = []
        fresh: list[tuple[Task, dict[str, Any]]] = []
        mine = frozenset({session.id})
        for task, spec, raw, payload in made:
            if task is None:
                ids.append(batch.keys[spec["key"]].id)
                self._rejoin(batch.keys[spec["key"]], session, watch)
                continue
            self.next_no = task.no + 1
            if (old := batch.keys.get(task.key)) is not None:
                task.attempt = old.attempt  # so that no log is written over
                self.forget_calls(old, done=True)
                self.drop_task(old)
            self.add_task(task)
            edges = {
                "after": [[t.no, e] for t, e in spec.pop("_after")],
                "feeds": [[t.no, e] for t, e in spec.pop("_feeds")],
            }
            if spec.get("parent"):
                self._adopt(task, self._parent(spec["parent"]))
            elif spec.get("judges"):
                self._adopt(task, batch.keys[spec["judges"]])
            elif spec.get("orphan") == "cancel":
                self._own(task, session.id)
            packed = pack([raw, edges, task.digest])
            self.changes.new_tasks[task.no] = (task, packed, payload, spec.get("meta"))
            if watch:
                task.waiters = mine
            fresh.append((task, edges))
            ids.append(task.id)
        return ids, fresh

    def _rejoin(self, task: Task, session: Session, watch: bool) -> None:
        """A key that exists is submitted again: its (new) submitter hears its end."""
        if watch and not task.ended:
            self.listen(task, session)
        if task.owner and not task.ended and task.owner != session.id:
            self.owned.get(task.owner, {}).pop(task.no, None)
            self._own(task, session.id)
            self.dirty(task)

    def _own(self, task: Task, sid: str) -> None:
        task.owner = sid
        self.owned.setdefault(sid, {})[task.no] = task

    def _adopt(self, task: Task, parent: Task) -> None:
        """``task`` serves ``parent``: it has its priority and deadline, and ends with it."""
        task.parent = parent.no
        task.shape = called_from(task.shape, parent.shape)
        task.priority = parent.priority
        if parent.deadline:
            task.deadline = min(task.deadline, parent.deadline) if task.deadline else parent.deadline
        parent.children = parent.children or []
        parent.children.append(task)

    def link(self, task: Task, edges: dict[str, Any] | None) -> None:
        """Put a task's edges into the graph; those whose source has ended count at once."""
        task.unmet += int(task.hold)
        if edges is None:
            return
        for no, on_end in edges["after"]:
            self.add_edge(self.tasks.get(no), task, no, on_end)
        for no, on_end in edges["feeds"]:
            dst = self.tasks.get(no)
            if dst is not None:
                self.add_edge(task, dst, task.no, on_end)

    def add_edge(self, src: Task | None, dst: Task, no: int, on_end: bool) -> None:
        """``dst`` waits for ``src`` (None: purged, so it ended DONE or nobody waited)."""
        if not isinstance(dst.after, list):
            dst.after = []
        dst.after.append((no, bool(on_end)))
        if src is None:
            return
        if src.dependents is None:
            src.dependents = []
        src.dependents.append((dst, bool(on_end)))
        if not src.ended:
            dst.unmet += 1

    def _enter(self, task: Task) -> None:
        """A new task's first state: broken by an edge, READY, or WAITING."""
        if task.deadline:
            self.timer(task.deadline, "deadline", task)
        if task.state is not TaskState.WAITING:
            return  # the end of one before it in this message has already reached it
        for no, on_end in task.after:
            src = self.tasks.get(no)
            if src is not None and not on_end and self._is_broken(no):
                self.skip(task, no)
                return
        if task.unmet > 0:
            self.announce(task, created=True)
        else:
            self.settle(task, created=True)

    @property
    def live(self) -> int:
        """Tasks that have not ended."""
        c = self.counts
        return c[0] + c[1] + c[2] + c[3] + c[4]


def digest_of(raw: bytes, payload: bytes) -> int:
    """By which the same key with another content is told: 56 bits of a spec and its payload."""
    return int.from_bytes(hashlib.blake2b(raw + payload, digest_size=7).digest())


def definition(spec: dict[str, Any]) -> int | None:
    """What the brain says that a task is; None where it says nothing.

    Raises:
        DefinitionError: not 14 hex digits.
    """
    given = text(spec, "definition", limit=14)
    if given is None:
        return None
    if _DEFINITION.fullmatch(given) is None:
        raise DefinitionError(f"definition {given!r} is not 14 hex digits")
    return int(given, 16)


def _new_specs(batch: Batch, specs: list[Any]) -> int:
    """How many specs are not in the batch yet."""
    return sum(not (isinstance(s, dict) and s.get("key") in batch.keys) for s in specs)


def _has_new(batch: Batch, specs: list[Any]) -> bool:
    return _new_specs(batch, specs) > 0
