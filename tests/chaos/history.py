"""The history of a campaign: one JSON object a line, ``k`` says what it tells, ``t`` is wall clock in seconds.

Everybody appends to one file, the commands of the rig too. A line is one write to a file opened with O_APPEND, which the
kernel does not mix with another: so their order is the order in which they were written.

| k | written by | tells |
|---|---|---|
| campaign | the campaign | seed, wanted rounds and tasks |
| submit, accepted, unanswered, refused | a client | a job (its tasks with ``after``), and what the broker said |
| drop | a client | a plan that was put into the inbox |
| cancel, cancelled | a client | what was cancelled, and the answer |
| round | the campaign | victim, deed (kill, stop), pid; of a child its task |
| missed | the campaign | the victim of that round had ended by itself |
| cont | the campaign | a stopped process goes on, if it is ``alive`` |
| up, down | the campaign | a rig is ready; it has ended by itself |
| trust | a client | a quarantined worker is trusted again |
| start, end | a command | ``tok`` (RIGBUS_TOKEN), task, attempt ``n``, ``pid`` and ``ppid`` |
| event | the follower | one event of the numbered log |
| size | the campaign | memory and descriptors of each process, bytes of the database |
| bearers | the campaign | living processes of attempts: [pid, token, task] |
| calm | the campaign | no more faults |
| settled | the campaign | all has ended (``ok``), ``took_s`` after calm |
| left | the campaign | processes that live though all has ended: ``when`` idle or stopped |
| batch, task | the snapshot | rows of the database at the end |
| over | the campaign | the history is whole |
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

Record = dict[str, Any]


class History:
    """The file, open for appending. Of any thread: each line is one write."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)

    def add(self, kind: str, /, **fields: Any) -> None:
        """One more record."""
        os.write(self._fd, json.dumps({"k": kind, "t": time.time(), **fields}).encode() + b"\n")

    def close(self) -> None:
        """No more of it."""
        os.close(self._fd)


def read(path: Path) -> Iterator[Record]:
    """Its records in order. A line that is no record comes as ``{"k": "torn"}``: there must be none, so the judge says so."""
    with path.open("rb") as lines:
        for line in lines:
            try:
                record = json.loads(line)
            except ValueError:
                record = None
            yield record if isinstance(record, dict) and "k" in record else {"k": "torn", "line": repr(line)}
