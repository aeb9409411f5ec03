"""How far ``logs/brain_decisions.log`` tells the events: kept on the local disk, so that a bridge that was away goes on
where it stopped."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from ....bus.paths import write_atomic

log = logging.getLogger(__name__)

SCHEMA: Final = "rigbus.said/1"


class Said:
    """The file ``<state>/mirror.json``: ``{schema, seq, batches}``. It is a help, not a promise: losing it costs lines."""

    def __init__(self, file: Path) -> None:
        self._file = file
        self._seq: int | None = None
        self._told = False

    def load(self) -> tuple[int | None, dict[str, str]]:
        """The last event that was told with all before it (None: unknown), and the states of the batches then."""
        try:
            found: Any = json.loads(self._file.read_bytes())
            seq, batches = found["seq"], found["batches"]
        except FileNotFoundError:
            return None, {}
        except (OSError, ValueError, KeyError, TypeError) as e:
            log.warning("%s is damaged (%s): the log goes on with what happens from now on", self._file, e)
            return None, {}
        if not isinstance(seq, int) or isinstance(seq, bool) or not isinstance(batches, dict):
            return None, {}
        self._seq = seq
        return seq, {str(k): str(v) for k, v in batches.items()}

    def save(self, seq: int, batches: Mapping[str, str]) -> None:
        """Everything up to ``seq`` stands in the log. A disk that refuses costs nothing but a word."""
        if seq == self._seq:
            return
        data = json.dumps({"schema": SCHEMA, "seq": seq, "batches": dict(batches)}).encode()
        try:
            write_atomic(self._file, data, durable=False)
        except OSError as e:
            if not self._told:
                log.warning("%s cannot be written: %s; after a restart lines may be missing", self._file, e)
            self._told = True
            return
        self._seq, self._told = seq, False
