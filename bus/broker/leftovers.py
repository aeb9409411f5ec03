"""What lies in the state folder for batches and results that the broker has forgotten. Pure bookkeeping.

Result files and staged plans are named by their content, so several tasks or batches may hold one: it goes with the
last of them. Membership may be asked from another thread; all else is the broker's.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field

from ..core.model import Batch, Changes
from ..paths import OF_REVISION, folder_name, view_name


@dataclass(slots=True)
class Gone:
    """What nobody knows any more after a commit."""

    folders: list[str] = field(default_factory=list)  #: of batches, as they are named in logs/
    views: list[str] = field(default_factory=list)  #: ids of batches
    logs: list[tuple[str, str, int]] = field(default_factory=list)  #: batch id, key, attempts
    results: list[str] = field(default_factory=list)
    plans: list[str] = field(default_factory=list)

    def __bool__(self) -> bool:
        return bool(self.folders or self.logs or self.results or self.plans)


class Holdings:
    """Who holds which folder, result file and staged plan."""

    def __init__(self, batches: Iterable[Batch], results: Iterable[tuple[int, str]]) -> None:
        """``results``: task numbers with the sha256 of the file that holds their result."""
        self._batches: dict[
            int, tuple[str, tuple[str, ...]]
        ] = {}  #: by no: id, the staged plan of each revision
        self._results: dict[int, str] = {}
        self._folders: set[str] = set()
        self._ids: set[str] = set()
        self._plan_users: Counter[str] = Counter()
        self._result_users: Counter[str] = Counter()
        for batch in batches:
            self._add(batch)
        for no, sha in results:
            self._results[no] = sha
            self._result_users[sha] += 1

    def has_folder(self, name: str) -> bool:
        """Whether a folder of ``logs/`` belongs to a batch."""
        return name in self._folders

    def has_view(self, name: str) -> bool:
        """Whether a folder of ``views/`` belongs to a batch."""
        return name.partition(OF_REVISION)[0] in self._ids

    def has_plan(self, sha256: str) -> bool:
        """Whether a batch was made from this staged plan."""
        return self._plan_users.get(sha256, 0) > 0

    def has_result(self, sha256: str) -> bool:
        """Whether a task's result is in this file."""
        return self._result_users.get(sha256, 0) > 0

    def committed(self, changes: Changes) -> Gone:
        """Follow one commit; what is of nobody since."""
        gone = Gone(logs=list(changes.purge_logs))
        for no, batch in changes.batches.items():
            if no not in self._batches or len(self._batches[no][1]) < batch.revision:
                self._add(batch)
        # a result never comes alone: a new one in the row ends the file of the one before
        if changes.refs or self._results:
            for no in changes.results:
                ref = changes.refs.get(no)
                self._hold(no, ref[0] if ref is not None else None, gone)
            for no in changes.purge_tasks:
                self._hold(no, None, gone)
        for no in changes.purge_batches:
            self._drop(no, gone)
        gone.results = [sha for sha in gone.results if not self.has_result(sha)]
        gone.plans = [sha for sha in gone.plans if not self.has_plan(sha)]
        return gone

    def _add(self, batch: Batch) -> None:
        held = self._batches[batch.no][1] if batch.no in self._batches else ()
        last = str((batch.plan or {}).get("sha256") or "")
        # what was leased under an older revision may run yet: its copy goes with the batch
        shas = (*(revision.replaced for revision in batch.revisions), last)
        self._batches[batch.no] = (batch.id, shas)
        self._folders.add(folder_name(batch.id))
        self._ids.add(batch.id)
        self._plan_users.update(sha for sha in shas[len(held) :] if sha)

    def _drop(self, no: int, gone: Gone) -> None:
        held = self._batches.pop(no, None)
        if held is None:
            return
        id_, shas = held
        name = folder_name(id_)
        self._folders.discard(name)
        self._ids.discard(id_)
        gone.folders.append(name)
        gone.views += [view_name(id_, revision) for revision in range(1, len(shas) + 1)]
        gone.plans += [sha for sha in shas if sha and not _less(self._plan_users, sha)]

    def _hold(self, no: int, sha: str | None, gone: Gone) -> None:
        before = self._results.pop(no, None)
        if sha is not None:
            self._results[no] = sha
            self._result_users[sha] += 1
        if before is not None and not _less(self._result_users, before):
            gone.results.append(before)


def _less(users: Counter[str], name: str) -> int:
    """One user less; how many there are yet."""
    users[name] -= 1
    left = users[name]
    if left <= 0:
        del users[name]
    return left
