"""A Philips Hue bridge by its local API (CLIP v2, https, its own address, its certificate pinned)."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from typing import Any, Final

from ...bus.errors import ConfigError, NotFound
from .hue_core import Lamp
from .web import Answer, WebError, call

_ADDRESS: Final = re.compile(r"(?:\[[0-9A-Fa-f:.]{2,45}\]|[A-Za-z0-9.-]{1,253})(?::\d{1,5})?\Z")
DEVICE: Final = "rigbus#notify"
NOT_PRESSED: Final = 101


def address_url(address: str) -> str:
    """``https://<address>``.

    Raises:
        ConfigError: it is no address.
    """
    if not _ADDRESS.match(address):
        raise ConfigError(f"{address[:80]!r} is no address; give the bridge's own, as 192.168.1.20")
    return f"https://{address}"


class HueBridge:
    """Asks and commands one bridge. Every request has its own connection, and checks the certificate first.

    All methods raise WebError (it did not work this time) and WrongCertificate.
    """

    def __init__(self, address: str, key: str, pin: str, timeout_s: float) -> None:
        self._url, self._key, self._pin, self._timeout_s = address_url(address), key, pin, timeout_s

    def find_group(self, name: str) -> tuple[str, list[str]]:
        """The grouped light of a room or zone of this name, and its lamps.

        Raises:
            NotFound: there is none; the message names those that are there.
        """
        found = {kind: self._list(kind) for kind in ("room", "zone")}
        names = []
        for group in [*found["room"], *found["zone"]]:
            called = _text(_table(group.get("metadata")).get("name"))
            names.append(called)
            if called == name:
                members = {_text(_table(c).get("rid")) for c in group.get("children") or ()}
                services = [_table(s) for s in group.get("services") or ()]
                grouped = [_text(s.get("rid")) for s in services if s.get("rtype") == "grouped_light"]
                if not grouped:
                    raise NotFound(f"{name!r} has no lamps; choose another group")
                lamps = [
                    _text(lamp.get("id"))
                    for lamp in self._list("light")
                    # of a room the children are devices, of a zone the lamps themselves
                    if lamp.get("id") in members or _text(_table(lamp.get("owner")).get("rid")) in members
                ]
                return grouped[0], sorted(lamps)
        raise NotFound(
            f"the bridge has no room or zone {name!r}; it has {', '.join(sorted(names)) or 'none'}"
        )

    def lamps(self, ids: Iterable[str]) -> dict[str, Lamp]:
        """What these lamps show; one that is not there any more is left out."""
        wanted = set(ids)
        return {_text(row["id"]): Lamp.of(row) for row in self._list("light") if row.get("id") in wanted}

    def paint(self, group: str, command: Mapping[str, Any]) -> None:
        """A command to all lamps of a group."""
        self._put(f"grouped_light/{group}", command)

    def command(self, lamp: str, command: Mapping[str, Any]) -> None:
        """A command to one lamp."""
        self._put(f"light/{lamp}", command)

    def _list(self, kind: str) -> list[dict[str, Any]]:
        said = self._call("GET", kind).json()
        rows = said.get("data") if isinstance(said, dict) else None
        if not isinstance(rows, list):
            raise WebError(f"the bridge answers no list of {kind}s")
        return [row for row in rows if isinstance(row, dict) and isinstance(row.get("id"), str)]

    def _put(self, path: str, command: Mapping[str, Any]) -> None:
        self._call("PUT", path, json.dumps(command).encode())

    def _call(self, method: str, path: str, body: bytes | None = None) -> Answer:
        headers = {"hue-application-key": self._key, "Content-Type": "application/json"}
        url = f"{self._url}/clip/v2/resource/{path}"
        return call(method, url, body, headers, timeout_s=self._timeout_s, pin=self._pin)


def look(address: str, timeout_s: float = 10.0) -> tuple[str, str]:
    """(the SHA-256 of the certificate that an unpaired bridge shows, its id), for a person to compare.

    Raises:
        WebError: it does not answer.  ConfigError: it is no address.
    """
    answer = call("GET", f"{address_url(address)}/api/config", timeout_s=timeout_s, pin="")
    said = answer.json()
    return answer.fingerprint, _text(said.get("bridgeid")) if isinstance(said, dict) else ""


def pair(address: str, pin: str, timeout_s: float = 10.0) -> str | None:
    """An application key; None while nobody has pressed the link button.

    Raises:
        WebError: it does not answer, or says something else.  WrongCertificate: it is another one by now.
    """
    body = json.dumps({"devicetype": DEVICE, "generateclientkey": True}).encode()
    headers = {"Content-Type": "application/json"}
    said = call("POST", f"{address_url(address)}/api", body, headers, timeout_s=timeout_s, pin=pin).json()
    row = _table(said[0]) if isinstance(said, list) and said else {}
    key = _table(row.get("success")).get("username")
    if isinstance(key, str) and key:
        return key
    error = _table(row.get("error"))
    if error.get("type") == NOT_PRESSED:
        return None
    raise WebError(f"the bridge refuses: {error.get('description') or 'without a reason'}")


def _table(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


def _text(value: Any) -> str:
    return value if isinstance(value, str) else ""
