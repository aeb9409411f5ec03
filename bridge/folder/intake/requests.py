"""Request files: what a verb in file mode asks the rig for, answered by a receipt beside it.

A request without a receipt is done again after a crash; every verb here may be repeated without harm, and a submit
bears the request's id as its key.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Final

from ....bus.errors import RigbusError
from ....bus.wire import Verb
from ..alerts.alerts import BridgeAlerts
from ..contract.layout import iso, to_json
from ..contract.receipts import PLAIN_NAME, Invalid, Problem, Receipt, problem_from
from ..loop.clock import Clock
from ..loop.flows import Flow, Idle, ask, share
from ..share.ops import Entry, entries, read, rmdir, scan, stat, write
from . import core
from .core import FileRequest, parse_request
from .drafts import given_settings
from .moves import KIND, Stuck
from .taking import INBOX, Declined, Taker

log = logging.getLogger(__name__)

HALF_S: Final = 1.0  #: what is no JSON may be half written by somebody who does not rename
ALERT_VERBS: Final = frozenset({"ack", "alert-test"})
_BATCH_ID: Final = re.compile(r"\d{8}_\d{6}")


class Requests:
    """Answers request files."""

    def __init__(self, taker: Taker, clock: Clock, alerts: BridgeAlerts | None = None) -> None:
        self._taker, self._clock, self._alerts = taker, clock, alerts

    def answer(self, path: str) -> Flow[None]:
        """Do what ``<inbox>/<path>`` asks for, and write its receipt.

        Raises:
            ShareAway, Later: not now.
        """
        stem = path.rpartition("/")[2].removesuffix(".json")
        asked = yield from self._read(path)
        if asked is None:
            return
        if isinstance(asked, Problem):
            yield from self._refused(stem, "", (asked,))
            return
        log.info("request %s: %s", stem, asked.verb)
        try:
            if asked.verb in ("submit", "revise"):
                yield from self._submit(asked)
                return
            if asked.verb in ALERT_VERBS and self._alerts is not None:
                yield from self._done(stem, asked, self._alerts.asked(asked.verb, asked.args))
                return
            verb, header = question(asked)
            answer = yield from ask(verb, header)
        except Declined as e:
            if not (yield from self._refused(stem, asked.verb, e.problems)):
                raise Stuck("it is refused; its receipt is written when the share can be") from None
            self._taker.journal.leave(e.drop_id)
        except Invalid as e:
            yield from self._refused(stem, asked.verb, e.problems)
        except RigbusError as e:
            yield from self._refused(stem, asked.verb, (problem_from(str(e)),), e.exit_code)
        else:
            yield from self._done(stem, asked, answer.header)

    def _read(self, path: str) -> Flow[FileRequest | Problem | None]:
        """The request; None when it has gone. Rubbish is looked at twice."""
        found: FileRequest | Problem | None = None
        for last in (False, True):
            (result,) = yield from share(KIND, [read(f"{INBOX}/{path}", core.MAX_SETTINGS_BYTES + 1)])
            if not result["ok"]:
                if result["errno"] == "ENOENT":
                    return None
                return Problem(str(result["what"]), path, "write the request again")
            found = parse_request(path, result["data"])
            if not isinstance(found, Problem) or last:
                break
            yield Idle(HALF_S)
        return found

    # -- submit ----------------------------------------------------------------------------------------------

    def _submit(self, asked: FileRequest) -> Flow[None]:
        """A plan that came with the request, one that lies in the inbox, or one in ``plans/``."""
        if any(entry.get("request") == asked.id for entry in self._taker.journal.entries().values()):
            return  # taken in before the share went away or the bridge was killed: it goes on, and is answered, from there
        given, revises = given_settings(asked.args), None
        name = asked.args.get("plan")
        parts = [p for p in name.split("/") if p] if isinstance(name, str) else []
        plan = parts[-1].removesuffix(".md") if parts else ""
        if plan == "plan" and len(parts) > 1:
            plan, parts = parts[-2], parts[:-1]  # …/name/plan.md
        if not PLAIN_NAME.match(plan):
            fix = "give the name of a plan in plans/: letters, digits, . _ - (64 at most)"
            raise Invalid(Problem(f"{str(name)[:80]!r} is no plan's name", "args", fix))
        if asked.verb == "revise":
            given, revises = yield from self._revises(asked, plan, given)
        places = [f"{INBOX}/.incoming-{asked.id}/{plan}", f"{INBOX}/.incoming-{asked.id}"]
        places += [f"{INBOX}/{plan}", f"{INBOX}/{plan}.md"] if parts[-2:-1] == [INBOX] else []
        places.append(f"plans/{plan}")
        results = yield from share(KIND, [stat(place) for place in places])
        for place, result in zip(places, results, strict=True):
            if result["ok"] and result["entry"] and result["entry"][1] in ("dir", "file"):
                listing = yield from self._listing(place)
                is_folder = result["entry"][1] == "dir"
                yield from self._taker.take_in(
                    place, plan, is_folder, listing, plan, given, key=asked.id, revises=revises
                )
                if place == places[0]:
                    yield from share(KIND, [rmdir(f"{INBOX}/.incoming-{asked.id}")])
                return
        fix = f"copy it to plans/{plan}/, or drop it into inbox/"
        raise Invalid(Problem(f"there is no plan {plan!r} in the shared folder", "args", fix))

    def _revises(
        self, asked: FileRequest, plan: str, given: core.Settings
    ) -> Flow[tuple[core.Settings, dict[str, Any]]]:
        """What a `revise` asks for, with the batch's own configuration where the request says nothing else.

        Raises:
            Invalid: it names no batch, or one of another plan.  NotFound: there is no such batch.
        """
        named = asked.batch_id or asked.args.get("batch")
        if not isinstance(named, str) or not named:
            raise Invalid(
                Problem("it does not say which batch", "batch_id", "give the id of a batch of this plan")
            )
        row = (yield from ask(Verb.QUERY, {"what": "batch", "id": named})).header
        if row.get("kind") != "plan" or row.get("plan") != plan:
            of = f"a run of the plan {row.get('plan')!r}" if row.get("plan") else f"of kind {row.get('kind')}"
            fix = f"name a batch of the plan {plan!r}, or submit it as a new one"
            raise Invalid(Problem(f"batch {row.get('id')} is {of}", "batch_id", fix))
        base = (row.get("spec") or {}).get("config") or {}
        reason = str(asked.args.get("reason") or "revised from the shared folder")[:500]
        return replace(given, base=base), {"batch": row["id"], "reason": reason}

    def _listing(self, place: str) -> Flow[str]:
        """The hash of what lies there, so that the same request of a changed plan is another drop."""
        (result,) = yield from share(KIND, [scan(place)])
        found: list[Entry] = entries(result) if result["ok"] else []
        return core.listing_hash(sorted(found))

    # -- receipts --------------------------------------------------------------------------------------------

    def _refused(
        self, stem: str, verb: str, problems: tuple[Problem, ...], exit_code: int | None = None
    ) -> Flow[bool]:
        log.warning("request %s (%s) refused: %s", stem, verb or "?", "; ".join(p.what for p in problems[:5]))
        at = self._clock.wall()
        receipt = Receipt(verb or stem, "refused", at, problems=problems, exit_code=exit_code)
        return (yield from self._taker.answer(receipt, stem))

    def _done(self, stem: str, asked: FileRequest, answer: Mapping[str, Any]) -> Flow[None]:
        at = self._clock.wall()
        fields = {
            "schema": "rigbus.receipt/1",
            "name": asked.verb,
            "id": stem,
            "state": "accepted",
            "at": iso(at, self._clock.utc_offset_s(at)),
            "batch_id": asked.batch_id,
            "answer": dict(answer),
        }
        path = f"{INBOX}/{core.REQUESTS}/{stem}.receipt.json"
        (result,) = yield from share(KIND, [write(path, to_json(fields), fsync=True)])
        if not result["ok"]:
            log.warning("no receipt for request %s (%s is done): %s", stem, asked.verb, result["what"])


def question(asked: FileRequest) -> tuple[Verb, dict[str, Any]]:
    """The verb of the bus that a request stands for. Pure.

    Raises:
        Invalid: an unknown verb, or it does not say of what.
    """
    args, verb = asked.args, asked.verb
    if verb in ("cancel", "retry"):
        what = _named(asked)
        if verb == "retry":
            return Verb.REQUEUE, what
        return Verb.CANCEL, {
            **what,
            "reason": str(args.get("reason") or "cancelled from the shared folder")[:500],
        }
    if verb in ("pause", "resume", "drain"):
        worker = args.get("worker") or args.get("id") or "all"
        if not isinstance(worker, str):
            raise Invalid(Problem("worker is not a text", "args", 'give a worker\'s id, or "all"'))
        if verb == "drain":
            return Verb.DRAIN, {"worker": worker}
        return Verb.CONTROL, {"action": verb, "worker": worker}
    if verb == "why":
        of = args.get("id")
        if of is not None and not isinstance(of, str):
            raise Invalid(
                Problem("id is not a text", "args", "give the id of a task, a batch or a worker, or none")
            )
        return Verb.QUERY, {"what": "why", "id": of}
    known = "submit, revise, cancel, retry, pause, resume, drain, why, ack, alert-test"
    raise Invalid(Problem(f"the verb {verb[:40]!r} is unknown", "verb", f"one of {known}"))


def _named(asked: FileRequest) -> dict[str, Any]:
    """``{"batch": id}`` or ``{"ids": [...]}``, from ``batch_id`` and the args."""
    ids = asked.args.get("ids")
    one = asked.batch_id or asked.args.get("batch") or asked.args.get("id")
    if isinstance(ids, list) and ids and all(isinstance(i, str) for i in ids):
        return {"ids": ids}
    if isinstance(one, str) and one:
        is_batch = one in (asked.batch_id, asked.args.get("batch")) or _BATCH_ID.match(one) is not None
        return {"batch": one} if is_batch else {"ids": [one]}
    raise Invalid(Problem("it does not say of what", "args", 'give "batch_id", or "ids" in args'))
