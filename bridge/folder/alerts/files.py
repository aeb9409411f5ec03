"""Alerts as files: `alerts/<key>.json` in the share, the journal on the local disk, and orders of the local machine.

The journal comes first: what the share shows was durable here before.
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

from ....bus.alerting.core import Alert
from ....bus.paths import write_atomic
from ..contract.layout import File, digest, iso, mtime_ns, to_json
from ..share.seal import MIRRORED_BY, seal

log = logging.getLogger(__name__)

FOLDER: Final = "alerts"
JOURNAL: Final = "alerts.json"  #: in the state folder
ORDERS: Final = (
    "doors/alerts"  #: in the state folder: `<uuid>.json`, written by `rigbus alerts` beside the rig
)
MAX_ORDER_BYTES: Final = 64 << 10
MAX_ORDERS: Final = 100  #: a turn
SCHEMA: Final = "rigbus.alert/1"
_TIMES: Final = ("first_at", "raised_at", "acked_at", "cleared_at")


def alert_fields(alert: Alert, utc_offset_s: float) -> dict[str, Any]:
    """``rigbus.alert/1``: what is empty is left out, times are naive local ISO-8601."""
    out: dict[str, Any] = {"schema": SCHEMA, "key": alert.key, "rule": alert.rule}
    out |= {"severity": alert.severity.value, "state": alert.state.value, "title": alert.title}
    out |= {
        name: getattr(alert, name) for name in ("subject", "fix", "by", "note", "why") if getattr(alert, name)
    }
    out |= {"details": dict(alert.details), "times": alert.times}
    return out | {t: iso(getattr(alert, t), utc_offset_s) for t in _TIMES if getattr(alert, t)}


def alert_file(alert: Alert, utc_offset_s: float) -> File:
    """The alert's file, sealed as all of the mirror's; its mtime is when the alert changed."""
    fields = alert_fields(alert, utc_offset_s)
    stamps = {"mirrored_by": MIRRORED_BY, "as_of": iso(alert.changed_at, utc_offset_s)}
    body = to_json({**fields, **stamps})
    return File(
        f"{FOLDER}/{alert.key}.json", seal(body.removesuffix(b"\n")), mtime_ns(alert.changed_at), digest(body)
    )


class Book:
    """The journal of alerts and the orders that wait, below the state folder."""

    def __init__(self, state: Path) -> None:
        self._file, self._orders = state / JOURNAL, state / ORDERS
        self._saved: bytes | None = None

    def load(self) -> dict[str, Any] | None:
        """What was kept; None the very first time. A damaged journal is put aside: what is still so is raised again."""
        try:
            data = self._file.read_bytes()
        except FileNotFoundError:
            return None
        except OSError as e:
            log.warning("%s cannot be read (%s): alerts begin anew", self._file, e.strerror)
            return None
        try:
            kept = json.loads(data)
            if not isinstance(kept, dict) or kept.get("schema") != "rigbus.alerts/1":
                raise ValueError("no journal of alerts")
        except (ValueError, RecursionError) as e:
            log.warning("%s is damaged (%s): put aside; alerts begin anew", self._file, e)
            os.replace(self._file, self._file.with_suffix(".damaged"))
            return None
        self._saved = data
        return kept

    def save(self, kept: Mapping[str, Any]) -> None:
        """Durably; the same again costs nothing.

        Raises:
            OSError: the disk refuses.
        """
        data = json.dumps({"schema": "rigbus.alerts/1", **kept}, default=str).encode()
        if data != self._saved:
            write_atomic(self._file, data)
            self._saved = data

    def orders(self) -> Iterator[tuple[str, dict[str, Any]]]:
        """``(id, {verb, args})`` of the orders that wait, oldest name first; call :meth:`done` when one is."""
        try:
            names = sorted(
                e.name for e in os.scandir(self._orders) if e.name.endswith(".json") and e.name[0] != "."
            )
        except OSError:
            return
        for name in names[:MAX_ORDERS]:
            file = self._orders / name
            try:
                with file.open("rb") as opened:
                    order = json.loads(opened.read(MAX_ORDER_BYTES + 1))
                if not isinstance(order.get("verb"), str) or not isinstance(order.get("args"), dict):
                    raise ValueError("no order")
            except FileNotFoundError:
                continue
            except (OSError, ValueError, AttributeError, RecursionError) as e:
                log.warning("%s is no order for alerts (%s): removed", file, e)
                self.done(name.removesuffix(".json"))
                continue
            yield name.removesuffix(".json"), order

    def done(self, order: str) -> None:
        """It was carried out, or will never be."""
        try:
            (self._orders / f"{order}.json").unlink(missing_ok=True)
        except OSError as e:
            log.warning("order %s cannot be removed: %s", order, e)
