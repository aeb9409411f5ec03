"""ntfy, Home Assistant and webhooks: an alert -> one request. Building it is pure; `send` speaks."""

from __future__ import annotations

import hashlib
import hmac
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final
from urllib.parse import quote

from ...bus.alerting.core import Alert, State
from ...bus.alerting.rules import Severity
from ...bus.errors import ConfigError
from .outbox import version_of
from .secrets import secret_of
from .web import call, is_web

_PRIORITY: Final = {Severity.INFO: 2, Severity.WARNING: 4, Severity.CRITICAL: 5}
_TAG: Final = {
    Severity.INFO: "information_source",
    Severity.WARNING: "warning",
    Severity.CRITICAL: "rotating_light",
}
#: What each type tells: a phone need not ring because somebody has seen it.
STATES: Final = {"ntfy": frozenset({State.RAISED, State.CLEARED})}


@dataclass(frozen=True, slots=True)
class Request:
    """A POST. ``headers`` may bear secrets: never log one."""

    url: str
    body: bytes
    headers: Mapping[str, str]


Build = Callable[[Alert, float], Request]  #: (alert, Unix seconds) -> what to send


def alert_object(alert: Alert) -> dict[str, Any]:
    """``rigbus.alert/1`` for other programs. Times are Unix seconds here: nobody knows whose zone a naive one would be."""
    out: dict[str, Any] = {"schema": "rigbus.alert.notice/1", "key": alert.key, "rule": alert.rule}
    out |= {"severity": alert.severity.value, "state": alert.state.value, "title": alert.title}
    out |= {"subject": alert.subject, "fix": alert.fix, "details": dict(alert.details), "times": alert.times}
    out |= {
        "raised_at": alert.raised_at,
        "acked_at": alert.acked_at or None,
        "cleared_at": alert.cleared_at or None,
    }
    return out | {"by": alert.by or None, "note": alert.note or None}


def builder(name: str, settings: Mapping[str, Any], environ: Mapping[str, str]) -> Build:
    """What makes the requests of a sink (any type but `hue`).

    Raises:
        ConfigError: a secret of it is not there.
    """
    kind = settings["type"]
    if kind == "ntfy":
        topic = secret_of(name, settings, "topic", environ)
        token = secret_of(name, settings, "token", environ)
        return lambda alert, at: ntfy(alert, settings["server"], topic, token, settings.get("click"))
    if kind == "homeassistant":
        hook = secret_of(name, settings, "webhook", environ)
        url = f"{settings['server'].rstrip('/')}/api/webhook/{quote(hook, safe='')}"
        return lambda alert, at: Request(url, _json(alert_object(alert)), _headers())
    url = secret_of(name, settings, "url", environ)
    if not is_web(url):
        raise ConfigError(
            f"[notify.sinks.{name}]: its url is none; write http://host[:port]/path or https://…"
        )
    secret = secret_of(name, settings, "secret", environ)
    return lambda alert, at: webhook(alert, url, secret, at)


def ntfy(alert: Alert, server: str, topic: str, token: str, click: str | None) -> Request:
    """As JSON, since headers bear ASCII only."""
    over = alert.state is State.CLEARED
    lines = [alert.title, *([alert.fix] if alert.fix and not over else [])]
    fields: dict[str, Any] = {
        "topic": topic,
        "title": f"{alert.rule}: {'over' if over else alert.severity.value}",
        "message": "\n".join(lines),
        "priority": 2 if over else _PRIORITY[alert.severity],
        "tags": ["white_check_mark" if over else _TAG[alert.severity], alert.rule],
    }
    if click:
        fields["click"] = click
    bearer = {"Authorization": f"Bearer {token}"} if token else {}
    return Request(server.rstrip("/") + "/", _json(fields), {**_headers(), **bearer})


def webhook(alert: Alert, url: str, secret: str, at: float) -> Request:
    """``X-Rigbus-Delivery`` is the same when a delivery is repeated. With a secret, ``X-Rigbus-Signature`` is
    ``sha256=`` and the HMAC-SHA256 of ``<X-Rigbus-Timestamp>.<body>`` in hex."""
    body, stamp = _json(alert_object(alert)), f"{at:.0f}"
    delivery = hashlib.sha256(f"{alert.key} {version_of(alert)}".encode()).hexdigest()[:32]
    headers = {**_headers(), "X-Rigbus-Delivery": delivery, "X-Rigbus-Timestamp": stamp}
    if secret:
        sign = hmac.new(secret.encode(), stamp.encode() + b"." + body, hashlib.sha256).hexdigest()
        headers["X-Rigbus-Signature"] = f"sha256={sign}"
    return Request(url, body, headers)


def send(request: Request, timeout_s: float) -> None:
    """Deliver it.

    Raises:
        WebError: it has not arrived, or nobody knows.
    """
    call("POST", request.url, request.body, request.headers, timeout_s=timeout_s)


def _headers() -> dict[str, str]:
    return {"Content-Type": "application/json"}


def _json(fields: Mapping[str, Any]) -> bytes:
    return json.dumps(fields, default=str).encode()
