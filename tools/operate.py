"""What cancel, retry, pause, resume and drain share: one question to the broker, or one request file."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final, TypeVar

from ..bus.errors import WaitTimeout
from .common import print_json, say, seconds_option, talk
from .file_rows import whole
from .files import Folder, is_silent
from .reach import Reach
from .requests import receipt_of, wait_receipt, write_request

if TYPE_CHECKING:
    from ..bus.client.client import Client

F = TypeVar("F", bound=Callable[..., Any])
#: A bridge looks into the inbox several times a second; over a network mount what it writes is seen some seconds later.
ANSWER_S: Final = 15.0


def answer_option(function: F) -> F:
    """``--timeout``, for verbs that in file mode ask by a request file."""
    return seconds_option(
        "--timeout",
        "answer_s",
        default=ANSWER_S,
        help="In file mode: wait so long for the rig's answer; 0 only asks.",
    )(function)


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


def answered(
    rig: Reach, verb: str, args: dict[str, Any], batch_id: str | None, answer_s: float
) -> tuple[dict[str, Any] | None, dict[str, str]]:
    """Ask by a file: the rig's answer, and where both files lie. None where nobody can answer now, or shall.

    Raises:
        Refused: the rig refused it.  WaitTimeout: a rig that is there has not answered; it may do it yet.
    """
    file = write_request(rig.paths.shared, verb, args, batch_id)
    places = {"request": str(file), "receipt": str(receipt_of(file))}
    if not answer_s or is_silent(rig.paths.shared):
        return None, places
    receipt = wait_receipt(file, time.monotonic() + answer_s)
    if receipt is None:
        raise WaitTimeout(f"no answer within {answer_s:g} s; it will be {places['receipt']}")
    answer = receipt.get("answer")
    return answer if isinstance(answer, dict) else {}, places


def only_asked(verb: str, places: dict[str, str], as_json: bool) -> int:
    """Say where the answer will be, when the rig is there again."""
    if as_json:
        print_json({"schema": "rigbus.request/1", "verb": verb, **places})
    else:
        talk(f"written: {places['request']}; the rig's answer will be {places['receipt']}")
    return 0


def deed(
    rig: Reach,
    verb: str,
    kind: str,
    id_: str,
    answer_s: float,
    do: Callable[[Client, list[str] | None, str | None], dict[str, Any]],
    **more: str,
) -> tuple[dict[str, Any] | None, dict[str, str]]:
    """Something done with a task or a batch, over the bus by ``do(client, ids, batch)``, else by a file: see `answered`."""
    ids, batch = ([id_], None) if kind == "task" else (None, id_)
    if rig.client is not None:
        return do(rig.client, ids, batch), {}
    args: dict[str, Any] = {key: value for key, value in more.items() if value}
    return answered(rig, verb, args if ids is None else {"ids": ids, **args}, batch, answer_s)


def worker_verb(rig: Reach, verb: str, worker: str, as_json: bool, said: str, answer_s: float) -> int:
    """pause, resume or drain of a worker or of all."""
    places: dict[str, str] = {}
    if rig.client is None:
        answer, places = answered(rig, verb, {"worker": worker}, None, answer_s)
        if answer is None:
            return only_asked(verb, places, as_json)
    else:
        answer = _order(rig.client, verb, worker)
    if as_json:
        print_json({"schema": f"rigbus.{verb}/1", "worker": worker, **answer, **places})
    else:
        running = whole(answer.get("running"))
        left = (
            f"; {running} {'task still runs' if running == 1 else 'tasks still run'} there" if running else ""
        )
        say(f"{worker}: {said}{left}")
    return 0


def _order(bus: Client, verb: str, worker: str) -> dict[str, Any]:
    return bus.drain(worker) if verb == "drain" else bus.control(verb, worker)
