"""The mark on what the mirror wrote: it tells a file that somebody has edited from one that nobody has. Pure.

A mirrored file is one JSON object whose last key is ``check``, a hash of all before it; one of Markdown ends in a
comment with it. Standard library only: the helpers load it too.
"""

from __future__ import annotations

import hashlib
from typing import Final

MIRRORED_BY: Final = "rigbus"
_KEY: Final = b',\n  "check": "'
_END: Final = b'"\n}\n'
_TEXT_KEY: Final = b"\n<!-- mirrored by rigbus; check: "
_TEXT_END: Final = b" -->\n"
_HASH_BYTES: Final = 8
MAX_BYTES: Final = 4 << 20  #: no mirrored file is larger


def seal(body: bytes) -> bytes:
    """``body`` is an indented JSON object with at least one key, ending in ``\\n}``; the file's content."""
    head = body.removesuffix(b"\n}")
    return head + _KEY + _check(head) + _END


def seal_text(body: bytes) -> bytes:
    """``body`` is Markdown; the file's content."""
    return body + _TEXT_KEY + _check(body) + _TEXT_END


def sealed(data: bytes) -> bool:
    """The mirror wrote these bytes, and nobody has changed one of them."""
    for key, end in ((_KEY, _END), (_TEXT_KEY, _TEXT_END)):
        head, found, tail = data.rpartition(key)
        if found and tail == _check(head) + end:
            return True
    return False


def _check(head: bytes) -> bytes:
    return hashlib.blake2b(head, digest_size=_HASH_BYTES).hexdigest().encode()
