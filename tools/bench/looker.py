"""A reader of the shared folder that opens what it finds, again and again, as scripts on the Pi do: is ever a file torn?

``python -m rigbus.tools.bench.looker SHARED INTERVAL_MS``; it ends when its stdin does, and prints ``READ TORN``: the files
that it has read, and those of them that were no whole JSON. A file that was moved on before it was opened is neither.
"""

from __future__ import annotations

import json
import os
import select
import sys

LANES = ("queue", "processing", "complete", "failed")
MOST = 25  #: files of a lane that one look opens: the last ones of the listing
STATE = ("brain/state.json", "brain/heartbeat.json")


def main() -> None:
    """The entry of the process."""
    shared, interval_s = sys.argv[1], float(sys.argv[2]) / 1000
    read = torn = 0
    while not select.select([sys.stdin], [], [], interval_s)[0]:
        for path in [*_found(shared), *(os.path.join(shared, name) for name in STATE)]:
            try:
                with open(path, "rb") as file:
                    data = file.read()
            except FileNotFoundError:
                continue
            read += 1
            try:
                json.loads(data)
            except ValueError:
                torn += 1
    sys.stdout.write(f"{read} {torn}\n")


def _found(shared: str) -> list[str]:
    found = []
    for lane in LANES:
        folder = os.path.join(shared, "tasks", lane)
        try:
            names = [name for name in os.listdir(folder) if name.endswith(".json")]
        except FileNotFoundError:
            continue
        found += [os.path.join(folder, name) for name in names[-MOST:]]
    return found


if __name__ == "__main__":
    main()
