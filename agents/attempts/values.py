"""A handler's return value on its way to the broker: packed, or a file in the results folder when it is large.

Runs in the handler's own thread or child, so that a large value's fsync holds nobody else up.
"""

from __future__ import annotations

import dataclasses
import hashlib
import os
import tempfile
from enum import Enum
from pathlib import Path, PurePath
from typing import Any

import msgpack

from ...bus.errors import BadFrame, DefinitionError, RigbusError
from ...bus.wire import MAX_PAYLOAD_BYTES, MAX_RESULT_BYTES, unpack
from ..worker.events import Outcome

_INLINE_CHECK_BYTES = 64 << 10
_SCALARS = (str, int, float, bool, type(None), bytes)


class NotKept(RigbusError):
    """A large value has no room on the rig's disk: not the fault of the task."""

    error_class = "infra"


def _plain(value: Any) -> Any:
    """What msgpack does not know: pydantic models and dataclasses become maps."""
    dump = getattr(value, "model_dump", None)
    if callable(dump) and not isinstance(value, type):
        return dump(mode="json")
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return dataclasses.asdict(value)
    if isinstance(value, PurePath):
        return str(value)
    if isinstance(value, Enum):
        return value.value
    raise TypeError(f"a {type(value).__name__} is not plain data")


def pack_value(value: Any) -> bytes:
    """``value`` as msgpack: None, bool, int, float, str, bytes, lists, maps with text keys, models, dataclasses.

    Raises:
        DefinitionError: it holds something else, a map key that is no text, or is over 64 MiB packed.
    """
    try:
        body: bytes = msgpack.packb(value, default=_plain, use_bin_type=True)
        if not isinstance(value, _SCALARS):
            # What we can pack is not always what the reader may unpack: int keys, depth, lone surrogates.
            if len(body) <= _INLINE_CHECK_BYTES:
                unpack(body)
            else:
                msgpack.unpackb(body, raw=False, strict_map_key=True)
    except (TypeError, ValueError, OverflowError, RecursionError, BadFrame) as e:
        raise DefinitionError(
            f"the handler returned what cannot be sent ({e}); return numbers, text, bytes, lists, maps with text "
            "keys, dataclasses or pydantic models"
        ) from None
    if len(body) > MAX_RESULT_BYTES:
        raise DefinitionError(
            f"the handler returned {len(body)} bytes, the limit is {MAX_RESULT_BYTES}; write a file, return its path"
        )
    return body


def outcome_of(value: Any, results: Path | None, duration_s: float) -> Outcome:
    """A successful outcome with ``value`` inline, or by reference in ``results`` when it is over 256 KiB.

    Raises:
        DefinitionError: as :func:`pack_value`, or it is large and there is no results folder.
        NotKept: the results folder cannot be written.
    """
    body = pack_value(value)
    if len(body) <= MAX_PAYLOAD_BYTES:
        return Outcome(True, body=body, duration_s=duration_s)
    if results is None:
        raise DefinitionError(
            f"the handler returned {len(body)} bytes; over {MAX_PAYLOAD_BYTES} it must see the rig's state folder"
        )
    try:
        ref = store_result(body, results)
    except OSError as e:
        raise NotKept(
            f"its value of {len(body)} bytes cannot be kept in {results}: {e.strerror or e}; free some space there, it "
            "runs again"
        ) from None
    return Outcome(True, ref=ref, duration_s=duration_s)


def store_result(body: bytes, results: Path) -> dict[str, Any]:
    """Write ``<results>/<sha[:2]>/<sha256>`` durably and return its ref ``{sha256, bytes}``. Same bytes, same file."""
    sha = hashlib.sha256(body).hexdigest()
    folder = results / sha[:2]
    path = folder / sha
    ref = {"sha256": sha, "bytes": len(body)}
    try:
        if path.stat().st_size == len(body):
            os.utime(path)  # taken up again: whoever removes what nobody holds sees that it is not at rest
            return ref
    except FileNotFoundError:
        pass
    folder.mkdir(parents=True, exist_ok=True)
    fd, temp = tempfile.mkstemp(prefix=".tmp-", dir=folder)
    try:
        with os.fdopen(fd, "wb") as f:
            f.write(body)
            f.flush()
            os.fsync(f.fileno())
        os.replace(temp, path)
    except BaseException:
        Path(temp).unlink(missing_ok=True)
        raise
    _sync_folder(folder)
    _sync_folder(results)
    return ref


def _sync_folder(folder: Path) -> None:
    fd = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
