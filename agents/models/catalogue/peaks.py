"""What models really took when they were loaded: ``<state>/models.json``, so that the next load need not guess.

Each peak belongs to one content of one file, loaded in one way (:func:`peak_key`): another context, or the file replaced,
is another peak. It is a memory, not a ledger: where the file is damaged or of a later version it begins anew.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import logging
import os
from pathlib import Path
from typing import Any, Final

from ....bus.paths import write_atomic

FILE: Final = "models.json"
SCHEMA: Final = "rigbus.models/1"
MAX_PEAKS: Final = 256  #: the oldest are forgotten
MAX_FILE_BYTES: Final = 1 << 20
HASHED_BYTES: Final = 1 << 20

_log = logging.getLogger(__name__)


def peak_key(path: Path, *, ctx: int, parallel: int, gpu_layers: int, cards: int = 1) -> str:
    """Names this content of the file, loaded like this. The content: its size, its time and the hash of its first MB.

    Raises:
        OSError: the file cannot be read.
    """
    with path.open("rb") as file:
        info = os.fstat(file.fileno())
        digest = hashlib.sha256(file.read(HASHED_BYTES))
    digest.update(f"{info.st_size} {info.st_mtime_ns}".encode())
    return f"{digest.hexdigest()[:24]} ctx={ctx} parallel={parallel} gpu_layers={gpu_layers} cards={cards}"


def known_peak(state: Path, key: str) -> int | None:
    """The most MB (2^20 bytes, of all cards together) that this load has taken so far; None when it never was measured."""
    peak = _read(state / FILE).get(key)
    return peak["mb"] if peak is not None else None


def remember_peak(state: Path, key: str, mb: int, *, at: float, model: str) -> None:
    """Keep a measure: the larger of it and what is known. ``at`` is wall-clock seconds, ``model`` the name for people.

    Several processes of a rig may do so at once; each waits for the other.

    Raises:
        OSError: the state folder cannot be written.
    """
    with (state / f".{FILE}.lock").open("wb") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        peaks = _read(state / FILE)
        known = peaks.pop(key, None)
        peaks[key] = {"mb": max(mb, known["mb"] if known else 0), "at": at, "model": model}
        while len(peaks) > MAX_PEAKS:
            del peaks[next(iter(peaks))]
        text = json.dumps({"schema": SCHEMA, "peaks": peaks}, indent=1) + "\n"
        write_atomic(state / FILE, text.encode(), durable=False)


def _read(file: Path) -> dict[str, dict[str, Any]]:
    """The peaks, the oldest first; what makes no sense is left out."""
    try:
        with file.open("rb") as opened:
            data = opened.read(MAX_FILE_BYTES + 1)
        value = json.loads(data)
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, RecursionError) as e:
        _log.warning(
            "%s cannot be read (%s): models are estimated until they have been loaded again", file, e
        )
        return {}
    peaks = value.get("peaks") if isinstance(value, dict) and value.get("schema") == SCHEMA else None
    if not isinstance(peaks, dict):
        _log.warning("%s is not of the schema %s: models are estimated again", file, SCHEMA)
        return {}
    return {key: peak for key, peak in peaks.items() if _is_peak(peak)}


def _is_peak(value: Any) -> bool:
    mb = value.get("mb") if isinstance(value, dict) else None
    return isinstance(mb, int) and not isinstance(mb, bool) and 0 < mb < 1 << 31
