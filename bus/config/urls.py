"""Addresses as people and logs may see them. Pure; standard library only."""

from __future__ import annotations

import re
from typing import Final

HIDDEN: Final = "…"
_SCHEME: Final = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://")


def shown_url(url: str) -> str:
    """``url`` without what may be secret: ``https://…@host/v1?key=…``.

    User and password, the values of the query and the fragment are hidden. It takes what is no address, too: that is what
    error messages show, and a password with a ``/`` or ``?`` in it makes an address none. So all before the last ``@``
    counts as a password.
    """
    _, at, rest = url.rpartition("@")
    if at:
        scheme = _SCHEME.match(url)
        url = f"{scheme[0] if scheme else ''}{HIDDEN}@{rest}"
    url, sharp, _ = url.partition("#")
    url, mark, query = url.partition("?")
    return url + mark + "&".join(map(_shown_field, query.split("&"))) + (sharp and f"#{HIDDEN}")


def _shown_field(field: str) -> str:
    name, sign, _ = field.partition("=")
    return f"{name}={HIDDEN}" if sign else field and HIDDEN
