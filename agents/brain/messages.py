"""One batch of a plan, and the messages by which its tasks are declared. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from ...bus.wire import MAX_PAYLOAD_BYTES, pack

#: Bounds of one message: its payloads, and its header, which is one frame (PROTOCOL §9: 1 MiB).
CHUNK_BYTES: Final = 2 << 20
HEAD_BYTES: Final = 512 << 10


class Unplannable(Exception):
    """The plan cannot become tasks; the text says what, where and the fix."""


@dataclass(frozen=True, slots=True)
class Run:
    """One batch of a plan. Paths are absolute texts; ``config`` is what the submitter gave."""

    batch: str
    name: str
    state_id: str
    sha256: str
    staged: str
    original: str
    view: str
    batch_path: str
    config: Mapping[str, Any]
    priority: int | None = None
    revision: int = 1
    files: str = ""  #: a hash of what the staged copy has beside its plan.md

    def plan_part(self) -> dict[str, str]:
        """What a worker needs to make the plan's view."""
        return {
            "sha256": self.sha256,
            "staged": self.staged,
            "original": self.original,
            "view": self.view,
            "batch_path": self.batch_path,
        }

    def built_ins(self) -> dict[str, str]:
        """The variables that every plan has."""
        return {"PLAN_PATH": self.view, "BATCH_ID": self.batch, "BATCH_PATH": self.batch_path}


@dataclass(slots=True)
class Message:
    """One BRAIN message's tasks: specs with their payloads."""

    specs: list[dict[str, Any]] = field(default_factory=list)
    payloads: list[bytes] = field(default_factory=list)
    head: int = 0  #: bytes of the packed specs, about
    body: int = 0  #: bytes of the payloads

    def add(self, spec: dict[str, Any], payload: Mapping[str, Any], head: int = 0) -> None:
        """``head`` is about the packed size of ``spec``, bytes, where the caller knows it.

        Raises:
            Unplannable: the payload is larger than a task's may be.
        """
        packed = pack(payload)
        if len(packed) > MAX_PAYLOAD_BYTES:
            raise Unplannable(
                f"task {spec['key']!r} needs {len(packed)} bytes of values, {MAX_PAYLOAD_BYTES} are allowed; "
                "write large values to a file and pass its path"
            )
        self.specs.append(spec)
        self.payloads.append(packed)
        self.head += head or len(pack(spec))
        self.body += len(packed)

    @property
    def full(self) -> bool:
        """Whether its bytes are enough for one message."""
        return self.body > CHUNK_BYTES or self.head > HEAD_BYTES
