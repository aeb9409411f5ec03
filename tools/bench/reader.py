"""A reader of the shared folder as the Pi has one: looks into a folder again and again, and notes what it saw when.

``python -m rigbus.tools.bench.reader FOLDER INTERVAL_MS``; it ends when its stdin does. It prints a line ``NAME SECONDS``
for each file that it sees for the first time, by the monotonic clock, which all processes of a machine share.
"""

from __future__ import annotations

import os
import select
import sys
import time


def main() -> None:
    """The entry of the process."""
    folder, interval_s = sys.argv[1], float(sys.argv[2]) / 1000
    seen: set[str] = set()
    while True:
        began = time.monotonic()
        try:
            names = [entry.name for entry in os.scandir(folder) if entry.name.endswith(".json")]
        except FileNotFoundError:
            names = []
        at = time.monotonic()
        new = [name for name in names if name not in seen]
        if new:
            seen.update(new)
            sys.stdout.write("".join(f"{name.removesuffix('.json')} {at:.6f}\n" for name in new))
            sys.stdout.flush()
        rest = max(0.0, interval_s - (time.monotonic() - began))
        if select.select([sys.stdin], [], [], rest)[0]:
            break


if __name__ == "__main__":
    main()
