"""What cancel, retry, pause, resume and drain share: one question to the broker, or one request file."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from .common import print_json, talk
from .files import Folder
from .reach import Reach
from .requests import receipt_of, write_request

if TYPE_CHECKING:
    from ..bus.client.client import Client


def find(rig: Reach, ref: str) -> tuple[str, str, str]:
    """``(kind, id, name)`` of a task or a batch.

    Raises:
        NotFound: there is none, or several.
    """
    if rig.client is None:
        kind, row = Folder(rig.paths.shared).find(ref)
        return kind, str(row["id"]), str(row["name"])
    from . import ask

    kind, row = ask.find(rig.client, ref)
    return kind, str(row["id"]), str(row["key"] if kind == "task" else row["name"])


def request(rig: Reach, verb: str, args: dict[str, Any], batch_id: str | None, as_json: bool) -> int:
    """Ask by a file, and say where the answer will be."""
    file = write_request(rig.paths.shared, verb, args, batch_id)
    if as_json:
        out = {
            "schema": "rigbus.request/1",
            "verb": verb,
            "request": str(file),
            "receipt": str(receipt_of(file)),
        }
        print_json(out)
    else:
        talk(f"written: {file}; the rig's answer will be {receipt_of(file)}")
    return 0


def request_for(rig: Reach, verb: str, kind: str, id_: str, as_json: bool, **more: str) -> int:
    """Ask for something to be done with a task or a batch."""
    args: dict[str, Any] = {key: value for key, value in more.items() if value}
    if kind == "batch":
        return request(rig, verb, args, id_, as_json)
    return request(rig, verb, {"ids": [id_], **args}, None, as_json)


def worker_verb(rig: Reach, verb: str, worker: str, as_json: bool, said: str) -> int:
    """pause, resume or drain of a worker or of all."""
    if rig.client is None:
        return request(rig, verb, {"worker": worker}, None, as_json)
    answer = _order(rig.client, verb, worker)
    if as_json:
        print_json({"schema": f"rigbus.{verb}/1", "worker": worker, **answer})
    else:
        running = answer.get("running")
        click.echo(f"{worker}: {said}" + (f"; {running} tasks still run there" if running else ""))
    return 0


def _order(bus: Client, verb: str, worker: str) -> dict[str, Any]:
    return bus.drain(worker) if verb == "drain" else bus.control(verb, worker)
