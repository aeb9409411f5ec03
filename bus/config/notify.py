"""The table ``[notify]``: where alerts go, on the machine that has a network. Secrets are never in it, only where they lie."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Any, Final, Literal
from urllib.parse import urlsplit

from pydantic import AfterValidator, Field, model_validator

from ..alerting.rules import Severity
from .alerts import RuleName
from .models import Table

MAX_SINKS: Final = 20
_FINGERPRINT: Final = re.compile(r"(?:sha256:)?((?:[0-9a-f]{2}:?){31}[0-9a-f]{2})\Z")
_SINK: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,39}\Z")
_ENV: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,99}\Z")


def _fingerprint(text: str) -> str:
    found = _FINGERPRINT.match(text.strip().lower())
    if found is None:
        raise ValueError("is no SHA-256 fingerprint: 64 hex digits, with or without colons")
    return found[1].replace(":", "")


def _web(url: str) -> str:
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError:
        raise ValueError("is no URL") from None
    if parts.scheme not in ("http", "https") or not parts.hostname or port == 0:
        raise ValueError("write http://host[:port]/path or https://…")
    if parts.username or parts.password:
        raise ValueError("a URL may not bear a password: give it as token_env or token_file")
    return url


def _env(name: str) -> str:
    if not _ENV.match(name):
        raise ValueError(
            f"{name[:40]!r} is no name of an environment variable; the secret itself does not belong here"
        )
    return name


WebUrl = Annotated[str, AfterValidator(_web)]
EnvName = Annotated[str, AfterValidator(_env)]


class Sink(Table):
    """What all have: which alerts they want."""

    min_severity: Severity = Field(default=Severity.WARNING, description="of the alerts that it gets")
    rules: list[RuleName] = Field(default_factory=list, description="only these; all when empty")
    not_rules: list[RuleName] = Field(default_factory=list, description="and not these")
    timeout_s: float = Field(default=10.0, ge=0.2, le=120, description="for one delivery")


class Hue(Sink):
    """A room or zone of a Philips Hue bridge."""

    type: Literal["hue"]
    bridge: str = Field(description="the bridge's own address, as 192.168.1.20 or 192.168.1.20:443")
    group: str = Field(min_length=1, max_length=100, description="name of a room or zone")
    fingerprint: Annotated[str, AfterValidator(_fingerprint)] = Field(
        description="SHA-256 of the bridge's certificate, as `rigbus notify pair` shows it"
    )
    key_env: EnvName | None = None
    key_file: Path | None = None
    brightness: float = Field(default=100.0, ge=1, le=100)


class Ntfy(Sink):
    """A topic of an ntfy server."""

    type: Literal["ntfy"]
    server: WebUrl = "https://ntfy.sh"
    topic: str | None = Field(default=None, pattern=r"^[A-Za-z0-9_-]{1,64}$")
    topic_env: EnvName | None = None
    topic_file: Path | None = None
    token_env: EnvName | None = None
    token_file: Path | None = None
    click: WebUrl | None = Field(default=None, description="what a tap on the message opens")


class HomeAssistant(Sink):
    """A webhook trigger of Home Assistant; its id is a secret."""

    type: Literal["homeassistant"]
    server: WebUrl = Field(description="as http://homeassistant.local:8123")
    webhook_env: EnvName | None = None
    webhook_file: Path | None = None


class Webhook(Sink):
    """Any other program: the alert as JSON, signed where there is a secret."""

    type: Literal["webhook"]
    url: WebUrl | None = None
    url_env: EnvName | None = None
    url_file: Path | None = None
    secret_env: EnvName | None = None
    secret_file: Path | None = None


AnySink = Annotated[Hue | Ntfy | HomeAssistant | Webhook, Field(discriminator="type")]

#: Of each type: its secrets, and whether it works without.
SECRETS: Final[dict[str, dict[str, bool]]] = {
    "hue": {"key": True},
    "ntfy": {"topic": True, "token": False},
    "homeassistant": {"webhook": True},
    "webhook": {"url": True, "secret": False},
}


class Notify(Table):
    """Where alerts go (`rigbus notify`, docs/alerts.md)."""

    poll_s: float = Field(default=2.0, ge=0.2, le=60, description="between two looks at the folder")
    grace_s: float = Field(
        default=60.0, ge=0, le=86_400, description="beyond stale_after_s, before a silent rig is one"
    )
    mount_grace_s: float = Field(
        default=60.0, ge=0, le=86_400, description="a folder that is away for so long is told"
    )
    sinks: dict[str, AnySink] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _whole(self) -> Notify:
        if len(self.sinks) > MAX_SINKS:
            raise ValueError(f"{len(self.sinks)} sinks; at most {MAX_SINKS}")
        for name, sink in self.sinks.items():
            if not _SINK.match(name):
                raise ValueError(f"sink {name[:40]!r}: a name is 1 to 40 letters, digits, _ -")
            _secrets(name, sink)
        return self


def _secrets(name: str, sink: Any) -> None:
    for secret, needed in SECRETS[sink.type].items():
        places = [
            f for f in (secret, f"{secret}_env", f"{secret}_file") if getattr(sink, f, None) is not None
        ]
        if len(places) > 1:
            raise ValueError(f"sink {name}: {' and '.join(places)} are both given; keep one")
        if needed and not places:
            raise ValueError(f"sink {name}: give {secret}_file or {secret}_env: where its {secret} lies")
