"""Where the time of one call goes: each message of it as the broker's tap saw it, between the client's own clock readings.

The broker stamps a message that comes when it begins with it, and one that goes when it is sent, which is after its
commit. So *submit* and *result* are the broker's own turns, each with one commit; the rest is the way and the others.
"""

from __future__ import annotations

import statistics
import time
from typing import TYPE_CHECKING, Any, Final

from ...bus.errors import RigbusError
from ...bus.wire import unpack

if TYPE_CHECKING:
    import zmq

    from ...bus.client.client import Client

#: Hops in their order: the name, and the verb that ends it.
HOPS: Final = (
    ("client to broker", "SUBMIT"),
    ("submit, commit, lease", "LEASE"),
    ("worker", "RESULT"),
    ("result, commit, end", "ENDED"),
    ("broker to client", ""),
)
_SETTLE_MS: Final = 1000


def measure(client: Client, count: int, data: Any) -> dict[str, float]:
    """Medians in µs by hop, of ``count`` calls one at a time.

    Raises:
        RigbusError: the tap shows nothing.
    """
    import zmq

    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context(io_threads=1)
    try:
        tap = context.socket(zmq.SUB)
        tap.setsockopt(zmq.LINGER, 0)
        tap.setsockopt(zmq.RCVHWM, 100_000)
        tap.subscribe(b"tap.")
        tap.connect(str(client.welcome["events"]))
        _wait_tapped(client, tap)
        taken = []
        for _ in range(count + 10):
            began = time.time()
            client.call("noop", {"data": data}, timeout_s=30.0)
            taken.append((began, time.time()))
        return _medians(taken[10:], _stamps(tap))
    finally:
        context.destroy(0)


def _wait_tapped(client: Client, tap: zmq.Socket[bytes]) -> None:
    """A subscription takes a moment to reach the broker."""
    for _ in range(50):
        client.query("facts", scope="bench")
        if tap.poll(100):
            return
    raise RigbusError("the broker's tap shows no message; this is no benchmark")


def _stamps(tap: zmq.Socket[bytes]) -> list[tuple[str, float]]:
    """(verb, Unix seconds) of each tapped message of interest, in their order."""
    wanted = {verb for _, verb in HOPS}
    found: list[tuple[str, float]] = []
    while tap.poll(_SETTLE_MS if not found else 100):
        record = unpack(tap.recv_multipart()[1])
        if record["verb"] in wanted:
            found.append((str(record["verb"]), float(record["ts"])))
    return found


def _medians(calls: list[tuple[float, float]], stamps: list[tuple[str, float]]) -> dict[str, float]:
    spent: dict[str, list[float]] = {name: [] for name, _ in HOPS}
    at = 0
    for began, ended in calls:
        seen: dict[str, float] = {"": ended}
        while at < len(stamps) and stamps[at][1] <= ended:
            verb, ts = stamps[at]
            if ts >= began:
                seen.setdefault(verb, ts)
            at += 1
        if len(seen) < len(HOPS):
            continue  # the tap may drop
        last = began
        for name, verb in HOPS:
            spent[name].append((seen[verb] - last) * 1e6)
            last = seen[verb]
    return {name: statistics.median(values) for name, values in spent.items() if values}
