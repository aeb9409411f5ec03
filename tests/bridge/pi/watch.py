"""``watch.py [--once | --tail | --brain]``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import IO, Any

from .status import LANES, config_of

GREEN, RED, BLUE, PLAIN = "green", "red", "blue", "plain"


def watch_once(config: Path) -> list[str]:
    """The lanes, the newest files first; a failed task with its error."""
    c = config_of(config)
    shared = Path(c["shared_path"])
    lines = [f"{w['name']} GPU {w['gpu']}" for w in c["workers"]] + [f"brain {c['brain']['gpus']}"]
    for lane in LANES:
        paths = list((shared / "tasks" / lane).glob("*.json"))
        for path in sorted(paths, key=lambda p: p.stat().st_mtime, reverse=True)[:10]:
            lines.append(f"{lane} {_task(json.loads(path.read_text()))}")
    return lines


def _task(t: dict[str, Any]) -> str:
    line = f"{t['task_id'][:8]} {t['type']} {t.get('prompt', '')[:40]} {t.get('assigned_to', '')}"
    result = t.get("result", {})
    if result:
        line += " ok " + result.get("output", "")[:60] if result.get("success") else ""
        line += "" if result.get("success") else " failed: " + result.get("error", "unknown")[:60]
    return line


class CompleteTail:
    """``--tail``: what is new in ``complete/``, looked at once a second."""

    def __init__(self, config: Path) -> None:
        self._folder = Path(config_of(config)["shared_path"]) / "tasks" / "complete"
        self._seen = {path.name for path in self._folder.glob("*.json")}

    def look(self) -> list[str]:
        """The tasks that have come since the last look."""
        lines = []
        for path in self._folder.glob("*.json"):
            if path.name not in self._seen:
                self._seen.add(path.name)
                lines.append(_task(json.loads(path.read_text())))
        return lines


class BrainTail:
    """``--brain``: the log of decisions from its present end on, through one descriptor that is kept."""

    def __init__(self, config: Path) -> None:
        path = Path(config_of(config)["shared_path"]) / "logs" / "brain_decisions.log"
        if not path.exists():
            path.touch()
        self._file: IO[str] = path.open()
        self._file.seek(0, 2)

    def look(self) -> list[tuple[str, str]]:
        """(colour, line) of what has come since the last look."""
        out = []
        while line := self._file.readline():
            d = json.loads(line)
            text = f"{d['timestamp'][-8:]} [{d['type']}] {d['message']}"
            for key, value in d.get("details", {}).items():
                if value:
                    text += f"\n    {key}: {value}"
            out.append((_colour(d["type"]), text))
        return out

    def close(self) -> None:
        self._file.close()


def _colour(word: str) -> str:
    if "COMPLETE" in word or "SUCCESS" in word:
        return GREEN
    if "FAIL" in word or "ERROR" in word:
        return RED
    return BLUE if "ASSIGN" in word or "DECOMPOSE" in word else PLAIN
