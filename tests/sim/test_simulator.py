"""Seeds without a violation; a seed is one history; every mutant is found."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from simulator.history import History
from simulator.mutants import FOUND_BY, MUTANTS, seeds_to_kill

TESTS = Path(__file__).parents[1]
CHUNKS, SEEDS = 4, 25  #: `make sim` plays thousands
MOST_SEEDS = 400  #: until a mutant must be found; most are within ten


@pytest.mark.parametrize("chunk", range(CHUNKS))
def test_a_history_keeps_every_promise(chunk: int) -> None:
    for seed in range(1 + chunk * SEEDS, 1 + (chunk + 1) * SEEDS):
        verdict = History(seed).run()
        said = "\n".join(f"{at:10.3f} {text}" for at, text in verdict.trace[-60:])
        assert not verdict.wrong, (
            f"seed {seed}: {verdict.wrong}\nPYTHONPATH=tests python -m simulator --seed {seed} --trace\n{said}"
        )
        assert verdict.tasks


def test_a_seed_is_one_history_in_any_process() -> None:
    # Not by `python -m simulator`: it sets the seed of hashes itself.
    code = "from simulator.history import History; v = History(7).run(); print(*v.trace, v.digest)"
    said = {
        subprocess.run(
            [sys.executable, "-c", code],
            env={**os.environ, "PYTHONPATH": str(TESTS), "PYTHONHASHSEED": hash_seed},
            capture_output=True,
            text=True,
            check=True,
            timeout=60,
        ).stdout
        for hash_seed in ("1", "2")
    }
    assert len(said) == 1 and "broker starts" in said.pop()


@pytest.mark.parametrize("name", MUTANTS)
def test_the_checkers_find(name: str) -> None:
    seeds, said = seeds_to_kill(name, MOST_SEEDS)
    assert seeds, f"{name!r} lived through {MOST_SEEDS} histories: {said}"
    if name in FOUND_BY:
        assert seeds == 1, f"write into FOUND_BY: number {seeds - 1}, for the known seed finds it no more"
