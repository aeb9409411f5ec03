"""Collects a few facts about this machine into a JSON file."""

import argparse
import json
import os
import platform
import shutil
from pathlib import Path


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    out = parser.parse_args().out
    disk = shutil.disk_usage(out.parent)
    facts = {
        "system": platform.platform(),
        "python": platform.python_version(),
        "processors": os.cpu_count(),
        "disk_free_gib": round(disk.free / 2**30, 1),
    }
    # Under another name first: who reads the file never sees half of it, and a repeated run only replaces it.
    unfinished = out.with_suffix(".part")
    unfinished.write_text(json.dumps(facts, indent=1), encoding="utf-8")
    unfinished.replace(out)
    print(f"{len(facts)} facts in {out}")


if __name__ == "__main__":
    main()
