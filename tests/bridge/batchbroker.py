"""A broker of batch files that a test plays: tasks end when the test says so."""

from __future__ import annotations

from typing import Any

from rigbus.bridge.folder.loop.flows import Ask
from rigbus.bus.client.work import task_id
from rigbus.bus.wire import Envelope, Verb, pack, unpack

BAD = ("dead", "cancelled", "expired", "skipped")


class BatchBroker:
    """``asked`` holds what came. ``auto``: every task is done as soon as it is submitted."""

    def __init__(self, *, auto: bool = False) -> None:
        self.asked: list[Ask] = []
        self.auto = auto
        self.batches: dict[str, dict[str, Any]] = {}
        self.tasks: dict[str, dict[str, Any]] = {}
        self.values: dict[str, bytes] = {}
        self.payloads: dict[str, Any] = {}
        self.ran: list[str] = []  #: custom ids, whenever a task began
        self.events: list[list[Any]] = []
        self.oldest = 1
        self.busy = 0  #: answers that are BUSY before the next one
        self.by_reference: set[str] = set()
        self.models: list[str] = []
        self.page = 3  #: rows and events in one answer

    # -- what the test does ----------------------------------------------------------------------------------

    def end(self, custom_id: str, state: str = "done", error: str | None = None, value: Any = None) -> None:
        """One task ends."""
        row = next(
            t for t in self.tasks.values() if t["meta"]["custom_id"] == custom_id and t["state"] == "ready"
        )
        row |= {"state": state, "error": error, "ended_at": 1_770_576_370.0}
        row["attempts"] = {"task": int(state == "dead"), "crash": 0, "infra": 0}
        if state == "done":
            given = self.payloads[row["id"]]
            self.values[row["id"]] = pack(value if value is not None else answer(given))
        self._happen(f"task.{row['type']}.{state}", row)

    def cancel(self) -> None:
        """Every batch is cancelled, with what has not ended."""
        for batch in self.batches.values():
            batch |= {"closed": True, "cancelled": True}
        for row in list(self.tasks.values()):
            if row["state"] == "ready":
                self.end(row["meta"]["custom_id"], "cancelled", "cancelled by a test")

    def revive(self, custom_id: str) -> None:
        """`rigbus retry` of one task."""
        row = next(t for t in self.tasks.values() if t["meta"]["custom_id"] == custom_id)
        assert row["state"] in BAD
        row["state"] = "ready"
        next(b for b in self.batches.values() if b["id"] == row["batch"])["cancelled"] = False

    def forget(self) -> None:
        """Everything has been purged."""
        self.batches.clear()
        self.tasks.clear()

    def ready(self) -> list[str]:
        return [t["meta"]["custom_id"] for t in self.tasks.values() if t["state"] == "ready"]

    # -- the bus ---------------------------------------------------------------------------------------------

    def __call__(self, ask: Ask) -> Envelope:
        self.asked.append(ask)
        if ask.verb is Verb.SUBMIT:
            return self._submit(ask)
        if ask.verb is Verb.EVENTS:
            return self._log(ask.header)
        what = ask.header["what"]
        if what == "workers":
            return Envelope(Verb.OK, {"workers": [{"needs": [f"model:{m}" for m in self.models]}]})
        if what == "rows":
            return self._rows([self.tasks[i] for i in ask.header["ids"] if i in self.tasks], values=True)
        if what == "result":
            at = ask.header["offset"]
            return Envelope(Verb.OK, {"rows": []}, [self.values[ask.header["id"]][at : at + 50]])
        named = ask.header.get("batch") or ask.header.get("id")
        batch = next((b for b in self.batches.values() if b["id"] == named), None)
        if batch is None:
            return Envelope(Verb.ERROR, {"code": "not_found", "message": f"no batch {named}"})
        if what == "batch":
            return Envelope(Verb.OK, self._row_of(batch))
        assert what == "tasks"
        rows = [t for t in self.tasks.values() if t["batch"] == named and t["state"] in ask.header["states"]]
        page = [t for t in rows if t["no"] > ask.header["cursor"]][: self.page]
        answer_ = self._rows(page, values=bool(ask.header.get("full")))
        answer_.header["cursor"] = page[-1]["no"] if len(page) == self.page else None
        if not ask.header.get("full"):
            for row in answer_.header["rows"]:
                row.pop("meta")  # as the broker: only with `full`
        return answer_

    def _submit(self, ask: Ask) -> Envelope:
        if self.busy:
            self.busy -= 1
            return Envelope(Verb.BUSY, {"retry_after_s": 0.01, "bound": "tasks", "message": "full"})
        head, specs = ask.header["batch"], ask.header["tasks"]
        known = self.batches.get(head["key"])
        fresh = [s for s in specs if known is None or task_id(known["id"], s["key"]) not in self.tasks]
        if known is not None and known["closed"] and fresh:
            return Envelope(Verb.CONFLICT, {"message": "submitted before, without these", "key": head["key"]})
        if known is None:
            id_ = f"20260101_000000_{len(self.asked):06x}"
            known = self.batches[head["key"]] = {"id": id_, "head": head, "closed": False, "cancelled": False}
        for spec, payload in zip(specs, ask.body, strict=True):
            id_ = task_id(known["id"], spec["key"])
            if id_ in self.tasks:
                assert self.payloads[id_] == unpack(payload), "the same key with another content"
                continue
            row = {**spec, "id": id_, "no": len(self.tasks) + 1, "batch": known["id"], "state": "ready"}
            self.tasks[id_] = row
            self.payloads[id_] = unpack(payload)
            self.ran.append(spec["meta"]["custom_id"])
            if self.auto:
                self.end(spec["meta"]["custom_id"])
        known["closed"] = known["closed"] or not head.get("open")
        ids = [task_id(known["id"], s["key"]) for s in specs]
        return Envelope(Verb.ACCEPTED, {"batch": known["id"], "ids": ids, "states": [], "seq": 1})

    def _row_of(self, batch: dict[str, Any]) -> dict[str, Any]:
        states = [t["state"] for t in self.tasks.values() if t["batch"] == batch["id"]]
        counts = {state: states.count(state) for state in ("ready", "done", *BAD)}
        state = "running"
        if batch["closed"] and not counts["ready"]:
            good = counts["done"] == len(states)
            state = "cancelled" if batch["cancelled"] else "complete" if good else "failed"
        return {"id": batch["id"], "state": state, "tasks": counts, "total": len(states), "seq": 1}

    def _rows(self, rows: list[dict[str, Any]], *, values: bool) -> Envelope:
        out, body = [], []
        for row in rows:
            by_ref = values and row["meta"]["custom_id"] in self.by_reference
            out.append({**row, "ref": {"sha256": "0" * 64, "bytes": 1}} if by_ref else dict(row))
            body.append(b"" if by_ref else self.values.get(row["id"], b""))
        return Envelope(Verb.OK, {"rows": out}, body if values else [])

    def _happen(self, topic: str, row: dict[str, Any]) -> None:
        seq = len(self.events) + 1
        self.events.append([seq, seq - 1, 1.0, "c", topic, row["id"], row["batch"], {"key": row["key"]}])

    def _log(self, header: dict[str, Any]) -> Envelope:
        since, last = min(header["since"], len(self.events)), len(self.events)
        if since + 1 < self.oldest:
            return Envelope(Verb.RESNAPSHOT, {"oldest": self.oldest, "last": last})
        found = [e for e in self.events if e[0] > since]
        return Envelope(
            Verb.EVENTS, {"events": found[: self.page], "last": last, "more": len(found) > self.page}
        )


def answer(payload: dict[str, Any]) -> dict[str, Any]:
    """What a model says to the request in a payload."""
    usage = {"prompt_tokens": 2, "completion_tokens": 3, "cached_tokens": 0}
    if "texts" in payload:
        return {"vectors": [[1.0, 0.0] for _ in payload["texts"]], "model": "m", "usage": usage}
    asked = payload.get("prompt") or payload["messages"][-1]["content"]
    return {"text": f"echo {asked}", "model": "m", "finish": "stop", "usage": usage}
