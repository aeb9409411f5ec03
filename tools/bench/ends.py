"""Waiting for the end of a plan's batch by its event: asking again and again would be work for the broker."""

from __future__ import annotations

import time
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final

from ...bus.client.follow import event_of
from ...bus.errors import BadFrame, RigbusError
from ...bus.wire import unpack

if TYPE_CHECKING:
    import zmq

    from ...bus.client.client import Client
    from .rig import BenchRig

ENDED: Final = ("complete", "failed", "cancelled")
_ASK_S: Final = 2.0  #: an event is a hint and may be lost


class Ends:
    """Hears the ends of plans; make it before the submit. Of the client's thread."""

    def __init__(self, rig: BenchRig, client: Client) -> None:
        import zmq

        self._rig, self._client = rig, client
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context(io_threads=1)
        self._events = self._context.socket(zmq.SUB)
        self._events.setsockopt(zmq.LINGER, 0)
        self._events.subscribe(b"p.batch.plan.")
        self._events.connect(str(client.welcome["events"]))

    def __enter__(self) -> Ends:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._context.destroy(0)

    def wait(self, batch: str, timeout_s: float) -> dict[str, Any]:
        """The batch's row when it has ended.

        Raises:
            RigbusError: not in time, or a process of the rig has ended.
        """
        deadline, ask_at = time.monotonic() + timeout_s, time.monotonic() + _ASK_S
        while True:
            if self._heard(batch) or time.monotonic() >= ask_at:
                ask_at = time.monotonic() + _ASK_S
                row = self._client.query("batch", id=batch)
                if row["state"] in ENDED:
                    return row
            self._rig.check()
            self._client.tend()
            if time.monotonic() > deadline:
                raise RigbusError(f"batch {batch} has not ended after {timeout_s:g} s; this is no benchmark")

    def _heard(self, batch: str) -> bool:
        if not self._events.poll(200):
            return False
        try:
            event = event_of(unpack(self._events.recv_multipart()[1]))
        except (BadFrame, IndexError):
            return False
        return event.batch == batch and event.topic.rpartition(".")[2] in ENDED
