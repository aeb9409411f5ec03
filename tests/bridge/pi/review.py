"""``review_training.py [--export]``: a person rates samples, and the whole file is written anew with what was read before."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from .status import config_of


class Review:
    """One session: everything is read at its start and written at its end, whatever has come in between."""

    def __init__(self, config: Path) -> None:
        self._file = Path(config_of(config)["shared_path"]) / "logs" / "training_samples.jsonl"
        self.samples: list[dict[str, Any]] = [
            json.loads(line) for line in self._file.read_text().splitlines() if line.strip()
        ]

    def unrated(self) -> list[str]:
        """What is asked about: (id, model, the beginnings of prompt, context and response)."""
        return [
            f"{s['id']} {s['timestamp'][:10]} {s['sample_type']} {s['model'][:20]} {s['outcome']} "
            f"{s['prompt'][:200]} {s['context'][:100]} {s['response'][:500]}"
            for s in self.samples
            if s.get("human_rating") is None
        ]

    def rate(self, sample_id: str, rating: int, feedback: str = "", preferred: str = "") -> None:
        """The person's word on one of them."""
        for s in self.samples:
            if s["id"] == sample_id:
                s["human_rating"] = rating
                s["human_feedback"] = feedback or None
                s["preferred_response"] = preferred or None

    def save(self) -> None:
        """In place, from the first byte on."""
        with self._file.open("w") as f:
            for s in self.samples:
                f.write(json.dumps(s) + "\n")


def export(config: Path) -> tuple[int, int]:
    """Write the positive examples and the pairs of preference; how many there are of each."""
    shared = Path(config_of(config)["shared_path"])
    samples = [json.loads(s) for s in (shared / "logs/training_samples.jsonl").read_text().splitlines()]
    folder = shared / "logs" / "training_export"
    folder.mkdir(exist_ok=True)
    rated = [s for s in samples if s["human_rating"] is not None]
    good = [
        {
            "prompt": s["prompt"],
            "context": s["context"],
            "response": s["response"],
            "rating": s["human_rating"],
        }
        for s in rated
        if s["human_rating"] >= 4
    ]
    pairs = [
        {
            "prompt": s["prompt"],
            "context": s["context"],
            "rejected": s["response"],
            "chosen": s["preferred_response"],
        }
        for s in rated
        if s["preferred_response"]
    ]
    for name, rows in (("positive_examples", good), ("preference_pairs", pairs)):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return len(good), len(pairs)
