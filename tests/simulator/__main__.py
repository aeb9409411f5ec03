"""``python -m simulator``: many seeds, or one with its trace."""

from __future__ import annotations

import argparse
import os
import sys
import time
from multiprocessing import get_context

from simulator.history import History, play  # by its full name: spawned processes import it


def main() -> int:
    """0 when every seed was clean."""
    parser = argparse.ArgumentParser(prog="simulator", description=__doc__)
    parser.add_argument("--seeds", type=int, default=200, help="how many")
    parser.add_argument("--first", type=int, default=1, help="the first seed")
    parser.add_argument("--seed", type=int, help="one seed")
    parser.add_argument("--trace", action="store_true", help="print its history")
    parser.add_argument("--jobs", type=int, default=1)
    a = parser.parse_args()
    if os.environ.get("PYTHONHASHSEED") != "0":  # sets of texts have one order then: a seed is one history
        os.environ["PYTHONHASHSEED"] = "0"
        os.execv(sys.executable, [sys.executable, "-m", "simulator", *sys.argv[1:]])  # noqa: S606
    seeds = [a.seed] if a.seed is not None else range(a.first, a.first + a.seeds)
    begun, events, tasks, failed = time.perf_counter(), 0, 0, []
    with get_context("spawn").Pool(a.jobs) as pool:
        one = (History(seed).run() for seed in seeds) if a.trace else map(play, seeds)
        verdicts = one if a.jobs == 1 else pool.imap_unordered(play, seeds, chunksize=4)
        for verdict in verdicts:
            events += verdict.events
            tasks += verdict.tasks
            if verdict.wrong:
                failed.append(verdict)
                print(f"seed {verdict.seed}: {verdict.wrong}", flush=True)
            if a.trace:
                print("\n".join(f"{at:10.4f} {text}" for at, text in verdict.trace))
                print(f"digest {verdict.digest}")
    took_s = time.perf_counter() - begun
    print(
        f"{len(seeds)} histories, {tasks} tasks, {events} events in {took_s:.1f} s: {events / took_s:.0f} events/s on "
        f"{a.jobs} cores; {len(failed)} with a violation"
    )
    if failed:
        print(f"replay: PYTHONPATH=tests python -m simulator --seed {failed[0].seed} --trace")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
