"""The dashboard: batches, the brain's cards, workers, lanes, what has failed, what batches left."""

from __future__ import annotations

import json
from datetime import datetime
from pathlib import Path
from typing import Any

from .status import config_of

FAILED = ("failed", "blocked_cloud", "abandoned", "error")
OK_S, DROP_S = 60, 600


def age_s(stamp: str) -> float:
    return (datetime.now() - datetime.fromisoformat(stamp)).total_seconds()


class Dashboard:
    """One look at everything."""

    def __init__(self, config: Path) -> None:
        self.config = config_of(config)
        self.shared = Path(self.config["shared_path"])
        self._parsed: dict[Path, tuple[float, Any]] = {}

    def _task(self, path: Path) -> Any:
        """A task's file; parsed again only when its time has changed."""
        at = path.stat().st_mtime
        if path not in self._parsed or self._parsed[path][0] != at:
            self._parsed[path] = (at, json.loads(path.read_text()))
        return self._parsed[path][1]

    def _json(self, path: str) -> Any:
        return json.loads((self.shared / path).read_text())

    def batches(self) -> dict[str, str]:
        """Running batches: id -> its line."""
        active = self._json("brain/state.json")["active_batches"]
        return {
            id_: f"{b['display_name']} {b['total_tasks']} tasks since {age_s(b['started_at']):.0f} s {b['priority']} "
            f"{'preemptible' if b['preemptible'] else 'fixed'} {sorted(b['config'])} {b['plan_dir']}"
            for id_, b in active.items()
        }

    def brain(self) -> dict[str, Any]:
        """The brain's heartbeat: ``cards`` by index, ``state`` ok or bad."""
        path = "heartbeats/brain.json"
        beat = self._json(path if (self.shared / path).exists() else "brain/heartbeat.json")
        cards = {
            int(index): (card.get("gpu_temp_c"), card.get("gpu_util"), card.get("vram_used_mb"))
            for index, card in beat["brain_gpus"].items()
        }
        model = beat.get("loaded_model") or (beat["loaded_models"] or [""])[0]
        fresh = age_s(beat["last_updated"]) < OK_S
        return {"host": beat["hostname"], "model": model, "cards": cards, "state": "ok" if fresh else "bad"}

    def workers(self) -> dict[str, str]:
        """Workers with a heartbeat that is not too old: name -> its line."""
        found = {}
        for path in [
            *self.shared.glob("gpus/gpu_*/heartbeat.json"),
            *self.shared.glob("cpus/*/heartbeat.json"),
        ]:
            b = json.loads(path.read_text())
            if age_s(b["last_updated"]) > DROP_S:
                continue
            tasks = ", ".join(t["task_name"] for t in b.get("active_tasks", []))
            heat = f"{b.get('temperature_c', '?')} °C {', '.join(b.get('thermal_reasons', []))}"
            found[b["name"]] = f"{b['state']} {b['hostname']} {b.get('runtime_state')} {heat} {tasks}"
        return found

    def missing(self) -> list[str]:
        """Cards of the configuration that nobody reports: an alert for each."""
        there = self.workers()
        brain = self.config["brain"]["gpus"]
        return [
            g["name"] for g in self.config.get("gpus", []) if g["id"] not in brain and g["name"] not in there
        ]

    def failures(self) -> dict[str, str]:
        """Name of each failed task -> the error that is shown for it."""
        found = {}
        for lane in ("complete", "failed"):
            for path in (self.shared / "tasks" / lane).glob("*.json"):
                t = self._task(path)
                if t["status"] in FAILED:
                    r = t.get("result", {})
                    texts = [
                        r.get("error"),
                        r.get("output"),
                        r.get("stderr"),
                        t.get("error"),
                        t.get("blocked_reason"),
                    ]
                    found[t.get("name", t["task_id"])] = next(
                        (text.strip()[:200] for text in texts if text), ""
                    )
        return found

    def chain(self, batch: str) -> list[str]:
        """The tasks of a batch and what each waits for."""
        lines = []
        for lane in (
            "brain/private_tasks",
            "tasks/queue",
            "tasks/processing",
            "tasks/complete",
            "tasks/failed",
        ):
            for path in (self.shared / lane).glob("*.json"):
                t = self._task(path)
                if t.get("batch_id") == batch:
                    lines.append(
                        f"{t['name']} <- {', '.join(t['depends_on'])} ({t['executor']}, {t['task_class']})"
                    )
        return sorted(lines)

    def ended(self, plan: str, batch: str) -> str:
        """The line of a batch that has ended."""
        s = self._json(f"plans/{plan}/batches/{batch}/execution_stats.json")
        o = s["outcome"]
        took = datetime.fromisoformat(s["completed_at"]) - datetime.fromisoformat(s["started_at"])
        counts = f"{o['accepted']} of {o['target']} ({o['rejected']} rejected)"
        return f"{o['status']}: {counts}, {s['overall']['total_tasks']} in {took}"
