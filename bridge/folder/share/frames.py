"""What travels between the bridge and its folder helpers.

A frame is two big-endian u32 (header bytes, body bytes), a JSON header, and the body: all blobs end to end.
A ``data`` key in an operation or a result is the length of its blob; blobs stand in order.
"""

from __future__ import annotations

import json
import struct
from typing import Any

HEAD = struct.Struct(">II")
MAX_BODY_BYTES = 256 * 1024 * 1024


def pack(header: dict[str, Any], blobs: list[bytes]) -> bytes:
    """One frame: the header as JSON (lone surrogates of odd file names survive as escapes) and the blobs."""
    head = json.dumps(header, separators=(",", ":")).encode("ascii")
    return b"".join([HEAD.pack(len(head), sum(map(len, blobs))), head, *blobs])


def take_blobs(items: list[dict[str, Any]], body: bytes) -> None:
    """Put each blob back where its length stands; items without ``data`` have none."""
    start = 0
    for item in items:
        if "data" in item:
            length = int(item["data"])
            item["data"] = body[start : start + length]
            start += length


def leave_blobs(items: list[dict[str, Any]]) -> tuple[list[dict[str, Any]], list[bytes]]:
    """The reverse of :func:`take_blobs`: copies with lengths in the place of bytes, and the blobs."""
    blobs: list[bytes] = []
    out: list[dict[str, Any]] = []
    for item in items:
        if isinstance(item.get("data"), bytes):
            blobs.append(item["data"])
            item = {**item, "data": len(item["data"])}  # noqa: PLW2901
        out.append(item)
    return out, blobs
