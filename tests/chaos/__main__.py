"""``python -m chaos``: a campaign with its verdict, or the verdict over a history that is there."""

from __future__ import annotations

import argparse
import json
import random
import shutil
import signal
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from chaos.campaign import ROOM, Broken, Campaign, Options
from chaos.figures import summary
from chaos.history import read
from chaos.judge import judge_seen
from chaos.seen import sort


def main() -> int:
    """0: no violation; 1: some; 2: the campaign could not be played."""
    parser = argparse.ArgumentParser(prog="chaos", description=__doc__)
    parser.add_argument("--seed", type=int, help="of work and faults (default: a new one, which is printed)")
    parser.add_argument("--rounds", type=int, default=100, help="at least so many kills")
    parser.add_argument("--tasks", type=int, default=5000, help="at least so many tasks")
    parser.add_argument("--workers", type=int, default=3)
    parser.add_argument(
        "--room", type=int, default=ROOM, help="open tasks past which nothing new is submitted"
    )
    parser.add_argument(
        "--folder", type=Path, help="work there and keep it; an interrupted campaign is gone on with"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the summary there")
    parser.add_argument("--judge", type=Path, metavar="HISTORY", help="play nothing, judge this file")
    a = parser.parse_args()
    if a.judge is not None:
        return verdict(a.judge, a.json)
    kept = a.folder is not None
    folder = a.folder.absolute() if kept else Path(tempfile.mkdtemp(prefix="chaos-", dir="/tmp"))
    folder.mkdir(parents=True, exist_ok=True)
    seed = a.seed if a.seed is not None else seed_in(folder) or random.randrange(1, 2**31)
    say(f"seed {seed}, at least {a.rounds} rounds and {a.tasks} tasks, in {folder}")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(130))  # as Ctrl-C: what was started is ended
    options = Options(seed, a.rounds, a.tasks, folder, a.workers, room=a.room)
    code = 2
    try:
        campaign = Campaign(options, say)
        campaign.run()
        code = verdict(campaign.path, a.json)
    except Broken as e:
        say(f"chaos: {e}")
    except KeyboardInterrupt:
        code = 130
    finally:
        if kept or code in {1, 2}:
            say(f"the history is {folder}/history.jsonl; the rig's own logs are in {folder}/state/logs")
        else:
            shutil.rmtree(folder, ignore_errors=True)
    return code


def seed_in(folder: Path) -> int | None:
    """The seed of the campaign that a folder holds; None where there is none."""
    path = folder / "history.jsonl"
    first: dict[str, Any] = next(read(path), {}) if path.exists() else {}
    return first.get("seed")


def verdict(history: Path, to: Path | None) -> int:
    """Judge a history, print what came of it; 1 if there is a violation."""
    seen = sort(read(history))
    violations = judge_seen(seen)
    found = summary(seen, violations)
    if to is not None:
        to.write_text(json.dumps(found, indent=1) + "\n")
    print(json.dumps(found, indent=1))
    for violation in violations[:50]:
        print(f"VIOLATION {violation}")
    return 1 if violations else 0


def say(text: str) -> None:
    """A line of talk."""
    print(f"{time.strftime('%H:%M:%S')} {text}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
